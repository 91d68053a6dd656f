"""The host equals transformers' AST: every hidden state and the logits, at its own and at other lengths."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
import torch
from torch import Tensor

from adapterbank.backbone.backbone import Backbone
from adapterbank.backbone.checkpoints.opening import load_backbone
from adapterbank.backbone.embedding import embed
from adapterbank.backbone.encode import Segment, encode, run_layer
from adapterbank.backbone.sites import NOTHING
from adapterbank.backbone.weights import Geometry
from adapterbank.errors import BackboneError

GEOMETRIES = {
    "stride 16": {"frequency_stride": 16, "time_stride": 16},
    "stride 10": {"hidden_size": 32, "num_attention_heads": 4, "num_hidden_layers": 1},
    "mixed strides, no qkv bias": {"frequency_stride": 10, "time_stride": 16, "qkv_bias": False},
    "deep, narrow, one head": {
        "hidden_size": 16,
        "num_attention_heads": 1,
        "num_hidden_layers": 5,
        "frequency_stride": 16,
        "time_stride": 16,
        "layer_norm_eps": 1e-6,
    },
    "64 mels, wide MLP": {"num_mel_bins": 64, "intermediate_size": 200, "time_stride": 12, "layer_norm_eps": 1e-3},
}


def untouched(backbone: Backbone) -> Segment:
    return Segment((NOTHING,) * backbone.geometry.layers, backbone.weights)


def hidden_states(backbone: Backbone, mel: Tensor) -> list[Tensor]:
    """Of the embedding and each block."""
    states = [embed(mel, backbone.weights.embed, backbone.geometry)]
    for layer in range(backbone.geometry.layers):
        states += run_layer(states[-1:], [untouched(backbone)], layer, backbone.geometry)
    return states


def classify(backbone: Backbone, tokens: Tensor) -> Tensor:
    assert backbone.classifier is not None
    head, pooled = backbone.classifier.tensors, (tokens[:, 0] + tokens[:, 1]) / 2
    width, eps = backbone.geometry.width, backbone.geometry.eps
    pooled = torch.nn.functional.layer_norm(pooled, (width,), head["norm.weight"], head["norm.bias"], eps)
    return pooled @ head["linear.weight"].T + head["linear.bias"]


def assert_equal_to(reference: Any, backbone: Backbone, mel: Tensor) -> None:
    with torch.no_grad():
        theirs = reference(mel, output_hidden_states=True)
        body = reference.audio_spectrogram_transformer(mel)
        ours = hidden_states(backbone, mel)
        final = encode([mel], [untouched(backbone)], backbone.geometry)[0]
    assert len(ours) == len(theirs.hidden_states) == backbone.geometry.layers + 1
    # transformers 4.57 puts the normed tokens, which `final` is compared with below, into the last place.
    normed = torch.equal(theirs.hidden_states[-1], body.last_hidden_state)
    for state, expected in zip(ours[: len(ours) - normed], theirs.hidden_states, strict=not normed):
        torch.testing.assert_close(state, expected, rtol=0, atol=1e-4)
    torch.testing.assert_close(final, body.last_hidden_state, rtol=0, atol=1e-4)
    torch.testing.assert_close(classify(backbone, final), theirs.logits, rtol=0, atol=1e-4)


@pytest.mark.parametrize("kernel", ["eager", "sdpa"])
@pytest.mark.parametrize("sizes", GEOMETRIES.values(), ids=GEOMETRIES)
def test_every_hidden_state_equals_transformers_at_1024_frames(sizes, kernel, hf_model, hf_folder):
    model = hf_model(**sizes, max_length=1024, num_labels=7)
    model.set_attn_implementation(kernel)
    assert model.config._attn_implementation == kernel
    mel = torch.randn(1, 1024, model.config.num_mel_bins)
    assert_equal_to(model, load_backbone(hf_folder(model)), mel)


def cut_by_hand(grid: Tensor, columns: int) -> Tensor:
    """AST (Gong et al.): the columns from 50 - int(t / 2) of a grid of 101, (rows, 101, D) -> (rows, t, D)."""
    middle = grid.shape[1] // 2
    return grid[:, middle - columns // 2 : middle - columns // 2 + columns]


def interpolate_by_hand(grid: Tensor, columns: int) -> Tensor:
    """Linear along time with half-pixel centres, column by column: torch's bilinear with align_corners=False."""
    old = grid.shape[1]
    result = []
    for column in range(columns):
        place = min(max((column + 0.5) * old / columns - 0.5, 0.0), old - 1.0)
        left = int(place)
        right, share = min(left + 1, old - 1), place - left
        result.append((1 - share) * grid[:, left] + share * grid[:, right])
    return torch.stack(result, dim=1)


