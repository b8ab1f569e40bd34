"""The Conformer encoder and its adaptor against transformers, with random weights, odd sizes and padded batches."""

from __future__ import annotations

import pytest
import torch
from against import fill, same
from rows import ragged
from torch import nn
from voxzoo.components.adaptor import ConformerAdaptor
from voxzoo.components.converters.conformer import adaptor_rules, encoder_rules
from voxzoo.components.converters.keymap import KeyMap
from voxzoo.components.speech_encoder import ConformerEncoder

transformers = pytest.importorskip("transformers")

LENGTHS = (37, 50, 23, 8)


def _parts(reference: nn.Module, encoder: ConformerEncoder, adaptor: ConformerAdaptor) -> None:
    """Shake all weights (norms and biases start as 1 and 0 and would hide a mix-up), then copy them over."""
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for name, value in [*reference.named_parameters(), *reference.named_buffers()]:
            if "embed_positions" in name or not value.is_floating_point():
                continue
            noise = torch.empty_like(value).normal_(0, 0.15, generator=generator)
            value.copy_(noise.abs() + 0.5 if "running_var" in name else value + noise)
    source = reference.state_dict()
    norm = "batch" if any("batch_norm" in key for key in source) else "layer"
    keys = KeyMap([*encoder_rules("", norm), *adaptor_rules("")], left=[".*embed_positions.*"])
    for role, part in (("speech_encoder.", encoder), ("adaptor.", adaptor)):
        fill(part.eval(), keys, source, role, left=True)
    reference.eval()


def _seamless(version: int, adaptor_kernel: int = 8, **overrides: int):
    config_class = transformers.SeamlessM4TConfig if version == 1 else transformers.SeamlessM4Tv2Config
    if version == 1:
        from transformers.models.seamless_m4t.modeling_seamless_m4t import SeamlessM4TSpeechEncoder as Reference
    else:
        from transformers.models.seamless_m4t_v2.modeling_seamless_m4t_v2 import SeamlessM4Tv2SpeechEncoder as Reference
    config = config_class(
        feature_projection_input_dim=22,
        hidden_size=36,
        speech_encoder_layers=2,
        speech_encoder_attention_heads=3,
        speech_encoder_intermediate_size=52,
        conv_depthwise_kernel_size=9,
        adaptor_kernel_size=adaptor_kernel,
        adaptor_stride=adaptor_kernel,
        **overrides,
    )
    return Reference(config)  # SDPA: the eager path of version 2 does not mask padding


def _seamless_parts(
    version: int, adaptor_kernel: int = 8, leak: bool = True, chunk: int | None = None, left: int | None = None
) -> tuple[ConformerEncoder, ConformerAdaptor]:
    first = version == 1
    encoder = ConformerEncoder(
        22,
        36,
        num_layers=2,
        num_heads=3,
        ffn_dim=52,
        kernel_size=9,
        position="relative" if first else "relative_key",
        left_context=7,
        right_context=2,
        causal_conv=not first,
        conv_norm="batch" if first else "layer",
        chunk_size=chunk,
        left_chunks=left,
        intermediate_ffn=True,
    )
    adaptor = ConformerAdaptor(36, 36, adaptor_kernel, adaptor_kernel, num_heads=3, ffn_dim=52, leak_padding=leak)
    return encoder, adaptor


