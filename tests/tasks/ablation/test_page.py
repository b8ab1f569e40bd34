"""The page of results as a file: nothing in it is HTML that a manifest or a system wrote, and it needs nothing else."""

from __future__ import annotations

import base64
import hashlib
import io
import json
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
import soundfile
import torch
from page_systems import HOSTILE, corpus, speech
from voxzoo.components.errors import UserError
from voxzoo.tasks.ablation import sounds
from voxzoo.tasks.ablation.differences import differences
from voxzoo.tasks.ablation.groups import fields_of, score_groups
from voxzoo.tasks.ablation.page import render, write_page
from voxzoo.tasks.ablation.report import report
from voxzoo.tasks.ablation.results import Run, compare, joined, tables_of
from voxzoo.tasks.commands.cli import main
from voxzoo.tasks.scoring.evaluation import Scored


class Seen(HTMLParser):
    """Elements with their attributes, the text of scripts and styles, and what is shown."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.blocks: list[tuple[str, str]] = []
        self.text = ""
        self._inside = ""
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        self._inside = tag

    def handle_endtag(self, tag: str) -> None:
        self._inside = ""

    def handle_data(self, data: str) -> None:
        if self._inside in ("script", "style"):
            self.blocks.append((self._inside, data))
        self.text += data

    @property
    def data(self) -> dict[str, Any]:
        """What the script reads."""
        return json.loads(next(text for _, text in self.blocks if text.lstrip().startswith("{")))


def seen(path: Path) -> Seen:
    return Seen(path.read_text(encoding="utf-8"))


def words(*paths: Path) -> list[str]:
    return [str(path) for path in paths]


@pytest.fixture(scope="module")
def hostile(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A page of texts, ids, fields, values and names that would like to be HTML."""
    folder = tmp_path_factory.mktemp("hostile")
    one, two = corpus(folder, 24, hostile=True)
    pairs = [f"<script>alert('a')</script>={one}", f"b&amp;<b>{{{{ 7 * 7 }}}}={two}"]
    references, title = str(folder / "references.jsonl"), "</title><script>alert('title')</script>"
    report([], pairs, references=references, out=folder / "page.html", title=title)
    return folder / "page.html"


def test_nothing_that_others_wrote_is_html(hostile: Path):
    page = seen(hostile)
    tags = [tag for tag, _ in page.elements]
    assert tags.count("script") == 2
    assert not {"i", "u", "b", "img", "iframe", "object"} & set(tags)
    assert all(not name.startswith("on") for _, attributes in page.elements for name in attributes)
    raw = hostile.read_text(encoding="utf-8")
    assert "alert(" in raw  # it is there, as text
    assert not re.search(
        "<script>alert|<img src=x|</script><script>alert|<i>speaker|<b>field|[\u2028\u2029\ud800]", raw
    )
    assert page.data["title"] == "</title><script>alert('title')</script>"
    assert page.data["systems"][1]["name"] == "b&amp;<b>{{ 7 * 7 }}"
    for text in HOSTILE:
        kept = text.replace("\x00", "")
        assert any(kept.split()[-1] in reference for reference in page.data["references"]), text
    assert "7 * 7" in page.text


def test_the_policy_lets_in_this_script_and_this_style_alone(hostile: Path):
    page = seen(hostile)
    (policy,) = (a["content"] for t, a in page.elements if t == "meta" and a.get("http-equiv"))
    assert policy is not None
    rules = dict(rule.strip().split(" ", 1) for rule in policy.split(";"))
    (script,) = (text for tag, text in page.blocks if tag == "script" and text.startswith('"use strict"'))
    (style,) = (text for tag, text in page.blocks if tag == "style")
    for name, text in (("script-src", script), ("style-src", style)):
        assert rules[name] == f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"
    assert rules["default-src"] == "'none'"
    assert rules["require-trusted-types-for"] == "'script'"
    assert not re.search(r"innerHTML|outerHTML|insertAdjacent|document\.write|eval\(|new Function", script)
    assert "</script" not in script
    assert "<!--" not in script


