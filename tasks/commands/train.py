"""`voxzoo train`"""

from __future__ import annotations

import argparse
import sys

from ..processes.forked import is_own
from ..processes.signals import stopped_at_once, tell_launcher
from .settings import overview

HELP = "train the run that the overrides describe, or go on with it"
EXAMPLE = "voxzoo train experiment=quickstart adaptor=none trainer.max_steps=500"


def configure(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "overrides", nargs="*", metavar="KEY=VALUE", help="choices of groups and settings, listed below"
    )
    parser.add_argument("--stage", help="train one stage of a staged experiment alone")
    parser.add_argument(
        "--config-dir", action="append", default=[], metavar="DIR", help="a folder of your own YAML groups"
    )
    parser.epilog = f"{parser.epilog}\n\n{overview()}"


@stopped_at_once(process_ends=True)
def run(args: argparse.Namespace) -> dict:
    tell_launcher("ready")
    if is_own():
        _share(args)
    from lightning.pytorch.utilities import rank_zero_only  # torch loads only for a run, not for --help

    from ..training.train import train

    result = train(args.overrides, stage=args.stage, config_dirs=args.config_dir)
    if not args.json:
        rank_zero_only(print)(f"done: {result['run']}")
    return result


def _share(args: argparse.Namespace) -> None:
    """Threads as each stage is to have them, before torch asks: stages are forked from this process, which only checks.
    A wrong override is said here, seconds earlier."""
    from ...configs.compose import compose
    from ...configs.stages import active_stages
    from ..training.sharing import import_as_a_stage

    config = compose(args.overrides, stage=args.stage, config_dirs=args.config_dir, fit=False)
    if active_stages(config) and "torch" not in sys.modules:
        import_as_a_stage(config)
