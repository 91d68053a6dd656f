"""What `fit` uses for a method where its caller says nothing: one entry per family of methods.

The values come from `recipes/search_defaults.py`; docs/defaults.md has the search that they won. Methods of one family
change the backbone in the same way, so that what was found for one of them serves the others.
"""

from __future__ import annotations

from typing import NamedTuple


class TrainingDefaults(NamedTuple):
    """How a method trains unless something else is asked for.

    Attributes:
        lr: the highest learning rate.
        weight_decay: of AdamW.
    """

    lr: float
    weight_decay: float = 0.05


UNKNOWN = TrainingDefaults(1e-3)  # of a method from outside that registers no defaults of its own

HEAD = TrainingDefaults(3e-3)  # found for `head`
LINEAR = TrainingDefaults(1e-2)  # found for `linear`
ADAPTERS = TrainingDefaults(3e-3, 0.5)  # found for `aat_ms`
CONVOLUTION = TrainingDefaults(3e-3)  # found for `conformer`
LOW_RANK = TrainingDefaults(3e-3, 0.5)  # found for `lora`
PROMPTS = TrainingDefaults(1e-2, 0.5)  # found for `prompt`
AFFINE = TrainingDefaults(3e-3)  # gains and biases
COPIES = TrainingDefaults(3e-4)  # found for `full`: whole blocks of the backbone
