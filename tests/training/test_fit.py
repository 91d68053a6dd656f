"""Training one task: what changes, what is kept, what is refused."""

from __future__ import annotations

import math

import pytest
import torch
from torch.utils.data import Dataset

from adapterbank.audio.mel import frame_count
from adapterbank.bank import AdapterBank
from adapterbank.training.callbacks import BaseCallback
from adapterbank.training.defaults import Resolved, training_defaults
from adapterbank.training.feed import Feed
from adapterbank.training.fit import fit
from adapterbank.training.history import History

LABELS = ["bass", "brass", "organ"]


@pytest.fixture
def bank(small_backbone):
    bank = AdapterBank(small_backbone)
    for name, method in (("families", "aat_ms"), ("probe", "head"), ("other", "joint")):
        bank.add_task(name, method, labels=LABELS)
    return bank


def bits(bank):
    tensors = {f"base.{name}": tensor.clone() for name, tensor in bank.backbone.weights.named()}
    for name, task in bank.tasks.items():
        tensors.update({f"{name}.{key}": tensor.clone() for key, tensor in task.state_dict().items()})
    return tensors


def changed(before, after):
    return {key for key in before if not torch.equal(before[key], after[key])}


def quick(bank, task, data, val=None, **options):
    return fit(bank, task, data, val, **{"epochs": 2, "batch_size": 6, "progress": False, **options})


class Heard(BaseCallback):
    """The batches of all steps."""

    def __init__(self):
        self.batches = []

    def on_step(self, state):
        self.batches.append(state.batch)


@pytest.mark.parametrize("method", ["head", "aat_ms", "prompt", "joint", "partial", "full"])
def test_only_the_tasks_own_tensors_change_and_all_of_them(method, bank, labelled_clips):
    bank.add_task("new", method, labels=LABELS, train_final_norm=True)
    before, state = bits(bank), torch.get_rng_state()
    quick(bank, "new", labelled_clips, labelled_clips, epochs=3, batch_size=4)
    assert torch.equal(torch.get_rng_state(), state)
    moved = changed(before, bits(bank))
    # The softmax does not feel a constant in every key: the gradient of a key bias is rounding noise.
    own = {key for key in before if key.startswith("new.") and not key.endswith("k_bias")}
    assert own <= moved
    assert all(key.startswith("new.") for key in moved)
    assert not bank.task("new").training


def test_training_learns_the_families(bank, labelled_clips):
    history = quick(bank, "families", labelled_clips, epochs=15, lr=5e-3, freq_mask=0, time_mask=0)
    losses = [record["train/loss"] for record in history.epochs]
    assert losses[-1] < losses[0] / 2
    assert bank.evaluate("families", labelled_clips)["accuracy"] >= 0.9


def test_a_history_says_what_was_done(bank, labelled_clips):
    seen = []
    history = quick(bank, "families", labelled_clips, labelled_clips[:6], on_epoch=lambda *a: seen.append(a), lr=2e-3)
    assert isinstance(history, History)
    assert (history.task, history.steps, len(history.epochs)) == ("families", 4, 2)
    assert history.options["lr"] == 2e-3
    assert history.options["schedule"] == "cosine"
    assert set(history.epochs[0]) == {
        "train/loss",
        "lr",
        "val/accuracy",
        "val/balanced_accuracy",
        "val/macro_f1",
        "val/loss",
    }
    assert seen == list(enumerate(history.epochs))
    assert history.seconds > 0
    assert history.gpu_seconds == 0.0
    assert history.peak_memory_mb > 0
    assert history.precision in ("fp32", "bf16")


