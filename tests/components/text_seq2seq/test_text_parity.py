"""Text stacks and search against transformers: M2M-100 / NLLB and SeamlessM4T, random and briefly trained weights."""

import pytest
import torch
from against import fill, randomise, text_key_map
from torch import Tensor
from voxzoo.components import TransformerSeq2Seq
from voxzoo.components.losses.cross_entropy import token_loss
from voxzoo.components.search import SearchOptions, generate
from voxzoo.components.types import Padded

transformers = pytest.importorskip("transformers")

V, DIM, HEADS, FFN = 37, 24, 3, 44
ENCODER_LAYERS, DECODER_LAYERS = 2, 3

M2M = text_key_map(
    "m2m",
    "model.encoder.",
    "model.decoder.",
    "model.shared.weight",
    "model.encoder.embed_tokens.weight",
    "model.decoder.embed_tokens.weight",
    "lm_head.weight",
)
M4T = text_key_map(
    "m4t",
    "text_encoder.",
    "text_decoder.",
    "shared.weight",
    "text_encoder.embed_tokens.weight",
    "text_decoder.embed_tokens.weight",
    "lm_head.weight",
)


def m2m():
    """M2M-100 ids: bos 0, pad 1, eos 2, unk 3."""
    torch.manual_seed(0)
    config = transformers.M2M100Config(
        vocab_size=V,
        d_model=DIM,
        encoder_layers=ENCODER_LAYERS,
        decoder_layers=DECODER_LAYERS,
        encoder_attention_heads=HEADS,
        decoder_attention_heads=HEADS,
        encoder_ffn_dim=FFN,
        decoder_ffn_dim=FFN,
        max_position_embeddings=16,
        init_std=0.3,
    )
    peer = transformers.M2M100ForConditionalGeneration(config).eval()
    randomise(peer)
    ours = TransformerSeq2Seq(V, DIM, HEADS, FFN, ENCODER_LAYERS, DECODER_LAYERS, position_start=2, pad_id=1).eval()
    fill(ours, M2M, peer.state_dict())
    return peer, ours


def m4t():
    """SeamlessM4T ids: pad 0, unk 1, bos 2, eos 3."""
    torch.manual_seed(0)
    config = transformers.SeamlessM4TConfig(
        vocab_size=V,
        hidden_size=DIM,
        encoder_layers=ENCODER_LAYERS,
        decoder_layers=DECODER_LAYERS,
        encoder_attention_heads=HEADS,
        decoder_attention_heads=HEADS,
        encoder_ffn_dim=FFN,
        decoder_ffn_dim=FFN,
        max_position_embeddings=16,
        initializer_range=0.3,
        speech_encoder_layers=1,
        speech_encoder_attention_heads=HEADS,
        speech_encoder_intermediate_size=8,
        t2u_encoder_layers=1,
        t2u_decoder_layers=1,
        t2u_vocab_size=16,
        t2u_encoder_ffn_dim=8,
        t2u_decoder_ffn_dim=8,
        t2u_encoder_attention_heads=HEADS,
        t2u_decoder_attention_heads=HEADS,
    )
    peer = transformers.SeamlessM4TForTextToText(config).eval()
    randomise(peer)
    ours = TransformerSeq2Seq(V, DIM, HEADS, FFN, ENCODER_LAYERS, DECODER_LAYERS, position_start=1, pad_id=0).eval()
    fill(ours, M4T, peer.state_dict())
    return peer, ours


FAMILIES = pytest.mark.parametrize(("family", "pad", "eos"), [(m2m, 1, 2), (m4t, 0, 3)], ids=["m2m", "m4t"])


def batch(pad: int, *lengths: int) -> Padded:
    return Padded.from_list([torch.randint(4, V, (length,)) for length in lengths], value=pad)


@FAMILIES
def test_states_and_logits(family, pad, eos):
    peer, ours = family()
    # The second batch is longer than the peer's first table of positions.
    for source, target in ((batch(pad, 7, 1, 12, 5), batch(pad, 3, 9, 1, 8)), (batch(pad, 41, 23), batch(pad, 17, 31))):
        with torch.no_grad():
            want = peer(input_ids=source.data, attention_mask=source.mask.long(), decoder_input_ids=target.data)
            memory = ours.encode(source)
            got = ours(memory, target)
        for row, (length, steps) in enumerate(zip(source.lengths, target.lengths, strict=True)):
            torch.testing.assert_close(
                memory.data[row, :length], want.encoder_last_hidden_state[row, :length], atol=1e-5, rtol=1e-5
            )
            torch.testing.assert_close(got.data[row, :steps], want.logits[row, :steps], atol=2e-5, rtol=1e-5)


