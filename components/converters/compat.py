"""Where transformers, the original code and voxzoo differ over the same weights, one switch a row.

`python -m voxzoo.components.converters` prints the table of components/README.md.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from .family import Compat, Nodes

_SPEECH_TASKS = ("SpeechToText", "SpeechToSpeechUnitY", "SpeechAndTextToText")
_TASKS = (*_SPEECH_TASKS, "TextToText")
_T2U = ("AutoregressiveT2U", "UnitY2T2U")
_SEARCH = "voxzoo.components.search.SearchOptions"

Node = Mapping[str, Any]


@dataclass(frozen=True)
class Difference:
    """One known difference.

    Attributes:
        role: config key of the part.
        key: constructor argument; with a dot, of what that argument holds (`search.score`). Empty: there is no switch.
        classes: classes that have it.
        new: what new models have, the default of the class.
        transformers, fairseq2: what the two implementations do; a function of all nodes where it depends on them.
        what: one line.
        training: it changes training alone, never a result of inference.
        when: nodes that it concerns; None: all with such a class.
        shown: new, transformers and fairseq2 as the table writes them, where the values alone do not say it.
    """

    role: str
    key: str
    classes: tuple[str, ...]
    new: Any
    transformers: Any
    fairseq2: Any
    what: str
    training: bool = False
    when: Callable[[Nodes], bool] | None = None
    shown: tuple[str, str, str] | None = None

    @property
    def name(self) -> str:
        """As a config override writes it."""
        return f"{self.role}.{self.key}" if self.key else self.role

    def applies(self, nodes: Nodes) -> bool:
        """Whether these nodes have such a part."""
        node = nodes.get(self.role)
        if not self.key or not node or class_of(node) not in self.classes:
            return False
        return self.when is None or self.when(nodes)

    def value(self, nodes: Nodes, compat: Compat) -> Any:
        """What the switch is set to."""
        found = self.transformers if compat == "transformers" else self.fairseq2
        return found(nodes) if callable(found) else found

    def cells(self) -> tuple[str, str, str]:
        """The three columns of values."""
        return self.shown or (_shown(self.new), _shown(self.transformers), _shown(self.fairseq2))


def class_of(node: Node) -> str:
    """The class that a node names, without its package."""
    return str(node.get("_target_") or "").rpartition(".")[2]


def _is_m4t(nodes: Nodes) -> bool:
    """SeamlessM4T's text stacks, not those of NLLB or Whisper: they number padding 0."""
    return (nodes.get("text_seq2seq") or {}).get("pad_id", 0) == 0


def _sentencepiece_model(nodes: Nodes) -> bool:
    """Not a tokenizer.json, which has transformers' preparation alone."""
    return not str(nodes["tokenizer"].get("model") or "").endswith(".json")


def _reads_limits(nodes: Nodes) -> bool:
    """All but Whisper, whose keys have no bias: there is no original code of fairseq's to differ from."""
    return (nodes.get("text_seq2seq") or {}).get("key_bias", True)


def _longest(nodes: Nodes) -> int:
    """The one limit of transformers: 256 for SeamlessM4T, as `search.max_length`, and else what that is."""
    return 256 if _is_m4t(nodes) else (nodes["task"].get("search") or {}).get("max_length", 256)


def _never(nodes: Nodes) -> bool:
    return False


def _published_t2u(nodes: Nodes) -> bool:
    return class_of(nodes.get("t2u") or {}) in _T2U


def _t2u_eos(nodes: Nodes) -> str:
    return "keep" if class_of(nodes["t2u"]) == "AutoregressiveT2U" else "keep_shorter"


def _batch_norm(nodes: Nodes) -> bool:
    return nodes["speech_encoder"].get("conv_norm") == "batch"


def _knows_speakers(nodes: Nodes) -> bool:
    return bool(nodes["vocoder"].get("speakers"))


