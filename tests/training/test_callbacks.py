"""What enters a training through callbacks: its order, losses of one's own, replay, early stopping, and errors."""

from __future__ import annotations

import copy
import math

import pytest
import torch
import torch.nn.functional as F
from torch.nn.utils import clip_grad_norm_

from adapterbank.bank import AdapterBank
from adapterbank.errors import ConfigError, TrainingDivergedError, UnknownNameError
from adapterbank.evaluation import loss_function
from adapterbank.routing.run import mels_of, run_rows
from adapterbank.training.callbacks import BaseCallback, Callback, EarlyStopping
from adapterbank.training.defaults import Resolved
from adapterbank.training.feed import Feed
from adapterbank.training.fit import fit
from adapterbank.training.many import fit_many

LABELS = ["bass", "brass", "organ"]
PLAIN = {"epochs": 2, "batch_size": 6, "lr": 5e-3, "precision": "fp32", "progress": False}


@pytest.fixture
def bank(small_backbone):
    bank = AdapterBank(small_backbone)
    bank.add_task("families", "aat_ms", labels=LABELS)
    bank.add_task("probe", "head", labels=LABELS)
    return bank


def state_of(bank, name="families"):
    return {key: tensor.clone() for key, tensor in bank.task(name).state_dict().items()}


def assert_same(one, other):
    assert one.keys() == other.keys()
    assert all(torch.equal(one[key], other[key]) for key in one)


def assert_close(one, other):
    for key in one:
        torch.testing.assert_close(one[key], other[key], rtol=0, atol=1e-6)


class Told(BaseCallback):
    """Everything that a callback is told, in its order."""

    def __init__(self, name="", into=None):
        self.name, self.calls = name, [] if into is None else into

    def on_start(self, state):
        self.calls.append((self.name, "start", state.step))

    def on_step(self, state):
        self.calls.append((self.name, "step", state.epoch, state.step))

    def on_epoch(self, state):
        self.calls.append((self.name, "epoch", state.epoch, state.step))

    def on_end(self, state):
        self.calls.append((self.name, "end", state.step))

    def on_exception(self, state, error):
        self.calls.append((self.name, "exception", type(error)))


def test_callbacks_are_told_of_start_steps_epochs_and_end_in_their_order(bank, labelled_clips):
    calls = []
    fit(
        bank,
        "families",
        labelled_clips,
        callbacks=[Told("a", calls), Told("b", calls)],
        on_epoch=lambda epoch, record: calls.append(("on_epoch", epoch)),
        **PLAIN,
    )
    expected = [("start", 0)]
    for epoch in (0, 1):
        expected += [("step", epoch, 2 * epoch), ("step", epoch, 2 * epoch + 1), ("epoch", epoch, 2 * epoch + 2)]
    expected += [("end", 4)]
    both = []
    for call in expected:
        both += [("a", *call), ("b", *call)]
        both += [("on_epoch", call[1])] if call[0] == "epoch" else []
    assert calls == both


def test_a_callback_changes_nothing_by_being_there(small_backbone, labelled_clips):
    states = []
    for callbacks in ([], [Told(), EarlyStopping(9)]):
        bank = AdapterBank(small_backbone)
        bank.add_task("families", "aat_ms", labels=LABELS, dropout=0.2)
        fit(bank, "families", labelled_clips, labelled_clips[:4], callbacks=callbacks, **PLAIN)
        states.append(state_of(bank))
    assert_same(*states)


def test_a_state_says_what_is_trained_and_how_far_it_is(bank, labelled_clips):
    class Reader(BaseCallback):
        def on_start(self, state):
            assert (state.train_clips, state.val_clips, state.total_steps) == (12, 4, 4)
            assert state.options.lr == PLAIN["lr"]
            assert state.history.epochs == []

        def on_step(self, state):
            task = state.task
            assert task is bank.task("families")
            assert task.training
            assert state.backbone.fingerprint == bank.backbone.fingerprint
            assert state.logits.shape == (6, 3)
            assert torch.equal(state.targets, task.targets(state.batch.labels))
            torch.testing.assert_close(state.loss, F.cross_entropy(state.logits, state.targets))
            assert len(state.losses) == state.step % 2

        def on_epoch(self, state):
            assert state.record is state.history.epochs[state.epoch]
            assert state.record["train/loss"] == sum(state.losses) / 2
            assert "val/accuracy" in state.record
            assert not state.loss.requires_grad

        def on_end(self, state):
            assert not state.task.training
            assert state.history.seconds > 0
            assert all(parameter.grad is None for parameter in state.task.parameters())
            self.ended = state_of(bank)

    reader = Reader()
    history = fit(bank, "families", labelled_clips, labelled_clips[:4], callbacks=[reader], **PLAIN)
    assert_same(reader.ended, state_of(bank))
    assert history.steps == 4


