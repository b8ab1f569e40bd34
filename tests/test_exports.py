"""Random exports in the eyes of transformers (`export_sweep.py`): a few of each family, and 40 as a slow test."""

from __future__ import annotations

from pathlib import Path

import export_sweep
import pytest
from export_sweep import FAMILIES, sweep

pytest.importorskip("transformers")


@pytest.mark.slow
@pytest.mark.parametrize("family", FAMILIES)
def test_forty_random_models_are_the_same_there(family: str, tmp_path: Path):
    faults, counts = sweep(family, range(40), tmp_path)
    assert faults == []
    assert counts["ids"] == 0 or counts["different ids"] > 9


@pytest.mark.parametrize("family", ["seamless_m4t", "seamless_m4t_v2", "m2m_100", "hubert"])
def test_random_models_are_the_same_there(family: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """The same in this process, which has imported transformers."""
    monkeypatch.setattr(export_sweep, "elsewhere", export_sweep.answer)
    faults, counts = sweep(family, range(100, 103), tmp_path)
    assert faults == []
    assert counts["models"] == 3
