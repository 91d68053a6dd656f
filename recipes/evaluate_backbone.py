"""What a backbone is worth on many folders of clips: linear probes of frozen features, and methods trained inside it.

    python recipes/evaluate_backbone.py                                # ast-mini on the six packs of ../shared/data
    python recipes/evaluate_backbone.py backbone=MIT/ast-finetuned-audioset-10-10-0.4593 out=outputs/ast_base
    python recipes/evaluate_backbone.py methods=[] probes=[backbone] teachers=null      # its probe alone
    python recipes/evaluate_backbone.py data=my/folders packs=[birds,engines] methods=[head,aat_ms] seeds=[0,1,2]

Probes: logistic regression on pooled features (teachers: mean-pooled embeddings) over all folds. Methods: the
mini-protocol of `conf/evaluate_backbone.yaml`. Accuracy, or mAP where labels are sets. Every result is a line of a
file in `out`: a second start goes on there, and processes may share the work (methods=[head] here, [full] there).
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from statistics import mean
from typing import Any

import hydra
import numpy as np
import torch
from omegaconf import DictConfig, OmegaConf
from rich.console import Console
from rich.progress import track

from adapterbank import AdapterBank, load_folder, plots, standard_splits
from adapterbank.backbone.checkpoints import load_backbone, random_backbone
from adapterbank.data import FolderDataset
from adapterbank.errors import AdapterBankError, UnknownNameError
from adapterbank.routing import mels_of
from adapterbank.training import probe, teachers
from adapterbank.training.metrics import batches
from adapterbank.training.protocol import DTYPES, RunLog, train_and_test

PROBES = ("mean log-mel", "random", "backbone")
Extract = Callable[[list[torch.Tensor]], torch.Tensor]
console = Console()


def extractor(cfg: DictConfig, name: str) -> Extract:
    """Waveforms -> features (B, D) of a row of the probe table."""
    if name in cfg.teachers:
        teacher = teachers.build(name, **cfg.teachers[name])
        return lambda waves: torch.stack([teachers.pooled_embedding(teacher, wave) for wave in waves])
    if name not in PROBES:
        raise UnknownNameError("probe", name, [*PROBES, *cfg.teachers])
    backbone = load_backbone(cfg.backbone)
    if name == "mean log-mel":
        return lambda waves: torch.stack([mel.mean(0) for mel in mels_of(backbone, waves)])
    body = random_backbone(backbone) if name == "random" else backbone
    bank = AdapterBank(body).to(base_dtype=DTYPES[cfg.precision])
    return partial(bank.embed, pooling=cfg.pooling)


def features(extract: Extract, dataset: FolderDataset, title: str) -> np.ndarray:
    steps = track(batches(dataset, 32), description=title, total=-(-len(dataset) // 32))
    return np.concatenate([extract(waveforms).float().cpu().numpy() for waveforms, _ in steps])


def run_probes(cfg: DictConfig, log: RunLog, datasets: Mapping[str, FolderDataset]) -> None:
    teacher_names = list(cfg.teachers)
    for pack, dataset in datasets.items():
        y, folds = probe.targets_of(dataset), probe.fold_of_each(dataset, cfg.folds)
        kept: dict[str, np.ndarray] = {}
        together = ["teachers together"] if len(teacher_names) > 1 else []
        for name in [*cfg.probes, *teacher_names, *together]:
            if log.find(pack=pack, probe=name):
                continue
            for part in teacher_names if name in together else [name]:
                if part not in kept:
                    kept[part] = features(extractor(cfg, part), dataset, f"{pack} / {part}")
            x = np.concatenate([kept[part] for part in (teacher_names if name in together else [name])], axis=1)
            scores = probe.cross_scores(x, y, folds, "ridge" if name == "mean log-mel" else "logistic")
            log.add({"pack": pack, "probe": name, "score": probe.fold_score(y, scores, folds)})


def run_methods(cfg: DictConfig, log: RunLog, datasets: Mapping[str, FolderDataset], fit: dict[str, Any]) -> None:
    splits = {pack: standard_splits(dataset, test_fold=cfg.test_fold) for pack, dataset in datasets.items()}
    clips = cfg.fit.epochs * sum(len(train) for train, _, _ in splits.values())
    count = len(cfg.methods) * len(cfg.seeds)
    console.print(f"budget: {count} trainings on each of {len(splits)} packs, {count * clips:,} crops in all")
    for pack, parts in splits.items():
        for method, seed in ((method, seed) for method in cfg.methods for seed in cfg.seeds):
            if log.find(pack=pack, method=method, seed=seed):
                continue
            lr = cfg.lr.get(method, cfg.lr.default)
            shared = {"fit_options": fit, "test_precision": cfg.precision, "pooling": cfg.pooling}
            found = train_and_test(cfg.backbone, parts, method, lr=lr, seed=seed, **shared)
            log.add({"pack": pack, **found})
            console.print(f"{pack} {method} seed {seed}: {found['test']:.3f} after {found['seconds']:.0f} s")


def score_rows(cfg: DictConfig, probes: RunLog, methods: RunLog) -> dict[str, dict[str, float]]:
    """{row: {pack: score}} of everything that has been run, in a fixed order."""
    rows: dict[str, dict[str, float]] = {}
    for name in [*PROBES, *cfg.teachers, "teachers together"]:
        title = {"backbone": f"probe: {cfg.backbone}", "mean log-mel": "ridge: mean log-mel"}.get(
            name, f"probe: {name}"
        )
        rows[title] = {run["pack"]: run["score"] for run in probes.find(probe=name)}
    for method in cfg.methods:
        found = {pack: methods.find(method=method, pack=pack) for pack in cfg.packs}
        rows[method] = {pack: mean(run["test"] for run in runs) for pack, runs in found.items() if runs}
    return {row: {pack: found[pack] for pack in cfg.packs if pack in found} for row, found in rows.items() if found}


def run(cfg: DictConfig) -> None:
    datasets = {pack: load_folder(Path(cfg.data) / pack) for pack in cfg.packs}
    fit: Any = OmegaConf.to_container(cfg.fit, resolve=True)
    body = load_backbone(cfg.backbone)
    mark = {"backbone": body.fingerprint[:12], "precision": cfg.precision, "pooling": cfg.pooling}
    probes = RunLog(Path(cfg.out) / "probes.jsonl", {**mark, "folds": cfg.folds})
    rates = OmegaConf.to_container(cfg.lr)
    methods = RunLog(Path(cfg.out) / "runs.jsonl", {**mark, "test_fold": cfg.test_fold, "lr": rates, **fit})
    run_probes(cfg, probes, datasets)
    run_methods(cfg, methods, datasets, fit)
    rows = score_rows(cfg, probes, methods)
    lines = [f"| | {' | '.join(cfg.packs)} |", "|---" * (1 + len(cfg.packs)) + "|"]
    for row, found in rows.items():
        cells = (f"{found[pack]:.3f}" if pack in found else "" for pack in cfg.packs)
        lines.append(f"| {row} | {' | '.join(cells)} |")
    markdown = "\n".join(lines) + "\n"
    (Path(cfg.out) / "table.md").write_text(f"{markdown}\nMethods: {json.dumps(methods.protocol)}\n", encoding="utf-8")
    plots.score_bars(rows, score="accuracy or mAP").savefig(Path(cfg.out) / "scores.png")
    console.print(markdown, markup=False, soft_wrap=True)


@hydra.main(version_base=None, config_path="conf", config_name="evaluate_backbone")
def main(cfg: DictConfig) -> None:
    OmegaConf.update(cfg, "teachers", cfg.teachers or {})
    try:
        run(cfg)
    except AdapterBankError as error:
        raise SystemExit(f"{type(error).__name__}: {error}") from error


if __name__ == "__main__":
    main()