# -- losses of one's own, and replay ----------------------------------------------------------------------------------


def smooth(logits, targets):
    """No default loss of ours: cross-entropy with smoothed labels, three times as large."""
    return 3 * F.cross_entropy(logits, targets, label_smoothing=0.2)


class Smooth(BaseCallback):
    def on_start(self, state):
        state.loss_function = smooth


class SmoothInSteps(BaseCallback):
    def on_step(self, state):
        state.loss = smooth(state.logits, state.targets)


class Replay(BaseCallback):
    """Two earlier clips in each step."""

    def __init__(self, clips):
        self.waveforms, self.labels = [wave for wave, _ in clips], [LABELS.index(label) for _, label in clips]

    def on_step(self, state):
        state.loss = state.loss + F.cross_entropy(state.forward(self.waveforms), torch.tensor(self.labels))


def by_hand(backbone, task, data, loss, more=lambda task: 0.0):
    """A training loop written for this test: AdamW at a constant rate with clipping, in fp32, without masks."""
    feed = Feed(backbone, task, data, Resolved(batch_size=PLAIN["batch_size"]), (0, 0))
    optimizer = torch.optim.AdamW(task.parameters(), lr=PLAIN["lr"], weight_decay=0.05)
    means = []
    task.train()
    for epoch in range(PLAIN["epochs"]):
        losses = []
        for place in range(len(feed)):
            batch = feed.batch(epoch, place)
            logits = torch.stack(run_rows(backbone, [task] * len(batch.rows), batch.rows))
            value = loss(logits, task.targets(batch.labels)) + more(task)
            optimizer.zero_grad()
            value.backward()
            clip_grad_norm_(task.parameters(), 1.0)
            optimizer.step()
            losses.append(value.item())
        means.append(sum(losses) / len(losses))
    return means


BY_HAND = {
    "weight_decay": 0.05,
    "head_start": False,
    "schedule": "constant",
    "warmup": 0.0,
    "freq_mask": 0,
    "time_mask": 0,
    **PLAIN,
}


@pytest.mark.parametrize("callback", [Smooth, SmoothInSteps])
def test_a_loss_of_ones_own_is_what_a_training_descends(callback, bank, labelled_clips):
    task = copy.deepcopy(bank.task("families"))
    means = by_hand(bank.backbone, task, labelled_clips, smooth)
    history = fit(bank, "families", labelled_clips, callbacks=[callback()], **BY_HAND)
    assert [record["train/loss"] for record in history.epochs] == pytest.approx(means, abs=1e-6)
    assert_close(state_of(bank), task.state_dict())


def test_validation_is_judged_by_the_standard_loss(bank, labelled_clips):
    history = fit(bank, "families", labelled_clips, labelled_clips, callbacks=[Smooth()], **PLAIN)
    judged = bank.evaluate("families", labelled_clips)["loss"]
    assert history.epochs[history.best_epoch]["val/loss"] == pytest.approx(judged, abs=1e-5)


def test_replay_adds_the_gradients_of_earlier_clips(bank, labelled_clips):
    replay = Replay(labelled_clips[:2])
    task = copy.deepcopy(bank.task("families"))

    def more(task):
        logits = torch.stack(run_rows(bank.backbone, [task] * 2, mels_of(bank.backbone, replay.waveforms)))
        return F.cross_entropy(logits, torch.tensor(replay.labels))

    means = by_hand(bank.backbone, task, labelled_clips[2:], lambda x, y: loss_function(task, x, y), more)
    history = fit(bank, "families", labelled_clips[2:], callbacks=[replay], **BY_HAND)
    assert [record["train/loss"] for record in history.epochs] == pytest.approx(means, abs=1e-6)
    assert_close(state_of(bank), task.state_dict())


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
@pytest.mark.parametrize("task", ["families", "probe"])
def test_replay_works_in_half_precision_and_beside_a_cache(task, precision, bank, labelled_clips):
    plain = {**PLAIN, "precision": precision, "epochs": 4}
    history = fit(bank, task, labelled_clips[6:], callbacks=[Replay(labelled_clips[:6])], **plain)
    losses = [record["train/loss"] for record in history.epochs]
    assert all(map(math.isfinite, losses))
    assert losses[-1] < losses[0]