@FAMILIES
def test_a_shifted_position_is_noticed(family, pad, eos):
    peer, ours = family()
    source = batch(pad, 7)
    ours.decoder.embed.positions.start += 1
    with torch.no_grad():
        want = peer(input_ids=source.data, decoder_input_ids=source.data).encoder_last_hidden_state
        assert (ours.encode(source).data - want).abs().max() > 1e-2


@FAMILIES
def test_loss_and_gradients(family, pad, eos):
    peer, ours = family()
    source, target = batch(pad, 7, 3, 9), batch(pad, 6, 8, 2)
    labels = target.data[:, 1:].masked_fill(~target.mask[:, 1:], -100)
    arguments = {
        "input_ids": source.data,
        "attention_mask": source.mask.long(),
        "decoder_input_ids": target.data[:, :-1],
    }
    want = peer(**arguments, labels=labels).loss
    want.backward()
    states = ours.decode(ours.encode(source), Padded(target.data[:, :-1], target.lengths - 1))
    loss, _ = token_loss(ours.project, states, target.data[:, 1:], mask=states.mask, chunk_rows=5)
    loss.mean.backward()
    torch.testing.assert_close(loss.mean, want)
    their_gradients = {name: weight.grad for name, weight in peer.named_parameters() if weight.grad is not None}
    loaded = (M2M if family is m2m else M4T).load(their_gradients)
    assert not loaded.unused
    want_gradients = loaded.state
    for name, weight in ours.named_parameters():
        assert weight.grad is not None
        torch.testing.assert_close(
            weight.grad, want_gradients[name], atol=1e-5, rtol=1e-4, msg=lambda m, n=name: f"{n}: {m}"
        )


class ForceEos(transformers.LogitsProcessor):
    """Only eos in the last step, at its own log-probability (the peer's own processor would count it as certain)."""

    def __init__(self, length: int, eos: int) -> None:
        self.length, self.eos = length, eos

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        if input_ids.shape[1] + 1 < self.length:
            return scores
        forced = torch.full_like(scores, -torch.inf)
        forced[:, self.eos] = scores[:, self.eos]
        return forced


def peer_ids(peer, source: Padded, prefix: Tensor, limit: int, pad: int, eos: int, **options) -> list[list[list[int]]]:
    """What the peer generates, without prefix, eos and padding; sequences of a sample best first."""
    call = {
        "max_new_tokens": limit,
        "min_new_tokens": 1,
        "suppress_tokens": [pad],
        **options,
    }
    config = transformers.GenerationConfig(
        pad_token_id=pad, eos_token_id=eos, bos_token_id=None, decoder_start_token_id=eos, use_cache=True, **call
    )
    sequences = transformers.GenerationMixin.generate(
        peer,
        input_ids=source.data,
        attention_mask=source.mask.long(),
        decoder_input_ids=prefix,
        generation_config=config,
        logits_processor=transformers.LogitsProcessorList([ForceEos(prefix.shape[1] + limit, eos)]),
    )
    rows = []
    for row in sequences[:, prefix.shape[1] :].tolist():
        rows.append(row[: row.index(eos)] if eos in row else row)
    each = options.get("num_return_sequences", 1)
    return [rows[start : start + each] for start in range(0, len(rows), each)]


SEARCHES = {
    "greedy": ({"num_beams": 1}, {"method": "greedy"}),
    "beam": (
        {"num_beams": 5, "early_stopping": True, "num_return_sequences": 5},
        {},
    ),
    "late": (
        {"num_beams": 4, "early_stopping": False, "num_return_sequences": 4, "length_penalty": 0.6},
        {"beam_size": 4, "early_stopping": False, "length_penalty": 0.6},
    ),
    "ngram": (
        {"num_beams": 5, "early_stopping": True, "no_repeat_ngram_size": 2},
        {"no_repeat_ngram": 2},
    ),
}


