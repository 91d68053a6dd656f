"""What is kept below a task's first site: the same losses, computed once, and never of another clip or backbone."""

from __future__ import annotations

import gc
import math
import shutil
from dataclasses import replace

import pytest
import torch
from torch.utils.data import Dataset

from adapterbank.backbone.kernels import plain_kernels
from adapterbank.bank import AdapterBank
from adapterbank.errors import ConfigError, LabelsError, StorageError
from adapterbank.training.cache import MemoryStore
from adapterbank.training.callbacks import BaseCallback
from adapterbank.training.fit import fit

LABELS = ["bass", "brass", "organ"]
TASKS = {
    "partial": {"blocks": 1},
    "aat_ms": {"layers": [1], "clip_seconds": 1.0, "normalize": (-5.0, 3.0)},
    "lora": {"layers": [1]},
    "prompt": {"layers": [1], "pooling": "mean"},
    "head": {},
    "linear": {},
}


class Counted(list):
    """Clips that count how often one of them is read."""

    def __init__(self, clips):
        super().__init__(clips)
        self.reads = 0

    def __getitem__(self, index):
        self.reads += 1
        return super().__getitem__(index)

    def computed(self):
        """How many clips were computed to be kept: a cache reads each clip once to name it, and once more for that."""
        return self.reads - len(self)


def trained(backbone, method, data, val=None, *, task=None, **options):
    """(history, bank) of a new task of this method."""
    bank = AdapterBank(backbone)
    bank.add_task("new", method, labels=LABELS, **(TASKS[method] if task is None else task))
    plain = {"epochs": 3, "batch_size": 5, "lr": 5e-3, "precision": "fp32", "progress": False}
    return fit(bank, "new", data, val, **{**plain, **options}), bank


def files(folder):
    return sorted(folder.glob("*/*.safetensors"))


@pytest.mark.parametrize("method", TASKS)
@pytest.mark.parametrize("where", ["memory", "folder"])
def test_kept_activations_give_the_losses_of_those_computed_anew(
    where, method, small_backbone, labelled_clips, tmp_path
):
    plain = {"freq_mask": 0, "time_mask": 0}
    anew, fresh = trained(small_backbone, method, labelled_clips, labelled_clips[:7], **plain, cache=None)
    for _ in range(1 if where == "memory" else 2):  # from a folder that was filled before as well
        place = "memory" if where == "memory" else tmp_path / "kept"
        kept, bank = trained(small_backbone, method, labelled_clips, labelled_clips[:7], cache=place)
        for one, other in zip(kept.epochs, anew.epochs, strict=True):
            assert one == pytest.approx(other, abs=1e-6)
        assert kept.best_epoch == anew.best_epoch
        for key, tensor in fresh.task("new").state_dict().items():
            torch.testing.assert_close(bank.task("new").state_dict()[key], tensor, rtol=0, atol=1e-5)


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_half_precision_keeps_what_a_training_step_computes(precision, small_backbone, labelled_clips):
    options = {"precision": precision, "freq_mask": 0, "time_mask": 0, "batch_size": 12}
    kept, anew = (trained(small_backbone, "partial", labelled_clips, **options, cache=how) for how in ("memory", None))
    losses = [[record["train/loss"] for record in history.epochs] for history, _ in (kept, anew)]
    assert losses[0] == pytest.approx(losses[1], abs=2e-3)


def test_every_clip_is_computed_once_in_memory_and_once_for_all_in_a_folder(small_backbone, labelled_clips, tmp_path):
    for place in ("memory", tmp_path):
        double, val = Counted([*labelled_clips, labelled_clips[0]]), Counted(labelled_clips[:3])
        trained(small_backbone, "partial", double, val, cache=place)
        assert (double.computed(), val.computed()) == (len(labelled_clips), 3)
    again, val = Counted(labelled_clips), Counted(labelled_clips[:2])
    trained(small_backbone, "lora", again, val, task={"layers": [1]}, cache=tmp_path)
    assert (again.computed(), val.computed()) == (0, 0)


