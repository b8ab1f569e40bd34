"""Where a choice or a class belongs that stands under the wrong key: said beside the refusal."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from pathlib import Path

from .origins import ROOT

_MOST = 3
"""Groups that are named; a choice of more, such as `tiny`, says nothing about what was meant."""
_TARGET = re.compile(r"^\s*_target_: *[\w.]*\.(\w+)\s*(?:#.*)?$", re.MULTILINE)


def choices_called(name: str, folders: Iterable[Path] = ()) -> list[str]:
    """`GROUP=CHOICE` of each choice that has a name, in every group; of a class, each choice that names it.

    Args:
        name: of a choice or of a class, without its module.
        folders: of YAML groups, besides the shipped ones.
    """
    if not re.fullmatch(r"\w[\w-]*", name):
        return []
    searched = (*folders, ROOT)
    groups = sorted({path.parent.name for folder in searched for path in folder.glob(f"*/{name}.yaml")})
    found = [f"{group}={name}" for group in groups]
    if found or not name[0].isupper():
        return found
    return [
        f"{path.parent.name}={path.stem}"
        for folder in searched
        for path in sorted(folder.glob("*/*.yaml"))
        if name in _TARGET.findall(path.read_text(encoding="utf-8"))
    ]


def belongs(name: str, folders: Iterable[Path] = ()) -> str:
    """The groups that have this choice, for the end of a refusal; "" where none has, or too many."""
    found = choices_called(name, folders)
    if not 0 < len(found) <= _MOST:
        return ""
    groups = list(dict.fromkeys(word.partition("=")[0] for word in found))
    what = "class" if name[0].isupper() else "choice"
    return f"; {name} is a {what} of {_or(groups, 'and')}: {_or(found, 'or')}"


def role_of(found: type) -> str | None:
    """The key of the role that a class fills; None of a class that fills none."""
    from ..components.roles import ROLES  # with torch, for which composing and `--help` do not wait

    return next((key for key, role in ROLES.items() if issubclass(found, role)), None)


def belongs_to(found: type) -> str:
    """The role that a class fills and its key, for the end of a refusal; "" of a class of no role."""
    from ..components.roles import ROLES

    key = role_of(found)
    return f"; it fills the role {ROLES[key].__name__}: its key is {key}" if key is not None else ""


def choose(role: type, value: object) -> str:
    """How to choose a part of a role, where a word stands in its place."""
    key = role_of(role)
    if key is None:
        return ""
    there = (ROOT / key / f"{value}.yaml").is_file() if isinstance(value, str) else False
    return f"; choose one by {key}={value if there else 'CHOICE'}"


def _or(words: Sequence[str], word: str) -> str:
    return f" {word} ".join([", ".join(words[:-1]), words[-1]] if len(words) > 1 else words)
