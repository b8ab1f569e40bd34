"""The plan of `voxzoo check` against a measured peak: `python -m benchmarks plan` (on a GPU: `--device cuda`).

Each stage is planned, and then trained for three steps on its largest batch in a process of its own. What is compared
is the growth of memory over a process that has the libraries and ran a small step: parameters, gradients, optimizer
states and activations together. On a CPU every large block is mapped by itself (see `memory`), so that holes of the
heap are not counted; on a GPU it is the allocator's peak.
"""

from __future__ import annotations

import argparse
import gc
import json
import os
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from .harness.growth import peak_growth

WITHIN = 0.15
_STAGES = ("first_pass", "vocoder", "second_pass")
_BASE = ("process", "CUDA context")  # what a plan has beside what a step makes grow


def measure(overrides: Sequence[str], stage: str | None) -> dict[str, Any]:
    """Plan a stage and train it for three steps on its largest batch; bytes of both peaks."""
    import torch
    from voxzoo.components.layers.blocks import RECOMPUTE, set_up_blocks
    from voxzoo.configs.build import build
    from voxzoo.configs.compose import compose
    from voxzoo.tasks.distributed.gradients import gradient_norm, parameter_groups
    from voxzoo.tasks.planning.rehearsal import Rehearsal

    config = compose(list(overrides), stage=stage)
    rehearsal = Rehearsal(config)
    plan = rehearsal.plan()
    rows = max(rehearsal.batches, key=lambda rows: rehearsal.need(rows))
    setting = rehearsal.setting
    device = setting.kind

    def train(rows: Sequence[Any], steps: int) -> None:
        given = {"tokenizer": rehearsal.tokenizer} if rehearsal.tokenizer is not None else {}
        with torch.device(device):
            task = build(config.task, **given)
        task.freeze_parts([str(role) for role, frozen in config.freeze.items() if frozen])
        task.train()
        set_up_blocks(task.parts(), {RECOMPUTE: config.get(RECOMPUTE)})
        if setting.dtype is not None:
            for parameter in task.parameters():
                parameter.data = parameter.data.to(setting.dtype)
        optimizer = build(config.optim)(parameter_groups(task))
        batch = _real(rehearsal.batch(rows, setting.dtype), device)
        for _ in range(steps):
            with torch.autocast(device, dtype=setting.autocast, enabled=setting.autocast is not None):
                total = task.weighted(task.losses(batch))
            optimizer.zero_grad()
            total.backward()
            del total
            gradient_norm([p for p in task.parameters() if p.grad is not None])
            optimizer.step()

    short = replace(rows[0], seconds=1.0, spoken=1.0, units=rows[0].units[:50])
    train([short, short], 2)  # what the first step of a process makes once
    gc.collect()
    measured = peak_growth(lambda: train(rows, 3), device)
    name, moment = max(plan.moments.items(), key=lambda item: item[1].total)
    estimate = {kind: size for kind, size in moment.parts.items() if kind not in _BASE}
    return {
        "stage": stage or "run",
        "device": device,
        "precision": setting.precision,
        "batch": plan.batch,
        "moment": name,
        "parts": estimate,
        "estimate": sum(estimate.values()),
        "measured": measured,
        "ratio": sum(estimate.values()) / max(measured, 1),
    }


def _real(batch: Any, device: str) -> Any:
    """The fake speech of a batch as noise."""
    import torch
    from torch._subclasses.fake_tensor import FakeTensor
    from voxzoo.components.types import Padded

    noise = {}
    for name in ("speech", "target_speech"):
        padded = getattr(batch, name)
        if padded is not None and isinstance(padded.data, FakeTensor):
            data = torch.randn(tuple(padded.data.shape)).to(padded.data.dtype)
            noise[name] = Padded(0.1 * data, padded.lengths)
    return replace(batch, **noise).to(device)


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("overrides", nargs="*", metavar="KEY=VALUE", help="default: experiment=quickstart")
    parser.add_argument("--stages", nargs="*", default=None, help=f"default: {' '.join(_STAGES)} of the quickstart")
    parser.add_argument("--device", default="cpu", choices=("cpu", "cuda"), help="cuda: trainer=gpu")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--out", type=Path, help="write everything there as JSON")
    parser.add_argument("--here", action="store_true", help=argparse.SUPPRESS)
    args = parser.parse_args(argv)
    overrides = args.overrides or ["experiment=quickstart"]
    stages = args.stages if args.stages is not None else (() if args.overrides else _STAGES)
    if args.here:
        import torch

        torch.set_num_threads(args.threads)
        print(json.dumps(measure(overrides, stages[0] if stages else None)))
        return 0
    if args.device == "cuda":
        overrides = [*overrides, "trainer=gpu"]
    found = [_apart(overrides, stage, args.threads) for stage in stages or (None,)]
    print("| stage | device | largest batch | estimate | measured | estimate / measured |")
    print("|---|---|---|---|---|---|")
    for one in found:
        batch = f"{one['batch']['utterances']} x {one['batch']['seconds']:.3g} s"
        print(
            f"| {one['stage'].replace('_', ' ')} | {one['device']}, {one['precision']} | {batch} "
            f"| {one['estimate'] / 1e6:,.0f} MB | {one['measured'] / 1e6:,.0f} MB | **{one['ratio']:.2f}** |"
        )
    if args.out is not None:
        args.out.parent.mkdir(parents=True, exist_ok=True)
        args.out.write_text(json.dumps(found, indent=1))
    wrong = [one["stage"] for one in found if abs(one["ratio"] - 1) > WITHIN]
    if wrong:
        print(f"more than {WITHIN:.0%} off: {', '.join(wrong)}", file=sys.stderr)
    return 1 if wrong else 0


def _apart(overrides: Sequence[str], stage: str | None, threads: int) -> dict[str, Any]:
    words = ["--here", "--threads", str(threads), *overrides, "--stages", *([stage] if stage else [])]
    environment = {**os.environ, "MALLOC_MMAP_THRESHOLD_": str(128 * 1024), "OMP_NUM_THREADS": str(threads)}
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.plan", *words], env=environment, stdout=subprocess.PIPE, text=True
    )
    if done.returncode:
        raise RuntimeError(f"{stage}: the process that measures ended with {done.returncode}; see above")
    return json.loads(done.stdout.splitlines()[-1])


if __name__ == "__main__":
    sys.exit(main())
