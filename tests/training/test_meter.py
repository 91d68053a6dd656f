"""What a training cost, against a clock and an allocation of known size."""

from __future__ import annotations

import subprocess
import sys
import time

import pytest
import torch

from adapterbank.training.meter import Meter


def test_seconds_are_those_of_the_wall_clock(device):
    before = time.perf_counter()
    with Meter(device) as meter:
        time.sleep(0.05)
    assert 0.05 <= meter.seconds <= time.perf_counter() - before


def test_a_cpu_has_no_gpu_seconds_and_a_gpu_has(device):
    with Meter(device) as meter:
        x = torch.randn(500, 500, device=device)
        for _ in range(20):
            x = x @ x / 500
    assert (meter.gpu_seconds > 0) == (device.type == "cuda")


def test_peak_memory_holds_what_was_freed_again(device):
    with Meter(device) as small:
        pass
    with Meter(device) as meter:
        block = torch.ones(25 * 2**20, device=device)  # 100 MiB
        del block
    assert meter.peak_memory_mb >= 100
    assert meter.peak_memory_mb >= small.peak_memory_mb + 50


def test_an_error_passes_through_and_is_still_measured():
    meter = Meter(torch.device("cpu"))
    with pytest.raises(ZeroDivisionError), meter:
        raise ZeroDivisionError
    assert meter.seconds > 0


def test_processor_seconds_count_work_and_no_waiting():
    with Meter(torch.device("cpu")) as idle:
        time.sleep(0.3)
    with Meter(torch.device("cpu")) as busy:
        end = time.process_time() + 0.3
        while time.process_time() < end:
            pass
    assert idle.cpu_seconds < 0.15
    assert busy.cpu_seconds >= 0.3


def test_processor_seconds_hold_those_of_worker_processes_that_ended():
    source = "import time\nwhile time.process_time() < 0.3: pass"
    with Meter(torch.device("cpu")) as meter:
        subprocess.run([sys.executable, "-c", source], check=True)
    assert meter.cpu_seconds >= 0.25  # a system may count in hundredths
