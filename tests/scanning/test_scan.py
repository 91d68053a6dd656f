"""A scan says of each window what `predict` says of its samples, with the right times, in constant memory."""

import gc
import tracemalloc

import numpy as np
import pytest
import soundfile
import torch

from adapterbank.bank import AdapterBank
from adapterbank.data import demo_tasks, load_folder
from adapterbank.errors import (
    AudioFileError,
    ConfigError,
    SkippedClipsWarning,
    UnknownNameError,
    WaveformError,
)
from adapterbank.task.calibration import Calibration
from adapterbank.training.fit import fit


def by_hand(bank, wave, task, scan):
    """(W, C) from `predict` on each window's samples."""
    labels = bank.task(task).labels
    rows = []
    for start in scan.starts.tolist():
        first = round(start * 16_000)
        (found,) = bank.predict([wave[first : first + round(scan.window * 16_000)]], task)
        rows.append([dict(zip(found.labels, found.probabilities, strict=True))[label] for label in labels])
    return torch.tensor(rows)


@pytest.mark.parametrize(("window", "hop"), [(1.0, None), (1.0, 0.4), (0.5, 0.7)])
def test_windows_answer_as_predict_does_on_the_same_samples(window, hop, small_bank):
    small_bank.add_task("sounds", "lora", num_classes=4, multilabel=True, clip_seconds=2.0)
    wave = 0.1 * torch.randn(16_000 * 7 + 4321)
    scan = small_bank.scan(wave, "all", window=window, hop=hop, batch_size=3, progress=False)
    assert scan.tasks == tuple(small_bank.tasks)
    for task in scan.tasks:
        expected = by_hand(small_bank, wave, task, scan)
        torch.testing.assert_close(scan.probabilities(task), expected, rtol=0, atol=1e-5)


@pytest.fixture(scope="module")
def instruments():
    """A bank that tells apart clips of the demo, because its prototypes are these clips; and one clip per class."""
    dataset = load_folder(demo_tasks()["instruments"])
    chosen = {}
    for index in range(len(dataset)):
        wave, label = dataset[index]
        if label in ("bass", "brass", "organ") and label not in chosen:
            chosen[label] = wave.repeat(3)[:16_000]
    bank = AdapterBank.from_pretrained(device="cpu")
    task = bank.add_task("instruments", "head", labels=sorted(chosen), head="linear")
    features = bank.embed([chosen[label] for label in task.labels])
    centred = features - features.mean(dim=0)
    (linear,) = (module for module in task.head.modules() if isinstance(module, torch.nn.Linear))
    with torch.no_grad():
        linear.weight.copy_(200 * centred / centred.norm(dim=1, keepdim=True).square())
        linear.bias.copy_(-linear.weight @ features.mean(dim=0))
    return bank, chosen


def test_events_of_a_recording_made_of_known_clips_begin_and_end_where_the_clips_do(instruments, tmp_path):
    bank, chosen = instruments
    score = ["bass", "bass", "organ", "brass", "brass", "brass", "bass", "organ"]
    file = tmp_path / "concert.flac"
    soundfile.write(file, torch.cat([chosen[label] for label in score]).numpy(), 16_000)
    scan = bank.scan(file, "instruments", window=1.0, progress=False)
    assert [(event.label, event.onset, event.offset) for event in scan.events()] == [
        ("bass", 0, 2),
        ("organ", 2, 3),
        ("brass", 3, 6),
        ("bass", 6, 7),
        ("organ", 7, 8),
    ]


def test_the_window_is_that_of_the_tasks_unless_it_is_given(small_bank):
    wave = 0.1 * torch.randn(16_000 * 13)
    assert small_bank.scan(wave, "notes", progress=False).window == 5.0
    for seconds in (0.8, 1.5):
        small_bank.add_task(f"of-{seconds}", "head", num_classes=2, clip_seconds=seconds)
    assert small_bank.scan(wave, "of-0.8", progress=False).window == 0.8
    both = small_bank.scan(wave, ["notes", "of-0.8", "of-1.5"], progress=False)
    assert (both.window, both.hop, len(both)) == (1.5, 1.5, 9)
    assert small_bank.scan(wave, "of-0.8", window=2, hop=1, progress=False).hop == 1.0


