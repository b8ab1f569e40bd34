"""What a run says to the person who waits, and the libraries that are told not to."""

from __future__ import annotations

import logging
import sys
import warnings

from lightning.fabric.utilities.rank_zero import rank_zero_only

from ...components.errors import printable


@rank_zero_only
def say(line: str) -> None:
    """A line for the person who waits."""
    print(printable(line), file=sys.stderr, flush=True)


def quiet_libraries() -> None:
    """Lightning's advice on things decided here is noise to the user."""
    for name in ("lightning.pytorch", "lightning.fabric", "lightning.pytorch.utilities.rank_zero"):
        logging.getLogger(name).setLevel(logging.ERROR)
    for message in (
        ".*dataloader is not resumable.*",
        ".*does not have many workers.*",
        ".*Checkpoint directory.*exists.*",
        ".*LeafSpec.*",
        ".*isinstance.treespec.*",
        ".*Trying to infer the `batch_size`.*",
        ".*in eval mode at the start of training.*",
        ".*smaller than the logging interval.*",  # steps are counted over epochs
        ".*sync_dist=True.*",  # the sums are gathered before they are divided
        ".*Grad strides do not match bucket view strides.*",
    ):
        warnings.filterwarnings("ignore", message=message)
