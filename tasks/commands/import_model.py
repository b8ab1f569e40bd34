"""`voxzoo import`"""

from __future__ import annotations

import argparse
from pathlib import Path

HELP = "make a run of a published model (a folder in the layout of transformers, or a hub name)"
EXAMPLE = "voxzoo import seamless-m4t-v2-large/ runs/seamless_v2"


def configure(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("source", metavar="SOURCE", help="a folder with config.json and safetensors, or a hub name")
    parser.add_argument("run", metavar="RUN", help="the run folder to make")
    parser.add_argument(
        "--dtype",
        choices=("float32", "bfloat16", "float16"),
        default="float32",
        help="of the weights (default float32)",
    )


def run(args: argparse.Namespace) -> dict:
    import torch

    from ...components.converters import from_transformers
    from ..published import write_run
    from ..training import quiet_libraries

    quiet_libraries()
    folder = Path(args.run).absolute()
    model = from_transformers(args.source, dtype=getattr(torch, args.dtype))
    config = write_run(model, folder)
    counts = {role: sum(p.numel() for p in part.parameters()) for role, part in model.parts().items()}
    if not args.json:
        for role, count in counts.items():
            print(f"{role}: {type(model.parts()[role]).__name__}, {count:,} parameters")
        if model.left:
            print(f"left there: {len(model.left)} tensors ({', '.join(model.left[:3])} ...)")
        print(f"done: {folder} ({model.model_type}, {str(config.task._target_).rpartition('.')[2]})")
    return {
        "status": "ok",
        "run": str(folder),
        "model_type": model.model_type,
        "task": config.task._target_,
        "parameters": counts,
        "left": model.left,
    }
