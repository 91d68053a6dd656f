"""Two ways of doing the same thing, timed in turn in one run, as claims beside their goals.

A time alone says little on a machine that others use too; the ratio of two neighbours does. Beside each ratio stands
how fast this machine multiplied matrices at that moment, and what share of it our way reached.
"""

from __future__ import annotations

import math
import platform
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timezone
from importlib import metadata
from pathlib import Path
from typing import Any

import hydra
import numpy as np
import torch
from omegaconf import DictConfig, OmegaConf
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode, baddbmm_flop, sdpa_backward_flop_count, sdpa_flop_count

from adapterbank.backbone.backbone import default_device
from adapterbank.backbone.precision import DTYPES
from adapterbank.bank import AUDIOSET, AdapterBank
from adapterbank.errors import exit_on_error
from adapterbank.experiments.protocol import ResultLog
from adapterbank.experiments.timing import WARM_UP, Pairs, Step, alternate, timed
from adapterbank.storage.manifest import MANIFEST

CONFIGURATIONS = Path(__file__).resolve().parent.parent / "conf"
LIBRARIES = ("torch", "transformers", "peft")
MEASURED = ("fp32", "bf16")  # the precisions in which rows are measured
Claim = dict[str, Any]  # one figure: a line of rows.jsonl and of the table


def as_if_trained(module: nn.Module, seed: int = 0) -> None:
    """Adds noise to every parameter: a new adapter changes nothing, so that nothing could be compared."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.add_((0.02 * torch.randn(parameter.shape, generator=generator)).to(parameter.device))


def mixed_tasks(bank: AdapterBank, classes: int, rows: int) -> list[str]:
    """Adds eight tasks of four methods to a bank; the task of each of `rows` rows, in turn."""
    names = []
    for number in range(2):
        for method in ("aat_ms", "conformer", "lora", "joint"):
            names.append(f"{method}-{number}")
            as_if_trained(bank.add_task(names[-1], method, num_classes=classes), len(bank.tasks))
    return [names[row % len(names)] for row in range(rows)]


def difference(one: Sequence[Tensor] | Tensor, other: Sequence[Tensor] | Tensor) -> float:
    """The largest one between the entries of two tensors, or of two lists of tensors."""
    return max(float((a - b).abs().max()) for a, b in zip(one, other, strict=True))


def saved_bank(out: Path, geometry: str, count: int, classes: int) -> Path:
    """The folder of a bank of aat_ms tasks with random values on the backbone of that geometry in `out`; made once."""
    folder = out / "banks" / f"{geometry}-{count}-{classes}"
    if not (folder / MANIFEST).is_file():
        bank = AdapterBank.from_pretrained(out / "backbones" / f"{geometry}-{classes}", device="cpu")
        bank.remove_task(AUDIOSET)
        for number in range(count):
            as_if_trained(bank.add_task(f"t{number}", "aat_ms", num_classes=classes), number)
        bank.save(folder)
    return folder


def matmul_operations(step: Step) -> int:
    """Multiplications and additions of matrix products, attention and convolutions in one run of a step."""
    aten, mkldnn = torch.ops.aten, torch.ops.mkldnn
    formulas = {  # operators of the CPU that torch's own table leaves out
        (aten, "_scaled_dot_product_flash_attention_for_cpu"): _attention,
        (aten, "_scaled_dot_product_flash_attention_for_cpu_backward"): _attention_backward,
        (aten, "baddbmm_"): _batched_product,
        (mkldnn, "_linear_pointwise"): _linear,
    }
    known = {getattr(space, name): of for (space, name), of in formulas.items() if hasattr(space, name)}
    with FlopCounterMode(display=False, custom_mapping=known) as counter:
        step()
    return counter.get_total_flops()


def _attention(q: Any, k: Any, v: Any, *_: Any, **__: Any) -> int:
    return sdpa_flop_count(q, k, v)


def _attention_backward(gradient: Any, q: Any, k: Any, v: Any, *_: Any, **__: Any) -> int:
    return sdpa_backward_flop_count(gradient, q, k, v)


def _batched_product(added: Any, a: Any, b: Any, *_: Any, **__: Any) -> int:
    return baddbmm_flop(added, a, b)


def _linear(x: Any, weight: Any, *_: Any, out_shape: Any = None, **__: Any) -> int:
    return 2 * math.prod(x) * out_shape[-1]


def matmul_peak(size: int, dtype: torch.dtype, device: torch.device, runs: int = 5) -> float:
    """Operations a second of the fastest of some products of square matrices."""
    left, right = (torch.randn(size, size, device=device).to(dtype) for _ in range(2))
    product = timed(lambda: left @ right, device)
    return 2 * size**3 / min([product() for _ in range(runs + WARM_UP)][WARM_UP:])


def machine() -> dict[str, Any]:
    """The processor, how many threads of it are used, and the versions of what is compared; None: not installed."""
    versions: dict[str, Any] = {}
    for library in LIBRARIES:
        try:
            versions[library] = metadata.version(library)
        except metadata.PackageNotFoundError:
            versions[library] = None
    return {"cpu": processor(), "threads": torch.get_num_threads(), **versions}


def processor() -> str:
    """The name of this machine's CPU."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.is_file() else []
    named = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return named[0] if named else platform.processor()


