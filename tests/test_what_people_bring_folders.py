"""Folders and tables as people bring them: each is read rightly, or the error says the true reason.

One row of the table per test: what was tried, and what is right.
"""

from __future__ import annotations

import gzip
import json
import os
import unicodedata
import warnings
import zipfile
import zlib
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import soundfile

from adapterbank.data import load_folder, read_audio, standard_splits
from adapterbank.errors import (
    AdapterBankError,
    ConfigError,
    DatasetError,
    LabelsError,
    LookAlikeClassesWarning,
    SkippedClipsWarning,
    UnreadTableWarning,
)

COMPOSED, DECOMPOSED = (unicodedata.normalize(form, "café") for form in ("NFC", "NFD"))


def clip(file: Path, seed: int | None = None, **options: str) -> Path:
    """A tenth of a second of noise, which differs from name to name."""
    file.parent.mkdir(parents=True, exist_ok=True)
    draw = np.random.default_rng(zlib.crc32(file.name.encode()) if seed is None else seed)
    soundfile.write(file, draw.standard_normal(1600) * 0.1, 16_000, **options)
    return file


def tree(root: Path, *names: str) -> Path:
    """Real clips for the names of sound files, a few bytes for others."""
    for name in names:
        file = root / name
        if file.suffix in (".wav", ".flac", ".au", ".w64", ".caf", ".aiff", ".ogg", ".mp3"):
            clip(file)
        else:
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_bytes(b"\0\0\0\x20ftypM4A ")
    return root


def table(root: Path, text: str, name: str = "metadata.csv", encoding: str = "utf-8") -> Path:
    (root / name).parent.mkdir(parents=True, exist_ok=True)
    (root / name).write_bytes(text.encode(encoding))
    return root


# --- which files are clips -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("suffix", [".au", ".w64", ".caf", ".aiff", ".AU", ".snd", ".mp3", ".flac"])
def test_every_container_that_can_be_decoded_is_a_clip(tmp_path: Path, suffix: str) -> None:
    kinds = {".au": "AU", ".snd": "AU", ".w64": "W64", ".caf": "CAF", ".aiff": "AIFF"}
    for label in ("blues", "rock"):
        clip(tmp_path / label / f"1{suffix}", format=kinds.get(suffix.lower(), suffix[1:].upper()))
    dataset = load_folder(tmp_path)
    assert dataset.targets == ("blues", "rock")
    assert len(dataset[0][0]) >= 1600


@pytest.mark.parametrize("name", ["dog/2.m4a", "dog/deep/2.aac", "cat/2.MP4", "cat/3.wma"])
def test_audio_that_cannot_be_decoded_beside_clips_is_counted_and_named(tmp_path: Path, name: str) -> None:
    tree(tmp_path, "dog/1.wav", "cat/1.wav", name)
    with pytest.raises(DatasetError, match=f'1 file .{name}. is audio that libsndfile does not.*on_error="skip"'):
        load_folder(tmp_path)
    with pytest.warns(SkippedClipsWarning, match=f"1 file .{name}"):
        assert len(load_folder(tmp_path, on_error="skip", progress=False)) == 2


def test_clips_beside_the_class_folders_are_not_dropped_silently(tmp_path: Path) -> None:
    tree(tmp_path, "dog/1.wav", "cat/1.wav", "loose.wav")
    with pytest.raises(DatasetError, match=r"1 file \(loose.wav\) lies beside the class folders"):
        load_folder(tmp_path)


def test_clips_in_a_folder_of_a_class_are_read_left_out_or_an_error(tmp_path: Path) -> None:
    tree(tmp_path, "dog/1.wav", "dog/more/2.wav", "dog/more/3.wav", "cat/1.wav")
    with pytest.raises(DatasetError, match=r"2 files \(dog/more/2.wav, dog/more/3.wav\) lie in folders inside a class"):
        load_folder(tmp_path)
    assert load_folder(tmp_path, recursive=True).targets == ("cat", "dog", "dog", "dog")
    with pytest.warns(SkippedClipsWarning, match=r"2 files \(dog/more/2.wav") as caught:
        assert load_folder(tmp_path, recursive=False).targets == ("cat", "dog")
    assert caught[0].filename == __file__  # the line that asked


# --- trees -----------------------------------------------------------------------------------------------------------


def test_a_tree_of_class_speaker_and_clip_is_read_with_the_speaker_as_group(tmp_path: Path) -> None:
    people = ("ann", "bob", "cem", "dan")
    tree(tmp_path, *(f"{word}/{who}/{i}/{word}{who}.wav" for word in ("yes", "no") for who in people for i in (1, 2)))
    with pytest.raises(DatasetError, match="no audio found directly .* If no is a class and ann a speaker.*recursive"):
        load_folder(tmp_path)
    dataset = load_folder(tmp_path, recursive=True)
    assert dataset.labels == ("no", "yes")
    assert set(dataset.groups) == set(people)
    for part in dataset.split(val_fraction=0.25, test_fraction=0.25):
        assert part.targets.count("yes") == part.targets.count("no") >= 2


