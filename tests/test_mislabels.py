"""Probable mislabels: against the definition written as loops, and on labels that were swapped on purpose."""

from __future__ import annotations

import pytest
import torch

from adapterbank.data import demo_tasks, load_folder
from adapterbank.errors import ConfigError, LabelsError, UnknownNameError
from adapterbank.mislabels import Mislabel, doubted, probable_mislabels


def by_loops(probabilities, targets):
    """Northcutt et al. (2021), equation 1, as it is written there."""
    classes = range(len(probabilities[0]))
    bars = {}
    for j in classes:
        own = [p[j] for p, target in zip(probabilities, targets, strict=True) if target == j]
        if own:
            bars[j] = sum(own) / len(own)
    found = []
    for row, (p, target) in enumerate(zip(probabilities, targets, strict=True)):
        confident = [j for j in classes if j in bars and p[j] >= bars[j]]
        if confident and (heard := max(confident, key=lambda j: p[j])) != target:
            found.append((row, target, heard))
    return found


@pytest.mark.parametrize("seed", range(5))
def test_doubts_are_those_of_the_definition(seed):
    generator = torch.Generator().manual_seed(seed)
    probabilities = (3 * torch.randn(60, 5, generator=generator, dtype=torch.float64)).softmax(dim=1)
    targets = torch.randint(0, 4, (60,), generator=generator)  # the last class has no clip
    found = [entry[:3] for entry in doubted(probabilities, targets)]
    assert found == by_loops(probabilities.tolist(), targets.tolist())
    assert found


def test_labels_that_were_swapped_are_found_among_clear_answers():
    truth = torch.arange(120) % 4
    logits = 4 * torch.nn.functional.one_hot(truth, 4) + torch.randn(120, 4)
    given = truth.clone()
    given[:10] = (given[:10] + 1) % 4
    found = {row for row, *_ in doubted(logits.softmax(dim=1), given)}
    swapped = set(range(10))
    assert len(found & swapped) >= 6
    assert len(found - swapped) <= 2
    with pytest.raises(LabelsError, match="expected"):
        doubted(logits, given[:3])


def test_a_bank_names_clips_with_what_it_hears_and_the_report_shows_them(small_bank, randomise):
    dataset = load_folder(demo_tasks()["instruments"]).subset(indices=range(0, 60, 3))
    small_bank.add_task("heard", "head", labels=dataset.labels)
    randomise(small_bank.task("heard"), scale=0.5)
    doubts = probable_mislabels(small_bank, "heard", dataset)
    logits = small_bank([wave for wave, _ in dataset], "heard")
    targets = torch.tensor([dataset.labels.index(label) for label in dataset.targets])
    expected = by_loops(logits.double().softmax(dim=1).tolist(), targets.tolist())
    assert sorted((d.index, d.label, d.suggestion) for d in doubts) == [
        (row, dataset.labels[given], dataset.labels[heard]) for row, given, heard in expected
    ]
    assert doubts
    margins = [doubt.probability - doubt.given for doubt in doubts]
    assert margins == sorted(margins, reverse=True)
    report = dataset.check(suspects=doubts, progress=False)
    rows = report.of("probable mislabel")
    assert [row.file for row in rows] == [dataset.files[doubt.index] for doubt in doubts]
    assert doubts[0].suggestion in rows[0].detail
    with pytest.raises(ConfigError, match="expected 0 to 1"):
        dataset.subset(indices=[0, 1]).check(suspects=[Mislabel(7, "a", "b", 0.9, 0.1)], progress=False)
    with pytest.raises(UnknownNameError, match="nobody"):
        probable_mislabels(small_bank, "nobody", dataset)


def test_each_label_of_a_multilabel_task_is_a_question_of_its_own(small_bank, randomise, clips):
    small_bank.add_task("many", "head", labels=["a", "b"], multilabel=True)
    randomise(small_bank.task("many"), scale=0.5)
    data = [(wave, [("a",), ("b",), ("a", "b"), ()][place % 4]) for place, wave in enumerate(clips)]
    doubts = probable_mislabels(small_bank, "many", data)
    yes = small_bank(clips, "many").double().sigmoid()
    expected = []
    for column, name in enumerate(("a", "b")):
        targets = [int(name in labels) for _, labels in data]
        pairs = [[1 - p, p] for p in yes[:, column].tolist()]
        expected += [(row, name if given else f"not {name}") for row, given, _ in by_loops(pairs, targets)]
    assert sorted((doubt.index, doubt.label) for doubt in doubts) == sorted(expected)