def claim(what: str, ratio: float, goal: float | None = None, *, at_most: bool = False, **more: Any) -> Claim:
    """A figure beside its goal, if it has one.

    Args:
        at_most: the goal is an upper limit.
        **more: what else the line shall hold.
    """
    reached = None if goal is None else ratio <= goal if at_most else ratio >= goal
    return {"what": what, "ratio": ratio, "goal": goal, "at_most": at_most, "reached": reached, **more}


def needs(what: str, missing: str) -> Claim:
    """In place of a figure that cannot be measured here."""
    return {"what": what, "needs": missing}


@dataclass(frozen=True)
class Bench:
    """How everything of one run is measured.

    Attributes:
        pairs: alternating runs after warm-up.
        matrix: side of the square matrices of the matmul peak.
        batch: times the batch sizes of the rows.
    """

    device: torch.device
    pairs: int = 5
    matrix: int = 2048
    batch: float = 1.0

    @classmethod
    def of(cls, cfg: DictConfig) -> Bench:
        """As conf/benchmark.yaml says: without a device on the accelerator if there is one, without threads as torch
        chooses their number."""
        if cfg.threads is not None:
            torch.set_num_threads(cfg.threads)
        return cls(torch.device(cfg.device or default_device()), cfg.pairs, cfg.matrix, cfg.batch)

    def rows(self, count: int) -> int:
        """A row's batch size at this scale."""
        return max(1, round(count * self.batch))

    def open(self, backbone: str | Path, precision: str) -> AdapterBank:
        """A new bank whose frozen linears are stored in this precision."""
        return AdapterBank.from_pretrained(backbone, device=self.device, base_dtype=DTYPES[precision])

    def compare(
        self,
        what: str,
        ours: Step,
        theirs: Step,
        goal: float | None = None,
        *,
        precision: str = "fp32",
        counted: bool = True,
        settle: bool = False,
        **options: Any,
    ) -> Claim:
        """Two steps side by side, with the share of the matmul peak that ours reaches.

        Args:
            precision: "fp32" or "bf16", of most of our products.
            counted: False where operations cannot be counted, as in compiled code: there is no share then.
            settle: each timed run follows one of its own way.
            **options: as in `beside`.
        """
        operations = matmul_operations(ours) if counted else 0
        peaks = {name: matmul_peak(self.matrix, DTYPES[name], self.device) for name in MEASURED}
        mine, other = (timed(step, self.device, settle) for step in (ours, theirs))
        pairs = alternate(mine, other, self.pairs, warm_up=1 if settle else WARM_UP)
        found: Claim = {"precision": precision, "peak_gflops": {name: peak / 1e9 for name, peak in peaks.items()}}
        if operations:
            share = operations / float(np.median(pairs.ours)) / peaks[precision]
            found |= {"gflop": operations / 1e9, "share_of_peak": share}
        return self.beside(what, pairs, goal, **found, matrix=self.matrix, **options)

    def beside(
        self,
        what: str,
        pairs: Pairs,
        goal: float | None = None,
        *,
        at_most: bool = False,
        work: float = 1.0,
        **more: Any,
    ) -> Claim:
        """The claim of measured pairs: ours is `ratio` times as fast; with `at_most`, it takes `ratio` of the time.

        Args:
            work: of one run of ours, such as clips, over that of one of theirs.
            **more: what else the line shall hold.
        """
        ratios = np.array([work * speedup for speedup in pairs.speedups()])
        low, middle, high = np.percentile(1 / ratios if at_most else ratios, [25, 50, 75])
        seconds = {"ours": float(np.median(pairs.ours)), "theirs": float(np.median(pairs.theirs))}
        more = {"quartiles": [float(low), float(high)], **seconds, "work": work, "pairs": len(pairs.ours), **more}
        return claim(what, float(middle), goal, at_most=at_most, **more)


