"""Property tests: see tests/README.md."""
