"""`python -m voxzoo.components.converters` prints where implementations differ, as the table of the README."""

from .compat import markdown

print(markdown(), end="")