def test_the_page_needs_no_network(hostile: Path):
    page = seen(hostile)
    for _, attributes in page.elements:
        for name in ("src", "href", "data", "action", "srcset"):
            assert re.match(r"#|data:,$", attributes.get(name) or "#"), attributes
    script_and_style = "".join(text for _, text in page.blocks if not text.lstrip().startswith("{"))
    assert set(re.findall(r"https?://[^\"')\s]*", script_and_style)) == {"http://www.w3.org/2000/svg"}
    assert "@import" not in script_and_style
    assert "url(" not in script_and_style


def test_the_same_runs_give_the_same_bytes(tmp_path: Path):
    files = words(*corpus(tmp_path, 12, clips=2))
    for name in ("one", "two"):
        report([], files, references=str(tmp_path / "references.jsonl"), out=tmp_path / name)
    assert (tmp_path / "one").read_bytes() == (tmp_path / "two").read_bytes()


def test_the_page_says_what_was_scored(tmp_path: Path):
    files = words(*corpus(tmp_path, 30, systems=3, clips=3))
    answer = report([], files, references=str(tmp_path / "references.jsonl"), out=tmp_path / "page.html", clips=2)
    assert answer["systems"] == ["system0", "system1", "system2"]
    assert (answer["num_utterances"], answer["num_clips"]) == (30, 2)
    assert answer["bytes"] == (tmp_path / "page.html").stat().st_size
    page = seen(tmp_path / "page.html")
    data = page.data
    bleu = answer["results"]["scores"]["bleu"]["systems"]
    assert f"{bleu['system1']['score']:.2f}" in page.text
    (chrf,) = (score for score in data["scores"] if score["name"] == "chrf")
    assert all(0 <= value <= 100 for column in chrf["of"] for value in column)
    assert max(chrf["of"][0]) == 100
    for clip in data["clips"]:
        assert len(clip["systems"]) == 3
        samples, rate = soundfile.read(io.BytesIO(base64.b64decode(clip["systems"][2]["sound"])))
        assert abs(len(samples) / rate - 1) < 0.1
        assert base64.b64decode(clip["source"]["picture"])[8:12] == b"WEBP"
        assert clip["target"] is None


