"""Every checkpoint becomes a backbone in one place: what does not fit is said with where the sizes came from."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from adapterbank.backbone.checkpoints.assemble import assemble, fingerprint
from adapterbank.errors import BackboneError


@pytest.fixture
def body(small_backbone):
    """As a checkpoint has them: the position table with the batch axis in front."""
    tensors = {name: tensor.clone() for name, tensor in small_backbone.weights.named()}
    return {**tensors, "embed.positions": tensors["embed.positions"][None]}


def assembled(body, geometry, sizes_from="its config.json"):
    return assemble(geometry, body, Path("here.pth"), 0.0, 0.5, sizes_from=sizes_from)


def test_the_tensors_come_back_and_the_fingerprint_is_theirs(body, small_backbone, small_geometry):
    made, expected = assembled(body, small_geometry), dict(small_backbone.weights.named())
    assert made.fingerprint == fingerprint(small_geometry, expected) == small_backbone.fingerprint
    assert (made.source, made.mean, made.std) == ("here.pth", 0.0, 0.5)
    assert dict(made.weights.named()).keys() == expected.keys()
    assert all(torch.equal(tensor, expected[name]) for name, tensor in made.weights.named())


def test_a_checkpoint_with_the_axes_of_its_library_is_the_same_backbone(body, small_backbone, small_geometry):
    patch, width = small_geometry.patch, small_geometry.width
    body["embed.patch_weight"] = body["embed.patch_weight"].reshape(width, 1, patch, patch)
    body["embed.cls"] = body["embed.cls"][None, None]
    assert assembled(body, small_geometry).fingerprint == small_backbone.fingerprint


@pytest.mark.parametrize("sizes_from", ["its config.json", "the sizes that its other tensors imply"])
def test_what_does_not_fit_is_said_with_the_source_of_the_sizes(sizes_from, body, small_geometry):
    missing = {name: tensor for name, tensor in body.items() if name != "norm.weight"}
    with pytest.raises(BackboneError, match=f"here.pth does not fit {sizes_from} .*missing norm.weight, unexpected no"):
        assembled(dict(missing), small_geometry, sizes_from)
    with pytest.raises(BackboneError, match=f"norm.weight has shape .3,., expected .* from {sizes_from}"):
        assembled({**body, "norm.weight": torch.ones(3)}, small_geometry, sizes_from)
    with pytest.raises(BackboneError, match="norm.weight holds NaN or Inf"):
        assembled({**body, "norm.weight": body["norm.weight"] * float("nan")}, small_geometry, sizes_from)
