"""What is a data set: every form gives the same pairs, labels keep their meaning, and errors name the item."""

from __future__ import annotations

import warnings

import numpy as np
import pytest
import soundfile
import torch
from torch.utils.data import ConcatDataset, DataLoader, Dataset, IterableDataset, Subset, TensorDataset

from adapterbank.data import load_folder
from adapterbank.data.pairs import pairs_of, read_pairs
from adapterbank.errors import AudioFileError, DatasetError, LabelsError, WaveformError

NAMES = ["dog", "cat", "dog"]


@pytest.fixture(scope="module")
def waves():
    """Three clips of 0.1 s at 16 kHz, in steps of 16 bits."""
    noise = torch.randn(3, 1600, generator=torch.Generator().manual_seed(2)).clamp(-4, 4) / 5
    return (noise * 32768).round() / 32768


@pytest.fixture(scope="module")
def files(waves, tmp_path_factory):
    folder = tmp_path_factory.mktemp("pairs")
    for place, (wave, name) in enumerate(zip(waves, NAMES, strict=True)):
        (folder / name).mkdir(exist_ok=True)
        soundfile.write(folder / name / f"{place}.wav", wave.numpy(), 16_000, subtype="PCM_16")
    return [folder / name / f"{place}.wav" for place, name in enumerate(NAMES)]


class Items(Dataset):
    def __init__(self, items, classes=None):
        self.items = items
        if classes:
            self.classes = classes

    def __len__(self):
        return len(self.items)

    def __getitem__(self, index):
        return self.items[index]


class Stream(IterableDataset):
    def __init__(self, items):
        self.items = items

    def __iter__(self):
        return iter(self.items)


def hf(files, label, **columns):
    datasets = pytest.importorskip("datasets")
    features = {"audio": datasets.Value("string"), **{name: kind for name, (kind, _) in columns.items()}}
    values = {"audio": [str(file) for file in files], **{name: value for name, (_, value) in columns.items()}}
    features["label"], values["label"] = label
    data = datasets.Dataset.from_dict(values, features=datasets.Features(features))
    return data.cast_column("audio", datasets.Audio())


def class_label(names):
    return pytest.importorskip("datasets").ClassLabel(names=names)


def forms(waves, files):
    pairs = list(zip(waves, NAMES, strict=True))
    yield "list", pairs
    yield "generator", iter(pairs)
    yield "paths", list(zip(files, NAMES, strict=True))
    yield "dict of paths", dict(zip(map(str, files), NAMES, strict=True))
    yield "waveforms with rates", [((wave, 16_000), name) for wave, name in pairs]
    yield "torchaudio", [(wave[None], 16_000, name, "speaker", 3) for wave, name in pairs]
    yield "torch data set", Items(pairs)
    yield "iterable data set", Stream(pairs)
    yield "rows", [{"audio": {"array": wave.numpy(), "sampling_rate": 16_000}, "label": name} for wave, name in pairs]
    yield "columns", {"audio": [{"path": file} for file in files], "category": NAMES}
    yield "loader", DataLoader(Items(pairs), batch_size=2)
    yield "loader with its own collate", DataLoader(Items(pairs), 2, collate_fn=lambda b: tuple(zip(*b, strict=True)))
    yield "loader of an iterable data set", DataLoader(Stream(pairs), batch_size=2)
    yield "one batch", (waves, NAMES)
    yield "one batch with a channel", [waves[:, None], tuple(NAMES)]
    yield "two lists", (list(waves), NAMES)
    yield "two lists of paths", (files, NAMES)
    yield "folder", load_folder(files[0].parent.parent).subset(indices=[1, 0, 2])  # sorted: cat/1, dog/0, dog/2
    yield "integers that count classes", Items([(wave, int(name == "dog")) for wave, name in pairs], ["cat", "dog"])
    numbered = Items([(waves[place], int(NAMES[place] == "dog")) for place in (2, 1, 0)], ["cat", "dog"])
    yield "subset of them", Subset(numbered, [2, 1, 0])


def test_every_form_gives_the_same_pairs_by_number_and_one_after_another(waves, files):
    for name, data in forms(waves, files):
        if name in ("generator",):
            data = list(data)
        found = list(read_pairs(data))
        assert [number for number, _, _ in found] == [0, 1, 2], name
        pairs = pairs_of(data)
        assert len(pairs) == 3
        for place, (_, wave, label) in enumerate(found):
            torch.testing.assert_close(wave, waves[place], rtol=0, atol=0, msg=name)
            assert label == NAMES[place], name
            assert torch.equal(pairs[place][0], wave)
            assert pairs[place][1] == label
        known = pairs.labels()
        assert known is None or known == NAMES, name
        assert pairs_of(pairs) is pairs


def test_a_generator_is_read_once(waves):
    data = (pair for pair in zip(waves, NAMES, strict=True))
    pairs = pairs_of(data)
    assert [pairs[index][1] for index in (2, 1, 0)] == ["dog", "cat", "dog"]


def test_a_datasets_dataset_is_read_by_the_names_of_its_classes(waves, files):
    for order in (["cat", "dog"], ["dog", "cat"]):
        data = hf(files, (class_label(order), [order.index(name) for name in NAMES]))
        for given in (data, Subset(data, [0, 1, 2]), data.with_format("torch"), DataLoader(data, batch_size=2)):
            found = pairs_of(given)
            assert [found[index][1] for index in range(3)] == NAMES
            assert torch.equal(found[1][0], waves[1])
            assert found.labels() == NAMES


