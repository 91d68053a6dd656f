"""Clips, data sets and labels as people bring them: each row of the table that was tried, and the right answer."""

from __future__ import annotations

import array
import io
from collections import deque

import numpy as np
import pytest
import soundfile
import torch
from torch.utils.data import DataLoader, TensorDataset

from adapterbank.audio.clips import LONGEST_SECONDS, windows
from adapterbank.errors import AdapterBankError, LabelsError, SkippedClipsWarning, WaveformError
from adapterbank.training.fit import fit

pd = pytest.importorskip("pandas")  # MLflow brings it

QUICK = {"epochs": 1, "progress": False, "batch_size": 4}
WAVES = torch.randn(4, 8000, generator=torch.Generator().manual_seed(3)) / 10
NAMES = ["bass", "organ", "bass", "organ"]


@pytest.fixture
def bank(small_bank):
    small_bank.add_task("new", "head", labels=["bass", "organ"])
    return small_bank


@pytest.fixture
def file(tmp_path):
    soundfile.write(tmp_path / "one.wav", WAVES[0].numpy(), 16_000, subtype="FLOAT")
    return tmp_path / "one.wav"


def test_every_call_takes_a_file_a_waveform_and_a_dict_as_one_row(bank, file):
    expected = bank(WAVES[:1], "new")
    for clip in (file, str(file), WAVES[0], WAVES[0].numpy(), (WAVES[0], 16_000), (WAVES[0], 16_000, 0)):
        torch.testing.assert_close(bank(clip, "new"), expected, rtol=0, atol=1e-6)
        assert bank.embed(clip).shape == (1, 48)
        assert bank.ask(clip, ["new", "notes"])["new"].shape == (1, 2)
        assert len(bank.predict(clip, "new")) == 1
    row = {"audio": {"array": WAVES[0].numpy(), "sampling_rate": 16_000}, "label": 1}
    torch.testing.assert_close(bank(row, "new"), expected, rtol=0, atol=1e-6)


def test_one_bad_clip_does_not_lose_the_others_in_any_call(bank):
    given = [WAVES[0], "gone.wav", WAVES[1]]
    calls = {
        "call": lambda x, **o: bank(x, "new", **o),
        "ask": lambda x, **o: bank.ask(x, ["new", "notes"], **o)["notes"],
        "embed": lambda x, **o: bank.embed(x, **o),
    }
    for name, call in calls.items():
        with pytest.raises(AdapterBankError, match="clip 1: gone.wav"):
            call(given)
        with pytest.warns(SkippedClipsWarning, match="1 of 3 clips was left out. clip 1: gone.wav"):
            found = call(given, on_error="skip")
        assert found[1].isnan().all(), name
        torch.testing.assert_close(found[[0, 2]], call(WAVES[:2]), rtol=0, atol=1e-5)
    with pytest.warns(SkippedClipsWarning):
        predicted = bank.predict(given, "new", on_error="skip")
    assert [one is None for one in predicted] == [False, True, False]


@pytest.mark.parametrize(
    "data",
    [
        [(wave[None], 16_000, name, "speaker", 0) for wave, name in zip(WAVES, NAMES, strict=True)],
        [
            {"audio": {"array": wave.numpy(), "sampling_rate": 16_000}, "label": name}
            for wave, name in zip(WAVES, NAMES, strict=True)
        ],
        DataLoader(TensorDataset(WAVES, torch.tensor([0, 1, 0, 1])), batch_size=3),
        (WAVES, NAMES),
        [(wave, hot) for wave, hot in zip(WAVES, np.eye(2)[[0, 1, 0, 1]], strict=True)],
    ],
    ids=["torchaudio", "rows", "loader", "batch", "one-hot"],
)
def test_every_data_set_trains_and_evaluates_as_pairs_do(data, bank):
    pairs = list(zip(WAVES, NAMES, strict=True))
    assert dict(bank.evaluate("new", data)) == dict(bank.evaluate("new", pairs))
    before = {name: tensor.clone() for name, tensor in bank.task("new").state_dict().items()}
    fit(bank, "new", data, **QUICK)
    after = bank.task("new").state_dict()
    assert any(not torch.equal(before[name], after[name]) for name in before)


