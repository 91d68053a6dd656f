"""Costs are those of the methods: a head is cheaper than the whole body, and the reference costs what it costs."""

import pytest

from adapterbank.errors import UnknownNameError
from adapterbank.training.cost import step_costs


@pytest.mark.slow
def test_a_head_costs_less_than_the_whole_body_and_a_reference_about_itself(hf_folder, hf_model):
    backbone = str(hf_folder(hf_model(frequency_stride=16, time_stride=16)))
    methods = {"slim": {"method": "aat_m", "layers": [1]}, "full": {"method": "full"}}
    costs = step_costs(backbone, methods, clip_seconds=1.0, batch_size=8, classes=3, pairs=5, precision="fp32")
    assert list(costs) == ["slim", "full"]
    assert costs["slim"].memory_ratio < 1.0
    assert 0.5 < costs["full"].time_ratio < 2.0
    assert 0 < costs["slim"].memory_mb < costs["full"].memory_mb
    assert costs["slim"].seconds > 0


@pytest.mark.slow
def test_an_unknown_method_is_named(hf_folder, hf_model):
    with pytest.raises(UnknownNameError, match="aat_x"):
        step_costs(str(hf_folder(hf_model())), {"wrong": {"method": "aat_x"}}, pairs=1)
