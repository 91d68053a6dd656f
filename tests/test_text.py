"""Nouns and verbs go with their number, in the helper and in what the library says."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import soundfile
import torch

import adapterbank
from adapterbank.data import load_folder
from adapterbank.evaluation import Evaluation
from adapterbank.text import amount, verb


@pytest.mark.parametrize(
    ("count", "noun", "said"),
    [
        (1, "clip", "1 clip"),
        (0, "clip", "0 clips"),
        (1, "class", "1 class"),
        (2, "class", "2 classes"),
        (3, "box", "3 boxes"),
        (1, "more label", "1 more label"),
        (1200, "audio file", "1,200 audio files"),
    ],
)
def test_a_noun_has_the_number_of_what_it_counts(count, noun, said):
    assert amount(count, noun) == said


@pytest.mark.parametrize(("plural", "singular"), [("are", "is"), ("were", "was"), ("have", "has"), ("lie", "lies")])
def test_a_verb_has_the_number_of_its_subject(plural, singular):
    assert (verb(1, plural), verb(2, plural), verb(0, plural)) == (singular, plural, plural)


def test_one_thing_is_told_of_in_the_singular(tmp_path):
    for label in ("cat", "dog"):
        (tmp_path / label).mkdir()
        soundfile.write(tmp_path / label / "1.wav", torch.randn(16_000).numpy() * 0.1, 16_000)
    (tmp_path / "dog" / "1.wav").write_text("?")
    report = load_folder(tmp_path).check(progress=False, min_clips=2)
    assert "2 clips, 1 problem;" in str(report)
    assert "1 clip, fewer than 2" in str(report)
    (tmp_path / "dog" / "phone.m4a").write_bytes(b"....")
    with pytest.warns(adapterbank.errors.SkippedClipsWarning) as told:
        dataset = load_folder(tmp_path, on_error="skip", progress=False)
    said = " ".join(str(warning.message) for warning in told)
    assert "1 file (dog/phone.m4a) is audio" in said
    assert "It is left out" in said
    assert "1 file (dog/1.wav) of 2 cannot be read and is left out" in said
    assert "1 clip, 2 classes)" in repr(dataset)
    assert "on 1 clip:" in repr(Evaluation({}, torch.tensor([[1.0, 0.0]]), torch.tensor([0])))


COUNTED = "clips|files|classes|tasks|windows|problems|groups|samples|settings|datasets|shards|tensors"


def test_nothing_that_the_package_says_puts_a_plural_behind_a_bare_number():
    """`{len(x)} clips` says "1 clips"; `amount(len(x), "clip")` does not."""
    root = Path(adapterbank.__file__).parent
    bare = re.compile(rf"\{{len\([^{{}}]*\)(?::,)?\}} (?:{COUNTED})\b")
    found = [f"{file.name}: {hit[0]}" for file in root.rglob("*.py") for hit in bare.finditer(file.read_text("utf-8"))]
    assert found == []
