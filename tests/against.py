"""What the comparisons with transformers share: a peer's weights into a part, states and gradients of both."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from voxzoo.components.converters.keymap import KeyMap
from voxzoo.components.converters.published import PublishedModel, family_of
from voxzoo.components.converters.transformer import Names, decoder_rules, embedding_rules, encoder_rules
from voxzoo.components.types import Padded


def fill(part: nn.Module, keys: KeyMap, theirs: Mapping[str, Tensor], role: str = "", left: bool = False) -> None:
    """Give a part the peer's weights: all of ours are filled, all of theirs are known and, but for `left`, used.

    Args:
        role: prefix of the part's keys in the map, with its dot.
    """
    loaded = keys.load(theirs, {f"{role}{key}": value.shape for key, value in part.state_dict().items()})
    assert not loaded.unused
    assert not loaded.missing
    assert left or not loaded.left
    part.load_state_dict({key.removeprefix(role): value.clone() for key, value in loaded.state.items()})


def text_key_map(names: Names, encoder: str, decoder: str, *shared: str) -> KeyMap:
    """Rules of an encoder and a decoder whose tied embedding has the names `shared`, the output layer's last."""
    return KeyMap(
        [
            *embedding_rules("decoder.", *shared[:-1], output=shared[-1]),
            *encoder_rules("encoder.", encoder, names),
            *decoder_rules("decoder.", decoder, names),
        ]
    )


@torch.no_grad()
def randomise(peer: nn.Module) -> None:
    """Biases and norms start at 0 and 1 in the peer: random ones show where they are used."""
    for name, weight in peer.named_parameters():
        if name.endswith("bias"):
            weight.normal_(std=0.2)
        elif "norm" in name:
            weight.normal_(mean=1.0, std=0.2)


def same(ours: Padded, theirs: Tensor, atol: float = 1e-5) -> None:
    """Equal on the real steps."""
    assert ours.data.shape == theirs.shape
    for row, other in zip(ours.unpad(), theirs, strict=True):
        torch.testing.assert_close(row, other[: len(row)], atol=atol, rtol=1e-5)


def same_gradients(model: PublishedModel, peer: Any, ours: Padded, theirs: Tensor) -> None:
    """All of them, under one random goal for the states of both; by their published names."""
    goal = torch.randn(theirs.shape, generator=torch.Generator().manual_seed(4)) * ours.mask[..., None]
    (ours.data * goal).sum().backward()
    (theirs * goal).sum().backward()
    gradients: dict[str, Tensor] = {}
    for name, value in model.named_parameters():
        assert value.grad is not None, name
        gradients[name] = value.grad
    found = family_of(model.model_type, "test").key_map(model.nodes).save(gradients)
    expected = {name: value.grad for name, value in peer.named_parameters()}
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        assert value is not None, name
        # The bias of keys shifts all scores of a query alike: its gradient is nothing but rounding.
        scale = 1.0 if name.endswith(("k_proj.bias", "linear_k.bias")) else float(value.abs().max())
        assert scale > 1e-3, name
        torch.testing.assert_close(
            found[name] / scale, value / scale, atol=1e-4, rtol=1e-4, msg=lambda text, name=name: f"{name}: {text}"
        )
