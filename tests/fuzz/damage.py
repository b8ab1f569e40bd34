"""Good files, damaged: bytes that were changed, and values in a tree that are others or gone."""

from __future__ import annotations

import copy
from typing import Any

from hypothesis import strategies as st

GONE = object()
SCALARS = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-2, 4),
    st.sampled_from([10**9, 2**63, 2**64, -(10**400), 0.5, 1e308, float("nan"), float("inf"), -float("inf")]),
    st.sampled_from(["", "a", "gelu", "float32", "../x", "/etc/passwd", "\x1b[31m", "a\nb", "\0", "${oc.env:HOME}"]),
    st.text(max_size=4),
)
VALUES = st.one_of(SCALARS, SCALARS, st.lists(SCALARS, max_size=2), st.dictionaries(st.text(max_size=3), SCALARS))
CHANGES = st.lists(
    st.tuples(st.lists(st.integers(0, 10**6), min_size=1, max_size=5), st.one_of(VALUES, VALUES, st.just(GONE))),
    min_size=1,
    max_size=2,
)
"""(place, what stands there then) each; a place is a number for each level of a tree."""


def changed(tree: Any, changes: list[tuple[list[int], Any]]) -> Any:
    """A tree of dicts and lists with some values changed or gone."""
    tree = copy.deepcopy(tree)
    for place, value in changes:
        node = tree
        for depth, number in enumerate(place):
            keys = list(node) if isinstance(node, dict) else list(range(len(node)))
            if not keys:
                break
            key = keys[number % len(keys)]
            if depth < len(place) - 1 and isinstance(node[key], dict | list) and node[key]:
                node = node[key]
            elif value is GONE:
                del node[key]
                break
            else:
                node[key] = value
                break
    return tree


EDITS = st.lists(
    st.tuples(st.one_of(st.integers(0, 60), st.integers(0, 10**6)), st.integers(0, 3), st.binary(max_size=4)),
    max_size=4,
)
"""(place, bytes that go, bytes that come) each: most in the first 60 bytes, where headers are."""
CUTS = st.one_of(st.none(), st.none(), st.integers(0, 200), st.integers(0, 10**6))
"""Where the file ends."""


def edited(content: bytes, edits: list[tuple[int, int, bytes]], cut: int | None) -> bytes:
    """The bytes of a file with some of them changed, and its end cut off."""
    for place, gone, come in edits:
        place %= len(content) + 1
        content = content[:place] + come + content[place + gone :]
    return content if cut is None else content[: cut % (len(content) + 1)]