class Judge(Dataset):
    """Ten validation clips whose labels make the accuracy of each epoch what the test says: the first of them have the
    label that the task answers at that moment, the others another one."""

    def __init__(self, bank, task, clips, accuracies):
        self.bank, self.task, self.clips, self.accuracies, self.reads = bank, task, clips, accuracies, 0

    def __len__(self):
        return 10

    def __getitem__(self, index):
        right = round(10 * self.accuracies[self.reads // 10])
        self.reads += 1
        answer = int(self.bank([self.clips[index][0]], self.task).argmax())
        return self.clips[index][0], answer if index < right else (answer + 1) % 3


def test_the_best_epoch_by_validation_is_restored(bank, labelled_clips):
    states = []

    def keep(epoch, record):
        states.append({key: tensor.clone() for key, tensor in bank.task("families").state_dict().items()})

    judge = Judge(bank, "families", labelled_clips, [0.1, 0.9, 0.3, 0.8])
    history = quick(bank, "families", labelled_clips, judge, epochs=4, on_epoch=keep, precision="fp32")
    assert [record["val/accuracy"] for record in history.epochs] == pytest.approx([0.1, 0.9, 0.3, 0.8])
    assert history.best_epoch == 1
    final = bank.task("families").state_dict()
    assert not changed(states[1], final)
    assert changed(states[3], final)
    assert bank.task("families").metrics["accuracy"] == pytest.approx(0.9)


@pytest.mark.parametrize("task", ["families", "probe"])
def test_the_restored_task_scores_what_its_best_epoch_scored(task, bank, labelled_clips):
    val = labelled_clips[5:]
    history = quick(bank, task, labelled_clips[:5], val, epochs=5, batch_size=2, lr=5e-3, precision="fp32")
    scores = [record["val/accuracy"] for record in history.epochs]
    assert history.best_epoch == max(range(len(scores)), key=lambda epoch: (scores[epoch], epoch))
    assert bank.task(task).metrics["loss"] == history.epochs[history.best_epoch]["val/loss"]
    assert bank.evaluate(task, val)["loss"] == pytest.approx(history.epochs[history.best_epoch]["val/loss"], abs=1e-5)


def test_without_validation_the_last_epoch_stays(bank, labelled_clips):
    states = []

    def keep(epoch, record):
        states.append({key: tensor.clone() for key, tensor in bank.task("families").state_dict().items()})

    history = quick(bank, "families", labelled_clips, epochs=3, on_epoch=keep)
    assert history.best_epoch == 2
    assert not changed(states[2], bank.task("families").state_dict())
    assert bank.task("families").metrics == {}


def test_head_features_computed_once_train_like_those_computed_every_time(bank, labelled_clips):
    start = {key: tensor.clone() for key, tensor in bank.task("probe").state_dict().items()}
    options = {"epochs": 4, "batch_size": 5, "lr": 1e-2, "precision": "fp32", "freq_mask": 0, "time_mask": 0}
    cached = quick(bank, "probe", labelled_clips, labelled_clips[:7], **options)
    state = {key: tensor.clone() for key, tensor in bank.task("probe").state_dict().items()}

    bank.task("probe").load_state_dict(start)
    uncached = quick(bank, "probe", labelled_clips, labelled_clips[:7], **options, cache=None)
    for one, other in zip(cached.epochs, uncached.epochs, strict=True):
        assert one == pytest.approx(other, abs=1e-4)
    assert cached.best_epoch == uncached.best_epoch
    for key, tensor in bank.task("probe").state_dict().items():
        torch.testing.assert_close(tensor, state[key], rtol=0, atol=1e-4)


def test_clips_of_a_head_are_read_no_more_often_in_more_epochs(bank, labelled_clips):
    reads = []

    class Counted(list):
        def __getitem__(self, index):
            reads.append(index)
            return super().__getitem__(index)

    quick(bank, "probe", Counted(labelled_clips), epochs=1)
    once = len(reads)
    reads.clear()
    quick(bank, "probe", Counted(labelled_clips), epochs=5)
    assert len(reads) == once
    reads.clear()
    quick(bank, "probe", Counted(labelled_clips), epochs=5, cache=None)
    assert len(reads) >= 5 * len(labelled_clips)  # and a few for the estimate


def test_training_is_repeatable_and_follows_its_seed(small_backbone, labelled_clips):
    def trained(**options):
        bank = AdapterBank(small_backbone)
        bank.add_task("families", "joint", labels=LABELS)
        quick(bank, "families", labelled_clips, crop_seconds=0.4, **options)
        return bank.task("families").state_dict()

    torch.manual_seed(1)
    first = trained()
    torch.manual_seed(2)
    assert not changed(first, trained())
    assert changed(first, trained(seed=1))


def test_training_hears_random_crops_and_validation_whole_clips(bank, labelled_clips):
    heard = Heard()
    data = [*labelled_clips, (labelled_clips[0][0][:3000], "bass")]
    options = {"crop_seconds": 0.25, "callbacks": [heard], "precision": "fp32"}
    history = quick(bank, "families", data, labelled_clips, **options)
    frames = [frame_count(min(len(wave), 4000)) for wave, _ in data * 2]
    assert sorted(len(mel) for batch in heard.batches for mel in batch.rows) == sorted(frames)
    whole, cut = bank.evaluate("families", labelled_clips), [(wave[:4000], label) for wave, label in labelled_clips]
    assert history.epochs[history.best_epoch]["val/loss"] == pytest.approx(whole["loss"], abs=1e-5)
    assert bank.evaluate("families", cut)["loss"] != pytest.approx(whole["loss"], abs=1e-3)


@pytest.mark.parametrize(
    ("task", "options", "masks"),
    [
        ("families", {}, (0, 0.0)),
        ("families", {"freq_mask": 8, "time_mask": 30}, (8, 30)),
        ("families", {"time_mask": 0.2}, (0, 0.2)),
        ("probe", {"cache": None}, (0, 0)),
        ("probe", {"freq_mask": 8, "time_mask": 30}, (8, 30)),
    ],
)
def test_the_masks_that_were_asked_for_are_what_a_training_hears_and_short_ones_have_none(
    task, options, masks, bank, labelled_clips
):
    heard = Heard()
    quick(bank, task, labelled_clips, epochs=1, callbacks=[heard], **options)
    feed = Feed(bank.backbone, bank.task(task), labelled_clips, Resolved(batch_size=6), masks)
    for place, batch in enumerate(heard.batches):
        expected = feed.batch(0, place)
        assert batch.labels == expected.labels
        assert all(map(torch.equal, batch.rows, expected.rows))


@pytest.mark.parametrize(
    ("options", "formula"),
    [
        ({"schedule": "constant", "warmup": 0.0}, lambda step: 1.0),
        ({"schedule": "constant", "warmup": 0.5}, lambda step: min(1.0, (step + 1) / 6)),
        ({"schedule": "cosine", "warmup": 0.0}, lambda step: (1 + math.cos(math.pi * step / 12)) / 2),
        (
            {"schedule": "cosine", "warmup": 0.25},
            lambda step: (step + 1) / 3 if step < 3 else (1 + math.cos(math.pi * (step - 3) / 9)) / 2,
        ),
        (
            {"schedule": "multistep", "warmup": 0.0, "milestones": (1, 3), "gamma": 0.5},
            lambda step: 0.5 ** ((step >= 3) + (step >= 9)),  # three steps per epoch
        ),
    ],
    ids=["constant", "warm-up", "cosine", "warm-up and cosine", "multistep"],
)
def test_every_step_has_the_learning_rate_of_the_formula(options, formula, bank, labelled_clips):
    rates = []

    class Rates(BaseCallback):
        def on_step(self, state):
            rates.append(state.optimizer.param_groups[0]["lr"])

    quick(bank, "probe", labelled_clips, epochs=4, batch_size=4, lr=0.02, callbacks=[Rates()], **options)
    assert rates == pytest.approx([0.02 * formula(step) for step in range(12)], rel=1e-6)


def test_the_optimizer_holds_exactly_the_tasks_tensors(bank, labelled_clips):
    held = []

    class Held(BaseCallback):
        def on_start(self, state):
            assert isinstance(state.optimizer, torch.optim.AdamW)
            [group] = state.optimizer.param_groups
            assert group["weight_decay"] == training_defaults("aat_ms").weight_decay
            held.extend(group["params"])

    quick(bank, "families", labelled_clips, epochs=1, callbacks=[Held()])
    assert {id(p) for p in held} == {id(p) for p in bank.task("families").parameters()}


class Norms(BaseCallback):
    """The norm of the gradients with which the optimiser changes the weights, of each step."""

    def __init__(self):
        self.found = []

    def on_start(self, state):
        state.optimizer.register_step_pre_hook(self.read)

    def read(self, optimizer, *arguments):
        gradients = [p.grad for group in optimizer.param_groups for p in group["params"] if p.grad is not None]
        self.found.append(math.sqrt(sum(gradient.square().sum().item() for gradient in gradients)))


def test_gradients_are_clipped_to_their_norm(bank, labelled_clips):
    clipped, whole = Norms(), Norms()
    quick(bank, "families", labelled_clips, clip_grad=0.01, callbacks=[clipped])
    assert max(clipped.found) <= 0.0101
    quick(bank, "families", labelled_clips, clip_grad=0, callbacks=[whole])
    assert max(whole.found) > 0.02


@pytest.mark.parametrize(("steps", "epochs", "expected"), [(3, 10, 3), (1, 1, 1), (100, 2, 4), (2, 9, 2)])
def test_steps_end_a_training_early(steps, epochs, expected, bank, labelled_clips):
    history = quick(bank, "families", labelled_clips, steps=steps, epochs=epochs)
    assert history.steps == expected
    assert len(history.epochs) == math.ceil(expected / 2)


@pytest.mark.parametrize("precision", ["fp32", "bf16", "fp16"])
@pytest.mark.parametrize("task", ["families", "probe"])
def test_every_precision_trains_fp32_tensors_on_an_untouched_base(precision, task, bank, labelled_clips):
    before = bits(bank)
    history = quick(bank, task, labelled_clips, labelled_clips[:4], precision=precision, epochs=3)
    assert history.precision == precision
    assert all(math.isfinite(value) for record in history.epochs for value in record.values())
    assert all(t.dtype == torch.float32 and t.isfinite().all() for t in bank.task(task).state_dict().values())
    assert bank.backbone.dtype == torch.float32
    moved = changed(before, bits(bank))
    assert moved
    assert all(key.startswith(f"{task}.") for key in moved)


def test_half_precision_learns_as_fp32_does(small_backbone, labelled_clips):
    losses = {}
    for precision in ("fp32", "bf16"):
        bank = AdapterBank(small_backbone)
        bank.add_task("families", "aat_ms", labels=LABELS)
        history = quick(bank, "families", labelled_clips, precision=precision, epochs=6, lr=2e-3, seed=3)
        losses[precision] = [record["train/loss"] for record in history.epochs]
    assert losses["bf16"] == pytest.approx(losses["fp32"], abs=0.15)


def test_a_multilabel_task_is_judged_by_map(bank, labelled_clips):
    bank.add_task("tags", "aat_ms", labels=["low", *LABELS], multilabel=True)
    data = [(wave, {label, "low"} if label == "bass" else {label}) for wave, label in labelled_clips]
    history = quick(bank, "tags", data, data, epochs=4, lr=3e-3)
    scores = [record["val/map"] for record in history.epochs]
    assert history.best_epoch == scores.index(max(scores))
    assert bank.task("tags").primary_metric == "map"
    assert history.epochs[-1]["train/loss"] < history.epochs[0]["train/loss"]


def test_a_validation_without_any_positive_still_keeps_a_real_epoch(bank, labelled_clips):
    bank.add_task("tags", "head", labels=LABELS, multilabel=True)
    history = quick(bank, "tags", [(w, {label}) for w, label in labelled_clips], [(labelled_clips[0][0], set())])
    assert history.best_epoch == 1  # of equals the later one
    assert math.isnan(history.epochs[0]["val/map"])


@pytest.mark.parametrize("task", ["families", "probe"])
def test_iterables_of_one_pass_are_as_good_as_lists(task, small_backbone, labelled_clips):
    states = []
    for wrap in (list, iter):
        bank = AdapterBank(small_backbone)
        for name, method in (("families", "aat_ms"), ("probe", "head")):
            bank.add_task(name, method, labels=LABELS)
        quick(bank, task, wrap(labelled_clips), wrap(labelled_clips[:5]))
        states.append(bank.task(task).state_dict())
    assert not changed(*states)


def test_fp16_gradients_are_clipped_after_their_loss_scale_is_taken_out(small_backbone, labelled_clips):
    norms = {}
    for limit in (0, 0.01):
        for precision in ("fp32", "fp16"):
            bank = AdapterBank(small_backbone)
            bank.add_task("families", "aat_ms", labels=LABELS)
            options = {"epochs": 1, "steps": 1, "precision": precision, "clip_grad": limit}
            quick(bank, "families", labelled_clips, callbacks=[found := Norms()], **options)
            norms[limit, precision] = found.found
    assert norms[0, "fp16"] == pytest.approx(norms[0, "fp32"], rel=0.1)
    assert norms[0.01, "fp16"] == pytest.approx([0.01], rel=1e-3)


@pytest.mark.parametrize(("crop_seconds", "frames"), [(None, 112), (0.25, 32)])
def test_crops_are_not_padded_to_the_tasks_clip_length(crop_seconds, frames, bank, labelled_clips):
    task = bank.add_task("padded", "conformer", labels=LABELS, clip_seconds=1.0, reduction=8)
    tokens, width = set(), bank.backbone.geometry.width

    def read(module, inputs):  # what has another width lies inside the bottleneck
        if inputs[0].shape[-1] == width:
            tokens.add(inputs[0].shape[1])

    for module in task.adapters.modules():
        module.register_forward_pre_hook(read)
    quick(bank, "padded", labelled_clips, crop_seconds=crop_seconds)
    assert tokens == {bank.backbone.geometry.tokens(frames)}  # 1 s: 98 frames, 7 patches of 16; 0.25 s: 23 frames, 2


@pytest.mark.filterwarnings("ignore::adapterbank.errors.UntrainedClassesWarning")
def test_the_task_is_in_training_mode_for_steps_and_in_eval_mode_for_validation(bank, labelled_clips):
    modes, task = [], bank.task("families")
    task.head.register_forward_pre_hook(lambda module, inputs: modes.append((module.training, len(inputs[0]))))
    quick(bank, "families", labelled_clips[:2], labelled_clips[:1])
    assert [training for training, _ in modes] == [True, True, False] * 2  # the two clips have two lengths


def test_training_leaves_no_gradient_and_no_metric_of_the_old_weights_behind(small_bank, clips):
    data = [(clip, index % 2) for index, clip in enumerate(clips)]
    small_bank.add_task("fresh", "aat_m", num_classes=2)
    small_bank.evaluate("fresh", data)
    fit(small_bank, "fresh", data, steps=1, progress=False)
    task = small_bank.task("fresh")
    assert all(parameter.grad is None for parameter in task.parameters())
    assert task.metrics == {}


@pytest.mark.parametrize(
    ("method", "options", "seconds"),
    [("aat_ms", {}, 1.2), ("aat_ms", {"crop_seconds": 0.5}, 0.5), ("head", {"cache": "memory"}, 1.2)],
)
def test_a_task_knows_the_median_length_of_what_its_training_heard(method, options, seconds, bank):
    bank.add_task("new", method, labels=LABELS)
    data = [(0.1 * torch.randn(round(16_000 * each)), at % 3) for at, each in enumerate([0.9, 1.2, 1.2, 3.0])]
    assert bank.task("new").trained_clip_seconds is None
    quick(bank, "new", data, batch_size=2, freq_mask=0, time_mask=0, **options)
    assert bank.task("new").trained_clip_seconds == pytest.approx(seconds, abs=0.01)