@pytest.mark.parametrize(
    ("version", "kernel", "chunk", "left"),
    [(1, 8, None, None), (1, 4, None, None), (2, 8, 20000, 128), (2, 4, 10, 1), (2, 8, 11, None), (2, 8, 9, 0)],
)
@torch.no_grad()
def test_seamless_speech_encoder(version: int, kernel: int, chunk: int | None, left: int | None) -> None:
    overrides = {}
    if version == 2:
        overrides = {
            "left_max_position_embeddings": 7,
            "right_max_position_embeddings": 2,
            "speech_encoder_chunk_size": chunk,
            "speech_encoder_left_chunk_num": -1 if left is None else left,
        }
    reference = _seamless(version, kernel, **overrides)
    encoder, adaptor = _seamless_parts(version, kernel, chunk=chunk, left=left)
    _parts(reference, encoder, adaptor)
    batch = ragged(LENGTHS, 22)
    theirs = reference(batch.data, attention_mask=batch.mask.long()).last_hidden_state
    states = encoder(batch)
    ours = adaptor(states).states
    assert ours.lengths.tolist() == [length // kernel + 1 for length in LENGTHS]
    if chunk is None or chunk > max(LENGTHS):
        same(ours, theirs)
    # (Where chunks bite, whole chunks of padding see no key at all, and what leaks from them differs by kernel.)
    # With the leak closed the batch gives what each row gives alone, which is also what the reference gives alone.
    closed = _seamless_parts(version, kernel, leak=False)[1].eval()
    closed.load_state_dict(adaptor.state_dict())
    ours = closed(states).states
    for index, row in enumerate(batch.unpad()):
        alone = reference(row[None], attention_mask=torch.ones(1, len(row))).last_hidden_state[0]
        torch.testing.assert_close(ours.data[index, : len(alone)], alone, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("position", ["relative_key", "relative", None])
@pytest.mark.parametrize(("output_dim", "layers"), [(None, 1), (28, 2)])
@torch.no_grad()
def test_w2v_bert(position: str | None, output_dim: int | None, layers: int) -> None:
    config = transformers.Wav2Vec2BertConfig(
        feature_projection_input_dim=14,
        hidden_size=20,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=44,
        conv_depthwise_kernel_size=5,
        position_embeddings_type=position,
        left_max_position_embeddings=70,
        right_max_position_embeddings=1,
        add_adapter=True,
        num_adapter_layers=layers,
        output_hidden_size=output_dim,
        use_intermediate_ffn_before_adapter=position is None,
    )
    reference = transformers.Wav2Vec2BertModel(config)
    encoder = ConformerEncoder(
        14,
        20,
        num_layers=2,
        num_heads=2,
        ffn_dim=44,
        kernel_size=5,
        position=position or "none",  # pyright: ignore[reportArgumentType]
        left_context=70,
        right_context=1,
        final_norm=False,
        intermediate_ffn=position is None,
    )
    adaptor = ConformerAdaptor(
        20, output_dim or 20, 3, 2, num_layers=layers, num_heads=2, ffn_dim=44, final_norm=False, leak_padding=True
    )
    _parts(reference, encoder, adaptor)
    batch = ragged(LENGTHS, 14)
    theirs = reference(batch.data, attention_mask=batch.mask.long()).last_hidden_state
    same(adaptor(encoder(batch)).states, theirs)


@torch.no_grad()
def test_a_long_input_in_blocks_of_queries() -> None:
    """Above a thousand frames the attention runs in blocks outside training; the answer stays."""
    batch = ragged((1291, 700), 22)
    for version in (1, 2):
        overrides = {"left_max_position_embeddings": 7, "right_max_position_embeddings": 2} if version == 2 else {}
        reference = _seamless(version, **overrides)
        encoder, adaptor = _seamless_parts(version)
        _parts(reference, encoder, adaptor)
        same(adaptor(encoder(batch)).states, reference(batch.data, attention_mask=batch.mask.long()).last_hidden_state)


def test_training_gradients_equal_the_reference() -> None:
    """In training mode without dropout: every gradient, through the hand-written backward of the distances."""
    for version in (1, 2):
        overrides = {"left_max_position_embeddings": 7, "right_max_position_embeddings": 2} if version == 2 else {}
        reference = _seamless(version, **overrides)
        encoder, adaptor = _seamless_parts(version)
        _parts(reference, encoder, adaptor)
        batch = ragged(LENGTHS, 22)
        ours = adaptor(encoder(batch)).states
        theirs = reference(batch.data, attention_mask=batch.mask.long()).last_hidden_state
        goal = torch.randn(theirs.shape, generator=torch.Generator().manual_seed(2)) * ours.mask[..., None]
        (ours.data * goal).sum().backward()
        (theirs * goal).sum().backward()
        pairs = {
            "feature_projection.projection.weight": encoder.input_projection.weight,
            "encoder.layers.0.conv_module.depthwise_conv.weight": encoder.get_parameter(
                "layers.0.conv.depthwise.weight"
            ),
            "encoder.layers.1.ffn2.output_dense.weight": encoder.get_parameter("layers.1.ffn2.outer.weight"),
        }
        if version == 2:
            pairs["encoder.layers.0.self_attn.distance_embedding.weight"] = encoder.get_parameter(
                "layers.0.attention.distance"
            )
        else:
            pairs["encoder.layers.0.self_attn.linear_pos.weight"] = encoder.get_parameter(
                "layers.0.attention.pos.weight"
            )
            pairs["encoder.layers.0.self_attn.pos_bias_u"] = encoder.get_parameter("layers.0.attention.bias_u")
            pairs["encoder.layers.0.self_attn.pos_bias_v"] = encoder.get_parameter("layers.0.attention.bias_v")
        for name, parameter in pairs.items():
            expected = reference.get_parameter(name).grad
            assert expected is not None, name
            assert expected.abs().max() > 1e-3, name
            torch.testing.assert_close(
                parameter.grad, expected, atol=1e-4, rtol=1e-3, msg=lambda text, name=name: f"{name}: {text}"
            )
