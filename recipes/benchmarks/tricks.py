"""What each trick of the kernels is worth: rows 1, 2, 3 and 6 of the benchmark with one switch off, beside all on.

    python recipes/benchmarks/tricks.py                                  # every switch, then all of them at once
    python recipes/benchmarks/tricks.py rows=[3] pairs=3 tricks=[all] out=outputs/mine

Both ways run in turn. A ratio is the median of (time with the switch off) / (time with all on), so that 1.10 means that
the trick saves a tenth of the time that is left. Memory is that of all tensors at the peak of a training step. Every
finished figure is a line of `out/tricks.jsonl`, and a second start goes on there; `out/tricks.md` is the table.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import hydra
from omegaconf import DictConfig, OmegaConf
from peers import make_backbone
from rich.console import Console
from sidebyside import MEASURED, Bench, mixed_tasks, processor

from adapterbank.backbone.kernels import SWITCHES, plain_kernels
from adapterbank.backbone.precision import DTYPES
from adapterbank.bank import AUDIOSET
from adapterbank.errors import UnknownNameError, exit_on_error
from adapterbank.experiments.cost import step_tensors, stepper
from adapterbank.experiments.protocol import ResultLog
from adapterbank.experiments.timing import Step, alternate, noise, timed
from adapterbank.training.memory import keep_freed_memory

EVERY = "all"  # every switch off at once: the plain formula
console = Console()


def work(cfg: DictConfig, bench: Bench) -> Iterator[tuple[str, Step, Callable[[], float] | None]]:
    """What is timed: the name of its column, one call of it, and for training steps a measurement of their memory."""
    for precision in MEASURED:
        bank = bench.open(cfg.base, precision)
        short = noise(bench.rows(32), 1.0)
        if 1 in cfg.rows:
            yield f"1 {precision}", partial(bank, noise(bench.rows(8), 10.0), AUDIOSET), None
        if 2 in cfg.rows and precision == "bf16":
            bank.add_task("own", "head", num_classes=cfg.classes)
            yield f"2 {precision}", partial(bank, short, "own"), None
        if 3 in cfg.rows:
            batch = {"batch_size": len(short), "clip_seconds": 1.0, "classes": cfg.classes, "precision": precision}
            opened = {"device": bench.device, "base_dtype": DTYPES[precision]}
            memory = partial(step_tensors, cfg.base, {"method": "aat_ms"}, **opened, **batch)  # of a new task each time
            yield f"3 {precision}", stepper(bank, "trained", {"method": "aat_ms"}, **batch), memory
        if 6 in cfg.rows:
            yield f"6 {precision}", partial(bank, short, mixed_tasks(bank, cfg.classes, len(short))), None


def off(trick: str, call: Callable[[], Any]) -> Callable[[], Any]:
    """The same call with this trick switched off."""

    def plainly() -> Any:
        with plain_kernels() if trick == EVERY else plain_kernels(trick):
            return call()

    return plainly


def wanted(cfg: DictConfig) -> list[str]:
    """The tricks to switch off, one after another. Raises UnknownNameError."""
    known = [*SWITCHES, EVERY]
    for name in cfg.tricks or []:
        if name not in known:
            raise UnknownNameError("trick", name, known)
    return list(cfg.tricks or known)


def measure(cfg: DictConfig, bench: Bench, log: ResultLog) -> None:
    """Times every trick that the log does not have yet."""
    for column, call, memory in work(cfg, bench):
        left = [trick for trick in wanted(cfg) if not log.find(trick=trick, column=column)]
        megabytes = None  # measured after the first timing: a first call keeps tensors that later ones find
        for trick in left:
            ways = (timed(way, bench.device) for way in (call, off(trick, call)))
            found = bench.beside(trick, alternate(*ways, bench.pairs, warm_up=1))
            if memory is not None:
                megabytes = memory() if megabytes is None else megabytes
                found["megabytes"] = [megabytes, off(trick, memory)()]
            log.add({"trick": trick, "column": column, **found})
            console.print(f"{column}, {trick} off: {found['ratio']:.3f}", highlight=False)


def markdown(log: ResultLog, lines: dict[str, int]) -> str:
    """The table of everything in the log: a line per trick, a column per row of the benchmark."""
    results: dict[str, dict[str, str]] = {}
    for found in log.find():
        cells = results.setdefault(found["trick"], {})
        cells[found["column"]] = f"{found['ratio']:.2f}"
        if "megabytes" in found:
            with_it, without_it = found["megabytes"]
            cells[f"{found['column']}, memory"] = f"{without_it / with_it:.2f}"
    columns = sorted({column for cells in results.values() for column in cells})
    table = ["| trick, off | lines of code | " + " | ".join(columns) + " |", "|---" * (2 + len(columns)) + "|"]
    for trick, cells in results.items():
        shown = [trick, str(lines.get(trick, "")), *(cells.get(column, "") for column in columns)]
        table.append(f"| {' | '.join(shown)} |")
    return "\n".join(table) + "\n"


@hydra.main(version_base=None, config_path="../conf", config_name="tricks")
@exit_on_error()
def main(cfg: DictConfig) -> None:
    keep_freed_memory()  # as row 3
    bench, out = Bench.of(cfg), Path(cfg.out)
    sizes: Any = OmegaConf.to_container(cfg.geometries[cfg.geometry])
    make_backbone(Path(cfg.base), sizes, cfg.classes)
    shared = {name: cfg[name] for name in ("geometry", "device", "threads", "pairs", "batch")}
    log = ResultLog(out / "tricks.jsonl", {"cpu": processor(), **shared})
    measure(cfg, bench, log)
    lines: Any = OmegaConf.to_container(cfg.lines)
    table = markdown(log, lines)
    (out / "tricks.md").write_text(table, encoding="utf-8")
    console.print(table, markup=False, soft_wrap=True)


if __name__ == "__main__":
    main()
