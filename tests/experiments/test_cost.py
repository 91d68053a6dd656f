"""Costs are those of the methods: one adapter is cheaper than the whole body, and an error names itself."""

import pytest
import torch

from adapterbank.errors import UnknownNameError
from adapterbank.experiments.cost import step_costs, step_memory, step_tensors


@pytest.mark.slow
def test_one_adapter_costs_less_time_and_memory_than_the_whole_body():
    methods = {"slim": {"method": "aat_m", "layers": [11]}, "full": {"method": "full"}}
    costs = step_costs("ast-mini-2", methods, clip_seconds=1.0, batch_size=8, classes=3, pairs=3, precision="fp32")
    assert list(costs) == ["slim", "full"]
    assert 0.5 < costs["full"].time_ratio < 2.0  # beside itself
    assert costs["slim"].time_ratio < 0.8
    assert 0 < costs["slim"].memory_mb < costs["full"].memory_mb
    assert costs["slim"].seconds > 0


@pytest.mark.slow
def test_an_unknown_method_is_named(hf_folder, hf_model):
    with pytest.raises(UnknownNameError, match="aat_x"):
        step_costs(str(hf_folder(hf_model())), {"wrong": {"method": "aat_x"}}, pairs=1)


@pytest.mark.slow
def test_the_memory_of_a_step_is_that_of_the_method_beside_the_base(hf_folder, hf_model):
    folder = str(hf_folder(hf_model(hidden_size=96, num_hidden_layers=4)))
    batch = {"batch_size": 64, "clip_seconds": 1.0, "classes": 3, "precision": "fp32"}
    slim, full = (step_memory(folder, {"method": method}, **batch) for method in ("head", "full"))
    assert 0 < slim < full


def test_the_tensors_of_a_step_are_weights_gradients_and_moments_at_least(hf_folder, hf_model):
    model = hf_model(hidden_size=192, intermediate_size=768)
    batch = {"batch_size": 1, "clip_seconds": 0.2, "classes": 3, "precision": "fp32"}
    slim, full = (step_tensors(str(hf_folder(model)), {"method": method}, **batch) for method in ("head", "full"))
    weights = sum(p.nbytes for p in model.parameters()) / 2**20
    assert weights < slim < 2 * weights
    assert 5 * weights < full < 7 * weights  # base, own copy, gradients and two moments of each number


def test_an_int8_base_counts_with_its_int8_numbers(hf_folder, hf_model):
    folder = str(hf_folder(hf_model(hidden_size=192, intermediate_size=1536)))
    batch = {"batch_size": 1, "clip_seconds": 0.2, "classes": 3, "precision": "bf16"}
    half, int8 = (step_tensors(folder, {"method": "head"}, base_dtype=d, **batch) for d in (torch.bfloat16, torch.int8))
    matrices = 2 * (4 * 192 * 192 + 2 * 192 * 1536) / 2**20  # of two layers, a byte each
    assert half > 2 * matrices
    assert int8 > matrices
    assert half - int8 < 1.01 * matrices