@pytest.mark.parametrize(
    ("method", "options", "keeps"),
    [
        ("head", {}, True),
        ("head", {"cache": None}, False),
        ("head", {"freq_mask": 8}, False),
        ("partial", {}, False),
    ],
)
def test_a_head_keeps_its_features_unless_told_not_to(method, options, keeps, small_backbone, labelled_clips):
    kept = []

    class Rows(BaseCallback):
        def on_step(self, state):
            kept.extend(row.ndim == 1 for row in state.batch.rows)  # features (D,), not log-mels (F, M)

    trained(small_backbone, method, labelled_clips, callbacks=[Rows()], **options)
    assert kept == [keeps] * 3 * len(labelled_clips)


def test_whatever_an_activation_depends_on_makes_another_name(small_backbone, labelled_clips, tmp_path):
    def computed(backbone=small_backbone, data=labelled_clips, method="partial", task=None, **options):
        counted = Counted(data)
        trained(backbone, method, counted, task=task or {"blocks": 1}, epochs=1, cache=tmp_path, **options)
        return counted.computed()

    everything = len(labelled_clips)
    assert computed() == everything
    assert computed() == 0
    assert computed(backbone=replace(small_backbone, fingerprint="other")) == everything
    assert computed(backbone=replace(small_backbone, mean=-4.0)) == everything
    assert computed(backbone=small_backbone.to(dtype=torch.bfloat16)) == everything
    assert computed(precision="bf16") == everything
    with plain_kernels():
        assert computed() == everything
    with plain_kernels("chunk_tokens"):  # how many tokens run at once changes no value
        assert computed() == 0
    assert computed(task={"blocks": 1, "normalize": (-5.0, 3.0)}) == everything
    assert computed(task={"blocks": 1, "clip_seconds": 2.0}) == everything
    assert computed(method="head", task={"pooling": "mean"}) == everything
    assert computed(method="head", task={"pooling": "cls_dist"}) == everything
    quieter = [(0.5 * wave if index == 4 else wave, label) for index, (wave, label) in enumerate(labelled_clips)]
    assert computed(data=quieter) == 1
    assert computed(data=list(reversed(labelled_clips))) == 0


@pytest.mark.filterwarnings("ignore::adapterbank.errors.UntrainedHeadWarning")
def test_features_behind_frozen_adapters_have_those_adapters_in_their_name(
    small_backbone, labelled_clips, tmp_path, randomise
):
    counts = []
    for seed in (0, 0, 1):
        bank = AdapterBank(small_backbone)
        for name, method in (("one", "aat_ms"), ("two", "prompt")):
            bank.add_task(name, method, labels=LABELS)
            randomise(bank.task(name), seed)
        bank.compose("new", ["one", "two"], freeze=True)
        data = Counted(labelled_clips)
        fit(bank, "new", data, epochs=1, cache=tmp_path, progress=False)
        counts.append(data.computed())
    assert counts == [len(labelled_clips), 0, len(labelled_clips)]


@pytest.mark.parametrize(
    ("method", "task", "options", "message"),
    [
        (
            "aat_ms",
            {},
            {},
            r"got cache='memory' for 'new', whose method 'aat_ms' acts from the first block on.*layers=",
        ),
        ("full", {}, {}, "'full' acts from the first block on"),
        ("shallow_prompt", {"tokens": 3}, {}, "acts from the first block on"),
        ("partial", {"blocks": 1}, {"freq_mask": 8}, "got cache='memory' with freq_mask=8: crops and masks are drawn"),
        ("partial", {"blocks": 1}, {"time_mask": 0.1}, "with time_mask=0.1"),
        ("head", {}, {"crop_seconds": 0.5}, "with crop_seconds=0.5.*cache=None"),
        ("partial", {"blocks": 1}, {"cache_bytes": 0}, "got cache_bytes=0, expected a positive integer"),
        ("partial", {"blocks": 1}, {"cache": 7}, "got cache=7, expected 'auto', 'memory', a folder or None"),
    ],
)
def test_a_cache_that_could_never_help_is_refused(method, task, options, message, small_backbone, labelled_clips):
    with pytest.raises(ConfigError, match=message):
        trained(small_backbone, method, labelled_clips, task=task, **{"cache": "memory", **options})


