"""Tone words: a voice that needs no synthesiser. Each letter is a short two-tone chord, each word ends in silence.

It is no speech, but it has what a speech translator must cope with: one symbol after the other without a mark between
them, and speakers that differ in pitch, tempo and timbre. For tests and for machines without espeak-ng.

Letters: N samples.
"""

from __future__ import annotations

import unicodedata

import numpy as np

_ALPHABET = "abcdefghijklmnopqrstuvwxyz'"
_LOW = 250.0 * 2 ** (np.arange(6) / 3)
_HIGH = 1100.0 * 2 ** (np.arange(5) / 3)


class Tones:
    """Speaks by letter; deterministic.

    Args:
        seed: unused; the interface of `Espeak`.
    """

    sample_rate = 16000

    def __init__(self, *, seed: int) -> None:
        self.seed = seed

    def speak(self, text: str, *, voice: str, rate: int, pitch: int, pitch_range: int) -> np.ndarray:
        """Speak `text`: (N,) int16 samples at `sample_rate`.

        Args:
            text: what to say; accents are dropped.
            voice: "tones+K"; K sets the balance of the two tones.
            rate: words per minute, counted at five letters a word.
            pitch: 0 to 100, moves all tones by up to 8 %.
            pitch_range: 0 to 100, how far the pitch falls over the sentence.
        """
        balance = 0.3 + 0.4 * (int(voice.rpartition("+")[2]) % 12) / 11
        step = int(self.sample_rate * 60 / (rate * 5) * 0.6)
        time = np.arange(step) / self.sample_rate
        envelope = np.minimum(1, np.minimum(np.arange(step), np.arange(step)[::-1]) / (0.15 * step))
        letters = unicodedata.normalize("NFD", text.lower())
        letters = [char for char in letters if char == " " or char in _ALPHABET]
        pieces = []
        for place, char in enumerate(letters):
            if char == " ":
                pieces.append(np.zeros(step))
                continue
            index = _ALPHABET.index(char)
            shift = (1 + 0.0016 * (pitch - 50)) * (1 - 0.0008 * pitch_range * place / max(1, len(letters)))
            low, high = _LOW[index % 6] * shift, _HIGH[index // 6] * shift
            wave = balance * np.sin(2 * np.pi * low * time) + (1 - balance) * np.sin(2 * np.pi * high * time)
            pieces.append(0.5 * envelope * wave)
        return np.round(32767 * np.concatenate([*pieces, np.zeros(step)])).astype(np.int16)
