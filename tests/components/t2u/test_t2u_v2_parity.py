"""UnitY2T2U against the text-to-unit model of SeamlessM4T v2 in transformers, random weights.

Letters: B batch, S states, C characters, U units, D model dim, V rows of the unit vocabulary.
"""

import copy
from types import SimpleNamespace

import pytest
import torch
from against import fill
from voxzoo.components import UnitY2T2U
from voxzoo.components.converters.character_t2u import t2u_rules
from voxzoo.components.converters.keymap import KeyMap
from voxzoo.components.types import Padded

transformers = pytest.importorskip("transformers")
from transformers.models.seamless_m4t_v2 import modeling_seamless_m4t_v2 as peer_module  # noqa: E402

PAD, UNK, EOS, LANG = 0, 1, 3, 20
# Every kind of token there is: words, inner pieces, punctuation of one and of more characters, digits, a bare word
# mark, a character beyond the alphabet, one beyond the first plane of Unicode.
PIECES = [
    "", "", "", "", "\u2581he", "llo", ",", "\u2581wor", "ld", ".", "\u2581", "\u2581a", "b", "7", "\u2581...", "!?",
    "\u00bf", "\u2581\u00e9t\u00e9", "\u4f60", "\U0001f600", "", "\u2581\u2581", "\u00bd", "-",
]  # fmt: skip
ALPHABET = sorted(set("".join(PIECES)) - {"b"})
CHARACTERS = {character: number for number, character in enumerate(ALPHABET, start=2)}
UNITS = 30

# Width, heads, FFN, layers of encoder and decoder, width and kernel of the duration predictor, rows, both alphas.
SHAPES = {
    "narrow": (12, 3, 20, 1, 2, 10, 3, 40, 1.3, 0.7),
    "wide": (40, 5, 28, 3, 1, 18, 5, 34, 0.4, 2.1),
    "deep": (24, 2, 52, 2, 4, 6, 1, 45, -0.8, 1.0),
}


def table():
    out = torch.zeros(len(PIECES), max(map(len, PIECES)), dtype=torch.int64)
    for row, piece in zip(out, PIECES, strict=True):
        row[: len(piece)] = torch.tensor([CHARACTERS.get(character, UNK) for character in piece])
    out[UNK, 0] = UNK
    return out


def shake(module):
    """Random values for all that has any, far from what it began with."""
    with torch.no_grad():
        for name, value in module.named_parameters():
            if "alpha" in name:
                continue
            base = 1.0 if "norm.weight" in name or "ln1.weight" in name or "ln2.weight" in name else 0.0
            # Gain, so that activations neither die nor explode through convolutions of any width.
            gain = 0.1 if value.dim() < 2 else value[0].numel() ** -0.5
            value.copy_(base + torch.randn_like(value) * gain)


@pytest.fixture(scope="module", params=SHAPES)
def pair(request):
    dim, heads, ffn, encoder, decoder, hidden, kernel, rows, character_alpha, unit_alpha = SHAPES[request.param]
    torch.manual_seed(len(request.param))
    config = transformers.SeamlessM4Tv2Config(
        hidden_size=dim,
        t2u_vocab_size=rows,
        char_vocab_size=len(CHARACTERS) + 2,
        t2u_encoder_layers=encoder,
        t2u_decoder_layers=decoder,
        t2u_encoder_attention_heads=heads,
        t2u_decoder_attention_heads=heads,
        t2u_encoder_ffn_dim=ffn,
        t2u_max_position_embeddings=9,  # it grows
        t2u_variance_predictor_embed_dim=dim,
        t2u_variance_predictor_hidden_dim=hidden,
        t2u_variance_predictor_kernel_size=kernel,
    )
    peer = peer_module.SeamlessM4Tv2TextToUnitForConditionalGeneration(config).eval()
    shake(peer)
    module = peer.model.decoder
    with torch.no_grad():
        # Durations from 1 to about 46.
        module.duration_predictor.proj.weight.mul_(1.4)
        module.duration_predictor.proj.bias.fill_(1.8)
        module.pos_emb_alpha_char.fill_(character_alpha)
        module.pos_emb_alpha.fill_(unit_alpha)
    ours = UnitY2T2U(
        input_dim=dim,
        num_units=UNITS,
        dim=dim,
        num_heads=heads,
        ffn_dim=ffn,
        num_encoder_layers=encoder,
        num_decoder_layers=decoder,
        num_characters=len(CHARACTERS) + 2,
        vocab_size=rows,
        duration_dim=hidden,
        duration_kernel_size=kernel,
        aligner=False,
    ).eval()
    ours.set_characters(table(), PIECES)
    fill(ours, KeyMap(t2u_rules("")), peer.state_dict(), "t2u.")
    return peer, ours


