"""Fine-tuning methods. `adapterbank.methods()` lists them; the author of a new one imports all of it from here."""

from __future__ import annotations

import importlib
import pkgutil
import sys
from types import ModuleType

from adapterbank.backbone.sites import NOTHING, Affine, LinearHook, PerToken, Sites, Transform
from adapterbank.backbone.weights import LINEAR_NAMES, PREFIX_TOKENS, ASTWeights, FrozenLinear, Geometry, NormWeights
from adapterbank.methods.base import Adapters
from adapterbank.methods.grammar import Composition, build, count, foreign, options_of, parse
from adapterbank.methods.parts import init
from adapterbank.methods.parts.gate import gated
from adapterbank.methods.parts.layers import ByLayer, Layers, chosen
from adapterbank.methods.parts.placed import Placed
from adapterbank.methods.registry import ALIASES, Method, get, names, register, unregister
from adapterbank.methods.table import Overview, overview

__all__ = [
    "ALIASES",
    "LINEAR_NAMES",
    "NOTHING",
    "PREFIX_TOKENS",
    "ASTWeights",
    "Adapters",
    "Affine",
    "ByLayer",
    "Composition",
    "FrozenLinear",
    "Geometry",
    "Layers",
    "LinearHook",
    "Method",
    "NormWeights",
    "Overview",
    "PerToken",
    "Placed",
    "Sites",
    "Transform",
    "build",
    "chosen",
    "count",
    "foreign",
    "gated",
    "get",
    "init",
    "names",
    "options_of",
    "overview",
    "parse",
    "register",
    "unregister",
]

for _file in pkgutil.iter_modules(__path__):  # each method registers itself: a new one is a new file and no line here
    if not _file.name.startswith("_"):
        importlib.import_module(f"{__name__}.{_file.name}")


class _Package(ModuleType):
    """`adapterbank.methods` is this package, and `adapterbank.methods()` lists what is in it: Python calls a module
    whose class has `__call__`. Type checkers call it by its name, `methods.overview()`."""

    def __call__(self) -> Overview:
        return overview()


sys.modules[__name__].__class__ = _Package
