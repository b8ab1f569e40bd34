"""Training of a codec. Letters: B batch, N samples, T frames, K codebooks, C channels."""

from __future__ import annotations

import zlib
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from lightning_utilities.core.rank_zero import rank_zero_warn
from torch import Tensor

from ..components.errors import UserError
from ..components.losses.adversarial import discriminator_loss, feature_matching_loss, generator_loss, mean_score
from ..components.losses.balancer import Balancer
from ..components.losses.reconstruction import MelLoss, waveform_loss
from ..components.roles import Codec, Discriminator, Frontend
from ..components.search import SearchOptions
from ..components.types import Batch, Loss, Padded, Prediction, Reconstruction, Statistic
from .codebook_use import CodebookUse
from .task import _add, counted
from .two_networks import TwoNetworks, held_still

_BALANCED = {"l1": 0.1, "mel": 2.0, "adversarial": 4.0, "feature_matching": 4.0}
_COMMITMENT = 0.25
_RATE = 16000  # of the samples in a batch
_POINTS = 20000  # of one step that the codebooks begin from, at most
_ADVICE = "lower optim.lr, or codec.decay (books follow faster), or raise codec.dead_share or task.free_steps"


class TrainCodec(TwoNetworks):
    """Speech to codes and back, as EnCodec is trained (Defossez et al. 2022, arXiv 2210.13438, section 3.4).

    A step updates the discriminator, then the codec against the updated one. Its samples learn from the balanced
    gradients of `l1`, `mel` (log-mels of several windows), `adversarial` and `feature_matching` (hinges; without a
    discriminator the first two alone); its encoder also from `commitment`. The codebooks follow by moving averages:
    they begin with k-means on the utterances of one step, and entries that are not used start anew. Each step uses the
    first K of the codebooks, K drawn from `codebooks`. How many entries are in use is logged for each of them, and a
    line says where one collapsed.

    What a step learns does not depend on how its batch was cut up: crops follow from the utterance and the step, and
    gradients, sums of the codebooks and norms of the balancer are added up over accumulated batches and processes
    before they are used. `valid/loss` sums `l1`, `mel` and `commitment`, with all codebooks.

    Args:
        codec: what learns.
        discriminator: what it learns against; None: nothing.
        frontend: what makes `speech` of the batch; samples (frontend=raw) where `sides` is both.
        discriminator_lr: learning rate of the discriminator; null: that of `optim`.
        loss_weights: weights of the balanced losses and of `commitment`, in place of 0.1, 2, 4, 4 and 0.25.
        codebooks: how many codebooks a step may use; empty: 1, 2, 4 ... up to all.
        free_steps: steps at the beginning that quantise nothing: the codebooks begin behind them, on latents that mean
            something and move slowly, where those of a network at random are nearly one point.
        crop_seconds: of each utterance in training; shorter ones are taken whole.
        sides: target: learn of the target speech alone; both: of the source's too.
        num_codebooks: of what `predict` makes; null: all.
        mel_windows, mel_bins: of the mel loss, in samples of the codec.
    """

    needs = frozenset({"target_speech"})  # pyright: ignore[reportAssignmentType]
    modes = frozenset({"u2s"})
    roles = ("codec", "discriminator")
    generator = "codec"

    def __init__(
        self,
        *,
        codec: Codec,
        discriminator: Discriminator | None = None,
        frontend: Frontend | None = None,
        discriminator_lr: float | None = None,
        loss_weights: Mapping[str, float] | None = None,
        codebooks: Sequence[int] = (),
        free_steps: int = 0,
        crop_seconds: float = 1.0,
        sides: str = "target",
        num_codebooks: int | None = None,
        mel_windows: Sequence[int] = (2048, 1024, 512, 256, 128),
        mel_bins: Sequence[int] = (80, 64, 40, 20, 10),
    ) -> None:
        weights = {**_BALANCED, "commitment": _COMMITMENT, **(loss_weights or {})}
        super().__init__(loss_weights=weights)
        if not codec.learns:
            raise UserError(f"codec: {type(codec).__name__} cannot be trained here; take codec=encodec_24khz")
        if sides not in ("target", "both"):
            raise UserError(f"task.sides={sides}: expected target or both")
        self.codec = codec
        self.frontend = frontend
        self.start_turns(discriminator, discriminator_lr)
        self.codebooks = tuple(codebooks) or _powers(codec.num_codebooks)
        wrong = [count for count in self.codebooks if not 1 <= count <= codec.num_codebooks]
        if wrong:
            raise UserError(f"task.codebooks={list(self.codebooks)}: the codec has 1 to {codec.num_codebooks}")
        self.crop_seconds, self.sides, self.num_codebooks = crop_seconds, sides, num_codebooks
        self.free_steps = free_steps
        self.use = CodebookUse(codec.num_codebooks, codec.codebook_size)
        if sides == "both":
            self.needs = frozenset({"target_speech", "speech"})
        kept = _BALANCED if discriminator is not None else {"l1": 0, "mel": 0}
        self.balancer = Balancer({name: weights[name] for name in kept})
        self.mel = MelLoss(codec.sample_rate, mel_windows, mel_bins)

    # Losses

    def measure(self, batch: Batch) -> tuple[dict[str, Loss], dict[str, Statistic]]:
        """Losses of both networks, and as statistics the mean scores of speech and of the codec's samples. Each loss
        has a gradient for its own network alone."""
        made = self._reconstruct(self._crops(batch, 0), None)
        judged, scores = self._judge(made)
        return {**self._generate(made), **judged}, scores

    def _crops(self, batch: Batch, step: int) -> Padded:
        """(R, N) 16 kHz crops of the batch's utterances: where they begin follows from their ids and the step."""
        size = int(self.crop_seconds * _RATE)
        rows = []
        for side, speech in self._sides(batch).items():
            for name, row in zip(batch.ids, speech.unpad(), strict=True):
                seed = zlib.crc32(f"{self.config.get('seed', 1)} {step} {side} {name}".encode())
                most = max(len(row) - size, 0)
                start = int(torch.randint(most + 1, (1,), generator=torch.Generator().manual_seed(seed)))
                rows.append(row[start : start + size])
        return Padded.from_list(rows)

    def _sides(self, batch: Batch) -> dict[str, Padded]:
        """(B, N) 16 kHz speech to learn of: t, the target's, and s, the source's."""
        assert batch.target_speech is not None
        sides = {"t": batch.target_speech}
        if self.sides == "both" and batch.speech is not None:
            if batch.speech.data.dim() != 2:
                raise UserError("task.sides=both reads the source as samples: set frontend=raw, or task.sides=target")
            sides["s"] = batch.speech
        return sides

    def _reconstruct(self, speech: Padded, num_codebooks: int | None) -> Reconstruction:
        """With the channels of stereo as rows of their own."""
        made = self.codec.reconstruct(speech, num_codebooks, _RATE)
        if self.codec.channels == 1:
            return made
        frames = made.frames.repeat_interleave(self.codec.channels)
        losses = {name: Loss(one.total * self.codec.channels, frames.sum()) for name, one in made.losses.items()}
        return Reconstruction(_flat(made.samples), _flat(made.target), frames, losses, made.update)

    def _judge(self, made: Reconstruction) -> tuple[dict[str, Loss], dict[str, Statistic]]:
        """The discriminator's loss, and mean scores."""
        if self.discriminator is None:
            return {}, {}
        real = self.discriminator(made.target)
        ours = self.discriminator(made.samples.with_data(made.samples.data.detach()))
        scores = {"score_real": mean_score(real, made.frames), "score_made": mean_score(ours, made.frames)}
        return {"discriminator": discriminator_loss(real, ours, made.frames, "hinge")}, scores

    def _generate(self, made: Reconstruction) -> dict[str, Loss]:
        """The codec's losses."""
        losses = {
            "l1": waveform_loss(made.samples, made.target, made.frames),
            "mel": self.mel(made.samples, made.target, made.frames),
            **made.losses,
        }
        if self.discriminator is None:
            return losses
        with held_still(self.discriminator):
            with torch.no_grad():
                real = self.discriminator(made.target)
            ours = self.discriminator(made.samples)
        return {
            **losses,
            "adversarial": generator_loss(ours, made.frames, "hinge"),
            "feature_matching": feature_matching_loss(real, ours, made.frames, relative=True),
        }

    # Training

    def training_step(self, batch: Batch, batch_idx: int) -> None:  # pyright: ignore[reportIncompatibleMethodOverride]
        self._held.append((batch, torch.initial_seed()))
        if self.trainer.fit_loop._should_accumulate():
            return
        step = self.trainer.global_step
        crops = [self._crops(held, step) for held, _ in self._held]
        real = [not held.stands_in for held, _ in self._held]  # others count nothing: their rows could not be read
        generator = torch.Generator().manual_seed(_seed(self.config, step))
        count = self.codebooks[int(torch.randint(len(self.codebooks), (1,), generator=generator))]
        if not self.codec.begun:
            if step < self.free_steps:
                count = 0
            else:
                self.codec.begin(self._first_points([held for held, _ in self._held], real), _seed(self.config, 0))
        self._skips = (self.skipped_steps, self._skipped_in_a_row)
        alone = len(crops) == 1  # the usual step: what is made for one half serves the other
        with self._unsynchronised():
            made = None
            for (held, _), speech in zip(self._held, crops, strict=True):
                with torch.set_grad_enabled(alone):
                    made = self._reconstruct(speech, count)
                judged, scores = (counted(held, values) for values in self._judge(made))
                self._note(held, {**judged, **scores}, made)
                if judged:
                    self.manual_backward(judged["discriminator"].total)
            if self.discriminator is not None:
                ids = list(self._window_ids)
                self._step(self.discriminator, 1)
                self.discriminator.advance()
                self._window_ids = ids
            torch.clear_autocast_cache()
            update = self._learn(crops, real, count, made if alone else None)
            self._held.clear()
            self._step(self.codec, 0)
        if bool(torch.isfinite(torch.as_tensor(self._grad_norm))):
            self.codec.advance(update, _seed(self.config, step))
        if "counts" in update:
            self.use.add(update["counts"])
        self._step_schedules()

    def _learn(
        self, crops: list[Padded], real: list[bool], count: int, made: Reconstruction | None
    ) -> dict[str, Tensor]:
        """Gradients of the codec's half of a step; what its codebooks learn, of all batches and processes."""
        gradients: list[dict[str, Tensor]] = []
        norms, rows = torch.zeros_like(self.balancer.totals), torch.zeros((), device=self.device)
        update: dict[str, Tensor] = {}
        kept = None
        for speech, counts in zip(crops, real, strict=True):
            again = made if made is not None else self._reconstruct(speech, count)
            losses = self._generate(again)
            if counts:
                _add(self._window, losses)
            balanced = {name: losses[name].total for name in self.balancer.weights}
            found = {
                name: torch.autograd.grad(total, again.samples.data, retain_graph=True)[0].float()
                for name, total in balanced.items()
            }
            gradients.append(found)
            if counts:
                norms, rows = norms + self.balancer.norms(found, again.frames), rows + len(again.frames)
            for name, value in again.update.items():
                update[name] = update.get(name, torch.zeros_like(value)) + value * counts
            kept = (again, losses) if len(crops) == 1 else None
        norms, rows, *sums = self._summed([norms, rows, *update.values()])
        self.balancer.advance(norms, rows)
        for speech, counts, found in zip(crops, real, gradients, strict=True):
            if kept is None:
                again = self._reconstruct(speech, count)
                losses = again.losses
            else:
                again, losses = kept
            samples = (again.samples.data.float() * self.balancer.combined(found)).sum()
            total = samples + self.loss_weights["commitment"] * losses["commitment"].total
            self.manual_backward(total if counts else 0 * total)
        return dict(zip(update, sums, strict=True))

    def _summed(self, values: list[Tensor]) -> list[Tensor]:
        """Each tensor summed over the processes, all in one message."""
        if self.trainer.world_size == 1:
            return values
        message = torch.cat([value.detach().flatten().float() for value in values])
        total = self.trainer.strategy.reduce(message, reduce_op="sum")
        assert isinstance(total, Tensor)
        parts = total.split([value.numel() for value in values])
        return [part.view_as(value) for part, value in zip(parts, values, strict=True)]

    def _first_points(self, batches: list[Batch], real: list[bool]) -> Tensor:
        """(P, D) latents of the whole utterances of a step, of all batches and processes, in an order that does not
        depend on them. Crops alone would be too few: what a book leaves of points that it was fitted to is less than
        what it leaves of others, and the books behind it would begin too small."""
        whole = [
            Padded.from_list([row for speech in self._sides(one).values() for row in speech.unpad()]) for one in batches
        ]
        latents = [torch.cat(self.codec.latents(speech, _RATE).unpad()) for speech in whole]
        found = torch.cat([one[: len(one) * counts] for one, counts in zip(latents, real, strict=True)])
        if self.trainer.world_size > 1:
            sizes: Any = self.all_gather(torch.tensor(len(found), device=self.device))
            padded = found.new_zeros(int(sizes.max()), found.shape[1])
            padded[: len(found)] = found
            gathered: Any = self.all_gather(padded)
            found = torch.cat([part[: int(size)] for part, size in zip(gathered, sizes, strict=True)])
        found = found[found[:, 0].argsort(stable=True)]
        if len(found) <= _POINTS:
            return found
        generator = torch.Generator().manual_seed(_seed(self.config, 0))
        return found[torch.randperm(len(found), generator=generator)[:_POINTS].sort().values.to(found.device)]

    def _drain_window(self) -> dict[str, float]:
        line = self.use.judge()
        if line is not None:
            rank_zero_warn(f"step {self.trainer.global_step}: {line}: {_ADVICE}")
        metrics = super()._drain_window()
        metrics |= {f"train/{name}": value for name, value in self.use.metrics.items()}
        return metrics

    def on_train_end(self) -> None:
        super().on_train_end()
        if not self.codec.begun:
            rank_zero_warn(
                f"the codebooks never began: task.free_steps={self.free_steps} are not fewer than the "
                f"{self.trainer.global_step} steps of the run, and its codec has entries at random"
            )

    @property
    def progress_line(self) -> str:
        """What the progress line says beside losses."""
        return self.use.line

    def _weighted_mean(self, means: Mapping[str, float]) -> float:
        own = {name: mean for name, mean in means.items() if name in ("l1", "mel", "commitment")}
        return super()._weighted_mean(own)

    # Serving

    @torch.inference_mode()
    def predict(
        self, batch: Batch, *, task: str | None = None, options: SearchOptions | None = None
    ) -> list[Prediction]:
        """The target speech as it comes back from its codes, at 16 kHz."""
        return [
            Prediction(id=name, task="u2s", tgt_lang=lang, audio=audio, sample_rate=_RATE)
            for name, lang, audio in zip(
                batch.ids, batch.tgt_lang or (None,) * len(batch), self.resynthesise(batch), strict=True
            )
        ]

    def resynthesise(self, batch: Batch, num_codebooks: int | None = None) -> list[Tensor]:
        """The target speech of a batch from its codes, one (N,) waveform at 16 kHz a row, as long as it was."""
        assert batch.target_speech is not None
        speech = batch.target_speech
        codes = self.codec.encode(speech, num_codebooks or self.num_codebooks, _RATE)
        again = self.codec.decode(codes, _RATE, self.codec.loudness(speech, _RATE))
        rows = [row if row.dim() == 1 else row.mean(1) for row in again.unpad()]
        return [row[:length].clamp(-1, 1) for row, length in zip(rows, speech.lengths.tolist(), strict=True)]

    def serving_needs(self) -> frozenset[str]:
        return frozenset({"target_speech"})


def _flat(samples: Padded) -> Padded:
    """(B, N, C) -> (B x C, N)."""
    return Padded(samples.data.transpose(1, 2).flatten(0, 1), samples.lengths.repeat_interleave(samples.data.shape[2]))


def _powers(most: int) -> tuple[int, ...]:
    return (*(2**power for power in range(most.bit_length()) if 2**power < most), most)


def _seed(config: Mapping[str, Any], step: int) -> int:
    return hash((int(config.get("seed", 1)), step)) % (2**63)
