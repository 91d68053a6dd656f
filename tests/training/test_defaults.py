"""What a training uses where nothing is said: the method's rate, a length in steps, and when it ends early."""

from __future__ import annotations

import math
import warnings

import pytest
import torch

from adapterbank import methods
from adapterbank.bank import AdapterBank
from adapterbank.errors import MethodDefaultsWarning
from adapterbank.methods import Adapters, register, unregister
from adapterbank.training import capacity
from adapterbank.training.capacity import clips_that_fit, free_bytes
from adapterbank.training.defaults import MOST_PASSES, PASSES, STEPS, resolved, training_defaults
from adapterbank.training.fit import fit
from adapterbank.training.options import Options


def resolve(backbone, clips, method="aat_ms", **options):
    return resolved(Options(**options), AdapterBank(backbone).add_task("new", method, num_classes=3), clips)


@pytest.mark.parametrize("method", [name for name in methods.names() if name not in methods.ALIASES])
def test_every_method_of_the_package_registers_its_rate(method):
    assert methods.get(method).training is not None
    assert 0 < training_defaults(method).lr < 1


def test_a_composition_takes_the_smallest_rate_of_its_parts():
    for composition in ("aat_ms+prompt", "joint", "full+prompt", "lora+prompt"):
        parts = [part.training.lr for part in methods.parse(composition)]
        assert training_defaults(composition).lr == min(parts)


def test_a_method_from_outside_is_trained_at_a_thousandth_with_a_notice(small_backbone):
    @register("foreign", paper="none", parameters="0")
    def foreign(geometry, base, generator):
        """Nothing."""
        return Adapters()

    try:
        with pytest.warns(MethodDefaultsWarning, match="'foreign' registers no training defaults.*lr=0.001.*Pass lr="):
            assert resolve(small_backbone, 60, "foreign").lr == 1e-3
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            assert resolve(small_backbone, 60, "foreign", lr=0.01).lr == 0.01
            assert resolve(small_backbone, 60).lr == training_defaults("aat_ms").lr
    finally:
        unregister("foreign")


@pytest.mark.parametrize("clips", [20, 60, 99, 100, 500, 1200, 2000, 6000, 50_000])
def test_few_clips_and_many_are_trained_for_as_many_steps_as_it_takes(clips, small_backbone):
    found = resolve(small_backbone, clips)
    per_epoch = math.ceil(clips / found.batch_size)
    steps = found.epochs * per_epoch
    assert steps >= STEPS or found.epochs == MOST_PASSES
    assert found.epochs >= PASSES
    assert steps - per_epoch < STEPS or found.epochs == PASSES  # no longer than the rule needs
    assert found.patience == math.ceil(steps / 2)


def test_a_length_that_was_asked_for_is_kept_and_never_ends_early(small_backbone):
    by_epochs, by_steps = resolve(small_backbone, 60, epochs=3), resolve(small_backbone, 60, steps=50)
    assert (by_epochs.epochs, by_epochs.patience) == (3, 0)
    assert (by_steps.epochs, by_steps.patience) == (math.ceil(50 / math.ceil(60 / by_steps.batch_size)), 0)
    assert resolve(small_backbone, 60, steps=50, patience=7).patience == 7


def test_where_memory_is_short_a_step_runs_in_parts_and_stays_what_it_is(small_backbone):
    task = AdapterBank(small_backbone).add_task("new", "aat_ms", num_classes=3)
    ample, short = (resolved(Options(), task, 500, room) for room in (None, 5))
    assert (ample.batch_size, ample.accumulate) == (16, 1)
    assert (short.batch_size, short.accumulate, short.epochs) == (4, 4, ample.epochs)
    assert resolved(Options(), task, 500, 0).batch_size == 1
    assert resolved(Options(batch_size=16), task, 500, 5).batch_size == 16  # what was asked for stays


def test_the_room_for_clips_is_what_their_activations_leave(small_backbone):
    geometry, device = small_backbone.geometry, torch.device("cpu")
    short, long = (clips_that_fit(geometry, frames, device) for frames in (128, 1024))
    free = free_bytes(device)
    assert 0 < free < 2**46
    assert short / long == pytest.approx(geometry.tokens(1024) / geometry.tokens(128), rel=0.2)


def test_memory_that_only_caches_files_counts_as_free(tmp_path, monkeypatch):
    files = {
        "memory.max": "1000000\n",
        "memory.current": "900000\n",
        "memory.stat": "anon 300000\ninactive_file 500000\n",
    }
    for name, content in files.items():
        (tmp_path / name).write_text(content)
    monkeypatch.setattr(capacity, "_GROUP", tmp_path)  # the control group of these tests cannot be chosen
    assert free_bytes(torch.device("cpu")) == 600_000
    (tmp_path / "memory.max").write_text("max\n")
    assert free_bytes(torch.device("cpu")) > 600_000


def test_accumulated_passes_make_one_step(small_backbone):
    assert resolve(small_backbone, 64, steps=10, batch_size=4, accumulate=4).epochs == math.ceil(10 / 4)


def test_a_history_holds_what_was_chosen(bank_of_one, labelled_clips):
    history = fit(bank_of_one, "new", labelled_clips, labelled_clips, steps=2, progress=False)
    assert history.options["lr"] == training_defaults("aat_ms").lr
    assert history.options["batch_size"] == 8
    assert None not in [history.options[name] for name in ("epochs", "weight_decay", "freq_mask", "patience")]


@pytest.fixture
def bank_of_one(small_backbone):
    bank = AdapterBank(small_backbone)
    bank.add_task("new", "aat_ms", labels=["bass", "brass", "organ"])
    return bank


def test_a_training_ends_after_patience_steps_without_anything_better(bank_of_one, labelled_clips):
    options = {"epochs": 30, "batch_size": 6, "lr": 1e-9, "patience": 5, "progress": False, "head_start": False}
    history = fit(bank_of_one, "new", labelled_clips, labelled_clips, **options)
    first_best = 2  # steps: the first epoch is the best so far, and no later one is better at this rate
    assert history.steps == first_best + 6  # the end of the epoch in which five more steps were made
    assert history.best_epoch == len(history.epochs) - 1


def test_without_validation_nothing_ends_early(bank_of_one, labelled_clips):
    history = fit(bank_of_one, "new", labelled_clips, epochs=6, batch_size=6, lr=1e-9, patience=1, progress=False)
    assert history.steps == 12


def test_a_training_that_ends_early_says_so_at_the_end_of_its_bar(bank_of_one, labelled_clips, capsys):
    options = {"epochs": 30, "batch_size": 6, "lr": 1e-9, "patience": 5, "head_start": False}
    fit(bank_of_one, "new", labelled_clips, labelled_clips, **options)
    shown = " ".join(capsys.readouterr().out.split())
    assert "8/8" in shown
    assert "ended early" in shown
