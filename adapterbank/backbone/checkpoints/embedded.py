"""The backbones whose weights are shipped inside this package: the folder of each, as transformers would save it.

The digest tells a damaged installation before its weights are used. A bank names its backbone by name and fingerprint,
so weights that go out of the package keep their name, which says where they are.
"""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

DEFAULT = "ast-mini-2"
EMBEDDED = {DEFAULT: Path(__file__).parent / "weights" / DEFAULT}
EMBEDDED_SHA256 = {DEFAULT: "2fe0b9cecd1351b86e7ba805169044e4072cde877efb82c53f076947f571bf7a"}  # of the weights
# What a head reads best: on ESC-50 the mean of all tokens serves a logistic regression better than the cls and
# distillation tokens do, and on the other test sets the two differ little (docs/defaults.md).
EMBEDDED_POOLING = {DEFAULT: "mean"}


class Retired(NamedTuple):
    """Weights that were in this package: the fingerprint of the backbone, and where its files are.

    Attributes:
        commit: of this project's repository, with the folder in it as `folder`.
        sha256: of its model.safetensors.
    """

    fingerprint: str
    pooling: str
    commit: str
    folder: str
    sha256: str


RETIRED = {
    "ast-mini": Retired(
        fingerprint="da3ccc16dd012ef740fb8e2cf7a1c35a43abe32abd6b292d017c662e6b19051a",
        pooling="mean",
        commit="ee8ac0c",
        folder="adapterbank/backbone/checkpoints/weights/ast-mini",
        sha256="d2a25938c9220d143f5a47886bc307cfd14db1335383954cd9a9017bcbc6ab88",
    )
}


def pooling_of(fingerprint: str) -> str | None:
    """What heads read on weights that were in this package, wherever they are opened from; None for any other."""
    return next((retired.pooling for retired in RETIRED.values() if retired.fingerprint == fingerprint), None)


def where_it_went(name: str) -> str:
    """What to do about the name of weights that are no longer in this package."""
    gone = RETIRED[name]
    return (
        f"the backbone {name!r} is no longer inside this package; for new banks its successor is {DEFAULT!r}. What was "
        f"trained on {name!r} needs its own weights. Take the folder {gone.folder} out of commit {gone.commit} of this "
        f"project, or out of an installation of that time, and pass its path (SHA-256 of its model.safetensors: "
        f"{gone.sha256})."
    )
