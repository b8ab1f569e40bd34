"""The contract of data, and what is its own."""

import tempfile
from pathlib import Path

from voxzoo.components import Fbank
from voxzoo.datamodules import check_data
from voxzoo.tasks.templates.clips import write_clips

from .audiofolder import MineData


def test_contract():
    with tempfile.TemporaryDirectory() as folder:
        write_clips(folder)
        check_data(lambda: MineData(root=folder, batch_size=4, frontend=Fbank()))


def test_rows_of_metadata():
    with tempfile.TemporaryDirectory() as folder:
        write_clips(folder)
        data = MineData(root=folder, batch_size=4)
        assert data.splits() == ("train", "valid", "test")
        row = data.rows("train")[0]
    assert (row.id, row.src_text, row.tgt_text) == ("train/00.wav", "dos uno", "two one")


def test_a_folder_for_each_language():
    with tempfile.TemporaryDirectory() as folder:
        clips = write_clips(folder) / "valid"
        (clips / "metadata.csv").unlink()
        (clips / "por").mkdir()
        (clips / "00.wav").rename(clips / "por" / "a.wav")
        (clips / "por" / "a.txt").write_text("um dois\n")
        row = next(row for row in MineData(root=folder, batch_size=4).rows("valid") if row.src_lang == "por")
        assert (row.id, row.src_text, Path(row.audio or "").is_file()) == ("valid/por/a.wav", "um dois", True)