def test_samples_that_were_never_divided_by_their_range_are_refused(bank):
    for scale in (32768, 1e20):
        with pytest.raises(WaveformError, match="clip 0: got samples up to"):
            bank(WAVES * scale, "new")
        with pytest.raises(WaveformError, match="item 0: got samples up to"):
            fit(bank, "new", list(zip(WAVES * scale, NAMES, strict=True)), **QUICK)


def test_six_milliseconds_are_no_clip(bank):
    with pytest.raises(WaveformError, match="6 ms; expected at least one window of 25 ms"):
        bank.predict(WAVES[0][:96], "new")


@pytest.mark.filterwarnings("ignore::adapterbank.errors.UntrainedClassesWarning")
def test_a_long_clip_is_the_mean_of_its_windows(bank):
    long = torch.randn(int(16_000 * LONGEST_SECONDS * 1.2)) / 10
    pieces = windows(long, 16_000)
    assert len(pieces) == 2
    apart = torch.stack([bank([piece], "new")[0] for piece in pieces]).mean(dim=0)
    torch.testing.assert_close(bank([WAVES[0], long], "new")[1], apart, rtol=0, atol=1e-5)
    with pytest.raises(WaveformError, match="crop_seconds"):
        fit(bank, "new", [(long, "bass")], **QUICK)
    fit(bank, "new", [(long, "bass")], crop_seconds=1.0, **QUICK)


def test_a_wrong_label_is_found_with_its_item_before_training(bank):
    with pytest.raises(LabelsError, match="item 2: the data has the label 'drum'"):
        fit(bank, "new", list(zip(WAVES, ["bass", "organ", "drum", "bass"], strict=True)), **QUICK)


def test_labels_in_no_order_are_refused(small_bank):
    with pytest.raises(LabelsError, match="has no order"):
        small_bank.add_task("x", "head", labels={"a", "b"})
    assert small_bank.add_task("y", "head", labels={0: "a", 1: "b"}).labels == ("a", "b")
    assert small_bank.add_task("z", "head", labels=(name for name in "ab")).labels == ("a", "b")


# -- other forms of a clip, a batch and a label ----------------------------------------------------------------------


SAMPLES = WAVES[0].tolist()
FORMS = {
    "a list of floats": lambda file: SAMPLES,
    "a tuple of NumPy's floats": lambda file: tuple(WAVES[0].numpy()),
    "array.array": lambda file: array.array("f", SAMPLES),
    "an array of objects": lambda file: np.array(SAMPLES, dtype=object),
    "a list with its rate": lambda file: (SAMPLES, 16_000),
    "a list of one list": lambda file: [SAMPLES],
    "pandas.Series": lambda file: pd.Series(SAMPLES),
    "bytes in reverse order": lambda file: WAVES[0].numpy().astype(">f4"),
    "a view from back to front": lambda file: WAVES[0].numpy()[::-1][::-1],
    "a parameter": lambda file: torch.nn.Parameter(WAVES[0].clone()),
    "a file URL": lambda file: file.as_uri(),
    "an open SoundFile": soundfile.SoundFile,
    "file_name of Hugging Face": lambda file: {"file_name": str(file), "label": 1},
    "a rate called fs": lambda file: {"samples": WAVES[0], "fs": 16_000},
}


@pytest.mark.parametrize("form", FORMS)
def test_every_form_of_a_clip_is_the_same_clip(form, bank, file):
    torch.testing.assert_close(bank.embed(FORMS[form](file)), bank.embed(WAVES[:1]), rtol=0, atol=1e-5)


def test_a_rate_by_any_of_its_names_is_no_other_rate(bank):
    expected = bank.embed(WAVES[:1], sample_rate=8_000)
    for key in ("sampling_rate", "sample_rate", "sr", "rate", "samplerate", "fs"):
        torch.testing.assert_close(bank.embed({"array": WAVES[0], key: 8_000}), expected, rtol=0, atol=0)


def test_a_batch_of_a_data_loader_is_its_clips(bank):
    rows = [{"audio": {"array": wave, "sampling_rate": 16_000}, "label": 1} for wave in WAVES]
    nested = torch.nested.nested_tensor(list(WAVES), layout=torch.jagged)
    batches = [
        next(iter(DataLoader(TensorDataset(WAVES, torch.arange(4) % 2), batch_size=4))),
        (WAVES, NAMES),
        next(iter(DataLoader(rows, batch_size=4))),
        nested,
    ]
    for batch in batches:
        torch.testing.assert_close(bank.embed(batch), bank.embed(WAVES), rtol=0, atol=1e-5)


