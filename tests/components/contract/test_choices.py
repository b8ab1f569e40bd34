"""Each tiny part of the zoo against the contract of its role."""

from __future__ import annotations

import pytest
from voxzoo.components.contract import require
from voxzoo.configs.compose import CONFIG_DIR
from voxzoo.configs.contract import check_choices

ROLES = ("speech_encoder", "adaptor")
TINY = [f"{role}={path.stem}" for role in ROLES for path in sorted((CONFIG_DIR / role).glob("tiny*.yaml"))]


@pytest.mark.parametrize("choice", TINY)
def test_a_tiny_part_keeps_its_contract(choice: str):
    role = choice.partition("=")[0]
    beside = ["frontend=raw"] if choice.endswith("raw") else []
    cls, outcomes = check_choices([choice, *beside])[role]
    require(cls.__name__, outcomes)
    assert len(outcomes) > 10
