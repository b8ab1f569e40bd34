"""Speaks a plan: the part of the corpus generator that runs in clean processes.

A plan is cut into chunks of fixed size. Each chunk is spoken by a fresh process that seeds the engine with the chunk's
number, because the engine keeps state: so audio does not depend on how many processes there are. Nothing here may
import torch; the processes fork.

Letters: N samples.
"""

from __future__ import annotations

import json
import multiprocessing
import zlib
from collections.abc import Callable
from functools import cache
from multiprocessing.connection import wait
from pathlib import Path
from typing import Any

import numpy as np
import soundfile

from .espeak import Espeak
from .tones import Tones

SAMPLE_RATE = 16000
CHUNK = 64
_HALF = 40
"""Inputs on either side that the resampling filter reads."""
ENGINES = {"espeak": Espeak, "tones": Tones}


@cache
def _kernel(parts: int = 8, half_width: int = _HALF, cutoff: float = 0.97) -> list[tuple[int, np.ndarray]]:
    """Taps that turn 441 samples into 320 (22,050 to 16,000 Hz), in `parts` blocks of outputs to skip zero taps.

    Each block: the first input it reads (counted from `half_width` before the 441), and (inputs, 320 / parts) taps of a
    Kaiser-windowed sinc.
    """
    scale = cutoff * 320 / 441
    blocks = []
    for places in np.split(np.arange(320) * (441 / 320), parts):
        begin = int(places[0]) - half_width
        inputs = np.arange(begin, int(places[-1]) + half_width + 1)
        distance = places[None] - inputs[:, None]
        window = np.i0(8.0 * np.sqrt(np.clip(1 - (distance / half_width) ** 2, 0, 1))) / np.i0(8.0)
        taps = scale * np.sinc(scale * distance) * np.where(np.abs(distance) < half_width, window, 0)
        blocks.append((begin + half_width, (taps / taps.sum(0)).astype(np.float32)))
    return blocks


def resample_22050(samples: np.ndarray) -> np.ndarray:
    """(N,) samples at 22,050 Hz -> (ceil(N * 320 / 441),) float32 samples at 16,000 Hz, polyphase."""
    blocks = -(-len(samples) // 441)
    padded = np.zeros((blocks + 1) * 441 + 2 * _HALF, np.float32)
    padded[_HALF : _HALF + len(samples)] = samples
    outputs = []
    for begin, taps in _kernel():
        frames = np.lib.stride_tricks.as_strided(padded[begin:], (blocks, len(taps)), (441 * 4, 4))
        outputs.append(frames @ taps)
    return np.concatenate(outputs, 1).reshape(-1)[: -(-len(samples) * 320 // 441)]


def _with_noise(samples: np.ndarray, snr: float, seed: int) -> np.ndarray:
    """Add noise with a spectrum that falls 3 dB an octave, `snr` dB below the speech."""
    random = np.random.default_rng(seed)
    spectrum = np.fft.rfft(random.standard_normal(len(samples)))
    spectrum /= np.sqrt(np.maximum(1, np.arange(len(spectrum))))
    noise = np.fft.irfft(spectrum, len(samples))
    power = float(np.mean(samples.astype(np.float64) ** 2)), float(np.mean(noise**2))
    return samples + noise * np.sqrt(power[0] / max(power[1], 1e-12) / 10 ** (snr / 10))


def _speak_chunk(lines: list[str], begin: int, out: Path, engine_name: str, seed: int) -> None:
    jobs = [json.loads(line) for line in lines]
    engine = ENGINES[engine_name](seed=zlib.crc32(f"{seed} {begin}".encode()) & 0x7FFFFFFF)
    lengths: dict[str, int] = {}
    for job in jobs:
        samples = engine.speak(job["text"], voice=job["voice"], rate=job["rate"], pitch=job["pitch"],
                               pitch_range=job["range"])  # fmt: skip
        if engine.sample_rate != SAMPLE_RATE:
            samples = resample_22050(samples)
        if job.get("snr") is not None:
            samples = _with_noise(samples, job["snr"], zlib.crc32(job["audio"].encode()))
        samples = np.clip(np.round(samples), -32768, 32767).astype(np.int16)
        soundfile.write(out / job["audio"], samples, SAMPLE_RATE, subtype="PCM_16", compression_level=0.2)
        lengths[job["audio"]] = len(samples)
    (out / f"lengths.{begin}.json").write_text(json.dumps(lengths))


def speak_plan(
    path: Path, out: Path, *, engine: str, seed: int, num_workers: int, progress: Callable[[int], Any]
) -> dict[str, int]:
    """Speak every line of the plan at `path` into FLAC files below `out`; return the samples of each file.

    Args:
        path: JSON lines with text, voice, rate, pitch, range, audio (path below `out`) and perhaps snr (dB).
        out: folder; the folders of the audio paths exist.
        engine: a key of `ENGINES`.
        seed: of the engine's noise.
        num_workers: processes at a time.
        progress: called with the number of files that were added.

    Raises:
        RuntimeError: a process failed (its message went to stderr).
    """
    with path.open(encoding="utf-8") as file:
        lines = file.readlines()
    total = len(lines)
    _kernel()  # built once, inherited by the forks
    context: Any = multiprocessing.get_context("fork" if "fork" in multiprocessing.get_all_start_methods() else "spawn")
    waiting = list(range(0, total, CHUNK))[::-1]
    running: dict[int, tuple[Any, int]] = {}
    lengths: dict[str, int] = {}
    try:
        while waiting or running:
            while waiting and len(running) < num_workers:
                begin = waiting.pop()
                process = context.Process(
                    target=_speak_chunk, args=(lines[begin : begin + CHUNK], begin, out, engine, seed), daemon=True
                )
                process.start()
                running[process.sentinel] = (process, begin)
            for sentinel in wait(list(running)):
                process, begin = running.pop(sentinel)  # pyright: ignore[reportArgumentType]
                process.join()
                if process.exitcode != 0:
                    raise RuntimeError(
                        f"the process that spoke lines {begin} to {begin + CHUNK} ended with {process.exitcode}"
                    )
                part = out / f"lengths.{begin}.json"
                added = json.loads(part.read_text())
                part.unlink()
                lengths |= added
                progress(len(added))
    finally:
        for process, _ in running.values():
            process.terminate()
    return lengths
