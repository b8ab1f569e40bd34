"""Both heads of one experiment, and the experiment without text: one word swaps the head, and each trains, is scored
and translates on tiny parts."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
from voxzoo.components.errors import UserError
from voxzoo.configs import check, compose
from voxzoo.configs.stages import active_stages
from voxzoo.datamodules.codes import read_codes
from voxzoo.tasks import SpeechToSpeechLM, SpeechToSpeechUnitY, load_run
from voxzoo.tasks.commands.cli import main
from voxzoo.tasks.units import read_units

HEADS = {
    "speech_to_speech_lm": ["first_pass", "units", "codec", "codes", "lm", "streams"],
    "speech_to_speech_unity": ["first_pass", "units", "vocoder", "second_pass"],
}
SHORT = "{search:{_target_:voxzoo.components.search.SearchOptions,beam_size:2,max_length:8}}"
TINY = [
    "data=tiny", "data.corpus.num_train=16", "data.corpus.num_valid=3", "data.corpus.num_test=3",
    "data.corpus.one_voice=true", "data.corpus.both_directions=true", "adaptor=stack", "tokenizer.vocab_size=90",
    "unit_extractor.num_units=8", "unit_extractor.max_frames=2000", "codec.num_codebooks=3", "codec.codebook_size=16",
    "codec.dim=8", "codec.width=16", "codec.hidden_dim=24", "codec.encoder_layers=1", "codec.decoder_layers=2",
    "speech_lm.dim=32", "speech_lm.ffn_dim=32", "speech_lm.num_layers=1",
    "stream_lm.dim=32", "stream_lm.ffn_dim=32", "stream_lm.num_layers=1", "trainer.max_steps=2",
    "trainer.val_check_interval=2", "logger=none", "stages.codec.set.task.codebooks=[1,3]",
    "stages.codec.set.task.free_steps=0",
]  # fmt: skip
OF_TEXT = [
    "speech_encoder=tiny", "text_seq2seq=tiny", "t2u=tiny", "vocoder=tiny", f"stages.first_pass.set.task={SHORT}",
]  # fmt: skip


@pytest.mark.parametrize("head", HEADS)
def test_one_word_swaps_the_head_and_what_both_read_stays(head: str):
    words = ["experiment=two_heads", f"task={head}"]
    assert active_stages(compose(words)) == HEADS[head]
    for name in HEADS[head]:
        assert check(compose(words, stage=name)) == []
    for name in ("first_pass", "units"):  # to the letter, but for where they lie: a folder serves both heads
        other = compose(["experiment=two_heads", "task=speech_to_speech_lm"], stage=name)
        assert compose(words, stage=name) == other


def test_the_textless_run_has_no_stage_that_reads_text():
    config = compose(["experiment=textless"])
    assert active_stages(config) == ["units", "codec", "codes", "lm", "streams"]
    with pytest.raises(UserError, match="stage 'first_pass' is left out of this run"):
        compose(["experiment=textless"], stage="first_pass")
    stages = {name: compose(["experiment=textless"], stage=name) for name in active_stages(config)}
    assert [name for name, one in stages.items() if check(one)] == []
    assert not any("tokenizer" in one.task for one in stages.values())
    assert stages["lm"].data.corpus.source_languages == ["fra"]


def trained(voxzoo: Callable[..., Any], tiny: list[str], root: Path, *words: str, steps: int = 2) -> tuple[Path, str]:
    cache = next(word for word in tiny if word.startswith("cache_dir"))
    small = [word if word != "trainer.max_steps=2" else f"trainer.max_steps={steps}" for word in TINY]
    done = voxzoo("train", *words, *small, cache, f"root={root}", "name=run", "--json", cwd=root, timeout=300)
    assert done.returncode == 0, done.stderr
    return root / "run", done.stderr


def scored(run: Path, capfd: pytest.CaptureFixture[str]) -> dict[str, Any]:
    capfd.readouterr()
    words = ["--split", "test_seen", "--limit", "4", "--recogniser", "none", "--quality", "none", "--json"]
    assert main(["evaluate", str(run), *words]) == 0
    return json.loads(capfd.readouterr().out)


def spoken(run: Path, folder: Path, capfd: pytest.CaptureFixture[str]) -> dict[str, Any]:
    clip = next(iter(load_run(run).datamodule(None, "test_seen").rows("test_seen"))).audio
    assert (
        main(["translate", str(run), str(clip), "--task", "s2st", "--to", "eng", "--out", str(folder), "--json"]) == 0
    )
    (row,) = json.loads(capfd.readouterr().out)["results"]
    samples, rate = soundfile.read(row["audio"])
    assert rate == 16000
    assert len(samples)
    return row


@pytest.mark.slow
@pytest.mark.parametrize("head", HEADS)
def test_each_head_trains_is_scored_and_translates(
    head: str, voxzoo: Callable[..., Any], tiny: list[str], tmp_path: Path, capfd: pytest.CaptureFixture[str]
):
    of_head = [f"stages.second_pass.set.task={SHORT}"] if head.endswith("unity") else []
    run, said = trained(voxzoo, tiny, tmp_path, "experiment=two_heads", f"task={head}", *OF_TEXT, *of_head)
    assert sorted(path.name for path in (run / "stages").iterdir()) == sorted(HEADS[head])
    assert "unit_extractor.encoder: " in said  # of the first pass
    scores = scored(run, capfd)
    assert scores["num_utterances"] == 4
    assert scores["duration_ratio"] > 0
    assert all(0 <= unit < 8 for unit in spoken(run, tmp_path / "out", capfd)["units"])
    assert isinstance(load_run(run).task, SpeechToSpeechLM if head.endswith("lm") else SpeechToSpeechUnitY)


@pytest.mark.slow
def test_a_language_without_text_is_spoken_and_its_codec_judged_first(
    voxzoo: Callable[..., Any], tiny: list[str], tmp_path: Path, capfd: pytest.CaptureFixture[str]
):
    words = ["data.corpus.source_languages=[fra]", "stages.codes.set.task.judged=3", "schedule=constant"]
    run, said = trained(voxzoo, tiny, tmp_path, "experiment=textless", *words)
    judged = said.index("[codes] resynthesis from codes: 6 recordings; mel distance ")
    assert "; unit error " in said[judged:].splitlines()[0]
    assert judged < said.index("[lm] begins")
    assert "valid: " in said[judged:]
    assert "unit_exact" in said[judged:]
    units = {name: dict(read_units(run / "stages" / "units" / f"{name}.jsonl")) for name in ("units", "source_units")}
    codes = {name: read_codes(run / "stages" / "codes" / f"{name}.jsonl") for name in ("codes", "source_codes")}
    for of, table in (("units", units), ("codes", codes)):
        ours, theirs = table[of], table[f"source_{of}"]
        assert len(ours) == len(theirs) == 2 * (16 + 3 + 3 + 3)
        for name in ours:  # the same recording is the target of a row and the source of the other way round
            turned = name.removesuffix("-rev") if name.endswith("-rev") else f"{name}-rev"
            assert np.array_equal(ours[name], theirs[turned])
    assert scored(run, capfd)["num_utterances"] == 4
    assert spoken(run, tmp_path / "out", capfd)["tgt_lang"] in ("eng", "en")
    # A codec and an extractor that a checkpoint brings are known when it is read, not before.
    _, said = trained(voxzoo, tiny, tmp_path, "experiment=textless", *words, "--stage", "lm", steps=4)
    assert "resuming from" in said
    strict = tmp_path / "strict"
    strict.mkdir()
    words.append("stages.codes.set.task.most_unit_error=1")
    with pytest.raises(AssertionError, match=r"task.most_unit_error=1: \d+\.\d % of the units do not come back"):
        trained(voxzoo, tiny, strict, "experiment=textless", *words)
