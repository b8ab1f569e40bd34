"""Checkpoints in shards made into single files."""

from __future__ import annotations

from pathlib import Path

import torch

from ...components.errors import UserError
from ...components.whole import link_whole
from ..checkpoints.files import read_checkpoint, write_atomically
from ..checkpoints.shards import is_sharded, remove_unused
from .folder import pid_lock, require_no_way_out
from .run import find_checkpoint


def consolidate(path: Path, out: Path | None = None) -> list[Path]:
    """Write checkpoints as other strategies write them: one file each. Returns the files written.

    Args:
        path: a run folder or a checkpoint. Without `out` every sharded checkpoint of the run (of all its stages) is
            replaced by one file, and its shards are deleted; of a checkpoint, that one.
        out: write the checkpoint that `path` means here, and leave the run as it is.

    Raises:
        UserError: not a run, a run that is being trained, damaged shards, or a file that exists already.
    """
    folder, checkpoint = find_checkpoint(path)
    if out is not None:
        if out.exists():
            raise UserError(f"--out {out}: exists already; nothing is overwritten")
        content = read_checkpoint(checkpoint, verify=True)  # the new file has sums of its own
        write_atomically(out, lambda file: torch.save(content, file))
        return [out]
    if path.is_dir():
        require_no_way_out(path)
    found = [checkpoint] if path.is_file() else sorted(path.rglob("checkpoints/*.ckpt"))
    written: dict[int, Path] = {}  # by inode: the best checkpoint often is the last one
    done = []
    for one in [one for one in found if is_sharded(one)]:
        with pid_lock(one.parent.parent if one.parent.name == "checkpoints" else folder):
            inode = one.stat().st_ino
            if inode in written:
                link_whole(written[inode], one)
            else:
                content = read_checkpoint(one, verify=True)
                write_atomically(one, lambda file, content=content: torch.save(content, file))
            written[inode] = one
            done.append(one)
            remove_unused(one.parent)
    return done
