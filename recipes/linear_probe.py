"""Linear probe of frozen features: k-fold logistic regression over all clips, groups kept together, 95 % intervals.

    python recipes/linear_probe.py                                         # ast-mini and a random AST, demo tasks
    python recipes/linear_probe.py data=../shared/data/esc50               # by the folder's own folds
    python recipes/linear_probe.py backbones=[ast-mini,MIT/ast-finetuned-audioset-10-10-0.4593]

The features are `bank.embed`: (cls + dist) / 2 after the final norm. Needs scikit-learn: the extra `pretrain` has it.
"""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import hydra
import numpy as np
import torch
from omegaconf import DictConfig
from rich.console import Console
from rich.progress import track
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from adapterbank import AdapterBank, load_folder
from adapterbank.backbone.checkpoints import fingerprint
from adapterbank.data import FolderDataset, demo_tasks
from adapterbank.training.metrics import batches

PENALTY = 0.1  # C of the logistic regression on standardised features, the same for all backbones


def open_bank(name: str, like: str, seed: int, dtype: torch.dtype) -> AdapterBank:
    if name != "random":
        return AdapterBank.from_pretrained(name, base_dtype=dtype)
    bank = AdapterBank.from_pretrained(like)
    generator = torch.Generator().manual_seed(seed)

    def draw(tensor_name: str, tensor: torch.Tensor) -> torch.Tensor:
        if tensor_name.endswith("bias"):
            return torch.zeros_like(tensor)
        if "ln" in tensor_name or tensor_name.startswith("norm"):
            return torch.ones_like(tensor)
        drawn = torch.empty_like(tensor, device="cpu")
        return torch.nn.init.trunc_normal_(drawn, std=0.02, generator=generator).to(tensor.device)

    weights = bank.backbone.weights.map(draw)
    mark = fingerprint(bank.backbone.geometry, dict(weights.named()))
    return AdapterBank(replace(bank.backbone, weights=weights, source="random", fingerprint=mark)).to(base_dtype=dtype)


def features(bank: AdapterBank, dataset: FolderDataset, title: str) -> np.ndarray:
    steps = track(batches(dataset, 32), description=title, total=-(-len(dataset) // 32))
    return np.concatenate([bank.embed(waveforms).float().cpu().numpy() for waveforms, _ in steps])


def fold_of_each(dataset: FolderDataset, folds: int, seed: int) -> np.ndarray:
    """The folder's own folds, or seeded ones that keep groups together."""
    if dataset.fold_names:
        return np.array([dataset.fold_names.index(fold) for fold in dataset.folds])
    fold_of = {file: fold for fold, part in enumerate(dataset.group_folds(folds, seed)) for file in part.files}
    return np.array([fold_of[file] for file in dataset.files])


def cross_predict(x: np.ndarray, y: np.ndarray, folds: np.ndarray) -> np.ndarray:
    predicted = np.empty_like(y)
    for fold in np.unique(folds):
        probe = make_pipeline(StandardScaler(), LogisticRegression(C=PENALTY, max_iter=2000))
        predicted[folds == fold] = probe.fit(x[folds != fold], y[folds != fold]).predict(x[folds == fold])
    return predicted


def macro_accuracy(y: np.ndarray, predicted: np.ndarray) -> float:
    return float(np.mean([(predicted[y == label] == label).mean() for label in np.unique(y)]))


def interval(y: np.ndarray, predicted: np.ndarray, resamples: int, seed: int) -> tuple[float, float]:
    """Percentile bootstrap over clips."""
    random = np.random.default_rng(seed)
    draws = (random.integers(len(y), size=len(y)) for _ in range(resamples))
    values = [macro_accuracy(y[draw], predicted[draw]) for draw in draws]
    low, high = np.percentile(values, [2.5, 97.5])
    return float(low), float(high)


@hydra.main(version_base=None, config_path="conf", config_name="linear_probe")
def main(cfg: DictConfig) -> None:
    console = Console()
    folders = demo_tasks() if cfg.data is None else {Path(cfg.data).name: Path(cfg.data)}
    dtype = {"fp32": torch.float32, "bf16": torch.bfloat16}[cfg.precision]
    rows = []
    for task, folder in folders.items():
        dataset = load_folder(folder)
        y = np.array([dataset.labels.index(label) for label in dataset.targets])
        folds = fold_of_each(dataset, cfg.folds, cfg.seed)
        for name in cfg.backbones:
            bank = open_bank(name, cfg.backbones[0], cfg.seed, dtype)
            predicted = cross_predict(features(bank, dataset, f"{task} / {name}"), y, folds)
            low, high = interval(y, predicted, cfg.bootstrap, cfg.seed)
            row = {"task": task, "backbone": name, "fingerprint": bank.backbone.fingerprint[:12]}
            rows.append({**row, "macro_accuracy": macro_accuracy(y, predicted), "low": low, "high": high})
    lines = ["| task | backbone | macro-accuracy | 95 % interval |", "|---|---|---|---|"]
    for r in rows:
        share, low, high = (100 * r[key] for key in ("macro_accuracy", "low", "high"))
        lines.append(f"| {r['task']} | {r['backbone']} | {share:.1f} | {low:.1f}–{high:.1f} |")
    out = Path(cfg.out)
    out.mkdir(parents=True, exist_ok=True)
    stem = "demo" if cfg.data is None else Path(cfg.data).name
    (out / f"{stem}.json").write_text(json.dumps(rows, indent=2) + "\n")
    (out / f"{stem}.md").write_text("\n".join(lines) + "\n")
    console.print("\n".join(lines), markup=False)


if __name__ == "__main__":
    main()
