"""What all benchmarks share: two implementations of one computation on the same weights and inputs, compared before
they are timed, then timed in turns.

Every path is a module with `cases(options)`, run as `python -m benchmarks.PATH` from the checkout;
`python -m benchmarks` runs all of them.
"""

from __future__ import annotations

import argparse
import ctypes
import gc
import importlib
import json
import math
import os
import platform
import statistics
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

# Before torch is imported: idle threads of OpenMP then sleep, and process CPU time counts work instead of waiting.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

import torch
from torch import Tensor, nn

SIDES = ("peer", "ours")
_MMAP_THRESHOLD = -3  # M_MMAP_THRESHOLD of malloc.h
_LEAST_SECONDS = 1.0  # of one side in one round: a single run of 0.2 s is as much the machine's noise
_LOW_PRECISION = 0.5  # states of size 1 after many layers in bfloat16


class Unequal(RuntimeError):
    """The two sides did not compute the same: their times say nothing."""


@dataclass(frozen=True)
class Options:
    """How to run.

    Attributes:
        threads: of torch.
        rounds: timed pairs of each case.
        device, dtype: of weights and inputs.
        quick: tiny sizes, to see that it works.
        full: also the sizes that take minutes and gigabytes.
        pack: linear layers in oneDNN's own layout where that is faster (CPU), as `voxzoo translate` has them.
    """

    threads: int = 2
    rounds: int = 5
    device: str = "cpu"
    dtype: str = "float32"
    quick: bool = False
    full: bool = False
    pack: bool = True

    @property
    def torch_dtype(self) -> torch.dtype:
        return getattr(torch, self.dtype)

    def place(self, module: nn.Module) -> nn.Module:
        """The module in evaluation mode on the device, in the dtype."""
        return module.to(self.device, self.torch_dtype).eval()

    def serve(self, module: Any) -> Any:
        """`place`, and linear layers packed as `voxzoo translate` has them."""
        from voxzoo.components.layers.linear import pack_for_inference

        self.place(module)
        if self.pack:
            pack_for_inference(module)
        return module


@dataclass
class Case:
    """One comparison.

    Attributes:
        name: the workload in a few words.
        peer, ours: run it once and return what is compared: tensors, numbers, or lists of them. Integers (ids) must be
            equal, everything else may differ by `tolerance`.
        amount, unit: what one run processes, for the rate in the table.
        least, aim: ratio of the peer's time to ours that is expected, and hoped for.
        memory_aim: most of the peer's extra memory that ours should take.
        reference: what the peer computes for the comparison where it is timed on the same work in another order.
        memory: measure memory (two more runs).
        rounds: most rounds of a long case; None: as many as asked for.
    """

    name: str
    peer: Callable[[], Any]
    ours: Callable[[], Any]
    amount: float
    unit: str = "audio s"
    tolerance: float = 1e-4
    least: float = 1.0
    aim: float | None = None
    memory_aim: float | None = None
    reference: Callable[[], Any] | None = None
    memory: bool = True
    rounds: int | None = None


@dataclass
class Result:
    """What a case gave; see `as_dict`."""

    path: str
    case: Case
    difference: float
    tolerance: float
    rounds: list[dict[str, dict[str, float]]] = field(default_factory=list)
    memory: dict[str, float] = field(default_factory=dict)

    def ratio(self, clock: str) -> dict[str, float]:
        """Peer's time over ours, round by round: median, min, max."""
        ratios = [turn["peer"][clock] / turn["ours"][clock] for turn in self.rounds]
        return {"median": statistics.median(ratios), "min": min(ratios), "max": max(ratios)}

    def as_dict(self) -> dict[str, Any]:
        case = self.case
        seconds = {
            side: {clock: statistics.median(turn[side][clock] for turn in self.rounds) for clock in ("wall", "cpu")}
            for side in SIDES
        }
        return {
            "path": self.path,
            "case": case.name,
            "difference": self.difference,
            "tolerance": self.tolerance,
            "amount": case.amount,
            "unit": case.unit,
            "seconds": seconds,
            "ratio": {clock: self.ratio(clock) for clock in ("wall", "cpu")},
            "least": case.least,
            "aim": case.aim,
            "memory_bytes": self.memory,
            "memory_ratio": self.memory["ours"] / max(self.memory["peer"], 1) if self.memory else None,
            "memory_aim": case.memory_aim,
            "rounds": self.rounds,
        }