# Text of the rows: the worked example first, then other neighbours of punctuation, one token, and no token at all.
TEXTS = [
    [4, 5, 6, 7, 8, 9],
    [16, 11, 6, 10, 23, 4, 12, 13, 9, 14, 15, 17, 9],
    [18],
    [1, 6, 1, 9, 6, 17, 19, 22, 21, 15, 11, 12],
]


def peer_counts(sequences):
    """What its `generate` makes of (B, n + 3) sequences: counts (B, n + 2) and characters (B, C)."""
    settings = SimpleNamespace(
        id_to_text={str(i): piece or f"<special {i}>" for i, piece in enumerate(PIECES)}, char_to_id=CHARACTERS
    )
    peer = SimpleNamespace(generation_config=settings)
    base = peer_module.SeamlessM4Tv2PreTrainedModel
    ids = sequences[:, 2:-1].masked_fill(sequences[:, 2:-1] == EOS, PAD)
    subwords = base._indices_to_subwords(peer, ids)
    counts = base._count_character_length_in_subword(peer, ids, subwords, pad_token_id=PAD)
    counts = torch.nn.functional.pad(counts, (1, 1))
    return counts, base._get_char_input_ids(peer, ids, subwords, counts, pad_token_id=PAD)


def batch(texts, dim, seed=0):
    """Sequences as its text decoder writes them, the states it is fed again (all but the last column), their mask."""
    rows = [torch.tensor([EOS, LANG, *text, EOS]) for text in texts]
    sequences = Padded.from_list(rows, PAD).data
    states = torch.randn(len(texts), sequences.shape[1] - 1, dim, generator=torch.Generator().manual_seed(seed))
    return sequences, states, (sequences[:, :-1] != PAD).long()


def as_transformers(sequences, states, mask):
    """What reproduces it: all those states, with the token that each predicts; eos predicts nothing."""
    lengths = mask.sum(1)
    return Padded(states, lengths), Padded(sequences[:, 1:], lengths)


def run_peer(peer, sequences, states, mask):
    counts, characters = peer_counts(sequences)
    return peer(
        inputs_embeds=states, attention_mask=mask, char_input_ids=characters, char_count_per_id=counts
    )  # its logits are in last_hidden_state


def test_counts_of_the_worked_example():
    sequences, _, _ = batch([TEXTS[0]], 4)
    counts, characters = peer_counts(sequences)
    assert counts.tolist() == [[0, 3, 3, 2, 3, 2, 1, 0]]
    part = UnitY2T2U(4, UNITS, 4, 1, 4, 0, 0, num_characters=len(CHARACTERS) + 2, aligner=False)
    part.set_characters(table(), PIECES)
    text = Padded(sequences[:, 1:], torch.tensor([8]))
    assert torch.equal(part._characters.counts(text), counts)
    assert torch.equal(part._characters.ids(text, 14), characters)


def test_counts_and_characters_of_random_text():
    part = UnitY2T2U(4, UNITS, 4, 1, 4, 0, 0, num_characters=len(CHARACTERS) + 2, aligner=False)
    part.set_characters(table(), PIECES)
    generator = torch.Generator().manual_seed(5)
    usable = torch.tensor([UNK, *(i for i, piece in enumerate(PIECES) if piece)])
    texts = [usable[torch.randint(0, len(usable), (n,), generator=generator)].tolist() for n in (40, 1, 17, 0, 33, 2)]
    sequences, _, mask = batch(texts, 4)
    counts, characters = peer_counts(sequences)
    text = Padded(sequences[:, 1:], mask.sum(1))
    assert torch.equal(part._characters.counts(text), counts)
    assert torch.equal(part._characters.ids(text, characters.shape[1]), characters)