def test_without_a_window_it_is_as_long_as_the_clips_of_the_training(small_bank, tmp_path):
    wave = 0.1 * torch.randn(16_000 * 9)
    for seconds in (1.5, 4.0):
        name = f"of-{seconds}"
        small_bank.add_task(name, "head", labels=["a", "b"])
        fit(small_bank, name, [(0.1 * torch.randn(round(16_000 * seconds)), at % 2) for at in range(4)], steps=1)
    small_bank.add_task("padded", "head", num_classes=2, clip_seconds=2.0)
    small_bank.save(tmp_path / "bank")
    for bank in (small_bank, AdapterBank.load(tmp_path / "bank", small_bank.backbone)):
        names = ("of-1.5", "of-4.0", "padded", "notes")
        windows = {name: bank.scan(wave, name, progress=False).window for name in names}
        assert windows == {"of-1.5": 1.5, "of-4.0": 4.0, "padded": 2.0, "notes": 5.0}
        assert bank.scan(wave, ["of-1.5", "notes"], progress=False).window == 1.5  # what is not known does not count
        assert bank.scan(wave, ["of-1.5", "of-4.0"], progress=False).window == 4.0
        assert bank.scan(wave, "of-4.0", window=0.5, progress=False).window == 0.5


@pytest.mark.parametrize(("seconds", "window"), [(0.03, 0.1), (300.0, 60.0)])
def test_a_window_that_nobody_asked_for_is_within_what_a_scan_can_do(small_bank, seconds, window):
    small_bank.task("notes").trained_clip_seconds = seconds
    assert small_bank.scan(0.1 * torch.randn(16_000), "notes", progress=False).window == window


def test_a_short_recording_and_silence_have_answers(small_bank):
    for wave in (torch.zeros(16_000 * 3), 0.1 * torch.randn(3000), torch.zeros(400)):
        scan = small_bank.scan(wave, "notes", window=2.0, progress=False)
        assert scan.probabilities("notes").isfinite().all()
        assert float(scan.ends[-1]) == pytest.approx(scan.seconds, abs=0.01)


def test_a_recording_of_less_than_one_frame_is_refused_as_such_a_clip_is(small_bank):
    for wave in (torch.zeros(399), (torch.zeros(1000), 44_100)):
        with pytest.raises(WaveformError, match=r"holds 2[24].\d ms of sound, expected at least one window of 25 ms"):
            small_bank.scan(wave, "notes", window=2.0, progress=False)


def test_nan_is_refused_with_its_second_or_left_out_and_counted(small_bank):
    wave = 0.1 * torch.randn(16_000 * 8)
    wave[int(16_000 * 4.5)] = float("nan")
    with pytest.raises(WaveformError, match=r"nan at 4\.50 s"):
        small_bank.scan(wave, "notes", window=1.0, progress=False)
    with pytest.warns(SkippedClipsWarning, match=r"1 of 8 windows .* 4\.00 to 5\.00 s"):
        scan = small_bank.scan(wave, ["notes", "mix"], window=1.0, on_error="skip", progress=False)
    assert scan.skipped == ((4.0, 5.0),)
    clean = small_bank.scan(wave.nan_to_num(), "notes", window=1.0, progress=False).probabilities("notes")
    rows = [0, 1, 2, 3, 5, 6, 7]
    torch.testing.assert_close(scan.probabilities("notes")[rows], clean[rows], rtol=0, atol=1e-6)
    assert scan.probabilities("notes")[4].isnan().all()
    assert all(event.onset >= 5 or event.offset <= 4 for event in scan.events())


def test_of_a_recording_that_breaks_the_part_before_is_answered_on_request(small_bank, tmp_path):
    file = tmp_path / "field.wav"
    samples = np.random.default_rng(0).normal(0, 0.1, 16_000 * 30).astype(np.float32)
    soundfile.write(file, samples, 16_000)
    file.write_bytes(file.read_bytes()[: 44 + 2 * 16_000 * 21])
    with pytest.raises(AudioFileError, match=r"ends at 21\.0 s.*on_error='skip'"):
        small_bank.scan(file, "notes", window=2.0, progress=False)
    with pytest.warns(SkippedClipsWarning, match=r"up to 21\.0 s only"):
        scan = small_bank.scan(file, "notes", window=2.0, on_error="skip", progress=False)
    assert scan.seconds == 21.0
    assert "cut" in scan.fault
    whole = small_bank.scan(samples[: 16_000 * 21], "notes", window=2.0, progress=False)
    torch.testing.assert_close(scan.probabilities("notes"), whole.probabilities("notes"), rtol=0, atol=1e-3)


