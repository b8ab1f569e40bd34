"""`SpokenPhrases`: makes the corpus once, then finds it again.

Training sentences, validation sentences and two test sets: `test_seen` by the voices of training, `test_unseen` by
other voices. No sentence occurs twice, so neither do translations.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import json
import os
import random
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, Literal

from ...components.errors import UserError
from ...components.lines import json_line
from . import espeak, synthesis
from .phrases import CURATED, LANGUAGES, WITH_COUNTRY, Phrase, countries, phrases

VERSION = 1
"""Raised when the same settings give another corpus."""

ACCENTS = {
    "spa": ("roa/es", "roa/es-419"),
    "fra": ("roa/fr", "roa/fr-BE"),
    "ita": ("roa/it",),
    "por": ("roa/pt-BR", "roa/pt"),
    "deu": ("gmw/de",),
}
SEEN = ("m1", "m2", "m3", "m4", "m5", "m6", "f1", "f2", "f3", "f4", "Andy", "Annie")
UNSEEN = ("m7", "m8", "f5", "Alicia", "Gene", "steph")
PITCHES = (20, 50, 80)
"""Of one voice on both sides: each variant at each pitch is a speaker. So far apart that a speaker encoder tells them
apart: 93 % of the English recordings are nearest to the Spanish ones of their own speaker, of 18; at 30, 50, 70 it
would be 81 %."""
_TARGET = {"target_rate": 150, "target_pitch": 50}


class SpokenPhrases:
    """Numbers, dates, times, prices, countries and languages, spoken in Spanish (and four more), with English text and
    speech.

    Args:
        root: folder of all corpora; each set of settings has a folder of its own below it.
        seed: of sentences and voices.
        num_train, num_valid, num_test: sentences of `train`, of `valid`, and of each test set.
        source_languages: any of spa, fra, ita, por, deu; sentences are dealt to them in turn.
        countries: how many countries, or None for every country that Babel can name (about 230; Spanish only).
        target_speech: also speak the English side, always in one voice. Without, it is made in half the time.
        target_voice, target_rate, target_pitch: espeak-ng voice of the English side, words a minute, 0 to 100.
        one_voice: the English side is spoken by the voice of the source: the same variant, pitch, range and rate, in
            the accent of `target_voice`. `speaker` is then the variant and its pitch, such as "f2-50": 36 of them in
            training, 18 others in `test_unseen`.
        both_directions: each sentence is there twice, the second time from English (its id ends in "-rev"); both rows
            name the same two files.
        noise_snr: lowest and highest signal-to-noise ratio in dB of noise added to the source; None for clean speech.
        held_out_pairs: share of (template, country) pairs that training never sees; they make up the extra split
            `test_held_out`.
        held_out_numbers: lowest and highest count that training never sees; they join `test_held_out`.
        voice: "espeak", or "tones" (no speech, needs no synthesiser).
        num_workers: processes, or None for one per usable core.

    Raises:
        UserError: an unknown language, more countries than can be named, settings that contradict each other, or a
            missing optional package.
    """

    def __init__(
        self,
        *,
        root: str,
        seed: int = 1,
        num_train: int = 8000,
        num_valid: int = 300,
        num_test: int = 300,
        source_languages: Sequence[str] = ("spa",),
        countries: int | None = len(CURATED),
        target_speech: bool = True,
        target_voice: str = "gmw/en-US+f2",
        target_rate: int = _TARGET["target_rate"],
        target_pitch: int = _TARGET["target_pitch"],
        one_voice: bool = False,
        both_directions: bool = False,
        noise_snr: Sequence[float] | None = None,
        held_out_pairs: float = 0.0,
        held_out_numbers: Sequence[int] | None = None,
        voice: Literal["espeak", "tones"] = "espeak",
        num_workers: int | None = None,
    ) -> None:
        unknown = [code for code in source_languages if code not in ACCENTS]
        if unknown or not source_languages:
            raise UserError(f"corpus.source_languages={list(source_languages)}: expected some of {', '.join(ACCENTS)}")
        if voice not in synthesis.ENGINES:
            raise UserError(f"corpus.voice={voice!r}: expected one of {', '.join(synthesis.ENGINES)}")
        for name, value, least in (("num_train", num_train, 1), ("num_valid", num_valid, 0), ("num_test", num_test, 0)):
            if value < least:
                raise UserError(f"corpus.{name}={value}: expected at least {least}")
        if not 0 <= held_out_pairs <= 0.5:
            raise UserError(f"corpus.held_out_pairs={held_out_pairs}: expected a share from 0 to 0.5")
        for name, pair in (("noise_snr", noise_snr), ("held_out_numbers", held_out_numbers)):
            if pair is not None and (len(pair) != 2 or pair[0] > pair[1]):
                raise UserError(f"corpus.{name}={list(pair)}: expected [lowest, highest]")
        if (one_voice or both_directions) and not target_speech:
            name = "one_voice" if one_voice else "both_directions"
            raise UserError(f"corpus.{name}=true needs the English side spoken: set corpus.target_speech=true")
        if both_directions and noise_snr is not None:
            raise UserError(
                f"corpus.noise_snr={list(noise_snr)} with corpus.both_directions=true: noise is of the source alone, "
                "and here each recording is a target too; leave one of them out"
            )
        for name, value in (("target_rate", target_rate), ("target_pitch", target_pitch)):
            if one_voice and value != _TARGET[name]:
                raise UserError(
                    f"corpus.{name}={value} with corpus.one_voice=true: the voice of the source speaks the English "
                    f"side too; leave out {name}"
                )
        self.root = Path(root)
        self.num_workers = num_workers
        self.settings: dict[str, Any] = {
            "seed": seed,
            "num_train": num_train,
            "num_valid": num_valid,
            "num_test": num_test,
            "source_languages": list(source_languages),
            "countries": countries,
            "target_speech": target_speech,
            "target_voice": target_voice if voice == "espeak" else "tones+0",
            "target_rate": target_rate,
            "target_pitch": target_pitch,
            "noise_snr": None if noise_snr is None else [float(value) for value in noise_snr],
            "held_out_pairs": held_out_pairs,
            "held_out_numbers": None if held_out_numbers is None else list(held_out_numbers),
            "voice": voice,
            # Corpora that were made before these came keep their names.
            **({"one_voice": list(PITCHES)} if one_voice else {}),
            **({"both_directions": True} if both_directions else {}),
        }

    @property
    def splits(self) -> tuple[str, ...]:
        """Names of the manifests."""
        held_out = self.settings["held_out_pairs"] or self.settings["held_out_numbers"]
        return ("train", "valid", "test_seen", "test_unseen", *(["test_held_out"] if held_out else []))

    @property
    def languages(self) -> tuple[str, ...]:
        """ISO 639-3 codes, English last."""
        return (*self.settings["source_languages"], "eng")

    @property
    def fingerprint(self) -> str:
        """Names everything that changes the corpus."""
        known = {**self.settings, "version": VERSION}
        for package in ("num2words", "babel", *(["espeakng-loader"] if self.settings["voice"] == "espeak" else [])):
            try:
                known[package] = importlib.metadata.version(package)
            except importlib.metadata.PackageNotFoundError:
                known[package] = None
        return hashlib.sha256(json.dumps(known, sort_keys=True).encode()).hexdigest()[:12]

    @property
    def folder(self) -> Path:
        """Where this corpus lies once it is prepared."""
        return self.root / self.fingerprint

    def manifests(self) -> dict[str, Path]:
        """Split name -> manifest path, whether prepared or not."""
        return {split: self.folder / f"{split}.jsonl" for split in self.splits}

    @property
    def is_prepared(self) -> bool:
        return (self.folder / "corpus.json").exists()

    def prepare(self) -> dict[str, Path]:
        """Make the corpus unless it is there; return split name -> manifest path.

        The corpus is made beside its folder and renamed as the last step, so a folder is complete or absent. Of several
        processes that want it at once one makes it, and the others wait.
        """
        if self.is_prepared:
            return self.manifests()
        if self.settings["voice"] == "espeak":
            espeak.require()
        self.root.mkdir(parents=True, exist_ok=True)
        with self._alone():
            if not self.is_prepared:
                self._prepare()
        return self.manifests()

    @contextmanager
    def _alone(self) -> Iterator[None]:
        """One process at a time, until it ends in whatever way; where a file system has no locks, all at once."""
        try:
            import fcntl
        except ImportError:  # Windows
            yield
            return
        folder = os.open(self.root, os.O_RDONLY)
        try:
            with suppress(OSError):
                fcntl.flock(folder, fcntl.LOCK_EX)
            yield
        finally:
            os.close(folder)

    def _prepare(self) -> None:
        self._remove_stale()
        making = Path(tempfile.mkdtemp(prefix=f".{self.fingerprint}.", dir=self.root))
        try:
            self._make(making)
            making.chmod(0o755)
            try:
                making.rename(self.folder)
            except OSError:
                if not self.is_prepared:
                    raise
        finally:
            shutil.rmtree(making, ignore_errors=True)

    def _remove_stale(self) -> None:
        for folder in self.root.glob(f".{self.fingerprint}.*"):
            if time.time() - folder.stat().st_mtime > 24 * 3600:
                shutil.rmtree(folder, ignore_errors=True)

    def _make(self, out: Path) -> None:
        begin = time.time()
        rows = {split: self._rows(split, chosen) for split, chosen in self._choose().items()}
        jobs = []
        voices = {row["id"]: row.pop("_voice") for items in rows.values() for row in items}
        for split, items in rows.items():
            (out / "audio" / split).mkdir(parents=True)
            for row in items:
                jobs.append({"audio": row["audio"], "text": row["src_text"], **voices[row["id"]]})
        if self.settings["target_speech"]:
            for split, items in rows.items():
                (out / "audio" / f"{split}.eng").mkdir()
                for row in items:
                    row["tgt_audio"] = f"audio/{split}.eng/{row['id']}.flac"
                    target = self._target_voice(voices[row["id"]])
                    jobs.append({"audio": row["tgt_audio"], "text": row["tgt_text"], **target})
        if self.settings.get("both_directions"):
            rows = {split: [each for row in items for each in (row, _reversed(row))] for split, items in rows.items()}
        plan = out / "plan.jsonl"
        plan.write_text("".join(json_line(job) + "\n" for job in jobs), encoding="utf-8")
        lengths = self._speak(plan, out, len(jobs))
        seconds = {}
        for split, items in rows.items():
            for row in items:
                row["duration"] = round(lengths[row["audio"]] / synthesis.SAMPLE_RATE, 6)
            seconds[split] = round(sum(row["duration"] for row in items), 1)
            text = "".join(json_line(row) + "\n" for row in items)
            (out / f"{split}.jsonl").write_text(text, encoding="utf-8")
        plan.unlink()
        about = {
            "settings": self.settings,
            "version": VERSION,
            "seconds": seconds,
            "made_in": round(time.time() - begin, 1),
        }
        (out / "corpus.json").write_text(json.dumps(about, indent=1))

    def _target_voice(self, source: dict[str, Any]) -> dict[str, Any]:
        """How the English side of a row is spoken whose source is spoken so."""
        known = self.settings
        if not known.get("one_voice"):
            return {"voice": known["target_voice"], "rate": known["target_rate"], "pitch": known["target_pitch"],
                    "range": 50}  # fmt: skip
        accent, variant = known["target_voice"].partition("+")[0], source["voice"].rpartition("+")[2]
        return {**{key: source[key] for key in ("rate", "pitch", "range")}, "voice": f"{accent}+{variant}"}

    def _choose(self) -> dict[str, list[Phrase]]:
        """Phrases of each split; no phrase twice."""
        known = self.settings
        rng = random.Random(known["seed"])
        names = countries(known["countries"], (*known["source_languages"], "eng"))
        pairs = [(template, name) for template in sorted(WITH_COUNTRY) for name in names]
        held_out = set(
            random.Random(f"{known['seed']} held out").sample(pairs, round(known["held_out_pairs"] * len(pairs)))
        )
        low, high = known["held_out_numbers"] or (1, 0)
        wanted = {"train": known["num_train"], "valid": known["num_valid"], "test_seen": known["num_test"],
                  "test_unseen": known["num_test"], "test_held_out": known["num_test"]}  # fmt: skip
        chosen: dict[str, list[Phrase]] = {split: [] for split in self.splits}
        for phrase in phrases(rng, names):
            new = (phrase.template, phrase.country) in held_out or low <= phrase.count <= high
            fits = ("test_held_out",) if new else self.splits
            split = next((name for name in fits if name in chosen and len(chosen[name]) < wanted[name]
                          and (new or name != "test_held_out")), None)  # fmt: skip
            if split is not None:
                chosen[split].append(phrase)
            if all(len(items) >= wanted[name] for name, items in chosen.items()):
                return chosen
        raise AssertionError("phrases() never ends")

    def _rows(self, split: str, chosen: list[Phrase]) -> list[dict[str, Any]]:
        known = self.settings
        rng = random.Random(f"{known['seed']} {split}")
        noise = random.Random(f"{known['seed']} {split} noise")  # apart, so that voices stay the same
        variants = UNSEEN if split == "test_unseen" else SEEN
        rows = []
        for index, phrase in enumerate(chosen):
            lang = known["source_languages"][index % len(known["source_languages"])]
            accent, variant = rng.choice(ACCENTS[lang]), rng.choice(variants)
            name = f"{split}_{index:05d}"
            voice: dict[str, Any] = {
                "voice": f"{accent}+{variant}",
                "rate": rng.randint(140, 210),
                "pitch": rng.randint(25, 75),
                "range": rng.randint(30, 70),
            }
            if known.get("one_voice"):
                voice |= {"pitch": rng.choice(PITCHES), "range": 50}
            if known["voice"] == "tones":
                voice["voice"] = f"tones+{variants.index(variant) + (split == 'test_unseen')}"
            if known["noise_snr"]:
                voice["snr"] = round(noise.uniform(*known["noise_snr"]), 1)
            rows.append({
                "id": name,
                "audio": f"audio/{split}/{name}.flac",
                "duration": 0.0,
                "src_lang": lang,
                "tgt_lang": "eng",
                "src_text": LANGUAGES[lang].say(phrase),
                "tgt_text": LANGUAGES["eng"].say(phrase),
                "speaker": _speaker(voice) if known.get("one_voice") else voice["voice"],
                "_voice": voice,
            })  # fmt: skip
        return rows

    def _speak(self, plan: Path, out: Path, total: int) -> dict[str, int]:
        from rich.progress import Progress

        workers = self.num_workers
        if not workers:
            workers = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
        command = [sys.executable, "-P", "-m", "voxzoo.datamodules.spoken_phrases", str(plan), str(out),
                   self.settings["voice"], str(self.settings["seed"]), str(workers)]  # fmt: skip
        threads = dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"), "1")
        with tempfile.TemporaryFile("w+") as errors, Progress(transient=True) as bar:
            task = bar.add_task(f"speaking {total} sentences", total=total)
            process = subprocess.Popen(
                command, stdout=subprocess.PIPE, stderr=errors, text=True, env={**os.environ, **threads}
            )
            try:
                assert process.stdout is not None
                for line in process.stdout:
                    bar.advance(task, int(line))
                code = process.wait()
            finally:
                process.terminate()
                process.wait()
            if code != 0:
                errors.seek(0)
                said = errors.read().strip().splitlines()
                reason = next((line for line in said if "UserError" in line), said[-1] if said else "no message")
                raise UserError(f"speaking the corpus failed (exit status {code}): {reason}")
        return json.loads((out / "lengths.json").read_text())


def _speaker(voice: dict[str, Any]) -> str:
    """Who speaks both sides: the variant and its pitch, whatever the accent."""
    return f"{voice['voice'].rpartition('+')[2]}-{voice['pitch']}"


def _reversed(row: dict[str, Any]) -> dict[str, Any]:
    """The row from the target to the source; `duration` is filled in by the audio."""
    turned = dict(row, id=f"{row['id']}-rev")
    for end in ("lang", "text"):
        turned[f"src_{end}"], turned[f"tgt_{end}"] = row[f"tgt_{end}"], row[f"src_{end}"]
    turned["audio"], turned["tgt_audio"] = row["tgt_audio"], row["audio"]
    return turned