TABLE: tuple[Difference, ...] = (
    # Front end and tokenizer
    Difference(
        "frontend", "variance_floor", ("Fbank",), 1e-7, 1e-7, 0.0,
        "added to the variance before standardising; without it silence is NaN",
    ),
    Difference(
        "tokenizer", "normaliser", ("SentencePieceTokenizer",), "sentencepiece", "transformers", "sentencepiece",
        "how text is prepared: white space at its end, control characters, letters with several marks",
        when=_sentencepiece_model,
    ),
    # Speech encoder and adaptor
    Difference(
        "speech_encoder", "padding_in_norm", ("ConformerEncoder",), False, True, True,
        "batch norm (v1) counts padded steps in", training=True, when=_batch_norm,
    ),
    Difference(
        "speech_encoder", "layer_drop", ("ConformerEncoder",), 0.0, 0.1, 0.0, "LayerDrop", training=True,
    ),
    Difference(
        "adaptor", "leak_padding", ("ConformerAdaptor",), False, True, True,
        "the strided convolutions read what stands behind the last real step, so a row depends on its batch",
    ),
    Difference(
        "adaptor", "attention_dropout", ("ConformerAdaptor",), 0.0, 0.0, 0.1, "dropout on attention weights",
        training=True,
    ),
    Difference(
        "adaptor", "ffn_inner_dropout", ("ConformerAdaptor",), None, None, 0.0,
        "dropout inside the feed-forward", training=True, shown=("as `dropout`", "as `dropout`, 0.1", "0"),
    ),
    # Text
    Difference(
        "text_seq2seq", "position_start", ("TransformerSeq2Seq",), 2, 1, 2,
        "number of the first position", when=_is_m4t,
    ),
    Difference(
        "text_seq2seq", "tie_output", ("TransformerSeq2Seq",), True, True, True,
        "the output layer is the embedding matrix (fine-tuning with the original code unties it). "
        "`compat` leaves it as it is: the parameters are those of the weights", when=_never,
        shown=("true", "true", "true, false once tuned"),
    ),
    Difference(
        "text_seq2seq", "ffn_dropout", ("TransformerSeq2Seq",), None, 0.0, None,
        "dropout on what the feed-forward adds", training=True, when=_is_m4t,
        shown=("as `dropout`", "0", "as `dropout`, 0.1"),
    ),
    Difference(
        "text_seq2seq", "layerdrop", ("TransformerSeq2Seq",), 0.0, 0.05, 0.0, "LayerDrop", training=True, when=_is_m4t,
    ),
    # Loss
    Difference(
        "task", "loss_on_lang_token", _TASKS, False, True, False,
        "the target language is a label too", training=True,
    ),
    Difference(
        "task", "label_smoothing", _TASKS, 0.1, 0.0, 0.2, "label smoothing (fairseq's form) of the text", training=True,
    ),
    # Search for text
    Difference(
        "task", "search.method", _TASKS, "beam", "greedy", "beam", "search", when=_is_m4t,
    ),
    Difference("task", "search.beam_size", _TASKS, 5, 1, 5, "beams", when=_is_m4t),
    Difference(
        "task", "search.score", _TASKS, "generated", "generated", "with_prefix",
        "whether the language token counts in a hypothesis's score and length", when=_is_m4t,
    ),
    Difference(
        "task", "search.early_stopping", _TASKS, True, False, True,
        "stop once as many hypotheses as beams have ended, or once no running one can be better", when=_is_m4t,
    ),
    Difference(
        "task", "search.force_eos", _TASKS, True, False, True, "the last token the limit allows is eos",
        when=_reads_limits,
    ),
    Difference("task", "search.min_length", _TASKS, 1, 0, 1, "tokens before eos may come", when=_is_m4t),
    Difference("task", "search.max_length", _TASKS, 256, 256, 1024, "most tokens", when=_is_m4t),
    Difference(
        "task", "search.max_length_a", _TASKS, 1.0, 0.0, 1.0, "limit of a x source steps + b: a", when=_reads_limits,
    ),
    Difference(
        "task", "search.max_length_b", _TASKS, 200, _longest, 200, "and b", when=_reads_limits,
        shown=("200", "as `search.max_length`", "200"),
    ),
    # Second pass
    Difference(
        "task", "t2u_input", ("SpeechToSpeechUnitY",), "pieces", "all", "all",
        "states that the second pass reads: from the first piece on, or also those of eos and language before it",
        when=_published_t2u,
    ),
    Difference(
        "task", "t2u_eos", ("SpeechToSpeechUnitY",), "strip", _t2u_eos, "strip",
        "whether it reads the state of the closing eos (v1), or does so in all rows but the longest of a batch (v2)",
        when=_published_t2u, shown=("strip", "keep (v1), keep_shorter (v2)", "strip"),
    ),
    Difference(
        "t2u", "dropout", ("UnitY2T2U",), 0.1, 0.1, 0.0, "dropout (v2; 0.1 in its convolutions in both)", training=True,
    ),
    Difference(
        "t2u", "attention_dropout", ("UnitY2T2U",), 0.1, 0.1, 0.0, "dropout on attention weights (v2)", training=True,
    ),
    Difference(
        "t2u", "ffn_dropout", _T2U, None, 0.0, None, "dropout on what the feed-forward adds", training=True,
        shown=("as `dropout`", "0", "as `dropout`"),
    ),
    Difference("t2u", "layerdrop", _T2U, 0.0, 0.05, 0.0, "LayerDrop", training=True),
    Difference(
        "t2u", "label_smoothing", ("AutoregressiveT2U",), 0.2, 0.0, 0.2, "label smoothing of the units (v1)",
        training=True,
    ),
    Difference(
        "t2u", "label_smoothing", ("UnitY2T2U",), 0.1, 0.0, 0.2, "label smoothing of the units (v2)", training=True,
    ),
    Difference("t2u", "beam_size", ("AutoregressiveT2U",), 5, 1, 5, "beams of the unit search (v1)"),
    Difference(
        "t2u", "score", ("AutoregressiveT2U",), "generated", "generated", "with_prefix",
        "whether the language token counts in its score (v1)",
    ),
    Difference("t2u", "early_stopping", ("AutoregressiveT2U",), True, False, True, "as `search.early_stopping` (v1)"),
    Difference("t2u", "force_eos", ("AutoregressiveT2U",), True, False, True, "as `search.force_eos` (v1)"),
    Difference("t2u", "min_length", ("AutoregressiveT2U",), 1, 0, 1, "units before eos may come (v1)"),
    Difference("t2u", "max_length_a", ("AutoregressiveT2U",), 25.0, 0.0, 25.0, "limit of a x states + b: a (v1)"),
    Difference("t2u", "max_length_b", ("AutoregressiveT2U",), 50, 1024, 50, "and b (v1)"),
    Difference(
        "t2u", "eos_step", ("AutoregressiveT2U",), False, True, False,
        "the vocoder is given a step for the closing eos, and speaks it (v1)",
    ),
    Difference(
        "t2u", "eos_as_unit", ("UnitY2T2U",), False, True, False, "eos among the units is spoken as unit 1 (v2)",
    ),
    Difference(
        "t2u", "vocoder_predicts_durations", ("UnitY2T2U",), False, True, False,
        "the vocoder predicts durations for units that stand one per frame already (v2)",
    ),
    # Vocoder
    Difference(
        "vocoder", "predict_durations", ("CodeHiFiGAN",), "without", "always", "without",
        "predict durations also where they are given",
    ),
    Difference(
        "vocoder", "published_lengths", ("CodeHiFiGAN",), False, True, False,
        "padding is spoken as unit 1 and reaches its neighbours; the length of a padded row is one unit too long, and "
        "each unit 1 is taken off it",
    ),
    Difference(
        "vocoder", "default_speaker", ("CodeHiFiGAN",), 0, 0, "first_of_language",
        "speaker where none is asked for", when=_knows_speakers, shown=("0", "0", "first of the language"),
    ),
    # What has no switch
    Difference(
        "dropout on embeddings", "", (), None, None, None, "behind the positions in both text stacks; an older "
        "transformers had none in the decoder", training=True, shown=("yes", "yes", "yes"),
    ),
    Difference(
        "division of the loss", "", (), None, None, None, "sums and counts are added over ranks and accumulation steps "
        "and divided once", training=True,
        shown=("labels that count", "labels that count, per batch", "target length - 1, per batch"),
    ),
    Difference(
        "`speech_encoder.leak_padding` of HuBERT and wav2vec 2.0", "", (), None, None, None, "the first norm, or all "
        "of the encoder, sees padding. Import follows the folder's `return_attention_mask`; `compat` leaves it",
        shown=("none", "all (base), none (large)", "not compared"),
    ),
    Difference(
        "eager attention of the v2 encoder", "", (), None, None, None, "adds its boolean mask instead of masking: "
        "padding takes part. Equal to voxzoo for single utterances, and with SDPA",
        shown=("masked", "not masked", "masked"),
    ),
    Difference(
        "chunks of the v2 encoder without a key", "", (), None, None, None, "a padded step that sees chunks without a "
        "real step attends to all steps alike there, and the adaptor reads what comes of it: other states at the end "
        "of padded rows (up to 0.33 of 3.4 in random models). Published chunks of 20,000 steps never leave one so; "
        "single utterances are equal",
        shown=("sees nothing", "sees all, also padding", "not compared"),
    ),
    Difference(
        "masks behind several adaptor layers", "", (), None, None, None, "derived from the first lengths, so that "
        "later layers see padding; published models have one layer", shown=("exact", "of the first layer", "exact"),
    ),
    Difference(
        "padding of the adaptor's convolutions", "", (), None, None, None, "the same for the published 8 / 8; other "
        "models are refused where the two differ", shown=("kernel // 2", "stride // 2", "kernel // 2"),
    ),
    Difference(
        "units that are none", "", (), None, None, None, "a language or special among the units is an index that the "
        "vocoder does not have", shown=("never chosen", "fails", "fails"),
    ),
    Difference(
        "texts of a beam search behind their end", "", (), None, None, None, "with padding numbered 0, a text that "
        "ends before others of its batch is filled up with eos there, which the second pass of v1 reads: other units",
        shown=("not read", "read as text", "not compared"),
    ),
    Difference(
        "texts without a character", "", (), None, None, None, "a text of ids without characters alone, such as a "
        "language, has nothing to say (v2)", shown=("no speech", "fails", "not compared"),
    ),
    Difference(
        "ids without text", "", (), None, None, None, "a language or unused id amid a text has no character; in "
        "transformers it counts as the four of None (v2)", shown=("0 characters", "4 characters", "0 characters"),
    ),
)  # fmt: skip
"""Every known difference, in the order of the data flow."""


