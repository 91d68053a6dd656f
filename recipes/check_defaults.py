"""Are the training defaults worth it? Methods trained by `fit(bank, name, train, val)` with nothing else.

    python recipes/check_defaults.py data_dir=../shared/data
    python recipes/check_defaults.py data_dir=my_folders 'datasets=[birds,engines]' 'methods=[lora]' out=outputs/mine

Each method is set against the better of two baselines that train nothing inside the backbone: the method `linear`, and
a logistic regression of scikit-learn on the same frozen features. The gain has a 95 % interval from a paired bootstrap
over test clips. Every finished training is a line of `out/runs.jsonl`, where a second start goes on.
"""

from __future__ import annotations

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
from adapterbank.evaluation import evaluate_task
from adapterbank.experiments.halving import paired_interval
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


def row(cfg: DictConfig, log: ResultLog, data: str) -> str:
    """A line of the table: every method's score, and what the first of them gains over the better baseline."""
    rows = {name: log.find(data=data, name=name)[0]["right"] for name in (*cfg.methods, PROBE)}
    cells = [f"{100 * np.mean(hits):.1f}" for hits in rows.values()]
    best = max(("linear", PROBE), key=lambda name: np.mean(rows[name]))
    mean, low, high = (100 * value for value in paired_interval(rows[cfg.methods[0]], rows[best]))
    verdict = "better" if low > 0 else "worse" if high < 0 else "as good"
    counts = log.find(data=data, name=cfg.methods[0])[0]["clips"]
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
        splits = standard_splits(load_folder(Path(cfg.data_dir) / data))
        for name in (*cfg.methods, PROBE):
            if log.find(data=data, name=name):
                continue
            scores, of = probed(cfg, splits) if name == PROBE else trained(cfg, splits, name)
            clips = " / ".join(str(len(part)) for part in splits)
            hits = right(scores, splits[2])
            log.add({"data": data, "name": name, "clips": clips, "right": hits, **of})
            console.print(f"{name} on {data}: {100 * np.mean(hits):.1f} {of or ''}")
        lines.append(row(cfg, log, data))
        (Path(cfg.out) / "table.md").write_text("\n".join(lines) + "\n", encoding="utf-8")
    console.print("\n".join(lines), markup=False, soft_wrap=True)


if __name__ == "__main__":
    main()
