"""Links out of a run: those of a point to the stages that it shares, and all others."""

from __future__ import annotations

from pathlib import Path

import pytest
from voxzoo.components.errors import UserError
from voxzoo.tasks import prepare, train
from voxzoo.tasks.runs.folder import is_of_ablation, require_no_way_out

KEY, OTHER = "0123456789ab", "ba9876543210"


@pytest.fixture
def point(tmp_path: Path) -> Path:
    """A point as `voxzoo ablate` lays it out: two stages, of which the first is shared."""
    run = tmp_path / "sweep" / "points" / KEY
    (run / "stages").mkdir(parents=True)
    for stage in ("first_pass", "second_pass"):
        (tmp_path / "sweep" / "stages" / f"{stage}-{OTHER}" / "checkpoints").mkdir(parents=True)
        (run / "stages" / stage).symlink_to(f"../../../stages/{stage}-{OTHER}")
    return run


def test_a_point_may_be_written_through_its_own_links_wherever_it_is_reached(point: Path, tmp_path: Path):
    require_no_way_out(point)
    require_no_way_out(point / "stages" / "first_pass")
    (tmp_path / "elsewhere").symlink_to(point.parents[1])
    require_no_way_out(tmp_path / "elsewhere" / "points" / KEY)
    (tmp_path / "alone").symlink_to(point)
    require_no_way_out(tmp_path / "alone")
    # The whole of the ablation may be moved.
    point.parents[1].rename(tmp_path / "moved")
    require_no_way_out(tmp_path / "moved" / "points" / KEY)


FOREIGN = {
    "to another stage": ("stages/first_pass", f"../../../stages/second_pass-{OTHER}"),
    "to a name of no key": ("stages/first_pass", "../../../stages/first_pass-mine"),
    "to all stages": ("stages/first_pass", "../../../stages"),
    "to another ablation": ("stages/first_pass", f"../../../../other/stages/first_pass-{OTHER}"),
    "absolute": ("stages/first_pass", "{top}/sweep/stages/first_pass-" + OTHER),
    "to a victim": ("stages/first_pass", "{top}/victim"),
    "beside the stages": ("first_pass", f"../../stages/first_pass-{OTHER}"),
    "deeper": ("stages/own/first_pass", f"../../../../stages/first_pass-{OTHER}"),
    "a file": ("done.json", f"../../stages/first_pass-{OTHER}/done.json"),
}


@pytest.mark.parametrize("kind", FOREIGN)
def test_other_links_are_refused(kind: str, point: Path, tmp_path: Path):
    name, target = FOREIGN[kind]
    (tmp_path / "victim").mkdir()
    path = point / name
    path.parent.mkdir(exist_ok=True)
    path.unlink(missing_ok=True)
    path.symlink_to(target.format(top=tmp_path))
    with pytest.raises(UserError, match=f"{name}: a symbolic link that leads out of the run, to {tmp_path}"):
        require_no_way_out(point)


def test_a_stage_that_is_shared_has_no_way_out_either(point: Path, tmp_path: Path):
    stage = tmp_path / "sweep" / "stages" / f"first_pass-{OTHER}"
    (stage / "checkpoints" / "last.ckpt").symlink_to(tmp_path / "victim")
    with pytest.raises(UserError, match=r"stages/first_pass/checkpoints/last\.ckpt: a symbolic link that leads out"):
        require_no_way_out(point)
    # Nor is it a link itself.
    (stage / "checkpoints" / "last.ckpt").unlink()
    stage.rename(tmp_path / "victim")
    stage.symlink_to(tmp_path / "victim")
    with pytest.raises(UserError, match=f"stages/first_pass: a symbolic link that leads out of the run, to {tmp_path}"):
        require_no_way_out(point)


def test_a_run_that_is_no_point_has_no_such_links(point: Path, tmp_path: Path):
    """Unpacked beside other folders, a run of somebody else's could name them."""
    run = tmp_path / "sweep" / "downloads" / KEY
    run.parent.mkdir()
    point.rename(run)
    with pytest.raises(UserError, match="leads out of the run"):
        require_no_way_out(run)


def test_a_stage_by_itself_is_written_through_no_other_link(tmp_path: Path, tiny: list[str]):
    (tmp_path / "victim").mkdir()
    (tmp_path / "run" / "stages").mkdir(parents=True)
    (tmp_path / "run" / "stages" / "first_pass").symlink_to(tmp_path / "victim")
    words = ["experiment=quickstart", "t2u=none", *tiny, f"root={tmp_path}", "name=run"]
    for call in (train, prepare):
        with pytest.raises(
            UserError, match=f"stages/first_pass: a symbolic link that leads out of the run, to {tmp_path}"
        ):
            call(words, stage="first_pass")
    assert list((tmp_path / "victim").iterdir()) == []


def test_which_folders_are_named_by_what_decides_their_result(point: Path, tmp_path: Path):
    assert is_of_ablation(point)
    assert is_of_ablation(point / "stages" / "first_pass")
    for name in ("sweep/points/mine", "runs/quickstart", "runs/quickstart/stages/first_pass", f"runs/{KEY}"):
        assert not is_of_ablation(tmp_path / name)