@pytest.mark.parametrize(
    ("clip", "message"),
    [
        (WAVES[0].to_sparse(), "layout torch.sparse_coo"),
        (torch.empty(8000, device="meta"), "on meta"),
        (np.ma.masked_greater(WAVES[0].numpy(), 0.1), "masked"),
        ([1, 2, 3] * 3000, "samples of type int64, expected floating point"),
        (WAVES[0].to(torch.complex64), "samples of type complex64"),
        (WAVES[0] > 0, "samples of type bool"),
        (torch.stack([WAVES[0]] * 2, dim=1), r"\(T, channels\), as soundfile gives it"),
        ("http://example.com/dog.wav", "an address on the network.*Download it first"),
        ("s3://bucket/dog.wav", "an address on the network"),
        ("recordings/*.wav", "looks like a pattern: pass sorted"),
    ],
)
def test_what_holds_no_samples_is_refused_with_what_to_do(clip, message, bank):
    with pytest.raises(AdapterBankError, match=message):
        bank.predict(clip, "new")


def test_a_path_that_is_nearly_right_names_the_file(bank, file):
    for given, meant in [
        (f" {file}\n", "without the blanks or quotes around it: '.*one.wav'"),
        (f'"{file}"', "without the blanks or quotes"),
        (file.with_name("ONE.WAV"), "Did you mean 'one.wav' there"),
        (file.with_name("onee.wav"), "Did you mean 'one.wav' there"),
        (file.parent, "is a folder.*glob"),
    ]:
        with pytest.raises(AdapterBankError, match=meant):
            bank.predict(given, "new")


def test_a_stream_at_its_end_says_so(bank, file):
    content = io.BytesIO(file.read_bytes())
    assert len(bank.predict(content, "new")) == 1
    with pytest.raises(AdapterBankError, match=r"nothing left to read.*seek\(0\)"):
        bank.predict(content, "new")


def test_labels_in_any_collection_mean_the_same(small_bank):
    small_bank.add_task("several", "head", labels=["a", "b", "c"], multilabel=True)
    row = torch.tensor([1.0, 0, 1])
    for labels in ({"a": 1, "c": 2}.keys(), deque(["a", "c"]), pd.Series(["a", "c"]), range(0, 3, 2), row.to_sparse()):
        result = small_bank.evaluate("several", [(WAVES[0], labels)])
        expected = small_bank.evaluate("several", [(WAVES[0], row)]).metrics
        assert result.metrics == pytest.approx(expected, nan_ok=True)
    with pytest.raises(LabelsError, match="item 0"):  # its names stand in another order than the classes
        small_bank.evaluate("several", [(WAVES[0], pd.Series([1, 1, 0], index=["c", "a", "b"]))])


def test_a_label_with_an_axis_of_one_is_its_index(bank):
    plain = bank.evaluate("new", [(wave, index % 2) for index, wave in enumerate(WAVES)])
    found = bank.evaluate("new", [(wave, torch.tensor([index % 2])) for index, wave in enumerate(WAVES)])
    assert found.metrics == plain.metrics


def test_the_last_batch_of_a_loader_and_one_of_several_labels_are_their_clips(bank):
    waves = torch.randn(3, 16_000, generator=torch.Generator().manual_seed(0)) / 10
    expected = bank.embed(waves)
    rows = torch.eye(800)[:3]
    assert torch.equal(bank.embed([waves, rows]), expected)
    assert torch.equal(bank.embed((waves, rows.int())), expected)
    assert torch.allclose(bank.embed([waves[:1], torch.tensor([3])]), expected[:1], atol=1e-5)


def test_two_silent_clips_are_no_batch_with_labels(bank):
    clips = [torch.full((2, 16_000), 0.1), torch.zeros(2, 16_000)]
    assert bank.embed(clips).shape[0] == 2


def test_a_list_of_numbers_with_something_else_in_it_is_no_clip(bank):
    with pytest.raises(WaveformError, match="expected samples"):
        bank.embed([0.1] * 3000 + [[1, 2]])