def test_one_folder_inside_every_class_is_no_speaker(tmp_path: Path) -> None:
    tree(tmp_path, *(f"{word}/wav/{i}.wav" for word in ("yes", "no") for i in range(3)))
    assert len(set(load_folder(tmp_path, recursive=True).groups)) == 6


def test_clips_one_level_too_deep_say_which_folder_to_pass(tmp_path: Path) -> None:
    tree(tmp_path, "data/dog/1.wav", "data/cat/1.wav")
    with pytest.raises(DatasetError, match=f"one level deeper: pass {tmp_path / 'data'}"):
        load_folder(tmp_path)
    with pytest.raises(DatasetError, match=f"one class folder only.*then pass {tmp_path / 'data'}"):
        load_folder(tmp_path, recursive=True)
    assert load_folder(tmp_path / "data").labels == ("cat", "dog")


@pytest.mark.parametrize("names", [("train", "car", "bus"), ("test", "car"), ("train", "test", "car")])
def test_a_class_may_have_the_name_of_a_split(tmp_path: Path, names: Sequence[str]) -> None:
    tree(tmp_path, *(f"{name}/1.wav" for name in names))
    dataset = load_folder(tmp_path)
    assert dataset.labels == tuple(sorted(names))
    assert not any(dataset.splits)


def test_folders_without_audio_do_not_turn_splits_into_classes(tmp_path: Path) -> None:
    tree(tmp_path, "train/a/1.wav", "train/b/1.wav", "test/a/2.wav", "docs/readme.txt")
    assert load_folder(tmp_path).splits == ("test", "train", "train")


def test_a_folder_beside_splits_is_named(tmp_path: Path) -> None:
    tree(tmp_path, "train/a/1.wav", "train/b/1.wav", "test/a/2.wav", "extra/a/3.wav")
    with pytest.raises(DatasetError, match="test, train are names of splits, extra not"):
        load_folder(tmp_path)


def test_split_folders_without_classes_say_what_is_missing(tmp_path: Path) -> None:
    tree(tmp_path, "train/1.wav", "test/2.wav")
    with pytest.raises(DatasetError, match="test, train is the name of a split and holds clips that nothing labels"):
        load_folder(tmp_path)


def test_numbered_folders_are_classes_in_the_order_of_their_numbers(tmp_path: Path) -> None:
    tree(tmp_path, *(f"{number}/1.wav" for number in range(12)))
    assert load_folder(tmp_path).labels == tuple(map(str, range(12)))


def test_numbers_inside_names_and_in_tables_count_as_numbers(tmp_path: Path) -> None:
    tree(tmp_path, *(f"{number}.wav" for number in (1, 2, 10)))
    table(tmp_path, "file,label\n1.wav,class10\n2.wav,class9\n10.wav,class1\n")
    assert load_folder(tmp_path).labels == ("class1", "class9", "class10")
    table(tmp_path, "file,label\n1.wav,-1\n2.wav,10\n10.wav,2\n")
    assert load_folder(tmp_path).labels == ("-1", "2", "10")


def test_cafe_is_one_class_however_its_accent_is_written(tmp_path: Path) -> None:
    tree(tmp_path, f"train/{COMPOSED}/1.wav", f"test/{DECOMPOSED}/2.wav", "train/bar/3.wav")
    assert load_folder(tmp_path).labels == ("bar", COMPOSED)
    tree(tmp_path / "both", f"{COMPOSED}/1.wav", f"{DECOMPOSED}/2.wav", "bar/1.wav")
    assert load_folder(tmp_path / "both").targets.count(COMPOSED) == 2


@pytest.mark.parametrize(("written", "on_disk"), [(COMPOSED, DECOMPOSED), (DECOMPOSED, COMPOSED)])
def test_a_table_finds_files_and_groups_however_accents_are_written(tmp_path: Path, written: str, on_disk: str) -> None:
    tree(tmp_path, f"{on_disk}/{on_disk}.wav", "b.wav")
    table(tmp_path, f"file,label,speaker\n{written}/{written}.wav,{written},{written}\nb.wav,{on_disk},{on_disk}\n")
    dataset = load_folder(tmp_path)
    assert dataset.labels == (COMPOSED,)
    assert set(dataset.groups) == {COMPOSED}
    assert len(dataset[0][0]) == 1600


def test_labels_of_a_task_are_compared_in_nfc_and_have_an_order(small_bank) -> None:  # type: ignore[no-untyped-def]
    bank = small_bank
    bank.add_task("places", labels=[DECOMPOSED, "bar"])
    assert bank.task("places").labels == (COMPOSED, "bar")
    for unordered in ({"a", "b"}, frozenset("ab")):
        with pytest.raises(LabelsError, match="Expected a list"):
            bank.add_task("unordered", labels=unordered)


# --- tables ----------------------------------------------------------------------------------------------------------