def test_samples_at_the_scale_of_integers_are_refused_with_their_second(small_bank):
    wave = torch.zeros(16_000 * 4)
    wave[16_000 * 3 + 8000] = 20_000.0
    with pytest.raises(WaveformError, match=r"2e\+04 at 3\.50 s.*32768"):
        small_bank.scan(wave, "notes", window=1.0, progress=False)
    with pytest.warns(SkippedClipsWarning, match="1 of 4 windows"):
        assert small_bank.scan(wave, "notes", window=1.0, on_error="skip", progress=False).skipped == ((3.0, 4.0),)


@pytest.mark.parametrize(
    ("options", "error"),
    [
        ({"tasks": "nobody"}, UnknownNameError),
        ({"tasks": []}, ConfigError),
        ({"tasks": ["notes", "notes"]}, ConfigError),
        ({"window": 0}, ConfigError),
        ({"hop": -1}, ConfigError),
        ({"on_error": "ignore"}, ConfigError),
        ({"batch_size": 0}, ConfigError),
        ({"sample_rate": 0}, ConfigError),
        ({"recording": "nowhere.wav"}, AudioFileError),
    ],
)
def test_impossible_questions_are_refused_before_anything_is_read(options, error, small_bank):
    def unread():
        pytest.fail("the stream was read")
        yield

    with pytest.raises(error):
        small_bank.scan(**{"recording": unread(), "tasks": "notes", "progress": False, **options})


def test_a_stream_is_answered_like_the_waveform(small_bank):
    wave = 0.1 * torch.randn(16_000 * 5)
    streamed = small_bank.scan((block for block in wave.split(1000)), "notes", window=1.0, progress=False)
    whole = small_bank.scan(wave, "notes", window=1.0, progress=False)
    torch.testing.assert_close(streamed.probabilities("notes"), whole.probabilities("notes"), rtol=0, atol=1e-6)
    with pytest.raises(WaveformError, match="no samples"):
        small_bank.scan(iter([]), "notes", progress=False)


def test_memory_does_not_grow_with_the_recording(small_bank):
    alive = []

    def noise(seconds):
        block = 0.1 * torch.randn(160_000)
        for place in range(0, seconds, 10):
            yield block
            if place % 60 == 50:
                alive.append(bytes_of_tensors())

    gc.collect()
    before = [thing for thing in gc.get_objects() if type(thing) is torch.Tensor]  # what other tests still hold

    def bytes_of_tensors():
        known = {id(tensor) for tensor in before}
        tensors = [thing for thing in gc.get_objects() if type(thing) is torch.Tensor and id(thing) not in known]
        return sum({x.untyped_storage().data_ptr(): x.untyped_storage().nbytes() for x in tensors}.values())

    peaks = []
    for seconds in (60, 360):
        alive.clear()
        tracemalloc.start()  # what Python and numpy allocate
        small_bank.scan(noise(seconds), "probe", window=5.0, batch_size=4, progress=False)
        peaks.append((tracemalloc.get_traced_memory()[1], max(alive)))
        tracemalloc.stop()
    (short, short_tensors), (long, long_tensors) = peaks
    assert len(alive) == 6
    assert long < short + 2**20
    assert long_tensors < short_tensors + 2**21


def test_a_calibrated_task_names_in_a_scan_the_labels_that_predict_names(small_bank):
    task = small_bank.add_task("sounds", "lora", num_classes=3, multilabel=True, clip_seconds=1.0)
    wave = 0.1 * torch.randn(16_000)
    probabilities = small_bank.scan(wave, "sounds", progress=False).probabilities("sounds")[0].tolist()
    task.calibration = Calibration(1.0, tuple(p + d for p, d in zip(probabilities, (0.05, -0.05, -0.05), strict=True)))
    (said,) = small_bank.predict([wave], "sounds")
    scanned = [event.label for event in small_bank.scan(wave, "sounds", progress=False).events()]
    assert set(said.present) == set(scanned) == set(task.labels[1:])
