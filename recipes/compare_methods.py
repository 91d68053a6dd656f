"""Compares methods on one folder of clips: learning rate by validation, then several seeds, whole clips at test.

    python recipes/compare_methods.py data=../shared/data/esc50
    python recipes/compare_methods.py data=my/clips methods=[head,prompt,aat_ms] fit.epochs=20 out=outputs/mine

Each method's learning rate is the best of three on the validation fold (first seed); test numbers are the mean over the
seeds at that rate. All epochs are trained and the last one is measured. Every finished run is a line of
`out/runs.jsonl`; a second start continues there, so an interrupted comparison loses one run at most, and two processes
may share the work (methods=[head] here, methods=[aat_ms] there).
"""

from __future__ import annotations

import json
from pathlib import Path
from statistics import mean, stdev
from typing import Any

import hydra
from omegaconf import DictConfig, OmegaConf
from rich.console import Console

from adapterbank import AdapterBank, load_folder, standard_splits
from adapterbank.errors import exit_on_error
from adapterbank.training.protocol import RunLog, train_and_test

console = Console()


def rates_of(cfg: DictConfig, method: str) -> list[float]:
    return list(cfg.lrs.get(method, cfg.lrs.default))


def best_lr(log: RunLog, cfg: DictConfig, method: str) -> float:
    """By validation with the first seed; a tie goes to the smaller rate."""
    first = {run["lr"]: run["val"] for run in log.find(method=method, seed=cfg.seeds[0])}
    return max(sorted(rates_of(cfg, method)), key=lambda lr: first[lr])


def row(log: RunLog, cfg: DictConfig, method: str) -> str:
    """A line of the Markdown table."""
    lr = best_lr(log, cfg, method)
    chosen = [log.find(method=method, lr=lr, seed=seed)[0] for seed in cfg.seeds]
    tests = [100 * run["test"] for run in chosen]
    spread = f" ± {stdev(tests):.1f}" if len(tests) > 1 else ""
    each = ", ".join(f"{t:.1f}" for t in tests)
    val = 100 * mean(run["val"] for run in chosen)
    return f"| {method} | {chosen[0]['parameters']:,} | {lr:g} | {val:.1f} | {mean(tests):.1f}{spread} | {each} |"


def complete(log: RunLog, cfg: DictConfig) -> list[str]:
    """Methods of which every rate and every seed at the best one has been run, by whichever process."""
    named = dict.fromkeys([*cfg.methods, *(run["method"] for run in log.find())])
    tried = [
        method for method in named
        if all(log.find(method=method, lr=lr, seed=cfg.seeds[0]) for lr in rates_of(cfg, method))
    ]  # fmt: skip
    return [m for m in tried if all(log.find(method=m, lr=best_lr(log, cfg, m), seed=seed) for seed in cfg.seeds)]


def run(cfg: DictConfig) -> None:
    splits = standard_splits(load_folder(cfg.data), test_fold=cfg.test_fold, val_fold=cfg.val_fold)
    fit_options: Any = OmegaConf.to_container(cfg.fit, resolve=True)
    protocol = {
        "backbone": AdapterBank.from_pretrained(cfg.backbone).backbone.fingerprint[:12],
        "data": Path(cfg.data).name,
        "test_fold": cfg.test_fold,
        "val_fold": cfg.val_fold,
        "test_precision": cfg.test_precision,
        **fit_options,
    }
    log = RunLog(Path(cfg.out) / "runs.jsonl", protocol)

    def run_once(method: str, lr: float, seed: int) -> None:
        if log.find(method=method, lr=lr, seed=seed):
            return
        result = train_and_test(
            cfg.backbone, splits, method, lr=lr, seed=seed, fit_options=fit_options, test_precision=cfg.test_precision
        )
        log.add(result)
        console.print(f"{method} lr {lr:g} seed {seed}: validation {result['val']:.4f}, {result['seconds']:.0f} s")

    for method in cfg.methods:
        for lr in rates_of(cfg, method):
            run_once(method, lr, cfg.seeds[0])
        for seed in cfg.seeds:
            run_once(method, best_lr(log, cfg, method), seed)

    lines = ["| method | trainable | lr | validation | test, mean of seeds | each seed |", "|---|---|---|---|---|---|"]
    markdown = "\n".join(lines + [row(log, cfg, method) for method in complete(log, cfg)]) + "\n"
    (Path(cfg.out) / "table.md").write_text(f"{markdown}\nProtocol: {json.dumps(protocol)}\n", encoding="utf-8")
    console.print(markdown, markup=False)


@hydra.main(version_base=None, config_path="conf", config_name="compare_methods")
def main(cfg: DictConfig) -> None:
    with exit_on_error():
        run(cfg)


if __name__ == "__main__":
    main()
