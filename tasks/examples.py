"""Examples for TensorBoard: text beside its reference, audio beside its target, spectrograms, cross-attention.

Letters: B batch, T memory steps, S subwords, N samples, H heads.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import fields, replace
from typing import Any

import torch
from lightning import LightningModule, Trainer
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.loggers import TensorBoardLogger
from matplotlib.figure import Figure
from torch import Tensor

from ..components.layers.attention import MultiHeadAttention
from ..components.types import Batch, Padded
from ..datamodules.audio import SAMPLE_RATE
from .task import Task


class Examples(Callback):
    """After each validation, serve the first utterances of the first validation batch and log what came out.

    Args:
        count: utterances shown.
    """

    def __init__(self, *, count: int = 4) -> None:
        self.count = count
        self._batch: Batch | None = None

    def on_validation_batch_start(
        self, trainer: Trainer, pl_module: LightningModule, batch: Batch, batch_idx: int, dataloader_idx: int = 0
    ) -> None:
        if batch_idx == 0 and trainer.is_global_zero:
            self._batch = batch

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        logger = next((log for log in trainer.loggers if isinstance(log, TensorBoardLogger)), None)
        if self._batch is None or logger is None or trainer.sanity_checking or not isinstance(pl_module, Task):
            return
        batch, self._batch = self._batch, None
        writer, step = logger.experiment, trainer.global_step
        batch = first_rows(batch, self.count)
        # Serving draws no random numbers that training would miss: training seeds every step itself.
        mode = example_mode(pl_module, batch)
        predictions = pl_module.predict(batch, task=mode)
        with cross_attention(pl_module) as seen:
            pl_module.predict(first_rows(batch, 1), task=mode)
        references = batch.references or ("",) * len(batch)
        if any(p.text is not None for p in predictions):
            rows = [f"| {p.id} | {r} | {p.text} |" for p, r in zip(predictions, references, strict=True)]
            writer.add_text("examples", "\n".join(["| id | reference | hypothesis |", "|---|---|---|", *rows]), step)
        targets = batch.target_speech.unpad() if batch.target_speech is not None else [None] * len(batch)
        for prediction, target in zip(predictions, targets, strict=True):
            rates = {"predicted": prediction.sample_rate, "target": SAMPLE_RATE}
            for kind, audio in (("predicted", prediction.audio), ("target", target)):
                if audio is None or audio.numel() == 0:
                    continue
                writer.add_audio(f"{prediction.id}/{kind}", audio.float().cpu()[None], step, rates[kind])
                writer.add_figure(f"{prediction.id}/{kind}_spectrogram", spectrogram(audio, rates[kind]), step)
        if seen:
            writer.add_figure("cross_attention", attention_picture(seen[-1][0], predictions[0].text or ""), step)


def example_mode(task: Task, batch: Batch) -> str:
    """Speech where the task can speak, else what the batch asks for, else what the task can do."""
    asked = batch.task[0] if batch.task else ""
    spoken = {"s2tt": "s2st", "t2tt": "t2st"}.get(asked, asked)
    return next(mode for mode in (spoken, asked, *sorted(task.modes)) if mode in task.modes)


def first_rows(batch: Batch, count: int) -> Batch:
    """The first rows of a batch."""

    def cut(value: Any) -> Any:
        if isinstance(value, Padded):
            lengths = value.lengths[:count]
            return Padded(value.data[:count, : max(int(lengths.max()), 1)], lengths)
        return value[:count] if isinstance(value, Tensor | tuple) else value

    return replace(batch, **{item.name: cut(getattr(batch, item.name)) for item in fields(batch)})


@contextmanager
def cross_attention(task: Task) -> Iterator[list[Tensor]]:
    """Record what the text decoder's last layer attends to in the memory while it decodes one sample.

    Afterwards the list holds one tensor (1, H, S, T): the best beam's weights at each step; nothing where there is no
    such attention.
    """
    found: list[Tensor] = []
    decoder = task.parts().get("text_seq2seq")
    modules = [m for m in decoder.modules() if isinstance(m, MultiHeadAttention) and m.memory_dim] if decoder else []
    if not modules:
        yield found
        return
    module, steps = modules[-1], []
    inner = module.attend

    def attend(query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None = None, causal: bool = False) -> Tensor:
        scores = query.float() @ key.float().transpose(-1, -2) / query.shape[-1] ** 0.5
        if mask is not None:
            scores = scores.masked_fill(~mask, -torch.inf)
        steps.append(scores.softmax(-1)[:1, :, :1].detach().cpu())
        return inner(query, key, value, mask, causal)

    module.attend = attend  # pyright: ignore[reportAttributeAccessIssue]
    try:
        yield found
    finally:
        del module.attend
        if steps:
            found.append(torch.cat(steps, dim=2))


def spectrogram(audio: Tensor, sample_rate: int) -> Figure:
    """Log-magnitude spectrogram of (N,) samples as a figure."""
    samples = audio.float().cpu()
    size = 512
    if samples.numel() < size:
        samples = torch.nn.functional.pad(samples, (0, size - samples.numel()))
    magnitude = torch.stft(samples, size, hop_length=128, window=torch.hann_window(size), return_complex=True).abs()
    figure = Figure(figsize=(7, 2.6), layout="constrained")
    axes = figure.subplots()
    extent = (0, samples.numel() / sample_rate, 0, sample_rate / 2000)
    image = axes.imshow(
        20 * magnitude.clamp(min=1e-5).log10().numpy(), origin="lower", aspect="auto", extent=extent, vmin=-80, vmax=20
    )
    axes.set_xlabel("seconds")
    axes.set_ylabel("kHz")
    figure.colorbar(image, ax=axes, label="dB")
    return figure


def attention_picture(weights: Tensor, text: str) -> Figure:
    """(H, S, T) cross-attention weights, averaged over heads, as a figure: output tokens down, memory steps across."""
    figure = Figure(figsize=(7, 4), layout="constrained")
    axes = figure.subplots()
    image = axes.imshow(weights.mean(0).numpy(), aspect="auto", interpolation="nearest")
    axes.set_xlabel("memory step")
    axes.set_ylabel("output token")
    axes.set_title(text[:90], fontsize=8)
    figure.colorbar(image, ax=axes)
    return figure