def assert_same_ids(peer, ours, source: Padded, prefix: Tensor, pad: int, eos: int, search: str) -> list[list[int]]:
    theirs, options = SEARCHES[search]
    want = peer_ids(peer, source, prefix, 24, pad, eos, **theirs)
    with torch.no_grad():
        memory = ours.encode(source)
    found = generate(ours, memory, prefix, SearchOptions(max_length=24, **options), eos, pad, 4)
    got = [[hypothesis.tokens.tolist() for hypothesis in hypotheses] for hypotheses in found]
    assert [rows[: len(wanted)] for rows, wanted in zip(got, want, strict=True)] == want
    return [rows[0] for rows in got]


@FAMILIES
@pytest.mark.parametrize("search", SEARCHES)
def test_search_over_random_weights(family, pad, eos, search):
    peer, ours = family()
    source = batch(pad, 7, 1, 12, 5, 9)
    prefix = torch.tensor([[eos, language] for language in (30, 31, 32, 30, 33)])
    assert_same_ids(peer, ours, source, prefix, pad, eos, search)


@pytest.fixture(scope="module")
def trained():
    """A SeamlessM4T that has seen reversing for a while: confident on some steps, torn on others."""
    peer, ours = m4t()
    torch.manual_seed(0)
    ours = TransformerSeq2Seq(
        V, DIM, HEADS, FFN, ENCODER_LAYERS, DECODER_LAYERS, position_start=1, pad_id=0, dropout=0.0
    )
    optimizer = torch.optim.AdamW(ours.parameters(), lr=4e-3)
    for _ in range(150):
        rows = [torch.randint(4, 20, (int(length),)) for length in torch.randint(2, 9, (32,))]
        source = Padded.from_list([torch.cat([torch.tensor([30]), row, torch.tensor([3])]) for row in rows])
        target = Padded.from_list([torch.cat([torch.tensor([3, 31]), row.flip(0), torch.tensor([3])]) for row in rows])
        states = ours.decode(ours.encode(source), Padded(target.data[:, :-1], target.lengths - 1))
        mask = states.mask.clone()
        mask[:, 0] = False
        loss, accuracy = token_loss(ours.project, states, target.data[:, 1:], mask=mask, label_smoothing=0.1)
        optimizer.zero_grad()
        loss.mean.backward()
        optimizer.step()
    state = M4T.save(ours.state_dict())
    tied = ("lm_head.weight", "text_encoder.embed_tokens.weight", "text_decoder.embed_tokens.weight")
    state.update(dict.fromkeys(tied, state["shared.weight"]))
    peer.load_state_dict(state)
    return peer, ours.eval(), float(accuracy.mean)


@pytest.mark.parametrize("search", SEARCHES)
def test_search_over_trained_weights(trained, search):
    peer, ours, accuracy = trained
    assert 0.2 < accuracy < 1.0
    torch.manual_seed(5)
    rows = [torch.randint(4, 20, (length,)) for length in (2, 8, 3, 6, 5, 4, 7, 3)]
    source = Padded.from_list([torch.cat([torch.tensor([30]), row, torch.tensor([3])]) for row in rows])
    outputs = assert_same_ids(peer, ours, source, torch.tensor([[3, 31]] * len(rows)), 0, 3, search)
    # Distributions that mean something: outputs differ, and end by themselves at different lengths.
    assert len({tuple(row) for row in outputs}) == len(rows)
    assert len({len(row) for row in outputs}) > 2


def test_scores_are_those_of_the_peer(trained):
    peer, ours, _ = trained
    rows = [torch.randint(4, 20, (length,)) for length in (3, 7)]
    source = Padded.from_list([torch.cat([torch.tensor([30]), row, torch.tensor([3])]) for row in rows])
    prefix = torch.tensor([[3, 31]] * 2)
    config = transformers.GenerationConfig(
        pad_token_id=0,
        eos_token_id=3,
        decoder_start_token_id=3,
        num_beams=5,
        early_stopping=True,
        max_new_tokens=20,
        min_new_tokens=1,
        suppress_tokens=[0],
        return_dict_in_generate=True,
        output_scores=True,
    )
    want = transformers.GenerationMixin.generate(
        peer,
        input_ids=source.data,
        attention_mask=source.mask.long(),
        decoder_input_ids=prefix,
        generation_config=config,
    )
    with torch.no_grad():
        found = generate(ours, ours.encode(source), prefix, SearchOptions(max_length=20), 3, 0, 1)
    got = torch.tensor([hypotheses[0].score for hypotheses in found])
    torch.testing.assert_close(got, want.sequences_scores, atol=1e-5, rtol=1e-5)
