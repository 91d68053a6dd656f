"""The backbones whose weights are shipped inside this package: the folder of each, as transformers would save it.

The digest tells a damaged installation before its weights are used.
"""

from __future__ import annotations

from pathlib import Path

EMBEDDED = {"ast-mini": Path(__file__).parent / "weights" / "ast-mini"}
# What a head reads best: on ESC-50 the mean of all tokens serves a logistic regression better than the cls and
# distillation tokens do, and on the other test sets the two differ little (docs/defaults.md).
EMBEDDED_POOLING = {"ast-mini": "mean"}
EMBEDDED_SHA256 = {"ast-mini": "d2a25938c9220d143f5a47886bc307cfd14db1335383954cd9a9017bcbc6ab88"}  # of the weights
