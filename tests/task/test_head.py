"""The head that every task has, and the two ways of pooling."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from adapterbank.bank import AdapterBank
from adapterbank.errors import UnknownNameError
from adapterbank.task.head import Head, pool
from adapterbank.task.task import seeded


def test_ln_linear_is_layer_norm_and_linear(randomise):
    head = Head("ln_linear", 48, 5, 1e-3, seeded(0, "x"))
    randomise(head)
    plain = nn.Sequential(nn.LayerNorm(48, eps=1e-3), nn.Linear(48, 5))
    plain.load_state_dict(dict(zip(plain.state_dict(), head.state_dict().values(), strict=True)))
    x = torch.randn(3, 48)
    torch.testing.assert_close(head(x), plain(x), rtol=0, atol=1e-6)


def test_linear_is_a_bare_linear():
    head = Head("linear", 48, 5, 1e-6, seeded(0, "x"))
    x = torch.randn(3, 48)
    assert {name: tuple(t.shape) for name, t in head.state_dict().items()} == {
        "linear.weight": (5, 48),
        "linear.bias": (5,),
    }
    torch.testing.assert_close(head(x), x @ head.linear.weight.T + head.linear.bias, rtol=0, atol=1e-6)


def test_a_new_head_has_torchs_weights_and_no_bias():
    head = Head("ln_linear", 768, 50, 1e-6, seeded(0, "x"))
    bound = 1 / math.sqrt(768)
    assert 0.99 * bound < head.linear.weight.abs().max() <= bound
    assert not head.linear.bias.any()
    assert torch.equal(head.norm.weight, torch.ones(768))


def test_pooling_is_the_mean_of_cls_and_dist_or_of_all_tokens():
    tokens = torch.randn(2, 7, 4)
    torch.testing.assert_close(pool(tokens, "cls_dist"), (tokens[:, 0] + tokens[:, 1]) / 2)
    torch.testing.assert_close(pool(tokens, "mean"), sum(tokens[:, i] for i in range(7)) / 7)


def test_pooling_and_head_are_those_of_the_task(small_backbone, clips):
    bank = AdapterBank(small_backbone)
    for pooling in ("cls_dist", "mean"):
        bank.add_task(pooling, "head", num_classes=3, pooling=pooling, head="linear")
    pooled = bank.embed(clips)
    weight, bias = bank.task("cls_dist").head.linear.parameters()
    torch.testing.assert_close(bank(clips, "cls_dist"), pooled @ weight.T + bias, rtol=0, atol=1e-5)
    assert (bank(clips, "mean") - bank(clips, "cls_dist")).abs().max() > 1e-3


@pytest.mark.parametrize(("option", "value"), [("head", "mlp"), ("pooling", "max")])
def test_an_unknown_head_or_pooling_names_the_known_ones(option, value, small_bank):
    with pytest.raises(UnknownNameError, match=f"unknown {option} '{value}'.*Known: .*(linear|mean)"):
        small_bank.add_task("new", "head", num_classes=2, **{option: value})
    assert "new" not in small_bank.tasks
