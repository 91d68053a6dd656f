"""How many clips of a training fit into the memory that is free now.

A training step keeps the activations of its clips until the backward pass has used them. Measured on ast-mini with
clips of 5 and 10 s (peak memory with 20 clips minus that with 4), they are between 5 and 8 floats for each token, block
and unit of width, whatever the method and whether it computes in fp32 or bf16.
"""

from __future__ import annotations

from pathlib import Path

import torch

from adapterbank.backbone.weights import Geometry

FLOATS = 8  # of 4 bytes, per token, block and unit of width: the most that was measured
SHARE = 0.5  # of the free memory: the rest is for the weights, the optimiser, validation and other programs

_MEMINFO = Path("/proc/meminfo")
_GROUP = Path("/sys/fs/cgroup")


def clips_that_fit(geometry: Geometry, frames: int, device: torch.device) -> int | None:
    """Clips of so many frames whose activations fit into `SHARE` of the free memory; None if nobody knows how much."""
    free = free_bytes(device)
    if free is None:
        return None
    clip = 4 * FLOATS * geometry.tokens(frames) * geometry.layers * geometry.width
    return int(SHARE * free / clip)


def free_bytes(device: torch.device) -> int | None:
    """Memory that this process could still take: of the GPU, or of the machine and of its control group on Linux."""
    if device.type == "cuda":
        unused = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return int(torch.cuda.mem_get_info(device)[0]) + unused
    if device.type != "cpu" or not _MEMINFO.is_file():
        return None
    lines = dict(line.split(":", 1) for line in _MEMINFO.read_text().splitlines() if ":" in line)
    free = int(lines["MemAvailable"].split()[0]) * 1024
    group = _group_bytes(_GROUP)
    return free if group is None else min(free, group)


def _group_bytes(group: Path) -> int | None:
    """What a control group has left of its limit; None if it has none. Files that it may drop do not count as used."""
    limit = group / "memory.max"
    if not limit.is_file() or limit.read_text().strip() == "max":
        return None
    numbers = dict(line.split() for line in (group / "memory.stat").read_text().splitlines())
    used = int((group / "memory.current").read_text()) - int(numbers.get("inactive_file", 0))
    return int(limit.read_text()) - used
