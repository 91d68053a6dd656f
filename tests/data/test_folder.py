from __future__ import annotations

import copy
import pickle
import subprocess
import sys
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
from torch.utils.data import DataLoader

from adapterbank.data import FolderDataset, demo_tasks, load_folder, read_audio, standard_splits
from adapterbank.errors import AdapterBankError, AudioFileError, ConfigError, DatasetError, UnknownNameError


def clip(file: Path, seed: int = 0) -> None:
    """A tenth of a second of noise."""
    file.parent.mkdir(parents=True, exist_ok=True)
    soundfile.write(file, np.random.default_rng(seed).standard_normal(1600) * 0.1, 16_000)


def table(root: Path, text: str, name: str = "metadata.csv", make: bool = True) -> Path:
    """Write a table, and a clip for every cell that looks like a file name."""
    (root / name).parent.mkdir(parents=True, exist_ok=True)
    (root / name).write_text(text, encoding="utf-8")
    for seed, cell in enumerate(text.replace("\n", ",").split(",")):
        if make and cell.strip().endswith((".wav", ".flac")):
            clip(root / cell.strip(), seed)
    return root


def group_names(dataset: FolderDataset) -> set[str]:
    return {part for group in dataset.groups for part in group.split(";")}


# --- layouts ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", list(demo_tasks()))
def test_demo_tasks_are_read_with_their_own_splits(name: str) -> None:
    dataset = load_folder(demo_tasks()[name])
    assert dataset.name == name
    assert not dataset.multilabel
    assert dataset.labels == tuple(sorted(set(dataset.targets)))
    train, val, test = standard_splits(dataset)
    assert [Counter(part.splits) for part in (train, val, test)] == [
        Counter(train=len(train)),
        Counter(val=len(val)),
        Counter(test=len(test)),
    ]
    assert len(train) + len(val) + len(test) == len(dataset)
    assert train.labels == val.labels == test.labels == dataset.labels


def test_an_item_is_the_decoded_file_and_its_label_and_never_changes() -> None:
    dataset = load_folder(demo_tasks()["mandarin_tones"], split="val")
    wave, label = dataset[3]
    torch.testing.assert_close(wave, read_audio(dataset.files[3]), rtol=0, atol=0)
    assert label == dataset.targets[3]
    kept = wave.clone()
    wave.zero_()
    torch.testing.assert_close(dataset[3][0], kept, rtol=0, atol=0)


def test_class_folders_are_the_labels(tmp_path: Path) -> None:
    for name in ("dog/b.wav", "dog/a.FLAC", "cat/1.wav", "_background_noise_/hum.wav", "dog/._a.wav"):
        clip(tmp_path / name)
    (tmp_path / "dog" / "notes.txt").write_text("not audio")
    dataset = load_folder(tmp_path)
    assert dataset.labels == ("cat", "dog")
    assert [(file.name, target) for file, target in zip(dataset.files, dataset.targets, strict=True)] == [
        ("1.wav", "cat"),
        ("a.FLAC", "dog"),
        ("b.wav", "dog"),
    ]
    assert len(set(dataset.groups)) == 3
    assert dataset.fold_names == ()


def test_train_and_test_folders_are_splits(tmp_path: Path) -> None:
    for part in ("train", "Validation", "test"):
        for label in ("dog", "cat"):
            clip(tmp_path / part / label / "1.wav")
    train, val, test = standard_splits(load_folder(tmp_path))
    assert [part.files[0].parts[-3] for part in (train, val, test)] == ["train", "Validation", "test"]


def test_speech_commands_keeps_its_own_lists(tmp_path: Path) -> None:
    for word in ("yes", "no"):
        for speaker in ("a", "b", "c"):
            clip(tmp_path / word / f"{speaker}_nohash_0.wav")
    (tmp_path / "validation_list.txt").write_text("yes/b_nohash_0.wav\nno/b_nohash_0.wav\n")
    (tmp_path / "testing_list.txt").write_text("yes/c_nohash_0.wav\n")
    parts = standard_splits(load_folder(tmp_path))
    assert [sorted(file.name[0] for file in part.files) for part in parts] == [["a", "a", "c"], ["b", "b"], ["c"]]


@pytest.mark.parametrize(
    "header", ["filename,label", "file,category", "path,class", "slice_file_name,class", "File,Label"]
)
def test_any_table_with_a_file_and_a_label_column_is_read(tmp_path: Path, header: str) -> None:
    table(tmp_path, f"{header}\na.wav,dog\nb.wav,cat\n", name="list.csv")
    for place in (tmp_path, tmp_path / "list.csv"):
        dataset = load_folder(place)
        assert dataset.targets == ("dog", "cat")
        assert [file.name for file in dataset.files] == ["a.wav", "b.wav"]


