"""Training of a unit vocoder against discriminators. Letters: B batch, U units, N samples."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch

from ..components.errors import UserError
from ..components.losses.adversarial import discriminator_loss, feature_matching_loss, generator_loss, mean_score
from ..components.roles import Discriminator, UnitExtractor, UnitVocoder
from ..components.types import Batch, Loss, Reconstruction, Statistic
from .task import _add, counted
from .two_networks import TwoNetworks, held_still
from .unit_vocoder import UnitVocoderTask

_WEIGHTS = {"mel": 45.0, "feature_matching": 2.0}


class GanVocoder(TwoNetworks, UnitVocoderTask):
    """Units to waveform, against discriminators: HiFi-GAN (Kong et al. 2020, arXiv 2010.05646, section 2.4).

    A step updates the discriminator, then the vocoder against the updated one, as in the paper. With
    `accumulate_grad_batches` the vocoder's half waits for the last batch of the step and makes its crops once more (by
    the same seeds), so that a step over accumulated batches is the step over as many processes.

    The vocoder minimises `mel` x 45 + `feature_matching` x 2 + `adversarial` + its other losses, the discriminator
    `discriminator`. All but `duration` count mel frames of the crops (`components/losses/adversarial.py`).
    `valid/loss` and `train/loss` sum the vocoder's own losses alone: what an opponent says is no measure of progress.

    Lightning's manual optimisation: its count of steps is the vocoder's, gradients are summed over processes here.
    `trainer.gradient_clip_val` clips each network by its own norm; a half of a step whose gradient is not finite is
    left out.

    Args:
        vocoder: what learns and serves; one that learns samples (not Griffin-Lim).
        discriminator: what it learns against.
        unit_extractor, vocoder_languages, speaker: see `UnitVocoderTask`.
        discriminator_lr: learning rate of the discriminator; null: that of `optim`, whose other settings both share.
        loss_weights: weights by name, in place of those above.
    """

    roles = ("vocoder", "discriminator", "unit_extractor")
    generator = "vocoder"
    instead = "task=unit_vocoder trains a vocoder alone"

    def __init__(
        self,
        *,
        vocoder: UnitVocoder,
        discriminator: Discriminator,
        unit_extractor: UnitExtractor | None = None,
        discriminator_lr: float | None = None,
        loss_weights: Mapping[str, float] | None = None,
        vocoder_languages: Sequence[str] = (),
        speaker: int | None = None,
    ) -> None:
        super().__init__(
            vocoder=vocoder,
            unit_extractor=unit_extractor,
            loss_weights={**_WEIGHTS, **(loss_weights or {})},
            vocoder_languages=vocoder_languages,
            speaker=speaker,
        )
        if not vocoder.learns_samples:
            raise UserError(
                f"vocoder: {type(vocoder).__name__} makes no samples that a discriminator could train; take "
                "vocoder=istft or a CodeHiFiGAN, or task=unit_vocoder for this one"
            )
        self.start_turns(discriminator, discriminator_lr)

    def measure(self, batch: Batch) -> tuple[dict[str, Loss], dict[str, Statistic]]:
        """Losses of both networks, and as statistics the mean scores of speech and of the vocoder's samples. Each loss
        has a gradient for its own network alone."""
        made = self._reconstruct(batch)
        judged, scores = self._judge(made)
        return {**self._generate(made), **judged}, scores

    def _reconstruct(self, batch: Batch) -> Reconstruction:
        units, speech = self.pairs(batch)
        return self.vocoder.reconstruct(units, speech, **self.told(batch, units.device))

    @property
    def _opponent(self) -> Discriminator:
        assert self.discriminator is not None  # not here: `__init__` takes one
        return self.discriminator

    def _judge(self, made: Reconstruction) -> tuple[dict[str, Loss], dict[str, Statistic]]:
        """The discriminator's loss, and mean scores."""
        real = self._opponent(made.target)
        ours = self._opponent(made.samples.with_data(made.samples.data.detach()))
        scores = {"score_real": mean_score(real, made.frames), "score_made": mean_score(ours, made.frames)}
        return {"discriminator": discriminator_loss(real, ours, made.frames)}, scores

    def _generate(self, made: Reconstruction) -> dict[str, Loss]:
        """The vocoder's losses."""
        with held_still(self._opponent):
            with torch.no_grad():
                real = self._opponent(made.target)
            ours = self._opponent(made.samples)
        return {
            **made.losses,
            "adversarial": generator_loss(ours, made.frames),
            "feature_matching": feature_matching_loss(real, ours, made.frames),
        }

    # Training

    def training_step(self, batch: Batch, batch_idx: int) -> None:  # pyright: ignore[reportIncompatibleMethodOverride]
        last = not self.trainer.fit_loop._should_accumulate()
        self._held.append((batch, torch.initial_seed()))  # set by `on_train_batch_start`
        alone = last and len(self._held) == 1  # the usual step: what is made for one half serves the other
        with self._unsynchronised():
            with torch.set_grad_enabled(alone):
                made = self._reconstruct(batch)
            judged, scores = (counted(batch, values) for values in self._judge(made))
            self.manual_backward(self.weighted(judged))
            self._note(batch, {**judged, **scores}, made)
            if not last:
                return
            self._skips = (self.skipped_steps, self._skipped_in_a_row)
            ids = list(self._window_ids)
            self._step(self._opponent, 1)
            self._opponent.advance()
            self._window_ids = ids
            torch.clear_autocast_cache()  # casts that were made without gradients; torch before 2.11 would take them
            for held, seed in self._held:
                if not alone:
                    torch.manual_seed(seed)
                    made = self._reconstruct(held)
                losses = counted(held, self._generate(made))
                self.manual_backward(self.weighted(losses))
                _add(self._window, losses)
            self._held.clear()
            self._step(self.vocoder, 0)
        self._step_schedules()
