"""Are the training defaults worth it? Methods trained by `fit(bank, name, train, val)` with nothing else.

    python recipes/check_defaults.py data_dir=../shared/data
    python recipes/check_defaults.py data_dir=../shared/data all_folds=true    # every fold is the test fold once
    python recipes/check_defaults.py data_dir=my_folders 'datasets=[birds,engines]' 'methods=[lora]' out=outputs/mine

Each method is set against the better of two baselines that train nothing inside the backbone: the method `linear`, and
a logistic regression of scikit-learn on the same frozen features. The gain has a 95 % interval from a paired bootstrap
over test clips, those of all folds that were tested. Every finished training is a line of `out/runs.jsonl`, where a
second start goes on.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import product
from pathlib import Path
from typing import Any

import hydra
import numpy as np
import torch
from omegaconf import DictConfig
from rich.console import Console
from torch import Tensor

from adapterbank import AdapterBank, fit, load_folder, standard_splits
from adapterbank.data import FolderDataset
from adapterbank.errors import exit_on_error
from adapterbank.evaluation import evaluate_task, paired_interval
from adapterbank.experiments.probe import cross_scores, features, targets_of
from adapterbank.experiments.protocol import ResultLog

PROBE = "logistic"  # the row of the regression; every other row is a method
console = Console()
Splits = tuple[FolderDataset, FolderDataset, FolderDataset]


def trained(cfg: DictConfig, splits: Splits, method: str) -> tuple[Tensor, dict[str, Any]]:
    """Test logits of a method that was trained with the defaults, and what the training was."""
    train, val, test = splits
    bank = AdapterBank.from_pretrained(cfg.backbone)
    bank.add_task("check", method, labels=train.labels, multilabel=train.multilabel, seed=cfg.seed)
    history = fit(bank, "check", train, val, seed=cfg.seed, progress=False)
    of = {"epochs": len(history.epochs), "steps": history.steps, "seconds": round(history.seconds, 1)}
    return evaluate_task(bank.backbone, bank.task("check"), test).logits, of


def probed(cfg: DictConfig, splits: Splits) -> tuple[Tensor, dict[str, Any]]:
    """Test scores of a logistic regression on what heads read of the frozen backbone."""
    train, _, test = splits
    bank = AdapterBank.from_pretrained(cfg.backbone)
    x = [features(lambda clips: bank.embed(clips, pooling=bank.backbone.pooling), part) for part in (train, test)]
    y = [targets_of(part) for part in (train, test)]
    folds = np.repeat([0, 1], [len(train), len(test)])
    scores = cross_scores(np.concatenate(x), np.concatenate(y), folds)
    return torch.from_numpy(scores[folds == 1]), {}


def right(scores: Tensor, test: FolderDataset) -> list[float]:
    """Per test clip: 1 if its class has the highest score; of several labels its label-ranking average precision."""
    truth = torch.from_numpy(targets_of(test))
    if truth.ndim == 1:
        return (scores.argmax(1) == truth).float().tolist()
    from sklearn.metrics import label_ranking_average_precision_score as ranking

    return [float(ranking(t[None], s[None])) for t, s in zip(truth.numpy(), scores.numpy(), strict=True)]


def folds_of(cfg: DictConfig, dataset: FolderDataset) -> list[str | None]:
    """The folds that are tested: all, or the one that `standard_splits` takes."""
    return [*dataset.fold_names] if cfg.all_folds and dataset.fold_names else [None]


def row(cfg: DictConfig, log: ResultLog, data: str, folds: Sequence[str | None]) -> str:
    """A line of the table: every method's score, and what the first of them gains over the better baseline."""
    found = {name: [log.find(data=data, name=name, fold=fold)[0] for fold in folds] for name in (*cfg.methods, PROBE)}
    rows = {name: [hit for result in results for hit in result["right"]] for name, results in found.items()}
    cells = [f"{100 * np.mean(hits):.1f}" for hits in rows.values()]
    best = max(("linear", PROBE), key=lambda name: np.mean(rows[name]))
    mean, low, high = (100 * value for value in paired_interval(rows[cfg.methods[0]], rows[best]))
    verdict = "better" if low > 0 else "worse" if high < 0 else "as good"
    of_a_fold = found[cfg.methods[0]][0]["clips"]
    counts = of_a_fold if len(folds) == 1 else f"{of_a_fold}, {len(folds)} folds"
    return f"| {data} | {counts} | {' | '.join(cells)} | {mean:+.1f} ({low:+.1f} to {high:+.1f}) | {verdict} |"


@hydra.main(version_base="1.3", config_path="conf", config_name="check_defaults")
@exit_on_error()
def main(cfg: DictConfig) -> None:
    if cfg.threads is not None:
        torch.set_num_threads(cfg.threads)
    fingerprint = AdapterBank.from_pretrained(cfg.backbone).backbone.fingerprint[:12]
    log = ResultLog(Path(cfg.out) / "runs.jsonl", {"backbone": fingerprint, "seed": cfg.seed})
    heading = ["data", "train / val / test", *cfg.methods, PROBE, f"{cfg.methods[0]} − better baseline (95 %)", ""]
    lines = [f"| {' | '.join(heading)} |", "|---" * len(heading) + "|"]
    for data in cfg.datasets:
        dataset = load_folder(Path(cfg.data_dir) / data)
        folds = folds_of(cfg, dataset)
        for fold, name in product(folds, (*cfg.methods, PROBE)):
            if log.find(data=data, name=name, fold=fold):
                continue
            splits = standard_splits(dataset, fold)
            scores, of = probed(cfg, splits) if name == PROBE else trained(cfg, splits, name)
            clips = " / ".join(str(len(part)) for part in splits)
            hits = right(scores, splits[2])
            log.add({"data": data, "name": name, "fold": fold, "clips": clips, "right": hits, **of})
            where = data if fold is None else f"{data}, fold {fold}"
            console.print(f"{name} on {where}: {100 * np.mean(hits):.1f} {of or ''}")
        lines.append(row(cfg, log, data, folds))
        (Path(cfg.out) / "table.md").write_text("\n".join(lines) + "\n", encoding="utf-8")
    console.print("\n".join(lines), markup=False, soft_wrap=True)


if __name__ == "__main__":
    main()
