"""AutoregressiveT2U against the text-to-unit model of SeamlessM4T v1 in transformers, random weights."""

import pytest
import torch
from against import fill, text_key_map
from voxzoo.components import AutoregressiveT2U
from voxzoo.components.types import Padded

transformers = pytest.importorskip("transformers")
from transformers.models.seamless_m4t import modeling_seamless_m4t as peer_module  # noqa: E402

UNITS, LANGUAGES, FIRST_LANGUAGE, ROWS = 21, 3, 30, 35
DIM, HEADS, FFN = 24, 3, 44
ENCODER_LAYERS, DECODER_LAYERS = 2, 3


@pytest.fixture(scope="module")
def pair():
    torch.manual_seed(0)
    config = transformers.SeamlessM4TConfig(
        hidden_size=DIM,
        t2u_vocab_size=ROWS,
        t2u_encoder_layers=ENCODER_LAYERS,
        t2u_decoder_layers=DECODER_LAYERS,
        t2u_encoder_attention_heads=HEADS,
        t2u_decoder_attention_heads=HEADS,
        t2u_encoder_ffn_dim=FFN,
        t2u_decoder_ffn_dim=FFN,
        t2u_max_position_embeddings=16,
    )
    peer = peer_module.SeamlessM4TTextToUnitForConditionalGeneration(config).eval()
    with torch.no_grad():
        for name, parameter in peer.named_parameters():
            parameter.copy_(torch.randn_like(parameter) * 0.3 + (1.0 if "norm.weight" in name else 0.0))
        peer.get_input_embeddings().weight[1] = 0  # the row of padding
    ours = AutoregressiveT2U(
        input_dim=DIM,
        num_units=UNITS,
        dim=DIM,
        num_heads=HEADS,
        ffn_dim=FFN,
        num_encoder_layers=ENCODER_LAYERS,
        num_decoder_layers=DECODER_LAYERS,
        num_languages=LANGUAGES,
        first_language_id=FIRST_LANGUAGE,
        vocab_size=ROWS,
        beam_size=1,
        max_length_a=0.0,
        max_length_b=12,
    ).eval()
    names = ("model.decoder.embed_tokens.weight", "lm_head.weight")
    fill(ours, text_key_map("m4t", "model.encoder.", "model.decoder.", *names), peer.state_dict())
    return peer, ours


def batch():
    generator = torch.Generator().manual_seed(1)
    states = Padded(torch.randn(3, 9, DIM, generator=generator), torch.tensor([9, 4, 1]))
    units = Padded(torch.randint(0, UNITS, (3, 19), generator=generator), torch.tensor([19, 1, 13])).zeroed()
    return states, units, torch.tensor([2, 0, 1])


@torch.no_grad()
def test_teacher_forced_logits(pair):
    peer, ours = pair
    states, units, lang = batch()
    tokens, _, _ = ours.pack(units, lang)
    # 21 steps, more than the 18 rows their position table starts with.
    expected = peer(inputs_embeds=states.data, attention_mask=states.mask.long(), decoder_input_ids=tokens.data).logits
    hidden = ours.decoder(ours.encode(states), tokens)
    got = ours.decoder.project(hidden.data)
    assert got.shape == (3, 21, ROWS)
    torch.testing.assert_close(got[tokens.mask], expected[tokens.mask], atol=2e-5, rtol=1e-5)


@torch.no_grad()
def test_loss_without_smoothing(pair):
    peer, ours = pair
    states, units, lang = batch()
    tokens, labels, counts = ours.pack(units, lang)
    logits = peer(inputs_embeds=states.data, attention_mask=states.mask.long(), decoder_input_ids=tokens.data).logits
    expected = torch.nn.functional.cross_entropy(logits[counts], labels[counts], reduction="sum")
    units_one_per_frame = Padded(units.data.repeat_interleave(2, 1), units.lengths * 2)
    ours.label_smoothing = 0.0
    # Runs of two are merged again; neighbours that are equal by chance would merge too, so there must be none.
    assert not ((units.data[:, 1:] == units.data[:, :-1]) & units.mask[:, 1:]).any()
    loss = ours(states, units_one_per_frame, lang=lang)["t2u_unit"]
    torch.testing.assert_close(loss.total, expected, atol=1e-3, rtol=1e-5)
    assert int(loss.count) == int(units.lengths.sum()) + 3


@torch.no_grad()
def test_greedy_units(pair):
    peer, ours = pair
    states, _, lang = batch()
    got = ours.generate(states, lang=lang).units
    assert int(got.lengths.max()) > 3
    for i, (row, units) in enumerate(zip(states.unpad(), got.unpad(), strict=True)):
        ids = ours.prefix(1, states.device, lang[i : i + 1])
        for _ in range(11):
            logits = peer(inputs_embeds=row[None], decoder_input_ids=ids).logits[0, -1]
            logits[[0, 1, 3, *range(4 + UNITS, ROWS)]] = -torch.inf
            if ids.shape[1] == 2:
                logits[2] = -torch.inf  # not before the first unit
            ids = torch.cat([ids, logits.argmax().view(1, 1)], 1)
            if ids[0, -1] == 2:
                break
        expected = [x - 4 for x in ids[0, 2:].tolist() if x != 2]
        assert units.tolist() == expected
