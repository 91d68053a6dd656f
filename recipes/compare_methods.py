"""Compares methods on one folder of clips: each trained by `fit` with nothing else, several seeds, whole clips at test.

    python recipes/compare_methods.py data=../shared/data/esc50
    python recipes/compare_methods.py data=my/clips methods=[head,prompt,aat_ms] fit.epochs=20 out=outputs/mine
    python recipes/compare_methods.py --config-name all_methods data=../shared/data/esc50      # every method, costs
    python recipes/compare_methods.py data=my/clips methods=[aat_m,slim] '+variants.slim={method:aat_m,top_layers:4}'
    python recipes/compare_methods.py --config-name layers_and_gates data=../shared/data/fsd_instruments
    python recipes/compare_methods.py data=my/clips '+lrs.aat_ms=[1e-3,3e-3]'           # the better of two rates

Rate, length and batch size are the library's own (docs/defaults.md) unless the configuration says otherwise; of several
rates the best on the validation fold (first seed) is used. Test numbers are means over the seeds, of the best epochs by
validation. The gain over `baseline` has a 95 % interval from a paired bootstrap over test clips. Every finished trial
is a line of `out/runs.jsonl`: a second start goes on there, and two processes may share the work (methods=[head] here,
methods=[aat_ms] there). `out/table.md` is the table, `out/convergence.png` the training losses.
"""

from __future__ import annotations

import json
from pathlib import Path
from statistics import mean, stdev
from typing import Any

import hydra
from omegaconf import DictConfig, OmegaConf
from rich.console import Console

from adapterbank import AdapterBank, load_folder, plots, standard_splits
from adapterbank.errors import exit_on_error
from adapterbank.experiments.cost import Cost, step_costs
from adapterbank.experiments.protocol import ResultLog, Trial, gain, train_and_test

console = Console()


def entry(cfg: DictConfig, name: str) -> dict[str, Any]:
    """What a row of the table trains. A name without a variant is the method itself.

    Returns:
        {"method": its name, "top_layers": how many blocks `train_and_test` chooses (optional), and its options}.
    """
    options: Any = OmegaConf.to_container(cfg.variants, resolve=True)
    return {"method": name, **options.get(name, {})}


def rates_of(cfg: DictConfig, name: str) -> list[float | None]:
    found = cfg.lrs.get(name, cfg.lrs.get(entry(cfg, name)["method"], cfg.lrs.default))
    return list(found) if OmegaConf.is_list(found) else [found]


def best_rate(log: ResultLog, cfg: DictConfig, name: str) -> float | None:
    """By validation with the first seed; a tie goes to the smaller rate."""
    first = {trial["asked_lr"]: trial for trial in log.find(name=name, seed=cfg.seeds[0], entry=entry(cfg, name))}
    return max(rates_of(cfg, name), key=lambda lr: (first[lr]["val"], -first[lr]["lr"]))


def complete(log: ResultLog, cfg: DictConfig) -> dict[str, list[Trial]]:
    """The trials at the best rate of every row whose rates and seeds are all done, by whichever process."""
    named = {name: entry(cfg, name) for name in [*cfg.methods, *(trial["name"] for trial in log.find())]}
    tried = {
        name: of for name, of in named.items()
        if all(log.find(name=name, asked_lr=lr, seed=cfg.seeds[0], entry=of) for lr in rates_of(cfg, name))
    }  # fmt: skip
    chosen = {name: log.find(name=name, asked_lr=best_rate(log, cfg, name), entry=of) for name, of in tried.items()}
    return {name: trials for name, trials in chosen.items() if {trial["seed"] for trial in trials} >= set(cfg.seeds)}


def row(name: str, trials: list[Trial], baseline: list[Trial] | None, cost: Cost | None) -> str:
    """A line of the Markdown table."""
    tests = [100 * trial["test"] for trial in trials]
    spread = f" ± {stdev(tests):.1f}" if len(tests) > 1 else ""
    validation = 100 * mean(trial["val"] for trial in trials)
    cells = [name, f"{trials[0]['parameters']:,}", f"{trials[0]['lr']:g}", f"{validation:.1f}"]
    cells.append(f"{mean(tests):.1f}{spread}")
    if baseline is not None and "hits" in trials[0]:
        above, low, high = (100 * value for value in gain(trials, baseline))
        cells.append(f"{above:+.1f} ({low:+.1f} to {high:+.1f})")
    else:
        cells.append("")
    cells += ["", ""] if cost is None else [f"{cost.time_ratio:.2f}", f"{cost.memory_ratio:.2f}"]
    return f"| {' | '.join(cells)} |"


