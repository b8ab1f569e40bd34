"""Any damage of a published folder is refused with the file, or changes nothing that an import needs."""

from __future__ import annotations

import json
import shutil
import struct
from pathlib import Path

import published
import pytest
from hypothesis import given
from hypothesis import strategies as st

from .attempts import Attempt, share
from .damage import CHANGES, CUTS, EDITS, changed, edited

KINDS = {
    "w2v_bert": published.publish_w2v_bert,
    "nllb": published.publish_nllb,
    "whisper": published.publish_whisper,
}


@pytest.fixture(scope="module")
def good(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("published")
    return {name: publish(root / name) for name, publish in KINDS.items()}


def copy_of(folder: Path, place: Path) -> Path:
    """A folder of its own, and none where it will be imported to."""
    for old in (place / "bad", place / "run"):
        shutil.rmtree(old, ignore_errors=True)
    return Path(shutil.copytree(folder, place / "bad"))


def names_of(folder: Path, ends: tuple[str, ...]) -> list[str]:
    return sorted(path.name for path in folder.iterdir() if path.name.endswith(ends))


@share(0.5)
@given(kind=st.sampled_from(sorted(KINDS)), which=st.integers(0, 9), changes=CHANGES)
def test_values_of_json_files(kind, which, changes, good, tmp_path: Path, attempt: Attempt):
    folder = copy_of(good[kind], tmp_path)
    names = names_of(folder, (".json",))
    path = folder / names[which % len(names)]
    path.write_text(json.dumps(changed(json.loads(path.read_text()), changes)))
    attempt("import", folder, tmp_path / "run", names=(str(folder), path.name))


@share(0.5)
@given(kind=st.sampled_from(sorted(KINDS)), which=st.integers(0, 9), edits=EDITS, cut=CUTS)
def test_bytes_of_any_file(kind, which, edits, cut, good, tmp_path: Path, attempt: Attempt):
    folder = copy_of(good[kind], tmp_path)
    names = names_of(folder, "")
    path = folder / names[which % len(names)]
    path.write_bytes(edited(path.read_bytes(), edits, cut))
    attempt("import", folder, tmp_path / "run", names=(str(folder), path.name))


@share(0.5)
@given(kind=st.sampled_from(sorted(KINDS)), changes=CHANGES)
def test_headers_of_safetensors(kind, changes, good, tmp_path: Path, attempt: Attempt):
    folder = copy_of(good[kind], tmp_path)
    path = folder / "model.safetensors"
    content = path.read_bytes()
    (size,) = struct.unpack("<Q", content[:8])
    header = json.dumps(changed(json.loads(content[8 : 8 + size]), changes)).encode()
    path.write_bytes(struct.pack("<Q", len(header)) + header + content[8 + size :])
    attempt("import", folder, tmp_path / "run", names=(str(folder), path.name))
