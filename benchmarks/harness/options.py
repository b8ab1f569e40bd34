"""How benchmarks are run: the settings of all paths, and their command line."""

from __future__ import annotations

import argparse
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from .machine import ISAS


@dataclass(frozen=True)
class Options:
    """How to run.

    Attributes:
        threads: of torch and of the peers.
        rounds: timed turns of each case.
        device, dtype: of weights and inputs.
        quick: tiny sizes, to see that it works.
        full: also the sizes that take minutes and gigabytes.
        pack: linear layers in oneDNN's own layout where that is faster (CPU), as `voxzoo translate` has them.
        brief: the first cases of each path alone.
        memory: measure memory (as much work again, in another process).
        others: also the peers beside transformers.
        whisper: a folder of Whisper in the layout of transformers; None: random weights of the size of base.
    """

    threads: int = 2
    rounds: int = 5
    device: str = "cpu"
    dtype: str = "float32"
    quick: bool = False
    full: bool = False
    pack: bool = True
    brief: bool = False
    memory: bool = True
    others: bool = True
    whisper: Path | None = None

    @property
    def torch_dtype(self) -> torch.dtype:
        return getattr(torch, self.dtype)

    @property
    def has_others(self) -> bool:
        """Whether the peers beside transformers are compared: on a CPU, in float32."""
        return self.others and self.device == "cpu" and self.dtype == "float32"

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

    def words(self) -> list[str]:
        """The command line that gives these options to another process (rounds and device aside)."""
        words = ["--threads", str(self.threads), "--dtype", self.dtype]
        words += ["--full"] * self.full + ["--quick"] * self.quick + ["--no-pack"] * (not self.pack)
        return words + (["--whisper", str(self.whisper)] if self.whisper else [])


def arguments(description: str) -> argparse.ArgumentParser:
    """The options of every benchmark."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=min(2, os.cpu_count() or 1))
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--device", default="cpu", help="cpu, cuda or cuda:N")
    parser.add_argument("--dtype", default="float32", choices=("float32", "bfloat16", "float16"))
    parser.add_argument("--isa", choices=tuple(ISAS), help="keep torch, oneDNN and CTranslate2 to these instructions")
    parser.add_argument("--quick", action="store_true", help="tiny sizes: does it run?")
    parser.add_argument("--full", action="store_true", help="also the sizes that take minutes")
    parser.add_argument("--no-pack", action="store_true", help="leave the linear layers as they are")
    parser.add_argument("--brief", action="store_true", help="the first cases of each path alone, without memory")
    parser.add_argument("--no-memory", action="store_true", help="times alone")
    parser.add_argument("--no-others", action="store_true", help="transformers alone, no other peers")
    parser.add_argument("--whisper", type=Path, metavar="FOLDER", help="published Whisper weights (default: random)")
    parser.add_argument("--out", "--json", type=Path, dest="out", help="write everything there as JSON")
    parser.add_argument("--save", action="store_true", help="append a line to the history, see `benchmarks history`")
    return parser


def options_of(args: argparse.Namespace) -> Options:
    """Parsed arguments as options. Raises SystemExit where they contradict each other."""
    if args.save and args.quick:
        raise SystemExit("--save: a --quick run says nothing of speed and is not kept; leave one of the two out")
    return Options(
        args.threads,
        args.rounds,
        args.device,
        args.dtype,
        args.quick,
        args.full,
        pack=not args.no_pack,
        brief=args.brief,
        memory=not (args.no_memory or args.brief),
        others=not args.no_others,
        whisper=args.whisper,
    )