def difference(one: Any, other: Any, exact: bool = True) -> float:
    """Largest absolute difference of two results; infinite where shapes, integers or structures differ.

    Args:
        exact: integers must be equal; False in low precision, where near-ties fall either way: they are not compared.
    """
    if isinstance(one, Tensor) and isinstance(other, Tensor):
        if one.shape != other.shape:
            return math.inf
        if not one.is_floating_point():
            return 0.0 if not exact or torch.equal(one, other) else math.inf
        gap = (one.float() - other.float()).abs().max().item() if one.numel() else 0.0
        return math.inf if math.isnan(gap) else gap
    if isinstance(one, (list, tuple)) and isinstance(other, (list, tuple)):
        if len(one) != len(other):
            return math.inf
        return max((difference(a, b, exact) for a, b in zip(one, other)), default=0.0)
    if isinstance(one, float) and isinstance(other, float):
        return abs(one - other) if math.isfinite(one - other) else math.inf
    return 0.0 if type(one) is type(other) and one == other else math.inf


def measure(path: str, case: Case, options: Options, memory: dict[str, float] | None = None) -> Result:
    """Compare, then time in turns, then look at memory.

    Args:
        memory: side -> bytes, where another process has measured it.

    Raises:
        Unequal: the outputs differ by more than the case's tolerance.
    """
    sides: dict[str, Callable[[], Any]] = {"peer": case.peer, "ours": case.ours}
    precise = options.dtype == "float32"
    tolerance = case.tolerance if precise else _LOW_PRECISION
    gap = difference((case.reference or case.peer)(), case.ours(), precise)
    if not gap <= tolerance:
        raise Unequal(f"{path}, {case.name}: outputs differ by {gap:.3g}, allowed {tolerance:.3g}; not timed")
    result = Result(path, case, gap, tolerance)
    for number in range(min(options.rounds, case.rounds or options.rounds)):
        turn: dict[str, dict[str, float]] = {}
        # Whoever runs first alternates, so that a drift of the machine favours neither.
        for side in SIDES if number % 2 == 0 else SIDES[::-1]:
            turn[side] = _clocked(sides[side], options.device, 0.0 if options.quick else _LEAST_SECONDS)
        result.rounds.append(turn)
    if memory is not None:
        result.memory = memory
    elif case.memory:
        for side in SIDES:
            result.memory[side] = float(peak_growth(sides[side], options.device))
    return result


def _clocked(run: Callable[[], Any], device: str, least: float) -> dict[str, float]:
    """Mean seconds of a run, over as many as take `least` seconds together."""
    gc.collect()
    _synchronise(device)
    wall, cpu, runs = time.perf_counter(), time.process_time(), 0
    while not runs or time.perf_counter() - wall < least:
        run()
        _synchronise(device)
        runs += 1
    return {"wall": (time.perf_counter() - wall) / runs, "cpu": (time.process_time() - cpu) / runs}


def _synchronise(device: str) -> None:
    if device.startswith("cuda"):
        torch.cuda.synchronize()


def peak_growth(run: Callable[[], Any], device: str = "cpu") -> int:
    """Bytes by which memory grew at most while `run` ran: the allocator's on a GPU, else resident memory."""
    gc.collect()
    if device.startswith("cuda"):
        _synchronise(device)
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        run()
        _synchronise(device)
        return torch.cuda.max_memory_allocated() - before
    if sys.platform == "linux":
        # What is freed goes back at once, now and while it runs: neither holes in the heap nor what an earlier run left
        # there is counted.
        libc = ctypes.CDLL(None)
        libc.mallopt(_MMAP_THRESHOLD, 128 * 1024)
        libc.malloc_trim(0)
        try:
            return _resident_growth(run)
        finally:
            # Back to where glibc's own adjustment ends, or to what this process was started with.
            libc.mallopt(_MMAP_THRESHOLD, int(os.environ.get("MALLOC_MMAP_THRESHOLD_", 32 * 1024 * 1024)))
    return _resident_growth(run)


def _resident_growth(run: Callable[[], Any]) -> int:
    before = _resident("VmRSS")
    try:
        Path("/proc/self/clear_refs").write_text("5")  # the kernel's own high-water mark starts again
    except OSError:
        with _Sampler() as sampler:
            run()
        return max(sampler.most - before, 0)
    run()
    return max(_resident("VmHWM") - before, 0)


