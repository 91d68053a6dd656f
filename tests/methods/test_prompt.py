"""Deep prompts as extra keys and values equal prompts that join the sequence before each block and leave after it."""

from __future__ import annotations

import math

import pytest
import torch

from adapterbank import methods
from adapterbank.backbone.checkpoints.opening import load_backbone
from adapterbank.backbone.embedding import embed
from adapterbank.backbone.encode import Segment, encode
from adapterbank.backbone.weights import Geometry
from adapterbank.errors import ConfigError
from adapterbank.task.task import seeded


def built(backbone, **options):
    return methods.build("prompt", backbone.geometry, backbone.weights, seeded(0, "x"), options)


@pytest.mark.parametrize("tokens", [1, 12, 30])
@pytest.mark.parametrize("kernel", ["eager", "sdpa"])
def test_they_equal_the_token_form_in_transformers_blocks(tokens, kernel, hf_model, hf_folder, hf_blocks):
    model = hf_model(num_hidden_layers=3)
    model.set_attn_implementation(kernel)
    backbone = load_backbone(hf_folder(model))
    prompts = built(backbone, tokens=tokens)
    mel = torch.randn(2, 128, 128)
    body = model.audio_spectrogram_transformer
    with torch.no_grad():
        x = embed(mel, backbone.weights.embed, backbone.geometry)
        untouched, length = x, x.shape[1]
        for layer, prompt in zip(hf_blocks(model), prompts.prompts, strict=True):
            joined = torch.cat((x, prompt.expand(2, -1, -1)), dim=1)
            x = layer(joined)[:, :length]
            untouched = layer(untouched)
        expected = body.layernorm(x)
        segment = Segment(tuple(prompts.sites(layer) for layer in range(3)), backbone.weights)
        (ours,) = encode([mel], [segment], backbone.geometry)
    assert ours.shape == (2, length, 48)
    torch.testing.assert_close(ours, expected, rtol=0, atol=1e-4)
    assert (expected - body.layernorm(untouched)).abs().max() > 1e-3


def test_they_start_uniform_within_vpts_bound(random_backbone):
    geometry = Geometry(layers=3, width=768, heads=12, mlp_width=8, max_frames=16)
    prompts = built(random_backbone(geometry)).prompts
    bound = math.sqrt(6 / (3 * 16 * 16 + 768))
    assert [tuple(p.shape) for p in prompts] == [(12, 768)] * 3
    for prompt in (p.detach() for p in prompts):
        assert 0.99 * bound < prompt.abs().max() <= bound
        assert abs(prompt.mean()) < 0.02 * bound
        assert prompt.std() == pytest.approx(bound / math.sqrt(3), rel=0.03)


def test_every_layer_has_prompts_of_its_own_that_get_gradients(small_backbone):
    prompts = built(small_backbone)
    segment = Segment(tuple(prompts.sites(layer) for layer in range(2)), small_backbone.weights)
    encode([torch.randn(1, 128, 128)], [segment], small_backbone.geometry)[0].square()[:, 0].sum().backward()
    assert all(prompt.grad.any() for prompt in prompts.prompts)
    assert not torch.equal(*prompts.prompts)


@pytest.mark.parametrize("tokens", [0, -1, 1.5, "12", None])
def test_a_bad_number_of_prompts_is_refused(tokens, small_backbone):
    with pytest.raises(ConfigError, match="got tokens=.*expected at least 1 prompt per layer; AAT uses 12"):
        built(small_backbone, tokens=tokens)
