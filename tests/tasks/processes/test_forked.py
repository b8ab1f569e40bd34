"""Calls in forked processes begin as in fresh ones, and are forked only where that is as good."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
from collections.abc import Callable
from typing import Any

import pytest
from voxzoo.tasks.processes import forked

pytestmark = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="forked on Linux alone")

# A process of its own that is no pytest: what it calls `main` runs in the process that it forks.
SCRIPT = """
import atexit, json, os, signal, sys, threading
from voxzoo.tasks.processes import forked

def main(words):
    {body}

forked.is_command(main)
{before}
reader, writer = os.pipe()
signal.signal(signal.SIGTERM, lambda *_: print("the parent's handler"))
signal.signal(signal.SIGINT, signal.SIG_IGN)
print("parent", end="")  # not flushed: must not be said twice
process = forked.start({words}, {{"GIVEN": "1", "PATH": os.environ["PATH"]}}, alone={alone}, piped={piped}, gpu={gpu})
os.close(writer)
assert os.read(reader, 1) == b"", "the child holds a pipe of the parent open"
{meanwhile}
said = process.stdout.read().decode() if process.stdout else ""
process.wait()
sys.stdout.write("\\n" + json.dumps([type(process).__name__, said, process.wait(), os.getsid(0)]))
"""


@pytest.fixture
def call() -> Callable[..., list[Any]]:
    """What the forked process says and its exit status, for a body of `main`."""

    def call(
        body: str, meanwhile: str = "", alone: bool = True, before: str = "", words=("train", "a=1"), *,
        piped: bool = True, gpu: bool = True,
    ) -> list[Any]:  # fmt: skip
        lines = "\n    ".join(body.splitlines())
        script = SCRIPT.format(
            body=lines, meanwhile=meanwhile, alone=alone, before=before, words=[*words], piped=piped, gpu=gpu
        )
        environment = {
            name: value for name, value in os.environ.items() if not name.startswith(("OMP_", "MKL_", "OPEN"))
        }
        done = subprocess.run(
            [sys.executable, "-c", script],
            env=environment,
            capture_output=True,
            text=True,
            input="typed",
            timeout=30,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        first, _, last = done.stdout.rpartition("\n")
        assert first.count("parent") == 1
        kind, said, *rest = json.loads(last)
        return [kind, said if piped else first.removeprefix("parent"), *rest, done.stderr]

    return call


def test_a_forked_call_begins_as_a_fresh_one(call: Callable[..., list[Any]]):
    kind, said, code, session, _ = call(
        "begun = {'words': words, 'argv': sys.argv[1:], 'env': sorted(os.environ), 'in': sys.stdin.read(),\n"
        "    'session': os.getsid(0), 'int': signal.getsignal(2) is signal.default_int_handler,\n"
        "    'term': int(signal.getsignal(15)), 'threads': threading.active_count(),\n"
        "    'spec': sys.modules['__main__'].__spec__.name}\n"
        "print(json.dumps(begun))\n"
        "print('aside', file=sys.stderr)\n"
        "os.system('echo from below')\n"
        "return 7"
    )
    begun, *rest = said.splitlines()
    begun = json.loads(begun)
    assert (kind, code) == ("Forked", 7)
    assert begun.pop("session") != session
    assert begun == {
        "words": ["train", "a=1"], "argv": ["train", "a=1"], "env": ["GIVEN", "PATH"], "in": "", "int": True, "term": 0,
        "threads": 1, "spec": "voxzoo.tasks.commands.cli",
    }  # fmt: skip
    assert rest == ["aside", "from below"]


@pytest.mark.parametrize(
    ("body", "code", "said"),
    [
        ("atexit.register(print, 'at exit')\nsys.exit()", 0, "at exit"),
        ("sys.exit(2)", 2, ""),
        ("raise RuntimeError('odd')", 1, "RuntimeError: odd"),
        ("os.kill(os.getpid(), signal.SIGKILL)", -9, ""),
        ("threading.Thread(target=lambda: print('waited for')).start()\nreturn 0", 0, "waited for"),
    ],
)
def test_how_it_ends(call: Callable[..., list[Any]], body: str, code: int, said: str):
    _, found, status, *_ = call(body)
    assert status == code
    assert said in found


def test_where_the_gpu_is_lost_by_the_fork_it_becomes_a_fresh_process(call: Callable[..., list[Any]]):
    lost = (
        "from types import SimpleNamespace as torch\n"
        "no = torch(is_initialized=lambda: False, device_count=lambda: 1)\n"
        "sys.modules['torch'] = torch(cuda=no, distributed=no, _C=torch(_cuda_isInBadFork=lambda: True))"
    )
    kind, said, code, *_ = call("return 3", before=lost, words=["--version"])
    assert (kind, code) == ("Forked", 0)
    assert said.startswith("voxzoo ")
    _, said, code, *_ = call("return 3", before=lost, words=["--version"], gpu=False)
    assert (said, code) == ("", 3), "it needs none"
    _, said, code, *_ = call("return 3", before=lost.replace("lambda: 1", "lambda: 0"), words=["--version"])
    assert (said, code) == ("", 3), "there are none"


def test_signals_reach_it(call: Callable[..., list[Any]]):
    body = "print('begun')\nsignal.pause()"
    _, said, code, *_ = call(body, "process.stdout.read(6), process.send_signal(15)")
    assert (said, code) == ("", -15)


def test_beside_the_caller_it_shares_session_and_errors(call: Callable[..., list[Any]]):
    _, said, code, session, errors = call(
        "print(os.getsid(0))\nprint('aside', file=sys.stderr)\nprint(sys.stdin.read())\nreturn 0", alone=False
    )
    assert code == 0
    assert said.splitlines() == [str(session), "typed"]
    assert errors == "aside\n"


def test_without_a_pipe_it_speaks_where_the_caller_does(call: Callable[..., list[Any]]):
    _, said, code, *_ = call("print('below')\nos.system('echo further below')\nreturn 0", piped=False)
    assert code == 0
    assert said.split("\n") == ["below", "further below", ""]


def test_it_has_its_own_place_among_the_processes_of_a_run(call: Callable[..., list[Any]]):
    known = (
        "from types import SimpleNamespace as module\n"
        "named = module(rank_zero_only=module(rank=5), _get_rank=lambda: os.environ.get('GIVEN') and 1)\n"
        "sys.modules['lightning.fabric.utilities.rank_zero'] = named"
    )
    _, said, *_ = call("print(named.rank_zero_only.rank)\nreturn 0", before=known)
    assert said == "1\n"


def test_where_it_would_differ_a_fresh_process_is_started(monkeypatch: pytest.MonkeyPatch):
    def may(environment: dict[str, str] | None = None) -> bool:
        return forked._can_fork({**os.environ, **(environment or {})})

    monkeypatch.setattr(forked, "_main", lambda words: 0)
    monkeypatch.setattr(forked, "_native_threads", lambda: 3)
    monkeypatch.setattr(forked, "_threads", 3)
    monkeypatch.setattr(threading, "enumerate", lambda: [threading.main_thread()])
    assert may()
    assert not may({"OMP_NUM_THREADS": "17"}), "read when torch is imported"
    monkeypatch.setattr(forked, "_native_threads", lambda: 4)
    assert not may(), "a pool of threads has begun"
    monkeypatch.setattr(forked, "_native_threads", lambda: 3)
    monkeypatch.setattr(threading, "enumerate", lambda: [threading.main_thread(), threading.Thread()])
    assert not may(), "another thread may hold a lock"
    monkeypatch.setattr(threading, "enumerate", lambda: [threading.main_thread()])
    torch: Any = sys.modules.get("torch")
    if torch is not None:
        monkeypatch.setattr(torch.cuda, "is_initialized", lambda: True)
        assert not may(), "a GPU is in use"
        monkeypatch.undo()
    monkeypatch.setattr(forked, "_main", None)
    assert not may(), "the process belongs to another program"


def test_nothing_is_imported_from_the_current_folder(tmp_path):
    """A user's random.py or types.py is not what a module of that name means."""
    for name in ("random", "types", "json", "numpy", "torch"):
        (tmp_path / f"{name}.py").write_text("raise SystemExit(77)")
    done = subprocess.run(forked._command(["--version"]), cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "voxzoo" in done.stdout
