"""The folder of a run: held by one process, written in turns, done or not."""

from __future__ import annotations

import os
import re
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from ...components.errors import UserError
from ...components.lines import read_json
from ...components.locks import open_lock
from ..checkpoints.files import pick_checkpoint
from ..processes.console import say


def is_done(folder: Path) -> bool:
    """Whether the run in a folder has ended."""
    return (folder / "done.json").exists()


@contextmanager
def turns(folder: Path) -> Iterator[None]:
    """Let the processes of one run through one at a time: what the first one writes, the others find."""
    import fcntl

    folder.mkdir(parents=True, exist_ok=True)
    with open_lock(folder / ".turn") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def pid_lock(folder: Path) -> Any:
    """Hold a run folder for one process; a second `train` on it is refused instead of corrupting it."""
    import fcntl

    folder.mkdir(parents=True, exist_ok=True)
    file = open_lock(folder / ".lock")  # held open for the life of the run
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        file.close()
        raise UserError(f"{folder} is being trained by another process") from None
    except OSError as error:
        file.close()
        raise UserError(
            f"{folder}: its file system has no locks ({error.strerror}), which keep two trainings apart; take another "
            "root=, or mount it with locks (Lustre: -o flock)"
        ) from None
    file.truncate()
    file.write(str(os.getpid()))
    file.flush()
    return file


def is_held(folder: Path) -> bool:
    """Whether a process trains in a run folder now."""
    import fcntl

    path = folder / ".lock"
    if not path.is_file():
        return False
    with open_lock(path) as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
        except OSError:  # no locks here: training says so
            return False
    return False


def require_no_way_out(folder: Path, below: str = "") -> None:
    """Refuse symbolic links in a run folder that lead out of it, before something is written there: the folder may be
    somebody else's, and what a link leads to would be written or emptied. The run folder itself may be a link, and a
    point of an ablation has links to the stages that it shares (`leads_to_shared_stage`), in which there may be none.

    Args:
        folder: of the run.
        below: look at this file or folder of it alone.

    Raises:
        UserError: such a link, where it is and where it leads.
    """
    own = os.path.realpath(folder)
    found = [folder / below] if below else []
    for place, folders, files in os.walk(folder / below):
        found += [Path(place, name) for name in (*folders, *files)]
    for path in found:
        if not path.is_symlink():
            continue
        if leads_to_shared_stage(path, folder):
            require_no_way_out(path)
        elif not Path(os.path.realpath(path)).is_relative_to(own):
            raise UserError(
                f"{path}: a symbolic link that leads out of the run, to {os.path.realpath(path)}; remove it (a run "
                "folder as a whole may be a link)"
            )


_KEY = "[0-9a-f]{12}"


def leads_to_shared_stage(link: Path, run: Path) -> bool:
    """Whether a link in a run folder is one that `voxzoo ablate` writes: ABLATION/points/KEY/stages/NAME, to
    ABLATION/stages/NAME-KEY, which is a folder there and no link itself."""
    real = Path(os.path.realpath(run))
    if real.parent.name != "points" or link.parent != run / "stages":
        return False
    target = Path(os.readlink(link))
    there = real.parents[1] / "stages"
    return (
        target.parts[:-1] == ("..", "..", "..", "stages")
        and re.fullmatch(f"{re.escape(link.name)}-{_KEY}", target.name) is not None
        and not (run / "stages").is_symlink()
        and os.path.realpath(link) == str(there / target.name)
    )


def is_of_ablation(folder: Path) -> bool:
    """Whether the folder of a training is named by `voxzoo ablate` after what decides its result."""
    real = Path(os.path.realpath(folder))
    pattern = {"points": _KEY, "stages": f".+-{_KEY}"}.get(real.parent.name)
    return pattern is not None and re.fullmatch(pattern, real.name) is not None


def is_trained(folder: Path) -> bool:
    """Whether a run has ended and its checkpoint is there; says so.

    Raises:
        UserError: it has ended, and its checkpoint is gone.
    """
    if not is_done(folder):
        return False
    pick_checkpoint(folder / "checkpoints", advice=f"delete {folder / 'done.json'} and train it again")
    say(f"{folder}: already trained; to train anew delete it, or choose another name=")
    return True


def result_of(folder: Path) -> dict[str, Any]:
    """What the run in a folder answered when it ended. Raises UserError where that was damaged since."""
    return read_json(folder / "done.json", advice="; delete it and run the same command again")


def wait_for_result(folder: Path) -> dict[str, Any]:
    """What the first process of this run writes when it is done."""
    while not is_done(folder):
        time.sleep(0.2)
    return result_of(folder)
