"""Writing the codec frames of a corpus, and saying what of the speech they keep: the stage before a speech LM.

Letters: B batch, N samples, U units.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

import torch
from torch import Tensor

from ..components.errors import UserError
from ..components.losses.reconstruction import MelLoss
from ..components.roles import Codec, UnitExtractor
from ..components.search import SearchOptions
from ..components.types import Batch, Loss, Padded, Prediction, Statistic
from ..datamodules.audio import SAMPLE_RATE, AudioFiles
from ..datamodules.manifest import Utterance
from .checkpoints.files import write_unstepped
from .distributed.devices import device_of_trainer
from .processes.console import say
from .scoring.normalise import normalise
from .scoring.recogniser import Recogniser
from .scoring.text import error_rate_for
from .scoring.unit_errors import Agreement, agreement
from .scoring.voices import SpeakerEncoder, similarity
from .task import Task
from .units import Sides, extract_codes, sides


class WriteCodes(Task):
    """Writes `codes.jsonl` for all splits, and with `column=both` also `source_codes.jsonl`; then decodes some of the
    validation speech from its codes and says what is lost: a speech LM speaks no better than that.

    Args:
        codec: a trained one.
        unit_extractor: hears the words in the place of a recogniser: units of what comes back against those of the
            recording; None: not measured.
        column: which speech of the manifest: `tgt_audio`, `audio` or `both`.
        num_codebooks: streams that are written; null: all.
        judged: recordings of the validation set that are decoded again.
        recogniser: `base` or `tiny.en` (extra `eval`), for a word error rate of rows with texts; null: none.
        most_unit_error: % of the units; more stops the run here. null: never.
    """

    needs = frozenset({"target_speech"})
    modes = frozenset()
    roles = ("codec", "unit_extractor")

    def __init__(
        self,
        *,
        codec: Codec,
        unit_extractor: UnitExtractor | None = None,
        column: Sides = "both",
        num_codebooks: int | None = None,
        judged: int = 40,
        recogniser: str | None = None,
        most_unit_error: float | None = None,
    ) -> None:
        super().__init__()
        self.codec, self.unit_extractor = codec, unit_extractor
        self.column: Sides = column
        self.num_codebooks, self.judged = num_codebooks, judged
        self.recogniser, self.most_unit_error = recogniser, most_unit_error

    def run_once(self, data: Any, folder: Path) -> dict[str, Any]:
        """Judge, write, save; returns statistics. What is already written is not made again.

        Raises:
            UserError: units that come back are worse than `most_unit_error` allows.
        """
        self.eval().to(device_of_trainer(self.config.get("trainer") or {}))
        audio: AudioFiles = getattr(data, "audio", None) or AudioFiles()
        split = "valid" if "valid" in data.splits() else data.splits()[0]
        quality = self.judge(data.rows(split)[: self.judged], audio)
        say("resynthesis from codes: " + "; ".join(_shown(quality)))
        error = quality.get("unit_error")
        if self.most_unit_error is not None and error is not None and error > self.most_unit_error:
            raise UserError(
                f"task.most_unit_error={self.most_unit_error}: {error:.1f} % of the units do not come back from the "
                "codes; train the codec longer, or give it more codebooks"
            )
        rows = [row for split in data.splits() for row in data.rows(split)]
        written: dict[str, Any] = {}
        for name, column in sides("codes", self.column).items():
            other = folder / "codes.jsonl" if written else None
            written[name] = extract_codes(
                self.codec, rows, column, folder / f"{name}.jsonl", self.num_codebooks, audio=audio, other=other
            )
        self.to("cpu")
        write_unstepped(self, folder / "checkpoints" / "last.ckpt")
        paths = {name: str(folder / f"{name}.jsonl") for name in written}
        return {"task": "WriteCodes", **paths, "resynthesis": quality, "extract": written["codes"]}

    @torch.inference_mode()
    def judge(self, rows: Sequence[Utterance], audio: AudioFiles) -> dict[str, float]:
        """What of the recordings of some rows comes back from their codes.

        Returns:
            `utterances`; `mel`, the mean distance of log-mels of five windows; `unit_error`, % of the units (runs
            merged), and `unit_exact`, % of the utterances whose units all come back; `similarity`, cosine of the
            speaker embeddings, where the encoder is installed; `wer` and that of the recordings, `wer_of_recordings`.
        """
        sources = [one for row in rows for one in _recordings(row, self.column)]
        if not sources:
            return {"utterances": 0}
        distance = MelLoss(SAMPLE_RATE).to(self.device)
        mels: list[float] = []
        units: list[Agreement] = []
        spoken: list[tuple[Tensor, Tensor]] = []
        for path, *_ in sources:
            samples = audio.load(path, SAMPLE_RATE).to(self.device)
            speech = Padded(samples[None], torch.tensor([len(samples)]))
            codes = self.codec.encode(speech, self.num_codebooks, SAMPLE_RATE)
            made = self.codec.decode(codes, SAMPLE_RATE, self.codec.loudness(speech, SAMPLE_RATE)).data[0]
            again = (made if made.dim() == 1 else made.mean(1))[: len(samples)].clamp(-1, 1)
            other = Padded(again[None], torch.tensor([len(again)]))
            mels.append(float(distance(other, speech, torch.ones(1, device=self.device)).total))
            if self.unit_extractor is not None:
                both = [self.unit_extractor(each).unpad()[0].tolist() for each in (speech, other)]
                units.append(agreement(both[1], both[0]))
            spoken.append((samples.cpu(), again.cpu()))
        found: dict[str, float] = {"utterances": len(sources), "mel": fmean(mels)}
        if units:
            found["unit_error"] = 100 * sum(one.errors for one in units) / max(sum(one.size for one in units), 1)
            found["unit_exact"] = 100 * fmean(one.errors == 0 for one in units)
        return {**found, **_voices(spoken), **self._words([one[1:] for one in sources], spoken)}

    def _words(self, texts: Sequence[tuple[str, str]], spoken: Sequence[tuple[Tensor, Tensor]]) -> dict[str, float]:
        """Word error rates, of all languages together, of what came back and of the recordings."""
        known = [place for place, (text, _) in enumerate(texts) if text.strip()]
        if self.recogniser is None or not known:
            return {}
        listener = Recogniser(self.recogniser)  # pyright: ignore[reportArgumentType]
        found: dict[str, float] = {}
        for name, which in (("wer", 1), ("wer_of_recordings", 0)):
            rates = []
            for lang in sorted({texts[place][1] for place in known}):
                own = [place for place in known if texts[place][1] == lang]
                heard = listener.transcribe([spoken[place][which] for place in own], lang)
                said = [normalise(texts[place][0], lang) for place in own]
                metric = error_rate_for(lang)
                sums = metric.statistics([normalise(text, lang) for text in heard], said).sum(0)
                rates.append(float(metric.score(sums)))
            found[name] = fmean(rates)
        return found

    def measure(self, batch: Batch) -> tuple[dict[str, Loss], dict[str, Statistic]]:
        raise RuntimeError("codes are written, not learned")

    def predict(
        self, batch: Batch, *, task: str | None = None, options: SearchOptions | None = None
    ) -> list[Prediction]:
        raise RuntimeError("a codec translates nothing; use `voxzoo codec`")


def _recordings(row: Utterance, column: Sides) -> list[tuple[Any, str, str]]:
    """Source, text and language of each recording of a row in a column."""
    both = {
        "tgt_audio": (row.tgt_audio, row.tgt_text or "", row.tgt_lang or ""),
        "audio": (row.audio, row.src_text or "", row.src_lang or ""),
    }
    return [one for name, one in both.items() if column in (name, "both") and one[0]]


def _voices(spoken: Sequence[tuple[Tensor, Tensor]]) -> dict[str, float]:
    try:
        encoder = SpeakerEncoder()
    except UserError:  # not installed
        return {}
    points = [encoder.embed([one[which] for one in spoken]) for which in (1, 0)]
    return {"similarity": fmean(similarity(ours, theirs) for ours, theirs in zip(*points, strict=True))}


def _shown(quality: dict[str, float]) -> list[str]:
    names = {
        "utterances": "{:.0f} recordings", "mel": "mel distance {:.3f}", "unit_error": "unit error {:.1f} %",
        "unit_exact": "all units right {:.0f} %", "similarity": "speaker similarity {:.3f}", "wer": "WER {:.1f} %",
        "wer_of_recordings": "WER of the recordings {:.1f} %",
    }  # fmt: skip
    return [form.format(quality[name]) for name, form in names.items() if name in quality]