def test_a_table_from_a_spreadsheet_is_read(tmp_path: Path) -> None:
    table(tmp_path, '\ufefffilename,label\r\n a.wav , "dog, big"\r\n\r\nb.wav,cät\r\n', make=False)
    clip(tmp_path / "a.wav")
    clip(tmp_path / "b.wav")
    (tmp_path / "metadata.csv").write_text('\ufefffilename,label\r\na.wav,"dog, big"\r\n,\r\nb.wav, cät\r\n', "utf-8")
    assert load_folder(tmp_path).targets == ("dog, big", "cät")


def test_semicolons_make_a_task_multilabel_unless_told_otherwise(tmp_path: Path) -> None:
    table(tmp_path, "filename,label\na.wav,dog;cat\nb.wav,cat\n")
    dataset = load_folder(tmp_path)
    assert dataset.multilabel
    assert dataset.targets == (("dog", "cat"), ("cat",))
    assert dataset.labels == ("cat", "dog")
    assert load_folder(tmp_path, multilabel=False).labels == ("cat", "dog;cat")
    table(tmp_path, "filename,label\na.wav,dog\nb.wav,\n")
    assert load_folder(tmp_path, multilabel=True).targets == (("dog",), ())


@pytest.mark.parametrize(
    "pack", ["esc50", "urbansound8k", "gtzan_mini", "fsd_instruments", "instrument_mix_multilabel"]
)
def test_packs_are_split_by_fold_without_sharing_a_source(shared_data: Path, pack: str) -> None:
    dataset = load_folder(shared_data / pack)
    assert dataset.multilabel == (pack == "instrument_mix_multilabel")
    train, val, test = standard_splits(dataset)
    folds = dataset.fold_names
    assert folds == tuple(sorted(folds, key=int))
    assert (set(test.folds), set(val.folds), set(train.folds)) == ({folds[-1]}, {folds[-2]}, set(folds[:-2]))
    shared = group_names(train) & (group_names(val) | group_names(test)) | group_names(val) & group_names(test)
    assert shared == ({"fs209698", "fs234879"} if pack == "esc50" else set())  # ESC-50's official folds share these two
    assert isinstance(test[0][1], tuple) == dataset.multilabel


@pytest.mark.slow  # writes 2,300 wav files
def test_official_layouts_are_read_as_they_are_unpacked(shared_data: Path, tmp_path: Path) -> None:
    only = ["urbansound8k", "speech_commands_v1_words", "gtzan_mini"]
    command = [sys.executable, str(shared_data / "layout.py"), "--out", str(tmp_path), "--only", *only]
    subprocess.run(command, check=True, capture_output=True)
    urban = load_folder(tmp_path / "UrbanSound8K")
    assert (len(urban), urban.fold_names) == (1171, ("1", "2", "10"))
    assert Counter(urban.targets) == Counter(load_folder(shared_data / "urbansound8k").targets)
    assert load_folder(tmp_path / "UrbanSound8K" / "metadata" / "UrbanSound8K.csv").files == urban.files
    speech = load_folder(tmp_path / "SpeechCommands" / "speech_commands_v0.01")
    folds = Counter(load_folder(shared_data / "speech_commands_v1_words").folds)
    assert Counter(speech.splits) == Counter(
        train=folds["1"] + folds["2"] + folds["3"], val=folds["4"], test=folds["5"]
    )
    assert Counter(load_folder(tmp_path / "genres").targets) == Counter(load_folder(shared_data / "gtzan_mini").targets)


def test_esc50s_own_table_is_found_below_meta(tmp_path: Path) -> None:
    header = "filename,fold,target,category,esc10,src_file,take"
    table(
        tmp_path, f"{header}\n1-10-A-0.wav,1,0,dog,True,10,A\n2-10-A-1.wav,2,1,rooster,,10,A\n", "meta/esc50.csv", False
    )
    for name in ("1-10-A-0.wav", "2-10-A-1.wav"):
        clip(tmp_path / "audio" / name)
    dataset = load_folder(tmp_path)
    assert dataset.targets == ("dog", "rooster")
    assert dataset.folds == ("1", "2")
    assert dataset.groups == ("10", "10")
    assert load_folder(tmp_path / "meta" / "esc50.csv").files[0].samefile(dataset.files[0])