@torch.no_grad()
@pytest.mark.parametrize("rows", [[0], [1], [0, 1, 2, 3]], ids=["single", "other", "batch"])
def test_logits_durations_and_units(pair, rows):
    peer, ours = pair
    inputs = batch([TEXTS[i] for i in rows], ours.dim)
    recorded = []
    hook = peer.model.decoder.duration_predictor.register_forward_hook(lambda *args: recorded.append(args[2]))
    expected = run_peer(peer, *inputs)
    hook.remove()
    states, text = as_transformers(*inputs)

    hidden, _ = ours.spell(states, text)
    log_durations = ours.duration(hidden).data
    inside = hidden.mask
    torch.testing.assert_close(log_durations[inside], recorded[0][inside], atol=1e-5, rtol=1e-5)
    durations = recorded[0][inside].expm1().round().clamp(min=1)
    assert int(durations.max()) > 9
    assert len(rows) == 1 or int(durations.min()) == 1

    logits = ours.logits(states, text)
    assert torch.equal(logits.lengths, expected.padding_mask.sum(1).long())
    assert logits.data.shape == expected.last_hidden_state.shape
    torch.testing.assert_close(logits.data[logits.mask], expected.last_hidden_state[logits.mask], atol=2e-5, rtol=1e-5)

    output = ours.generate(states, text)
    if len(rows) > 1:
        said = output.units.data[output.units.mask]
        assert len(set(said.tolist())) > 3
        assert len(said) < int(logits.lengths.sum())  # eos, padding and unused rows were left out
    scores = expected.last_hidden_state.log_softmax(-1)
    for i, n in enumerate(logits.lengths.tolist()):
        ids = expected.last_hidden_state[i, :n].argmax(-1)
        wanted = [id - 4 for id in ids.tolist() if 4 <= id < 4 + UNITS]
        assert output.units.data[i, : output.units.lengths[i]].tolist() == wanted
        torch.testing.assert_close(output.scores[i], scores[i, :n].amax(-1).sum(), atol=1e-3, rtol=1e-4)


@torch.no_grad()
def test_eos_may_sound_as_unit_1(pair):
    peer, ours = copy.deepcopy(pair)
    inputs = batch(TEXTS, ours.dim)
    often = run_peer(peer, *inputs).last_hidden_state.argmax(-1).flatten().mode().values
    for output in (peer.lm_head, ours.output):
        output.weight[2] = output.weight[often] * 1.01  # now eos is the most probable as often
    ours.eos_as_unit = True
    expected = run_peer(peer, *inputs)
    units = ours.generate(*as_transformers(*inputs)).units
    ids = expected.last_hidden_state.argmax(-1)
    assert (ids == 2).sum() > 5
    ids = ids.masked_fill(ids == 2, 1)  # what its `generate` gives to the vocoder
    ids = torch.where(ids == 1, ids, ids - 4)
    for row, mask, got in zip(ids, expected.padding_mask.bool(), units.unpad(), strict=True):
        assert got.tolist() == [unit for unit in row[mask].tolist() if 0 <= unit < UNITS]


@torch.no_grad()
def test_eos_of_shorter_rows_is_what_the_caller_passes(pair):
    peer, ours = pair
    inputs = batch([TEXTS[0], TEXTS[1]], ours.dim)
    sequences, states, mask = inputs
    n = len(TEXTS[0]) + 2
    assert int(mask[0].sum()) == n + 1  # the shorter row keeps the state of its eos
    alone = run_peer(peer, sequences[:1, : n + 1], states[:1, :n], mask[:1, :n]).last_hidden_state
    official = Padded(states, mask.sum(1) - torch.tensor([1, 0]))
    text = Padded(sequences[:, 1:], official.lengths)
    got = ours.logits(official, text)
    torch.testing.assert_close(got.data[0, : got.lengths[0]], alone[0], atol=2e-5, rtol=1e-5)
    # And it matters: the encoder sees that state.
    theirs = ours.spell(*as_transformers(*inputs))[0]
    assert (theirs.data[0, :14] - ours.spell(official, text)[0].data[0, :14]).abs().max() > 1e-3


@torch.no_grad()
def test_states_without_the_prefix_are_repeated_alike(pair):
    _, ours = pair
    sequences, states, mask = batch([TEXTS[0]], ours.dim)
    whole = ours._characters.spell(*as_transformers(sequences, states, mask))
    bare = ours._characters.spell(Padded(states[:, 1:], mask.sum(1) - 1), Padded(sequences[:, 2:], mask.sum(1) - 1))
    assert torch.equal(whole[0].data, bare[0].data)
    assert torch.equal(whole[1].data, bare[1].data)
    # The state of the language, which predicts the first token, stands for the three characters of that token.
    assert torch.equal(whole[0].data[0, :3], states[0, 1].expand(3, -1))


