"""A small file does not take all memory or time: what it would take is judged before it is taken."""

from __future__ import annotations

import os
import time
from pathlib import Path

import pytest
from voxzoo.components.converters.published import build_part
from voxzoo.components.errors import UserError
from voxzoo.configs import build, compose
from voxzoo.configs.yaml_files import load_yaml

BOMB = "a0: &a0 [x, x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 10)}]\n" for n in range(1, 10)
)


def test_aliases_that_multiply_are_refused_before_they_do(tmp_path: Path):
    (tmp_path / "speech_encoder").mkdir()
    (tmp_path / "speech_encoder" / "bomb.yaml").write_text(BOMB)
    started = time.monotonic()
    with pytest.raises(UserError, match=r"bomb\.yaml: its aliases stand for more than 100,000 values"):
        load_yaml(tmp_path / "speech_encoder" / "bomb.yaml")
    with pytest.raises(UserError, match=r"bomb\.yaml: its aliases stand for more than 100,000 values"):
        compose(["speech_encoder=bomb"], config_dirs=[str(tmp_path)])
    assert time.monotonic() - started < 20


def test_aliases_that_repeat_a_little_are_read(tmp_path: Path):
    (tmp_path / "a.yaml").write_text("a: &a {x: 1}\nb: *a\nc: [*a, *a]\n")
    assert load_yaml(tmp_path / "a.yaml").c[1].x == 1


@pytest.mark.parametrize("kind", ["pipe", "device", "large"])
def test_what_is_no_config_is_not_read(kind: str, tmp_path: Path):
    path = tmp_path / "a.yaml"
    if kind == "pipe":
        os.mkfifo(path)
    elif kind == "device":
        path.symlink_to("/dev/zero")
    else:
        with path.open("wb") as file:
            file.truncate(1 << 33)
    with pytest.raises(UserError, match=r"a\.yaml: (no regular file|8,589,934,592 bytes)"):
        load_yaml(path)


@pytest.mark.parametrize("path", ["ConformerEncoder", "TransformerSeq2Seq"])
def test_ten_million_layers_are_not_built(path: str):
    named = {"num_layers": 10_000_000, "encoder_layers": 10_000_000}
    node = {"_target_": f"voxzoo.components.{path}", "input_dim": 4, **named}
    with pytest.raises(UserError, match="10000000: more than 10,000 layers are not built"):
        build(node)
    with pytest.raises(UserError, match=r"config\.json: its speech_encoder cannot be built: num_layers=10000000"):
        build_part("speech_encoder", node, "config.json")