def costs_of(cfg: DictConfig, done: dict[str, list[Trial]], protocol: dict[str, Any]) -> dict[str, Cost]:
    """Measured once per row and kept in `out/costs.jsonl`."""
    options: Any = OmegaConf.to_container(cfg.costs, resolve=True)
    log = ResultLog(Path(cfg.out) / "costs.jsonl", {"backbone": protocol["backbone"], **options})
    built = {name: {**trials[0]["options"], "method": trials[0]["method"]} for name, trials in done.items()}
    if wanted := {name: of for name, of in built.items() if not log.find(name=name, of=of)}:
        for name, cost in step_costs(cfg.backbone, wanted, **options).items():
            log.add({"name": name, "of": wanted[name], "cost": vars(cost)})
    return {name: Cost(**log.find(name=name, of=of)[0]["cost"]) for name, of in built.items()}


@hydra.main(version_base=None, config_path="conf", config_name="compare_methods")
@exit_on_error()
def main(cfg: DictConfig) -> None:
    splits = standard_splits(load_folder(cfg.data), test_fold=cfg.test_fold, val_fold=cfg.val_fold)
    fit: Any = OmegaConf.to_container(cfg.fit, resolve=True)
    fit_options = {name: value for name, value in fit.items() if value is not None}
    protocol = {
        "backbone": AdapterBank.from_pretrained(cfg.backbone).backbone.fingerprint[:12],
        "data": Path(cfg.data).name,
        "test_fold": cfg.test_fold,
        "val_fold": cfg.val_fold,
        "test_precision": cfg.test_precision,
        "pooling": cfg.pooling,
        **fit_options,
    }
    log = ResultLog(Path(cfg.out) / "runs.jsonl", protocol)
    shared = {"fit_options": fit_options, "test_precision": cfg.test_precision, "pooling": cfg.pooling}

    def try_once(name: str, lr: float | None, seed: int) -> None:
        of = entry(cfg, name)
        if log.find(name=name, asked_lr=lr, seed=seed, entry=of):
            return
        options = {key: value for key, value in of.items() if key not in ("method", "top_layers")}
        how = {"lr": lr, "seed": seed, "top_layers": of.get("top_layers"), "options": options}
        result = train_and_test(cfg.backbone, splits, of["method"], **how, **shared)
        log.add({"name": name, "entry": of, **result})
        console.print(f"{name} lr {result['lr']:g} seed {seed}: validation {result['val']:.4f}")

    for name in cfg.methods:
        for lr in rates_of(cfg, name):
            try_once(name, lr, cfg.seeds[0])
        for seed in cfg.seeds:
            try_once(name, best_rate(log, cfg, name), seed)
    report(cfg, log, {})
    if cfg.costs is not None:
        report(cfg, log, costs_of(cfg, complete(log, cfg), protocol))


def report(cfg: DictConfig, log: ResultLog, costs: dict[str, Cost]) -> None:
    """The table and the picture of everything that is in the log."""
    out = Path(cfg.out)
    done = complete(log, cfg)
    heading = "| | trainable | lr | validation | test, mean of seeds | above {} (95 %) | step time / {} | memory / {} |"
    reference = "full" if cfg.costs is None else cfg.costs.get("reference", "full")
    lines = [heading.format(cfg.baseline, reference, reference), "|---" * 8 + "|"]
    lines += [row(name, trials, done.get(cfg.baseline), costs.get(name)) for name, trials in done.items()]
    markdown = "\n".join(lines) + "\n"
    (out / "table.md").write_text(f"{markdown}\nProtocol: {json.dumps(log.protocol)}\n", encoding="utf-8")
    each = {name: zip(*(trial["losses"] for trial in trials), strict=False) for name, trials in done.items()}
    losses = {name: [mean(epoch) for epoch in epochs] for name, epochs in each.items()}
    plots.convergence(losses).savefig(out / "convergence.png")
    console.print(markdown, markup=False, soft_wrap=True)


if __name__ == "__main__":
    main()
