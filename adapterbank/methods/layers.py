"""The import path of before: what stands here is in `adapterbank/methods/parts/layers.py`.

CONTRIBUTING once told authors of methods to import from here, and files that follow that advice still work. New ones
import from `adapterbank.methods`.
"""

from adapterbank.methods.parts.layers import ByLayer, Layers, chosen

__all__ = ["ByLayer", "Layers", "chosen"]
