"""adapterbank: one frozen Audio Spectrogram Transformer, many trained tasks.

bank = AdapterBank.from_pretrained()
bank.add_task("speechcommands", method="aat_ms")
fit(bank, "speechcommands", train, val)
"""

from adapterbank.bank import AdapterBank
from adapterbank.data import load_folder, read_audio, standard_splits
from adapterbank.errors import AdapterBankError
from adapterbank.inspection import LayerImportance, gate_values, layer_importance, token_gates
from adapterbank.serving.compiled import CompiledTask
from adapterbank.task.task import Prediction
from adapterbank.training.fit import History, fit
from adapterbank.training.many import fit_many

__version__ = "0.1.0"
__all__ = [
    "AdapterBank",
    "AdapterBankError",
    "CompiledTask",
    "History",
    "LayerImportance",
    "Prediction",
    "fit",
    "fit_many",
    "gate_values",
    "layer_importance",
    "load_folder",
    "methods",
    "read_audio",
    "standard_splits",
    "token_gates",
]
