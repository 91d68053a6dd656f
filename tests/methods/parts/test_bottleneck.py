"""The bottleneck that AAT's and the bottleneck method's adapters are: torch's modules, one after the other."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from adapterbank.backbone.sites import acts_per_token
from adapterbank.errors import ConfigError, UnknownNameError
from adapterbank.methods.parts.bottleneck import Bottleneck


def made(**options: object) -> Bottleneck:
    """48 -> 12 -> 48 with an `up` that is not zero, as after training."""
    generator = torch.Generator().manual_seed(0)
    adapter = Bottleneck(48, 12, generator, **options)
    for parameter in adapter.up.parameters():
        nn.init.normal_(parameter, std=0.2, generator=generator)
    return adapter


def rows(*size: int) -> Tensor:
    return torch.randn(*size, generator=torch.Generator().manual_seed(1)).requires_grad_()


@pytest.mark.parametrize("precision", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("size", [(20, 48), (2, 10, 48), (1, 48)])
@pytest.mark.parametrize("activation", ["gelu", "relu"])
def test_it_has_the_values_and_gradients_of_linear_activation_linear(activation, size, precision):
    adapter, wide = made(activation=activation), made()
    plain = nn.Sequential(wide.down, nn.GELU() if activation == "gelu" else nn.ReLU(), wide.up)
    x = rows(*size)
    with torch.autocast("cpu", precision, enabled=precision != torch.float32):
        ours = adapter(x)
    assert (ours.dtype, ours.shape) == (precision, x.shape)
    expected = plain(x)
    near = 1e-5 if precision == torch.float32 else 3e-2
    given = torch.randn(size, generator=torch.Generator().manual_seed(2))
    found, wanted = (
        torch.autograd.grad(y, [x, *module.parameters()], given.to(y.dtype))
        for y, module in ((ours, adapter), (expected, plain))
    )
    torch.testing.assert_close(ours.float(), expected, rtol=near, atol=near)
    for one, reference in zip(found, wanted, strict=True):
        assert one.dtype == torch.float32
        torch.testing.assert_close(one, reference, rtol=0, atol=near * float(reference.abs().max()))


@pytest.mark.parametrize("which", range(4))
def test_a_bottleneck_of_which_only_one_tensor_is_trained_gets_its_gradient(which):
    adapter, wide = made(), made()
    for module in (adapter, wide):
        module.requires_grad_(False)
        list(module.parameters())[which].requires_grad_()
    with torch.autocast("cpu", torch.bfloat16):
        adapter(rows(20, 48).detach()).float().square().sum().backward()
    wide.up(nn.functional.gelu(wide.down(rows(20, 48).detach()))).square().sum().backward()
    found, expected = (list(module.parameters())[which].grad for module in (adapter, wide))
    torch.testing.assert_close(found, expected, rtol=0, atol=2e-2 * float(expected.abs().max()))


@pytest.mark.parametrize("part", ["down", "drop", "up"])
@pytest.mark.parametrize("kind", ["hook", "class"])
def test_a_part_that_does_more_is_called_in_bf16_training_too(part, kind):
    adapter = made()
    seen: list[torch.dtype] = []
    module = getattr(adapter, part)
    if kind == "hook":
        module.register_forward_hook(lambda *given: seen.append(given[2].dtype))
    else:
        own = type(
            "Own", (type(module),), {"forward": lambda self, x: seen.append(x.dtype) or super(own, self).forward(x)}
        )
        module.__class__ = own
    with torch.autocast("cpu", torch.bfloat16):
        adapter(rows(20, 48)).float().sum().backward()
    assert len(seen) == 1


def test_dropout_drops_hidden_units_in_bf16_training_too():
    adapter = made(dropout=0.5).train()
    with torch.autocast("cpu", torch.bfloat16):
        one, other = (adapter(rows(20, 48)) for _ in range(2))
    assert not torch.equal(one, other)


def test_a_new_one_answers_zero_and_acts_on_each_token_by_itself():
    adapter = Bottleneck(48, 12, torch.Generator().manual_seed(0))
    assert not adapter(rows(2, 5, 48)).any()
    assert adapter.down.weight.std() > 0.01
    assert acts_per_token(adapter)


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"hidden": 0}, ConfigError, "got hidden=0, expected at least 1"),
        ({"hidden": 1.5}, ConfigError, r"got hidden=1\.5"),
        ({"dropout": 1.0}, ConfigError, r"got dropout=1\.0"),
        ({"activation": "tanh"}, UnknownNameError, "unknown activation 'tanh'.*gelu, relu"),
    ],
)
def test_an_impossible_one_is_refused(change, error, message):
    with pytest.raises(error, match=message):
        Bottleneck(**{"width": 48, "hidden": 12, "generator": torch.Generator(), **change})