def test_urbansound8ks_files_are_found_in_their_fold_folders(tmp_path: Path) -> None:
    header = "slice_file_name,fsID,start,end,salience,fold,classID,class"
    lines = "7-0-0-0.wav,7,0,4,1,1,0,air_conditioner\n8-1-0-0.wav,8,0,4,1,10,1,car_horn\n"
    table(tmp_path, f"{header}\n{lines}", "metadata/UrbanSound8K.csv", make=False)
    clip(tmp_path / "audio" / "fold1" / "7-0-0-0.wav")
    clip(tmp_path / "audio" / "fold10" / "8-1-0-0.wav")
    dataset = load_folder(tmp_path)
    assert dataset.labels == ("air_conditioner", "car_horn")
    assert dataset.groups == ("7", "8")
    assert load_folder(tmp_path / "metadata" / "UrbanSound8K.csv").folds == ("1", "10")


# --- subsets and splits ----------------------------------------------------------------------------------------------


def many(tmp_path: Path, groups: int = 30, per_group: int = 3) -> FolderDataset:
    """Three classes of 60, 30 and 10 % of the groups."""
    lines = [f"g{g}_{i}.wav,{'aaaaaabbbc'[g % 10]},g{g}" for g in range(groups) for i in range(per_group)]
    return load_folder(table(tmp_path, "filename,label,group\n" + "\n".join(lines) + "\n"))


@pytest.mark.parametrize("seed", range(5))
def test_drawn_splits_keep_groups_together_and_classes_balanced(tmp_path: Path, seed: int) -> None:
    dataset = many(tmp_path)
    parts = dataset.split(val_fraction=0.2, test_fraction=0.2, seed=seed)
    assert sorted(file for part in parts for file in part.files) == sorted(dataset.files)
    for a, b in ((0, 1), (0, 2), (1, 2)):
        assert not group_names(parts[a]) & group_names(parts[b])
    for part, share in zip(parts, (0.6, 0.2, 0.2), strict=True):
        for label, clips in (("a", 54), ("b", 27), ("c", 9)):
            assert abs(Counter(part.targets)[label] - share * clips) <= 3  # one group


def test_the_seed_alone_decides_a_drawn_split(tmp_path: Path) -> None:
    dataset = many(tmp_path)
    first, again, other = (dataset.split(seed=seed)[0].files for seed in (1, 1, 2))
    assert first == again
    assert first != other


def test_a_clip_of_two_groups_ties_them_together(tmp_path: Path) -> None:
    lines = "a.wav,x,1\nb.wav,y,2\nc.wav,x;y,1;2\nd.wav,x,3\ne.wav,y,4\nf.wav,x,5\n"
    parts = load_folder(table(tmp_path, "filename,label,group\n" + lines)).group_folds(3)
    holder = next(part for part in parts if "1;2" in part.groups)
    assert {"1", "2", "1;2"} <= set(holder.groups)


def test_group_folds_of_the_demo_clips_cover_them_once() -> None:
    dataset = load_folder(demo_tasks()["instruments"])
    parts = dataset.group_folds(5)
    assert sorted(file for part in parts for file in part.files) == sorted(dataset.files)
    assert max(len(part) for part in parts) - min(len(part) for part in parts) <= 20
    assert sum(len(group_names(part)) for part in parts) == len(group_names(dataset))


def test_too_few_groups_for_three_parts_is_an_error_and_not_an_empty_test(tmp_path: Path) -> None:
    dataset = load_folder(table(tmp_path, "filename,label,speaker\na.wav,x,1\nb.wav,y,1\nc.wav,x,2\n"))
    with pytest.raises(DatasetError, match="it has 2 groups .*stay together"):
        dataset.split()


def test_folds_can_be_chosen_and_wrap_around(tmp_path: Path) -> None:
    lines = "".join(f"{label}{fold}.wav,{label},{fold}\n" for fold in (1, 2, 10) for label in "xy")
    dataset = load_folder(table(tmp_path, "filename,label,fold\n" + lines))

    def folds(**options: int) -> list[set[str]]:
        return [set(part.folds) for part in standard_splits(dataset, **options)]

    assert folds() == [{"1"}, {"2"}, {"10"}]
    assert folds(test_fold=1) == [{"2"}, {"10"}, {"1"}]
    assert folds(test_fold=1, val_fold=2) == [{"10"}, {"2"}, {"1"}]
    assert folds(val_fold=10) == [{"1"}, {"10"}, {"2"}]
    with pytest.raises(ConfigError, match="both '2'"):
        folds(test_fold=2, val_fold=2)
    with pytest.raises(UnknownNameError, match="Known: 1, 10, 2"):
        folds(test_fold=3)