def test_one_table_in_each_folder_of_a_split_is_read(tmp_path: Path) -> None:
    tree(tmp_path, "train/a.wav", "train/b.wav", "test/a.wav")
    table(tmp_path, "file_name,label\na.wav,dog\nb.wav,cat\n", "train/metadata.csv")
    table(tmp_path, "file_name,label\na.wav,cat\n", "test/metadata.csv")
    dataset = load_folder(tmp_path)
    assert sorted(zip(dataset.splits, dataset.targets, strict=True)) == [
        ("test", "cat"),
        ("train", "cat"),
        ("train", "dog"),
    ]


def test_files_of_one_name_in_two_splits_are_no_group(tmp_path: Path) -> None:
    for split in ("train", "test"):
        tree(tmp_path, f"{split}/a.wav", f"{split}/b.wav")
        table(tmp_path, "file_name,label\na.wav,dog\nb.wav,cat\n", f"{split}/metadata.csv")
    assert len(set(load_folder(tmp_path).groups)) == 4


def test_a_table_of_a_split_without_labels_says_which_column_is_missing(tmp_path: Path) -> None:
    tree(tmp_path, "train/a.wav", "train/b.wav")
    table(tmp_path, "file_name,transcription\na.wav,hello\n", "train/metadata.csv")
    with pytest.raises(DatasetError, match="train/metadata.csv has no label column: its columns are file_name, tr"):
        load_folder(tmp_path)


@pytest.mark.parametrize("folder", ["", "lists/"])
def test_one_table_for_each_split_beside_the_audio_is_read(tmp_path: Path, folder: str) -> None:
    tree(tmp_path, "audio/a.wav", "audio/b.wav", "audio/c.wav")
    for split, name in (("train", "a"), ("valid", "b"), ("test", "c")):
        table(tmp_path, f"path,label\n{name}.wav,{name}\n", f"{folder}{split}.csv")
    dataset = load_folder(tmp_path)
    assert dict(zip(dataset.splits, dataset.targets, strict=True)) == {"train": "a", "val": "b", "test": "c"}


def test_json_lines_of_hugging_faces_audio_folder_are_read(tmp_path: Path) -> None:
    tree(tmp_path, "data/a.wav", "data/b.wav")
    rows = [{"file_name": "data/a.wav", "label": 3, "text": "?"}, {"file_name": "data/b.wav", "label": 12}]
    table(tmp_path, "\n".join(map(json.dumps, rows)) + "\n", "metadata.jsonl")
    assert load_folder(tmp_path).targets == ("3", "12")
    assert load_folder(tmp_path).labels == ("3", "12")
    rows[0]["label"], rows[1]["label"] = ["dog", "cat"], ["cat"]
    table(tmp_path, "\n".join(map(json.dumps, rows)), "metadata.jsonl")
    assert load_folder(tmp_path).targets == (("dog", "cat"), ("cat",))
    table(tmp_path, '{"file_name": "data/a.wav", "label": "x"}\n{"file_name": ', "metadata.jsonl")
    with pytest.raises(DatasetError, match="metadata.jsonl, line 2: no JSON"):
        load_folder(tmp_path)


def test_json_lines_in_folders_of_splits_are_read(tmp_path: Path) -> None:
    for split in ("train", "test"):
        tree(tmp_path, f"{split}/a.wav", f"{split}/b.wav")
        table(
            tmp_path, "".join(f'{{"file_name": "{n}.wav", "label": "{n}"}}\n' for n in "ab"), f"{split}/metadata.jsonl"
        )
    assert load_folder(tmp_path, split="test").targets == ("a", "b")


@pytest.mark.parametrize("delimiter", [",", ";", "\t", "|"])
@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-16-le", "utf-16-be", "utf-32"])
def test_every_usual_separator_and_unicode_encoding_is_read(tmp_path: Path, delimiter: str, encoding: str) -> None:
    tree(tmp_path, "a.wav", "b.wav")
    text = "filename,label,split\r\na.wav,Hündin,train\r\nb.wav,cat,test\r\n".replace(",", delimiter)
    table(tmp_path, text, encoding=encoding)
    dataset = load_folder(tmp_path)
    assert (dataset.targets, dataset.splits) == (("Hündin", "cat"), ("train", "test"))


def test_excels_line_that_names_the_separator_is_no_header(tmp_path: Path) -> None:
    tree(tmp_path, "a.wav", "b.wav")
    table(tmp_path, "sep=;\r\nfilename;label\r\na.wav;dog, big\r\nb.wav;cat\r\n")
    assert load_folder(tmp_path).targets == ("dog, big", "cat")


def test_a_tsv_is_found_and_read(tmp_path: Path) -> None:
    tree(tmp_path, "clips/a.wav", "clips/b.wav")
    table(tmp_path, "client_id\tpath\tlabel\nx\ta.wav\tdog\ny\tb.wav\tcat\n", "validated.tsv")
    dataset = load_folder(tmp_path)
    assert (dataset.targets, dataset.groups) == (("dog", "cat"), ("x", "y"))


