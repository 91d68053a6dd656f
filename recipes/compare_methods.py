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
import re
from pathlib import Path
from statistics import mean, stdev
from typing import Any

import hydra
import torch
from omegaconf import DictConfig, OmegaConf
from rich.console import Console

from adapterbank import AdapterBank, fit, load_folder, standard_splits
from adapterbank.errors import ConfigError

Run = dict[str, Any]


def read_runs(file: Path) -> list[Run]:
    return [json.loads(line) for line in file.read_text().splitlines()] if file.exists() else []


def train_and_test(cfg: DictConfig, splits: Any, method: str, lr: float, seed: int) -> Run:
    """One run: a new task on the frozen backbone; after its last epoch whole clips of both other parts."""
    train, val, test = splits
    bank = AdapterBank.from_pretrained(cfg.backbone)
    name = re.sub(r"[^a-z0-9]+", "-", f"{train.name}-{method}".lower()).strip("-")
    bank.add_task(name, method=method, labels=train.labels, multilabel=train.multilabel, seed=seed)
    history = fit(bank, name, train, lr=lr, seed=seed, **OmegaConf.to_container(cfg.fit, resolve=True))
    metric = bank.task(name).primary_metric
    bank.to(base_dtype={"fp32": torch.float32, "bf16": torch.bfloat16}[cfg.test_precision])
    return {
        "method": method,
        "lr": lr,
        "seed": seed,
        "metric": metric,
        "val": bank.evaluate(name, val)[metric],
        "test": bank.evaluate(name, test)[metric],
        "parameters": bank.trainable_parameters(name),
        "seconds": round(history.seconds, 1),
        "protocol": protocol(cfg, bank),
    }


def protocol(cfg: DictConfig, bank: AdapterBank) -> dict[str, Any]:
    """What two runs must share to be compared."""
    return {
        "backbone": bank.backbone.fingerprint[:12],
        "data": Path(cfg.data).name,
        "test_fold": cfg.test_fold,
        "val_fold": cfg.val_fold,
        "test_precision": cfg.test_precision,
        **OmegaConf.to_container(cfg.fit, resolve=True),
    }


def best_lr(runs: list[Run], method: str, rates: list[float], seed: int) -> float:
    """By validation; a tie goes to the smaller rate."""
    first = {run["lr"]: run["val"] for run in runs if run["method"] == method and run["seed"] == seed}
    return max(sorted(rates), key=lambda lr: first[lr])


def table(runs: list[Run], cfg: DictConfig) -> str:
    """Markdown: one row per method whose runs are complete."""
    lines = ["| method | trainable | lr | validation | test, mean of seeds | each seed |", "|---|---|---|---|---|---|"]
    for method in dict.fromkeys(run["method"] for run in runs):
        rates, seeds = list(cfg.lrs.get(method, cfg.lrs.default)), list(cfg.seeds)
        own = [run for run in runs if run["method"] == method]
        if not {(lr, seeds[0]) for lr in rates} <= {(run["lr"], run["seed"]) for run in own}:
            continue
        lr = best_lr(own, method, rates, seeds[0])
        chosen = sorted((run for run in own if run["lr"] == lr), key=lambda run: run["seed"])
        if {run["seed"] for run in chosen} < set(seeds):
            continue
        tests = [100 * run["test"] for run in chosen]
        spread = f" ± {stdev(tests):.1f}" if len(tests) > 1 else ""
        lines.append(
            f"| {method} | {chosen[0]['parameters']:,} | {lr:g} | {100 * mean(r['val'] for r in chosen):.1f} "
            f"| {mean(tests):.1f}{spread} | {', '.join(f'{t:.1f}' for t in tests)} |"
        )
    return "\n".join(lines) + "\n"


@hydra.main(version_base=None, config_path="conf", config_name="compare_methods")
def main(cfg: DictConfig) -> None:
    console = Console()
    dataset = load_folder(cfg.data)
    splits = standard_splits(dataset, test_fold=cfg.test_fold, val_fold=cfg.val_fold)
    out = Path(cfg.out)
    out.mkdir(parents=True, exist_ok=True)
    log = out / "runs.jsonl"
    wanted = protocol(cfg, AdapterBank.from_pretrained(cfg.backbone))
    if any(run["protocol"] != wanted for run in read_runs(log)):
        raise ConfigError(f"{log} holds runs of another protocol than {wanted}; choose another out=...")

    def run_once(method: str, lr: float, seed: int) -> None:
        if any((r["method"], r["lr"], r["seed"]) == (method, lr, seed) for r in read_runs(log)):
            return
        result = train_and_test(cfg, splits, method, lr, seed)
        with open(log, "a") as handle:
            handle.write(json.dumps(result) + "\n")
        console.print(f"{method} lr {lr:g} seed {seed}: validation {result['val']:.4f}, {result['seconds']:.0f} s")

    for method in cfg.methods:
        rates = list(cfg.lrs.get(method, cfg.lrs.default))
        for lr in rates:
            run_once(method, lr, cfg.seeds[0])
        for seed in cfg.seeds:
            run_once(method, best_lr(read_runs(log), method, rates, cfg.seeds[0]), seed)

    markdown = table(read_runs(log), cfg)
    (out / "table.md").write_text(f"{markdown}\nProtocol: {json.dumps(wanted)}\n")
    console.print(markdown, markup=False)


if __name__ == "__main__":
    main()
