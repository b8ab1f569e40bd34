"""Cards: what made discrete numbers. Units, codes and joint vocabularies can be mixed only where their cards are equal.

A card is a kind and plain values, which may be cards themselves (a vocabulary has those of its units and of its codec).
Two cards are equal where their canonical JSON is: the order of keys never counts, the order of a list does.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Self

import torch
from torch import Tensor

from .errors import UserError

_KIND = "kind"
_SHOWN = 60


@dataclass(frozen=True)
class Card:
    """What made something discrete.

    Attributes:
        kind: `units`, `codec`, `vocabulary`.
        values: name -> None, bool, number, text, or lists, maps and cards of these. Copied, maps sorted by name.

    Raises:
        UserError: a value that is none of these, or a number that is not finite.
    """

    kind: str
    values: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if _KIND in self.values:
            raise UserError(
                f"a card of {self.kind}: {_KIND!r} is its own name for what it is; name the value otherwise"
            )
        object.__setattr__(self, "values", _plain(self.values, self.kind))

    def __getitem__(self, name: str) -> Any:
        return self.values[name]

    def __hash__(self) -> int:
        return hash(self.json)

    def to_dict(self) -> dict[str, Any]:
        """Plain values, `kind` among them: what goes into a checkpoint or a JSON file."""
        return {_KIND: self.kind, **_plain(self.values, self.kind)}

    @classmethod
    def from_dict(cls, content: Any, where: str = "card") -> Self:
        """Of `to_dict`. Raises UserError, which `where` begins, for anything else."""
        if not isinstance(content, Mapping) or not isinstance(content.get(_KIND), str):
            raise UserError(f"{where}: expected a card, an object with a {_KIND!r}; found {_show(content)}")
        return cls(content[_KIND], {name: value for name, value in content.items() if name != _KIND})

    @property
    def json(self) -> str:
        """Canonical JSON: sorted names, no spaces, whole numbers without a point."""
        return json.dumps(self.to_dict(), sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False)

    @property
    def hash(self) -> str:
        """16 hexadecimal digits of the SHA-256 of `json`."""
        return hashlib.sha256(self.json.encode()).hexdigest()[:16]

    def difference(self, other: Card) -> str | None:
        """What differs from another card, in one line, ours first; None where nothing does.

        The first name is shown with both values, the others are named: `codec.weights is "3f1c", expected "77ab"; also
        codec.num_codebooks`.
        """
        ours, theirs = _flat(self.to_dict()), _flat(other.to_dict())
        missing = object()
        names = [name for name in {**ours, **theirs} if ours.get(name, missing) != theirs.get(name, missing)]
        if not names:
            return None
        names.sort(key=lambda name: name != _KIND)  # another kind says more than what follows from it
        shown = [_show(side[names[0]]) if names[0] in side else "not there" for side in (ours, theirs)]
        also = f"; also {', '.join(names[1:4])}" + (f" and {len(names) - 4} more" if len(names) > 4 else "")
        return f"{names[0]} is {shown[0]}, expected {shown[1]}" + (also if names[1:] else "")

    def require(self, expected: Card, what: str, advice: str) -> None:
        """Refuse what this card describes where another one is expected.

        Args:
            what: what this is the card of, such as a file: begins the message.
            advice: what to do: ends it.

        Raises:
            UserError: they differ; says in what.
        """
        found = self.difference(expected)
        if found:
            raise UserError(f"{what}: {found}; {advice}")


def weights_hash(tensors: Mapping[str, Tensor]) -> str:
    """SHA-256 (hexadecimal) of tensors: their names, types, shapes and bytes. The order of the map does not count."""
    digest = hashlib.sha256()
    for name in sorted(tensors):
        value = tensors[name].detach().cpu().contiguous()
        kind = str(value.dtype).removeprefix("torch.")
        digest.update(f"{name} {kind} {tuple(value.shape)}\n".encode())
        digest.update(value.reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def _plain(value: Any, where: str) -> Any:
    """A copy in JSON's types, maps sorted, whole floats as integers (YAML writes both 75 and 75.0)."""
    if isinstance(value, Card):
        return value.to_dict()
    if value is None or isinstance(value, bool | int | str):
        return value
    if isinstance(value, float) and math.isfinite(value):
        return int(value) if value.is_integer() else value
    if isinstance(value, Mapping) and all(isinstance(name, str) for name in value):
        return {name: _plain(value[name], f"{where}.{name}") for name in sorted(value)}
    if isinstance(value, list | tuple):
        return [_plain(one, f"{where}[{place}]") for place, one in enumerate(value)]
    kind = type(value).__name__
    raise UserError(
        f"a card of {where}: {_show(value)} ({kind}) is no plain value; give text, finite numbers, lists, maps"
    )


def _flat(content: Mapping[str, Any], before: str = "") -> dict[str, Any]:
    """Dotted name -> value that is no map; an empty map stands for itself."""
    found = {}
    for name, value in content.items():
        if isinstance(value, Mapping) and value:
            found.update(_flat(value, f"{before}{name}."))
        else:
            found[before + name] = value
    return found


def _show(value: Any) -> str:
    text = json.dumps(value, ensure_ascii=False, default=repr)
    return text if len(text) <= _SHOWN else f"{text[: _SHOWN - 3]}..."