@pytest.mark.parametrize("encoding", ["latin-1", "cp1252"])
def test_an_encoding_that_cannot_be_known_is_named_as_the_cause(tmp_path: Path, encoding: str) -> None:
    tree(tmp_path, "a.wav", "b.wav")
    table(tmp_path, "filename,label\na.wav,cat\nb.wav,Hündin\n", encoding=encoding)
    with pytest.raises(DatasetError, match="another encoding, such as Latin-1 .*line 3, is no UTF-8.* Save it as"):
        load_folder(tmp_path)


FSD = 'fname,labels\n10.wav,Raindrop\n11.wav,"Raindrop,Trickle_and_drip"\n'


def test_commas_in_a_column_of_labels_separate_them(tmp_path: Path) -> None:
    tree(tmp_path, "train_curated/10.wav", "train_curated/11.wav")
    table(tmp_path, FSD, "train_curated.csv")
    dataset = load_folder(tmp_path)
    assert dataset.multilabel
    assert dataset.targets == (("Raindrop",), ("Raindrop", "Trickle_and_drip"))
    assert load_folder(tmp_path, multilabel=False).targets[1] == "Raindrop,Trickle_and_drip"


def test_fsd50k_is_read_as_it_is_unpacked(tmp_path: Path) -> None:
    tree(tmp_path, "FSD50K.dev_audio/64760.wav", "FSD50K.dev_audio/16399.wav", "FSD50K.eval_audio/37199.wav")
    dev = 'fname,labels,mids,split\n64760,"Electric_guitar,Guitar","/m/02sgy,/m/0342h",train\n16399,Rain,/m/1,val\n'
    table(tmp_path, dev, "FSD50K.ground_truth/dev.csv")
    table(tmp_path, 'fname,labels,mids\n37199,"Guitar,Music","/m/1,/m/2"\n', "FSD50K.ground_truth/eval.csv")
    table(tmp_path, "0,Rain,/m/1\n", "FSD50K.ground_truth/vocabulary.csv")
    dataset = load_folder(tmp_path)
    assert dataset.splits == ("train", "val", "test")
    assert dataset.targets == (("Electric_guitar", "Guitar"), ("Rain",), ("Guitar", "Music"))
    assert len(dataset[2][0]) == 1600
    alone = load_folder(tmp_path / "FSD50K.ground_truth" / "dev.csv")
    assert [file.name for file in alone.files] == ["64760.wav", "16399.wav"]


def test_commas_in_a_column_of_one_label_separate_only_labels_of_others(tmp_path: Path) -> None:
    tree(tmp_path, "a.wav", "b.wav", "c.wav")
    table(tmp_path, 'filename,label\na.wav,"dog, big"\nb.wav,cat\nc.wav,dog\n')
    assert load_folder(tmp_path).targets == ("dog, big", "cat", "dog")
    assert load_folder(tmp_path, multilabel=True).targets[0] == ("dog", "big")
    table(tmp_path, 'filename,label\na.wav,"dog, cat"\nb.wav,cat\nc.wav,dog\n')
    assert load_folder(tmp_path).targets == (("dog", "cat"), ("cat",), ("dog",))


@pytest.mark.parametrize("cell", ["dog;cat", "dog|cat", "\"['dog', 'cat']\"", '"[""dog"", ""cat""]"', "dog+cat"])
def test_several_labels_are_recognised_however_they_are_written(tmp_path: Path, cell: str) -> None:
    tree(tmp_path, "a.wav", "b.wav")
    table(tmp_path, f"filename,label\na.wav,{cell}\nb.wav,cat\n")
    option = {"label_separator": "+"} if "+" in cell else {}
    assert load_folder(tmp_path, **option).targets == (("dog", "cat"), ("cat",))


def test_a_name_that_several_files_fit_is_not_guessed(tmp_path: Path) -> None:
    tree(tmp_path, "one/1.wav", "two/1.wav", "one/2.wav")
    table(tmp_path, "fname,label\n1,a\n2,b\n")
    with pytest.raises(DatasetError, match="line 2: '1' may be any of .*one/1.wav, .*two/1.wav"):
        load_folder(tmp_path)


# --- why there is nothing to read ------------------------------------------------------------------------------------


REASONS: dict[tuple[str, ...], str] = {
    ("dog/1.m4a", "cat/2.m4a"): r"2 files \(cat/2.m4a, dog/1.m4a\), which libsndfile does not decode. Convert",
    ("1.wav", "2.wav"): r"2 files \(1.wav, 2.wav\) lie there, but nothing says of which class",
    ("clips.zip",): r"1 file \(clips.zip\): unpack that first",
    ("metadata.xlsx",): "a spreadsheet: save it as CSV",
    ("train.parquet",): "which load_folder does not read",
    ("1.wav", "labels.xlsx"): "lies there, but nothing says of which class.*a spreadsheet: save it as CSV",
    ("1.wav", "metadata.json"): r"metadata.json\), which load_folder does not read: write one object per line",
    ("dog/notes.txt",): r"Its 1 file is no audio by name \(1 .txt\)",
    (): "It is empty",
}