def test_replay_draws_dropout_from_the_seed_alone(small_backbone, labelled_clips):
    states = []
    for seed in (1, 2):
        bank = AdapterBank(small_backbone)
        bank.add_task("families", "aat_ms", labels=LABELS, dropout=0.5)
        torch.manual_seed(seed)
        before = torch.get_rng_state()
        fit(bank, "families", labelled_clips, callbacks=[Replay(labelled_clips[:2])], **PLAIN)
        assert torch.equal(torch.get_rng_state(), before)
        states.append(state_of(bank))
    assert_same(*states)


@pytest.mark.parametrize(
    "loss",
    [
        lambda state: state.logits.sum(1),
        lambda state: state.loss.detach(),
        lambda state: 1.0,
        lambda state: None,
        lambda state: state.loss.to(torch.complex64),
    ],
    ids=["a vector", "detached", "a float", "nothing", "complex"],
)
def test_a_loss_that_no_gradient_can_start_from_is_refused(loss, bank, labelled_clips):
    class Wrong(BaseCallback):
        def on_step(self, state):
            state.loss = loss(state)

    before = state_of(bank)
    refused = "(?s)got the loss .* no gradient can start; expected a real scalar.* A callback has replaced it"
    with pytest.raises(ConfigError, match=refused):
        fit(bank, "families", labelled_clips, callbacks=[Wrong()], **PLAIN)
    assert_same(before, state_of(bank))


# -- stopping ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("method", "steps"), [("on_start", 1), ("on_step", 1), ("on_epoch", 2)])
def test_a_stop_ends_the_epoch_at_hand_which_counts_as_one(method, steps, bank, labelled_clips):
    stopping = BaseCallback()
    setattr(stopping, method, lambda state: setattr(state, "stop", True))
    told = Told()
    history = fit(bank, "families", labelled_clips, labelled_clips[:4], callbacks=[stopping, told], **PLAIN)
    assert (history.steps, len(history.epochs), history.best_epoch) == (steps, 1, 0)
    assert told.calls[-1] == ("", "end", steps)


# -- errors -----------------------------------------------------------------------------------------------------------


class Broken(BaseCallback):
    def __init__(self, method, error):
        def fail(*arguments):
            raise error

        setattr(self, method, fail)


class Spoiler(BaseCallback):
    """Makes the loss NaN in the third step."""

    def on_step(self, state):
        state.loss = state.loss * (math.nan if state.step == 2 else 1.0)


@pytest.mark.parametrize("method", ["on_start", "on_step", "on_epoch", "on_end"])
@pytest.mark.parametrize("error", [KeyboardInterrupt, RuntimeError])
def test_an_error_is_told_to_all_that_were_started_and_gives_the_task_back(method, error, bank, labelled_clips):
    bank.task("families").metrics = {"accuracy": 0.5}
    before, first, last = state_of(bank), Told(), Told()
    with pytest.raises(error):
        fit(bank, "families", labelled_clips, callbacks=[first, Broken(method, error()), last], **PLAIN)
    assert first.calls[-1] == ("", "exception", error)
    assert last.calls[-1:] == ([] if method == "on_start" else [("", "exception", error)])
    assert_same(before, state_of(bank))
    assert bank.task("families").metrics == {"accuracy": 0.5}
    assert not bank.task("families").training


def test_divergence_is_told_before_the_task_is_given_back(bank, labelled_clips):
    before, seen = state_of(bank), {}

    class Witness(Told):
        def on_exception(self, state, error):
            super().on_exception(state, error)
            seen.update(state_of(bank))

    witness = Witness()
    with pytest.raises(TrainingDivergedError, match="gave loss nan at step 2"):
        fit(bank, "families", labelled_clips, callbacks=[Spoiler(), witness], **PLAIN)
    assert witness.calls[-1] == ("", "exception", TrainingDivergedError)
    assert ("", "end", 4) not in witness.calls
    assert not torch.equal(seen["head.linear.weight"], before["head.linear.weight"])
    assert_same(before, state_of(bank))


