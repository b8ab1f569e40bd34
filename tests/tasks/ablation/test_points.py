"""Words of a sweep and the points that they are."""

from __future__ import annotations

import pytest
from voxzoo.components.errors import UserError
from voxzoo.tasks.ablation.points import points_of


def words(points):
    return [(point.system, point.seed, point.words) for point in points]


def test_all_combinations_the_first_values_first():
    points = points_of(["experiment=x", "adaptor=conformer,none", "lr=1e-3,1e-4"])
    assert [point.system for point in points] == [
        "adaptor=conformer lr=0.001",
        "adaptor=conformer lr=0.0001",
        "adaptor=none lr=0.001",
        "adaptor=none lr=0.0001",
    ]
    assert points[1].words == ("experiment=x", "adaptor=conformer", "lr=0.0001")


def test_seeds_repeat_a_system():
    points = points_of(["adaptor=conformer,none", "seed=range(1,4)"])
    assert [(point.system, point.seed) for point in points] == [
        (system, seed) for system in ("adaptor=conformer", "adaptor=none") for seed in "123"
    ]
    assert points[4].words == ("adaptor=none", "seed=2")
    assert points[4].name == "adaptor=none seed=2"


def test_one_key_at_a_time():
    points = points_of(["adaptor=conformer,none,stack", "lr=1,2"], around=True)
    assert [point.system for point in points] == [
        "adaptor=conformer lr=1",
        "adaptor=none lr=1",
        "adaptor=stack lr=1",
        "adaptor=conformer lr=2",
    ]


def test_choices_of_a_group_also_of_ones_own(tmp_path):
    (tmp_path / "adaptor").mkdir()
    (tmp_path / "adaptor" / "mine.yaml").write_text("_target_: x\n")
    every = [p.system for p in points_of(["adaptor=*"], config_dirs=[str(tmp_path)])]
    assert "adaptor=mine" in every
    assert "adaptor=conformer" in every
    assert [p.system for p in points_of(["adaptor=glob(conv*)"])] == ["adaptor=conv"]
    assert "adaptor=none" not in [p.system for p in points_of(["adaptor=glob(*,exclude=none)"])]


def test_lists_and_quoted_commas_are_one_value():
    assert [p.system for p in points_of(["a=[1,2]", "b='x,y'"])] == ["base"]
    assert [p.system for p in points_of(["a=[1,2],[3]"])] == ["a=[1,2]", "a=[3]"]


def test_named_points(tmp_path):
    file = tmp_path / "points.yaml"
    file.write_text(
        "base:\nwide: [speech_encoder.dim=256]\nfast:\n  optim.lr: 1.0e-3\n  data.train: 'a b.jsonl'\n"
        "  trainer.x: null\n  freeze: {adaptor: true}\n"
    )
    points = points_of(["experiment=x", "seed=1,2"], named=file)
    assert [(point.system, point.seed) for point in points] == [
        (system, seed) for system in ("base", "wide", "fast") for seed in "12"
    ]
    assert points[0].words == ("experiment=x", "seed=1")
    assert points[2].words == ("experiment=x", "speech_encoder.dim=256", "seed=1")
    assert points[4].words == (
        "experiment=x", "optim.lr=0.001", "data.train='a b.jsonl'", "trainer.x=null", "freeze={adaptor:true}", "seed=1",
    )  # fmt: skip


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (["a=interval(0,1)"], "an interval has no end"),
        (["a=1,2", "a=3"], "a is swept by another word"),
        (["a=1,2", "a=3,4"], "swept twice"),
        (["a=1,1"], "two points are 'a=1'"),
        (["nothing=*"], "nothing is no group of choices"),
        (["adaptor=glob(zzz*)"], "none of the choices of adaptor fits"),
        (["a"], "does not parse"),
        (["a=range(0,100000)"], "more than 2000 points"),
        (["a=range(0,100)", "b=range(0,100)"], "more than 2000 points"),
    ],
)
def test_what_is_no_sweep_is_said(given, said):
    with pytest.raises(UserError, match=said):
        points_of(given)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "is empty"),
        ("{}", "is empty"),
        ('a: ["x=1,2"]', "one value"),
        ("a: [1]", "expected a list"),
        ("- a", "points.yaml"),
    ],
)
def test_a_file_that_names_no_points_is_said(text, said, tmp_path):
    file = tmp_path / "points.yaml"
    file.write_text(text)
    with pytest.raises(UserError, match=said):
        points_of([], named=file)