@pytest.mark.parametrize("names", REASONS, ids=[",".join(names) or "empty" for names in REASONS])
def test_a_folder_without_clips_says_the_true_reason(tmp_path: Path, names: tuple[str, ...]) -> None:
    with pytest.raises(DatasetError, match=REASONS[names]):
        load_folder(tree(tmp_path, *names))


def test_a_file_that_is_no_table_says_what_it_is(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "clips.zip", "w") as archive:
        archive.writestr("dog/1.wav", b"RIFF")
    with pytest.raises(DatasetError, match="clips.zip is a file that is no table. .*unpack that first"):
        load_folder(tmp_path / "clips.zip")


def test_a_class_of_files_that_cannot_be_decoded_is_named(tmp_path: Path) -> None:
    tree(tmp_path, "dog/1.wav", "cat/1.m4a", "cat/2.m4a")
    with pytest.raises(DatasetError, match=r"without a clip that can be read: cat. They hold 2 files \(cat/1.m4a"):
        load_folder(tmp_path)


def test_empty_files_are_named_as_such(tmp_path: Path) -> None:
    for name in ("dog/1.wav", "cat/1.wav"):
        (tmp_path / name).parent.mkdir()
        (tmp_path / name).touch()
    with pytest.raises(DatasetError, match="all 2 audio files are empty"):
        load_folder(tmp_path)


# --- fractions and skipping ------------------------------------------------------------------------------------------


def test_fractions_of_a_split_have_names(tmp_path: Path) -> None:
    tree(tmp_path, *(f"{label}/{i}.wav" for label in "ab" for i in range(50)))
    dataset = load_folder(tmp_path)
    with pytest.raises(ConfigError, match=r"got split\(0.8\).*split\(val_fraction=0.1, .*split\(train_fraction=0.8\)"):
        dataset.split(0.8)
    tenths = {"val_fraction": 0.1, "test_fraction": 0.1}
    for fractions in ({"train_fraction": 0.8}, tenths, {"train_fraction": 0.8, "val_fraction": 0.1}):
        assert [len(part) for part in dataset.split(**fractions)] == [80, 10, 10]
    assert [len(part) for part in dataset.split()] == [70, 15, 15]
    for wrong in (
        {"val_fraction": 80},
        {"val_fraction": "0.1"},
        {"train_fraction": 0.9, "val_fraction": 0.2},
        {"train_fraction": 0.5, "val_fraction": 0.1, "test_fraction": 0.1},
        {"test_fraction": True},
    ):
        with pytest.raises(ConfigError, match="expected"):
            dataset.split(**wrong)


def broken(tmp_path: Path) -> Path:
    """Six clips, of which one is cut and one is no audio."""
    tree(tmp_path, *(f"{label}/{i}.wav" for label in "ab" for i in range(3)))
    (tmp_path / "a" / "1.wav").write_bytes((tmp_path / "a" / "0.wav").read_bytes()[:-100])
    (tmp_path / "b" / "2.wav").write_bytes(b"no audio at all")
    return tmp_path


def test_files_that_cannot_be_read_are_left_out_counted_and_named(tmp_path: Path) -> None:
    root = broken(tmp_path)
    with pytest.raises(AdapterBankError, match="1.wav is cut"):
        load_folder(root)[1]
    with pytest.warns(SkippedClipsWarning, match=r"2 files \(a/1.wav, b/2.wav\) of 6 cannot be read.*is cut") as caught:
        dataset = load_folder(root, on_error="skip", progress=False)
    assert len(caught) == 1
    assert len(dataset) == len(dataset.targets) == 4
    for waveform, _ in (dataset[index] for index in range(4)):
        assert len(waveform) == 1600
    with pytest.raises(ConfigError, match="on_error='ignore', expected 'raise' or 'skip'"):
        load_folder(root, on_error="ignore")


def test_missing_files_of_a_table_are_left_out_counted_and_named(tmp_path: Path) -> None:
    tree(tmp_path, "a.wav", "b.wav")
    table(tmp_path, "filename,label\na.wav,x\nb.wav,y\nc.wav,y\n")
    with pytest.warns(SkippedClipsWarning, match=r"1 file \(c.wav\) is missing that its table lists"):
        assert len(load_folder(tmp_path, on_error="skip", progress=False)) == 2


def test_a_sound_dataset_is_read_with_skip_without_a_word(tmp_path: Path) -> None:
    tree(tmp_path, "a/1.wav", "b/1.wav")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        dataset = load_folder(tmp_path, on_error="skip", progress=False)
    assert (dataset[0][0] == read_audio(tmp_path / "a" / "1.wav")).all()


def test_nothing_readable_is_an_error_even_with_skip(tmp_path: Path) -> None:
    for name in ("a/1.wav", "b/1.wav"):
        (tmp_path / name).parent.mkdir()
        (tmp_path / name).write_bytes(b"no audio at all")
    with pytest.raises(DatasetError, match="none of the 2 clips"):
        load_folder(tmp_path, on_error="skip", progress=False)