def test_a_missing_validation_split_is_drawn_from_train_and_leaves_test_alone(tmp_path: Path) -> None:
    lines = "".join(f"{label}{i}.wav,{label},{'test' if i < 5 else 'train'}\n" for i in range(25) for label in "xy")
    dataset = load_folder(table(tmp_path, "filename,label,split\n" + lines))
    train, val, test = standard_splits(dataset)
    assert test.files == dataset.subset(split="test").files
    assert len(val) == 6
    assert sorted(train.files + val.files) == sorted(dataset.subset(split="train").files)


def test_a_class_without_a_training_clip_is_an_error(tmp_path: Path) -> None:
    dataset = load_folder(table(tmp_path, "filename,label,split\na.wav,x,train\nb.wav,y,test\nc.wav,x,val\n"))
    with pytest.raises(DatasetError, match="no clip to train on: y"):
        standard_splits(dataset)


def test_a_subset_may_lack_classes_of_the_whole_folder(tmp_path: Path) -> None:
    lines = "".join(f"{label}{i}.wav,{label}\n" for i in range(10) for label in "xyz")
    part = load_folder(table(tmp_path, "filename,label\n" + lines)).subset(indices=[i for i in range(30) if i % 3])
    train, _, _ = standard_splits(part)
    assert train.labels == ("x", "y", "z")
    assert set(train.targets) == {"y", "z"}


def test_subsets_keep_all_labels_and_refuse_what_does_not_exist(tmp_path: Path) -> None:
    dataset = load_folder(table(tmp_path, "filename,label,fold\na.wav,x,1\nb.wav,y,2\nc.wav,x,2\n"))
    part = dataset.subset(indices=[2, 0])
    assert [file.name for file in part.files] == ["c.wav", "a.wav"]
    assert part.labels == ("x", "y")
    assert load_folder(tmp_path, folds=[2]).targets == ("y", "x")
    with pytest.raises(UnknownNameError, match="unknown fold of .* '7'. Known: 1, 2"):
        dataset.subset(folds=7)
    with pytest.raises(UnknownNameError, match="unknown split .*Known: none yet"):
        dataset.subset(split="test")
    with pytest.raises(ConfigError, match="expected 0 to 2"):
        dataset.subset(indices=[3])
    with pytest.raises(DatasetError, match="no clip of"):
        part.subset(indices=[])
    with pytest.raises(ConfigError, match="has no folds"):
        standard_splits(load_folder(demo_tasks()["instruments"]), test_fold=1)


# --- the cache -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("budget", [0, 10_000, 2**30])
def test_the_cache_changes_no_item(budget: int) -> None:
    dataset = load_folder(demo_tasks()["mandarin_tones"], split="val", cache_bytes=budget)
    for _ in range(2):
        for i in (0, 1, 2):
            torch.testing.assert_close(dataset[i][0], read_audio(dataset.files[i]), rtol=0, atol=0)
    assert dataset._audio._bytes <= budget


def test_cached_audio_outlives_its_file_and_is_shared_by_subsets(tmp_path: Path) -> None:
    dataset = load_folder(table(tmp_path, "filename,label\na.wav,x\nb.wav,y\n"))
    before, _ = dataset[1]
    dataset.files[1].unlink()
    torch.testing.assert_close(dataset.subset(indices=[1])[0][0], before, rtol=0, atol=0)


def test_a_dataset_survives_pickling_and_copying() -> None:
    dataset = load_folder(demo_tasks()["mandarin_tones"]).subset(indices=range(4))
    expected = [dataset[i][0] for i in range(4)]
    for other in (pickle.loads(pickle.dumps(dataset)), copy.deepcopy(dataset)):  # pickling is how a worker gets it
        torch.testing.assert_close([wave for wave, _ in DataLoader(other, batch_size=None)], expected, rtol=0, atol=0)
        assert other.targets == dataset.targets


def test_other_sample_rates_are_resampled_to_the_one_asked_for() -> None:
    folder = demo_tasks()["mandarin_tones"]
    low, high = load_folder(folder, sample_rate=8_000), load_folder(folder)
    assert low.sample_rate == 8_000
    assert len(low[0][0]) == len(high[0][0]) // 2


# --- bad input -------------------------------------------------------------------------------------------------------