@pytest.mark.parametrize("given", [False, True], ids=["predicted", "given"])
def test_gradients_of_one_step(pair, given):
    """All parameters but those that choose the durations, which its forward predicts: we predict them too, or train
    under the same ones."""
    peer, ours = pair
    inputs = batch(TEXTS, ours.dim)
    states, text = as_transformers(*inputs)
    for model in (peer, ours):
        model.zero_grad()
    theirs_in = inputs[1].clone().requires_grad_()
    ours_in = inputs[1].clone().requires_grad_()
    expected = run_peer(peer, inputs[0], theirs_in, inputs[2])
    lengths = expected.padding_mask.sum(1).long()
    units = torch.randint(0, UNITS, expected.padding_mask.shape, generator=torch.Generator().manual_seed(3))
    targets = Padded(units, lengths)
    mask = targets.mask

    def total(logits):
        return torch.nn.functional.cross_entropy(logits[mask], units[mask] + 4, reduction="sum")

    if given:
        with torch.no_grad():
            hidden = ours.spell(states, text)[0]
            durations = ours.duration.predict(hidden)
        ours.label_smoothing = 0.0
        loss = ours(states.with_data(ours_in), targets, text, durations)["t2u_unit"]
        assert int(loss.count) == int(lengths.sum())
        got = loss.total
    else:
        got = total(ours.logits(states.with_data(ours_in), text).data)
    wanted = total(expected.last_hidden_state)
    torch.testing.assert_close(got, wanted, atol=1e-4, rtol=1e-6)
    count = int(lengths.sum())
    (got / count).backward()
    (wanted / count).backward()
    torch.testing.assert_close(ours_in.grad, theirs_in.grad, atol=1e-5, rtol=1e-4)
    gradients = {
        f"t2u_model.{name}": torch.zeros_like(value) if value.grad is None else value.grad
        for name, value in peer.named_parameters(remove_duplicate=False)
    }
    loaded = KeyMap(t2u_rules("t2u_model.")).load(gradients).state
    compared = 0
    for name, value in ours.named_parameters():
        if name.startswith("duration."):
            assert value.grad is None
            continue
        assert torch.allclose(value.grad, loaded[f"t2u.{name}"], atol=1e-5, rtol=1e-4), name
        compared += 1
    assert compared == len(list(ours.parameters())) - 10


def test_keys_both_ways_are_bit_equal(pair):
    peer, ours = pair
    rules = KeyMap(t2u_rules("t2u_model."))
    published = {f"t2u_model.{key}": value for key, value in peer.state_dict().items()}
    written = rules.save({f"t2u.{key}": value for key, value in ours.state_dict().items()})
    assert published.keys() - written.keys() == {"t2u_model.lm_head.weight"}  # tied: written once
    assert all(torch.equal(value, published[key]) for key, value in written.items())
    again = rules.load(written).state
    assert again.keys() == {f"t2u.{key}" for key in ours.state_dict()}
    assert all(torch.equal(value, again[f"t2u.{key}"]) for key, value in ours.state_dict().items())


def test_parameter_count_of_the_published_size():
    from voxzoo.configs import build, compose

    with torch.device("meta"):
        peer = peer_module.SeamlessM4Tv2TextToUnitForConditionalGeneration(transformers.SeamlessM4Tv2Config())
        node = compose(["t2u=seamless_m4t_large_v2", "t2u.input_dim=1024", "t2u.num_units=10000"]).t2u
        ours = build(node)
    assert sum(p.numel() for p in ours.parameters()) == sum(p.numel() for p in peer.parameters()) == 261_759_747
    rules = KeyMap(t2u_rules("t2u_model."))
    published = {
        f"t2u_model.{key}": torch.empty(value.shape, device="meta") for key, value in peer.state_dict().items()
    }
    published.pop("t2u_model.lm_head.weight")
    loaded = rules.load(published, {f"t2u.{key}": value.shape for key, value in ours.state_dict().items()})
    assert not loaded.unused
    assert not loaded.missing