def test_a_split_of_its_own_is_kept_from_a_tree_with_speakers(tmp_path: Path) -> None:
    tree(tmp_path, *(f"{s}/{c}/{w}/1.wav" for s in ("train", "val", "test") for c in "ab" for w in ("x", "y")))
    parts = standard_splits(load_folder(tmp_path, recursive=True))
    assert [set(part.splits) for part in parts] == [{"train"}, {"val"}, {"test"}]


@pytest.mark.parametrize("separator", ["+", "&", "/"])
def test_other_signs_separate_labels_of_other_clips_and_are_text_elsewhere(tmp_path: Path, separator: str) -> None:
    names = [f"{name}.wav" for name in "abcd"]
    tree(tmp_path, *(f"audio/{name}" for name in names))
    labels = [f"dog{separator}cat", "dog", "cat", "dog"]
    rows = "".join(f"{name},{label}\n" for name, label in zip(names, labels, strict=True))
    dataset = load_folder(table(tmp_path, "filename,label\n" + rows))
    assert dataset.targets == (("dog", "cat"), ("dog",), ("cat",), ("dog",))
    alone = load_folder(table(tmp_path, "filename,label\n" + rows.replace(f"dog{separator}cat", f"R{separator}B")))
    assert alone.targets == (f"R{separator}B", "dog", "cat", "dog")


def test_a_column_called_file_name_with_a_blank_is_found(tmp_path: Path) -> None:
    tree(tmp_path, "audio/a.wav", "audio/b.wav")
    assert load_folder(table(tmp_path, "File Name,Class-Name\na.wav,dog\nb.wav,cat\n")).targets == ("dog", "cat")


def test_lists_in_lists_are_no_labels(tmp_path: Path) -> None:
    tree(tmp_path, "a.wav", "b.wav")
    rows = '{"file_name": "a.wav", "label": [["dog"], "cat"]}\n{"file_name": "b.wav", "label": ["cat"]}\n'
    with pytest.raises(DatasetError, match=r"line 1: got \[\['dog'\], 'cat'\] in a cell"):
        load_folder(table(tmp_path, rows, "metadata.jsonl"))


@pytest.mark.parametrize(
    ("text", "columns"),
    [
        ("a.wav,dog\nb.wav,cat\n", "'a.wav', 'dog'"),  # no header
        ("recording,species\nbatch1/a.wav,dog\nbatch2/b.wav,cat\n", "'recording', 'species'"),
    ],
)
def test_a_table_that_lists_clips_and_is_not_read_is_named_with_its_columns(tmp_path, text: str, columns: str) -> None:
    tree(tmp_path, "batch1/a.wav", "batch2/b.wav")
    message = (
        rf"labels are the names of the folders \(batch1, batch2\).*info.csv is not read.*its columns are {columns}"
    )
    with pytest.warns(UnreadTableWarning, match=message):
        assert load_folder(table(tmp_path, text, "info.csv")).targets == ("batch1", "batch2")


def test_a_table_that_is_not_read_is_named_where_nothing_else_says_the_labels(tmp_path: Path) -> None:
    tree(tmp_path, "audio/a.wav", "audio/b.wav")
    with pytest.raises(
        DatasetError, match="one class folder only.*info.csv is not read.*its columns are 'a.wav', 'dog'"
    ):
        load_folder(table(tmp_path, "a.wav,dog\nb.wav,cat\n", "info.csv"))


def test_a_table_of_other_things_beside_class_folders_is_no_matter(tmp_path: Path) -> None:
    tree(tmp_path, "dog/a.wav", "cat/b.wav")
    table(tmp_path, "filename,seconds,class_folder\na.wav,0.1,dog\nb.wav,0.1,cat\n", "durations.csv")
    assert load_folder(table(tmp_path, "species,latin\ndog,canis\n", "species.csv")).targets == ("cat", "dog")


# --- names that look alike, files that are not called audio, links ---------------------------------------------------


@pytest.mark.parametrize(
    "name", ["dog ", " dog", "dog\u200b", "do\ufeffg", "dog\u00a0", "\u200edog", "dog\u2060", "d\u00adog"]
)
def test_characters_that_nobody_sees_make_no_class(tmp_path: Path, name: str) -> None:
    tree(tmp_path / "a", "dog/1.wav", f"{name}/2.wav", "cat/3.wav")
    assert load_folder(tmp_path / "a").labels == ("cat", "dog")
    tree(tmp_path / "b", "1.wav", "2.wav", "3.wav")
    table(tmp_path / "b", f"filename,label\n1.wav,dog\n2.wav,{name}\n3.wav,cat\n")
    assert load_folder(tmp_path / "b").labels == ("cat", "dog")


def test_letters_joined_by_characters_of_no_width_stay_as_they_are_spelled(tmp_path: Path) -> None:
    persian = "\u0645\u06cc\u200c\u062e\u0648\u0627\u0647\u0645"
    tree(tmp_path, f"{persian}/1.wav", "cat/2.wav")
    assert persian in load_folder(tmp_path).labels


