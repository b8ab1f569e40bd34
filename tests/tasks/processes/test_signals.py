"""Signals without training: whose they are, who speaks, and what the launcher hears."""

from __future__ import annotations

import importlib
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from voxzoo.components.errors import UserError
from voxzoo.tasks.commands import cli
from voxzoo.tasks.processes.signals import REQUEUED, Interrupted, heard, stopped_at_once, stops_at_once


@stopped_at_once()
def get_told(number: int) -> None:
    os.kill(os.getpid(), number)
    time.sleep(5)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1])
def test_signals_stop_a_run_without_steps_and_are_given_back(number: signal.Signals):
    got: list[int] = []
    before = signal.signal(number, lambda number, frame: got.append(number))
    try:
        with pytest.raises(Interrupted, match=f"{number.name} with no step under way; the same command continues"):
            get_told(number)
        assert not stops_at_once(number)
        os.kill(os.getpid(), number)
        assert got == [number]
    finally:
        signal.signal(number, before)
    assert signal.set_wakeup_fd(-1) == -1


@pytest.mark.parametrize("own", [True, False], ids=["a step was saved", "no step under way"])
def test_what_was_stopped_ends_in_its_own_words(own: bool):
    """However often it is told again, and though another error is handled on the way out."""

    @stopped_at_once()
    def stop() -> None:
        try:
            if own:
                heard()
                raise Interrupted(signal.SIGUSR1, 3)
            get_told(signal.SIGUSR1)
        finally:
            try:
                raise KeyError
            except KeyError:
                os.kill(os.getpid(), signal.SIGTERM)
            os.kill(os.getpid(), signal.SIGUSR1)

    with pytest.raises(Interrupted, match="SIGUSR1 at step 3" if own else "SIGUSR1 with no step under way"):
        stop()
    with pytest.raises(Interrupted, match="SIGTERM with no step under way"):  # another run in this process
        get_told(signal.SIGTERM)


def test_a_process_that_ends_with_the_run_exits_as_the_run_says():
    before = {number: signal.getsignal(number) for number in REQUEUED}
    try:
        with pytest.raises(Interrupted), stopped_at_once(process_ends=True):
            get_told(signal.SIGTERM)
        assert [signal.getsignal(number) for number in REQUEUED] == [signal.SIG_IGN] * 2
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    with stopped_at_once(process_ends=True):
        pass
    assert {number: signal.getsignal(number) for number in REQUEUED} == before


def test_a_thread_and_a_forked_process_are_left_alone():
    def in_thread() -> None:
        with stopped_at_once():
            found.append(signal.getsignal(signal.SIGTERM))

    found: list[Any] = []
    thread = threading.Thread(target=in_thread)
    thread.start()
    thread.join()
    assert found == [signal.getsignal(signal.SIGTERM)]
    reader, writer = os.pipe()
    with stopped_at_once():
        forked = os.fork()
        if not forked:
            os.write(writer, b".")
            time.sleep(30)
            os._exit(0)
        os.read(reader, 1)
        os.kill(forked, signal.SIGTERM)
        _, status = os.waitpid(forked, 0)
    assert os.waitstatus_to_exitcode(status) == -signal.SIGTERM


