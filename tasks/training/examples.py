"""Examples for TensorBoard: text beside its reference, audio beside its target, spectrograms, codes, cross-attention.

The first of them is also said in a line, and what it sounds like is a file of the run, for who listens while it trains.

Letters: B batch, T memory steps, S subwords, N samples, H heads.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import torch
from lightning import LightningModule, Trainer
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.loggers import TensorBoardLogger
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from torch import Tensor

from ...components.errors import printable
from ...components.layers.attention import MultiHeadAttention
from ...components.types import Batch, Padded, Prediction
from ...datamodules.audio import SAMPLE_RATE
from ..distributed.strategies import gathered
from ..scoring.speech import write_wav
from ..task import Task


class Examples(Callback):
    """After each validation, serve the first utterances of the first validation batch and log what came out.

    The first one's audio also goes to `examples/step_N.wav` in the run folder, and a line says what was made of it.

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
        if logger is None or trainer.sanity_checking or not isinstance(pl_module, Task):
            return
        with gathered(pl_module):  # on every process, though one alone has a batch to show
            if self._batch is not None:
                batch, self._batch = first_rows(self._batch, self.count), None
                try:
                    predictions = self._show(pl_module, batch, logger.experiment, trainer.global_step)
                    said(predictions[0], batch.references, Path(trainer.default_root_dir), trainer.global_step)
                except Exception as error:  # one process alone is here: the others would wait, for a picture
                    reason = " ".join(str(error).split())
                    print(f"no examples of step {trainer.global_step}: {reason}", file=sys.stderr, flush=True)

    def _show(self, pl_module: Task, batch: Batch, writer: Any, step: int) -> list[Prediction]:
        # Random numbers drawn here are not missed by training: it seeds every step itself.
        predictions = pl_module.predict(batch, task=example_mode(pl_module, batch))
        references = batch.references or ("",) * len(batch)
        if any(p.text is not None for p in predictions):
            table = [(p.id, r, p.text or "") for p, r in zip(predictions, references, strict=True)]
            rows = ["| " + " | ".join(cell.replace("|", r"\|") for cell in cells) + " |" for cells in table]
            writer.add_text("examples", "\n".join(["| id | reference | hypothesis |", "|---|---|---|", *rows]), step)
        if any(p.audio is not None for p in predictions):
            sounds = [("predicted", [p.audio for p in predictions], predictions[0].sample_rate)]
            for kind, waves, rate in [*sounds, *targets(pl_module, batch, predictions[0].sample_rate)]:
                for name, audio in zip(batch.ids, waves, strict=True):
                    if audio is not None and audio.numel():
                        writer.add_audio(f"{name}/{kind}", audio.float().cpu()[None], step, rate)
                        writer.add_figure(f"{name}/{kind}_spectrogram", spectrogram(audio, rate), step)
        for row, prediction in enumerate(predictions):
            if prediction.codes is not None:
                target = None if batch.codes is None else batch.codes.unpad()[row]
                writer.add_figure(f"{prediction.id}/codes", codes_picture(prediction.codes, target), step)
        picture = cross_attention(pl_module, first_rows(batch, 1), predictions[0])
        if picture is not None:
            writer.add_figure("cross_attention", attention_picture(*picture), step)
        return predictions


def said(prediction: Prediction, references: tuple[str, ...] | None, folder: Path, step: int) -> None:
    """Say in a line what became of an utterance, and write its audio where there is some."""
    line = f"step {step}  {prediction.id}"
    if references:
        line += f"  should say: {references[0]}"
    if prediction.text is not None:
        line += f"  says so far: {prediction.text}"
    if prediction.audio is not None and prediction.audio.numel():
        path = folder / "examples" / f"step_{step}.wav"
        write_wav(path, prediction.audio, prediction.sample_rate)
        translated = prediction.text is not None or prediction.task == "s2st"
        what = "" if translated else " (units of the recording through the vocoder)"
        line += f"  listen: {path}{what}"
    print(printable(line), file=sys.stderr, flush=True)


def targets(task: Task, batch: Batch, sample_rate: int) -> Iterator[tuple[str, list[Tensor], int]]:
    """What should have been said: its name, (N,) samples of each row, their rate.

    `target` is the recording; where a task reads units in its place, `target_units` is what the vocoder makes of them.
    """
    if batch.target_speech is not None:
        yield "target", batch.target_speech.unpad(), SAMPLE_RATE
        return
    resynthesise: Callable[[Batch], list[Tensor] | None] | None = getattr(task, "resynthesise", None)
    again = resynthesise(batch) if resynthesise is not None else None
    if again is not None:
        yield "target_units", again, sample_rate


def example_mode(task: Task, batch: Batch) -> str:
    """Speech where the task can speak the languages, else what the batch asks for, else what the task can do."""
    asked = batch.task[0] if batch.task else ""
    voices = getattr(task, "spoken_languages", None)
    speaks = voices is None or set(batch.tgt_lang) <= set(voices)
    spoken = {"s2tt": "s2st", "t2tt": "t2st"}.get(asked, asked) if speaks else asked
    return next(mode for mode in (spoken, asked, *sorted(task.modes)) if mode in task.modes)


