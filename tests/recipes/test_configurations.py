"""What recipes that compare methods train with where nobody says otherwise."""

from pathlib import Path

import pytest
from hydra import compose, initialize_config_dir

CONF = Path(__file__).parents[2] / "recipes" / "conf"


@pytest.mark.parametrize("name", ["compare_methods", "all_methods", "layers_and_gates", "evaluate_backbone"])
def test_a_comparison_of_methods_sets_no_rate_length_or_batch_size_of_its_own(name):
    with initialize_config_dir(str(CONF), version_base=None):
        cfg = compose(name)
    rates = cfg.lr if name == "evaluate_backbone" else cfg.lrs
    assert dict(rates) == {"default": None}
    assert {"epochs", "batch_size", "weight_decay", "freq_mask", "time_mask"} <= set(cfg.fit)
    assert set(cfg.fit.values()) == {None}
    assert cfg.pooling is None
