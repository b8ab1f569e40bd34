"""Beam search, greedy decoding and sampling over cached decoders of text or units.

Letters: B samples, A samples still running, K beams, R = A x K rows, P prefix tokens, n tokens generated so far, C
candidates per sample, V vocabulary, D model dim.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import chain
from typing import Literal, Protocol

import torch
from torch import Tensor

from ..roles import DecoderState
from ..types import Padded

_CACHED = 2**18  # elements of logits that fit a core's cache with what is made of them


class IncrementalDecoder(Protocol):
    """What search needs of a decoder; `TextSeq2Seq`, `TransformerDecoder` and `SpeechLM` have it."""

    def start(self, memory: Padded, /, beams: int = 1) -> DecoderState:
        """Prepare B x beams rows over (B, T, D) memory; of a decoder without memory, over a prompt of (B, T) ids."""
        ...

    def step(self, tokens: Tensor, state: DecoderState) -> Tensor:
        """(R,) newest ids -> (R, D) states; advances `state`."""
        ...

    def project(self, states: Tensor) -> Tensor:
        """(R, D) states -> (R, V) logits, a new tensor."""
        ...


@dataclass(frozen=True)
class SearchOptions:
    """How to search. The defaults are the official ones of SeamlessM4T for text.

    The limit on generated tokens, the closing eos included, is min(max_length, max_length_a * x + max_length_b) with x
    the memory length of the sample (never of the batch, so that batching changes nothing), or what `generate` is told
    in its place; there eos is forced, or the hypothesis is cut (`force_eos`). It never falls below the fewest, and one
    more where eos is forced. A decoder with learned positions sets a limit of its own (`max_positions`, prefix
    included): what it has no position for is not generated.

    Attributes:
        method: `beam`; `greedy` (beam size 1); `sample`: `beam_size` independent samples for each input.
        beam_size: beams, and the most hypotheses returned for an input.
        length_penalty: p in score = log-probability / length^p; above 0 favours long output, 0 is no normalisation.
        score: what is summed and counted: `generated`, the tokens after the prefix, eos included (transformers);
            `with_prefix`, also the prefix behind its first token, that is the language token (official SeamlessM4T);
            `after_start`, the language token counts but is certain (transformers' `forced_bos_token_id`: NLLB).
        min_length: fewest tokens before eos is allowed.
        min_length_a: and at least that many times x.
        max_length: hard limit.
        max_length_a, max_length_b: soft limit.
        no_repeat_ngram: size of n-grams that may not occur twice (prefix included); 0: off. eos is never blocked.
        unk_penalty: taken off the log-probability of unk; `inf` blocks it.
        force_eos: the last token that the limit allows is eos (fairseq2). False: it is any token, and a hypothesis that
            did not end there is taken as it is (transformers).
        early_stopping: stop once `beam_size` hypotheses have ended (fairseq2). False: go on until the best running
            beam, normalised by its present length, is worse than the worst ended one (transformers' default).
        temperature: divides logits before sampling. Scores stay those of the model.
        top_k: sample from that many most probable tokens; 0: all.
        top_p: sample from the fewest tokens that together have this probability (Holtzman et al. 2020).
        suppress: ids never generated. The padding id never is, unless it is also that of eos (Whisper).
        begin_suppress: ids that are not generated first, behind the prefix.
    """

    method: Literal["beam", "greedy", "sample"] = "beam"
    beam_size: int = 5
    length_penalty: float = 1.0
    score: Literal["generated", "with_prefix", "after_start"] = "generated"
    min_length: int = 1
    min_length_a: float = 0.0
    max_length: int = 256
    max_length_a: float = 1.0
    max_length_b: int = 200
    no_repeat_ngram: int = 0
    unk_penalty: float = 0.0
    force_eos: bool = True
    early_stopping: bool = True
    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0
    suppress: tuple[int, ...] = field(default=())
    begin_suppress: tuple[int, ...] = field(default=())

    def __post_init__(self) -> None:
        if self.method not in ("beam", "greedy", "sample"):
            raise ValueError(f"search method must be beam, greedy or sample; got {self.method!r}")
        if self.score not in ("generated", "with_prefix", "after_start"):
            raise ValueError(f"search score must be generated, with_prefix or after_start; got {self.score!r}")
        if self.beam_size < 1:
            raise ValueError(f"beam_size must be at least 1; got {self.beam_size}")
        if self.max_length < 1 or not 0 <= self.min_length <= self.max_length - self.force_eos:
            order = (
                "0 <= min_length < max_length is needed, for eos" if self.force_eos else "0 <= min_length <= max_length"
            )
            raise ValueError(f"{order}; got {self.min_length} and {self.max_length}")
        if self.min_length_a < 0:
            raise ValueError(f"min_length_a must be at least 0; got {self.min_length_a}")
        if self.no_repeat_ngram < 0:
            raise ValueError(f"no_repeat_ngram must be 0 (off) or more; got {self.no_repeat_ngram}")
        if self.temperature <= 0:
            raise ValueError(
                f"temperature must be above 0 (for the most probable token use greedy); got {self.temperature}"
            )
        if self.top_k < 0 or not 0 < self.top_p <= 1:
            raise ValueError(f"top_k must be 0 or more and top_p in (0, 1]; got {self.top_k} and {self.top_p}")

    def limit(self, memory_length: int) -> int:
        """Most tokens generated for a sample, eos included."""
        soft = int(self.max_length_a * memory_length + self.max_length_b)
        return max(min(self.max_length, soft), self.fewest(memory_length) + self.force_eos, 1)

    def fewest(self, memory_length: int) -> int:
        """Tokens of a sample before eos is allowed: at most `max_length`, one less where eos is forced."""
        return min(max(self.min_length, int(self.min_length_a * memory_length)), self.max_length - self.force_eos)


@dataclass(frozen=True)
class Hypothesis:
    """One output.

    Attributes:
        tokens: (n,) int64 on the CPU, without prefix and without eos.
        score: log-probability / length^length_penalty, see `SearchOptions.score`.
        states: (P + n, D) decoder states of the prefix and the tokens (not of eos), where they were asked for: what a
            second pass reads. The state in row i predicts token i + 1. Of one that was cut the last row, which would
            be that of its last token, is not there.
        ended: False for one that was cut at the limit (see `SearchOptions.force_eos`).
    """

    tokens: Tensor
    score: float
    states: Tensor | None = None
    ended: bool = True


@torch.no_grad()
def generate(
    model: IncrementalDecoder,
    memory: Padded,
    prefix: Tensor,
    options: SearchOptions,
    eos_id: int,
    pad_id: int,
    unk_id: int,
    generator: torch.Generator | None = None,
    keep_states: bool = False,
    lengths: Sequence[int] | None = None,
) -> list[list[Hypothesis]]:
    """Decode a batch.

    Args:
        model: the decoder, in eval mode.
        memory: (B, T, D); of a decoder without memory (`SpeechLM`) the (B, T) ids of the prompt before `prefix`.
        prefix: (B, P) int64 forced first tokens, usually eos and the language.
        generator: random numbers for sampling; None: torch's global generator.
        keep_states: fill `Hypothesis.states`.
        lengths: of each sample, what its limits follow; None: its memory. A prompt says little about the length of what
            is to come: there it is the length of the source.

    Returns:
        For each sample its hypotheses, best first: at most `beam_size` (1 for greedy). With beam search and greedy
        decoding they do not depend on the other samples in the batch.

    Raises:
        ValueError: a prefix of the wrong shape, a vocabulary too small, or options that block every token.
    """
    if prefix.dim() != 2 or prefix.shape[0] != len(memory) or prefix.shape[1] < 1:
        raise ValueError(f"prefix must be (B, P) with B={len(memory)} and P >= 1; got {tuple(prefix.shape)}")
    if eos_id in options.suppress:
        raise ValueError(f"suppress holds the id of eos ({eos_id}): nothing would ever end; take it out")
    prefix = prefix.to(memory.device)
    groups = 1
    if options.method == "sample" and options.beam_size > 1:
        # Samples are independent of each other: each is a row of its own with one beam.
        groups = options.beam_size
        memory = Padded(memory.data.repeat_interleave(groups, 0), memory.lengths.repeat_interleave(groups, 0))
        prefix = prefix.repeat_interleave(groups, 0)
    followed = memory.lengths.tolist() if lengths is None else [x for x in lengths for _ in range(groups)]
    search = _Search(model, memory, prefix, options, followed, eos_id, pad_id, unk_id, generator, keep_states)
    found = search.run()
    merged = [list(chain(*found[start : start + groups])) for start in range(0, len(found), groups)]
    for hypotheses in merged:
        if not hypotheses:
            raise ValueError(
                "no hypothesis: either suppress, no_repeat_ngram, unk_penalty and min_length block every token, "
                "or the decoder gives NaN"
            )
        hypotheses.sort(key=lambda hypothesis: -hypothesis.score)
    return merged


def log_normaliser(logits: Tensor) -> Tensor:
    """(R, V) logits -> (R, 1) logsumexp, the same to the last bit as in one call.

    On a CPU a few rows at a time: what a large vocabulary makes on the way then stays in the cache. Never one row alone
    of several: a sum of one row is cut up among threads, and rounds otherwise.
    """
    blocks = -(-len(logits) // 4) if logits.device.type == "cpu" and logits.numel() > _CACHED else 1
    return torch.cat([block.logsumexp(dim=-1, keepdim=True) for block in logits.tensor_split(max(blocks, 1))])


def draw(logits: Tensor, options: SearchOptions, generator: torch.Generator | None = None) -> Tensor:
    """(R, V) logits -> (R, 1) ids, one drawn for each row under `temperature`, `top_k` and `top_p`.

    Raises:
        ValueError: a row that allows nothing, or NaN.
    """
    values, ids = logits, None
    if options.top_k or options.top_p < 1:
        values, ids = logits.topk(min(options.top_k or logits.shape[-1], logits.shape[-1]), dim=-1)
    probs = (values / options.temperature).softmax(dim=-1)
    if options.top_p < 1:
        # A token stays if those before it have not reached top_p; the first always does.
        probs = probs.masked_fill(probs.cumsum(dim=-1) - probs >= options.top_p, 0)
    if not bool(probs.isfinite().all()):
        raise ValueError(
            "nothing to sample from: either suppress, no_repeat_ngram, unk_penalty and min_length block every "
            "token, or the decoder gives NaN"
        )
    choice = torch.multinomial(probs, 1, generator=generator)
    return choice if ids is None else ids.gather(1, choice)


class _Search:
    """The loop over one batch. Rows of a running sample stand together, best beam first."""

    def __init__(
        self,
        model: IncrementalDecoder,
        memory: Padded,
        prefix: Tensor,
        options: SearchOptions,
        lengths: Sequence[int],
        eos_id: int,
        pad_id: int,
        unk_id: int,
        generator: torch.Generator | None,
        keep_states: bool,
    ) -> None:
        self.model, self.options, self.generator = model, options, generator
        self.eos_id, self.pad_id, self.unk_id = eos_id, pad_id, unk_id
        self.beams = options.beam_size if options.method == "beam" else 1
        self.device = memory.device
        self.prefix_length = prefix.shape[1]
        self.limits = [options.limit(length) for length in lengths]
        self.fewest = [options.fewest(length) for length in lengths]
        positions = getattr(model, "max_positions", None)
        if positions is not None:
            if positions < self.prefix_length:
                raise ValueError(
                    f"the prefix has {self.prefix_length} tokens, but the decoder has positions for {positions}"
                )
            # The last token needs none: it is not fed.
            self.limits = [min(limit, positions - self.prefix_length + 1) for limit in self.limits]
        self.samples = list(range(len(memory)))
        self.found: list[list[Hypothesis]] = [[] for _ in self.samples]
        self.state = model.start(memory, self.beams)
        if self.state.room is not None:  # positions behind a prompt
            self.limits = [
                max(min(limit, room - self.prefix_length + 1), 1)
                for limit, room in zip(self.limits, self.state.room, strict=True)
            ]
        # The last token is not fed.
        self.state.reserve(self.prefix_length + max(self.limits, default=1) - 1)
        self.tokens = prefix.repeat_interleave(self.beams, 0)
        # One beam alone before the first choice, or all of them would choose the same.
        self.scores = torch.full((len(memory), self.beams), -torch.inf, device=self.device)
        self.scores[:, 0] = 0
        blocked = [pad_id, *options.suppress] + ([unk_id] if options.unk_penalty == float("inf") else [])
        # A vocabulary of bytes has neither padding nor unk of its own: both ids may be that of eos.
        self.blocked = torch.tensor(sorted(set(blocked) - {eos_id}), dtype=torch.int64, device=self.device)
        self.blocked_first = torch.tensor(sorted(set(options.begin_suppress)), dtype=torch.int64, device=self.device)
        self.trail = _Trail() if keep_states else None

    def run(self) -> list[list[Hypothesis]]:
        states = self._feed_prefix()
        generated = 0
        while True:
            last = [self.limits[sample] == generated + 1 for sample in self.samples]
            at_limit = torch.tensor(last) if any(last) else None
            logits, normaliser = self._distribution(states, generated, at_limit)
            if self.options.method == "sample":
                scores, beams, ids = self._sample(logits, normaliser)
            else:
                scores, beams, ids = self._best(logits, normaliser)
            generated += 1
            ended = ids == self.eos_id
            if not self.options.force_eos and at_limit is not None:
                ended = ended | at_limit[:, None].to(ended.device)
            self._collect(scores, beams, ids, ended, generated)
            if ids.shape[1] > 1:
                # Stable: the best that go on, in order. Of 2K candidates at most K are eos, one for each beam.
                order = ended.to(torch.int8).sort(dim=1, stable=True).indices[:, : self.beams]
                scores, beams, ids = (x.gather(1, order) for x in (scores, beams, ids))
            running = self._running(scores, last, generated)
            if not running:
                return self.found
            states = self._advance(scores, beams, ids, running)

    def _feed_prefix(self) -> Tensor:
        """Feed all prefix tokens; (R, D) states that predict the first free token."""
        states = self._step(self.tokens[:, 0])
        for place in range(1, self.prefix_length):
            ids = self.tokens[:, place]
            if self.options.score == "with_prefix":
                log_probs = torch.log_softmax(self.model.project(states).float(), dim=-1).gather(1, ids[:, None])
                self.scores += log_probs.view_as(self.scores)
            if self.trail is not None:
                self.trail.stay(len(ids))
            states = self._step(ids)
        return states

    def _step(self, ids: Tensor) -> Tensor:
        states = self.model.step(ids, self.state)
        if self.trail is not None:
            self.trail.states.append(states)
        return states

    def _distribution(self, states: Tensor, generated: int, at_limit: Tensor | None) -> tuple[Tensor, Tensor]:
        """(R, D) states -> (R, V) logits with what is not allowed at -inf, and their (R, 1) log-normaliser.

        The normaliser is that of all tokens: blocking a token does not make the others more probable.
        """
        logits = self.model.project(states).float()
        if logits.shape[-1] < 2:
            raise ValueError(f"search needs a vocabulary of at least 2; got {logits.shape[-1]}")
        normaliser = log_normaliser(logits)
        logits.index_fill_(1, self.blocked, -torch.inf)
        if not generated and len(self.blocked_first):
            logits.index_fill_(1, self.blocked_first, -torch.inf)
        if 0 < self.options.unk_penalty < float("inf") and self.unk_id != self.eos_id:
            logits[:, self.unk_id] -= self.options.unk_penalty
        size = self.options.no_repeat_ngram
        if size and self.tokens.shape[1] >= size:
            self._block_ngrams(logits, size)
        forced = self.options.force_eos and at_limit is not None
        ends = logits[:, self.eos_id].clone() if forced else None
        early = [generated < self.fewest[sample] for sample in self.samples]
        if all(early):
            logits[:, self.eos_id] = -torch.inf
        elif any(early):
            logits[self._rows(torch.tensor(early)), self.eos_id] = -torch.inf
        if at_limit is not None and ends is not None:
            rows = self._rows(at_limit)
            logits[rows] = -torch.inf
            logits[rows, self.eos_id] = ends[rows]  # also before min_length, where a decoder has no more positions
        return logits, normaliser

    def _rows(self, chosen: Tensor) -> Tensor:
        """(A,) bool of samples -> the rows of all their beams."""
        return chosen.repeat_interleave(self.beams).nonzero()[:, 0].to(self.device)

    def _block_ngrams(self, logits: Tensor, size: int) -> None:
        """Put -inf where a token would complete an n-gram that the row already has."""
        windows = self.tokens.unfold(1, size, 1)
        tail = self.tokens[:, self.tokens.shape[1] - size + 1 :]
        seen = (windows[:, :, :-1] == tail[:, None]).all(dim=-1)
        eos = logits[:, self.eos_id].clone()
        # Windows that do not match block padding, which is blocked anyway: no search for the ones that do.
        logits.scatter_(1, torch.where(seen, windows[:, :, -1], self.pad_id), -torch.inf)
        logits[:, self.eos_id] = eos

    def _best(self, logits: Tensor, normaliser: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """The 2K best continuations of each sample: scores, beams and ids, each (A, C), best first. One alone where
        the best one decides: of one beam, whose search stops once it has ended."""
        if self.beams == 1 and self.options.early_stopping:
            values, ids = logits.max(dim=-1, keepdim=True)
            return values - normaliser + self.scores, torch.zeros_like(ids), ids
        width = min(2 * self.beams, logits.shape[-1])
        values, ids = logits.topk(width, dim=-1)
        # Top-k over a row needs no log-softmax: the normaliser is the same for the row.
        values = (values - normaliser).view(-1, self.beams, width) + self.scores[:, :, None]
        scores, places = values.flatten(1).topk(min(2 * self.beams, self.beams * width), dim=-1)
        return scores, places // width, ids.view(-1, self.beams * width).gather(1, places)

    def _sample(self, logits: Tensor, normaliser: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """One random continuation of each row: scores, beams and ids, each (A, 1)."""
        ids = draw(logits, self.options, self.generator)
        scores = self.scores + logits.gather(1, ids) - normaliser
        return scores, torch.zeros_like(ids), ids

    def _normalise(self, score: float, generated: int) -> float:
        length = generated + (0 if self.options.score == "generated" else self.prefix_length - 1)
        return score / length**self.options.length_penalty

    def _collect(self, scores: Tensor, beams: Tensor, ids: Tensor, ended: Tensor, generated: int) -> None:
        """Keep the hypotheses that ended (or are cut) among the best K candidates."""
        counted = (ended & scores.isfinite())[:, : self.beams]
        hits = counted.nonzero().tolist()
        if not hits:
            return
        rows = [
            row * self.beams + beam
            for (row, _), beam in zip(hits, beams[:, : self.beams][counted].tolist(), strict=True)
        ]
        values = scores[:, : self.beams][counted].tolist()
        tokens = torch.cat([self.tokens[rows, self.prefix_length :], ids[:, : self.beams][counted][:, None]], 1).cpu()
        for (row, _), source, value, found in zip(hits, rows, values, tokens, strict=True):
            states = None if self.trail is None else self.trail.back(source)
            whole = bool(found[-1] == self.eos_id)
            hypothesis = Hypothesis(found[:-1] if whole else found, self._normalise(value, generated), states, whole)
            self.found[self.samples[row]].append(hypothesis)
        for row in {row for row, _ in hits}:
            hypotheses = self.found[self.samples[row]]
            hypotheses.sort(key=lambda hypothesis: -hypothesis.score)
            del hypotheses[self.beams :]

    def _running(self, scores: Tensor, at_limit: Sequence[bool], generated: int) -> list[int]:
        """Rows (of A) of the samples that go on. `scores` (A, K) are those of the beams that would."""
        best = scores[:, 0].tolist()
        running = []
        for row, (sample, last) in enumerate(zip(self.samples, at_limit, strict=True)):
            full = len(self.found[sample]) == self.beams
            if full and not self.options.early_stopping:
                full = self._normalise(best[row], generated) <= self.found[sample][-1].score
            if not (last or full or best[row] == -float("inf")):
                running.append(row)
        return running

    def _advance(self, scores: Tensor, beams: Tensor, ids: Tensor, running: list[int]) -> Tensor:
        """Take the chosen beams of the running samples, feed their new tokens; (R', D) states."""
        stay = self.beams == 1 and len(running) == len(self.samples)
        if stay:
            # One beam and nobody left: every row follows itself.
            self.scores = scores
            if self.trail is not None:
                self.trail.stay(len(self.samples))
        else:
            keep = torch.tensor(running, device=self.device)
            rows = (keep[:, None] * self.beams + beams[keep]).flatten()
            self.samples = [self.samples[row] for row in running]
            self.scores, ids = scores[keep], ids[keep]
            self.tokens = self.tokens[rows]
            self.state.reorder(rows)
            if self.trail is not None:
                self.trail.parents.append(rows.tolist())
        self.tokens = torch.cat([self.tokens, ids.view(-1, 1)], dim=1)
        return self._step(ids.flatten())


class _Trail:
    """States of all steps, and for each row the row of the step before that it continues."""

    def __init__(self) -> None:
        self.states: list[Tensor] = []
        self.parents: list[list[int]] = []

    def stay(self, rows: int) -> None:
        """Every row continues itself."""
        self.parents.append(list(range(rows)))

    def back(self, row: int) -> Tensor:
        """(steps, D) states on the way to a row of the newest step."""
        rows = [row]
        for parents in reversed(self.parents):
            rows.append(parents[rows[-1]])
        return torch.stack([states[row] for states, row in zip(self.states, reversed(rows), strict=True)])
