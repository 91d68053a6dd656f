"""Threads that decode: they leave torch's threads to whoever computes."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch

from adapterbank.data.threads import threads_that_read


@pytest.fixture
def three() -> Iterator[None]:
    """Torch computes with three threads."""
    before = torch.get_num_threads()
    torch.set_num_threads(3)
    yield
    torch.set_num_threads(before)


def number_in(pool: ThreadPoolExecutor) -> int:
    with pool:
        return pool.submit(torch.get_num_threads).result()


def number_in_a_new_thread() -> int:
    found: list[int] = []
    thread = threading.Thread(target=lambda: found.append(torch.get_num_threads()))
    thread.start()
    thread.join()
    return found[0]


@pytest.mark.usefixtures("three")
def test_a_thread_that_reads_computes_alone_and_no_other_thread_loses_its_number() -> None:
    assert number_in(threads_that_read(2)) == 1
    assert (torch.get_num_threads(), number_in_a_new_thread()) == (3, 3)


@pytest.mark.usefixtures("three")
def test_threads_started_by_a_thread_that_reads_take_nothing_from_the_others() -> None:
    with threads_that_read(1) as outer:
        assert outer.submit(lambda: number_in(threads_that_read(1))).result() == 1
    assert (torch.get_num_threads(), number_in_a_new_thread()) == (3, 3)
