"""The front door: adding, asking and refusing."""

from __future__ import annotations

import copy
import math
import pickle

import pytest
import torch
from sklearn.metrics import accuracy_score, balanced_accuracy_score

from adapterbank import Prediction
from adapterbank.backbone.checkpoints import load_backbone
from adapterbank.bank import AdapterBank
from adapterbank.errors import (
    AdapterBankError,
    ConfigError,
    DatasetError,
    LabelsError,
    NameTakenError,
    UnknownNameError,
    WaveformError,
)


def test_a_bank_is_no_module_and_its_tasks_are_read_only(small_bank):
    assert not isinstance(small_bank, torch.nn.Module)
    assert not hasattr(small_bank, "train")
    assert not hasattr(small_bank, "state_dict")
    with pytest.raises(TypeError):
        small_bank.tasks["new"] = small_bank.task("notes")
    assert list(small_bank.tasks) == ["notes", "tones", "studio", "mix", "own", "probe"]


def test_one_name_gives_one_tensor_and_a_list_one_vector_per_row(small_bank, clips):
    logits = small_bank(clips, "tones")
    assert logits.shape == (6, 4)
    assert not logits.requires_grad
    rows = small_bank(clips, ["tones", "notes", "own", "mix", "studio", "probe"])
    assert [tuple(row.shape) for row in rows] == [(4,), (3,), (4,), (3,), (5,), (5,)]


def test_a_tensor_of_rows_equals_a_list_of_clips(small_bank, clips):
    stack = torch.stack([clip[:4500] for clip in clips])
    assert torch.equal(small_bank(stack, "mix"), small_bank(list(stack), "mix"))
    assert torch.equal(small_bank(stack.numpy(), "mix"), small_bank(stack, "mix"))


def test_the_call_runs_on_every_device(small_bank, clips, device):
    expected = small_bank(clips, "mix")
    moved = small_bank.to(device)
    assert moved is small_bank
    assert moved(clips, "mix").device.type == device.type
    torch.testing.assert_close(moved(clips, "mix").cpu(), expected, rtol=0, atol=1e-3)


def test_other_sample_rates_are_resampled(small_bank, clips, at_16_khz):
    resampled = [at_16_khz(clip, 8000) for clip in clips]
    expected = small_bank(resampled, "mix")
    torch.testing.assert_close(small_bank(clips, "mix", sample_rate=8000), expected, rtol=0, atol=1e-4)


def test_embeddings_know_no_task_and_are_cls_and_dist_after_the_final_norm(small_bank, clips):
    from adapterbank.audio.mel import log_mel
    from adapterbank.backbone.encode import Segment, encode
    from adapterbank.backbone.sites import NOTHING

    features = small_bank.embed(clips)
    assert features.shape == (6, 48)
    backbone = small_bank.backbone
    for feature, clip in zip(features, clips, strict=True):
        mel = log_mel([clip], 128)[0]
        mel = torch.nn.functional.pad(mel, (0, 0, 0, -len(mel) % 16))
        mel = (mel - backbone.mean) / (2 * backbone.std)
        (tokens,) = encode([mel[None]], [Segment((NOTHING,) * 2, backbone.weights)], backbone.geometry)
        torch.testing.assert_close(feature, tokens[0, :2].mean(0), rtol=0, atol=1e-5)
    for name in list(small_bank.tasks):
        small_bank.remove_task(name)
    assert torch.equal(small_bank.embed(clips), features)


def test_mean_embeddings_are_the_mean_over_all_tokens(small_bank, clips):
    from adapterbank.backbone.encode import Segment, encode
    from adapterbank.backbone.sites import NOTHING
    from adapterbank.routing.run import mels_of

    backbone = small_bank.backbone
    (mel,) = mels_of(backbone, clips[:1])
    mel = torch.nn.functional.pad(mel, (0, 0, 0, -len(mel) % 16))
    mel = (mel - backbone.mean) / (2 * backbone.std)
    (tokens,) = encode([mel[None]], [Segment((NOTHING,) * 2, backbone.weights)], backbone.geometry)
    torch.testing.assert_close(small_bank.embed(clips[:1], pooling="mean"), tokens.mean(1), rtol=0, atol=1e-5)
    with pytest.raises(UnknownNameError, match="cls_dist, mean"):
        small_bank.embed(clips, pooling="max")