def _resident(name: str) -> int:
    """Bytes of resident memory out of /proc."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(name + ":"):
            return int(line.split()[1]) * 1024
    raise OSError(f"/proc/self/status has no {name}")


class _Sampler(threading.Thread):
    """Reads resident memory every millisecond: where the kernel does not let the high-water mark be reset."""

    def __init__(self) -> None:
        super().__init__(daemon=True)
        self.most = 0
        self._done = threading.Event()

    def __enter__(self) -> _Sampler:
        self.start()
        return self

    def __exit__(self, *_: Any) -> None:
        self._done.set()
        self.join()

    def run(self) -> None:
        while not self._done.wait(0.001):
            self.most = max(self.most, _resident("VmRSS"))


def randomise(module: nn.Module, seed: int = 0, gain: float = 1.0) -> nn.Module:
    """Random weights of the size that keeps activations near 1, norms and biases included.

    Freshly built models have norms of exactly 1 and biases of exactly 0, behind which a wrong place would hide. The
    last norm of a decoder gets weights of either sign: where embedding and output layer are one matrix, each token
    would predict itself otherwise, and all searches would find the same.
    """
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in module.named_parameters():
            if parameter.dim() > 1:
                fan_in = math.prod(parameter.shape[1:]) if "embed" not in name else parameter.shape[-1]
                parameter.copy_(_normal(parameter.shape, generator).mul_(gain * fan_in**-0.5))
            elif name.endswith("decoder.layer_norm.weight"):
                parameter.copy_(_normal(parameter.shape, generator))
            elif name.endswith("weight"):
                parameter.copy_(_normal(parameter.shape, generator).mul_(0.1).add_(1))
            else:
                parameter.copy_(_normal(parameter.shape, generator).mul_(0.1))
    return module


def _normal(shape: Sequence[int], generator: torch.Generator) -> Tensor:
    return torch.randn(shape, generator=generator)


def adopt(peer: Any, *roles: str) -> list[Any]:
    """The peer's weights in voxzoo's parts `roles`, see `adopt_all`."""
    parts, _ = adopt_all(peer, roles)
    return [parts[role] for role in roles]


def adopt_all(peer: Any, roles: Sequence[str] | None = None) -> tuple[dict[str, Any], dict[str, Any]]:
    """The peer's weights in voxzoo's parts, as a user gets them: written by transformers, read by `from_transformers`.

    Returns:
        Role -> part, in evaluation mode, on the CPU in float32; and the settings of the task.
    """
    from voxzoo.components.converters import from_transformers

    with tempfile.TemporaryDirectory() as folder:
        peer.save_pretrained(folder)
        model = from_transformers(folder, roles=roles)
    return dict(model.parts()), dict(model.nodes.get("task", {}))


def environment(options: Options) -> dict[str, Any]:
    """Versions, machine and settings: what a ratio depends on."""
    import transformers

    cpu = platform.processor()
    info = Path("/proc/cpuinfo")
    if info.exists():
        names = [line.partition(":")[2].strip() for line in info.read_text().splitlines() if "model name" in line]
        cpu = names[0] if names else cpu
    return {
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "python": platform.python_version(),
        "cpu": cpu,
        "cores": os.cpu_count(),
        "cpu_capability": torch.backends.cpu.get_cpu_capability(),
        "gpu": torch.cuda.get_device_name() if options.device.startswith("cuda") else None,
        "threads": options.threads,
        "device": options.device,
        "dtype": options.dtype,
        "quick": options.quick,
    }


def clock_of(options: Options) -> str:
    """Which clock the table shows: CPU seconds of one thread are steady on a busy machine; otherwise the wall's."""
    return "cpu" if options.threads == 1 and options.device == "cpu" else "wall"


