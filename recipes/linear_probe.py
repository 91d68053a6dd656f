"""Linear probe of frozen features: k-fold logistic regression over all clips, groups kept together, 95 % intervals.

    python recipes/linear_probe.py                                         # ast-mini-2 and a random AST, demo tasks
    python recipes/linear_probe.py data=../shared/data/esc50               # by the folder's own folds
    python recipes/linear_probe.py backbones=[ast-mini-2,MIT/ast-finetuned-audioset-10-10-0.4593]

The features are `bank.embed`: (cls + dist) / 2 after the final norm. Needs scikit-learn: the extra `pretrain` has it.
"""

from __future__ import annotations

import json
from pathlib import Path

import hydra
from omegaconf import DictConfig
from rich.console import Console

from adapterbank import AdapterBank, load_folder
from adapterbank.backbone.checkpoints import random_backbone
from adapterbank.backbone.precision import dtype_of
from adapterbank.data import demo_tasks
from adapterbank.errors import ConfigError, exit_on_error
from adapterbank.experiments import probe
from adapterbank.experiments.protocol import STORED


def open_bank(name: str, like: str, seed: int, precision: str) -> AdapterBank:
    bank = AdapterBank.from_pretrained(like if name == "random" else name)
    bank = AdapterBank(random_backbone(bank.backbone, seed)) if name == "random" else bank
    return bank.to(base_dtype=dtype_of(precision, STORED))


@hydra.main(version_base=None, config_path="conf", config_name="linear_probe")
@exit_on_error()
def main(cfg: DictConfig) -> None:
    console = Console()
    folders = demo_tasks() if cfg.data is None else {Path(cfg.data).name: Path(cfg.data)}
    rows = []
    for task, folder in folders.items():
        dataset = load_folder(folder)
        if dataset.multilabel:
            raise ConfigError(f"the labels of {folder} are sets; recipes/evaluate_backbone.py probes those.")
        y, folds = probe.targets_of(dataset), probe.fold_of_each(dataset, cfg.folds, cfg.seed)
        for name in cfg.backbones:
            bank = open_bank(name, cfg.backbones[0], cfg.seed, cfg.precision)
            scores = probe.cross_scores(probe.features(bank.embed, dataset, f"{task} / {name}"), y, folds)
            low, high = probe.interval(y, scores, cfg.bootstrap, cfg.seed)
            row = {"task": task, "backbone": name, "fingerprint": bank.backbone.fingerprint[:12]}
            rows.append({**row, "macro_accuracy": probe.macro_accuracy(y, scores), "low": low, "high": high})
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
