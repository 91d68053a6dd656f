"""adapterbank: one frozen Audio Spectrogram Transformer, many trained tasks.

bank = AdapterBank.from_pretrained()
bank.add_task("speechcommands", method="aat_ms")
fit(bank, "speechcommands", train, val)

A name is imported when it is first used (PEP 562), so that `import adapterbank` alone imports not even torch.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from adapterbank._version import __version__ as __version__

if TYPE_CHECKING:  # what `_PLACES` says, for type checkers and editors
    from adapterbank import methods
    from adapterbank.audio.read import read_audio
    from adapterbank.backbone.kernels import plain_kernels
    from adapterbank.bank import AdapterBank
    from adapterbank.data.folder import load_folder
    from adapterbank.data.standard import standard_splits
    from adapterbank.errors import AdapterBankError
    from adapterbank.inspection import LayerImportance, gate_values, layer_importance, token_gates
    from adapterbank.mislabels import probable_mislabels
    from adapterbank.scanning.events import Event
    from adapterbank.scanning.result import Scan
    from adapterbank.serving.compiled import CompiledTask
    from adapterbank.task.task import Prediction
    from adapterbank.training.fit import fit
    from adapterbank.training.history import History
    from adapterbank.training.many import fit_many

__all__ = [
    "AdapterBank",
    "AdapterBankError",
    "CompiledTask",
    "Event",
    "History",
    "LayerImportance",
    "Prediction",
    "Scan",
    "fit",
    "fit_many",
    "gate_values",
    "layer_importance",
    "load_folder",
    "methods",
    "plain_kernels",
    "probable_mislabels",
    "read_audio",
    "standard_splits",
    "token_gates",
]

_PLACES = {  # public name -> the module that defines it
    "AdapterBank": "bank",
    "AdapterBankError": "errors",
    "CompiledTask": "serving.compiled",
    "Event": "scanning.events",
    "History": "training.history",
    "LayerImportance": "inspection",
    "Prediction": "task.task",
    "Scan": "scanning.result",
    "fit": "training.fit",
    "fit_many": "training.many",
    "gate_values": "inspection",
    "layer_importance": "inspection",
    "load_folder": "data.folder",
    "plain_kernels": "backbone.kernels",
    "probable_mislabels": "mislabels",
    "read_audio": "audio.read",
    "standard_splits": "data.standard",
    "token_gates": "inspection",
}


def __getattr__(name: str) -> Any:
    """A public name, or a module of the package such as `adapterbank.plots`, imported now and kept."""
    if name in _PLACES:
        found = getattr(importlib.import_module(f"{__name__}.{_PLACES[name]}"), name)
        globals()[name] = found
        return found
    module = f"{__name__}.{name}"
    if name.isidentifier():
        try:
            return importlib.import_module(module)
        except ModuleNotFoundError as error:
            if error.name != module:  # the module is there, but something that it needs is not
                raise
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}. Public names: {', '.join(__all__)}.")


def __dir__() -> list[str]:
    return sorted([*__all__, "__version__", "data", "evaluation", "plots", "sequence", "tracking"])
