"""What a published model family is to voxzoo: its config as ours, its keys as ours, and both back again."""

from __future__ import annotations

from abc import ABC, abstractmethod
from pathlib import Path
from typing import Any, ClassVar, Literal

from .keymap import KeyMap

Compat = Literal["transformers", "fairseq2"]
Nodes = dict[str, dict[str, Any]]
"""Role -> config node: `_target_` (a class of voxzoo) and its constructor arguments. `task` is one of them."""


class Family(ABC):
    """One layout of published checkpoints. Instances hold no state.

    Attributes:
        model_types: `model_type` values of config.json that it reads.
    """

    model_types: ClassVar[tuple[str, ...]]

    @abstractmethod
    def nodes(self, settings: dict[str, Any], folder: Path | None = None) -> Nodes:
        """A model's parts as config nodes, with `compat: transformers` in all its switches.

        Args:
            settings: config.json.
            folder: where its other files are (generation_config.json, preprocessor_config.json, the tokenizer's);
                None: there are none, and there is neither tokenizer nor front end but by default.

        Returns:
            Nodes of the roles that it fills (frontend, tokenizer, speech_encoder ...) and, where it does a task,
            `task`, without its parts.

        Raises:
            UserError: a setting that no part of voxzoo has; names the key, its value and what is expected.
        """

    @abstractmethod
    def key_map(self, nodes: Nodes) -> KeyMap:
        """Published keys <-> `role.key`, for a model with these nodes."""

    @abstractmethod
    def settings(self, nodes: Nodes) -> dict[str, Any]:
        """config.json of a model with these nodes: architecture alone, laid over what was imported.

        Raises:
            UserError: parts that the layout has no place for; names the role and what it expects there.
        """

    def kept(self, nodes: Nodes, came_from: bool) -> tuple[Nodes, dict[str, str]]:
        """What of a model goes out in this layout.

        Args:
            nodes: of the model.
            came_from: whether the model began as one of this layout, so that parts which were put around it since may
                stay behind. A layout that was asked for has to hold them.

        Returns:
            Nodes of what goes out, and what does not: role, or beginning of our keys -> why, in a few words.
        """
        return nodes, {}

    def special_ids(self, tokenizer: Any, nodes: Nodes) -> dict[str, Any]:
        """Special ids in config.json of a model that was not imported; an imported one keeps those it came with.

        Args:
            tokenizer: of the model, or None.
            nodes: as in `settings`.
        """
        return {}

    def notes(self, nodes: Nodes) -> list[str]:
        """What a model with these nodes does and the layout cannot say, so that transformers does otherwise; a line
        each."""
        return []

    def export_frontend(self, nodes: Nodes, folder: Path) -> None:
        """Write preprocessor_config.json of a model that was not imported, where it has a front end."""
        return None

    def export_tokenizer(self, tokenizer: Any, nodes: Nodes, folder: Path) -> None:
        """Write the tokenizer's files of a model that was not imported. Families without text have none."""
        return None
