"""CTranslate2 as a peer: the weights of a model of transformers, converted by its own converter, in float32 and int8.

It is in the extra `eval`; where it is not installed the rows say so.
"""

from __future__ import annotations

import importlib.util
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from .harness import Options, Other

KINDS = {"CTranslate2": "float32", "CTranslate2 int8": "int8"}
"""Name of the row -> compute type."""


class _Vocabulary:
    """What the converter asks a tokenizer: ids are their own names, but for special ones."""

    def __init__(self, size: int, special: Mapping[int, str]) -> None:
        self.names = [special.get(number, token(number)) for number in range(size)]
        self.unk_token = self.bos_token = self.names[3]
        self.unk_token_id = 3
        self.eos_token = self.names[2]
        self.special_tokens_map: dict[str, Any] = {}

    def convert_ids_to_tokens(self, number: int) -> str:
        return self.names[number]

    def get_vocab(self) -> dict[str, int]:
        return {name: number for number, name in enumerate(self.names)}


def token(number: int) -> str:
    """The name of an id in a converted model."""
    return f"t{number}"


def converted(model: Any, folder: Path, special: Mapping[int, str]) -> Path:
    """A model of transformers in CTranslate2's layout; `special` are the ids that it knows by name."""
    from ctranslate2.converters import TransformersConverter

    class Converter(TransformersConverter):
        """Random weights have no tokenizer."""

        def load_tokenizer(self, *_: Any, **__: Any) -> Any:
            return _Vocabulary(model.config.vocab_size, special)

        def load_model(self, *_: Any, **__: Any) -> Any:
            return model

    with tempfile.TemporaryDirectory() as config:
        model.config.save_pretrained(config)
        Converter(config).convert(str(folder))
    return folder


def others(
    models: Mapping[str, Any], run: Callable[[Any], Callable[[], Any]], options: Options, tolerance: float = 1e-4
) -> dict[str, Other]:
    """CTranslate2's rows.

    Args:
        models: what `loaded` gave.
        run: makes what is timed out of a loaded model.
        tolerance: of what may differ in float32.
    """
    if not options.has_others:
        return {}
    if not models:
        return {name: Other(None, note="ctranslate2 is not installed (pip install voxzoo[eval])") for name in KINDS}
    return {name: Other(run(model), exact=name == "CTranslate2", tolerance=tolerance) for name, model in models.items()}


def loaded(
    model: Any, kind: Literal["Whisper", "Translator"], options: Options, special: Mapping[int, str]
) -> dict[str, Any]:
    """Name of the row -> a model of transformers in CTranslate2; empty where it is not wanted or not installed."""
    if not options.has_others or importlib.util.find_spec("ctranslate2") is None:
        return {}
    import ctranslate2

    load = ctranslate2.models.Whisper if kind == "Whisper" else ctranslate2.Translator
    with tempfile.TemporaryDirectory() as folder:
        path = str(converted(model, Path(folder) / "converted", special))
        return {
            name: load(path, device="cpu", compute_type=compute, inter_threads=1, intra_threads=options.threads)
            for name, compute in KINDS.items()
        }


def storage(array: Any) -> Any:
    """A tensor (any shape, float32, on the CPU) as CTranslate2 takes it."""
    import ctranslate2

    return ctranslate2.StorageView.from_array(array.contiguous().numpy())


def ids(rows: Sequence[Sequence[str]]) -> list[list[int]]:
    """Names of ids -> ids."""
    return [[int(name[1:]) for name in row] for row in rows]