def keep(out: Path, row: int | str, claims: Iterable[Claim], configuration: Mapping[str, Any]) -> None:
    """Appends the claims of a row when the last of them is measured: half a row never counts as a row."""
    log, found = log_in(out), list(claims)
    shared: Claim = {"configuration": dict(configuration), "machine": machine()}
    shared["measured"] = datetime.now(timezone.utc).isoformat(timespec="seconds")
    for one in found:
        log.add({"row": row, **one, **shared})


Row = Callable[[DictConfig, Bench], Iterator[Claim]]  # measures one row: its claims, one after another


def script(rows: Mapping[int | str, Row]) -> Callable[[], None]:
    """The `main` of a page of rows: measures the row or the growth that the options name, and keeps its claims."""

    @hydra.main(version_base=None, config_path=str(CONFIGURATIONS), config_name="benchmark")
    @exit_on_error()
    def main(cfg: DictConfig) -> None:
        row = cfg.growth if cfg.row is None else cfg.row
        configuration: Any = OmegaConf.to_container(cfg.configuration, resolve=True)
        keep(Path(cfg.out), row, rows[row](cfg, Bench.of(cfg)), configuration)

    return main


def log_in(out: Path) -> ResultLog:
    """`rows.jsonl` of a folder: what was measured there on this processor."""
    return ResultLog(out / "rows.jsonl", {"cpu": processor()})


def latest(log: ResultLog, configuration: Any) -> list[Claim]:
    """The claims of the last run of every row, in the order of the rows."""
    rows: dict[str, list[Claim]] = {}
    for found in log.find(configuration=configuration):
        of = rows.setdefault(str(found["row"]).zfill(2), [])
        if of and of[-1]["measured"] != found["measured"]:
            of.clear()
        of.append(found)
    return [found for _, of in sorted(rows.items()) for found in of]


def markdown(claims: Iterable[Claim]) -> str:
    """The table of what was measured."""
    lines = ["| # | measured | ratio | quartiles | goal | reached | ours, s | theirs, s | share of matmul peak |"]
    lines += ["|---" * 9 + "|", *map(_line, claims)]
    return "\n".join(lines)


def _line(found: Claim) -> str:
    if "needs" in found:
        return f"| {found['row']} | {found['what']} | needs {found['needs']} |" + " |" * 6
    low, high = found.get("quartiles", (None, None))
    goal = "" if found["goal"] is None else f"{'≤' if found['at_most'] else '≥'} {_number(found['goal'])}"
    cells = [
        str(found["row"]),
        found["what"],
        _number(found["ratio"]),
        "" if low is None else f"{_number(low)}–{_number(high)}",
    ]
    cells += [goal, {True: "yes", False: "**no**", None: ""}[found["reached"]]]
    cells += [_number(found.get(side)) for side in ("ours", "theirs", "share_of_peak")]
    return f"| {' | '.join(cells)} |"


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.3g}" if abs(value) < 100 else f"{value:,.0f}"
