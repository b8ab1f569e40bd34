"""Whose voice it is: embeddings of speakers, for the similarity of output speech to its source.

The encoder is that of Wan et al. 2018, "Generalized end-to-end loss for speaker verification" (GE2E): three LSTM layers
over mel bands, the last state projected, rectified and scaled to length 1. The weights are those of the package
resemblyzer (Apache-2.0), which carries them; its own code and what that imports are not used.

Letters: N samples, T frames, W windows, D 256.
"""

from __future__ import annotations

import io
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torchaudio.functional import melscale_fbanks

from ...components.errors import UserError
from .packaged import PackagedFile

SAMPLE_RATE = 16_000
INSTALL = "pip install --no-deps resemblyzer==0.1.4"
WEIGHTS = PackagedFile(
    (("resemblyzer", "resemblyzer/pretrained.pt"),), "39373b86598fa3da9fcddee6142382efe09777e8d37dc9c0561f41f0070f134e"
)

_FFT, _HOP, _BANDS = 400, 160, 40
_WINDOW, _STEP = 160, 77  # frames: 1.6 s, 1.3 of them begin in a second
_COVERED = 0.75  # of the last window, or it is left out
_LEAST_LOUD = 10 ** (-30 / 20)  # root mean square of full scale to which quiet speech is raised
_FRAME = 480  # 30 ms: what is loud or silent as a whole
_SILENCE = 10 ** (-40 / 10)  # power below the loudest frame
_PAUSE = 3  # frames of silence that stay on either side of speech
_TOGETHER = 256  # windows


class SpeakerEncoder(nn.Module):
    """Utterance -> a point on the unit sphere, near those of the same voice.

    As resemblyzer reads an utterance: quiet speech is raised to -30 dB, long silences are cut, windows of 1.6 s are
    embedded and averaged. Silence is what is 40 dB below the loudest 30 ms, where resemblyzer asks WebRTC's detector.

    Raises:
        UserError: the package with the weights is not installed, or its file is not the one that was pinned.
    """

    def __init__(self) -> None:
        super().__init__()
        content = WEIGHTS.read("speaker similarity", INSTALL)
        self.lstm = nn.LSTM(_BANDS, 256, 3, batch_first=True)
        self.linear = nn.Linear(256, 256)
        state = torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)["model_state"]
        self.load_state_dict({name: state[name] for name in self.state_dict()})
        self.eval().requires_grad_(False)
        bands = melscale_fbanks(_FFT // 2 + 1, 0.0, 8000.0, _BANDS, SAMPLE_RATE, norm="slaney", mel_scale="slaney")
        self._bands, self._taper = bands.T.contiguous(), torch.hann_window(_FFT)

    @property
    def signature(self) -> str:
        """Everything that changes the numbers, in one line."""
        return f"ge2e|from:{WEIGHTS.source}|sha256:{WEIGHTS.sha256[:12]}|windows:1.6s|silence:-40dB"

    @torch.inference_mode()
    def embed(self, audio: Sequence[Tensor]) -> list[Tensor | None]:
        """(N,) samples at 16 kHz each -> (D,) each, of length 1; None where there is no sound."""
        windows = [self._windows(samples.detach().to("cpu", torch.float32)) for samples in audio]
        counts = [0 if each is None else len(each) for each in windows]
        there = [each for each in windows if each is not None]
        if not there:
            return [None] * len(counts)
        points = torch.cat([self(part) for part in torch.cat(there).split(_TOGETHER)])
        means = [nn.functional.normalize(each.mean(0), dim=0) if len(each) else None for each in points.split(counts)]
        return means

    def forward(self, mels: Tensor) -> Tensor:
        """(W, T, F) -> (W, D)"""
        _, (last, _) = self.lstm(mels)
        return nn.functional.normalize(self.linear(last[-1]).relu(), dim=1)

    def _windows(self, samples: Tensor) -> Tensor | None:
        """(N,) samples -> (W, 160, 40) power of mel bands; None for silence."""
        if samples.dim() != 1:
            raise ValueError(f"an utterance has shape {tuple(samples.shape)}; expected (N,) mono samples")
        samples = spoken(_raised(samples))
        if not len(samples):
            return None
        frames = -(-(len(samples) + 1) // _HOP)
        starts = list(range(0, max(1, frames - _WINDOW + _STEP + 1), _STEP))
        if len(starts) > 1 and (len(samples) / _HOP - starts[-1]) / _WINDOW < _COVERED:
            starts.pop()
        end = (starts[-1] + _WINDOW) * _HOP
        if end >= len(samples):
            samples = nn.functional.pad(samples, (0, end - len(samples)))
        spectrum = torch.stft(samples, _FFT, _HOP, window=self._taper, pad_mode="constant", return_complex=True)
        mels = (self._bands @ spectrum.abs().square()).T
        return torch.stack([mels[start : start + _WINDOW] for start in starts])


def _raised(samples: Tensor) -> Tensor:
    """Quiet (N,) samples made louder, loud ones as they are."""
    loudness = float(samples.square().mean().sqrt()) if len(samples) else 0.0
    return samples * (_LEAST_LOUD / loudness) if 0 < loudness < _LEAST_LOUD else samples


def spoken(samples: Tensor) -> Tensor:
    """(N,) samples at 16 kHz -> those that are not in long silences; none where the peak is below -60 dB."""
    if not len(samples) or float(samples.abs().max()) < 1e-3:
        return samples[:0]
    padded = nn.functional.pad(samples, (0, -len(samples) % _FRAME)).view(-1, _FRAME)
    power = padded.square().mean(1)
    loud = (power > _SILENCE * power.max()).float()[None]
    kept = nn.functional.max_pool1d(loud, 2 * _PAUSE + 1, 1, _PAUSE)[0] > 0
    return samples[kept.repeat_interleave(_FRAME)[: len(samples)]]


def similarity(a: Tensor | None, b: Tensor | None) -> float:
    """Cosine of two embeddings; 0 where one has no voice."""
    if a is None or b is None:
        return 0.0
    return float(a @ b)


def nearest(points: Sequence[Tensor | None], voices: dict[str, Tensor]) -> list[str | None]:
    """The speaker whose mean embedding is the nearest to each point; None for one without a voice.

    Raises:
        UserError: there are fewer than two speakers.
    """
    if len(voices) < 2:
        raise UserError(f"the nearest of {len(voices)} voices: expected at least two speakers")
    names, matrix = list(voices), torch.stack(list(voices.values()))
    return [None if point is None else names[int((matrix @ point).argmax())] for point in points]
