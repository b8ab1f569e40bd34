"""Any content of a units file, and of the card beside it, is read, or refused with the line."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st
from voxzoo.components.errors import UserError
from voxzoo.configs.build import build
from voxzoo.datamodules.units import read_units as read_columns
from voxzoo.tasks.units import card_path, read_units

from .attempts import Attempt

NUMBERS = st.one_of(
    st.integers(-2, 9), st.sampled_from([1.5, "3", True, None, 10**19, 2**31, 10**400, float("nan"), [1], {}])
)
ROWS = st.fixed_dictionaries(
    {},
    optional={
        "id": st.one_of(
            st.sampled_from(["a", "b", "", "a/b", "..", "\ud800", "x" * 300, "a\0", "/etc/x", 1, None, [], True]),
            st.text(max_size=5),
        ),
        "units": st.one_of(st.lists(NUMBERS, max_size=5), NUMBERS, st.text(max_size=3)),
        "more": NUMBERS,
    },
)
LINES = st.one_of(
    ROWS.map(lambda row: json.dumps(row).encode()),
    st.lists(st.integers(0, 3), max_size=4).map(lambda units: json.dumps({"id": "a", "units": units}).encode()),
    st.binary(max_size=12),
    st.sampled_from(
        [b"[" * 30000, b'{"id": "a", "units": [' + b"9" * 5000 + b"]}", b"\xff\xfe[]", b"null", b"NaN", b""]
    ),
)
CONTENT = st.lists(LINES, max_size=4).map(b"\n".join)
CARDS = st.one_of(st.none(), st.none(), st.binary(max_size=6), st.sampled_from([b"{}", b"[]", b"null", b"[" * 30000]))


@pytest.fixture(scope="module")
def vocoder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint that speaks units, and has their extractor."""
    path = tmp_path_factory.mktemp("vocoder") / "vocoder.ckpt"
    vocoder = {"dim": 8, "kernel_size": 3, "num_units": 6, "num_layers": 1, "iterations": 1}
    extractor = {"num_units": 6, "fft_size": 320, "window_length": 320, "num_mel_bins": 20}
    config = {
        "task": {
            "_target_": "voxzoo.tasks.UnitVocoderTask",
            "vocoder": {"_target_": "voxzoo.components.GriffinLimVocoder", **vocoder},
            "unit_extractor": {"_target_": "voxzoo.components.KMeansUnits", **extractor},
        }
    }
    content = {"state_dict": build(config["task"]).state_dict(), "voxzoo": {"config": config, "assets": {}}}
    torch.save(content, path)
    return path


@given(content=CONTENT, card=CARDS)
@example(content=b"\xff\n", card=None)
@example(content=b'{"id": "a", "units": [1.5]}\n', card=None)
@example(content=b'{"id": "a", "units": [' + b"9" * 5000 + b"]}", card=None)
@example(content=b"[" * 30000, card=None)
@example(content=b'{"id": "a", "units": [1]}\n', card=b"[" * 30000)
@example(content=b'{"id": "a", "units": [1]}\n', card=b"[]")
@example(content=b'{"id": "a\\u0000b", "units": [1]}\n', card=None)
def test_units_are_spoken(content: bytes, card: bytes | None, vocoder: Path, tmp_path: Path, attempt: Attempt):
    path = tmp_path / "some.units.jsonl"
    path.write_bytes(content)
    card_path(path).unlink(missing_ok=True)
    if card is not None:
        card_path(path).write_bytes(card)
    attempt("units", "resynthesise", vocoder, path, "--out", tmp_path / "out", names=("some.units",))


@given(content=CONTENT)
@example(content=b'{"id": "a", "units": [1, -1]}\n')
@example(content=b'{"id": "a", "units": ["3"]}\n')
@example(content=b'{"id": "a", "units": [true]}\n')
def test_two_readers_of_units_agree(content: bytes, tmp_path: Path):
    """What the one takes, the other reads the same."""
    path = tmp_path / "some.units.jsonl"
    path.write_bytes(content)
    try:
        listed = dict(read_units(path))
    except UserError:
        return  # the data modules' reader passes over ids that are no text
    assert {name: units.tolist() for name, units in read_columns(path).items()} == listed
