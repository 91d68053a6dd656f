"""Samples of how busy the machine is, for all runs that are open, by the names under which MLflow shows them.

One thread serves all runs of a tracker. What it samples is of the whole machine, other programs included.
"""

from __future__ import annotations

import threading
import warnings
from collections.abc import Callable, Mapping
from contextlib import suppress

import torch

SECONDS = 10.0  # between two samples, as MLflow's own monitor has it

Log = Callable[[str, Mapping[str, float], int], None]  # of run, metrics, step


def sample() -> dict[str, float]:
    """How busy the machine is now; the processors' share is the mean since the sample before."""
    import psutil

    memory, megabyte = psutil.virtual_memory(), 2**20
    found = {
        "system/cpu_utilization_percentage": psutil.cpu_percent(),
        "system/system_memory_usage_megabytes": memory.used / megabyte,
        "system/system_memory_usage_percentage": memory.percent,
        "system/process_memory_megabytes": psutil.Process().memory_info().rss / megabyte,
    }
    if torch.cuda.is_initialized():
        for index in range(torch.cuda.device_count()):
            free, total = torch.cuda.mem_get_info(index)
            found[f"system/gpu_{index}_memory_usage_megabytes"] = (total - free) / megabyte
            found[f"system/gpu_{index}_memory_usage_percentage"] = 100 * (total - free) / total
            with suppress(Exception):  # needs NVIDIA's library for Python, which not everybody has
                found[f"system/gpu_{index}_utilization_percentage"] = torch.cuda.utilization(index)
    return found


class SystemMetrics:
    """Logs a sample for each open run every few seconds, and one when a run is closed.

    Args:
        log: called with a run, the sample and its number within that run. If it fails, that is a warning, and there
            are no further samples.
    """

    def __init__(self, log: Log, seconds: float = SECONDS):
        self._log, self._seconds = log, seconds
        self._open: dict[str, int] = {}  # run -> number of its next sample
        self._lock = threading.Lock()
        self._over: threading.Event | None = None  # of the thread, while there is one

    def open(self, run: str) -> None:
        """From now on samples are logged for this run."""
        with self._lock:
            self._open[run] = 0
            if self._over is None:
                with suppress(Exception):
                    sample()  # from here on the processors' share is counted
                self._over = threading.Event()
                threading.Thread(target=self._sample, args=(self._over,), daemon=True, name="system metrics").start()

    def close(self, run: str) -> None:
        """The last sample of this run; without any run the thread ends."""
        with self._lock:
            if run in self._open:
                self._tell([run])
                self._open.pop(run, None)
            if not self._open and self._over is not None:
                self._over.set()
                self._over = None

    def _sample(self, over: threading.Event) -> None:
        while not over.wait(self._seconds):
            with self._lock:
                if not over.is_set():
                    self._tell(list(self._open))

    def _tell(self, runs: list[str]) -> None:
        try:
            found = sample()
            for run in runs:
                self._log(run, found, self._open[run])
                self._open[run] += 1
        except Exception as error:
            self._open.clear()
            warnings.warn(f"the system metrics failed: {error!r}. The training goes on.", RuntimeWarning, stacklevel=3)
