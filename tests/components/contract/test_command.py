"""`voxzoo parts check` and `voxzoo check --parts`: also for parts of a package in the folder where they are called."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from voxzoo.tasks.commands.cli import main

MINE = """
from torch import nn
from voxzoo.components.roles import Adaptor
from voxzoo.components.types import Adapted


class Mine(Adaptor):
    def __init__(self, input_dim: int, output_dim: int, dim: int = 12, short: bool = False) -> None:
        super().__init__()
        self.input_dim, self.output_dim, self.short = input_dim, output_dim, short
        self.layers = nn.Sequential(nn.Linear(input_dim, dim), nn.ReLU(), nn.Linear(dim, output_dim))

    def forward(self, states, text=None):
        return Adapted(states.with_data(self.layers(states.data)))

    def output_lengths(self, lengths):
        return lengths - int(self.short)
"""
YAML = """
_target_: {package}.adaptors.Mine
input_dim: ${{speech_encoder.dim}}
output_dim: ${{text_seq2seq.dim}}
dim: 12
short: false
"""


@pytest.fixture
def words(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> list[str]:
    """Of a call from a folder that holds a package, a folder of YAML beside it."""
    package = f"zoo_of_{abs(hash(request.node.name))}"
    for path, text in {
        f"{package}/__init__.py": "",
        f"{package}/adaptors.py": MINE,
        "my_configs/adaptor/mine.yaml": YAML.format(package=package),
    }.items():
        (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / path).write_text(text)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [place for place in sys.path if place not in ("", str(tmp_path))])
    return ["--config-dir", "my_configs", "adaptor=mine", f"allow=[{package}]"]


@pytest.fixture
def call(capfd: pytest.CaptureFixture[str]) -> Callable[..., tuple[int, str, str]]:
    def run(*given: str) -> tuple[int, str, str]:
        capfd.readouterr()
        code = main(list(given))
        said = capfd.readouterr()
        return code, said.out, said.err

    return run


def test_a_part_of_ones_own(words: list[str], call):
    code, out, err = call("parts", "check", *words, "adaptor.dim=7")
    assert (code, err) == (0, "")
    assert out.splitlines()[0].startswith("adaptor Mine: 1")
    assert out.splitlines()[0].endswith(" checks, none broken")


def test_what_it_breaks_is_said_and_the_exit_status_is_1(words: list[str], call):
    code, out, _ = call("parts", "check", *words, "adaptor.short=true")
    assert code == 1
    assert "1 broken" in out
    assert "\n  lengths: output_lengths says 0 steps for 1, forward says 1 (in a batch)" in out
    code, out, _ = call("parts", "check", *words, "adaptor.short=true", "--json")
    answer = json.loads(out)
    assert (code, answer["status"]) == (1, "broken")
    assert [one["name"] for one in answer["parts"]["adaptor"]["checks"] if one["fault"]] == ["lengths"]


def test_widths_that_are_mixed_up(words: list[str], call):
    """In the class, and in its YAML: the widths beside it differ."""
    code, out, _ = call(
        "parts", "check", *words, "adaptor.input_dim=${text_seq2seq.dim}", "adaptor.output_dim=${speech_encoder.dim}"
    )
    assert code == 1
    assert "\n  widths: adaptor.input_dim is 32 and adaptor.output_dim is 48, the other way round" in out
    (module,) = Path().glob("zoo_of_*/adaptors.py")
    module.write_text(MINE.replace("nn.Linear(input_dim, dim)", "nn.Linear(output_dim, dim)"))
    sys.modules.pop(f"{module.parent}.adaptors", None)
    code, out, _ = call("parts", "check", *words)
    assert code == 1
    assert "\n  runs: RuntimeError" in out


def test_the_parts_of_a_config(words: list[str], tiny: list[str], call):
    mine = [word for word in tiny if not word.startswith("adaptor=")]
    code, out, err = call("check", *mine, *words, "adaptor.short=true", "--parts")
    assert (code, err) == (1, "")
    assert "speech_encoder ConformerEncoder: " in out
    assert "adaptor Mine: " in out
    assert "lengths: output_lengths says" in out
    code, out, _ = call("check", *mine, *words, "speech_encoder=xls_r_300m", "frontend=raw", "--parts", "--json")
    contract = json.loads(out)["contract"]
    assert code == 0
    assert contract["speech_encoder"]["checks"][0]["note"].startswith("315,")
    assert list(contract) == ["frontend", "tokenizer", "speech_encoder", "adaptor", "text_seq2seq"]


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ([], "name what to check as ROLE=CHOICE, such as adaptor=conv; roles: frontend"),
        (["adaptor=stak"], "adaptor=stak: there is no such choice; did you mean 'stack'?"),
        (
            ["adaptor=stack", "adaptor.stak=3"],
            "adaptor.stak: StackAdaptor has no such parameter; did you mean 'stack'?",
        ),
        (["adaptor=stack", "adaptor.stack=0"], "stack"),
    ],
)
def test_what_cannot_be_checked_is_said(given: list[str], message: str, call):
    code, _, err = call("parts", "check", *given)
    assert code == 1
    assert message in err
    assert "this should not happen" not in err


def test_a_word_that_is_no_role(call):
    code, _, err = call("parts", "adaptr")
    assert code == 1
    assert "adaptr: expected a role or another group, check or new; did you mean 'adaptor'?" in err
