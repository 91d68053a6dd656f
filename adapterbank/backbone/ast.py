"""The import path of before: the model is in `backbone/plain.py`, its tensors and sizes in `backbone/weights.py`.

CONTRIBUTING once told authors of methods to import from here, and files that follow that advice still work. New ones
import from `adapterbank.methods`.
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
