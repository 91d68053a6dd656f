"""Runs of one method on one dataset under one stated protocol, kept as lines of a file so that a comparison resumes."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from adapterbank.bank import AdapterBank
from adapterbank.data import FolderDataset
from adapterbank.errors import ConfigError, StorageError, UnknownNameError
from adapterbank.evaluation import evaluate_task
from adapterbank.inspection import LayerImportance, layer_importance
from adapterbank.training.fit import fit

Run = dict[str, Any]


Splits = tuple[FolderDataset, FolderDataset, FolderDataset]


TOP = "top:"  # layers="top:4" in a recipe: the four blocks that matter most


_DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "int8": torch.int8}


def dtype_of(precision: str) -> torch.dtype:
    """Of the frozen linears: "fp32", "bf16" or "int8". Raises UnknownNameError."""
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
    pooling: str | None = "cls_dist",
    options: Mapping[str, Any] | None = None,
) -> Run:
    """A new task on a frozen backbone; after its last epoch, whole clips of the validation and the test part.

    No epoch is chosen by validation, so that validation scores may choose among runs.

    Args:
        backbone: as `AdapterBank.from_pretrained` takes it.
        splits: train, validation and test.
        test_precision: "fp32", "bf16" or "int8", of the frozen linears at test; everything trained is fp32.
        pooling: as `add_task` takes it.
        options: of the method. `layers="top:4"` takes the four blocks whose adapters have the largest gradients on the
            training part before training (`layer_importance`).

    Returns:
        The scores, the losses of the epochs, and for single labels `hits`: a "1" for each test clip that was right.

    Raises:
        UnknownNameError: another precision. Whatever `add_task` and `fit` raise.
    """
    dtype = dtype_of(test_precision)
    train, val, test = splits
    bank = AdapterBank.from_pretrained(backbone)
    name = re.sub(r"[^a-z0-9]+", "-", f"{train.name}-{method}".lower()).strip("-")[:64]
    task: dict[str, Any] = {"labels": train.labels, "multilabel": train.multilabel, "pooling": pooling, "seed": seed}
    task |= options or {}
    if str(task.get("layers")).startswith(TOP):
        task["layers"] = _gradients_before_training(bank, name, method, task, train).top(_count(task["layers"]))
    bank.add_task(name, method, **task)
    history = fit(bank, name, train, lr=lr, seed=seed, **fit_options)
    owner = bank.task(name)
    metric = owner.primary_metric
    bank.to(base_dtype=dtype)
    tested = evaluate_task(bank.backbone, owner, test)
    hits = {} if owner.spec.multilabel else {"hits": _hits(tested.logits, tested.targets)}
    return {
        "method": method,
        "lr": lr,
        "seed": seed,
        "metric": metric,
        "val": bank.evaluate(name, val)[metric],
        "test": tested.metrics[metric],
        "parameters": bank.trainable_parameters(name),
        "seconds": round(history.seconds, 1),
        "losses": [round(epoch["train/loss"], 4) for epoch in history.epochs],
        "options": json.loads(json.dumps(dict(owner.spec.options))),
        **hits,
    }


def _count(layers: str) -> int:
    """4 for "top:4". Raises ConfigError: no number."""
    number = layers.removeprefix(TOP)
    if not number.isdecimal():
        raise ConfigError(f"got layers={layers!r}, expected 'top:4' or another number of blocks.")
    return int(number)


def _gradients_before_training(
    bank: AdapterBank, name: str, method: str, task: Mapping[str, Any], train: FolderDataset
) -> LayerImportance:
    """Of adapters in all blocks; the bank is left as it was."""
    bank.add_task(name, method, **{**task, "layers": "all"})
    try:
        return layer_importance(bank, name, train, kind="gradient")
    finally:
        bank.remove_task(name)


def _hits(logits: Tensor, targets: Tensor) -> str:
    return "".join("01"[hit] for hit in (logits.argmax(1) == targets).int().tolist())


def gain(runs: Sequence[Run], baseline: Sequence[Run], resamples: int = 2000) -> tuple[float, float, float]:
    """Accuracy above a baseline on the same test clips, means over seeds, with a 95 % interval.

    The interval is a paired percentile bootstrap over test clips: which clips were drawn is the larger uncertainty of
    small test parts; seeds enter as means.

    Raises:
        ConfigError: the runs were tested on other numbers of clips, or on sets of labels.
    """
    every = [str(run.get("hits", "")) for run in (*runs, *baseline)]
    if not all(every) or len({len(hits) for hits in every}) != 1:
        raise ConfigError(
            "got runs on other test clips or on sets of labels, expected single labels on the same clips."
        )
    mine, theirs = (np.array([[int(hit) for hit in run["hits"]] for run in part]).mean(0) for part in (runs, baseline))
    difference = mine - theirs
    draws = np.random.default_rng(0).integers(len(difference), size=(resamples, len(difference)))
    low, high = np.percentile(difference[draws].mean(1), [2.5, 97.5])
    return float(difference.mean()), float(low), float(high)


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
