"""How a run learns that its process is over, however it ends.

An error and Ctrl-C unwind the program, so that a run can close itself. SIGTERM, which `docker stop`, schedulers and
`kill` send, would end Python at once; `unwound_by_sigterm` makes it unwind as well. After `kill -9` or a power cut
nothing of the process is left to close its run. Whoever comes next on the same machine can: a run holds the name of its
process, and `is_over` says whether that process is gone.
"""

from __future__ import annotations

import os
import signal
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any

_SAME_START = 2.0  # seconds: how far apart the system may say that one process was started


@contextmanager
def unwound_by_sigterm() -> Iterator[None]:
    """Context in which SIGTERM raises SystemExit(143), if nobody else handles it; afterwards all is as before.

    Only the main thread may change what a signal does: in any other nothing is changed.
    """
    nobodys = signal.getsignal(signal.SIGTERM) is signal.SIG_DFL
    if not nobodys or threading.current_thread() is not threading.main_thread():
        yield
        return
    owner = os.getpid()

    def stop(number: int, frame: Any) -> None:
        if os.getpid() != owner:  # a worker that was forked inside the block dies as it would have without it
            signal.signal(signal.SIGTERM, signal.SIG_DFL)
            os.kill(os.getpid(), signal.SIGTERM)
            return
        raise SystemExit(128 + number)

    signal.signal(signal.SIGTERM, stop)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)


def process_name() -> str:
    """Of this process: machine, process number and start, in one word. Numbers are used again, hence the start."""
    return f"{_place()}/{os.getpid()}/{_started(os.getpid()):.0f}"


def is_over(name: str) -> bool:
    """Whether the process of this name is known to have ended. False for one of another machine: nobody can say."""
    place, _, rest = name.partition("/")
    number, _, started = rest.partition("/")
    if place != _place() or not number.isdigit():
        return False
    try:
        return abs(_started(int(number)) - float(started)) > _SAME_START
    except ProcessLookupError:
        return True
    except (OSError, ValueError):
        return False


def _started(number: int) -> float:
    """Seconds since 1970. Raises ProcessLookupError if there is no such process."""
    import psutil

    try:
        process = psutil.Process(number)
        if process.status() == psutil.STATUS_ZOMBIE:
            raise ProcessLookupError(number)
        return float(process.create_time())
    except psutil.NoSuchProcess as error:
        raise ProcessLookupError(number) from error
    except psutil.Error as error:
        raise OSError(str(error)) from error


def _place() -> str:
    """The machine, and on Linux the container: the same numbers stand for other processes in each."""
    space = ""
    with suppress(OSError):
        space = os.readlink("/proc/self/ns/pid").strip("pid:[]")
    return f"{socket.gethostname()}:{space}"
