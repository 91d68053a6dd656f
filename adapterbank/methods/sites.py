"""An address of before for `adapterbank.methods`: CONTRIBUTING once told authors of methods to import from here.

Method files that they wrote after it still work. New ones import from `adapterbank.methods`.
"""

from adapterbank.backbone.sites import (
    NOTHING,
    ONE_OWNER,
    Affine,
    LinearHook,
    PerToken,
    Sites,
    Transform,
    acts_per_token,
    declared,
    merge,
)
from adapterbank.methods.base import Adapters

__all__ = [
    "NOTHING",
    "ONE_OWNER",
    "Adapters",
    "Affine",
    "LinearHook",
    "PerToken",
    "Sites",
    "Transform",
    "acts_per_token",
    "declared",
    "merge",
]