def first_rows(batch: Batch, count: int) -> Batch:
    """The first rows of a batch."""

    def cut(value: Any) -> Any:
        if isinstance(value, Padded):
            lengths = value.lengths[:count]
            return Padded(value.data[:count, : max(int(lengths.max()), 1)], lengths)
        return value[:count] if isinstance(value, Tensor | tuple) else value

    return replace(batch, **{item.name: cut(getattr(batch, item.name)) for item in fields(batch)})


@torch.inference_mode()
def cross_attention(task: Task, batch: Batch, prediction: Prediction) -> tuple[Tensor, list[str]] | None:
    """What the text decoder's last layer looks at for each token of a prediction.

    Args:
        task: in evaluation mode.
        batch: one row.
        prediction: what was made of it.

    Returns:
        (H, S, T) weights and the S tokens, the language first and the end last; None where there is no text or no
        cross-attention.
    """
    decoder, tokenizer = task.parts().get("text_seq2seq"), task.tokenizer
    modules = [m for m in decoder.modules() if isinstance(m, MultiHeadAttention) and m.memory_dim] if decoder else []
    if not modules or tokenizer is None or prediction.text is None or prediction.tgt_lang is None:
        return None
    module, found = modules[-1], []
    inner = module.attend

    def attend(query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None = None, causal: bool = False) -> Tensor:
        scores = query.float() @ key.float().transpose(-1, -2) / query.shape[-1] ** 0.5
        if mask is not None:
            scores = scores.masked_fill(~mask, -torch.inf)
        found.append(scores.softmax(-1)[0].cpu())
        return inner(query, key, value, mask, causal)

    ids = tokenizer.target(prediction.text, prediction.tgt_lang, prediction.src_lang, prediction.task)
    module.attend = attend  # pyright: ignore[reportAttributeAccessIssue]
    try:
        task.measure(replace(batch, target=Padded.from_list([torch.tensor(ids)]).to(task.device)))
    finally:
        del module.attend
    pieces = [tokenizer.decode([number]) or "?" for number in ids[tokenizer.prefix_length : -1]]
    return (found[-1], [f"<{prediction.tgt_lang}>", *pieces, "<end>"]) if found else None


DECIBELS = (-40, 40)
"""Of the darkest and of the lightest colour of a spectrogram; a sine at full scale has the latter."""


def decibels(audio: Tensor) -> Tensor:
    """Log magnitudes (257, T) of (N,) samples, T windows of 512 with a hop of 128."""
    samples, size = audio.float().cpu(), 512
    if samples.numel() < size:
        samples = torch.nn.functional.pad(samples, (0, size - samples.numel()))
    magnitude = torch.stft(samples, size, hop_length=128, window=torch.hann_window(size), return_complex=True).abs()
    return 20 * magnitude.clamp(min=1e-5).log10()


def spectrogram(audio: Tensor, sample_rate: int) -> Figure:
    """Log-magnitude spectrogram of (N,) samples as a figure; colours mean the same in each."""
    figure = Figure(figsize=(7, 2.6), layout="constrained")
    axes = figure.subplots()
    low, high = DECIBELS
    extent = (0, max(audio.numel(), 512) / sample_rate, 0, sample_rate / 2000)
    image = axes.imshow(
        decibels(audio).numpy(),
        origin="lower",
        aspect="auto",
        extent=extent,
        vmin=low,
        vmax=high,
        cmap="magma",
    )
    axes.set_xlabel("seconds")
    axes.set_ylabel("kHz")
    figure.colorbar(image, ax=axes, label="dB")
    return figure


def codes_picture(codes: Tensor, target: Tensor | None = None) -> Figure:
    """(T, K) codec frames as a figure, streams down and frames across, above those of the target where there are some;
    a code has the same colour in both."""
    shown = {"predicted": codes} | ({} if target is None else {"target": target[:, : codes.shape[1]]})
    most = max(int(one.max()) if one.numel() else 0 for one in shown.values())
    figure = Figure(figsize=(7, 0.6 + 1.2 * len(shown)), layout="constrained")
    panels = figure.subplots(len(shown), 1, squeeze=False, sharex=True)[:, 0]
    for axes, (name, one) in zip(panels, shown.items(), strict=True):
        axes.imshow(
            one.T.cpu().numpy(), aspect="auto", interpolation="nearest", vmin=0, vmax=most, cmap="turbo",
            extent=(0, max(len(one), 1), one.shape[1] + 0.5, 0.5),
        )  # fmt: skip
        axes.set_ylabel(name)
        axes.yaxis.set_major_locator(MaxNLocator(integer=True))
    panels[-1].set_xlabel("frame")
    return figure


def attention_picture(weights: Tensor, tokens: list[str]) -> Figure:
    """(H, S, T) cross-attention weights, averaged over heads, as a figure: output tokens down, memory steps across."""
    figure = Figure(figsize=(7, min(1.2 + 0.18 * len(tokens), 14)), layout="constrained")
    axes = figure.subplots()
    image = axes.imshow(weights.mean(0).numpy(), aspect="auto", interpolation="nearest", vmin=0, cmap="magma")
    axes.set_xlabel("memory step")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    every = 1 + len(tokens) // 70
    axes.set_yticks(range(0, len(tokens), every), [escaped(token) for token in tokens[::every]], fontsize=7)
    figure.colorbar(image, ax=axes, label="weight")
    return figure


def escaped(token: str) -> str:
    """A token as matplotlib shows it as it is: a dollar would open a formula."""
    return token.replace("$", r"\$")
