"""The points of an ablation: words of the command line of which some have several values, or a YAML of named points."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Glob
from hydra.errors import HydraException

from ...components.errors import UserError
from ...configs.origins import ROOT as CONFIG_DIR
from ...configs.yaml_files import load_map

SEED = "seed"
"""The key whose values repeat a system: they share a row of the table."""

_MOST = 2000  # points: more is a slip of the pen


@dataclass(frozen=True)
class Point:
    """One run of an ablation.

    Attributes:
        system: its row: what differs from the other rows, or the name it was given.
        seed: value of `seed` where that is swept, else "".
        words: all overrides, as `voxzoo train` takes them.
        differs: those that not every point has, without the seed.
    """

    system: str
    seed: str
    words: tuple[str, ...]
    differs: tuple[str, ...] = ()

    @property
    def name(self) -> str:
        return f"{self.system} {SEED}={self.seed}" if self.seed else self.system


def points_of(
    words: Sequence[str],
    *,
    named: str | Path | None = None,
    around: bool = False,
    config_dirs: Sequence[str] = (),
) -> list[Point]:
    """The points that words describe, the base first.

    Args:
        words: overrides in Hydra's grammar; with several values a key is swept: `adaptor=conformer,none`,
            `optim.lr=choice(1e-3,1e-4)`, `seed=range(1,4)`, `speech_encoder=glob(c*)` over the choices of a group, `*`
            for all of them. The first value of each is the base's.
        named: a YAML of points: name -> overrides, as a list or a map. `words` are in front of each.
        around: change one key of the base at a time, in place of all combinations.
        config_dirs: further folders of YAML groups, for `*` and `glob`.

    Raises:
        UserError: a word that does not parse, a sweep without end, two points of one name, more than 2000 points.
    """
    fixed, axes = _axes(words, config_dirs)
    seeds = axes.pop(SEED, [""])
    if named is None:
        points = [_point(fixed, chosen) for chosen in _chosen(axes, around)]
    else:
        own = list(_chosen(axes, around))
        points = []
        for name, rest in _named(Path(named)):
            if len(own) > 1 and around:
                raise UserError(f"--points {named}: name the points there, or change one key at a time, not both")
            for chosen in own:
                point = _point(fixed, chosen)
                both = f"{name}, {point.system}" if chosen and len(own) > 1 else name
                points.append(replace(point, system=both, words=(*point.words, *rest), differs=(*point.differs, *rest)))
    _require_few(len(points) * len(seeds))
    found = [
        replace(point, seed=seed, words=(*point.words, f"{SEED}={seed}") if seed else point.words)
        for point in points
        for seed in seeds
    ]
    names = [point.name for point in found]
    twice = next((name for name in names if names.count(name) > 1), None)
    if twice is not None:
        raise UserError(f"two points are {twice!r}: a value stands twice, or a name")
    return found


def _point(fixed: Sequence[str], chosen: Sequence[str]) -> Point:
    return Point(" ".join(chosen) or "base", "", (*fixed, *chosen), tuple(chosen))


def _axes(words: Sequence[str], config_dirs: Sequence[str]) -> tuple[list[str], dict[str, list[str]]]:
    """Words of one value, and key -> values as words have them."""
    fixed: list[str] = []
    axes: dict[str, list[str]] = {}
    for word in words:
        key, values = _values(word, config_dirs)
        if values is None:
            fixed.append(word)
        elif key in axes:
            raise UserError(f"{word}: {key} is swept twice; give all its values in one word")
        else:
            axes[key] = values
    for key in axes:
        said = next((word for word in fixed if word.partition("=")[0].lstrip("+") == key.lstrip("+")), None)
        if said is not None:
            raise UserError(f"{said}: {key} is swept by another word; give all its values in one")
    return fixed, axes


def _values(word: str, config_dirs: Sequence[str]) -> tuple[str, list[str] | None]:
    """The key of a word, and its values where it has several."""
    try:
        parsed = OverridesParser.create().parse_override(word)
    except (HydraException, ValueError, ArithmeticError, RecursionError, SystemError) as error:
        reason = next(iter(str(error).splitlines()), type(error).__name__)
        raise UserError(f"override {word!r} does not parse (KEY=VALUE,VALUE is expected): {reason}") from None
    key = parsed.get_key_element()
    value: Any = parsed.value()
    if value == "*":
        value = Glob(include=["*"], exclude=[])
    elif not parsed.is_sweep_override():
        return key, None
    if isinstance(value, Glob):
        return key, _choices(word, key, value, config_dirs)
    if not parsed.is_discrete_sweep():
        raise UserError(f"{word}: an interval has no end of values; choose some, {key}=choice(...) or range(...)")
    _require_few(sum(1 for _ in itertools.islice(parsed.sweep_string_iterator(), _MOST + 1)))
    return key, list(parsed.sweep_string_iterator())


def _choices(word: str, key: str, wanted: Glob, config_dirs: Sequence[str]) -> list[str]:
    group = key.lstrip("+/")
    folders = [*map(Path, config_dirs), CONFIG_DIR]
    there = sorted({path.stem for folder in folders for path in (folder / group).glob("*.yaml")})
    if not there:
        raise UserError(f"{word}: {group} is no group of choices; `voxzoo parts` lists those that are")
    found = wanted.filter(there)
    if not found:
        raise UserError(f"{word}: none of the choices of {group} fits; there are {', '.join(there)}")
    return found


def _chosen(axes: Mapping[str, Sequence[str]], around: bool) -> Iterator[list[str]]:
    """KEY=VALUE words of each point: all combinations, or the base and what differs from it in one key."""
    words = [[f"{key}={value}" for value in values] for key, values in axes.items()]
    if not around:
        _require_few(_product(len(values) for values in words))
        yield from map(list, itertools.product(*words))
        return
    base = [values[0] for values in words]
    yield base
    for place, values in enumerate(words):
        for value in values[1:]:
            yield [*base[:place], value, *base[place + 1 :]]


def _product(counts: Iterable[int]) -> int:
    result = 1
    for count in counts:
        result *= count
    return result


def _require_few(count: int) -> None:
    if count > _MOST:
        raise UserError(f"more than {_MOST} points; sweep fewer values, or one key at a time (--one-at-a-time)")


def _named(path: Path) -> Iterator[tuple[str, list[str]]]:
    """(name, overrides) of each point of a YAML."""
    if not path.is_file():
        raise UserError(f"--points {path}: no such file")
    content = load_map(path)
    if not content:
        raise UserError(f"--points {path}: names no point; expected NAME: [KEY=VALUE, ...]")
    for name, value in content.items():
        if value is None:
            yield str(name), []
            continue
        words = [f"{key}={_word(one)}" for key, one in value.items()] if hasattr(value, "items") else list(value)
        if not all(isinstance(word, str) for word in words):
            raise UserError(f"--points {path}: {name}: expected a list of KEY=VALUE, or a map of keys to values")
        for word in words:
            if _values(word, ())[1] is not None:
                raise UserError(f"--points {path}: {name}: {word}: a named point has one value for each key")
        yield str(name), words


def _word(value: Any) -> str:
    if value is None:
        return "null"
    if isinstance(value, bool):
        return str(value).lower()
    if hasattr(value, "items"):
        return "{" + ",".join(f"{key}:{_word(one)}" for key, one in value.items()) + "}"
    if isinstance(value, str):
        is_plain = bool(value) and value.replace("_", "").replace("-", "").isalnum()
        return value if is_plain else "'" + value.replace("'", "\\'") + "'"
    if isinstance(value, Sequence):
        return "[" + ",".join(map(_word, value)) + "]"
    return str(value)
