"""Rows about weights: export and load of a model, packing within a limit of memory, bfloat16 on this CPU."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

from .process import Work, apart, command
from .row import Costs, Row

_MB = 1e6


def _model(layers: int, folder: Path) -> tuple[Path, float]:
    """A run that holds a published speech encoder of so many layers with random weights, and its parameters."""
    made = apart("models:published", layers, folder)
    run = folder / "run"
    command(["import", str(folder / "published"), str(run)], folder)
    return run, made["parameters"]


def published(layers: int, folder: Path) -> Work:
    """w2v-BERT 2.0 of the published width, about 24 M parameters a layer, as transformers writes it."""
    import torch
    from transformers import SeamlessM4TFeatureExtractor, Wav2Vec2BertConfig, Wav2Vec2BertModel

    def work() -> dict[str, float]:
        torch.manual_seed(0)
        model = Wav2Vec2BertModel(Wav2Vec2BertConfig(num_hidden_layers=layers))
        model.save_pretrained(folder / "published")
        SeamlessM4TFeatureExtractor().save_pretrained(folder / "published")
        return {"parameters": float(sum(p.numel() for p in model.parameters()))}

    return work


def export(layers: int, folder: Path) -> Costs:
    _, parameters = _model(layers, folder)
    cost = apart("models:exported", layers, folder)
    return {
        "private peak MB": cost["peak"] / _MB,
        "of the model, x": cost["peak"] / (4 * parameters),
        "CPU s": cost["cpu"],
    }


def exported(_: int, folder: Path) -> Work:
    import lightning  # noqa: F401
    from voxzoo.tasks.runs.published import export_run

    def work() -> None:
        export_run(folder / "run", folder / "exported")

    return work


def load(layers: int, folder: Path) -> Costs:
    _, parameters = _model(layers, folder)
    cost = apart("models:loaded", layers, folder)
    return {
        "private MB": cost["kept"] / _MB,
        "private peak MB": cost["peak"] / _MB,
        "CPU s": cost["cpu"],
        "of the model, x": cost["peak"] / (4 * parameters),
    }


def loaded(_: int, folder: Path) -> Work:
    import lightning  # noqa: F401
    from voxzoo.tasks import load_run

    kept: list[Any] = []
    return lambda: kept.append(load_run(folder / "run"))


def packing(megabytes: int, folder: Path) -> Costs:
    cost = apart("models:packed", megabytes, folder)
    return {"packed MB": cost["packed"] / _MB, "of the limit, x": cost["packed"] / (megabytes * _MB)}


def packed(megabytes: int, _: Path) -> Work:
    """Pack a model of four times the memory that the process may still take (RLIMIT_AS)."""
    import resource

    import torch
    from torch import nn
    from voxzoo.components.layers.linear import pack_for_inference

    nn.Linear(64, 64)(torch.zeros(8, 64))
    # One matrix, many names of its own: the weights take no memory, their packed copies do.
    matrix = torch.empty(1024, 1024).normal_()
    layers = nn.ModuleList(nn.Linear(1024, 1024, bias=False, device="meta") for _ in range(megabytes)).eval()
    for layer in layers:
        layer.weight = nn.Parameter(matrix.view(1024, 1024), requires_grad=False)  # pyright: ignore

    def work() -> dict[str, float]:
        now = next(
            int(line.split()[1]) * 1024
            for line in Path("/proc/self/status").read_text().splitlines()
            if line.startswith("VmSize:")
        )
        limit = now + int(megabytes * _MB)
        resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
        try:
            return {"packed": float(pack_for_inference(layers) * matrix.nbytes)}
        except (MemoryError, RuntimeError):  # torch's own error where memory ends
            return {"packed": float("inf")}

    return work


def bfloat16(_: int, folder: Path) -> Costs:
    """How many times as slow as float32 an encoder layer is, on the processor as it is and without AVX-512."""
    from ..harness.machine import ISAS

    return {
        "as it is, x": apart("models:in_bfloat16", 1, folder)["slower"],
        "without AVX-512, x": apart("models:in_bfloat16", 1, folder, **ISAS["avx2"])["slower"],
    }


def in_bfloat16(_: int, __: Path) -> Work:
    import torch
    from voxzoo.components.layers.transformer import LayerSettings, TransformerEncoder
    from voxzoo.components.types import Padded

    torch.set_num_threads(1)

    def seconds(dtype: torch.dtype) -> float:
        encoder = TransformerEncoder(1, LayerSettings(dim=256, num_heads=4, ffn_dim=1024)).to(dtype).eval()
        states = Padded(torch.zeros(1, 200, 256, dtype=dtype), torch.tensor([200]))
        with torch.inference_mode():
            encoder(states)
            start = time.perf_counter()
            for _ in range(3):
                encoder(states)
        return time.perf_counter() - start

    return lambda: {"slower": seconds(torch.bfloat16) / seconds(torch.float32)}


ROWS = (
    Row("export", "G1 export of a model", export, "layers of 24 M", (2, 4, 8), (24, 48, 96), 96,
        {"private peak MB": 14_000}),
    Row("load", "G2 load of a run", load, "layers of 24 M", (2, 4, 8), (24, 48, 96), 96,
        {"private MB": 1000, "CPU s": 5}),
    Row("packing", "G10 packing within a limit of memory", packing, "MB allowed", (100, 200, 400), (250, 500, 1000),
        1000, {"of the limit, x": 0.5}),
    Row("bfloat16", "G11 bfloat16 beside float32 on this CPU", bfloat16),
)  # fmt: skip
