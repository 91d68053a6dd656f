"""Work on many files at once, with a progress bar."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

import torch
from rich.console import Console
from rich.progress import track

Item = TypeVar("Item")
Result = TypeVar("Result")

_STARTING = threading.Lock()  # the number of threads that torch gives to new ones is one for the whole process


def in_threads(
    work: Callable[[Item], Result], items: Sequence[Item], title: str, *, progress: bool, workers: int | None = None
) -> Iterator[Result]:
    """`work` of each item, in their order, as the results arrive.

    Threads are enough, because decoding and torch let other threads run. What they have done so far is not held: a
    result should be small.

    Args:
        title: what the progress bar, on the error stream, says.
        workers: threads; None: one per processor, but at most 8.
    """
    with threads_that_read(workers or min(8, os.cpu_count() or 1)) as pool:
        results = pool.map(work, items)
        try:
            yield from shown(results, len(items), title, progress)
        finally:
            pool.shutdown(wait=True, cancel_futures=True)  # after an error, and after Ctrl-C


def threads_that_read(workers: int) -> ThreadPoolExecutor:
    """Threads that decode files while another one computes: each does its operations of torch by itself.

    Otherwise torch would start a second set of threads for each of them, and the two sets would wait for each other:
    `adapterbank ask` on files of 5 s, in bf16 on two cores, took half as long again.
    """

    def alone() -> None:
        with _STARTING:
            count = torch.get_num_threads()  # of every new thread; torch gives this one its number when asked
            torch.set_num_threads(1)  # of this thread, and of every thread that torch has not met yet
            others = threading.Thread(target=torch.set_num_threads, args=(count,))  # which get the old number back
            others.start()
            others.join()

    return ThreadPoolExecutor(workers, thread_name_prefix="read_audio", initializer=alone)


def shown(items: Iterable[Item], total: int, title: str, progress: bool) -> Iterable[Item]:
    """The items, with a progress bar on the error stream that vanishes at the end."""
    console = Console(stderr=True)
    return track(items, title, total=total, console=console, transient=True, disable=not progress)
