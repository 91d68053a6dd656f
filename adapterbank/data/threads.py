"""Work on many files at once, with a progress bar."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

from rich.console import Console
from rich.progress import track

Item = TypeVar("Item")
Result = TypeVar("Result")


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
    with ThreadPoolExecutor(workers or min(8, os.cpu_count() or 1)) as pool:
        results = pool.map(work, items)
        try:
            yield from shown(results, len(items), title, progress)
        finally:
            pool.shutdown(wait=True, cancel_futures=True)  # after an error, and after Ctrl-C


def shown(items: Iterable[Item], total: int, title: str, progress: bool) -> Iterable[Item]:
    """The items, with a progress bar on the error stream that vanishes at the end."""
    console = Console(stderr=True)
    return track(items, title, total=total, console=console, transient=True, disable=not progress)
