"""`voxzoo import`"""

from __future__ import annotations

import argparse
from pathlib import Path

HELP = "make a run of a published model: a folder in the layout of transformers, a hub name, an original checkpoint"
EXAMPLE = "voxzoo import seamless-m4t-v2-large/ runs/seamless_v2"


def configure(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "source",
        metavar="SOURCE",
        help="a folder with config.json and safetensors, a hub name, an adapter of PEFT, an original checkpoint (.pt) "
        "of SeamlessM4T, HuBERT or wav2vec 2.0, or a file of the encodec package (.th)",
    )
    parser.add_argument("run", metavar="RUN", help="the run folder to make")
    parser.add_argument(
        "--vocoder", metavar="FILE", help="the vocoder's file of an original checkpoint (its tokenizers lie beside it)"
    )
    parser.add_argument(
        "--tokenizer",
        metavar="FOLDER",
        help="the folder (or hub name) with the tokenizer of a model that came without: a Trainer's checkpoint-N",
    )
    parser.add_argument(
        "--base",
        metavar="FOLDER",
        help="the model (or hub name) that an adapter of PEFT belongs to (default: what adapter_config.json says)",
    )
    parser.add_argument(
        "--compat",
        choices=("transformers", "fairseq2"),
        help="whose behaviour the switches are set to (default: transformers; of an original checkpoint: fairseq2)",
    )
    parser.add_argument(
        "--dtype",
        choices=("float32", "bfloat16", "float16"),
        default="float32",
        help="of the weights (default float32)",
    )


def run(args: argparse.Namespace) -> dict:
    import torch

    from ...components.converters import from_encodec, from_original, from_transformers
    from ...components.converters.encodec import is_encodec_package
    from ...components.converters.peft import from_peft, is_adapter
    from ...components.errors import UserError, faults_of, few
    from ..processes.console import quiet_libraries
    from ..runs.published import require_new, write_run

    quiet_libraries()
    folder = Path(args.run).absolute()
    dtype = getattr(torch, args.dtype)
    original = Path(args.source).suffix in (".pt", ".pth") and Path(args.source).is_file()
    if args.vocoder and not original:
        raise UserError(f"--vocoder {args.vocoder}: goes with an original checkpoint (.pt); {args.source} is none")
    if args.base and not is_adapter(Path(args.source)):
        raise UserError(f"--base {args.base}: goes with an adapter (adapter_config.json); {args.source} is none")
    if original and args.compat == "transformers":
        raise UserError("--compat transformers: export the run and import that, an original checkpoint has its own")
    require_new(folder)
    options = {"compat": args.compat or "transformers", "dtype": dtype, "tokenizer": args.tokenizer}
    with faults_of(args.source):
        if is_encodec_package(args.source):
            model = from_encodec(args.source, dtype=dtype)
        elif original:
            model = from_original(args.source, args.vocoder, dtype=dtype)
        elif is_adapter(Path(args.source)):
            model = from_peft(args.source, args.base, **options)
        else:
            model = from_transformers(args.source, **options)
        config = write_run(model, folder)
    counts = {role: sum(p.numel() for p in part.parameters()) for role, part in model.parts().items()}
    if not args.json:
        for role, count in counts.items():
            print(f"{role}: {type(model.parts()[role]).__name__}, {count:,} parameters")
        if model.left:
            count = len(model.left)
            what = "tensors that no part uses, such as heads of pre-training and tables that are computed here"
            print(f"not taken: {count} {what} ({few(model.left, 2)}); all weights of the parts above are filled")
        for line in model.notes:
            print(f"note: {line}")
        print(f"done: {folder} ({model.model_type}, {str(config.task._target_).rpartition('.')[2]})")
    return {
        "status": "ok",
        "run": str(folder),
        "model_type": model.model_type,
        "task": config.task._target_,
        "parameters": counts,
        "left": model.left,
        "notes": model.notes,
    }
