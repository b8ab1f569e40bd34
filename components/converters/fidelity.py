"""What transformers makes of an exported folder, against what the model is: each argument that the layout does not
hold."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from ..errors import UserError
from .compat import TABLE, class_of
from .family import Nodes
from .generation import search_options
from .settings import with_defaults

_PLACES = ("frontend", "speech_encoder", "adaptor", "text_seq2seq", "t2u", "vocoder", "codec")
# Arguments that only training reads, by the end of their name or its beginning.
_TRAINING_ENDS = ("dropout", "layerdrop", "layer_drop", "label_smoothing")
_TRAINING_STARTS = ("mask_time", "mask_feature", "aligner", "spec_augment")
_TRAINING = {
    *((row.role, row.key) for row in TABLE if row.training),
    *(("vocoder", key) for key in ("crop_units", "fft_size", "window_length", "hop_length", "num_mel_bins")),
    *(("codec", key) for key in ("decay", "dead_share")),
}
# Said by generation_config.json, or no more than a default for what transformers wants to be told.
_ELSEWHERE = {
    *(("t2u", key) for key in ("num_languages", "first_language_id", "default_language", "vocab_size")),
    *(("vocoder", key) for key in ("speakers", "default_language")),
    ("frontend", "output_dim"),
    ("codec", "default_loudness"),
}
# What changes little, or a padded batch alone, or can be asked for there: said, and never refused.
_SMALL = {
    ("frontend", "variance_floor"): "silence",
    ("adaptor", "leak_padding"): "padded rows of a batch",
    ("speech_encoder", "leak_padding"): "padded rows of a batch",
    ("vocoder", "published_lengths"): "padded rows and the length of speech with unit 1",
    ("vocoder", "default_speaker"): "the voice where none is asked for",
    ("t2u", "eos_step"): "the end of speech",
    ("t2u", "eos_as_unit"): "speech where eos stands among the units",
}
_UNIT_SEARCH = ("beam_size", "score", "early_stopping", "force_eos", "min_length", "max_length_a", "max_length_b")
# The layout has no place for them and transformers has one value, which it also has for published weights that were
# trained with the other.
_SWITCHES = {
    ("text_seq2seq", "position_start"),
    ("t2u", "vocoder_predicts_durations"),
    ("vocoder", "predict_durations"),
    ("task", "t2u_input"),
    ("task", "t2u_eos"),
}
_TASK = {"t2u_input": "pieces", "t2u_eos": "strip"}  # and what a config that leaves them out has


def compare(nodes: Nodes, there: Nodes, layout: str, accept: bool, generates: bool) -> list[str]:
    """Lines on what transformers does otherwise with a folder than the model that it was written from.

    Args:
        nodes: of the model.
        there: of the folder (`Family.nodes`), with what transformers does in all switches.
        layout: model type, for the messages.
        accept: say switches that change results, and do not refuse them: the model was imported, so published weights
            are read as transformers reads them, or the user has asked for it.
        generates: whether the folder says how to search (generation_config.json).

    Raises:
        UserError: an argument that changes results and that the layout cannot hold.
    """
    lines, switches = [], []
    for said, changed in (*_parts_otherwise(nodes, there, layout), *_task_otherwise(nodes, there)):
        if changed is None:
            switches.append(said)
        else:
            lines.append(f"{said}: changes {changed}")
    if switches and not accept:
        raise UserError(
            f"{', '.join(sorted(switches))}: with these weights transformers computes other numbers; train with "
            "compat=transformers, or export with --compat transformers to take what it makes of them"
        )
    lines = [*(f"{said}: changes results" for said in sorted(switches)), *lines]
    task, other = nodes.get("task") or {}, there.get("task") or {}
    if task.get("speaker") is not None:
        lines.append(f"task.speaker={task['speaker']} (transformers: 0): say speaker_id={task['speaker']} there")
    if generates:
        rows = [row.key.partition(".")[2] for row in TABLE if row.key.startswith("search.") and row.applies(nodes)]
        lines += _search_lines("task.search", rows, search_options(task), search_options(other))
    if class_of(nodes.get("t2u") or {}) == "AutoregressiveT2U" and "t2u" in there:
        lines += _search_lines("t2u", _UNIT_SEARCH, with_defaults(nodes["t2u"]), with_defaults(there["t2u"]))
    if (nodes.get("text_seq2seq") or {}).get("num_encoder_layers", 6) and there.get("tokenizer"):
        tokenizer, read = with_defaults(nodes.get("tokenizer") or {}), with_defaults(there["tokenizer"])
        if (ours := tokenizer.get("normaliser")) and ours != (theirs := read.get("normaliser")):
            lines.append(f"tokenizer.normaliser={ours} (transformers: {theirs}): changes text with odd characters")
    return lines


def _parts_otherwise(nodes: Nodes, there: Nodes, layout: str) -> Iterator[tuple[str, str | None]]:
    """Each argument of a part that transformers has otherwise, and what little that changes; None: results (a switch).
    But for the search of units, which gets a line of its own.

    Raises:
        UserError: one that is neither small nor a switch, or another class.
    """
    for role in _PLACES:
        if not (nodes.get(role, {}).get("_target_") and there.get(role, {}).get("_target_")):
            continue
        ours, theirs = with_defaults(nodes[role]), with_defaults(there[role])
        if class_of(ours) != class_of(theirs):
            raise UserError(
                f"{role}: {class_of(ours)}; a model in the {layout} layout reads {class_of(theirs)}, and transformers "
                "would give it that"
            )
        for key in sorted((ours.keys() | theirs.keys()) - {"_target_", "pretrained"}):
            if _unread(role, key, ours, nodes) or _plain(ours.get(key)) == _plain(theirs.get(key)):
                continue
            if role == "t2u" and key in _UNIT_SEARCH:
                continue
            if (role, key) not in _SMALL and (role, key) not in _SWITCHES:
                raise UserError(
                    f"{role}.{key}={_shown(ours.get(key))}: the {layout} layout cannot hold it, and transformers would "
                    f"compute with {_shown(theirs.get(key))}"
                )
            said = f"{role}.{key}={_shown(ours.get(key))} (transformers: {_shown(theirs.get(key))})"
            yield said, _SMALL.get((role, key))


def _task_otherwise(nodes: Nodes, there: Nodes) -> Iterator[tuple[str, str | None]]:
    """The same of the task's own arguments, where there is a second pass that reads them."""
    task, other = nodes.get("task") or {}, there.get("task") or {}
    if class_of(nodes.get("t2u") or {}) not in ("AutoregressiveT2U", "UnitY2T2U"):
        return
    for key in _TASK.keys() & other.keys():
        ours, theirs = task.get(key, _TASK[key]), other[key]
        if ours != theirs:
            said = f"task.{key}={ours} (transformers: {theirs})"
            yield said, "the shorter rows of a batch" if theirs == "keep_shorter" else None


