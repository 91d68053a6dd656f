"""Every error that adapterbank raises on purpose. All derive from `AdapterBankError`.

A message says what was got, what was expected, the known names and the next thing to do.
"""

from __future__ import annotations

import difflib
import sys
import warnings
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any


class AdapterBankError(Exception):
    """Root of all errors of this library: `except AdapterBankError` catches each of them."""


@contextmanager
def exit_on_error() -> Iterator[None]:
    """For scripts: an error of ours ends the program with its message and status 1, without a traceback."""
    try:
        yield
    except AdapterBankError as error:
        raise SystemExit(f"{type(error).__name__}: {error}") from error


class ConfigError(AdapterBankError, ValueError):
    """An option has a value that cannot work."""


class UnknownNameError(AdapterBankError, LookupError):
    """A task, method, option, label or dataset that nobody has registered.

    Args:
        kind: what was looked up, as a singular noun ("task", "method").
        name: what was asked for.
        known: the names that exist.
        hint: what to do next; ends the message.
    """

    def __init__(self, kind: str, name: str, known: Iterable[str], hint: str = ""):
        self.name = name
        known = sorted(str(entry) for entry in known)
        near = difflib.get_close_matches(str(name), known, n=1)
        guess = f" Did you mean {near[0]!r}?" if near else ""
        tail = f" {hint}" if hint else ""
        shown = repr(name)  # of a data set that was passed as a task it would fill screens
        shown = shown if len(shown) <= 200 else f"{shown[:200]}..."
        super().__init__(f"unknown {kind} {shown}.{guess} Known: {', '.join(known) or 'none yet'}.{tail}")
        self._made_of = (kind, name, known, hint)

    def __reduce__(self) -> tuple[Any, ...]:
        """So that it comes out of another process as it is: by default a message would be passed as `kind`."""
        return type(self), self._made_of


class NameTakenError(AdapterBankError, ValueError):
    """A task of this name exists; nothing is ever overwritten by adding."""


class InvalidNameError(AdapterBankError, ValueError):
    """A name that could not be a file name everywhere, or that is reserved."""


class CompositionError(AdapterBankError, ValueError):
    """Two methods of a composition want the same one-owner site, or the grammar is wrong."""


class LabelsError(AdapterBankError, ValueError):
    """Labels are missing, doubled, or do not fit the task."""


class WaveformError(AdapterBankError, ValueError):
    """Audio in memory that cannot be a waveform: NaN, empty, wrong rank or type."""


class AudioFileError(AdapterBankError, OSError):
    """A file that is no audio, or is cut."""


class DatasetError(AdapterBankError, OSError):
    """A dataset folder that is absent or incomplete; the message says what to put where."""


class BackboneError(AdapterBankError, ValueError):
    """A backbone that cannot be found or read, or whose tensors have other shapes."""


class BackboneMismatchError(BackboneError):
    """Adapters that were trained on another backbone."""


class StorageError(AdapterBankError, OSError):
    """A bank or task file that is wrong, cut, tampered with, or of an unknown format."""


class TrainingDivergedError(AdapterBankError, ArithmeticError):
    """The loss or a gradient became NaN or Inf; the task is as it was before training."""


class InterferenceError(AdapterBankError, RuntimeError):
    """Training one task changed the logits of another: a broken promise of ours, never the caller's fault."""


class NoSuchAttributeError(AdapterBankError, AttributeError):
    """What an object does not have, and what to use in its place. `hasattr` and `getattr` take it as Python's own."""


class SkippedClipsWarning(UserWarning):
    """Clips, or parts of a recording, were left out because `on_error="skip"` asked for it; counted and named."""


class UnreadTableWarning(UserWarning):
    """A table beside class folders lists their clips, but none of its columns is known to say their labels."""


class LookAlikeClassesWarning(UserWarning):
    """Classes of a dataset whose names differ by capitals, blanks or hyphens only, and may be meant as one."""


class MethodDefaultsWarning(UserWarning):
    """A method was registered without training defaults, and `fit` was called without a learning rate."""


class UntrainedClassesWarning(UserWarning):
    """No training clip has some of the task's classes, so that it cannot learn to answer them."""


class CalibrationWarning(UserWarning):
    """Validation data from which a temperature or a threshold cannot be told; it stays what it is without."""


class UntrainedHeadWarning(UserWarning):
    """A composed task got a new head, which knows nothing before it is trained."""


def warn_outside(message: str, kind: type[Warning] = SkippedClipsWarning) -> None:
    """Warns at the line outside this package that asked for it; torch's decorators between us and it do not count."""
    frame, depth = sys._getframe(1), 2
    while frame.f_back is not None and frame.f_globals.get("__name__", "").startswith(("adapterbank.", "torch.")):
        frame, depth = frame.f_back, depth + 1
    warnings.warn(message, kind, stacklevel=depth)
