"""`voxzoo check`"""

from __future__ import annotations

import argparse
import math
import sys
from collections.abc import Iterator
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from ...components.errors import few, printable

if TYPE_CHECKING:  # torch loads only for a check, not for --help
    from omegaconf import DictConfig
    from rich.console import Console

    from ...configs.contract import Checked
    from ..planning.figures import Plan
    from ..planning.leaving_out import LeftOut
    from ..planning.shapes import Row

HELP = "check a config, build it without weights, show what flows through its parts, and plan its memory"
EXAMPLE = "voxzoo check experiment=quickstart adaptor=stack --memory 8"

_MOST_PARAMETERS = 3e7
"""Of a part that `--parts` looks at: larger ones take minutes and are alike when small."""


def configure(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("overrides", nargs="*", metavar="KEY=VALUE", help="config overrides, as for `voxzoo train`")
    parser.add_argument("--stage", help="check one stage of a staged experiment alone")
    parser.add_argument(
        "--config-dir", action="append", default=[], metavar="DIR", help="a folder of your own YAML groups"
    )
    parser.add_argument(
        "--parts",
        action="store_true",
        help="also each part against the contract of its role, on random inputs (exit 1 where one breaks it)",
    )
    parser.add_argument("--print-config", action="store_true", help="print the resolved config as YAML")
    parser.add_argument(
        "--plan",
        action="store_true",
        help="also memory per device for trainer.strategy, devices and precision, batches, steps of an epoch and FLOPs",
    )
    parser.add_argument(
        "--memory",
        type=_gigabytes,
        metavar="GB",
        help="of each device (10^9 bytes): the plan, whether it fits (exit 1 where it does not), the largest batch "
        "that does, and what would fit",
    )


def _gigabytes(text: str) -> float:
    value = float(text)
    if not 0 < value < math.inf:
        raise argparse.ArgumentTypeError(f"{text}: expected more than 0 GB per device")
    return value


def run(args: argparse.Namespace) -> dict:
    from ...configs.check import require_valid
    from ...configs.compose import compose, origins, to_yaml
    from ...configs.stages import active_stages
    from ...configs.targets import class_of

    notes: dict[str, None] = {}  # the same one comes from several stages
    asked: dict[str, Any] = {"config_dirs": args.config_dir, "note": lambda line: notes.setdefault(line)}
    config = compose(args.overrides, stage=args.stage, **asked)
    stages = active_stages(config)
    configs = {s: compose(args.overrides, stage=s, **asked) for s in stages} or {"run": config}
    for line in notes:
        print(line, file=sys.stderr)

    from ..planning.leaving_out import left_out_of
    from ..planning.plan import plan_run  # a wrong choice does not wait for torch
    from ..planning.shapes import fake_task, trace
    from ..processes.console import quiet_libraries

    quiet_libraries()
    tables: dict[str, list[Row]] = {}
    remarks: dict[str, list[str]] = {}
    left_out: dict[str, dict[str, LeftOut]] = {}
    for name, stage in configs.items():
        said = origins(args.overrides, stage=name if stages else args.stage, config_dirs=args.config_dir)
        require_valid(stage, said, inputs=True)
        task = fake_task(stage)
        tables[name] = trace(stage, task=task)
        left_out[name] = left_out_of(stage, task)
        kind: Any = class_of(stage.task, stage)
        remarks[name] = kind.remarks({row.part: row.parameters for row in tables[name]}, stage)
    if not args.json and args.print_config:
        print(to_yaml(config))
    plans: dict[str, Plan | None] = {}
    for name, rows in tables.items():
        if not args.json:
            _show(name, configs[name].task._target_.rpartition(".")[2], rows)
            for line in [*remarks[name], *_left_out_lines(left_out[name])]:
                _console().print(f"  {printable(line)}", highlight=False, markup=False)
        if args.plan or args.memory is not None:
            plans[name] = plan_run(configs[name], args.memory)
            if not args.json:
                _show_plan(plans[name])
    checked = _check_parts(configs, args.json) if args.parts else {}
    small = any(plan is not None and plan.fits is False for plan in plans.values())
    return {
        "status": "does not fit" if small else "ok" if all(one.sound for one in checked.values()) else "broken",
        **({"contract": {role: one.as_dict() for role, one in checked.items()}} if args.parts else {}),
        "stages": {
            name: {
                "task": configs[name].task._target_,
                "parts": [{**asdict(row), "state": row.state} for row in rows],
                "parameters": sum(row.parameters for row in rows),
                "trainable": sum(row.trainable for row in rows),
                **({"remarks": remarks[name]} if remarks[name] else {}),
                **({"left_out": _left_out(left_out[name])} if left_out[name] else {}),
                **({"plan": _as_dict(plans[name])} if name in plans else {}),
            }
            for name, rows in tables.items()
        },
    }


def _check_parts(configs: dict[str, DictConfig], silent: bool) -> dict[str, Checked]:
    """Each part once, though several stages have it."""
    from ... import components
    from ...configs.contract import examine_parts

    found: dict[str, Checked] = {}
    for config in configs.values():
        waiting = [role for role in components.parts() if role not in found]
        for one in examine_parts(config, waiting, _MOST_PARAMETERS):
            found[one.role] = one
            if not silent:
                print(*one.lines(), sep="\n")
    return found


def _left_out_lines(found: dict[str, LeftOut]) -> Iterator[str]:
    """What training would leave out of each split, one line a reason."""
    for split, judged in found.items():
        rows = f"{judged.rows:,} rows" if judged.is_all else f"the first {judged.rows:,} rows"
        for reason, ids in judged.reasons.items():
            yield f"data.{split}: {len(ids):,} of {rows} would be left out: {reason}: {few(ids)}"
        if not judged.reasons:
            yield f"data.{split}: none of {rows} would be left out"


def _left_out(found: dict[str, LeftOut]) -> dict[str, Any]:
    return {
        split: {
            "rows": judged.rows,
            "all_rows": judged.is_all,
            "reasons": {reason: {"count": len(ids), "first": ids[:5]} for reason, ids in judged.reasons.items()},
        }
        for split, judged in found.items()
    }


def _as_dict(plan: Plan | None) -> dict[str, Any] | None:
    return plan.as_dict() if plan is not None else None


def _show(name: str, task: str, rows: list[Row]) -> None:
    from rich import box
    from rich.table import Table

    table = Table(title=f"{name}: {task}", box=box.SIMPLE_HEAD, title_justify="left")
    for column in ("part", "class", "input", "output", "parameters", ""):
        table.add_column(column, justify="right" if column == "parameters" else "left", overflow="fold")
    for row in rows:
        table.add_row(row.part, row.cls, row.input, row.output, f"{row.parameters:,}", row.state)
    table.add_row(
        "total", "", "", "", f"{sum(r.parameters for r in rows):,}", f"{sum(r.trainable for r in rows):,} trainable"
    )
    _console().print(table)


def _show_plan(plan: Plan | None) -> None:
    from rich import box
    from rich.table import Table

    console = _console()
    if plan is None:
        console.print("  No gradient steps: nothing to plan.\n")
        return
    kind = "GPU" if plan.device == "cuda" else "CPU process"
    many = f"each of {plan.devices} {kind}{'es' if kind != 'GPU' else 's'}" if plan.devices > 1 else f"one {kind}"
    table = Table(box=box.SIMPLE_HEAD)
    table.add_column("")
    for name in plan.moments:
        table.add_column(name, justify="right")
    kinds = dict.fromkeys(kind for moment in plan.moments.values() for kind in moment.parts)
    for kind in kinds:
        sizes = [moment.parts.get(kind, 0) for moment in plan.moments.values()]
        if any(sizes):
            table.add_row(kind, *(_gb(size) if size else "" for size in sizes))
    table.add_row("total", *(_gb(moment.total) for moment in plan.moments.values()))
    console.print(f"plan: GB on {many}, {plan.strategy}, {plan.precision}", style="italic", highlight=False)
    console.print(table)
    for line in _lines(plan):
        console.print(f"  {line}", highlight=False)
    console.print()


def _lines(plan: Plan) -> Iterator[str]:
    batch, data = plan.batch, plan.data
    if plan.frozen:
        yield "frozen: " + ", ".join(f"{part} ({count:,})" for part, count in plan.frozen.items())
    yield f"optimizer: {plan.optimizer}, states of {plan.states_per_parameter:.3g} times the trainable parameters"
    sizes = f"{batch['utterances']} utterances of up to {batch['seconds']:.3g} s"
    padded = f"{batch['padded_seconds']:.4g} padded seconds"
    tokens = f", {batch['target_tokens']:,} target tokens" if batch["target_tokens"] else ""
    yield f"largest batch: {sizes}, {padded}{tokens}"
    yield f"a step: {plan.flops:.3g} FLOPs" + (f" on {plan.devices} devices" if plan.devices > 1 else "")
    if data.utterances is None:
        yield f"data: {data.note}"
    else:
        tokens = ""
        if data.target_tokens is not None:
            tokens = f", {'about ' if data.guessed_tokens else ''}{data.target_tokens:,} target tokens"
        read = f"{data.utterances:,} utterances, {data.hours:.3g} h{tokens}"
        yield f"an epoch: {data.steps:,} steps, {read} ({data.note})"
    if data.oversized:
        alone = "utterance exceeds" if data.oversized == 1 else "utterances exceed"
        yield f"{data.oversized:,} {alone} the budget of a batch alone: each is a batch of its own"
    if plan.memory is None:
        from ..planning.setting import memory_here

        here = memory_here(plan.device)
        kind = "the GPU here" if plan.device == "cuda" else "this machine"
        yield f"{kind} has {_gb(here)} GB; --memory GB says whether it fits" if here else "--memory GB: does it fit?"
        return
    yield from _verdict(plan, plan.memory)


def _verdict(plan: Plan, memory: int) -> Iterator[str]:
    name, moment = max(plan.moments.items(), key=lambda item: item[1].total)
    if plan.fits:
        yield f"fits {_gb(memory)} GB: needs {_gb(plan.peak)} GB"
    else:
        parts = sorted(moment.parts.items(), key=lambda item: -item[1])
        most = ", ".join(f"{kind} {_gb(size)}" for kind, size in parts if size > 0.01 * moment.total)
        yield f"does not fit {_gb(memory)} GB: needs {_gb(plan.peak)} GB in the {name}: {most}"
    if plan.budget is not None:
        yield f"largest batch that fits: {_budget(plan.budget)}"
    else:
        yield f"not even one utterance of {plan.longest:.3g} s in a batch fits"
    if plan.advice:
        yield "what would fit:"
        width = max(len(one["change"]) for one in plan.advice)
        for one in plan.advice:
            budget = one["budget"]
            smaller = f" (batches of {budget['utterances']} x {budget['seconds']:.3g} s)" if budget else ""
            yield f"  {one['change']:{width}}  {_gb(one['needs'])} GB{smaller}"
    elif not plan.fits:
        yield "no change that voxzoo knows makes it fit: take smaller parts"


def _budget(budget: dict[str, Any]) -> str:
    more = f" (with data.batch_size={budget['batch_size']})" if "batch_size" in budget else ""
    return f"{budget['key']}={budget['value']}{more}: {budget['utterances']} utterances of {budget['seconds']:.3g} s"


def _gb(size: int) -> str:
    value = size / 1e9
    return f"{value:.1f}" if value >= 10 else f"{value:.2f}" if value >= 0.1 else f"{value:.3f}"


def _console() -> Console:
    from rich.console import Console

    return Console(width=None if Console().is_terminal else 140, soft_wrap=False)