@pytest.mark.parametrize("names", [("Dog", "dog"), ("guitar_solo", "guitar solo"), ("a-b", "A_B"), ("dog", "\uff44og")])
def test_classes_that_look_alike_stay_apart_with_a_warning_that_names_them(tmp_path: Path, names) -> None:
    tree(tmp_path, f"{names[0]}/1.wav", f"{names[1]}/2.wav", "cat/3.wav")
    with pytest.warns(LookAlikeClassesWarning, match=f"{names[0]}.*and.*|.*and.*{names[0]}"):
        assert len(load_folder(tmp_path).labels) == 3


@pytest.mark.parametrize("name", ["2", "2.wav.bak", "2.wav_", "2.sound", "2.wav.1", "2.wav.gz", "2.flac.zip"])
def test_audio_under_another_name_is_not_dropped_silently(tmp_path: Path, name: str) -> None:
    tree(tmp_path, "dog/1.wav", "cat/1.wav", "dog/notes.txt")
    content = (tmp_path / "dog" / "1.wav").read_bytes()
    (tmp_path / "dog" / name).write_bytes(gzip.compress(content) if name.endswith((".gz", ".zip")) else content)
    with pytest.raises(DatasetError, match=rf"1 file \(dog/{name}\) begins as audio does, .*Give them the ending"):
        load_folder(tmp_path)
    with pytest.warns(SkippedClipsWarning, match=f"1 file .dog/{name}."):
        assert len(load_folder(tmp_path, on_error="skip")) == 2


def test_folders_of_files_without_an_ending_say_what_they_are(tmp_path: Path) -> None:
    for name in ("dog", "cat"):
        clip(tmp_path / name / "1", format="WAV")
    with pytest.raises(DatasetError, match=r"2 files \(cat/1, dog/1\) begin as audio does"):
        load_folder(tmp_path)


def test_a_link_to_a_folder_is_followed_once_and_never_upwards(tmp_path: Path) -> None:
    root, elsewhere = tree(tmp_path / "root", "dog/1.wav", "cat/2.wav"), tree(tmp_path / "else", "3.wav")
    (root / "dog" / "alice").symlink_to(elsewhere)
    (root / "dog" / "up").symlink_to("..")
    (root / "dog" / "itself").symlink_to(".")
    with pytest.raises(DatasetError, match="1 file .dog/alice/3.wav. lies in folders inside a class folder"):
        load_folder(root)
    dataset = load_folder(root, recursive=True)
    assert [file.name for file in dataset.files] == ["2.wav", "1.wav", "3.wav"]


# --- more of what stands in tables -----------------------------------------------------------------------------------


def test_a_quote_that_is_not_closed_is_no_label(tmp_path: Path) -> None:
    tree(tmp_path, "1.wav", "2.wav", "3.wav")
    table(tmp_path, 'filename,label\n1.wav,"dog\n2.wav,cat\n3.wav,cat\n')
    with pytest.raises(DatasetError, match="goes over several lines.*double quote before it is not closed"):
        load_folder(tmp_path)


@pytest.mark.parametrize(
    "cell", ["\"{'dog', 'cat'}\"", "\"('dog', 'cat')\"", "['dog' 'cat']", '"[dog, cat]"', "\"['dog'\n 'cat']\""]
)
def test_collections_are_recognised_as_numpy_pandas_and_people_write_them(tmp_path: Path, cell: str) -> None:
    tree(tmp_path, "1.wav", "2.wav")
    table(tmp_path, f"filename,label\n1.wav,{cell}\n2.wav,cat\n".replace("\n 'cat'", " 'cat'"))
    dataset = load_folder(tmp_path)
    assert dataset.multilabel
    assert [set(labels) for labels in dataset.targets] == [{"dog", "cat"}, {"cat"}]


@pytest.mark.parametrize("label", ["[noise]", "(dog)", "{x}", "[1] first"])
def test_brackets_around_one_name_are_part_of_it(tmp_path: Path, label: str) -> None:
    tree(tmp_path, "1.wav", "2.wav")
    table(tmp_path, f"filename,label\n1.wav,{label}\n2.wav,cat\n")
    assert label in load_folder(tmp_path).labels


@pytest.mark.parametrize("folder", ["/home/somebody/set/", "C:\\\\Users\\\\me\\\\set\\\\", "D:/set/"])
def test_paths_of_another_machine_are_found_by_their_end(tmp_path: Path, folder: str) -> None:
    tree(tmp_path, "a/1.wav", "b/1.wav")
    folder = folder.replace("\\\\", "\\")
    slash = "\\" if "\\" in folder else "/"
    table(tmp_path, f"filename,label\n{folder}a{slash}1.wav,dog\n{folder}b{slash}1.wav,cat\n")
    dataset = load_folder(tmp_path)
    assert [file.relative_to(tmp_path).as_posix() for file in dataset.files] == ["a/1.wav", "b/1.wav"]


