"""What constructors refuse of numbers. The names given are those of the arguments, for the message."""

from __future__ import annotations

from collections.abc import Mapping


def at_least(least: int, **values: float) -> None:
    """Raises ValueError: a value below `least`."""
    for name, value in values.items():
        if value < least:
            raise ValueError(f"{name} must be at least {least}; got {value}")


def odd(**sizes: int) -> None:
    """Raises ValueError: an even kernel size. An odd one has as many steps before its middle as behind it."""
    for name, size in sizes.items():
        if size % 2 == 0:
            raise ValueError(f"{name}={size} is even: take an odd one")


def share(**values: float) -> None:
    """Raises ValueError: a value outside 0 to 1."""
    for name, value in values.items():
        if not 0 <= value <= 1:
            raise ValueError(f"{name} must be between 0 and 1; got {value}")


def probability(**values: float) -> None:
    """Raises ValueError: a value outside 0 to below 1: of what must stay possible."""
    for name, value in values.items():
        if not 0 <= value < 1:
            raise ValueError(f"{name} must be at least 0 and below 1; got {value}")


_MOST_LAYERS = 10_000


def stacks(arguments: Mapping[str, object]) -> None:
    """Raises ValueError: more layers than any model has, which would take hours to build before a weight is missed."""
    for name, value in arguments.items():
        if name.endswith("layers") and isinstance(value, int) and value > _MOST_LAYERS:
            raise ValueError(f"{name}={value}: more than {_MOST_LAYERS:,} layers are not built")