def apply_compat(nodes: Nodes, compat: Compat) -> Nodes:
    """The same nodes with every switch as one of the implementations has it. Other keys, and roles of other classes,
    stay as they are.

    Args:
        nodes: role -> config node, as of `Family.nodes` or a composed config.
        compat: whose behaviour.

    Returns:
        New nodes; those given are not changed.

    Raises:
        ValueError: another implementation.
    """
    if compat not in ("transformers", "fairseq2"):
        raise ValueError(f"compat must be transformers or fairseq2; got {compat!r}")
    changed = {role: dict(node) for role, node in nodes.items()}
    for difference in TABLE:
        if not difference.applies(nodes):
            continue
        node, key = changed[difference.role], difference.key
        holder, _, inner = key.rpartition(".")
        if holder:
            node[holder] = dict(node.get(holder) or {"_target_": _SEARCH})
            node, key = node[holder], inner
        node[key] = difference.value(nodes, compat)
    return changed


def markdown() -> str:
    """The table for components/README.md."""
    lines = ["| switch | new models | transformers | original (fairseq2) | what it is |", "|---|---|---|---|---|"]
    for row in TABLE:
        name = f"`{row.name}`" if row.key else row.name
        what = f"{row.what} (training)" if row.training else row.what
        lines.append(" | ".join([f"| {name}", *row.cells(), f"{what} |"]))
    return "\n".join(lines) + "\n"


def _shown(value: Any) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    return f"{value:g}" if isinstance(value, float) else str(value)