def test_folds_that_pandas_wrote_as_floats_are_whole(tmp_path: Path) -> None:
    tree(tmp_path, "1.wav", "2.wav")
    table(tmp_path, "filename,label,fold\n1.wav,0.0,1.0\n2.wav,1.0,2.0\n")
    dataset = load_folder(tmp_path, folds=[1, 2])
    assert (dataset.labels, dataset.fold_names) == (("0.0", "1.0"), ("1", "2"))


def test_a_missing_label_of_pandas_is_no_class(tmp_path: Path) -> None:
    tree(tmp_path, "1.wav", "2.wav")
    for missing in ("NaN", "<NA>"):
        table(tmp_path, f"filename,label\n1.wav,dog\n2.wav,{missing}\n")
        with pytest.raises(DatasetError, match=f"line 3: the label '{missing}', which is what pandas writes"):
            load_folder(tmp_path)


def test_lines_of_comment_are_no_clips(tmp_path: Path) -> None:
    tree(tmp_path, "1.wav", "2.wav")
    table(tmp_path, "# made by a tool\n\nfilename,label\n1.wav,dog\n# the second day\n2.wav,cat\n")
    assert load_folder(tmp_path).labels == ("cat", "dog")


def test_a_table_of_parts_of_files_says_what_it_seems_to_be(tmp_path: Path) -> None:
    tree(tmp_path, "1.wav")
    table(tmp_path, "filename,onset,offset,label\n1.wav,0,1,dog\n1.wav,1,2,cat\n")
    with pytest.raises(DatasetError, match="columns onset, offset seem to say parts of the file"):
        load_folder(tmp_path)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("wav.scp", "of Kaldi.*utt2spk"),
        ("labels.txt", "does not look into.*rename it to end in .csv"),
        ("1.TextGrid", "labels of parts of a recording are none of a clip"),
        ("labels.yaml", "does not look into"),
    ],
)
def test_what_else_may_say_labels_is_named(tmp_path: Path, name: str, message: str) -> None:
    table(tree(tmp_path, "1.wav", "2.wav"), "1.wav dog\n2.wav cat\n", name)
    with pytest.raises(DatasetError, match=message):
        load_folder(tmp_path)


def test_json_lines_may_be_called_ndjson(tmp_path: Path) -> None:
    tree(tmp_path, "1.wav", "2.wav")
    rows = [{"file_name": "1.wav", "label_name": "dog"}, {"file_name": "2.wav", "label_name": "cat"}]
    table(tmp_path, "\n".join(map(json.dumps, rows)), "metadata.ndjson")
    assert load_folder(tmp_path).labels == ("cat", "dog")


@pytest.mark.parametrize("header", ["#,filename,label", "#;filename;label"])
def test_a_column_that_is_called_by_a_number_sign_is_no_comment(tmp_path: Path, header: str) -> None:
    tree(tmp_path, "1.wav", "2.wav")
    between = header[1]
    table(
        tmp_path, f"{header}\n" + "\n".join(between.join(row) for row in (("1", "1.wav", "dog"), ("2", "2.wav", "cat")))
    )
    assert load_folder(tmp_path).labels == ("cat", "dog")


def test_a_header_that_begins_with_a_number_sign_is_shown_as_it_is(tmp_path: Path) -> None:
    tree(tmp_path, "1.wav")
    table(tmp_path, "#filename,label\n1.wav,dog\n")
    with pytest.raises(DatasetError, match="#filename"):
        load_folder(tmp_path)


def test_classes_of_a_full_column_keep_the_names_that_a_bank_knows_them_by(tmp_path: Path) -> None:
    tree(tmp_path, "1.wav", "2.wav")
    table(tmp_path, "filename,label\n1.wav,1.0\n2.wav,2.0\n")
    assert load_folder(tmp_path).labels == ("1.0", "2.0")


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no pipes here")
def test_a_pipe_among_the_clips_does_not_wait_for_a_writer(tmp_path: Path) -> None:
    tree(tmp_path, "dog/1.wav", "cat/1.wav")
    os.mkfifo(tmp_path / "dog" / "pipe")
    assert len(load_folder(tmp_path)) == 2


def test_a_link_to_another_class_gives_no_clip_two_labels(tmp_path: Path) -> None:
    tree(tmp_path, "dog/1.wav", "cat/2.wav")
    (tmp_path / "dog" / "more").symlink_to(tmp_path / "cat", target_is_directory=True)
    assert len(load_folder(tmp_path, recursive=True)) == 2


def test_a_link_beside_a_class_into_it_takes_no_clip_from_the_class(tmp_path: Path) -> None:
    tree(tmp_path, "dog/old/1.wav", "dog/new/2.wav", "cat/3.wav")
    (tmp_path / "puppy").symlink_to(tmp_path / "dog" / "new", target_is_directory=True)
    dataset = load_folder(tmp_path, recursive=True)
    assert sorted(dataset.targets) == ["cat", "dog", "dog", "puppy"]