def test_predictions_are_sorted_probabilities(small_bank, clips):
    logits = small_bank(clips, "tones")
    for prediction, row in zip(small_bank.predict(clips, "tones"), logits, strict=True):
        expected = (row.exp() / row.exp().sum()).tolist()
        assert isinstance(prediction, Prediction)
        assert prediction.task == "tones"
        assert list(prediction.probabilities) == sorted(prediction.probabilities, reverse=True)
        by_label = dict(zip(prediction.labels, prediction.probabilities, strict=True))
        assert by_label == pytest.approx({str(index): p for index, p in enumerate(expected)}, abs=1e-6)
        assert prediction.confidence == prediction.probabilities[0]
        assert math.isclose(sum(prediction.probabilities), 1, abs_tol=1e-5)


def test_predictions_take_any_iterable_of_names_as_calls_do(small_bank, clips):
    names = ["tones", "notes", "tones", "mix", "own", "notes"]
    assert small_bank.predict(clips, iter(names)) == small_bank.predict(clips, names)
    assert [prediction.task for prediction in small_bank.predict(clips, (name for name in names))] == names


def test_a_prediction_has_the_labels_of_the_task_that_ran(small_bank, clips):
    expected = small_bank.predict(clips, "tones")

    def replaced_meanwhile(*ignored):  # what another thread may do while the rows are on their way
        small_bank.remove_task("tones")
        small_bank.add_task("tones", "head", labels=["w", "x", "y", "z"])

    small_bank.task("tones").head.register_forward_hook(replaced_meanwhile)
    assert small_bank.predict(clips, "tones") == expected
    assert small_bank.task("tones").labels == ("w", "x", "y", "z")


def test_multilabel_predictions_are_independent(small_bank, clips):
    small_bank.add_task("tags", "head", labels=["x", "y"], multilabel=True)
    mixed = small_bank.predict(clips, ["tags", "tones"] * 3)
    assert [prediction.task for prediction in mixed] == ["tags", "tones"] * 3
    for prediction, row in zip(mixed[::2], small_bank(clips, "tags")[::2], strict=True):
        expected = dict(zip("xy", (1 / (1 + (-row).exp())).tolist(), strict=True))
        assert dict(zip(prediction.labels, prediction.probabilities, strict=True)) == pytest.approx(expected, abs=1e-5)


def test_evaluation_equals_sklearn_and_is_kept(small_bank, labelled_clips):
    small_bank.add_task("families", "aat_ms", labels=["bass", "brass", "organ"])
    truth = [label for _, label in labelled_clips]
    guess = [p.labels[0] for p in small_bank.predict([wave for wave, _ in labelled_clips], "families")]
    for batch_size in (1, 5, 32):
        metrics = small_bank.evaluate("families", labelled_clips, batch_size=batch_size)
        assert metrics["accuracy"] == pytest.approx(accuracy_score(truth, guess))
        assert metrics["balanced_accuracy"] == pytest.approx(balanced_accuracy_score(truth, guess))
    assert small_bank.task("families").metrics == metrics
    assert small_bank.evaluate("families", iter(labelled_clips)) == pytest.approx(metrics, abs=1e-5)


def test_evaluation_of_nothing_or_of_foreign_labels_is_refused(small_bank, clips):
    with pytest.raises(DatasetError, match="got no clips to evaluate 'notes'"):
        small_bank.evaluate("notes", [])
    with pytest.raises(LabelsError, match="the data has the label 'dog'"):
        small_bank.evaluate("notes", [(clips[0], "dog")])
    with pytest.raises(ConfigError, match="batch_size=0"):
        small_bank.evaluate("notes", [(clips[0], 0)], batch_size=0)
    assert small_bank.task("notes").metrics == {}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({}, "the task 'new' needs labels=.* or num_classes=.*only known datasets bring their own: esc50, gtzan"),
        ({"labels": []}, "got no labels"),
        ({"labels": "abc"}, "got 'abc' as labels, expected a list of class names"),
        ({"labels": 3}, "got 3 as labels, expected a list"),
        ({"labels": ["a", "a"]}, "stands twice"),
        ({"labels": ["a", 1]}, "expected non-empty strings"),
        ({"labels": ["a"], "num_classes": 2}, "got 1 label and num_classes=2"),
        ({"num_classes": 0}, "num_classes=0, expected a positive integer"),
        ({"num_classes": 2.0}, "num_classes=2.0"),
    ],
)
def test_missing_or_impossible_labels_leave_the_bank_as_it_was(arguments, message, small_bank):
    before = dict(small_bank.tasks)
    with pytest.raises(LabelsError, match=message) as error:
        small_bank.add_task("new", "head", **arguments)
    assert isinstance(error.value, AdapterBankError)
    assert dict(small_bank.tasks) == before


