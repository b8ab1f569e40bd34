"""What a config that is part of a file may hold: plain values. It may come from anywhere (tasks/README.md, trust)."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from ..components.errors import UserError


def require_plain(config: Any, where: object) -> None:
    """Refuse a saved config in which something would still be looked up on this machine.

    `voxzoo` saves resolved configs. An interpolation in one (`${oc.env:NAME}`) would put a value of this machine, such
    as a secret of its environment, where whoever made the file wants it.

    Args:
        config: mappings, lists and values, as read.
        where: the file, for the message.

    Raises:
        UserError: an interpolation; names its key.
    """
    for key, value in _strings(config, ""):
        if "${" in value:
            raise UserError(
                f"{where}: {key}={value[:80]!r} of its config would be looked up on this machine; a saved config holds "
                "plain values alone: write the value there, if you trust the file"
            )


def _strings(node: Any, path: str) -> Iterator[tuple[str, str]]:
    if isinstance(node, str):
        yield path, node
    elif isinstance(node, Mapping):
        for key, value in node.items():
            if isinstance(key, str):
                yield f"{path}.{key}".lstrip("."), key
            yield from _strings(value, f"{path}.{key}".lstrip("."))
    elif isinstance(node, list | tuple):
        for index, value in enumerate(node):
            yield from _strings(value, f"{path}[{index}]")
