"""Units by k-means over log-mel frames or over the states of a speech encoder.

Letters: B batch, N samples, U units, F features, K clusters.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional

from ..layers.kmeans import kmeans, nearest
from ..layers.mel import LogMel, full_precision
from ..roles import Frontend, SpeechEncoder, UnitExtractor
from ..types import Padded


class KMeansUnits(UnitExtractor):
    """k-means units (GSLM, arXiv 2102.01192, section 3.1; S2UT, arXiv 2107.05604, section 3.1).

    With `features="log_mel"` a unit is the cluster of the mean of `frames_per_unit` log-mel frames: no pre-trained
    model is needed, and one voice resynthesised from such units is nearly as intelligible as the recording. With
    `features="encoder"` it is the cluster of a state of `encoder`, as published systems do (SeamlessM4T: layer 35 of
    XLS-R, K = 10000).

    Args:
        num_units: K.
        features: what is clustered.
        encoder: the speech encoder, for `features="encoder"`; it is frozen.
        frontend: what turns samples into what `encoder` reads; None where it reads raw samples.
        layer: take the output of this one of `encoder.layers`, counted from 1; None takes the encoder's output. An
            encoder with a `layer` of its own (Wav2Vec2Encoder) gets this one and computes nothing behind it.
        normalise: `global` subtracts the mean of each feature and divides all by one deviation, `feature` divides
            each by its own, `none` leaves them.
        sample_rate: Hz of the speech.
        fft_size, window_length, hop_length, num_mel_bins: of the log-mel frames, in samples (see `LogMel`).
        frames_per_unit: log-mel frames to a unit; a unit lasts hop_length * frames_per_unit samples.
        max_frames: `fit` draws this many frames, uniformly over the whole stream.
        iterations, restarts: of k-means.
    """

    paper = "arXiv 2102.01192, section 3.1"
    centroids: Tensor
    mean: Tensor
    scale: Tensor
    fitted: Tensor

    def __init__(
        self,
        num_units: int,
        features: Literal["log_mel", "encoder"] = "log_mel",
        encoder: SpeechEncoder | None = None,
        frontend: Frontend | None = None,
        layer: int | None = None,
        normalise: Literal["global", "feature", "none"] = "global",
        sample_rate: int = 16000,
        fft_size: int = 640,
        window_length: int = 640,
        hop_length: int = 160,
        num_mel_bins: int = 80,
        frames_per_unit: int = 2,
        max_frames: int = 80000,
        iterations: int = 30,
        restarts: int = 2,
    ):
        super().__init__()
        if num_units < 2:
            raise ValueError(f"num_units={num_units}: k-means needs at least 2 units")
        if frames_per_unit < 1:
            raise ValueError(f"frames_per_unit={frames_per_unit}: a unit is at least 1 frame long")
        if (features == "encoder") != (encoder is not None):
            raise ValueError(
                f"features={features!r} with encoder={type(encoder).__name__ if encoder else None}: give an encoder "
                "with features='encoder' and none with features='log_mel'"
            )
        if encoder is None and (frontend is not None or layer is not None):
            raise ValueError("frontend and layer belong to features='encoder'; log-mel units take neither")
        self.num_units, self.kind, self.layer, self.normalise = num_units, features, layer, normalise
        self.sample_rate, self.max_frames, self.iterations, self.restarts = (
            sample_rate,
            max_frames,
            iterations,
            restarts,
        )
        self.frames_per_unit = frames_per_unit
        self.encoder, self.frontend = encoder, frontend
        if encoder is None:
            self.mel = LogMel(sample_rate, fft_size, window_length, hop_length, num_mel_bins)
            self.hop_length = hop_length * frames_per_unit
            self.frame_rate = sample_rate / self.hop_length
            width = num_mel_bins
        else:
            if layer is not None:
                _layer(encoder, layer)
                if hasattr(encoder, "layer"):
                    setattr(encoder, "layer", layer)  # noqa: B010 - not every encoder has it
            encoder.requires_grad_(False).eval()
            self.mel = None
            # Over many seconds, so that the frames lost at the edges of an encoder without padding do not count.
            with torch.device("cpu"):  # lengths are real even where a part is built on the meta device
                steps = self.output_lengths(torch.tensor([1000 * sample_rate]))
            self.frame_rate = round(int(steps) / 1000, 1)
            self.hop_length = round(sample_rate / self.frame_rate)
            width = encoder.output_dim
        self.register_buffer("centroids", torch.zeros(num_units, width))
        self.register_buffer("mean", torch.zeros(width))
        self.register_buffer("scale", torch.ones(width))
        self.register_buffer("fitted", torch.zeros((), dtype=torch.bool))

    def train(self, mode: bool = True):
        """A frozen encoder stays in evaluation mode: units must not depend on dropout."""
        super().train(mode)
        if self.encoder is not None:
            self.encoder.eval()
        return self

    def output_lengths(self, lengths: Tensor) -> Tensor:
        """(B,) int64 samples -> (B,) int64 units: for log-mel every started unit counts."""
        if self.encoder is None:
            return -(-lengths // self.hop_length)
        if self.frontend is not None:
            steps = [self.frontend.output_length(int(length)) for length in lengths]
            lengths = torch.tensor(steps, dtype=torch.int64, device=lengths.device)
        return self.encoder.output_lengths(lengths)

    @torch.no_grad()
    def features(self, speech: Padded) -> Padded:
        """(B, N) samples at `sample_rate` -> (B, U, F) features that are clustered, before normalisation."""
        lengths = self.output_lengths(speech.lengths)
        if not bool(lengths.any()):  # clips too short for a unit, in all rows
            return Padded(self.mean.new_zeros(len(speech), 1, len(self.mean)), lengths)
        if self.mel is None:
            return self._states(speech)
        steps = int(lengths.max())
        samples = speech.zeroed().data.float()
        samples = functional.pad(samples, (0, max(steps * self.hop_length - samples.shape[1], 0)))
        frames = self.mel(samples[:, : steps * self.hop_length])
        pooled = frames.unflatten(1, (steps, self.frames_per_unit)).mean(2)
        return Padded(pooled, lengths).zeroed()

    def _states(self, speech: Padded) -> Padded:
        assert self.encoder is not None
        inputs = speech.zeroed()
        if self.frontend is not None:
            if speech.data.is_meta:  # the shape check: frontends read samples one by one, so only lengths go through
                steps = [self.frontend.output_length(int(length)) for length in speech.lengths]
                shape = (len(speech), max(steps), *([self.frontend.output_dim] if self.frontend.output_dim > 1 else []))
                inputs = Padded(speech.data.new_empty(shape), torch.tensor(steps, device="cpu"))
            else:
                frontend = self.frontend
                with full_precision(speech.data):
                    rows = [frontend(row.float().cpu()) for row in speech.unpad()]
                inputs = Padded.from_list(rows).to(speech.device)
        # A model that is cast as a whole does not cast what a front end computes.
        weight = next(self.encoder.parameters(), None)
        inputs = inputs if weight is None else inputs.with_data(inputs.data.to(weight.dtype))
        if self.layer is None or hasattr(self.encoder, "layer"):
            return self.encoder(inputs)
        caught: list[Any] = []
        handle = _layer(self.encoder, self.layer).register_forward_hook(lambda *call: caught.append(call[-1]))
        try:
            states = self.encoder(inputs)
        finally:
            handle.remove()
        output = caught[-1][0] if isinstance(caught[-1], tuple) else caught[-1]
        output = output.data if isinstance(output, Padded) else output
        if output.shape != states.data.shape:
            raise ValueError(
                f"layer {self.layer} of {type(self.encoder).__name__} gives {tuple(output.shape)}, its output "
                f"{tuple(states.data.shape)}: units need a layer with the length and width of the output"
            )
        return states.with_data(output)

    @torch.no_grad()
    def fit(self, batches: Iterable[Padded], seed: int = 0) -> dict[str, float]:
        """Fit the centroids on batches of (B, N) samples.

        The same batches and seed give the same centroids on a CPU; on a GPU sums may differ in the last bits.

        Returns:
            frames: seen in all; sampled: used; inertia: mean squared distance to the centroid, in normalised features;
            unexplained: that over the variance of the features; used: clusters that some sampled frame belongs to.

        Raises:
            ValueError: fewer frames than units.
        """
        generator = torch.Generator().manual_seed(seed)
        kept, keys, seen = torch.empty(0), torch.empty(0), 0
        for batch in batches:
            states = self.features(batch)
            frames = states.data[states.mask].float()
            seen += len(frames)
            # A uniform sample of a stream: every frame draws a key, the lowest `max_frames` keys stay.
            drawn = torch.rand(len(frames), generator=generator, dtype=torch.float64)
            keys = torch.cat([keys, drawn]) if len(keys) else drawn
            kept = torch.cat([kept, frames]) if len(kept) else frames
            if len(keys) > 2 * self.max_frames:
                keys, kept = _lowest(keys, kept, self.max_frames)
        if seen < self.num_units:
            raise ValueError(
                f"{self.num_units} units need at least as many frames to fit on; got {seen}: give more audio or lower "
                "num_units"
            )
        _, points = _lowest(keys, kept, self.max_frames)
        mean, scale = torch.zeros_like(points[0]), torch.ones_like(points[0])
        if self.normalise != "none":
            mean = points.mean(0)
            deviation = (points - mean).square().mean(0 if self.normalise == "feature" else None).sqrt()
            scale = deviation.clamp(min=1e-5).expand_as(mean).clone()
        points = (points - mean) / scale
        centroids, inertia = kmeans(points, self.num_units, seed, self.iterations, self.restarts)
        for name, value in {"mean": mean, "scale": scale, "centroids": centroids}.items():
            getattr(self, name).copy_(value)
        self.fitted.fill_(True)
        variance = float((points - points.mean(0)).square().sum(1).mean())
        labels, _ = nearest(points, centroids)
        return {
            "frames": float(seen),
            "sampled": float(len(points)),
            "inertia": inertia,
            "unexplained": inertia / max(variance, 1e-12),
            "used": float(labels.unique().numel()),
        }

    @torch.no_grad()
    def forward(self, speech: Padded) -> Padded:
        """(B, N) samples at `sample_rate` -> (B, U) int64 units, one per frame, zero beyond the length.

        Raises:
            RuntimeError: before `fit`, or before fitted centroids were loaded.
        """
        if not speech.data.is_meta and not bool(self.fitted):
            raise RuntimeError(
                f"{type(self).__name__} has no centroids yet: run `voxzoo units fit MANIFEST --out FOLDER`, or call "
                "fit(batches), or load a fitted state_dict"
            )
        states = self.features(speech)
        batch, steps, width = states.data.shape
        points = (states.data.float() - self.mean) / self.scale
        with full_precision(points):
            labels, _ = nearest(points.reshape(batch * steps, width), self.centroids)
        return Padded(labels.view(batch, steps), states.lengths).zeroed()

    def card(self) -> dict[str, Any]:
        """What these units are, as plain values: two sets of units can be mixed only where their cards are equal."""
        digest = hashlib.sha256()
        for buffer in (self.centroids, self.mean, self.scale):
            digest.update(buffer.detach().float().cpu().numpy().astype("<f4").tobytes())
        return {
            "features": self.kind if self.encoder is None else type(self.encoder).__name__,
            "layer": self.layer,
            "num_units": self.num_units,
            "frame_rate": self.frame_rate,
            "hop_length": self.hop_length,
            "sample_rate": self.sample_rate,
            "centroids": digest.hexdigest()[:16] if bool(self.fitted) else None,
        }


def _layer(encoder: nn.Module, number: int) -> nn.Module:
    """Layer `number`, counted from 1, of an encoder."""
    layers = getattr(encoder, "layers", None)
    if not isinstance(layers, nn.ModuleList):
        raise ValueError(f"layer={number}: {type(encoder).__name__} has no `layers` to choose from; leave layer out")
    if not 1 <= number <= len(layers):
        raise ValueError(f"layer={number}: {type(encoder).__name__} has layers 1 to {len(layers)}")
    return layers[number - 1]


def _lowest(keys: Tensor, rows: Tensor, count: int) -> tuple[Tensor, Tensor]:
    if len(keys) <= count:
        return keys, rows
    chosen = keys.argsort(stable=True)[:count].sort().values
    return keys[chosen], rows[chosen.to(rows.device)]