def test_a_name_taken_is_refused_and_nothing_overwritten(small_bank):
    before, weight = dict(small_bank.tasks), small_bank.task("notes").head.linear.weight.clone()
    with pytest.raises(NameTakenError, match=r"a task 'notes' exists; remove_task\('notes'\) first"):
        small_bank.add_task("notes", "head", num_classes=9)
    with pytest.raises(NameTakenError, match="a task 'tones' exists"):
        small_bank.rename_task("notes", "tones")
    assert dict(small_bank.tasks) == before
    assert torch.equal(small_bank.task("notes").head.linear.weight, weight)


@pytest.mark.parametrize("name", ["tone", "audioset", "", "base", "Tones", None, 3, ("tones",)])
def test_an_unknown_task_never_falls_through_to_the_base_or_another(name, small_bank, clips):
    calls = [
        lambda: small_bank(clips[:1], name if isinstance(name, (str, int, type(None))) else [name]),
        lambda: small_bank(clips[:1], [name]),
        lambda: small_bank.predict(clips[:1], [name]),
        lambda: small_bank.evaluate(name, []),
        lambda: small_bank.task(name),
        lambda: small_bank.task_module(name),
        lambda: small_bank.remove_task(name),
        lambda: small_bank.rename_task(name, "x"),
        lambda: small_bank.trainable_parameters(name),
    ]
    before = dict(small_bank.tasks)
    for call in calls:
        with pytest.raises(
            UnknownNameError, match="unknown task .*Known: mix, notes, own, probe, studio, tones. Add it"
        ):
            call()
    assert dict(small_bank.tasks) == before


def test_a_near_name_is_proposed(small_bank):
    with pytest.raises(UnknownNameError, match="unknown task 'tone'. Did you mean 'tones'?"):
        small_bank.task("tone")


@pytest.mark.parametrize("names", [["notes"], ["notes"] * 7, [], ("notes", "tones")])
def test_a_task_list_of_another_length_is_refused(names, small_bank, clips):
    with pytest.raises(
        ConfigError, match=f"got {len(names)} task names? for 6 clips, expected one name, or one per clip"
    ):
        small_bank(clips, names)
    with pytest.raises(ConfigError, match="for 6 clips"):
        small_bank.predict(clips, names)


@pytest.mark.parametrize(
    "bad",
    [[], torch.zeros(2, 96), [torch.full((900,), math.nan)], torch.ones(1, 900).int(), torch.full((900,), 1e20)],
)
def test_bad_waveforms_are_refused_at_every_door(bad, small_bank):
    doors = [
        lambda: small_bank(bad, "notes"),
        lambda: small_bank(bad, ["notes"]),
        lambda: small_bank.predict(bad, "notes"),
        lambda: small_bank.embed(bad),
        lambda: small_bank.task_module("notes")(bad),
    ]
    for door in doors:
        with pytest.raises(WaveformError):
            door()


def test_a_removed_task_is_gone_and_its_name_free(small_bank, clips):
    import gc
    import weakref

    held = weakref.ref(small_bank.task("own"))
    small_bank.remove_task("own")
    gc.collect()
    assert held() is None
    with pytest.raises(UnknownNameError):
        small_bank(clips, "own")
    small_bank.add_task("own", "head", num_classes=2)
    assert small_bank(clips, "own").shape == (6, 2)


def test_a_renamed_task_keeps_its_place_and_its_answers(small_bank, clips):
    before = small_bank(clips, "tones")
    small_bank.rename_task("tones", "lexical-tones")
    assert list(small_bank.tasks) == ["notes", "lexical-tones", "studio", "mix", "own", "probe"]
    assert torch.equal(small_bank(clips, "lexical-tones"), before)
    assert small_bank.task("lexical-tones").name == "lexical-tones"
    assert small_bank.predict(clips[:1], "lexical-tones")[0].task == "lexical-tones"


