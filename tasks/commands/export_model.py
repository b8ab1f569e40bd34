"""`voxzoo export`"""

from __future__ import annotations

import argparse
from pathlib import Path

from . import flags

HELP = "write a run in a published layout, a folder that transformers loads"
EXAMPLE = "voxzoo export runs/seamless_finetuned exported/"


def configure(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("run", metavar="RUN", help="a run folder or a checkpoint")
    parser.add_argument("destination", metavar="DEST", help="the folder to write; must not exist or be empty")
    parser.add_argument(
        "--as",
        dest="model_type",
        metavar="TYPE",
        help="model type of the layout (default: the one it was imported from, or the only one that fits its parts); "
        "encodec.th: a file as the encodec package saves it",
    )
    parser.add_argument(
        "--compat",
        choices=("transformers",),
        help="take the value of transformers for switches that the layout does not hold, also where that changes "
        "results; each is named (default: refused, but for imported models)",
    )
    flags.verify(parser)
    parser.add_argument(
        "--adapter",
        metavar="BASE",
        help="write the run's LoRA alone, as an adapter of PEFT to the model BASE (folder or hub name)",
    )


def run(args: argparse.Namespace) -> dict:
    from ..processes.console import quiet_libraries
    from ..runs.published import export_run

    quiet_libraries()
    notes: list[str] = []
    folder, model_type = export_run(
        args.run, Path(args.destination), args.model_type, notes.append, args.compat, args.verify, args.adapter
    )
    files = sorted(path.name for path in folder.iterdir())
    if not args.json:
        for line in notes:
            print(f"note: {line}")
        print(f"done: {folder} ({model_type}): {', '.join(files)}")
    return {"status": "ok", "folder": str(folder), "model_type": model_type, "files": files, "notes": notes}