def rows(count: int, **fields: Any) -> list[Scored]:
    return [
        Scored(f"u{n}", "s2tt", "que", "spa", " ".join(["a", "b", "c"][: n % 3 + 1] * (n // 3 + 1)), **fields)
        for n in range(count)
    ]


def test_fields_make_groups_of_numbers_of_names_and_of_few():
    some = rows(60, speaker="one")
    known = {
        row.id: {
            "id": row.id, "gender": "fm"[n % 2], "age": 20 + n, "note": f"its own {n}", "tgt_text": "x",
            "town": f"town {min(n, 40)}", "same": 1, "hearing": "good" if n % 3 else None, "sex": "fm"[n % 2],
        }
        for n, row in enumerate(some)
    }  # fmt: skip
    fields, single = fields_of(some, known)
    found = {field.name: field for field in fields}
    assert list(found) == ["reference length", "gender", "age", "hearing"]
    assert single == ["note", "town"]
    assert found["gender"].labels == ["f", "m"]
    assert found["age"].labels[0] == "20 to 29"
    assert found["age"].ordered
    assert len(found["age"].labels) == 6
    assert [*found["age"].of.values()].count(0) == 10
    assert found["hearing"].labels == ["good", "(none)"]


def test_many_names_are_the_most_frequent_ones_and_others():
    some = rows(200)
    known = {row.id: {"speaker": f"s{n % 60}"} for n, row in enumerate(some)}
    (field,) = (field for field in fields_of(some, known)[0] if field.name == "speaker")
    assert len(field.labels) == 24
    assert field.labels[-1] == "(others)"
    assert set(field.of) == {row.id for row in some}


def test_a_group_has_the_score_of_its_utterances_alone():
    texts = rows(20)
    other = [Scored(f"v{n}", "s2tt", "ayr", "spa", "una casa blanca", hypothesis="una casa") for n in range(6)]
    for n, row in enumerate(texts):
        row.hypothesis = row.reference if n % 2 else "z"
    known = {row.id: {"even": ("yes", "no")[n % 2]} for n, row in enumerate([*texts, *other])}
    runs = {"one": [Run("one", rows=[*texts, *other])]}
    tables = tables_of(runs)
    (field,) = (field for field in fields_of([*texts, *other], known)[0] if field.name == "even")
    groups = dict(zip(field.labels, score_groups(tables, ["chrf"], field), strict=True))
    for label, group in groups.items():
        own = [row for row in [*texts, *other] if known[row.id]["even"] == label]
        alone = joined([*tables_of({"one": [Run("one", rows=own)]})["chrf"].values()])["one"][0].score
        assert group["scores"]["chrf"]["one"][0] == pytest.approx(alone)
        assert group["count"] == len(own)


def test_what_differs_between_configs(tmp_path: Path):
    runs = {}
    for name, rate in (("a", 1), ("b", 2)):
        config = f"name: {name}\nroot: r\nrun_dir: r/{name}\nseed: {rate}\n"
        config += f"data: {{seed: {rate}}}\nt2u: {{dim: {rate}}}\ntask: {{_target_: x, t2u: {{dim: {rate}}}}}\n"
        (tmp_path / f"{name}.yaml").write_text(config)
        runs[name] = [Run(name, "1", config=tmp_path / f"{name}.yaml")]
    runs["elsewhere"] = [Run("elsewhere")]
    assert differences(runs) == (["key", "a", "b"], [["t2u.dim", "1", "2"]])


def test_curves_and_failures_are_on_the_page(tmp_path: Path):
    from voxzoo.tasks.ablation.content import content_of

    points = [{"step": 2, "valid/loss": 3.0}, {"step": 4, "valid/loss": float("nan")}]
    runs = {
        "a": [Run("a", "1", metrics={"valid/loss": 1.0}, curves={"": points})],
        "b": [Run("b", "1", error="its <b>gradient</b> is NaN")],
    }
    results = compare(runs, "a")
    write_page(tmp_path / "page.html", content_of("t", runs, results, {}))
    page = seen(tmp_path / "page.html")
    assert page.data["curves"] == [
        {
            "stage": "", "name": "valid/loss",
            "lines": [{"system": 0, "name": "a", "seed": "1", "points": [[2, 3.0], [4, None]]}],
        }
    ]  # fmt: skip
    assert "failed: b seed=1: its <b>gradient</b> is NaN" in page.text


def test_files_of_other_systems_are_matched_as_score_matches_them(tmp_path: Path):
    corpus(tmp_path, 6)
    known = [json.loads(line) for line in (tmp_path / "references.jsonl").read_text().splitlines()]
    (tmp_path / "plain.txt").write_text("".join(f"{row['tgt_text']}\n" for row in known))
    (tmp_path / "back.tsv").write_text("id\ttext\n" + "".join(f"{r['id']}\t{r['tgt_text']}\n" for r in known[::-1]))
    files = words(tmp_path / "plain.txt", tmp_path / "back.tsv")
    answer = report([], files, references=str(tmp_path / "references.jsonl"), out=tmp_path / "page.html")
    scores = answer["results"]["scores"]["bleu"]["systems"]
    assert [scores[name]["score"] for name in ("plain", "back")] == pytest.approx([100, 100])
    data = seen(tmp_path / "page.html").data
    assert data["texts"][0] == data["texts"][1] == [row["tgt_text"] for row in known]
    assert "speaker" in [field["name"] for field in data["fields"]]


def run_folder(folder: Path, split: str = "test", count: int = 6, change: int = 0) -> Path:
    """What `train` and `evaluate` leave, as far as a page reads it."""
    written = folder / "evaluation"
    written.mkdir(parents=True)
    lines = [
        {"id": f"u{n}", "task": "s2tt", "src_lang": "que", "tgt_lang": "spa", "reference": f"una casa {n}",
         "hypothesis": f"una {'casa' if n >= change else 'cosa'} {n}"}
        for n in range(count)
    ]  # fmt: skip
    (written / f"{split}.hypotheses.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    (written / f"{split}.json").write_text(json.dumps({"tasks": {"s2tt": {}}, "num_dropped": 0}))
    done = {"steps": 5, "parameters": 7, "trainable": 6, "validations": [{"step": 5, "valid/loss": 1.5}]}
    (folder / "done.json").write_text(json.dumps(done))
    (folder / "config.yaml").write_text(f"name: x\nroot: y\nrun_dir: y/x\nseed: 1\nwidth: {change}\ntask: t\n")
    return folder


def test_runs_of_one_name_are_seeds_and_the_rest_are_systems(tmp_path: Path):
    folders = [run_folder(tmp_path / name, change=change) for name, change in (("a", 0), ("b", 2), ("c", 4))]
    named = [f"two={folders[0]}", f"two={folders[1]}", str(folders[2])]
    answer = report(named, out=tmp_path / "page.html", base="c")
    assert answer["results"]["base"] == "c"
    assert {name: one["num_runs"] for name, one in answer["results"]["scores"]["bleu"]["systems"].items()} == {
        "two": 2,
        "c": 1,
    }
    page = seen(tmp_path / "page.html")
    assert [line["seed"] for line in page.data["curves"][0]["lines"]] == ["1", "2", ""]
    assert "width" in page.text


def test_utterances_that_not_all_have_are_said(tmp_path: Path):
    folders = words(run_folder(tmp_path / "a"), run_folder(tmp_path / "b", count=4))
    answer = report(folders, out=tmp_path / "page.html")
    assert "scores are of the 4 utterances that all systems have; there are up to 6" in answer["results"]["notes"]
    assert answer["num_utterances"] == 6


@pytest.mark.parametrize(
    ("call", "said"),
    [
        ([], "nothing to report: give folders of runs, or --hypotheses FILE"),
        (["none"], "none: no such folder"),
        (["empty"], "empty: nothing was scored; `voxzoo evaluate empty --split test` does it"),
        (["x.txt"], "x.txt: a file; give it by --hypotheses"),
        (["a", "a"], "a: given twice"),
        (["a", "--split", "valid"], "a: --split valid; scored were test"),
        (["a", "--task", "asr"], "a: --task asr: no such rows; its tasks are s2tt"),
        (["several"], "several: --split: choose one; scored were one, two"),
        (["a", "--base", "z"], "--base z: no such system; there are a"),
        (["a", "--clips", "-1"], "--clips -1: expected 0 or more"),
        (["a", "--hypotheses", "b"], "b: a folder; runs stand in front of --hypotheses"),
        (["--hypotheses", "x.txt"], "x.txt: plain text has no ids; --references FILE says what its lines are"),
        (["--hypotheses", "gone.txt"], "gone.txt: no such file"),
        (["--hypotheses", "x.txt", "--references", "r.txt"], "x.txt has 2 lines and r.txt 3"),
        (["a", "--references", "r.txt"], "--references r.txt: is plain text, and runs are matched by id"),
        (["a", "--references", "other.tsv"], "a: none of its utterances is in --references other.tsv"),
        (["a", "--hypotheses", "z.tsv", "--references", "other.tsv"], "1 id not in other.tsv: z1"),
        (["a", "unlike"], "unlike: another reference of 'u0' than a"),
        (["a", "apart"], "no utterance with a reference is in all of a, apart"),
        (["ablation"], "ablation: an ablation, whose page is ablation/page.html"),
        (["a", "--out", "a"], "a"),
    ],
)  # fmt: skip
def test_what_cannot_be_reported_is_said_in_a_line(call, said, tmp_path: Path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    for name in ("a", "b"):
        run_folder(Path(name))
    run_folder(Path("several"), "one")
    for kind in (".json", ".hypotheses.jsonl"):
        source = Path(f"several/evaluation/one{kind}")
        source.with_name(f"two{kind}").write_bytes(source.read_bytes())
    for name, what in (("unlike", "una casa 0"), ("apart", '"id": "u')):
        path = run_folder(Path(name)) / "evaluation" / "test.hypotheses.jsonl"
        path.write_text(path.read_text().replace(what, "dos casas 0" if name == "unlike" else '"id": "w'))
    Path("empty").mkdir()
    Path("ablation/points").mkdir(parents=True)
    Path("ablation/table.json").write_text("{}")
    Path("x.txt").write_text("uno\ndos\n")
    Path("r.txt").write_text("uno\ndos\ntres\n")
    Path("other.tsv").write_text("id\ttgt_text\nz\tuno\n")
    Path("z.tsv").write_text("id\ttext\nz\tuno\nz1\tdos\n")
    assert main(["report", *call]) == 1
    error = capsys.readouterr().err
    assert said in error
    assert len(error.strip().splitlines()) == 1


def test_a_clip_that_is_gone_is_said_and_the_rest_is_heard(tmp_path: Path):
    files = corpus(tmp_path, 8, clips=3)
    (tmp_path / "audio" / "1.0.wav").unlink()
    answer = report([], words(*files), references=str(tmp_path / "references.jsonl"), out=tmp_path / "page.html")
    assert answer["num_clips"] == 3
    assert any("1 clips could not be read" in note for note in answer["notes"])


def test_opus_is_the_same_each_time_and_is_what_was_said(tmp_path: Path):
    speech(tmp_path / "one.wav", 2.0, 220)
    one, other = (sounds.clip_of(tmp_path / "one.wav") for _ in range(2))
    assert one == other
    samples, rate = soundfile.read(io.BytesIO(base64.b64decode(one["sound"])))
    assert len(samples) / rate == pytest.approx(2, abs=0.05)
    spoken = torch.from_numpy(soundfile.read(tmp_path / "one.wav")[0])
    spectra = [torch.stft(x[:31000], 512, window=torch.hann_window(512).double(), return_complex=True).abs().mean(1)
               for x in (torch.from_numpy(samples[:: rate // 16000]), spoken)]  # fmt: skip
    assert torch.nn.functional.cosine_similarity(*spectra, dim=0) > 0.95


def test_long_speech_is_cut_and_says_so(tmp_path: Path):
    speech(tmp_path / "long.wav", sounds.SECONDS + 3, 220)
    clip = sounds.clip_of(tmp_path / "long.wav")
    assert clip["cut"]
    assert clip["seconds"] == sounds.SECONDS


@pytest.mark.slow
def test_six_systems_with_twelve_clips_stay_under_five_megabytes(tmp_path: Path):
    files = corpus(tmp_path, 40, systems=6, clips=12)
    for path in (tmp_path / "audio").iterdir():
        speech(path, 5.0, 200 + len(path.name))
    report([], words(*files), references=str(tmp_path / "references.jsonl"), out=tmp_path / "page.html")
    data = seen(tmp_path / "page.html").data
    assert sum(clip is not None for one in data["clips"] for clip in [one["source"], *one["systems"]]) == 84
    assert (tmp_path / "page.html").stat().st_size < 5e6


def test_a_template_that_misses_something_fails():
    from jinja2 import UndefinedError

    with pytest.raises(UndefinedError):
        render({"data": {}, "title": "x"})


def test_report_needs_a_file_it_can_write(tmp_path: Path):
    with pytest.raises((UserError, OSError)):
        report([], words(*corpus(tmp_path, 3)), references=str(tmp_path / "references.jsonl"), out=tmp_path)
