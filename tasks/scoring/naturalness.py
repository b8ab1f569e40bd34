"""DNSMOS P.835: a network's guess of how people would rate a recording, from 1 to 5, without a reference.

Reddy et al. 2022, "DNSMOS P.835: a non-intrusive perceptual objective speech quality metric to evaluate noise
suppressors". The network and the polynomials that bring its answers to the scale of people are those of the package
speechmos (MIT), which carries the weights; onnxruntime runs them. The package's own code is not used.

Letters: N samples, W windows.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from importlib import metadata

import numpy as np
import torch
from torch import Tensor

from .packaged import PackagedFile, need

SAMPLE_RATE = 16_000
INSTALL = "pip install voxzoo[quality]"
WEIGHTS = PackagedFile(
    (("speechmos", "speechmos/dnsmos_models/sig_bak_ovr.onnx"),),
    "269fbebdb513aa23cddfbb593542ecc540284a91849ac50516870e1ac78f6edd",
)
_SECONDS = 9.01
_LENGTH = int(_SECONDS * SAMPLE_RATE)
_TOGETHER = 8  # windows
_SCALES = ((-0.08397278, 1.22083953, 0.0052439), (-0.13166888, 1.60915514, -0.39604546),
           (-0.06766283, 1.11546468, 0.04602535))  # fmt: skip
"""Highest power first, of the speech, the background and the whole."""


@dataclass(frozen=True)
class Rating:
    """From 1 to 5: the speech itself, the background (5 is none that disturbs), and the whole."""

    speech: float
    background: float
    overall: float


class Dnsmos:
    """Rates utterances.

    A window is 9.01 s. Longer speech is rated in windows that begin each second, and the mean counts, as in the package
    (which by rounding leaves out some of them). Shorter speech is repeated until it fills one; the package rates it in
    several, shifted by a second each, at four times the cost and for a mean that differs by 0.02.

    Args:
        threads: of onnxruntime.

    Raises:
        UserError: a package is not installed, or its file is not the one that was pinned.
    """

    def __init__(self, threads: int = 1) -> None:
        runtime = need("onnxruntime", "DNSMOS", INSTALL)
        options = runtime.SessionOptions()
        options.intra_op_num_threads = threads
        content = WEIGHTS.read("DNSMOS", INSTALL)
        self._session = runtime.InferenceSession(content, options, providers=["CPUExecutionProvider"])
        self._input = self._session.get_inputs()[0].name

    @property
    def signature(self) -> str:
        """Everything that changes the numbers, in one line."""
        engine = f"onnxruntime-{metadata.version('onnxruntime')}"
        return f"dnsmos:p835|from:{WEIGHTS.source}|sha256:{WEIGHTS.sha256[:12]}|{engine}|short:1window"

    def rate(self, audio: Sequence[Tensor]) -> list[Rating | None]:
        """(N,) samples at 16 kHz each, -1 to 1; None for one without samples."""
        return [self._rate(samples.detach().to("cpu", torch.float32)) for samples in audio]

    def _rate(self, samples: Tensor) -> Rating | None:
        if samples.dim() != 1:
            raise ValueError(f"an utterance has shape {tuple(samples.shape)}; expected (N,) mono samples")
        if not len(samples):
            return None
        waveform = samples.clamp(-1, 1).numpy()
        if len(waveform) < _LENGTH:
            waveform = np.resize(waveform, _LENGTH)  # repeats it
        count = max(1, int(len(waveform) // SAMPLE_RATE - _SECONDS) + 1)
        windows = np.lib.stride_tricks.sliding_window_view(waveform, _LENGTH)[::SAMPLE_RATE][:count]
        raw = [
            self._session.run(None, {self._input: np.ascontiguousarray(windows[start : start + _TOGETHER])})[0]
            for start in range(0, len(windows), _TOGETHER)
        ]
        found = np.concatenate(raw).astype(np.float64)
        return Rating(*(float(np.polyval(scale, found[:, place]).mean()) for place, scale in enumerate(_SCALES)))
