"""Trains tasks one after another on one frozen AST, and shows that no task disturbs another.

    python recipes/sequential_tasks.py                                    # three tasks of real recordings, offline
    python recipes/sequential_tasks.py strategy=bank tasks=[instruments,studio_samples] method=prompt
    python recipes/sequential_tasks.py methods.mandarin_tones=joint fits.mandarin_tones.epochs=40
    python recipes/sequential_tasks.py data_dir=my_folders tasks=[birds,engines] fit.crop_seconds=2
    python recipes/sequential_tasks.py resume=true out=outputs/sequential_tasks/2026-01-31_12-00-00
    mlflow ui                                                             # every task's cost and score, side by side

After each training all tasks so far are evaluated again on their test clips, and in the bank the logits of the earlier
ones must be the same bits as right after their own training. `strategy=both` runs the sequence a second time with one
shared, fully fine-tuned body, so that the forgetting which the bank avoids stands in the same table.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import hydra
from omegaconf import DictConfig, OmegaConf
from rich.console import Console

from adapterbank import AdapterBank, load_folder, plots, standard_splits
from adapterbank.data import demo_tasks
from adapterbank.errors import ConfigError, exit_on_error
from adapterbank.sequence import DEFINITIONS, Stage, comparison_table, matrix_table, train_naive, train_sequence
from adapterbank.storage.manifest import MANIFEST
from adapterbank.tracking.mlflow import Tracker

STRATEGIES = {"bank": ("bank",), "naive": ("naive",), "both": ("bank", "naive")}
console = Console()


def plain(node: Any) -> dict[str, Any]:
    """A part of the configuration as a plain dictionary, without what is null."""
    values: Any = OmegaConf.to_container(OmegaConf.create(node), resolve=True)
    return {key: value for key, value in values.items() if value is not None}


def stages_of(cfg: DictConfig) -> list[Stage]:
    """The tasks in their order: data, how to add them, how to train them."""
    demo = demo_tasks()
    stages = []
    for name in cfg.tasks:
        if cfg.data_dir is None and name not in demo:
            raise ConfigError(f"no recordings of {name!r} come with the package ({', '.join(demo)}); pass data_dir=...")
        data = load_folder(demo[name] if cfg.data_dir is None else Path(cfg.data_dir) / name)
        train, val, test = standard_splits(data, cfg.test_fold, cfg.val_fold, seed=cfg.seed)
        task_options = {
            "method": cfg.methods.get(name) or cfg.method,
            "labels": data.labels,
            "multilabel": data.multilabel,
            "seed": cfg.seed,
            **plain(cfg.task),
        }
        fit_options = {"seed": cfg.seed, **plain(cfg.fit), **plain(cfg.fits.get(name) or {})}
        stages.append(Stage(name, train, val, test, task_options, fit_options))
        console.print(f"{name}: {len(train)} / {len(val)} / {len(test)} clips, {len(data.labels)} classes")
    return stages


def open_bank(cfg: DictConfig, folder: Path) -> AdapterBank:
    """A new bank; or, to resume, the one that an earlier run saved."""
    saved = (folder / MANIFEST).is_file()
    if saved and not cfg.resume:
        raise ConfigError(f"{folder} holds a bank: go on with resume=true, or choose another folder with out=...")
    if cfg.resume and not saved:
        raise ConfigError(f"there is no bank in {folder} to resume; pass out=<the folder of the run that was stopped>.")
    bank = AdapterBank.load(folder, backbone=cfg.backbone) if saved else AdapterBank.from_pretrained(cfg.backbone)
    if bank.tasks:
        console.print(f"already in the bank: {', '.join(bank.tasks)}")
    return bank


@hydra.main(version_base="1.3", config_path="conf", config_name="sequential_tasks")
@exit_on_error()
def main(cfg: DictConfig) -> None:
    if cfg.strategy not in STRATEGIES:
        raise ConfigError(f"got strategy={cfg.strategy!r}, expected one of {', '.join(STRATEGIES)}.")
    out = Path(cfg.out)
    stages = stages_of(cfg)
    bank = open_bank(cfg, out / "bank") if "bank" in STRATEGIES[cfg.strategy] else None
    backbone = bank.backbone if bank is not None else AdapterBank.from_pretrained(cfg.backbone).backbone
    tracker = Tracker(cfg.experiment)
    params = {
        "tasks": ", ".join(stage.name for stage in stages),
        "seed": cfg.seed,
        "backbone": backbone.source,
        "base_parameters": backbone.num_parameters(),
        "out": out,
    }
    results = []
    for strategy in STRATEGIES[cfg.strategy]:
        name = f"{strategy}: {len(stages)} tasks"
        tags, runs = {"strategy": strategy, "backbone": cfg.backbone}, out / f"mlflow_{strategy}.json"
        with tracker.sequence(name, params=params, tags=tags, run_file=runs, resume=cfg.resume) as parent:
            if bank is not None and strategy == "bank":
                console.rule(f"bank: {backbone.num_parameters():,} frozen parameters, each task trains its own")
                result = train_sequence(bank, stages, folder=out / "bank", resume=cfg.resume, tracker=parent)
                bank.summary()
                console.print("after every training the logits of all earlier tasks were the same bits as before")
            else:
                console.rule("naive: one body, fully fine-tuned by one task after another")
                result = train_naive(backbone, stages, fit_options=plain(cfg.naive_fit), tracker=parent)
        console.print(matrix_table(result))
        results.append(result)

    console.rule("result")
    console.print(comparison_table(results))
    for name, definition in DEFINITIONS.items():
        console.print(f"{name}: {definition}", markup=False, highlight=False)
    out.mkdir(parents=True, exist_ok=True)
    content = {"config": OmegaConf.to_container(cfg, resolve=True), "results": [result.to_json() for result in results]}
    (out / "results.json").write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
    figure = plots.accuracy_matrix({result.strategy: result.matrix for result in results}, results[0].tasks)
    figure.savefig(out / "accuracy_matrix.png")
    console.print(f"bank, results.json and accuracy_matrix.png: {out}", soft_wrap=True)
    console.print(tracker.how_to_open(), soft_wrap=True)


if __name__ == "__main__":
    main()
