"""Errors come out of worker processes as they went in, and one class catches them all."""

import inspect
import pickle

import pytest

from adapterbank import errors
from adapterbank.errors import AdapterBankError, UnknownNameError, exit_on_error

EVERY = [
    kind for _, kind in inspect.getmembers(errors, inspect.isclass)
    if issubclass(kind, AdapterBankError) and kind is not UnknownNameError
]  # fmt: skip


@pytest.mark.parametrize("error", [*(kind("what to do") for kind in EVERY), UnknownNameError("task", "a", ["b", "ab"])])
def test_an_error_survives_a_pickle(error):
    again = pickle.loads(pickle.dumps(error))
    assert type(again) is type(error)
    assert str(again) == str(error)
    assert isinstance(again, AdapterBankError)


def test_a_script_ends_with_the_message_and_no_traceback():
    with pytest.raises(SystemExit) as ended, exit_on_error():
        raise UnknownNameError("task", "birdz", ["birds"])
    assert ended.value.code == "UnknownNameError: unknown task 'birdz'. Did you mean 'birds'? Known: birds."
    with pytest.raises(ZeroDivisionError), exit_on_error():
        _ = 1 / 0


def test_what_was_asked_for_is_shown_up_to_a_length():
    assert len(str(UnknownNameError("task", ["x" * 10_000], ["a"]))) < 300