def test_a_process_that_waits_outside_python_is_stopped_too(tmp_path: Path):
    """As torch does where processes meet: without the interpreter, and not ended by a signal."""
    code = """if True:
        import ctypes
        from voxzoo.tasks.processes import signals
        signals.GRACE = 0.2
        with signals.stopped_at_once():
            libc, mutex = ctypes.CDLL(None), ctypes.create_string_buffer(64)
            libc.pthread_mutex_lock(mutex)
            while True:
                try:
                    print("ready", flush=True)
                    libc.pthread_mutex_lock(mutex)
                except signals.Interrupted:  # told before it waited
                    pass
    """
    heard = tmp_path / "heard"
    process = subprocess.Popen(
        [sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        env={**os.environ, "VOXZOO_LAUNCHER_FILE": str(heard)},
    )  # fmt: skip
    try:
        assert process.stdout is not None
        process.stdout.readline()
        process.terminate()
        _, said = process.communicate(timeout=20)
    finally:
        process.kill()
    assert process.returncode == 75
    assert said == "voxzoo train: stopped by SIGTERM with no step under way; the same command continues\n"
    assert heard.read_text() == "stopped\n"


def run_cli(error: BaseException, monkeypatch: pytest.MonkeyPatch) -> int:
    def run(arguments: Any) -> Any:
        raise error

    monkeypatch.setattr(cli, "_module", lambda verb: SimpleNamespace(
        HELP="h", EXAMPLE="e", configure=lambda parser: None, run=run
    ))  # fmt: skip
    monkeypatch.setattr(cli, "_is_own", lambda file, module: False)  # the error is not this test's, but voxzoo's
    return cli.main(["train"])


def test_the_first_process_says_that_all_were_stopped(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    heard = tmp_path / "heard"
    monkeypatch.setenv("VOXZOO_LAUNCHER_FILE", str(heard))
    for rank, line in (("0", "voxzoo train: stopped by SIGUSR1 at step 13; the same command continues\n"), ("1", "")):
        monkeypatch.setenv("RANK", rank)
        assert run_cli(Interrupted(signal.SIGUSR1, 13), monkeypatch) == 75
        assert capsys.readouterr().err == line
    assert heard.read_text() == "stopped\n" * 2
    monkeypatch.setenv("RANK", "1")
    assert run_cli(UserError("disk full"), monkeypatch) == 1
    assert "disk full" in capsys.readouterr().err
    assert heard.read_text() == "stopped\n" * 2  # a failure is not queued again


@pytest.mark.parametrize(
    ("text", "lost"),
    [
        ("[/pytorch/gloo/transport/tcp/pair.cc:547] Connection closed by peer [127.0.0.1]:1234", True),
        ("NCCL communicator was aborted on rank 1.", True),
        ("ncclRemoteError: A call failed possibly due to a network error or a remote process exiting", True),
        ("The server socket has failed to listen on any local network address: EADDRINUSE", False),
        ("ncclUnhandledCudaError: Cuda failure 'invalid argument'", False),
    ],
)
def test_a_lost_process_is_told_from_an_error(
    text: str, lost: bool, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    assert run_cli(RuntimeError(text), monkeypatch) == 1
    said = capsys.readouterr().err
    assert ("another process of this run has ended" in said) == lost
    assert ("this should not happen" in said) != lost
    assert said.count("\n") == 1


def test_a_gpu_without_memory_is_no_lost_process(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]):
    assert run_cli(RuntimeError("ncclUnhandledCudaError: Cuda failure 'out of memory'"), monkeypatch) == 1
    said = capsys.readouterr().err
    assert said.startswith("voxzoo train: out of memory (ncclUnhandledCudaError: Cuda failure 'out of memory'); ")
    assert "another process" not in said
    assert said.count("\n") == 1


@pytest.mark.parametrize(
    ("code", "said"),
    [
        ("def run(arguments):\n    return {}['query']\n", "noisy.py:2: KeyError: 'query'\n"),
        ("import json\ndef run(arguments):\n    json.loads('{')\n", "noisy.py:3: JSONDecodeError: "),
        ("def run(arguments):\n    x = (\n", "noisy.py:2: SyntaxError: "),
    ],
)
def test_an_error_in_the_users_own_code_names_its_line(
    code: str, said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    (tmp_path / "noisy.py").write_text(code)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delitem(sys.modules, "noisy", raising=False)

    def run(arguments: Any) -> Any:
        return importlib.import_module("noisy").run(arguments)

    part = SimpleNamespace(HELP="h", EXAMPLE="e", configure=lambda parser: None, run=run)
    monkeypatch.setattr(cli, "_module", lambda verb: part)
    assert cli.main(["train"]) == 1
    found = capsys.readouterr().err
    assert found.startswith(f"voxzoo train: {said}")
    assert "should not happen" not in found
    assert found.count("\n") == 1
