"""`voxzoo ablate`"""

from __future__ import annotations

import argparse

from ..processes.forked import is_own
from ..processes.signals import stopped_at_once
from ..serving.choices import EVALUATED, QUALITIES, RECOGNISERS
from . import flags

HELP = "train and score the points of a sweep, and compare them in a table"
EXAMPLE = "voxzoo ablate experiment=quickstart t2u=none adaptor=conformer,conv,none seed=1,2 --jobs 2"


def configure(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "overrides",
        nargs="*",
        metavar="KEY=VALUE,VALUE",
        help="as for train; a key with several values is swept: a,b  choice(a,b)  range(1,4)  glob(c*)  * for all "
        "choices of a group. Values of seed repeat a system: they share a row",
    )
    parser.add_argument("--points", metavar="FILE", help="a YAML of named points: NAME: [KEY=VALUE, ...]")
    parser.add_argument(
        "--one-at-a-time", action="store_true", help="change one key at a time, from the first value of each"
    )
    parser.add_argument(
        "--jobs", type=int, default=1, metavar="N", help="trainings at a time, which share the cores (1)"
    )
    parser.add_argument("--dry-run", action="store_true", help="show the points and what they share, and train nothing")
    parser.add_argument(
        "--cluster",
        choices=("slurm", "local", "debug"),
        help="trainings are jobs: of Slurm, an array for those that can begin together, through submitit; as a trial "
        "of this machine (local), or one behind the other (debug)",
    )
    parser.add_argument(
        "--cluster-option",
        action="append",
        default=[],
        metavar="KEY=VALUE",
        help="of submitit's AutoExecutor: timeout_min=240 (Slurm needs it), slurm_partition=gpu, gpus_per_node=1 ...",
    )
    parser.add_argument("--base", metavar="ROW", help="the row that the others are compared with (default: the first)")
    parser.add_argument("--split", default="test", help="the split to score, or none (default test)")
    parser.add_argument("--limit", type=int, metavar="N", help="the first N utterances alone")
    parser.add_argument("--task", choices=EVALUATED, help="what to do with each utterance, as for evaluate")
    flags.beam(parser)
    parser.add_argument("--recogniser", choices=RECOGNISERS, default="base", help="as for evaluate (default base)")
    parser.add_argument("--quality", choices=QUALITIES, default="all", help="as for evaluate (default all)")
    flags.conditions(parser)
    flags.across_speakers(parser)
    flags.toxicity(parser)
    parser.add_argument("--clips", type=int, default=12, metavar="N", help="utterances heard on the page (default 12)")
    parser.add_argument(
        "--config-dir", action="append", default=[], metavar="DIR", help="a folder of your own YAML groups"
    )


@stopped_at_once(process_ends=True)
def run(args: argparse.Namespace) -> dict:
    if is_own():
        from ..training.sharing import import_beside

        import_beside(args.jobs)
    from ..ablation.sweep import ablate, show

    answer = ablate(
        args.overrides,
        points=args.points,
        one_at_a_time=args.one_at_a_time,
        jobs=args.jobs,
        dry_run=args.dry_run,
        cluster=args.cluster,
        cluster_options=args.cluster_option,
        base=args.base,
        split=args.split,
        limit=args.limit,
        task=args.task,
        beam=args.beam,
        recogniser=args.recogniser,
        quality=args.quality,
        noise=flags.words(args.noise),
        snr=flags.decibels(args.snr),
        codec=flags.words(args.codec),
        across_speakers=args.across_speakers,
        toxicity=flags.by_language(args.toxicity),
        config_dirs=args.config_dir,
        clips=args.clips,
    )
    if not args.json:
        show(answer)
    return answer
