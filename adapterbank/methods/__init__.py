"""Fine-tuning methods. `adapterbank.methods()` lists them, and the author of a new one imports all of it from here.

What an author needs, in the order of use:

    register                                      makes a builder known under a name
    Geometry, ASTWeights, FrozenLinear            what a builder is given: the backbone's sizes and frozen tensors
    BlockWeights, EmbedWeights, NormWeights       the parts of `ASTWeights`
    LINEAR_NAMES, PREFIX_TOKENS                   the six linears of a block; how many tokens stand before the patches
    Adapters                                      what a builder returns
    Sites, NOTHING, Affine                        what a method fills in a block
    LinearHook, Transform, PerToken               the types of what goes into a site
    Layers, chosen, ByLayer                       `layers=`, the block numbers that it stands for, a module per block
    Bottleneck, Placed, gated                     a ready-made adapter, where it stands, its gate
    init, trainable_copy, trainable_copies        initial values: from the generator, or from frozen tensors
    whole                                         the check of an option that is a whole number

What looks methods up and builds them:

    names, get, Method, ALIASES                   the names that exist; what is registered under one; other spellings
    count, overview, Overview                     how many numbers a method trains; the table of all methods
    parse, options_of                             the parts of a composition ("aat_ms+prompt"), and the options of each
    build, Composition                            a method's or composition's adapters; those of several parts
    foreign                                       which parts come from outside the package, and from which module
    unregister                                    forgets a method, such as one of a test

The `PREFIX_TOKENS` are the backbone's own, cls and distillation, and not those of the method `prefix`.
"""

from __future__ import annotations

import importlib
import pkgutil
import sys
from types import ModuleType

from adapterbank.backbone.sites import NOTHING, Affine, LinearHook, PerToken, Sites, Transform
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
from adapterbank.methods.base import Adapters
from adapterbank.methods.grammar import Composition, build, count, foreign, options_of, parse
from adapterbank.methods.parts import init
from adapterbank.methods.parts.bottleneck import Bottleneck
from adapterbank.methods.parts.gate import gated
from adapterbank.methods.parts.layers import ByLayer, Layers, chosen
from adapterbank.methods.parts.own import trainable_copies, trainable_copy
from adapterbank.methods.parts.placed import Placed
from adapterbank.methods.registry import ALIASES, Method, get, names, register, unregister
from adapterbank.methods.table import Overview, overview
from adapterbank.numbers import whole

__all__ = [
    "ALIASES",
    "LINEAR_NAMES",
    "NOTHING",
    "PREFIX_TOKENS",
    "ASTWeights",
    "Adapters",
    "Affine",
    "BlockWeights",
    "Bottleneck",
    "ByLayer",
    "Composition",
    "EmbedWeights",
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
    "trainable_copies",
    "trainable_copy",
    "unregister",
    "whole",
]

for _file in pkgutil.iter_modules(__path__):  # each method registers itself: a new one is a new file and no line here
    if not _file.name.startswith("_"):
        importlib.import_module(f"{__name__}.{_file.name}")


class _Package(ModuleType):
    """`adapterbank.methods` is this package, and `adapterbank.methods()` lists what is in it.

    Python calls a module whose class has `__call__`. Type checkers do not know that; for them the same function is
    `methods.overview()`.
    """

    def __call__(self) -> Overview:
        return overview()


sys.modules[__name__].__class__ = _Package
