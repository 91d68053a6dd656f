"""How fast the bank is: every goal of docs/performance.md measured beside its rival, in one run on one machine.

    python recipes/benchmark.py                                   # all rows
    python recipes/benchmark.py row=3                             # one; or row=[3,6,10]
    python recipes/benchmark.py growth=[clip_length,tasks,bank]   # how cost grows
    python recipes/benchmark.py row=6 geometry=mini pairs=9 threads=2 out=outputs/mini

Each row runs in a process of its own (a script in benchmarks/) and ends up as lines of `out/rows.jsonl`, one
per claim: the median ratio over alternating pairs with its quartiles, the goal, both medians, the machine, and the
share of the matmul peak measured right before. A row whose lines are there is not measured again (again=true does it).
`out/table.md`, `ratios.png` and `growth.png` are made of the lines. Rows beside peft need the extra `bench`; a row that
lacks something says so.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import hydra
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig, OmegaConf
from rich.console import Console

from adapterbank.errors import UnknownNameError, exit_on_error

HERE = Path(__file__).resolve().parent
sys.path.append(str(HERE / "benchmarks"))  # the helpers have the names under which the pages of the rows import them
import plots_speed  # noqa: E402
from peers import make_backbone  # noqa: E402
from sidebyside import Claim, latest, log_in, markdown  # noqa: E402

PAGES = {
    "transformers": (1, 2, 11),
    "peft": (4, 5, 8),
    "training": (3, 10, 13, 17),
    "routing": (6, 7, 9),
    "disk": (12,),
    "recording": (16,),
    "command": (14, 15),
    "start": (18,),
}
SCRIPTS = {row: page for page, rows in PAGES.items() for row in rows}
GROWTH = ("clip_length", "tasks", "bank")
console = Console()


def wanted(cfg: DictConfig) -> list[int | str]:
    """The rows to measure, or whose growth.

    Raises:
        UnknownNameError: there is no such row or growth.
    """

    def listed(value: Any) -> list[Any]:
        return [] if value is None else list(value) if OmegaConf.is_list(value) else [value]

    chosen = listed(cfg.row) + listed(cfg.growth)
    for name in chosen:
        if name not in SCRIPTS and name not in GROWTH:
            raise UnknownNameError("row", name, [*SCRIPTS, *GROWTH])
    return chosen or sorted(SCRIPTS)


def measure(cfg: DictConfig, row: int | str) -> bool:
    """Starts the page of a row in a process of its own, with the options of this one; whether it ended well."""
    script = HERE / "benchmarks" / (f"rows_{SCRIPTS[row]}.py" if row in SCRIPTS else "growth.py")
    given = [o for o in HydraConfig.get().overrides.task if o.lstrip("+").partition("=")[0] not in ("row", "growth")]
    which = [f"row={row}", "growth=null"] if row in SCRIPTS else ["row=null", f"growth={row}"]
    threads = {} if cfg.threads is None else {"OMP_NUM_THREADS": str(cfg.threads)}  # also for processes of its own
    console.print(f"row {row}", style="bold")
    done = subprocess.run([sys.executable, script, *given, *which], env={**os.environ, **threads}, check=False)
    return done.returncode == 0


def report(out: Path, claims: list[Claim]) -> None:
    """The table and the pictures of everything that was measured."""
    table, machines = markdown(claims), sorted({str(found["machine"]) for found in claims})
    (out / "table.md").write_text("\n".join([table, "", *machines]) + "\n", encoding="utf-8")
    console.print(table, markup=False, soft_wrap=True)
    beyond: dict[str, float] = {}
    growth: dict[str, dict[str, dict[float, float]]] = {}
    for found in claims:
        if "curve" in found:
            growth.setdefault(str(found["row"]), {}).setdefault(found["curve"], {})[found["x"]] = found["ratio"]
        elif found.get("goal") and found["ratio"] > 0 and "check" not in found:  # equality is no matter of degree
            ratio = found["goal"] / found["ratio"] if found["at_most"] else found["ratio"] / found["goal"]
            beyond[f"{found['row']}: {found['what']}"] = ratio
    if beyond:
        plots_speed.beyond_goals(beyond).savefig(out / "ratios.png")
    if growth:
        plots_speed.growth(growth).savefig(out / "growth.png")


@hydra.main(version_base=None, config_path="conf", config_name="benchmark")
@exit_on_error()
def main(cfg: DictConfig) -> None:
    chosen, out = wanted(cfg), Path(cfg.out)
    log = log_in(out)
    configuration: Any = OmegaConf.to_container(cfg.configuration, resolve=True)
    for name in {cfg.geometry, cfg.bank_geometry}:
        if name not in cfg.geometries:
            raise UnknownNameError("geometry", name, list(cfg.geometries))
        sizes: Any = OmegaConf.to_container(cfg.geometries[name])
        make_backbone(out / "backbones" / f"{name}-{cfg.classes}", sizes, cfg.classes)
    failed = []
    for row in chosen:
        lines = log.find(row=row, configuration=configuration)
        if cfg.again or not lines or any("needs" in found for found in lines):
            failed += [] if measure(cfg, row) else [row]
    report(out, latest(log, configuration))
    if failed:
        raise SystemExit(f"not measured, see above: {', '.join(map(str, failed))}; the others are in {log.file}.")


if __name__ == "__main__":
    main()