def test_a_callback_that_fails_at_an_error_hides_neither_the_error_nor_itself(bank, labelled_clips):
    before, told = state_of(bank), Told()
    broken = Broken("on_exception", ValueError("no room"))
    with pytest.warns(RuntimeWarning, match="failed in on_exception: .*no room"), pytest.raises(TrainingDivergedError):
        fit(bank, "families", labelled_clips, callbacks=[Spoiler(), broken, told], **PLAIN)
    assert told.calls[-1] == ("", "exception", TrainingDivergedError)
    assert_same(before, state_of(bank))


def test_what_is_no_callback_is_refused_by_what_it_lacks(bank, labelled_clips):
    with pytest.raises(ConfigError, match="got the callback .*expected an object with on_start, on_step.*BaseCallback"):
        fit(bank, "families", labelled_clips, callbacks=[lambda state: None], **PLAIN)


def test_an_object_of_its_own_with_the_five_methods_is_a_callback():
    class Own:
        on_start = on_step = on_epoch = on_end = lambda self, state: None
        on_exception = lambda self, state, error: None  # noqa: E731

    assert isinstance(Own(), Callback)


# -- several tasks ----------------------------------------------------------------------------------------------------


def several(backbone):
    bank = AdapterBank(backbone)
    for name in ("a", "b"):
        bank.add_task(name, "aat_ms", labels=LABELS)
    return bank


def test_in_company_a_callback_does_to_each_task_what_it_does_alone(small_backbone, labelled_clips):
    together, apart = several(small_backbone), several(small_backbone)
    val, callbacks = labelled_clips[:4], [Smooth(), Replay(labelled_clips[:2]), EarlyStopping(1)]
    options = {**PLAIN, "epochs": 5, "order": "shared"}
    histories = fit_many(together, ["a", "b"], labelled_clips, val, callbacks=callbacks, **options)
    for name in ("a", "b"):
        alone = fit(apart, name, labelled_clips, val, callbacks=callbacks, **options)
        assert histories[name].steps == alone.steps
        for one, other in zip(histories[name].epochs, alone.epochs, strict=True):
            assert one == pytest.approx(other, abs=1e-4)


def test_each_task_may_have_callbacks_of_its_own(small_backbone, labelled_clips):
    told = Told()
    fit_many(several(small_backbone), ["a", "b"], labelled_clips, callbacks={"b": [told]}, **PLAIN)
    assert [call[1] for call in told.calls] == ["start", *["step", "step", "epoch"] * 2, "end"]
    with pytest.raises(UnknownNameError, match="unknown task of callbacks 'c'.*Known: a, b"):
        fit_many(several(small_backbone), ["a", "b"], labelled_clips, callbacks={"c": []}, **PLAIN)


def test_a_task_that_is_stopped_is_told_and_the_others_go_on(small_backbone, labelled_clips):
    bank, told = several(small_backbone), {"a": Told(), "b": Told()}
    callbacks = {"a": [told["a"]], "b": [Spoiler(), told["b"]]}
    before = state_of(bank, "b")
    histories = fit_many(bank, ["a", "b"], labelled_clips, callbacks=callbacks, **PLAIN)
    assert told["a"].calls[-1] == ("", "end", 4)
    assert told["b"].calls[-1] == ("", "exception", TrainingDivergedError)
    assert [call[1] for call in told["b"].calls].count("exception") == 1
    assert "gave loss nan at step 2" in histories["b"].error
    assert_same(before, state_of(bank, "b"))


def test_an_error_of_one_task_is_told_to_all(small_backbone, labelled_clips):
    bank, told = several(small_backbone), {"a": Told(), "b": Told()}
    callbacks = {"a": [told["a"], Broken("on_epoch", KeyboardInterrupt())], "b": [told["b"]]}
    before = {name: state_of(bank, name) for name in ("a", "b")}
    with pytest.raises(KeyboardInterrupt):
        fit_many(bank, ["a", "b"], labelled_clips, callbacks=callbacks, **PLAIN)
    for name in ("a", "b"):
        assert told[name].calls[-1] == ("", "exception", KeyboardInterrupt)
        assert_same(before[name], state_of(bank, name))
