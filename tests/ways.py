"""The ways to run the same training: one process or two, under each strategy; and how their weights are compared."""

from __future__ import annotations

from pathlib import Path

import torch

CPU = ["trainer.accelerator=cpu", "trainer.precision=32-true", "trainer.max_epochs=-1"]

SETTINGS = [
    "trainer.val_check_interval=4", "data.batch_size=5", "checkpoint.every_steps=1", "schedule=constant",
    "text_seq2seq.dropout=0", "adaptor.dropout=0", "text_seq2seq.attention_dropout=0",
    # Full steps from the first one on; eps keeps gradients that are only rounding from becoming full steps too.
    "optim.lr=0.01", "optim.eps=1e-3", "trainer.log_every_n_steps=1",
    "logger=none", "++logger._target_=lightning.pytorch.loggers.CSVLogger", "++logger.save_dir=${run_dir}",
    "++logger.flush_logs_every_n_steps=1",
]  # fmt: skip

HOW = {
    "one": ["trainer.accumulate_grad_batches=2"],
    "ddp": ["trainer=ddp", "trainer.devices=2", *CPU],
    "fsdp2": ["trainer=fsdp2", "trainer.devices=2", *CPU],
    "fsdp": ["trainer=fsdp", "trainer.devices=2", *CPU],
}


def weights(run: Path) -> dict[str, torch.Tensor]:
    return torch.load(run / "checkpoints" / "last.ckpt", weights_only=True)["state_dict"]


def assert_close(first: dict[str, torch.Tensor], second: dict[str, torch.Tensor]) -> None:
    """Within 1e-5 of the size of each tensor."""
    assert first.keys() == second.keys()
    for key, value in first.items():
        difference = float((value.double() - second[key].double()).norm())
        assert difference <= 1e-5 * max(float(value.double().norm()), 1.0), f"{key}: {difference}"