def test_a_streamed_dataset_is_read_by_the_names_of_its_classes(waves, files):
    data = hf(files, (class_label(["dog", "cat"]), [0, 1, 0])).to_iterable_dataset()
    assert [label for _, _, label in read_pairs(data)] == NAMES


def test_a_column_of_classes_needs_no_certain_name(files):
    datasets = pytest.importorskip("datasets")
    data = hf(files, (class_label(["dog", "cat"]), [0, 1, 0]), text=(datasets.Value("string"), ["x", "y", "z"]))
    assert [label for _, _, label in read_pairs(data.rename_column("label", "intent_class"))] == NAMES
    with pytest.raises(LabelsError, match=r"item 0: got no label in the columns audio, text.*rename_column"):
        next(read_pairs(data.remove_columns("label")))


def test_several_labels_of_a_clip_are_named_too(files):
    datasets = pytest.importorskip("datasets")
    several = (datasets.List(class_label(["dog", "cat"])), [[0], [1, 0], []])
    assert [label for _, _, label in read_pairs(hf(files, several))] == [("dog",), ("cat", "dog"), ()]


def test_a_class_label_without_a_value_is_named(files):
    data = hf(files, (class_label(["dog", "cat"]), [0, -1, 1]))
    with pytest.raises(LabelsError, match="item 1: got the label -1, expected 0 to 1"):
        list(read_pairs(data))


def test_joined_data_sets_whose_integers_mean_other_classes_are_refused(files):
    one, two = (hf(files, (class_label(order), [0, 1, 0])) for order in (["dog", "cat"], ["cat", "dog"]))
    assert len(pairs_of(ConcatDataset([one, one]))) == 6
    with pytest.raises(DatasetError, match="column 'label' counts other classes in each"):
        pairs_of(ConcatDataset([one, two]))


def test_a_table_of_pandas_is_rows(waves, files):
    pandas = pytest.importorskip("pandas")
    table = pandas.DataFrame({"path": [str(file) for file in files], "label": NAMES}, index=[5, 6, 7])
    found = pairs_of(table)
    assert found.labels() == NAMES
    assert torch.equal(found[2][0], waves[2])


def test_labels_of_tensors_are_known_without_reading(waves):
    pairs = pairs_of(TensorDataset(waves, torch.tensor([2, 0, 1])))
    assert [int(label) for label in pairs.labels()] == [2, 0, 1]
    assert pairs_of(Items([(waves[0], "dog")])).labels() is None


def test_a_folder_of_another_rate_is_read_at_that_rate(files):
    folder = load_folder(files[0].parent.parent, sample_rate=8000)
    wave, _ = pairs_of(Subset(folder, [0]))[0]
    assert len(wave) == 1600  # 0.1 s at 16 kHz


BAD = {
    "a path": ("clips/", DatasetError, "got str as a data set.*load_folder"),
    "a number": (3, DatasetError, "got int as a data set"),
    "clips without labels": (
        [torch.zeros(1600)] * 2,
        DatasetError,
        "item 0: got Tensor of shape .*expected .clip, label",
    ),
    "paths without labels": (["a.wav", "b.wav"], DatasetError, "item 0: got str 'a.wav', expected"),
    "a length in the place of the rate": (
        [(torch.zeros(15_872), 15_872, 1)],
        DatasetError,
        "item 0: .*whose second is 15872: a label, a length or a sample rate",
    ),
    "batches of a loader in a list": (
        [(torch.zeros(4, 1600), torch.zeros(4))],
        DatasetError,
        "item 0: got 4 clips and 4 labels as one item, which looks like a batch",
    ),
    "splits": (
        {"train": TensorDataset(torch.zeros(1)), "test": 1},
        DatasetError,
        r"expected one of them.*data\['train'\]",
    ),
    "a row without sound": (
        [{"text": "x", "label": 1}],
        DatasetError,
        "item 0: got a row with the columns text, label",
    ),
    "a missing label": ([{"audio": torch.zeros(1600), "label": None}], LabelsError, "item 0: got no label"),
    "a file that is gone": ([("gone.wav", 1)], AudioFileError, "item 0: gone.wav does not exist"),
    "a short clip": ([(torch.zeros(1600), 0), (torch.zeros(96), 0)], WaveformError, "item 1: got a clip of 96 samples"),
}


@pytest.mark.parametrize(("data", "error", "message"), BAD.values(), ids=BAD)
def test_what_is_no_data_set_is_refused_with_the_number_of_the_item(data, error, message):
    with pytest.raises(error, match=message):
        list(read_pairs(data))


def test_what_cannot_be_read_is_left_out_and_written_down(waves):
    class Broken(Items):
        def __getitem__(self, index):
            if index == 1:
                raise OSError("disk")
            return super().__getitem__(index)

    failed = {}
    data = Broken([(waves[0], "a"), (waves[1], "b"), ("gone.wav", "c"), (np.zeros(1600), "d")])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = [(number, label) for number, _, label in read_pairs(data, "skip", failed)]
    assert found == [(0, "a"), (3, "d")]
    assert list(failed) == [1, 2]
    with pytest.raises(OSError, match="disk"):
        list(read_pairs(data))


def test_a_dict_of_lists_by_split_is_no_data_set():
    pairs = [(torch.zeros(16_000), "a"), (torch.zeros(16_000), "b")]
    with pytest.raises(DatasetError, match=r"got a dict of data sets \(train, test\), expected one of them"):
        pairs_of({"train": pairs, "test": pairs})
