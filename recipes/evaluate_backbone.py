"""What a backbone is worth on many folders of clips: linear probes of frozen features, and methods trained inside it.

    python recipes/evaluate_backbone.py                                # ast-mini-2 on the six packs of ../shared/data
    python recipes/evaluate_backbone.py backbone=MIT/ast-finetuned-audioset-10-10-0.4593 teachers=null out=outputs/base
    python recipes/evaluate_backbone.py methods=[] probes=[backbone] teachers=null      # its probe alone
    python recipes/evaluate_backbone.py data=my/folders packs=[birds,engines] teachers=null methods=[head,aat_ms]

Probes: logistic regression on pooled features (teachers: mean-pooled embeddings) over all folds. Methods: trained by
`fit(bank, name, train, val)` with its own defaults (docs/defaults.md) unless `lr` or `fit` say otherwise. Accuracy, or
mAP where labels are sets. Every result is a line of a file in `out`: a second start goes on there, and processes may
share the work (methods=[head] here; probes=[] methods=[full] there). Another backbone may join the same table:
backbone=<folder> name=mine.
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

from adapterbank import AdapterBank, load_folder, plots, standard_splits
from adapterbank.backbone.checkpoints import load_backbone, random_backbone
from adapterbank.backbone.precision import dtype_of
from adapterbank.data import FolderDataset
from adapterbank.errors import UnknownNameError, exit_on_error
from adapterbank.experiments import probe
from adapterbank.experiments.protocol import STORED, ResultLog, Splits, train_and_test
from adapterbank.methods.grammar import parse
from adapterbank.pretraining import teachers
from adapterbank.routing.run import mels_of

OWN = ("random", "backbone")  # probes of the backbone's geometry
PROBES = ("mean log-mel", *OWN)
TOGETHER = "teachers together"
Rows = dict[str, dict[str, float]]
Extract = Callable[[list[torch.Tensor]], torch.Tensor]
console = Console()


def plain(node: Any) -> Any:
    """A part of the configuration as plain values."""
    return OmegaConf.to_container(node, resolve=True) if OmegaConf.is_config(node) else node


def extractor(cfg: DictConfig, name: str) -> Extract:
    """Waveforms -> features (B, D) of a row of the probe table."""
    if name in cfg.teachers:
        teacher = teachers.build(name, **cfg.teachers[name])
        return lambda waves: torch.stack([teachers.pooled_embedding(teacher, wave) for wave in waves])
    bank = AdapterBank.from_pretrained(cfg.backbone)
    if name == "mean log-mel":
        return lambda waves: torch.stack([mel.mean(0) for mel in mels_of(bank.backbone, waves)])
    body = random_backbone(bank.backbone) if name == "random" else bank.backbone
    pooling = cfg.pooling or bank.backbone.pooling
    return partial(AdapterBank(body).to(base_dtype=dtype_of(cfg.precision, STORED)).embed, pooling=pooling)


def run_probes(cfg: DictConfig, log: ResultLog, datasets: Mapping[str, FolderDataset], mark: Mapping[str, Any]) -> None:
    """Args: mark: what the features of the backbone itself depend on."""
    rows = {name: [name] for name in [*cfg.probes, *cfg.teachers]}
    titles = {"mean log-mel": "ridge: mean log-mel", "random": f"probe: untrained {cfg.name}"}
    titles["backbone"] = f"probe: {cfg.name}"
    if len(cfg.teachers) > 1:
        rows[TOGETHER] = list(cfg.teachers)
    for pack, dataset in datasets.items():
        y, folds = probe.targets_of(dataset), probe.fold_of_each(dataset, cfg.folds)
        kept: dict[str, np.ndarray] = {}
        for row, parts in rows.items():
            of = {part: dict(mark) if part in OWN else plain(cfg.teachers.get(part)) for part in parts}
            title = titles.get(row, f"probe: {row}")
            if log.find(pack=pack, title=title, of=of):
                continue
            for part in parts:
                if part not in kept:
                    kept[part] = probe.features(extractor(cfg, part), dataset, f"{pack} / {part}")
            x = np.concatenate([kept[part] for part in parts], axis=1)
            scores = probe.cross_scores(x, y, folds, "ridge" if row == "mean log-mel" else "logistic")
            log.add({"pack": pack, "title": title, "of": of, "score": probe.fold_score(y, scores, folds)})


def run_methods(cfg: DictConfig, log: ResultLog, splits: Mapping[str, Splits], mark: Mapping[str, Any]) -> None:
    fit = {name: value for name, value in plain(cfg.fit).items() if value is not None}
    count = len(cfg.methods) * len(cfg.seeds)
    console.print(f"budget: {count} trainings on each of {len(splits)} packs")
    for pack, parts in splits.items():
        for method, seed in ((method, seed) for method in cfg.methods for seed in cfg.seeds):
            if log.find(pack=pack, method=method, seed=seed, of=dict(mark)):
                continue
            lr = cfg.lr.get(method, cfg.lr.default)
            shared = {"fit_options": fit, "test_precision": cfg.precision, "pooling": cfg.pooling}
            found = train_and_test(cfg.backbone, parts, method, lr=lr, seed=seed, **shared)
            log.add({"pack": pack, "title": f"{cfg.name}: {method}", "of": dict(mark), **found})
            console.print(f"{pack} {method} seed {seed}: {found['test']:.3f} after {found['seconds']:.0f} s")


def score_rows(cfg: DictConfig, probes: ResultLog, methods: ResultLog, mark: Mapping[str, Any]) -> Rows:
    """{row: {pack: mean over seeds}} of everything in both logs, whichever process ran it."""
    found: dict[str, dict[str, list[float]]] = {}
    for log, score in ((probes, "score"), (methods, "test")):
        shown = {line["title"]: line["of"] for line in log.find()}  # the latest weights of a name; or those of now:
        shown |= {line["title"]: line["of"] for line in log.find() if mark in (line["of"], *line["of"].values())}
        for line in (line for line in log.find() if line["of"] == shown[line["title"]]):
            found.setdefault(line["title"], {}).setdefault(line["pack"], []).append(line[score])
    return {row: {pack: mean(of[pack]) for pack in cfg.packs if pack in of} for row, of in found.items()}


@hydra.main(version_base=None, config_path="conf", config_name="evaluate_backbone")
@exit_on_error()
def main(cfg: DictConfig) -> None:
    cfg.name = cfg.name or cfg.backbone
    cfg.teachers = {name: options for name, options in (cfg.teachers or {}).items() if options is not None}
    dtype_of(cfg.precision, STORED)
    for name in cfg.probes:
        if name not in PROBES:
            raise UnknownNameError("probe", name, PROBES, "Teachers have their own list: teachers=...")
    for method in cfg.methods:
        parse(method)
    datasets = {pack: load_folder(Path(cfg.data) / pack) for pack in cfg.packs}
    splits = {pack: standard_splits(data, test_fold=cfg.test_fold) for pack, data in datasets.items() if cfg.methods}
    body = load_backbone(cfg.backbone)
    mark = {"backbone": body.fingerprint[:12], "precision": cfg.precision, "pooling": cfg.pooling}
    protocol = {"data": str(Path(cfg.data).resolve()), "folds": cfg.folds}
    probes = ResultLog(Path(cfg.out) / "probes.jsonl", protocol)
    protocol |= {"test_fold": cfg.test_fold, "lr": plain(cfg.lr), **plain(cfg.fit)}
    methods = ResultLog(Path(cfg.out) / "runs.jsonl", protocol)
    run_probes(cfg, probes, datasets, mark)
    run_methods(cfg, methods, splits, mark)
    rows = score_rows(cfg, probes, methods, mark)
    lines = [f"| | {' | '.join(cfg.packs)} |", "|---" * (1 + len(cfg.packs)) + "|"]
    for row, found in rows.items():
        cells = (f"{found[pack]:.3f}" if pack in found else "" for pack in cfg.packs)
        lines.append(f"| {row} | {' | '.join(cells)} |")
    markdown = "\n".join(lines) + "\n"
    (Path(cfg.out) / "table.md").write_text(f"{markdown}\nMethods: {json.dumps(methods.protocol)}\n", encoding="utf-8")
    plots.score_bars(rows, score="accuracy or mAP").savefig(Path(cfg.out) / "scores.png")
    console.print(markdown, markup=False, soft_wrap=True)


if __name__ == "__main__":
    main()
