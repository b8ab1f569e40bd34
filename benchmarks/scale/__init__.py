"""What grows with the size of data and models: `python -m benchmarks scale`. Imports rooms of voxzoo inside functions
alone, since what is measured runs in processes of its own.
"""

from .command import main

__all__ = ["main"]
