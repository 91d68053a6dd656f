"""AAT's equations (3) and (4) against a block of transformers' AST with adapters written in plain torch."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from adapterbank import methods
from adapterbank.backbone.checkpoints.opening import load_backbone
from adapterbank.backbone.embedding import embed
from adapterbank.backbone.encode import Segment, run_layer
from adapterbank.backbone.weights import Geometry
from adapterbank.errors import ConfigError
from adapterbank.task.task import seeded


def built(method, backbone, **options):
    return methods.build(method, backbone.geometry, backbone.weights, seeded(0, "x"), options)


def bottleneck(tensors, prefix):
    """Linear, GELU, Linear with the tensors of one of our adapters."""
    down, up = tensors[f"{prefix}.down.weight"], tensors[f"{prefix}.up.weight"]
    plain = nn.Sequential(nn.Linear(down.shape[1], down.shape[0]), nn.GELU(), nn.Linear(up.shape[1], up.shape[0]))
    names = ("down.weight", "down.bias", "up.weight", "up.bias")
    with torch.no_grad():
        for parameter, name in zip(plain.parameters(), names, strict=True):
            parameter.copy_(tensors[f"{prefix}.{name}"])
    return plain


@pytest.mark.parametrize(("method", "spatial", "mlp"), [("aat_m", 0, 1), ("aat_s", 1, 0), ("aat_ms", 1, 1)])
def test_every_block_is_equations_3_and_4(method, spatial, mlp, hf_model, hf_folder, hf_blocks, randomise):
    model = hf_model()
    backbone = load_backbone(hf_folder(model))
    adapters = built(method, backbone)
    randomise(adapters, scale=0.3)
    tensors = adapters.state_dict()
    mel = torch.randn(2, 128, 128)
    segment = Segment(tuple(adapters.sites(layer) for layer in range(2)), backbone.weights)
    with torch.no_grad():
        ours = embed(mel, backbone.weights.embed, backbone.geometry)
        theirs = ours
        for index, layer in enumerate(hf_blocks(model)):
            (ours,) = run_layer([ours], [segment], index, backbone.geometry)
            plain = layer(theirs)
            a = layer.attention(layer.module.layernorm_before(theirs))
            if spatial:  # (3): x' = x + a + S(a)
                a = a + bottleneck(tensors, f"spatial.{index}")(a)
            x = theirs + a
            h = layer.module.layernorm_after(x)
            theirs = x + layer.mlp(h)
            if mlp:  # (4): x'' = x' + MLP(LN2(x')) + A(LN2(x'))
                theirs = theirs + bottleneck(tensors, f"mlp.{index}")(h)
            torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-4)
            assert (theirs - plain).abs().max() > 0.1


def test_a_new_adapter_has_default_down_zero_up_and_zero_biases(small_backbone):
    adapters = built("aat_ms", small_backbone)
    assert len(adapters.state_dict()) == 2 * 2 * 4
    bound = 1 / math.sqrt(48)  # kaiming_uniform with a = sqrt(5)
    for name, tensor in adapters.state_dict().items():
        if name.endswith("down.weight"):
            assert tensor.shape == (12, 48)
            assert 0.9 * bound < tensor.abs().max() <= bound
            assert tensor.std() == pytest.approx(bound / math.sqrt(3), rel=0.15)
        else:
            assert not tensor.any()


def test_gradients_reach_up_at_once_although_it_starts_at_zero(small_backbone):
    adapters = built("aat_ms", small_backbone)
    segment = Segment(tuple(adapters.sites(layer) for layer in range(2)), small_backbone.weights)
    (x,) = run_layer([torch.randn(1, 5, 48)], [segment], 0, small_backbone.geometry)
    x.square().sum().backward()
    assert adapters.mlp[0].up.weight.grad.any()
    assert adapters.spatial[0].up.weight.grad.any()


def test_the_ratio_sets_the_bottleneck(small_backbone):
    assert built("aat_m", small_backbone, ratio=0.5).mlp[0].down.weight.shape == (24, 48)
    assert built("aat_s", small_backbone, ratio=2).spatial[0].down.weight.shape == (96, 48)


@pytest.mark.parametrize("ratio", [0, -0.25, 0.02, "0.25", None, float("nan"), float("inf")])
def test_a_ratio_without_a_bottleneck_is_refused(ratio, small_backbone):
    with pytest.raises(ConfigError, match="got ratio=.*no bottleneck at width 48; AAT uses 0.25"):
        built("aat_ms", small_backbone, ratio=ratio)


def test_the_published_bottleneck_is_192_wide():
    base = Geometry()
    assert int(base.width * 0.25) == 192