def table(results: Sequence[dict[str, Any]], options: Options) -> str:
    """Results as a Markdown table."""
    clock = clock_of(options)
    lines = [
        "| path | workload | transformers | voxzoo | faster (min - max) | aim | memory, of the peer's | difference |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for result in results:
        ratio, seconds, memory = result["ratio"][clock], result["seconds"], result["memory_bytes"]
        rates = [f"{_short(result['amount'] / seconds[side][clock])} {result['unit']}/s" for side in SIDES]
        aim = f"{result['least']}" + (f" ({result['aim']})" if result["aim"] else "")
        saved = ""
        if memory:
            saved = f"{memory['ours'] / 1e6:.0f} of {memory['peer'] / 1e6:.0f} MB ({result['memory_ratio']:.2f})"
        lines.append(
            f"| {result['path'].replace('_', ' ')} | {result['case']} | {rates[0]} | {rates[1]} "
            f"| **{ratio['median']:.2f}** ({ratio['min']:.2f} - {ratio['max']:.2f}) | {aim} | {saved} "
            f"| {result['difference']:.0e} |"
        )
    return "\n".join(lines)


def _short(value: float) -> str:
    return f"{value:.0f}" if value >= 100 else f"{value:.3g}"


def quiet(options: Options) -> None:
    """Threads, and no bars and advice of transformers."""
    from transformers.utils import logging

    torch.set_num_threads(options.threads)
    logging.set_verbosity_error()
    logging.disable_progress_bar()


def run(path: str, cases: Callable[[Options], Iterator[Case]], options: Options) -> list[dict[str, Any]]:
    """All cases of a path; says each as soon as it is known.

    Raises:
        Unequal: see `measure`.
    """
    from .memory import measure_apart

    quiet(options)
    results = []
    clock = clock_of(options)
    apart = options.device == "cpu" and sys.platform == "linux" and not options.quick
    memory = measure_apart(path, options) if apart else {}
    for case in cases(options):
        result = measure(path, case, options, memory.get(case.name)).as_dict()
        results.append(result)
        ratio = result["ratio"][clock]
        print(
            f"{path}, {case.name}: {ratio['median']:.2f} ({ratio['min']:.2f} - {ratio['max']:.2f}) times as fast, "
            f"memory {result['memory_ratio'] or math.nan:.2f}, difference {result['difference']:.1e}",
            file=sys.stderr,
            flush=True,
        )
        del case, result
        gc.collect()
    return results


def run_path(path: str, options: Options) -> list[dict[str, Any]]:
    """`run` for the module of a path."""
    return run(path, importlib.import_module(f".{path}", __package__).cases, options)


def arguments(description: str) -> argparse.ArgumentParser:
    """The options of every benchmark."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--threads", type=int, default=min(2, os.cpu_count() or 1))
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--device", default="cpu", help="cpu, cuda or cuda:N")
    parser.add_argument("--dtype", default="float32", choices=("float32", "bfloat16", "float16"))
    parser.add_argument("--quick", action="store_true", help="tiny sizes: does it run?")
    parser.add_argument("--full", action="store_true", help="also the sizes that take minutes")
    parser.add_argument("--no-pack", action="store_true", help="leave the linear layers as they are")
    parser.add_argument("--out", "--json", type=Path, dest="out", help="write everything there as JSON")
    return parser


def options_of(args: argparse.Namespace) -> Options:
    """Parsed arguments as options."""
    return Options(args.threads, args.rounds, args.device, args.dtype, args.quick, args.full, pack=not args.no_pack)


def report(results: Sequence[dict[str, Any]], options: Options, out: Path | None, errors: Sequence[str] = ()) -> int:
    """Print the table, write the JSON, return the exit status."""
    about = environment(options)
    print(f"torch {about['torch']}, transformers {about['transformers']}, {about['gpu'] or about['cpu']}, ", end="")
    print(f"{options.threads} thread{'s' * (options.threads != 1)}, {options.dtype}, {clock_of(options)} time\n")
    print(table(results, options))
    if out is not None:
        out.parent.mkdir(parents=True, exist_ok=True)
        out.write_text(json.dumps({"environment": about, "results": list(results), "errors": list(errors)}, indent=1))
    for error in errors:
        print(error, file=sys.stderr)
    return 1 if errors else 0


def main(path: str, cases: Callable[[Options], Iterator[Case]], argv: Sequence[str] | None = None) -> int:
    """`python -m benchmarks.PATH`."""
    args = arguments((sys.modules[cases.__module__].__doc__ or "").strip()).parse_args(argv)
    options = options_of(args)
    try:
        return report(run(path, cases, options), options, args.out)
    except Unequal as error:
        print(error, file=sys.stderr)
        return 1
