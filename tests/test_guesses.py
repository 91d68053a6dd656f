"""Whoever calls a bank as they would call a module, or misspells a name, is told what to call."""

from __future__ import annotations

import re

import pytest

from adapterbank.bank import AdapterBank
from adapterbank.errors import AdapterBankError
from adapterbank.guesses import ADVICE


@pytest.mark.parametrize(
    ("guess", "advice"),
    [
        ("train", r"fit\(bank, name, train_data\)"),
        ("eval", "always answers in evaluation mode"),
        ("cuda", r'bank.to\("cuda"\)'),
        ("cpu", r'bank.to\("cpu"\)'),
        ("half", "base_dtype"),
        ("parameters", r"task_module\(name\).parameters\(\)"),
        ("state_dict", r"bank.save\(folder\)"),
        ("load_state_dict", r"AdapterBank.load\(folder\)"),
        ("fit", r"fit\(bank, name, train_data\)"),
        ("forward", r"bank\(clips, name\)"),
        ("save_pretrained", r"bank.save\(folder\)"),
        ("load_adapter", "bank.import_task"),
        ("set_adapter", "each call names its own"),
        ("add_adapter", "bank.add_task"),
        ("delete_adapter", "bank.remove_task"),
    ],
)
def test_a_first_guess_is_told_what_to_call(guess, advice, small_bank):
    with pytest.raises(AttributeError, match=f"AdapterBank has no '{guess}': .*{advice}") as error:
        getattr(small_bank, guess)()
    assert isinstance(error.value, AdapterBankError)
    assert not hasattr(small_bank, guess)


def test_a_misspelt_name_is_told_the_nearest_and_all_others(small_bank):
    with pytest.raises(AdapterBankError, match="has no 'ad_task'. Did you mean 'add_task'.*Known: .*predict"):
        small_bank.ad_task("x")
    with pytest.raises(AdapterBankError, match=r"has no 'zzzz'\. Known: add_task"):
        _ = small_bank.zzzz


def test_advice_names_what_exists():
    for guess, advice in ADVICE.items():
        assert not hasattr(AdapterBank, guess)
        for name in re.findall(r"bank\.(\w+)", advice):
            assert hasattr(AdapterBank, name)
