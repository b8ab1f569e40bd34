"""What users write into YAML and on the command line that no config can be made of: one line, with file and line."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from conftest import PARTS
from omegaconf import OmegaConf
from voxzoo.components.errors import UserError
from voxzoo.configs import compose
from voxzoo.configs.cycles import require_no_cycles

TINY = [*PARTS, "data=tiny"]


def refused(*words: str, folder: Path | None = None) -> str:
    with pytest.raises(UserError) as error:
        compose([*TINY, *words], config_dirs=[] if folder is None else [str(folder)])
    assert "\n" not in str(error.value)
    return str(error.value)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (b"seed: [1\n", "line 3: no YAML: while parsing a flow sequence"),
        (b"\tseed: 1\n", "line 2: no YAML: .*indent with blanks"),
        (b"seed: 1\nseed: 2\n", "line 3: no YAML: .*duplicate key seed"),
        (b"seed: *c\n", "line 2: no YAML: found undefined alias 'c'"),
        (b"seed: !!python/object:os.system ls\n", "line 2: no YAML: could not determine a constructor"),
        (b"? [a, b]\n: 1\n", "line 2: no YAML: .*unhashable key"),
        (b"x: " + b"[" * 100_000, "nested too deep"),
        (b"\xff\xfe", "not UTF-8 text"),
        (b"defaults: 3\n", "defaults must be a list"),
    ],
)
def test_a_file_that_is_no_config_is_named_with_its_line(text: bytes, said: str, tmp_path: Path):
    path = tmp_path / "experiment" / "own.yaml"
    path.parent.mkdir()
    path.write_bytes(b"# @package _global_\n" + text)
    message = refused("experiment=own", folder=tmp_path)
    assert message.startswith((str(path), "config: "))
    assert re.search(said, message), message


@pytest.mark.parametrize(
    ("words", "circle"),
    [
        (
            ["speech_encoder.dim=${adaptor.input_dim}", "adaptor.input_dim=${speech_encoder.dim}"],
            "speech_encoder.dim -> adaptor.input_dim -> speech_encoder.dim",
        ),
        (["name=${name}"], "name -> name"),
        (["root=${name}", "name=${root}"], "root -> name -> root"),
        (["name=a${seed}", "seed=${data.seed}"], "seed -> data.seed -> seed"),
    ],
)
def test_interpolations_in_a_circle_are_named(words: list[str], circle: str):
    message = refused(*words)
    keys = set(circle.split(" -> "))
    assert message.startswith("interpolations lead in a circle, ")
    assert set(message.partition("circle, ")[2].partition(":")[0].split(" -> ")) == keys


@pytest.mark.parametrize(
    ("content", "circular"),
    [
        ({"a": {"b": "${.c}", "c": "${..d}"}, "d": "${a.b}"}, True),
        ({"a": {"b": "${.c}", "c": "${..d}"}, "d": 3}, False),
        ({"a": "${b}", "b": {"c": "${d}"}, "d": "${a.c}"}, True),
        ({"a": "${b}", "b": {"c": 1, "e": "${a.c}"}}, False),
        ({"a": ["${b}", 1], "b": "${a[0]}"}, True),
        ({"a": "${oc.env:HOME}${b}", "b": "x"}, False),
        ({"a": "${gone}"}, False),
    ],
)
def test_circles_are_found_by_what_is_resolved(content: dict, circular: bool):
    config = OmegaConf.create(content)
    if not circular:
        require_no_cycles(config)
        return
    with pytest.raises(UserError, match="in a circle"):
        require_no_cycles(config)


@pytest.mark.parametrize("key", ["task", "trainer", "name", "optim", "tokenizer", "seed"])
def test_what_every_run_has_cannot_be_left_out(key: str):
    assert refused(f"~{key}").startswith(f"~{key}: every run has {key}")


def test_a_key_of_its_own_can_be_left_out(tmp_path: Path):
    assert refused("~vocoder").endswith("vocoder=none chooses none")
    assert "dim" not in compose([*TINY, "~speech_encoder.dim"]).speech_encoder


def test_several_choices_of_one_part_are_not_mixed():
    assert refused("tokenizer=[tiny,whisper]").startswith("tokenizer=[tiny,whisper]: tokenizer takes one choice")
    assert compose([*TINY, "freeze=[encoder,decoder]"]).freeze
