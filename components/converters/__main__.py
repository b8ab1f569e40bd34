"""`python -m voxzoo.components.converters` prints the table of components/README.md: where implementations differ."""

from .compat import markdown

print(markdown(), end="")
