"""The difference of two tasks on the same clips has an interval that sees that the clips are the same."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from sklearn.metrics import average_precision_score

from adapterbank.errors import ConfigError
from adapterbank.evaluation import Evaluation, difference, paired_interval


def evaluation(logits, targets, labels):
    return Evaluation({}, logits, targets, labels=labels)


def test_a_paired_interval_holds_what_many_resamples_say():
    draw = np.random.default_rng(1)
    best = (draw.random(400) < 0.7).astype(int)
    mine = np.where(draw.random(400) < 0.1, 1 - best, best)
    mean, low, high = paired_interval(mine, best)
    error = (mine - best).std() / 20  # of a mean of 400
    assert mean == pytest.approx((mine - best).mean())
    assert (low, high) == pytest.approx((mean - 1.96 * error, mean + 1.96 * error), abs=0.01)
    assert paired_interval(best, best) == (0, 0, 0)
    with pytest.raises(ConfigError, match="expected the same clips"):
        paired_interval([1], [1, 0])


def test_the_difference_of_two_accuracies_is_that_of_their_right_answers():
    draw = torch.Generator().manual_seed(0)
    targets = torch.randint(3, (60,), generator=draw)
    first, second = (torch.randn(60, 3, generator=draw) for _ in range(2))
    right = [(logits.argmax(1) == targets).double().numpy() for logits in (first, second)]
    found = difference(*(evaluation(logits, targets, "abc") for logits in (first, second)))
    assert found == pytest.approx(paired_interval(*right))
    assert found[0] == pytest.approx(right[0].mean() - right[1].mean())


def test_the_interval_of_a_difference_of_map_is_that_of_a_bootstrap_of_pairs():
    draw = np.random.default_rng(3)
    truth = draw.random((80, 3)) < 0.4
    first, second = truth + draw.normal(size=(80, 3)), truth + 2 * draw.normal(size=(80, 3))

    def score(values, rows):
        return np.mean([average_precision_score(truth[rows, c], values[rows, c]) for c in range(3)])

    drawn = [draw.integers(80, size=80) for _ in range(600)]
    low, high = np.percentile([score(first, rows) - score(second, rows) for rows in drawn], [2.5, 97.5])
    tensors = [torch.tensor(values) for values in (first, second)]
    targets = torch.tensor(truth).float()
    found = difference(*(evaluation(logits, targets, "abc") for logits in tensors))
    assert found[0] == pytest.approx(score(first, range(80)) - score(second, range(80)), abs=1e-6)
    assert found[1:] == pytest.approx((low, high), abs=0.03)
    turned = evaluation(tensors[1][:, [2, 0, 1]], targets[:, [2, 0, 1]], "cab")  # the same classes in another order
    assert difference(evaluation(tensors[0], targets, "abc"), turned) == pytest.approx(found)


def test_a_clip_that_one_of_two_tasks_did_not_answer_counts_for_neither():
    targets, logits = torch.tensor([0, 1, 0]), torch.tensor([[1.0, 0], [1, 0], [1, 0]])
    gap = logits.clone()
    gap[1] = torch.nan
    assert difference(evaluation(logits, targets, "ab"), evaluation(gap, targets, "ab")) == (0, 0, 0)
    with pytest.raises(ConfigError, match="same clips and classes"):
        difference(evaluation(logits, targets, "ab"), evaluation(logits[:2], targets[:2], "ab"))
