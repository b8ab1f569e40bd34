"""`ROLE.pretrained=FOLDER`: a part of a published model, with the settings and the weights in the folder."""

from __future__ import annotations

from pathlib import Path

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from ..components import parts
from ..components.errors import UserError

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
            raise UserError(
                f"{role}.{KEY}: give the folder of a published model (or its hub name), as in {role}.{KEY}=FOLDER"
            ) from None
        if source is not None:
            found[role] = str(source)
    return found


def fill_pretrained(config: DictConfig) -> None:
    """Put the settings of published parts where a role names a folder; what the config says itself stays.

    Raises:
        UserError: a folder that is none, or a model without that role.
    """
    sources = pretrained_sources(config)
    if not sources:
        return
    from ..components.converters import describe

    described = {source: describe(source) for source in set(sources.values())}
    OmegaConf.set_struct(config, False)
    for role, source in sources.items():
        nodes = described[source]
        if role not in nodes:
            there = ", ".join(name for name in nodes if name != "task")
            raise UserError(f"{role}.{KEY}={source}: that model has no {role}; it has: {there}")
        if not OmegaConf.is_interpolation(config[role], KEY) and Path(source).expanduser().is_dir():
            config[role][KEY] = str(Path(source).expanduser().absolute())
        config[role] = OmegaConf.merge(nodes[role], config[role])
