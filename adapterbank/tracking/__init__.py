"""Experiment trackers: the Protocols are in `base`, the tracker for MLflow is `Tracker`.

`Tracker` is resolved when it is first used, so importing this package costs nothing.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from adapterbank.tracking.mlflow import Tracker

__all__ = ["Tracker"]


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from adapterbank.tracking import mlflow

    globals()[name] = getattr(mlflow, name)
    return globals()[name]


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
