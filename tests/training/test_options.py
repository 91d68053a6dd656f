"""The backbone that a training in some precision runs on: the bank's own where no tensor needs a cast."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from adapterbank import fit
from adapterbank.errors import ConfigError, UnknownNameError
from adapterbank.training.callbacks import BaseCallback
from adapterbank.training.fit import options_of_fit
from adapterbank.training.options import in_precision


@pytest.mark.parametrize("base", [torch.float32, torch.bfloat16, torch.int8])
@pytest.mark.parametrize("precision", ["fp32", "bf16", "fp16"])
def test_only_a_cast_copies_and_it_is_made_once(base, precision, small_backbone):
    backbone = small_backbone.to(dtype=base)
    there = in_precision(backbone, precision)
    needs_no_cast = precision == "fp32" or (precision == "bf16" and base != torch.float32)
    assert (there is backbone) == needs_no_cast
    assert in_precision(there, precision) is there
    assert there.fingerprint == backbone.fingerprint
    if base != torch.int8:
        assert there.dtype == {"fp32": base, "bf16": torch.bfloat16, "fp16": torch.float16}[precision]


def test_an_unknown_precision_names_those_that_train(small_backbone):
    with pytest.raises(UnknownNameError, match="unknown precision 'int8'.*Known: bf16, fp16, fp32"):
        in_precision(small_backbone, "int8")


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("lr", np.float32(0.5)),
        ("epochs", np.int64(3)),
        ("batch_size", torch.tensor(4)),
        ("weight_decay", np.array(0.25)),
    ],
)
def test_numbers_of_numpy_and_torch_are_numbers(name, value):
    found = getattr(options_of_fit({name: value}), name)
    assert found == value
    assert type(found) in (int, float)


@pytest.mark.parametrize(
    ("word", "ours"),
    [("learning_rate", "lr"), ("num_epochs", "epochs"), ("wd", "weight_decay"), ("batch", "batch_size")],
)
def test_words_from_elsewhere_are_told_what_they_are_called_here(word, ours):
    with pytest.raises(UnknownNameError, match=f"unknown option of fit '{word}'.* That is {ours}, an option of fit"):
        options_of_fit({word: 1})


@pytest.mark.parametrize(
    ("name", "value"),
    [
        *(("lr", True), ("epochs", True), ("batch_size", True), ("patience", True), ("warmup", False)),
        *(("seed", "a"), ("seed", -1), ("seed", 2**70), ("seed", 1.0), ("workers", "2"), ("workers", -1)),
        *(("milestones", 5), ("milestones", (1, "2")), ("milestones", (-1,)), ("head_start", "no")),
    ],
)
def test_what_is_no_number_or_out_of_range_is_refused_by_name(name, value):
    with pytest.raises(ConfigError, match=f"got {name}="):
        options_of_fit({name: value})


@pytest.mark.parametrize("callbacks", [5, BaseCallback()])
def test_callbacks_that_are_no_list_are_refused(callbacks, small_bank, labelled_clips):
    with pytest.raises(ConfigError, match=r"expected a list of callbacks: callbacks=\[...\]"):
        fit(small_bank, "tones", labelled_clips, callbacks=callbacks)
