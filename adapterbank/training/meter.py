"""What a training cost: seconds of wall clock, processors and GPU, and peak memory."""

from __future__ import annotations

import contextlib
import os
import resource
import sys
import time
from pathlib import Path
from types import TracebackType

import torch

_STATUS, _CLEAR = Path("/proc/self/status"), Path("/proc/self/clear_refs")


class Meter:
    """Measures what happens inside a `with` block.

    Attributes, after the block:
        seconds: of wall clock.
        cpu_seconds: of processor time, user and system, of all threads of this process, and of worker processes that
            ended inside the block. Other work of the same process at that time is in it.
        gpu_seconds: between two CUDA events at the ends of the block; 0.0 without a CUDA device.
        peak_memory_mb: the highest memory in use, in MiB. On an accelerator it is what torch allocated there; on the
            CPU it is the resident set of this process, on Linux since the block began, elsewhere since the process
            started.
    """

    def __init__(self, device: torch.device):
        self.device = device
        self.seconds = self.cpu_seconds = self.gpu_seconds = self.peak_memory_mb = 0.0

    def __enter__(self) -> Meter:
        if self.device.type == "cpu":
            _reset_peak_rss()
        else:
            torch.accelerator.reset_peak_memory_stats(self.device)
        if self.device.type == "cuda":
            self._events = [torch.cuda.Event(enable_timing=True) for _ in range(2)]
            self._events[0].record(torch.cuda.current_stream(self.device))
        self._start, self._cpu_start = time.perf_counter(), _cpu_seconds()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        if self.device.type == "cuda":
            begin, end = self._events
            end.record(torch.cuda.current_stream(self.device))
            end.synchronize()
            self.gpu_seconds = begin.elapsed_time(end) / 1000
        self.seconds = time.perf_counter() - self._start
        self.cpu_seconds = _cpu_seconds() - self._cpu_start
        self.peak_memory_mb = peak_memory_mb(self.device)


def _cpu_seconds() -> float:
    children = os.times()
    return time.process_time() + children.children_user + children.children_system


def peak_memory_mb(device: torch.device) -> float:
    """The highest memory in use so far, in MiB, as `Meter` has it at its end."""
    if device.type == "cpu":
        return _peak_rss_bytes() / 2**20
    return torch.accelerator.max_memory_allocated(device) / 2**20


def memory_mb(device: torch.device) -> float:
    """The memory in use now, in MiB, in the same terms as `peak_memory_mb`."""
    if device.type == "cpu":
        return (_status_bytes("VmRSS") or _peak_rss_bytes()) / 2**20
    return torch.accelerator.memory_allocated(device) / 2**20


def _reset_peak_rss() -> None:
    with contextlib.suppress(OSError):  # not Linux, or not allowed: the peak counts from the start of the process
        _CLEAR.write_text("5")  # proc(5): resets VmHWM


def _peak_rss_bytes() -> int:
    if (found := _status_bytes("VmHWM")) is not None:
        return found
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def _status_bytes(entry: str) -> int | None:
    """A size that Linux counts of this process; None elsewhere."""
    if _STATUS.exists():
        for line in _STATUS.read_text().splitlines():
            if line.startswith(f"{entry}:"):
                return int(line.split()[1]) * 1024
    return None