def test_a_task_module_holds_exactly_the_tasks_parameters_and_gives_gradients(small_bank, clips):
    for name, task in small_bank.tasks.items():
        module = small_bank.task_module(name)
        assert {id(p) for p in module.parameters()} == {id(p) for p in task.parameters()}
        assert sum(p.numel() for p in module.parameters()) == small_bank.trainable_parameters(name)
        assert not list(module.buffers())
        logits = module(clips)
        assert torch.equal(logits.detach(), small_bank(clips, name))
        logits.square().sum().backward()
        assert all(p.grad is not None for n, p in module.named_parameters() if not n.endswith("k_bias"))
        assert not any(t.requires_grad or t.grad is not None for _, t in small_bank.backbone.weights.named())


def test_a_task_module_survives_a_pickle(small_bank, clips):
    module = pickle.loads(pickle.dumps(small_bank.task_module("notes")))  # as launchers that spawn processes do
    assert torch.equal(module(clips), small_bank.task_module("notes")(clips))


def test_the_summary_shows_every_task_its_size_and_its_metric(small_bank, labelled_clips, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "160")
    small_bank.evaluate("notes", [(wave, index % 3) for index, (wave, _) in enumerate(labelled_clips)])
    small_bank.summary()
    printed = capsys.readouterr().out
    lines = printed.splitlines()
    base = small_bank.backbone.num_parameters()
    for name, task in small_bank.tasks.items():
        line = next(line for line in lines if f" {name} " in line)
        count = sum(p.numel() for p in task.parameters())
        for part in (task.method, f"{count:,}", f"{100 * count / base:.2f}", f"{4 * count:,}", str(len(task.labels))):
            assert part in line
    assert f"accuracy {small_bank.task('notes').metrics['accuracy']:.3f}" in printed
    assert f"{base:,} frozen parameters" in printed


def test_the_summary_is_also_returned_as_rows(small_bank, labelled_clips):
    metrics = small_bank.evaluate("notes", [(wave, index % 3) for index, (wave, _) in enumerate(labelled_clips)])
    rows = small_bank.summary()
    assert [row.task for row in rows] == list(small_bank.tasks)
    assert (rows[0].metric, rows[0].value) == ("accuracy", metrics["accuracy"])
    assert math.isnan(rows[1].value)
    for row in rows:
        task = small_bank.task(row.task)
        count = small_bank.trainable_parameters(row.task)
        assert (row.method, row.classes, row.parameters, row.bytes) == (task.method, len(task.labels), count, 4 * count)
        assert row.percent_of_base == 100 * count / small_bank.backbone.num_parameters()


def test_the_summary_of_an_empty_bank_prints(small_backbone, capsys):
    AdapterBank(small_backbone).summary()
    assert "frozen" in capsys.readouterr().out


# -- opening ----------------------------------------------------------------------------------------------------------


def test_a_bank_can_be_made_on_a_backbone_that_is_open(small_backbone, hf_model, hf_folder):
    assert list(AdapterBank.from_pretrained(small_backbone, device="cpu").tasks) == []
    folder = hf_folder(hf_model(num_labels=4))
    named, given = AdapterBank.from_pretrained(folder), AdapterBank.from_pretrained(load_backbone(folder))
    assert given.backbone.fingerprint == named.backbone.fingerprint
    assert list(given.tasks) == list(named.tasks) == ["audioset"]


def test_every_argument_goes_with_every_kind_of_source(small_bank, tmp_path, hf_model, hf_folder, clips):
    folder = hf_folder(hf_model())
    new = AdapterBank.from_pretrained(folder, stride=12, resident=1)
    for name in ("a", "b", "c"):
        new.add_task(name, "head", num_classes=2)
    expected = {name: new(clips, name) for name in new.tasks}  # a new bank has no files, so nothing is put back
    new.save(tmp_path / "bank")
    saved = AdapterBank.from_pretrained(tmp_path / "bank", stride=12, resident=1)
    assert all(torch.equal(saved(clips, name), logits) for name, logits in expected.items())
    assert AdapterBank.from_pretrained(saved.backbone, stride=12, resident=2).backbone.geometry.time_stride == 12
    for source in (tmp_path / "bank", saved.backbone):
        with pytest.raises(ConfigError, match="got stride=10, .* at a stride of 12. Leave the argument out"):
            AdapterBank.from_pretrained(source, stride=10)


def test_a_bank_can_be_copied_and_pickled(small_bank, clips):
    for other in (copy.copy(small_bank), copy.deepcopy(small_bank), pickle.loads(pickle.dumps(small_bank))):
        assert torch.equal(other(clips, "mix"), small_bank(clips, "mix"))
