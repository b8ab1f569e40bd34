"""The contract of parts that a config names: composed, built small, checked."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from omegaconf import DictConfig, OmegaConf

from ..components.errors import UserError
from .build import build
from .check import check
from .compose import compose
from .targets import allow_list

if TYPE_CHECKING:
    from ..components.contract import Outcome

_SAMPLE = ("the cat sleeps in the house", "a dog runs over the green field", "el gato duerme en la casa")
_LANGUAGES = ("eng", "spa")


def check_choices(
    overrides: Sequence[str], config_dirs: Sequence[str | Path] = ()
) -> dict[str, tuple[type, list[Outcome]]]:
    """Check each part that is chosen by `ROLE=CHOICE` against the contract of its role.

    Its neighbours are the tiny ones, so that widths that follow theirs (`${text_seq2seq.dim}`) are small.

    Args:
        overrides: as for `voxzoo train`; at least one choice of a role.
        config_dirs: further folders of YAML groups.

    Returns:
        Role -> class of the part, and what was found.

    Raises:
        UserError: no role is chosen, a choice that does not exist, or settings that are none of the part's.
    """
    from ..components.roles import ROLES

    chosen = [
        key for key, _, _ in (override.partition("=") for override in overrides) if key in ROLES and key != "data"
    ]
    if not chosen:
        raise UserError(f"name what to check as ROLE=CHOICE, such as adaptor=conv; roles: {', '.join(ROLES)}")
    tiny = [f"{role}=tiny" for role in ROLES if role not in chosen]
    config = compose([*tiny, *overrides], config_dirs=config_dirs)
    faults = [fault for fault in check(config) if fault.path.split(".")[0] in chosen]
    if faults:
        raise UserError(
            "\n  ".join([f"{len(faults)} fault{'s' * (len(faults) > 1)} in the config:", *map(str, faults)])
        )
    return dict(examine_parts(config, chosen))


def examine_parts(config: DictConfig, roles: Sequence[str]) -> Iterator[tuple[str, tuple[type, list[Outcome]]]]:
    """(role, (class, outcomes)) of the parts that a composed config has for these roles; absent ones are left out."""
    from ..components.contract import examine

    allowed = allow_list(config)
    with tempfile.TemporaryDirectory() as folder:
        for role in roles:
            node = config.get(role)
            if node is None or node.get("_target_") is None:
                continue
            settings = OmegaConf.to_container(node, resolve=True)
            assert isinstance(settings, dict)
            if role == "tokenizer":
                settings = _with_vocabulary(settings, Path(folder))

            def again(settings: Mapping[Any, Any] = settings) -> Any:
                return build(settings, allowed=allowed)

            yield role, (type(again()), examine(again, role))


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
