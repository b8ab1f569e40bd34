"""espeak-ng through ctypes, loaded at run time from the optional package espeakng-loader (GPL-3.0-or-later).

Letters: N samples.
"""

from __future__ import annotations

import ctypes
from pathlib import Path

import numpy as np

from ...components.errors import UserError

_RATE, _PITCH, _RANGE = 1, 3, 4
_SYNCHRONOUS = 2
_UTF8 = 1
_CALLBACK = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.POINTER(ctypes.c_short), ctypes.c_int, ctypes.c_void_p)


def require() -> None:
    """Raise UserError where the synthesiser is not installed."""
    try:
        import espeakng_loader  # noqa: F401
    except ImportError:
        raise UserError(
            "the spoken_phrases corpus with voice=espeak needs the package 'espeakng_loader': pip install voxzoo[demo]"
            " (or set voice=tones, which needs no synthesiser)"
        ) from None


class Espeak:
    """One engine. It keeps state from sentence to sentence, so audio is reproducible only for a fresh process that
    speaks the same sentences in the same order after `seed`.

    Args:
        seed: of the engine's noise generator.
    """

    sample_rate = 22050

    def __init__(self, *, seed: int) -> None:
        require()
        import espeakng_loader

        self._library = ctypes.CDLL(espeakng_loader.get_library_path())
        data = Path(espeakng_loader.get_data_path())
        rate = self._library.espeak_Initialize(_SYNCHRONOUS, 2000, str(data.parent).encode(), 0)
        if rate != self.sample_rate:
            raise UserError(
                f"espeak-ng did not start with the data in {data} (answer {rate}); reinstall espeakng-loader"
            )
        self._library.espeak_ng_SetRandSeed(ctypes.c_long(seed))
        self._chunks: list[np.ndarray] = []
        self._callback = _CALLBACK(self._collect)  # kept: ctypes does not hold a reference
        self._library.espeak_SetSynthCallback(self._callback)
        self._voice = ""

    def _collect(self, samples, count: int, events) -> int:
        if samples and count > 0:
            self._chunks.append(np.ctypeslib.as_array(samples, (count,)).copy())
        return 0

    def speak(self, text: str, *, voice: str, rate: int, pitch: int, pitch_range: int) -> np.ndarray:
        """Speak `text`: (N,) int16 samples at `sample_rate`.

        Args:
            text: what to say.
            voice: identifier and variant, such as "roa/es+f2".
            rate: words per minute.
            pitch, pitch_range: 0 to 100.
        """
        if voice != self._voice:
            if self._library.espeak_SetVoiceByName(voice.encode()) != 0:
                raise UserError(f"espeak-ng has no voice {voice!r}; expected an identifier such as roa/es+f2")
            self._voice = voice
        for name, value in ((_RATE, rate), (_PITCH, pitch), (_RANGE, pitch_range)):
            self._library.espeak_SetParameter(name, value, 0)
        self._chunks = []
        encoded = text.encode()
        self._library.espeak_Synth(encoded, len(encoded) + 1, 0, 0, 0, _UTF8, None, None)
        return np.concatenate(self._chunks) if self._chunks else np.zeros(0, np.int16)
