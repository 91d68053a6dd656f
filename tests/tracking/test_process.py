"""The end of a process: SIGTERM unwinds it, and after kill -9 somebody else can tell that it is gone."""

from __future__ import annotations

import signal
import subprocess
import sys
import threading

import pytest

from adapterbank.tracking.process import is_over, process_name, unwound_by_sigterm

WAITS = """
import sys, time
from adapterbank.tracking.process import process_name, unwound_by_sigterm
try:
    with unwound_by_sigterm():
        print(process_name(), flush=True)
        time.sleep(60)
finally:
    print("closed", flush=True)
"""


@pytest.fixture
def other():
    process = subprocess.Popen([sys.executable, "-c", WAITS], stdout=subprocess.PIPE, text=True)
    yield process
    process.kill()
    process.communicate()


def test_sigterm_unwinds_a_process_and_its_exit_status_says_so(other):
    other.stdout.readline()
    other.terminate()
    said, _ = other.communicate(timeout=20)
    assert said == "closed\n"
    assert other.returncode == 128 + signal.SIGTERM


def test_a_killed_process_is_over_and_a_living_one_is_not(other):
    name = other.stdout.readline().strip()
    assert not is_over(name)
    other.kill()
    other.wait()
    assert is_over(name)
    assert not is_over(process_name())


def test_a_number_that_another_process_has_by_now_is_that_of_one_that_is_over():
    place, number, started = process_name().split("/")
    assert is_over(f"{place}/{number}/{float(started) - 3600:.0f}")


@pytest.mark.parametrize("name", ["", "elsewhere:1/17/1700000000", "nonsense", "a/b/c"])
def test_nobody_can_say_it_of_another_machine(name):
    assert not is_over(name)


def test_a_handler_of_ones_own_stays_and_the_default_comes_back():
    before = signal.getsignal(signal.SIGTERM)
    with unwound_by_sigterm():
        assert signal.getsignal(signal.SIGTERM) is not before
        with unwound_by_sigterm():  # a run inside a run
            pass
        assert signal.getsignal(signal.SIGTERM) is not before
    assert signal.getsignal(signal.SIGTERM) is before

    def mine(number, frame):
        raise AssertionError

    signal.signal(signal.SIGTERM, mine)
    try:
        with unwound_by_sigterm():
            assert signal.getsignal(signal.SIGTERM) is mine
    finally:
        signal.signal(signal.SIGTERM, before)


def test_other_threads_leave_signals_alone():
    seen = []

    def work():
        with unwound_by_sigterm():
            seen.append(signal.getsignal(signal.SIGTERM))

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert seen == [signal.SIG_DFL]
