"""An address of before for `adapterbank.methods`: CONTRIBUTING once told authors of methods to import from here.

Method files that they wrote after it still work. New ones import from `adapterbank.methods`.
"""

from adapterbank.backbone.weights import (
    LINEAR_NAMES,
    PREFIX_TOKENS,
    ASTWeights,
    BlockWeights,
    EmbedWeights,
    FrozenLinear,
    Geometry,
    NormWeights,
)

__all__ = [
    "LINEAR_NAMES",
    "PREFIX_TOKENS",
    "ASTWeights",
    "BlockWeights",
    "EmbedWeights",
    "FrozenLinear",
    "Geometry",
    "NormWeights",
]