BAD_TABLES = {
    "file,sound\na.wav,dog\n": "no label column: its columns are file, sound; expected one of label, labels, category",
    "label\ndog\n": "no file column: its columns are label",
    "filename,label\n": "lists no clips",
    "": "no file column: its columns are none",
    "filename,label\na.wav,dog\nb.wav\n": "line 3: 1 cell, expected 2",
    "filename,label\na.wav,dog,big\n": "line 2: 3 cells, expected 2 .*double quotes",
    "filename,label\na.wav,dog\nb.wav,\n": "line 3: no label",
    "filename,label\na.wav,dog\n,cat\n": "line 3: nothing in column 'filename'; every clip needs a file",
    "filename,label,split\na.wav,dog,train\nb.wav,cat,later\n": "line 3: unknown split 'later'; expected one of train",
    "filename,label,split\na.wav,dog,train\nb.wav,cat,\n": "line 3: nothing in column 'split'",
    "filename,label,fold\na.wav,dog,1\n\nb.wav,cat,\n": "line 4: nothing in column 'fold'",
    "filename,label\na.wav,dog\nb.wav,cat\na.wav,cat\n": "line 4: a.wav is already listed in line 2; .*by ';'",
}


@pytest.mark.parametrize("text", BAD_TABLES, ids=list(BAD_TABLES.values()))
def test_a_bad_table_is_refused_with_its_line(tmp_path: Path, text: str) -> None:
    with pytest.raises(DatasetError, match=BAD_TABLES[text]):
        load_folder(table(tmp_path, text))


def test_a_table_in_another_encoding_is_refused(tmp_path: Path) -> None:
    (tmp_path / "metadata.csv").write_bytes("filename,label\na.wav,Hündin\n".encode("latin-1"))
    with pytest.raises(DatasetError, match="no UTF-8 CSV file.*Save it as UTF-8"):
        load_folder(tmp_path)


def test_an_absent_folder_says_what_to_put_there(tmp_path: Path) -> None:
    with pytest.raises(DatasetError, match="no dataset at .*nowhere.* Put a folder there that holds metadata.csv"):
        load_folder(tmp_path / "nowhere")


def test_missing_files_are_counted_and_named(tmp_path: Path) -> None:
    table(tmp_path, "filename,label\n" + "".join(f"{i}.wav,{'xy'[i % 2]}\n" for i in range(9)))
    for i in range(2, 7):
        (tmp_path / f"{i}.wav").unlink()
    with pytest.raises(DatasetError) as caught:
        load_folder(tmp_path)
    message = str(caught.value)
    assert "is incomplete: 5 of the 9 audio files that metadata.csv lists are missing" in message
    assert f"{tmp_path / '2.wav'}, {tmp_path / '3.wav'}, {tmp_path / '4.wav'}, ..." in message
    assert f"Put the audio below {tmp_path}" in message


def test_a_folder_without_audio_or_with_an_empty_class_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DatasetError, match="no audio found in .*expected metadata.csv, or class folders"):
        load_folder(tmp_path)
    clip(tmp_path / "dog" / "1.wav")
    with pytest.raises(DatasetError, match="one class folder only \\('dog'\\)"):
        load_folder(tmp_path)
    (tmp_path / "cat").mkdir()
    with pytest.raises(DatasetError, match="class folders without a clip: cat. Put audio files"):
        load_folder(tmp_path)


def test_two_tables_are_not_guessed_between(tmp_path: Path) -> None:
    table(tmp_path, "filename,label\na.wav,x\nb.wav,y\n", "one.csv")
    table(tmp_path, "filename,label\na.wav,y\nb.wav,x\n", "two.csv")
    with pytest.raises(DatasetError, match="holds 2 tables of clips \\(one.csv, two.csv\\)"):
        load_folder(tmp_path)
    assert load_folder(tmp_path / "two.csv").targets == ("y", "x")


def test_a_table_without_labels_beside_class_folders_is_left_alone(tmp_path: Path) -> None:
    clip(tmp_path / "dog" / "1.wav")
    clip(tmp_path / "cat" / "1.wav")
    (tmp_path / "durations.csv").write_text("filename,seconds\n1.wav,0.1\n")
    assert load_folder(tmp_path).labels == ("cat", "dog")


def test_a_cut_clip_is_refused_when_its_item_is_read(tmp_path: Path) -> None:
    dataset = load_folder(table(tmp_path, "filename,label\na.wav,x\nb.wav,y\n"))
    (tmp_path / "b.wav").write_bytes((tmp_path / "a.wav").read_bytes()[:-100])
    assert dataset[0][1] == "x"
    with pytest.raises(AudioFileError, match="b.wav is cut") as caught:
        dataset[1]
    assert isinstance(caught.value, AdapterBankError)
