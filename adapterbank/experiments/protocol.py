"""Trials of one method on one dataset under one stated protocol, and files of results that may be continued."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from adapterbank.backbone.precision import dtype_of
from adapterbank.bank import AdapterBank
from adapterbank.data import FolderDataset
from adapterbank.errors import ConfigError, StorageError
from adapterbank.evaluation import evaluate_task
from adapterbank.inspection import layer_importance
from adapterbank.training.fit import fit

Trial = dict[str, Any]  # one training of one method and what the test part said about it
Splits = tuple[FolderDataset, FolderDataset, FolderDataset]  # train, validation, test
STORED = ("fp32", "bf16", "int8")  # how the frozen linears may be stored


def train_and_test(
    backbone: str,
    splits: Splits,
    method: str,
    *,
    seed: int,
    lr: float | None = None,
    fit_options: Mapping[str, Any] | None = None,
    test_precision: str = "bf16",
    pooling: str | None = None,
    top_layers: int | None = None,
    options: Mapping[str, Any] | None = None,
) -> Trial:
    """Trains a new task on a frozen backbone, and then evaluates it on whole clips of the validation and the test part.

    It is trained by `fit(bank, name, train, val)`, which chooses the best epoch by validation.

    Args:
        backbone: as `AdapterBank.from_pretrained` takes it.
        splits: train, validation and test.
        lr, fit_options: of `fit`; what is None or left out is its default.
        test_precision: "fp32", "bf16" or "int8", of the frozen linears at test; everything trained is fp32.
        pooling: as `add_task` takes it.
        top_layers: train adapters in this number of blocks only: those whose adapters have the largest gradients on
            the training part before training (`layer_importance`). None: the blocks that `options` name.
        options: of the method, as `add_task` takes them.

    Returns:
        The scores, the learning rate that was asked for ("asked_lr") and the one that was used ("lr"), the losses of
        the epochs, and for single labels `hits`: a "1" for each test clip whose label was predicted, a "0" for each
        other one.

    Raises:
        UnknownNameError: `test_precision` is none of the three. ConfigError: `top_layers` and `options` both choose
            the blocks. Whatever `add_task` and `fit` raise.
    """
    dtype = dtype_of(test_precision, STORED)
    train, val, test = splits
    bank = AdapterBank.from_pretrained(backbone)
    name = re.sub(r"[^a-z0-9]+", "-", f"{train.name}-{method}".lower()).strip("-")[:64]
    task: dict[str, Any] = {"labels": train.labels, "multilabel": train.multilabel, "pooling": pooling, "seed": seed}
    task |= options or {}
    if top_layers is not None:
        if "layers" in task:
            raise ConfigError(f"got layers={task['layers']!r} and top_layers={top_layers}; leave out one of them.")
        task["layers"] = _layers_of_largest_gradients(bank, name, method, task, train, top_layers)
    bank.add_task(name, method, **task)
    history = fit(bank, name, train, val, lr=lr, seed=seed, **(fit_options or {}))
    owner = bank.task(name)
    metric = owner.primary_metric
    bank.to(base_dtype=dtype)
    tested = evaluate_task(bank.backbone, owner, test)
    hits = {} if owner.spec.multilabel else {"hits": _hits(tested.logits, tested.targets)}
    return {
        "method": method,
        "asked_lr": lr,
        "lr": history.options["lr"],
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


def _layers_of_largest_gradients(
    bank: AdapterBank, name: str, method: str, task: Mapping[str, Any], train: FolderDataset, count: int
) -> tuple[int, ...]:
    """The numbers of `count` blocks, chosen with an untrained task in all blocks; the bank is left as it was."""
    bank.add_task(name, method, **task, layers="all")
    try:
        return layer_importance(bank, name, train, kind="gradient").top(count)
    finally:
        bank.remove_task(name)


def _hits(logits: Tensor, targets: Tensor) -> str:
    return "".join("01"[hit] for hit in (logits.argmax(1) == targets).int().tolist())


def gain(trials: Sequence[Trial], baseline: Sequence[Trial], resamples: int = 2000) -> tuple[float, float, float]:
    """Accuracy above a baseline on the same test clips: its mean over seeds, and the ends of its 95 % interval.

    The interval is a paired percentile bootstrap over test clips, because with a small test part it matters more which
    clips were drawn than which seed was used. Each clip enters with its mean over the seeds.

    Raises:
        ConfigError: the trials were tested on other numbers of clips, or on sets of labels.
    """
    every = [str(trial.get("hits", "")) for trial in (*trials, *baseline)]
    if not all(every) or len({len(hits) for hits in every}) != 1:
        raise ConfigError(
            "got trials on other test clips or on sets of labels, expected single labels on the same clips."
        )
    mine, theirs = (_hit_rates(part) for part in (trials, baseline))
    difference = mine - theirs
    draws = np.random.default_rng(0).integers(len(difference), size=(resamples, len(difference)))
    low, high = np.percentile(difference[draws].mean(1), [2.5, 97.5])
    return float(difference.mean()), float(low), float(high)


def _hit_rates(trials: Sequence[Trial]) -> np.ndarray:
    """(test clips,) in how many of the trials each clip was right, as a share."""
    return np.array([[int(hit) for hit in trial["hits"]] for trial in trials]).mean(0)


class ResultLog:
    """A file with one JSON line per finished result, all of one protocol; several processes may append to it.

    Args:
        file: made with its folder when it is not there.
        protocol: what two results must share so that they may be compared.

    Raises:
        ConfigError: the file holds results of another protocol. StorageError: a line is damaged.
    """

    def __init__(self, file: str | Path, protocol: Mapping[str, Any]):
        self.file = Path(file)
        self.protocol = json.loads(json.dumps(dict(protocol)))  # tuples as lists, as they are read back
        self.file.parent.mkdir(parents=True, exist_ok=True)
        for result in self._read():
            if result["protocol"] != self.protocol:
                raise ConfigError(
                    f"{self.file} holds results of the protocol {result['protocol']}, now it is {self.protocol}; "
                    "choose another out=..., or remove the file."
                )

    def _read(self) -> list[dict[str, Any]]:
        if not self.file.is_file():
            return []
        lines = self.file.read_text(encoding="utf-8").splitlines()
        try:
            results = [json.loads(line) for line in lines]
            return [{**result, "protocol": result["protocol"]} for result in results]  # without one it is damaged, too
        except (ValueError, TypeError, KeyError) as error:
            raise StorageError(f"{self.file} has a damaged line: {error!r}. Remove that line.") from error

    def find(self, **wanted: Any) -> list[dict[str, Any]]:
        """The results whose fields have these values, as the file is now."""
        return [result for result in self._read() if all(result.get(key) == value for key, value in wanted.items())]

    def add(self, result: Mapping[str, Any]) -> None:
        """Appends a finished result."""
        line = json.dumps({**result, "protocol": self.protocol}) + "\n"
        with self.file.open("a", encoding="utf-8") as handle:
            handle.write(line)
