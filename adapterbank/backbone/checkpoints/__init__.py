"""From a checkpoint to a `Backbone`: one file per kind of checkpoint, and `opening.py`, which knows them all."""

from adapterbank.backbone.checkpoints.assemble import fingerprint
from adapterbank.backbone.checkpoints.opening import another_stride, at_its_stride, load_backbone
from adapterbank.backbone.checkpoints.untrained import random_backbone

__all__ = ["another_stride", "at_its_stride", "fingerprint", "load_backbone", "random_backbone"]
