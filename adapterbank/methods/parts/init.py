"""Initial values, drawn from a generator that is passed in: building a task never touches the global random state."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from adapterbank.backbone.weights import Geometry
from adapterbank.errors import ConfigError
from adapterbank.numbers import is_real


def linear(inputs: int, outputs: int, generator: torch.Generator) -> nn.Linear:
    """A Linear with torch's default weights, uniform in +-1/sqrt(inputs), and a zero bias (AAT, section 3.1.2)."""
    layer = nn.utils.skip_init(nn.Linear, inputs, outputs)
    nn.init.kaiming_uniform_(layer.weight, a=math.sqrt(5), generator=generator)
    nn.init.zeros_(layer.bias)
    return layer


def zero_linear(inputs: int, outputs: int) -> nn.Linear:
    """A Linear whose output is zero until it is trained."""
    layer = nn.utils.skip_init(nn.Linear, inputs, outputs)
    nn.init.zeros_(layer.weight)
    nn.init.zeros_(layer.bias)
    return layer


def dropout(share: float) -> nn.Module:
    """A Dropout; for a share of 0 a module that does nothing.

    Raises:
        ConfigError: `share` is no number from 0 to below 1.
    """
    if not (is_real(share) and 0 <= share < 1):
        raise ConfigError(f"got dropout={share!r}, expected a share from 0 to below 1.")
    return nn.Dropout(share) if share else nn.Identity()


def uniform(shape: tuple[int, ...], bound: float, generator: torch.Generator) -> nn.Parameter:
    """A parameter of this shape, each value drawn from [-bound, bound]."""
    values: Tensor = torch.empty(shape).uniform_(-bound, bound, generator=generator)
    return nn.Parameter(values)


def prompts(count: int, geometry: Geometry, generator: torch.Generator) -> nn.Parameter:
    """P = `count` prompt tokens, (P, D), uniform in +-sqrt(6 / (3 patch^2 + D)).

    The bound is that of VPT (Jia et al., 2022): Xavier's, for a patch embedding of 3 colours.
    """
    return uniform((count, geometry.width), math.sqrt(6 / (3 * geometry.patch**2 + geometry.width)), generator)
