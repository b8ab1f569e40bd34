"""The share of the machine's limit: products are recorded by shape, and the arithmetic of the limit."""

from __future__ import annotations

import sys
from collections import Counter
from pathlib import Path

import pytest
import torch
from torch import nn

sys.path.insert(0, str(Path(__file__).parents[2]))  # benchmarks are run from the checkout and belong to no package

from benchmarks.harness.limits import Product, combine, limit_of, products_of


def test_products_of_inference():
    linear = nn.Linear(64, 32).eval()
    with torch.inference_mode():
        assert products_of(lambda: linear(torch.zeros(3, 5, 64))) == ({Product(1, 15, 64, 32): 1}, 2 * 15 * 64 * 32)
        query, key, value = torch.zeros(2, 4, 10, 16), torch.zeros(2, 4, 7, 16), torch.zeros(2, 4, 7, 16)
        found, flops = products_of(lambda: nn.functional.scaled_dot_product_attention(query, key, value))
        assert found == {Product(8, 10, 16, 7): 1, Product(8, 10, 7, 16): 1}
        assert flops == 2 * 2 * 8 * 10 * 16 * 7


def test_packed_products_are_seen():
    from voxzoo.components.layers import linear as packing

    layer = nn.Linear(64, 32).eval()
    if not torch.backends.mkldnn.is_available():
        pytest.skip("torch was built without oneDNN")
    packed = packing._reordered(layer.weight)
    with torch.inference_mode():
        run = lambda: torch.ops.mkldnn._linear_pointwise(torch.zeros(3, 64), packed, None, "none", [], "")  # noqa: E731
        assert products_of(run) == ({Product(1, 3, 64, 32): 1}, 2 * 3 * 64 * 32)


def test_products_of_a_training_step():
    layer, x = nn.Linear(6, 4, bias=False), torch.zeros(5, 6, requires_grad=True)
    found, flops = products_of(lambda: layer(x).sum().backward())
    assert found == {Product(1, 5, 6, 4): 1, Product(1, 4, 5, 6): 1, Product(1, 5, 4, 6): 1}
    assert flops == 3 * 2 * 5 * 6 * 4


def test_products_of_convolutions():
    """A convolution is the product of its windows; one with a channel a group is none, but its FLOPs count."""
    with torch.inference_mode():
        x = torch.zeros(2, 8, 30)
        assert products_of(lambda: nn.Conv1d(8, 6, 3)(x)) == ({Product(1, 56, 24, 6): 1}, 2 * 56 * 24 * 6)
        assert products_of(lambda: nn.Conv1d(8, 8, 3, groups=8)(x)) == ({}, 2 * 2 * 28 * 8 * 3)
        assert products_of(lambda: nn.ConvTranspose1d(8, 6, 4, stride=2)(x))[0] == {Product(1, 60, 8, 24): 1}
    conv = nn.Conv1d(8, 6, 3, bias=False)
    found, _ = products_of(lambda: conv(torch.zeros(2, 8, 30)).sum().backward())
    assert found == {Product(1, 56, 24, 6): 1, Product(1, 24, 56, 6): 1}


def test_each_product_is_limited_by_arithmetic_or_by_reading():
    many, few = Product(1, 100, 10, 10), Product(1, 1, 10, 100)
    products = Counter({many: 2, few: 3})
    # many reads 1100 elements of 4 bytes in 4.4 s and takes 10; few 1010 in 4.04 s and takes 1.
    limit = combine(products, many.flops * 2 + few.flops * 3, 4, 1000.0, {many: 10.0, few: 1.0})
    assert limit.seconds == pytest.approx(2 * 10 + 3 * 4.04)
    assert limit.memory == pytest.approx(3 * 4.04 / limit.seconds)
    assert limit.bytes == 4 * (2 * 1100 + 3 * 1010)
    assert limit.flops_per_second == pytest.approx((2 * 20_000 + 3 * 2000) / 23)
    assert limit.share(64.24) == pytest.approx(0.5)
    assert limit.as_dict(64.24)["share"] == pytest.approx(0.5)
    # As many FLOPs again outside of products go as fast as these.
    more = combine(products, 2 * limit.flops, 4, 1000.0, {many: 10.0, few: 1.0})
    assert more.seconds == pytest.approx(limit.seconds + 23)


def test_a_limit_is_measured():
    layer = nn.Linear(16, 8).eval()
    with torch.inference_mode():
        limit = limit_of(lambda: layer(torch.zeros(3, 16)), torch.float32)
    assert limit is not None
    assert limit.seconds > 0
    assert limit.bytes_per_second > 0
    assert limit_of(lambda: torch.zeros(3) + 1, torch.float32) is None
