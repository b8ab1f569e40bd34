"""`ROLE.pretrained=FOLDER`: a part of a published model, with the settings and the weights in the folder."""

from __future__ import annotations

from pathlib import Path

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from ..components import parts
from ..components.errors import UserError
from .foreign import require_plain

KEY = "pretrained"


def pretrained_sources(config: DictConfig) -> dict[str, str]:
    """Role -> folder or hub name, of the roles that name one.

    Raises:
        UserError: a role that says `pretrained` without saying of what.
    """
    found = {}
    for role in parts():
        node = config.get(role)
        if not isinstance(node, DictConfig) or KEY not in node.keys():  # noqa: SIM118 - `in` leaves out what is ???
            continue
        try:
            source = node[KEY]
        except OmegaConfBaseException:
            asked = _written_at(config, role)
            for_it = "" if asked == role else f"; {role}=pretrained takes it from there"
            raise UserError(
                f"{asked}.{KEY}: give the folder of a published model (or its hub name), as in {asked}.{KEY}=FOLDER"
                f"{for_it}"
            ) from None
        if source is not None:
            found[role] = str(source)
    return found


def _written_at(config: DictConfig, role: str) -> str:
    """The role at which the folder of a role is written: another one where its own refers to that."""
    seen: list[str] = []
    while role not in seen and OmegaConf.is_interpolation(config[role], KEY):
        seen.append(role)
        text = str(config[role]._get_node(KEY)._value())
        role, _, key = text.removeprefix("${").removesuffix("}").rpartition(".")
        node = config.get(role)
        if key != KEY or not isinstance(node, DictConfig) or KEY not in node.keys():  # noqa: SIM118 - as above
            return seen[-1]
    return role


def fill_pretrained(config: DictConfig) -> None:
    """Put the settings of published parts where a role names a folder; what the config says itself stays.

    Raises:
        UserError: a folder that is none, or a model without that role.
    """
    sources = pretrained_sources(config)
    if not sources:
        return
    from ..components.converters import describe

    described = {}
    for role, source in sources.items():
        try:
            if source not in described:
                described[source] = describe(source)
                require_plain(described[source], source)
        except UserError as error:
            raise UserError(f"{_written_at(config, role)}.{KEY}={source}: {_reason(error, source)}") from error
    OmegaConf.set_struct(config, False)
    for role, source in sources.items():
        nodes = described[source]
        if role not in nodes:
            there = ", ".join(name for name in nodes if name != "task")
            raise UserError(f"{role}.{KEY}={source}: that model has no {role}; it has: {there}")
        if not OmegaConf.is_interpolation(config[role], KEY) and Path(source).expanduser().is_dir():
            config[role][KEY] = str(Path(source).expanduser().absolute())
        config[role] = OmegaConf.merge(nodes[role], config[role])


def _reason(error: UserError, source: str) -> str:
    return str(error).removeprefix(f"{source}: ")
