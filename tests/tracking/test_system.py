"""The machine's own numbers: at least one sample per run, whatever its length, and a failure costs nothing else."""

from __future__ import annotations

import threading
import time

import pytest

from adapterbank.tracking.system import SystemMetrics, sample


def test_a_sample_is_within_what_is_possible():
    found = sample()
    assert 0 <= found["system/cpu_utilization_percentage"] <= 100
    assert 0 < found["system/system_memory_usage_percentage"] <= 100
    assert found["system/process_memory_megabytes"] < found["system/system_memory_usage_megabytes"] * 2
    assert all(name.startswith("system/") for name in found)


def test_every_open_run_gets_samples_numbered_from_0_and_one_at_its_end():
    logged: dict[str, list[int]] = {"long": [], "short": []}
    system = SystemMetrics(lambda run, metrics, step: logged[run].append(step), seconds=0.05)
    system.open("long")
    time.sleep(0.3)
    system.open("short")
    system.close("short")
    system.close("long")
    after = {run: list(steps) for run, steps in logged.items()}
    assert len(after["long"]) >= 3
    assert after["long"] == list(range(len(after["long"])))
    assert after["short"][0] == 0
    time.sleep(0.2)
    assert logged == after  # the thread has ended
    assert "system metrics" not in {thread.name for thread in threading.enumerate() if thread.is_alive()}


def test_a_failure_is_one_warning_and_ends_the_samples():
    def broken(run, metrics, step):
        raise OSError("no space left")

    system = SystemMetrics(broken, seconds=60)
    system.open("run")
    with pytest.warns(RuntimeWarning, match="the system metrics failed: OSError"):
        system.close("run")
    system.close("run")
