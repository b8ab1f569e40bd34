"""What the property tests share: a call of the command that is held to bounds, and how long to look.

`make test` tries the same few examples each time. `pytest tests/fuzz --fuzz-seconds N` tries new ones for N seconds of
CPU time, shared by the tests of the call; what it finds is printed as an `@example` to keep.
"""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
from hypothesis import HealthCheck, Phase, settings
from voxzoo.tasks.commands.cli import main

from . import attempts
from .attempts import STEPS, TEXT, Attempt, Done, bounds

_COMMON: dict[str, Any] = {
    "deadline": None,  # judged by CPU time below
    "suppress_health_check": list(HealthCheck),
    "print_blob": False,
}
settings.register_profile("short", derandomize=True, database=None, max_examples=20, **_COMMON)
settings.register_profile("long", max_examples=300, report_multiple_bugs=True, **_COMMON)
settings.register_profile("seeds", phases=[Phase.explicit], **_COMMON)


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--fuzz-seconds", type=float, help="try new examples for so many seconds of CPU time in all")


def _asked(config: pytest.Config) -> float | None:
    return config.getoption("fuzz_seconds", None)


def pytest_configure(config: pytest.Config) -> None:
    settings.load_profile("long" if _asked(config) else "short")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Each call has bounds of its own, on the same timer; how long a property is tried is asked for."""
    for item in items:
        if Path(__file__).parent in item.path.parents:
            item.add_marker(pytest.mark.timeout(0))


@pytest.hookimpl(tryfirst=True)
def pytest_pyfunc_call(pyfuncitem: pytest.Function) -> bool | None:
    """Under `--fuzz-seconds` a property is tried again, with other examples, until its share of the time is used."""
    seconds = _asked(pyfuncitem.config)
    if not seconds or not hasattr(pyfuncitem.obj, "hypothesis"):
        return None
    properties = [item for item in pyfuncitem.session.items if hasattr(getattr(item, "obj", None), "hypothesis")]
    given = {name: pyfuncitem.funcargs[name] for name in pyfuncitem._fixtureinfo.argnames}
    end = time.process_time() + seconds / len(properties)
    while time.process_time() < end:
        pyfuncitem.obj(**given)
    return True


@pytest.fixture
def attempt(capfd: pytest.CaptureFixture[str]) -> Attempt:
    """attempt("translate", run, ..., names=("x.wav",)): call the command within bounds and judge how it ends. Where it
    fails, one of `names` must be said."""

    def call(*words: object, names: tuple[str, ...] = ()) -> Done:
        capfd.readouterr()
        with bounds():
            try:
                code = main([str(word) for word in words])
            except SystemExit as stop:  # argparse
                code = int(stop.code or 0)
        done = Done(code, *capfd.readouterr())
        fault = attempts.judge(str(words[0]), done, names)
        assert fault is None, f"{fault}\n{' '.join(map(repr, words))}\n{done.code}\n{done.out}\n{done.err}"
        return done

    return call


@pytest.fixture(scope="session")
def clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A wav of half a second."""
    path = tmp_path_factory.mktemp("clip") / "clip.wav"
    noise = np.random.default_rng(0).standard_normal(8000).astype(np.float32)
    soundfile.write(path, 0.1 * noise, 16000)
    return path


@pytest.fixture(scope="session")
def fuzz_runs(tiny: list[str], tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Runs of one step: `text` translates text, `speech` speech."""
    root = tmp_path_factory.mktemp("runs")
    for name, words in {"text": TEXT, "speech": []}.items():
        assert main(["train", *tiny, *STEPS, *words, f"root={root}", f"name={name}"]) == 0
    return {name: root / name for name in ("text", "speech")}
