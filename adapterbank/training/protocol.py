"""Runs of one method on one dataset under one stated protocol, kept as lines of a file so that a comparison resumes."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from adapterbank.bank import AdapterBank
from adapterbank.data import FolderDataset
from adapterbank.errors import ConfigError, StorageError, UnknownNameError
from adapterbank.training.fit import fit

Run = dict[str, Any]
Splits = tuple[FolderDataset, FolderDataset, FolderDataset]

_DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}


def dtype_of(precision: str) -> torch.dtype:
    """Of the frozen linears: "fp32" or "bf16". Raises UnknownNameError."""
    if precision not in _DTYPES:
        raise UnknownNameError("precision", precision, _DTYPES)
    return _DTYPES[precision]


def train_and_test(
    backbone: str,
    splits: Splits,
    method: str,
    *,
    lr: float,
    seed: int,
    fit_options: Mapping[str, Any],
    test_precision: str = "bf16",
    pooling: str = "cls_dist",
) -> Run:
    """A new task on a frozen backbone; after its last epoch, whole clips of the validation and the test part.

    No epoch is chosen by validation, so that validation scores may choose among runs.

    Args:
        backbone: as `AdapterBank.from_pretrained` takes it.
        splits: train, validation and test.
        test_precision: "fp32" or "bf16", of the frozen linears at test; everything trained is fp32.
        pooling: as `add_task` takes it.

    Raises:
        UnknownNameError: another precision. Whatever `add_task` and `fit` raise.
    """
    dtype = dtype_of(test_precision)
    train, val, test = splits
    bank = AdapterBank.from_pretrained(backbone)
    name = re.sub(r"[^a-z0-9]+", "-", f"{train.name}-{method}".lower()).strip("-")[:64]
    bank.add_task(name, method=method, labels=train.labels, multilabel=train.multilabel, pooling=pooling, seed=seed)
    history = fit(bank, name, train, lr=lr, seed=seed, **fit_options)
    metric = bank.task(name).primary_metric
    bank.to(base_dtype=dtype)
    return {
        "method": method,
        "lr": lr,
        "seed": seed,
        "metric": metric,
        "val": bank.evaluate(name, val)[metric],
        "test": bank.evaluate(name, test)[metric],
        "parameters": bank.trainable_parameters(name),
        "seconds": round(history.seconds, 1),
    }


class RunLog:
    """Finished runs, one JSON line each, all of one protocol; several processes may append.

    Args:
        file: is made with its folder.
        protocol: what two runs must share to be compared.

    Raises:
        ConfigError: the file holds runs of another protocol. StorageError: a line is damaged.
    """

    def __init__(self, file: str | Path, protocol: Mapping[str, Any]):
        self.file = Path(file)
        self.protocol = json.loads(json.dumps(dict(protocol)))
        self.file.parent.mkdir(parents=True, exist_ok=True)
        for run in self._read():
            if run["protocol"] != self.protocol:
                raise ConfigError(
                    f"{self.file} holds runs of the protocol {run['protocol']}, now it is {self.protocol}; "
                    "choose another out=..., or remove the file."
                )

    def _read(self) -> list[Run]:
        if not self.file.is_file():
            return []
        lines = self.file.read_text(encoding="utf-8").splitlines()
        try:
            runs = [json.loads(line) for line in lines]
            return [{**run, "protocol": run["protocol"]} for run in runs]
        except (ValueError, TypeError, KeyError) as error:
            raise StorageError(f"{self.file} has a damaged line: {error!r}. Remove that line.") from error

    def find(self, **wanted: Any) -> list[Run]:
        """Runs whose fields have these values, as the file is now."""
        return [run for run in self._read() if all(run.get(key) == value for key, value in wanted.items())]

    def add(self, run: Run) -> None:
        """Appends a finished run."""
        line = json.dumps({**run, "protocol": self.protocol}) + "\n"
        with self.file.open("a", encoding="utf-8") as handle:
            handle.write(line)