@pytest.mark.parametrize("frames", [16, 98, 106, 250, 266, 400, 1226])
@pytest.mark.parametrize("table_frames", [256, 266])
def test_other_lengths_equal_transformers_with_positions_cut_or_interpolated_by_hand(
    frames, table_frames, hf_model, hf_folder
):
    sizes = {"num_labels": 3, "num_attention_heads": 2}
    model = hf_model(**sizes, max_length=table_frames)
    backbone = load_backbone(hf_folder(model))

    reference = hf_model(**sizes, max_length=frames)
    state = model.state_dict()
    key = "audio_spectrogram_transformer.embeddings.position_embeddings"
    rows, columns = 12, (frames - 16) // 10 + 1
    grid = state[key][0, 2:].reshape(rows, -1, 48)
    grid = (cut_by_hand if columns <= grid.shape[1] else interpolate_by_hand)(grid, columns)
    state[key] = torch.cat((state[key][:, :2], grid.reshape(1, rows * columns, 48)), dim=1)
    reference.load_state_dict(state)

    assert_equal_to(reference, backbone, torch.randn(2, frames, 128))


def test_half_precision_linears_keep_the_stream_in_fp32_and_the_result_close(small_backbone):
    half = small_backbone.to(dtype=torch.bfloat16)
    mel = torch.randn(2, 128, 128)
    exact = encode([mel], [untouched(small_backbone)], small_backbone.geometry)[0]
    rounded = encode([mel], [untouched(half)], half.geometry)[0]
    assert rounded.dtype == torch.float32
    assert half.weights.blocks[0].fc1_weight.dtype == half.weights.embed.patch_weight.dtype == torch.bfloat16
    assert half.weights.blocks[0].ln1_weight.dtype == half.weights.embed.positions.dtype == torch.float32
    assert (rounded - exact).abs().mean() < 0.03


def test_tokens_of_the_published_geometries():
    ast = Geometry()
    assert (ast.rows, ast.columns(1024), ast.tokens(1024)) == (12, 101, 1214)
    assert (ast.tokens(128), ast.tokens(512), ast.tokens(400), ast.tokens(3000)) == (146, 602, 470, 3590)  # AAT


@pytest.mark.parametrize("frames", range(1, 60))
def test_whole_frames_leaves_nothing_beside_the_last_patch_and_adds_less_than_a_stride(frames):
    whole = Geometry().whole_frames(frames)
    assert whole >= max(frames, 16)
    assert (whole - 16) % 10 == 0
    assert whole - max(frames, 16) < 10


def test_weights_survive_naming_and_mapping(small_backbone):
    weights = small_backbone.weights
    copy = weights.map(lambda name, tensor: tensor + 0)
    assert [name for name, _ in copy.named()] == [name for name, _ in weights.named()]
    assert all(torch.equal(a, b) for (_, a), (_, b) in zip(copy.named(), weights.named(), strict=True))


@pytest.mark.parametrize(
    ("sizes", "message"),
    [
        ({"width": 50, "heads": 3}, "width 50 is not a multiple of heads 3"),
        ({"max_frames": 8}, "8 frames hold no 16-bin patch"),
        ({"heads": 0}, "got heads=0"),
        ({"time_stride": -1}, "got time_stride=-1"),
        ({"layers": "12"}, "got layers='12'"),
    ],
)
def test_impossible_sizes_are_refused(sizes, message):
    with pytest.raises(BackboneError, match=message):
        dataclasses.replace(Geometry(), **sizes)
