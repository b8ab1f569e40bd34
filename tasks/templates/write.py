"""Writes a part, a task, data, a callback, an optimizer or a schedule of one's own: `voxzoo parts new`."""

from __future__ import annotations

import difflib
import importlib.util
import keyword
import os
import re
from dataclasses import dataclass
from pathlib import Path

from ...components.errors import UserError
from ...components.roles import ROLES
from ...configs.choices import belongs
from .codes import words_for

_HERE = Path(__file__).parent
_GROUPS = {
    **{role: role for role in ROLES},
    "task": "task",
    "callback": "callbacks",
    "optim": "optim",
    "schedule": "schedule",
}
_SOURCES = {"data": "audiofolder"}
"""Template of a kind, where it is called otherwise."""
KINDS = tuple(_GROUPS)
"""What there is a template for."""
_ALSO = {"callbacks": "callback", "optimizer": "optim"}

_TINY = ("frontend", "speech_encoder", "adaptor", "text_seq2seq", "tokenizer", "data")
_UNITS = ("unit_extractor", "t2u", "vocoder")
_LMS = ("speech_lm", "stream_lm")
_SHORT = ("trainer.max_steps=20", "trainer.val_check_interval=20")


@dataclass(frozen=True)
class Written:
    """What was written, and what to do next.

    Attributes:
        files: in the order of reading.
        folder: to call the commands from: where the package lies.
        commands: word of what it does -> command line.
    """

    files: tuple[Path, ...]
    folder: Path
    commands: dict[str, str]


def write_new(kind: str, name: str, out: str | Path) -> Written:
    """Write a class, its YAML and its test into a package, which is made or added to.

    Args:
        kind: one of `KINDS`.
        name: of the choice; an identifier.
        out: the folder of the package; its name is what the package is imported by.

    Raises:
        UserError: a kind or a name that cannot be, or a file that is there already; then nothing is written.
    """
    kind = _ALSO.get(kind, kind)
    if kind not in KINDS:
        near = difflib.get_close_matches(kind, KINDS, n=1)
        hint = f"; did you mean {near[0]!r}?" if near else belongs(kind)
        raise UserError(f"parts new {kind}: there is no such template; there are: {', '.join(KINDS)}{hint}")
    folder = Path(os.path.abspath(out))
    package = folder.name
    for word, what in ((name, "name"), (package, "package (the last part of --out)")):
        if not re.fullmatch(r"[a-z][a-z0-9_]*", word) or keyword.iskeyword(word):
            raise UserError(
                f"{word!r} cannot be the {what}: expected lower-case letters, digits and _ with a letter first"
            )
    _refuse_taken(package, folder)
    group, source = _GROUPS[kind], _SOURCES.get(kind, kind)
    files = {
        folder / group / f"{name}.py": _HERE / f"{source}.py",
        folder / "configs" / group / f"{name}.yaml": _HERE / f"{source}.yaml",
        folder / "tests" / f"test_{kind}_{name}.py": _HERE / f"{source}_test.py",
    }
    there = [str(path) for path in files if path.exists()]
    if there:
        raise UserError(f"{', '.join(there)}: there already; choose another name, or delete it first")
    texts = {path: _renamed(file.read_text(), source, group, name, package) for path, file in files.items()}
    for inner in (folder, folder / group, folder / "tests"):
        inner.mkdir(parents=True, exist_ok=True)
        if not (inner / "__init__.py").exists():
            (inner / "__init__.py").write_text("")
    for path, text in texts.items():
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return Written(tuple(files), folder.parent, _commands(kind, group, name, package))


def _refuse_taken(package: str, folder: Path) -> None:
    """A package of the same name that is installed would be imported in its place."""
    spec = importlib.util.find_spec(package)
    found = [spec.origin, *(spec.submodule_search_locations or ())] if spec is not None else []
    places = {Path(place).resolve() for place in found if place}
    mine = {folder.resolve(), folder.resolve() / "__init__.py"}
    if spec is not None and not places & mine:
        raise UserError(f"{package!r} is the name of an installed package; choose another --out")


def _renamed(text: str, source: str, group: str, name: str, package: str) -> str:
    camel = "".join(word[:1].upper() + word[1:] for word in name.split("_"))
    text = text.replace(f"from .{source} import", f"from {package}.{group}.{name} import")
    text = re.sub(r"\bmine", name, text.replace("Mine", camel))
    return text.replace("my_zoo", package)


def _commands(kind: str, group: str, name: str, package: str) -> dict[str, str]:
    """Command lines that work as they are, each in seconds."""
    own = f"--config-dir {package}/configs allow=[{package}] {group}={name}"
    tiny = [f"{role}=tiny" for role in _TINY if role != kind]
    if kind in (*_UNITS, "discriminator"):
        tiny = ["experiment=quickstart", *tiny, *(f"{role}=tiny" for role in _UNITS if role != kind)]
    if kind == "discriminator":
        tiny = [*(word for word in tiny if word != "vocoder=tiny"), "vocoder=tiny_istft"]
        tiny.append("stages.vocoder.choose.task=gan_vocoder")
    if kind == "codec":
        tiny = ["data=tiny", "task=train_codec", "discriminator=tiny_ms_stft", "task.crop_seconds=0.3"]
    asked = ROLES.keys() | {"task"}
    clips: dict[str, str] = {}
    if kind == "data":  # something to read
        clips["clips"] = "python -c \"from voxzoo.tasks.templates.clips import write_clips; write_clips('clips')\""
        own += " data.root=clips"
    if kind in _LMS:  # something to read
        clips["codes"] = "python -c \"from voxzoo.tasks.templates.codes import write_codes; write_codes('codes')\""
        tiny = [f"{role}=tiny" for role in _LMS if role != kind] + words_for("codes")
    words = " ".join(tiny)
    return {
        **clips,
        "check": f"voxzoo {'parts check' if kind in asked else 'check'} {own}",
        "test": f"python -m pytest {package}/tests/test_{kind}_{name}.py",
        "train": f"voxzoo train {own} {words} {' '.join(_SHORT)} name={kind}_{name}",
    }
