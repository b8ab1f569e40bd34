"""The contract of parts that a config names: composed, built small, checked."""

from __future__ import annotations

import functools
import math
import tempfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from omegaconf import DictConfig, OmegaConf

from ..components import parts
from ..components.errors import UserError
from .build import build
from .check import check, foreign_folders
from .compose import compose, origins
from .targets import allow_list, class_of

if TYPE_CHECKING:
    from ..components.contract import Outcome

_SAMPLE = ("the cat sleeps in the house", "a dog runs over the green field", "el gato duerme en la casa")
_NEIGHBOURS = ("speech_encoder", "text_seq2seq")  # of an adaptor
_WIDE = 48  # 32 in the tiny choices
_LANGUAGES = ("eng", "spa")


@dataclass(frozen=True)
class Checked:
    """A part of a config, and what was found."""

    role: str
    cls: type
    outcomes: tuple[Outcome, ...]

    @property
    def sound(self) -> bool:
        return not any(outcome.fault for outcome in self.outcomes)

    def lines(self) -> Iterator[str]:
        from ..components.contract import report

        return report(f"{self.role} {self.cls.__name__}", self.outcomes)

    def as_dict(self) -> dict[str, Any]:
        return {"class": self.cls.__name__, "checks": [asdict(outcome) for outcome in self.outcomes]}


def check_choices(overrides: Sequence[str], config_dirs: Sequence[str] = ()) -> list[Checked]:
    """Check each part that is chosen by `ROLE=CHOICE` against the contract of its role.

    Its neighbours are the tiny ones, so that widths that follow theirs (`${text_seq2seq.dim}`) are small. The speech
    encoder and the text model differ in width, so that what mixes up the two is caught.

    Args:
        overrides: as for `voxzoo train`; at least one choice of a role.
        config_dirs: further folders of YAML groups.

    Raises:
        UserError: no role is chosen, a choice that does not exist, or settings that are none of the part's.
    """
    known = parts()
    chosen = [key for key, _, _ in (override.partition("=") for override in overrides) if key in known]
    if not chosen:
        raise UserError(f"name what to check as ROLE=CHOICE, such as adaptor=conv; roles: {', '.join(known)}")
    tiny = [f"{role}=tiny" for role in known if role not in chosen]
    wide = next((role for role in _NEIGHBOURS if role not in chosen), None)
    tiny += [f"{wide}.dim={_WIDE}"] if wide else []
    config = compose([*tiny, *overrides], config_dirs=config_dirs)
    faults = [fault for fault in check(config) if fault.path.split(".")[0] in chosen]
    faults += foreign_folders(config, origins([*tiny, *overrides], config_dirs=config_dirs))
    if faults:
        raise UserError(
            "\n  ".join([f"{len(faults)} fault{'s' * (len(faults) > 1)} in the config:", *map(str, faults)])
        )
    found = list(examine_parts(config, list(dict.fromkeys(chosen))))
    return [_turned(one, config) if one.role == "adaptor" else one for one in found]


def _turned(checked: Checked, config: DictConfig) -> Checked:
    """Adds a fault where the YAML of an adaptor gives each of its widths to the other."""
    from ..components.contract import Outcome

    given = tuple(OmegaConf.select(config, f"adaptor.{key}") for key in ("input_dim", "output_dim"))
    speech, text = (OmegaConf.select(config, f"{role}.dim") for role in _NEIGHBOURS)
    if speech == text or given != (text, speech):
        return checked
    fault = (
        f"adaptor.input_dim is {text} and adaptor.output_dim is {speech}, the other way round: the speech encoder "
        f"gives width {speech} (input_dim: ${{speech_encoder.dim}}), the text model reads {text} (output_dim: "
        "${text_seq2seq.dim})"
    )
    return replace(checked, outcomes=(*checked.outcomes, Outcome("widths", fault)))


def examine_parts(config: DictConfig, roles: Iterable[str], most: float = math.inf) -> Iterator[Checked]:
    """The parts that a composed config has for these roles; absent ones are left out.

    Args:
        config: composed and checked.
        roles: those to look at.
        most: parameters of a part; larger ones are not asked, which their outcome says.
    """
    from ..components.contract import Outcome, examine

    allowed = allow_list(config)
    with tempfile.TemporaryDirectory() as folder:
        for role in roles:
            cls = class_of(config.get(role), config)
            if cls is None or role not in parts():
                continue
            settings = OmegaConf.to_container(config[role], resolve=True)
            assert isinstance(settings, dict)
            if role == "tokenizer":
                settings = _with_vocabulary(settings, Path(folder))
            again = functools.partial(build, settings, allowed=allowed)
            size = _parameters(again) if most < math.inf and role not in ("frontend", "tokenizer") else 0
            if size > most:
                small = f"{size:,} parameters: check it small, by `voxzoo parts check {role}=CHOICE {role}.dim=32 ...`"
                yield Checked(role, cls, (Outcome("size", note=small),))
            else:
                yield Checked(role, cls, tuple(examine(again, role)))


def _parameters(again: Callable[[], Any]) -> int:
    import torch

    with torch.device("meta"):
        return sum(parameter.numel() for parameter in again().parameters())


def _with_vocabulary(settings: dict[Any, Any], folder: Path) -> dict[Any, Any]:
    """Settings of a tokenizer that is trained from the data of a run: it gets a vocabulary of a few sentences."""
    model = settings.get("model")
    if not settings.get("train", True) or not isinstance(model, str) or Path(model).is_file():
        return settings
    from ..components.tokenizer.vocabulary import train_sentencepiece

    languages = list(settings.get("languages") or _LANGUAGES)
    size = int(settings.get("vocab_size") or 0)
    path = train_sentencepiece(_SAMPLE, folder / "tokenizer.model", min(size, 120), len(languages))
    return {**settings, "model": str(path), "languages": languages}
