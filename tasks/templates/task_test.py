"""The contract of a task, with tiny parts on a tiny corpus."""

from pathlib import Path

from voxzoo.tasks.contract import check_task, tiny_task

CONFIGS = Path(__file__).parents[1] / "configs"


def test_contract():
    check_task(*tiny_task(["task=mine", "allow=[my_zoo]"], config_dirs=[CONFIGS]))
