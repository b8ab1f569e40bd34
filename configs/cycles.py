"""Interpolations that lead back to themselves: who resolved them would never end."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

from omegaconf import DictConfig, ListConfig

from ..components.errors import UserError

_REFERENCE = re.compile(r"\$\{([^${}:]+)\}")


def require_no_cycles(config: DictConfig) -> None:
    """Raises UserError: the keys that refer to each other in a circle."""
    found = {path: _references(path, child._value()) for path, child in interpolated(config)}
    done: set[str] = set()

    def follow(path: str, before: tuple[str, ...]) -> None:
        if path in before:
            circle = " -> ".join([*before[before.index(path) :], path])
            raise UserError(f"interpolations lead in a circle, {circle}: write a value at one of these keys")
        words = path.split(".")
        heads = (".".join(words[: count + 1]) for count in range(len(words)))
        # A key below one that is an interpolation itself is found where that leads.
        head = next((one for one in heads if one in found), None)
        if head is not None and path not in done:
            for other in found[head]:
                follow(other + path[len(head) :], (*before, path))
        done.add(path)

    for path in found:
        follow(path, ())


def interpolated(node: DictConfig | ListConfig, at: str = "") -> Iterator[tuple[str, Any]]:
    """Path and node of each value that is made of others; nothing is resolved. `at`: where `node` stands."""
    children: list[tuple[Any, Any]]
    if isinstance(node, ListConfig):
        children = [(place, node._get_node(place)) for place in range(len(node))]
    else:
        children = [(key, node._get_node(key)) for key in node.keys()]  # noqa: SIM118 - `in` leaves out ???
    for key, child in children:
        path = f"{at}.{key}" if at else str(key)
        text = child._value() if child is not None else None
        if isinstance(text, str) and "${" in text:
            yield path, child
        elif isinstance(child, DictConfig | ListConfig) and not (child._is_none() or child._is_missing()):
            yield from interpolated(child, path)


def _references(path: str, text: str) -> list[str]:
    """Paths that the value at a path refers to."""
    at = path.rpartition(".")[0]
    return [_absolute(one.strip(), at) for one in _REFERENCE.findall(text)]


def _absolute(reference: str, at: str) -> str:
    """`..a.b` as seen from a value in the node at a path: one dot is that node."""
    dots = len(reference) - len(reference.lstrip("."))
    name = re.sub(r"\[(\w+)\]", r".\1", reference[dots:])
    if not dots:
        return name
    owner = at.split(".")[: len(at.split(".")) - dots + 1] if at else []
    return ".".join([*owner, name])
