"""How a published folder says to generate (generation_config.json), as options of `components.search`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import MISSING, fields
from typing import Any, Literal

from ..errors import UserError
from ..search import SearchOptions
from .family import Nodes

# What changes the text and has no option here, with the values under which it does nothing.
_NEUTRAL: dict[str, tuple[Any, ...]] = {
    "bad_words_ids": (),
    "diversity_penalty": (0.0,),
    "do_sample": (False,),
    "dola_layers": (),
    "encoder_no_repeat_ngram_size": (0,),
    "encoder_repetition_penalty": (1.0,),
    "exponential_decay_length_penalty": (),
    "force_words_ids": (),
    "forced_eos_token_id": (),
    "guidance_scale": (1.0,),
    "num_beam_groups": (1,),
    "penalty_alpha": (),
    "renormalize_logits": (False,),
    "repetition_penalty": (1.0,),
    "sequence_bias": (),
    "stop_strings": (),
}
_SAMPLING = {"temperature": (1.0,), "top_k": (0, 50), "top_p": (1.0,), "typical_p": (1.0,), "min_p": ()}


def search_node(
    found: Mapping[str, Any],
    *,
    score: Literal["generated", "after_start"],
    longest: int,
    prompt: int,
    forced: int = 0,
) -> dict[str, Any]:
    """Options under which `components.search` finds what transformers' `generate` finds.

    Args:
        found: generation_config.json over what config.json says. A value of 0 is a value; null is what is not said.
        score: as in `SearchOptions`.
        longest: most tokens behind the prefix.
        prompt: tokens before the first that is generated there, which `min_length` counts.
        forced: tokens that are generated there and belong to the prefix here.

    Raises:
        UserError: a value that is no number of its kind.
    """
    beams = _number(found, "num_beams", 1, int, 1)
    least = max(_number(found, "min_new_tokens", 0, int, 0), _number(found, "min_length", 0, int, 0) - prompt)
    node = {
        "_target_": "voxzoo.components.search.SearchOptions",
        "method": "beam" if beams > 1 else "greedy",
        "beam_size": beams,
        "length_penalty": _number(found, "length_penalty", 1.0, float),
        "score": score,
        "min_length": min(max(least - forced, 0), longest),
        "max_length": longest,
        "max_length_a": 0.0,
        "max_length_b": longest,
        "no_repeat_ngram": _number(found, "no_repeat_ngram_size", 0, int, 0),
        "early_stopping": found.get("early_stopping") is True,
        "force_eos": False,
    }
    for ours, theirs in (("suppress", "suppress_tokens"), ("begin_suppress", "begin_suppress_tokens")):
        if found.get(theirs):
            node[ours] = [int(number) for number in found[theirs] if int(number) >= 0]
    return node


def longest_of(found: Mapping[str, Any], default: int, prompt: int = 0) -> int:
    """Most tokens that are generated there: `max_new_tokens`, or what `max_length` leaves behind the prompt."""
    told = found.get("max_new_tokens")
    if told is not None:
        return _number(found, "max_new_tokens", default, int, 1)
    if found.get("max_length") is not None:
        return max(_number(found, "max_length", default, int, 1) - prompt, 1)
    return default


def generation_content(nodes: Nodes, forced: int = 0) -> dict[str, Any]:
    """A task's search as generation_config.json says it, so that `search_node` reads it back. `forced`: as there."""
    search = search_options(nodes.get("task") or {})
    beams = search["beam_size"] if search["method"] == "beam" else 1
    content = {
        "num_beams": beams,
        "early_stopping": bool(search["early_stopping"]) and beams > 1,
        "length_penalty": search["length_penalty"],
        "no_repeat_ngram_size": search["no_repeat_ngram"],
        "max_new_tokens": search["max_length"] + forced,
    }
    if search["min_length"]:
        content["min_new_tokens"] = search["min_length"] + forced
    for ours, theirs in (("suppress", "suppress_tokens"), ("begin_suppress", "begin_suppress_tokens")):
        if search[ours]:
            content[theirs] = [*search[ours]]
    return content


def search_options(task: Mapping[str, Any]) -> dict[str, Any]:
    """All options of a task's search, by name."""
    given = task.get("search") or {}
    plain = {
        item.name: item.default if item.default is not MISSING else () for item in fields(SearchOptions) if item.init
    }
    return {**plain, **{key: given[key] for key in given if key in plain}}


def unread(found: Mapping[str, Any]) -> list[str]:
    """Lines on settings that change what transformers generates and that are not taken here."""
    neutral = {**_NEUTRAL, **(_SAMPLING if found.get("do_sample") else {})}
    lines = [
        f"generation_config.json: {key}={found[key]!r} is not taken: voxzoo searches without it"
        for key in sorted(neutral.keys() & found.keys())
        if found[key] not in (None, [], {}, *neutral[key])
    ]
    if found.get("early_stopping") not in (None, True, False):
        lines.append(
            f"generation_config.json: early_stopping={found['early_stopping']!r} is read as false: a search ends once "
            "no running beam is better at its present length"
        )
    return lines


def _number(found: Mapping[str, Any], key: str, default: Any, kind: type, least: float | None = None) -> Any:
    given = found.get(key)
    if given is None:
        return default
    if isinstance(given, bool) or not isinstance(given, int | float) or (kind is int and int(given) != given):
        expected = "a whole number" if kind is int else "a number"
        raise UserError(f"generation_config.json: {key}={given!r}: expected {expected}")
    if least is not None and given < least:
        raise UserError(f"generation_config.json: {key}={given!r}: expected at least {least}")
    return kind(given)