def _unread(role: str, key: str, node: Mapping[str, Any], nodes: Nodes) -> bool:
    """Whether an argument changes no result: it is for training, or another one makes it moot."""
    if key.endswith(_TRAINING_ENDS) or key.startswith(_TRAINING_STARTS):
        return True
    if (role, key) in _TRAINING or (role, key) in _ELSEWHERE:
        return True
    if role == "frontend":
        if key == "pad_seconds":
            return node[key] is None  # `Family.notes` says it
        return key == "high_freq" and node[key] == node["sample_rate"] / 2
    if role == "speech_encoder":
        if key in ("left_context", "right_context"):
            return node.get("position") != "relative_key"
        if key in ("chunk_size", "left_chunks"):
            return node.get("chunk_size") is None  # config.json then has a chunk that nothing fills
        return key == "layer"  # `Family.notes` says it
    if role == "text_seq2seq":
        if key == "position_start":
            return node.get("max_positions") is not None
        return key == "tie_embeddings" and not node["num_encoder_layers"]
    if role == "vocoder" and key == "predict_durations":
        # Only units without recursion bring durations.
        t2u = with_defaults(nodes.get("t2u") or {})
        return class_of(t2u) != "UnitY2T2U" or t2u["vocoder_predicts_durations"]
    return False


def _search_lines(where: str, keys: Iterable[str], ours: Mapping[str, Any], theirs: Mapping[str, Any]) -> Iterator[str]:
    """One line on the options of a search that the two have otherwise."""
    found = [
        f"{key}={_shown(ours[key])} (transformers: {_shown(theirs[key])})" for key in keys if ours[key] != theirs[key]
    ]
    if found:
        yield f"{where}: {', '.join(found)}: say there, to `generate`, what it has an option for"


def _plain(value: Any) -> Any:
    """A value as JSON has it: lists for sequences, none for the name of nothing."""
    if isinstance(value, Sequence) and not isinstance(value, str):
        return [_plain(entry) for entry in value]
    return None if value == "none" else value


def _shown(value: Any) -> str:
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    return value if isinstance(value, str) else str(_plain(value))
