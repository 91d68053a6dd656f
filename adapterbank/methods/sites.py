"""The import path of before: the sites are in `adapterbank/backbone/sites.py`, `Adapters` in `methods/base.py`.

CONTRIBUTING once told authors of methods to import from here, and files that follow that advice still work. New ones
import from `adapterbank.methods`.
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