@pytest.mark.parametrize("where", ["memory", "folder"])
def test_too_much_to_keep_is_said_in_bytes_before_anything_is_computed(where, small_backbone, labelled_clips, tmp_path):
    place, data = tmp_path if where == "folder" else "memory", Counted(labelled_clips)
    with pytest.raises(ConfigError, match=r"the tokens that enter block 1 of 17 clips need") as error:
        trained(small_backbone, "partial", data, labelled_clips[:5], cache=place, cache_bytes=1000)
    assert data.computed() == 0
    assert ("cache=<a folder>" in str(error.value)) == (where == "memory")
    needed = int(str(error.value).partition("Pass cache_bytes=")[2].partition(",")[0])
    geometry = small_backbone.geometry
    counts = [1 + max(0, len(wave) - 400) // 160 for wave, _ in [*labelled_clips, *labelled_clips[:5]]]
    assert needed == sum(4 * geometry.width * geometry.tokens(geometry.whole_frames(count)) for count in counts)
    trained(small_backbone, "partial", labelled_clips, labelled_clips[:5], cache=place, cache_bytes=needed)


def test_a_full_disk_is_found_before_anything_is_computed(small_backbone, labelled_clips, tmp_path, monkeypatch):
    # Of Python's own: a test cannot fill a disk.
    monkeypatch.setattr(shutil, "disk_usage", lambda folder: type("Usage", (), {"free": 10_000}))
    data = Counted(labelled_clips)
    with pytest.raises(ConfigError, match="MiB more in .* MiB left. Choose a folder on another disk"):
        trained(small_backbone, "partial", data, cache=tmp_path)
    assert data.computed() == 0


class Killing(Counted):
    """Clips of which one is the last that is read."""

    def __init__(self, clips, last):
        super().__init__(clips)
        self.last = last

    def __getitem__(self, index):
        if self.reads == self.last:
            raise KeyboardInterrupt
        return super().__getitem__(index)


def test_a_killed_training_leaves_whole_batches_that_the_next_one_uses(small_backbone, labelled_clips, tmp_path):
    killing = Killing(labelled_clips, last=len(labelled_clips) + 10)  # all are named; then two batches of four, and two
    with pytest.raises(KeyboardInterrupt):
        trained(small_backbone, "partial", killing, cache=tmp_path, batch_size=4)
    assert len(files(tmp_path)) == 2
    data = Counted(labelled_clips)
    kept, _ = trained(small_backbone, "partial", data, cache=tmp_path, batch_size=4)
    assert data.computed() == len(labelled_clips) - 8
    anew, _ = trained(small_backbone, "partial", labelled_clips, batch_size=4, freq_mask=0, time_mask=0, cache=None)
    for one, other in zip(kept.epochs, anew.epochs, strict=True):
        assert one == pytest.approx(other, abs=1e-6)


@pytest.mark.parametrize("harm", ["cut", "changed"])
def test_a_damaged_file_is_refused_by_name(harm, small_backbone, labelled_clips, tmp_path):
    trained(small_backbone, "partial", labelled_clips, cache=tmp_path, epochs=1)
    path = files(tmp_path)[0]
    content = path.read_bytes()
    path.write_bytes(content[:-50] if harm == "cut" else content[:-50] + bytes([content[-50] ^ 1]) + content[-49:])
    with pytest.raises(StorageError, match=f"{path} is cut or was changed. Delete it"):
        trained(small_backbone, "partial", labelled_clips, cache=tmp_path)
    path.unlink()
    history, _ = trained(small_backbone, "partial", labelled_clips, cache=tmp_path)
    assert all(math.isfinite(record["train/loss"]) for record in history.epochs)


def test_a_folder_holds_nothing_but_safetensors_and_a_description(small_backbone, labelled_clips, tmp_path):
    trained(small_backbone, "partial", labelled_clips, labelled_clips[:2], cache=tmp_path, epochs=1)
    suffixes = {path.suffix for path in tmp_path.rglob("*") if path.is_file()}
    assert suffixes == {".safetensors", ".json"}


def test_a_folder_that_cannot_be_written_is_refused(small_backbone, labelled_clips, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(StorageError, match="cannot keep activations in .*Choose another folder"):
        trained(small_backbone, "partial", labelled_clips, cache=tmp_path / "file")


class Noisy(Dataset):
    """Draws another clip each time."""

    def __len__(self):
        return 6

    def __getitem__(self, index):
        return torch.randn(4000), "bass"


@pytest.mark.parametrize("method", ["partial", "head"])
@pytest.mark.filterwarnings("ignore::adapterbank.errors.UntrainedClassesWarning")
def test_a_dataset_that_augments_by_itself_is_not_frozen_in_silence(method, small_backbone):
    with pytest.raises(ConfigError, match="gives another waveform each time a clip is read.*cache=None"):
        trained(small_backbone, method, Noisy(), cache="memory")


def test_keeping_draws_nothing_from_the_global_random_state(small_backbone, labelled_clips, tmp_path):
    state = torch.get_rng_state()
    trained(small_backbone, "partial", labelled_clips, labelled_clips[:3], cache=tmp_path)
    assert torch.equal(torch.get_rng_state(), state)


def test_values_that_a_change_of_dtype_has_rounded_are_others(small_backbone, labelled_clips, tmp_path):
    rounded = small_backbone.to(dtype=torch.bfloat16).to(dtype=torch.float32)
    assert rounded.fingerprint == small_backbone.fingerprint
    trained(small_backbone, "lora", labelled_clips, cache=tmp_path)
    data = Counted(labelled_clips)
    kept, _ = trained(rounded, "lora", data, cache=tmp_path)
    assert data.computed() == len(labelled_clips)
    anew, _ = trained(rounded, "lora", labelled_clips, cache=None, freq_mask=0, time_mask=0)
    assert [one["train/loss"] for one in kept.epochs] == pytest.approx([one["train/loss"] for one in anew.epochs])


def test_nothing_that_was_kept_outlives_its_training(small_backbone, labelled_clips):
    def stores():
        return sum(type(thing) is MemoryStore for thing in gc.get_objects())

    during = []

    class Counting(BaseCallback):
        def on_step(self, state):
            during.append(stores())

    # The first training of a process imports parts of torch, whose cycles hold on to whatever called for them.
    trained(small_backbone, "lora", labelled_clips, cache="memory")
    gc.collect()
    gc.disable()  # what waits for Python to look for cycles may wait for gigabytes
    try:
        before = stores()
        trained(small_backbone, "lora", labelled_clips, cache="memory", callbacks=[Counting()])
        assert set(during) == {before + 1}
        assert stores() == before
    finally:
        gc.enable()


class Augmented(Dataset):
    """Clips that are louder each time they are read."""

    def __init__(self, clips):
        self.clips, self.reads = clips, 0

    def __len__(self):
        return len(self.clips)

    def __getitem__(self, index):
        self.reads += 1
        waveform, label = self.clips[index]
        return waveform * (1 + 0.01 * self.reads), label


class Sized:
    """Clips that are counted, and have no places."""

    def __init__(self, clips):
        self.clips = clips

    def __len__(self):
        return len(self.clips)

    def __iter__(self):
        return iter(self.clips)


def test_a_head_learns_from_data_that_augment_themselves_and_is_checked_by_any_iterable(small_backbone, labelled_clips):
    augmented = Augmented(labelled_clips)
    history, _ = trained(small_backbone, "head", augmented)
    assert len(history.epochs) == 3
    assert augmented.reads >= 3 * len(labelled_clips)  # in each epoch anew
    history, _ = trained(small_backbone, "head", labelled_clips, Sized(labelled_clips[:3]))
    assert history.epochs[0]["val/accuracy"] >= 0


def test_a_wrong_label_is_found_before_anything_is_computed(small_backbone, labelled_clips):
    wrong = Counted([*labelled_clips[:-1], (labelled_clips[-1][0], "trumpet")])
    with pytest.raises(LabelsError, match="trumpet"):
        trained(small_backbone, "lora", wrong, cache="memory")
    assert wrong.computed() <= 0  # the labels of a list are known before any clip of it is read
