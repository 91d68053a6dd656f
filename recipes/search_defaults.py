"""Searches the training defaults of methods: successive halving over learning rates and more, on validation folds.

    python recipes/search_defaults.py data_dir=../shared/data
    python recipes/search_defaults.py data_dir=../shared/data methods=[lora] threads=1 out=outputs/search_defaults
    python recipes/search_defaults.py data_dir=../shared/data backbone=MIT/ast-finetuned-audioset-10-10-0.4593

What it finds is written by hand into `adapterbank/methods/parts/training.py`. A method's settings are trained on all
datasets; the better ones by their mean on the validation folds go on to longer trainings, and test folds are never
read. Every finished training is a line of `out/runs.jsonl`: a second start goes on there, and two processes may share
the methods. `out/table.md` says for each method and dataset what the best setting reached, what the default that stands
in the code now reached, and whether it lies within the paired 95 % interval of the best.
"""

from __future__ import annotations

import json
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import hydra
import torch
from omegaconf import DictConfig, OmegaConf
from rich.console import Console

from adapterbank import AdapterBank, fit, load_folder, standard_splits
from adapterbank.data import FolderDataset
from adapterbank.errors import exit_on_error
from adapterbank.evaluation import evaluate_task, paired_interval
from adapterbank.experiments.halving import Rung, halve
from adapterbank.experiments.protocol import ResultLog
from adapterbank.training.defaults import training_defaults

console = Console()


def settings_of(cfg: DictConfig, method: str) -> list[dict[str, Any]]:
    """The default first, then each rate, then the default with each of the other changes."""
    rates = list(cfg.rates.get(method, cfg.rates.default))
    now = training_defaults(method)
    default = {"lr": now.lr, "weight_decay": now.weight_decay}
    changes: Any = OmegaConf.to_container(cfg.changes, resolve=True)
    others = [{**default, "lr": rate} for rate in rates if rate != now.lr]
    return [default, *others, *({**default, **change} for change in changes)]


def parts_of(cfg: DictConfig, name: str) -> tuple[FolderDataset, FolderDataset]:
    """Training clips, at most as many as the configuration says, dealt evenly over the classes; validation clips."""
    train, val, _ = standard_splits(load_folder(Path(cfg.data_dir) / cfg.datasets[name].folder))
    most = cfg.datasets[name].clips
    if most is None or most >= len(train):
        return train, val
    by_label: dict[Any, list[int]] = {}
    for index, label in enumerate(train.targets):
        by_label.setdefault(label, []).append(index)
    each = max(1, most // len(by_label))
    return train.subset(indices=sorted(i for indices in by_label.values() for i in indices[:each])), val


class Search:
    """The trainings of one search: those that are in the log are not repeated."""

    def __init__(self, cfg: DictConfig):
        self.cfg = cfg
        self.parts = {name: parts_of(cfg, name) for name in cfg.datasets}
        self.end = time.monotonic() + 3600 * cfg.hours
        sizes = {name: [len(part) for part in parts] for name, parts in self.parts.items()}
        backbone = AdapterBank.from_pretrained(cfg.backbone).backbone
        fixed: Any = OmegaConf.to_container(cfg.fit, resolve=True)
        protocol = {"backbone": backbone.fingerprint[:12], "clips": sizes, "fit": fixed, "seed": cfg.seed}
        self.log = ResultLog(Path(cfg.out) / "runs.jsonl", protocol)
        self.fixed = fixed

    def trial(self, method: str, setting: Mapping[str, Any], data: str, steps: int) -> dict[str, Any]:
        """What the log says of a training, or what a new one gives."""
        key = {"method": method, "setting": dict(setting), "data": data, "steps": steps}
        if found := self.log.find(**key):
            return found[0]
        if time.monotonic() > self.end:
            raise TimeoutError
        train, val = self.parts[data]
        bank = AdapterBank.from_pretrained(self.cfg.backbone)
        bank.add_task("search", method, labels=train.labels, multilabel=train.multilabel, seed=self.cfg.seed)
        history = fit(
            bank, "search", train, steps=steps, seed=self.cfg.seed, progress=False, **{**self.fixed, **setting}
        )
        found_now = evaluate_task(bank.backbone, bank.task("search"), val)
        hits = "".join("01"[hit] for hit in (found_now.logits.argmax(1) == found_now.targets).int().tolist())
        score = found_now.metrics[bank.task("search").primary_metric]
        result = {**key, "score": score, "hits": hits, "seconds": round(history.seconds, 1)}
        self.log.add(result)
        console.print(f"{method} on {data}, {dict(setting)}, {steps} steps: {score:.3f}, {history.seconds:.0f} s")
        return result

    def method(self, method: str) -> list[dict[str, Any]]:
        """Runs the halving of one method; gives a row of the table for each dataset."""
        rungs = [Rung(**rung) for rung in self.cfg.rungs]
        settings = settings_of(self.cfg, method)
        left = halve(settings, list(self.parts), rungs, lambda *which: self.trial(method, *which)["score"])
        steps, default = rungs[-1].steps, settings[0]
        rows = []
        for data in self.parts:
            last = {json.dumps(s): self.trial(method, s, data, steps) for s in [*left, default]}
            best = max(last.values(), key=lambda trial: trial["score"])
            mine = last[json.dumps(default)]
            gap = paired_interval(*([int(hit) for hit in trial["hits"]] for trial in (mine, best)))
            rows.append({"method": method, "data": data, "won": left[0], "best": best, "default": mine, "gap": gap})
        return rows


def table(rows: list[dict[str, Any]]) -> str:
    lines = [
        "| method | data | best setting | score | default | score | default − best (95 %) | within |",
        "|---" * 8 + "|",
    ]
    for row in rows:
        mean, low, high = (100 * value for value in row["gap"])
        cells = [row["method"], row["data"]]
        for which in ("best", "default"):
            setting = ", ".join(f"{key} {value:g}" for key, value in row[which]["setting"].items())
            cells += [setting, f"{100 * row[which]['score']:.1f}"]
        cells += [f"{mean:+.1f} ({low:+.1f} to {high:+.1f})", "yes" if high >= 0 else "no"]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


@hydra.main(version_base="1.3", config_path="conf", config_name="search_defaults")
@exit_on_error()
def main(cfg: DictConfig) -> None:
    if cfg.threads is not None:
        torch.set_num_threads(cfg.threads)
    search, rows = Search(cfg), []
    for method in cfg.methods:
        try:
            rows += search.method(method)
        except TimeoutError:
            console.print(f"{cfg.hours} hours are over in the middle of {method}; start again to go on.")
            break
        console.print(f"{method}: {rows[-1]['won']} has the best mean over {', '.join(search.parts)}")
        (Path(cfg.out) / "table.md").write_text(table(rows), encoding="utf-8")
    console.print(table(rows), markup=False, soft_wrap=True)


if __name__ == "__main__":
    main()
