"""LoRA tasks from peft: equal logits on transformers' AST; what LoRA here cannot express is refused by name."""

from __future__ import annotations

import json
import pickle

import pytest
import torch
from safetensors.torch import load_file, save_file

from adapterbank.backbone.checkpoints.opening import load_backbone
from adapterbank.bank import AdapterBank
from adapterbank.errors import (
    AdapterBankError,
    BackboneMismatchError,
    ConfigError,
    InvalidNameError,
    LabelsError,
    NameTakenError,
    StorageError,
)

# peft 0.21 asks transformers 5.23 for a deprecated property.
pytestmark = pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing:FutureWarning")
KINDS = {"lora": {}, "rslora": {"use_rslora": True}, "dora": {"use_dora": True}}
SIZES = {"frequency_stride": 16, "time_stride": 16, "num_labels": 3}


def edited(folder, **changes):
    """Another configuration; None takes a key away."""
    path = folder / "adapter_config.json"
    config = {**json.loads(path.read_text()), **changes}
    path.write_text(json.dumps({key: value for key, value in config.items() if value is not None}))


def retensored(folder, change):
    path = folder / "adapter_model.safetensors"
    tensors = load_file(path)
    change(tensors)
    save_file(tensors, path)


@pytest.mark.parametrize("targets", [("q", "v"), ("q", "k", "v", "proj", "fc1", "fc2")])
@pytest.mark.parametrize("layers", [(0, 1), (1,)])
@pytest.mark.parametrize("kind", KINDS)
def test_what_peft_saved_answers_alike(kind, layers, targets, lora_bank, in_peft, clip, tmp_path, heard):
    wrapped = in_peft(targets, layers, lora_dropout=0.25, **KINDS[kind])
    wrapped.save_pretrained(tmp_path / "birds")
    task = lora_bank.import_task(tmp_path / "birds", labels=["owl", "wren", "crow"])
    with torch.no_grad():
        expected = wrapped(heard(clip)).logits
    torch.testing.assert_close(lora_bank([clip], "birds"), expected, rtol=0, atol=1e-5)
    assert (lora_bank([clip], "birds") - task.head(lora_bank.embed([clip]))).abs().max() > 0.01
    assert task.labels == ("owl", "wren", "crow")
    assert task.spec.options == {
        "targets": list(targets), "rank": 4, "alpha": 12, "dropout": 0.25, "rslora": kind == "rslora",
        "dora": kind == "dora", "layers": "all" if len(layers) == 2 else [1],
    }  # fmt: skip


def test_a_short_clip_hears_the_padding_of_transformers(lora_bank, in_peft, clips, tmp_path):
    from transformers import ASTFeatureExtractor

    wrapped = in_peft()
    wrapped.save_pretrained(tmp_path / "birds")
    lora_bank.import_task(tmp_path / "birds")
    inputs = ASTFeatureExtractor(max_length=128)(clips[0].numpy(), sampling_rate=16_000, return_tensors="pt")
    with torch.no_grad():
        expected = wrapped(**inputs).logits
    torch.testing.assert_close(lora_bank(clips[:1], "birds"), expected, rtol=0, atol=1e-4)  # two front ends


@pytest.mark.parametrize("targets", ["all-linear", r".*\.(0|1)\..*(query|value|q_proj|v_proj)"])
def test_targets_by_pattern_are_read_from_the_tensors(targets, lora_bank, in_peft, clip, tmp_path, heard):
    wrapped = in_peft(target_modules=targets)
    wrapped.save_pretrained(tmp_path / "birds")
    task = lora_bank.import_task(tmp_path / "birds")
    with torch.no_grad():
        expected = wrapped(heard(clip)).logits
    torch.testing.assert_close(lora_bank([clip], "birds"), expected, rtol=0, atol=1e-5)
    wanted = ["q", "k", "v", "proj", "fc1", "fc2"] if targets == "all-linear" else ["q", "v"]
    assert task.spec.options["targets"] == wanted


def test_a_body_without_classifier_gets_a_new_head(lora_bank, in_peft, peft_base, clip, tmp_path, heard):
    wrapped = in_peft(body=True, modules_to_save=["layernorm"])
    wrapped.save_pretrained(tmp_path / "body")
    with pytest.raises(LabelsError, match="holds no head; pass labels=.*or num_classes"):
        lora_bank.import_task(tmp_path / "body")
    task = lora_bank.import_task(tmp_path / "body", num_classes=5)
    assert task.spec.train_final_norm
    with torch.no_grad():
        hidden = wrapped(heard(clip)).pooler_output
        torch.testing.assert_close(lora_bank([clip], "body"), task.head(hidden), rtol=0, atol=1e-5)
    assert lora_bank([clip], "body").shape == (1, 5)


def test_either_naming_scheme_gives_the_same_bits(lora_bank, peft_folder, tmp_path):
    lora_bank.import_task(peft_folder, name="first")
    for names in ("old", "new"):
        lora_bank.export("first", "peft", tmp_path / names, names=names)
        keys = load_file(tmp_path / names / "adapter_model.safetensors").keys()
        assert any(".encoder.layer." in key for key in keys) == (names == "old")
        again = lora_bank.import_task(tmp_path / names)
        for key, tensor in lora_bank.task("first").state_dict().items():
            assert torch.equal(again.state_dict()[key], tensor)


def test_name_labels_and_normalisation_come_from_the_folder(lora_bank, peft_folder):
    (peft_folder / "config.json").write_text(json.dumps({"id2label": {"0": "owl", "1": "wren", "2": "crow"}}))
    (peft_folder / "preprocessor_config.json").write_text(json.dumps({"mean": -6.5, "std": 5.25}))
    task = lora_bank.import_task(peft_folder)
    assert task.name == "bird-songs-v2-"
    assert task.labels == ("owl", "wren", "crow")
    assert task.mean_std == (-6.5, 5.25)
    assert lora_bank.import_task(
        peft_folder, name="again", num_classes=3, multilabel=True, clip_seconds=0.5
    ).spec.multilabel
    with pytest.raises(NameTakenError, match="holds the task 'again', which exists"):
        lora_bank.import_task(peft_folder, name="again")


def test_half_precision_adapters_are_widened(lora_bank, peft_folder):
    retensored(peft_folder, lambda t: t.update({key: tensor.bfloat16() for key, tensor in t.items()}))
    task = lora_bank.import_task(peft_folder, name="birds")
    assert {p.dtype for p in task.parameters()} == {torch.float32}


def test_one_alpha_may_be_given_by_a_pattern(lora_bank, in_peft, hf_blocks, peft_base, clip, tmp_path, heard):
    linears = hf_blocks(peft_base)[0].linears
    names = [linears[name].rpartition(".")[2] for name in ("q", "v")]
    wrapped = in_peft(alpha_pattern=dict.fromkeys(names, 3), rank_pattern=dict.fromkeys(names, 2))
    wrapped.save_pretrained(tmp_path / "birds")
    task = lora_bank.import_task(tmp_path / "birds")
    assert (task.spec.options["rank"], task.spec.options["alpha"]) == (2, 3)
    with torch.no_grad():
        expected = wrapped(heard(clip)).logits
    torch.testing.assert_close(lora_bank([clip], "birds"), expected, rtol=0, atol=1e-5)


# -- folders that are wrong -----------------------------------------------------------------------------------------


def refused(lora_bank, folder, error, message, **options):
    """The import fails with a reason, and the bank is as it was."""
    names = list(lora_bank.tasks)
    bits = {name: {k: t.clone() for k, t in task.state_dict().items()} for name, task in lora_bank.tasks.items()}
    with pytest.raises(error, match=message) as caught:
        lora_bank.import_task(folder, **options)
    assert isinstance(caught.value, AdapterBankError)
    assert list(lora_bank.tasks) == names
    for name, tensors in bits.items():
        assert all(torch.equal(lora_bank.task(name).state_dict()[key], tensor) for key, tensor in tensors.items())


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"peft_type": "IA3"}, ConfigError, "peft_type 'IA3', expected 'LORA'"),
        ({"bias": "lora_only"}, ConfigError, "bias='lora_only'.*Expected bias='none'"),
        ({"lora_bias": True}, ConfigError, "lora_bias=True, which the method 'lora' cannot express"),
        ({"layer_replication": [[0, 1], [0, 2]]}, ConfigError, "layer_replication="),
        ({"use_some_new_lora": True}, ConfigError, "use_some_new_lora=True"),
        ({"init_lora_weights": "pissa"}, ConfigError, "'pissa', which changes the base's own weights.*plain LoRA"),
        ({"alpha_pattern": {"q_proj": 3, "query": 3}}, ConfigError, "alpha_pattern=.*one alpha for all"),
        ({"alpha_pattern": {"(a+)+$": 3}}, ConfigError, "alpha_pattern=.*one alpha for all"),
        ({"alpha_pattern": {"q_proj": [3]}}, StorageError, "expected an object of numbers"),
        ({"alpha_pattern": [3]}, StorageError, "expected an object of numbers"),
        ({"r": 8}, StorageError, "says r=8, its tensors have rank 4"),
        ({"use_dora": True}, StorageError, "says use_dora=True, its lora_magnitude_vector tensors do not"),
        ({"use_rslora": "no"}, StorageError, "use_rslora='no', expected true or false"),
        ({"lora_alpha": "x"}, StorageError, "lora_alpha='x', expected a number"),
        ({"lora_alpha": -1}, ConfigError, "alpha=-1"),
        ({"lora_alpha": 10**400}, StorageError, "expected a number"),
        ({"lora_dropout": 2}, ConfigError, "dropout=2"),
    ],
)
def test_a_configuration_that_lora_cannot_express_is_refused_by_name(changes, error, message, lora_bank, peft_folder):
    edited(peft_folder, **changes)
    refused(lora_bank, peft_folder, error, message)


def test_layers_that_differ_are_refused(lora_bank, in_peft, hf_blocks, peft_base, tmp_path):
    first, second = (block.linears for block in hf_blocks(peft_base))
    in_peft(target_modules=[first["q"], second["v"]]).save_pretrained(tmp_path / "uneven")
    refused(lora_bank, tmp_path / "uneven", ConfigError, "other linears in some blocks than in others")


def test_ranks_that_differ_are_refused(lora_bank, in_peft, hf_blocks, peft_base, tmp_path):
    in_peft(rank_pattern={hf_blocks(peft_base)[0].linears["q"].rpartition(".")[2]: 2}).save_pretrained(
        tmp_path / "ranks"
    )
    refused(lora_bank, tmp_path / "ranks", ConfigError, r"ranks \[2, 4\] \(rank_pattern\)")


def test_an_adapted_classifier_is_refused(lora_bank, in_peft, tmp_path):
    in_peft(target_modules="all-linear", modules_to_save=None).save_pretrained(tmp_path / "linear")
    refused(lora_bank, tmp_path / "linear", ConfigError, "adapts 'classifier.dense'.*modules_to_save=")


def test_another_module_to_save_is_refused(lora_bank, in_peft, tmp_path):
    in_peft(modules_to_save=["embeddings"]).save_pretrained(tmp_path / "emb")
    refused(lora_bank, tmp_path / "emb", ConfigError, "embeddings.*which the method 'lora' cannot take")


@pytest.mark.parametrize(
    ("sizes", "message"),
    [
        ({"hidden_size": 24, "intermediate_size": 96}, r"a linear of \(48, 48\) at 'q' of block 0.*is \(24, 24\)"),
        ({"num_hidden_layers": 1}, "adapts block 1, .* has blocks 0 to 0"),
    ],
)
def test_another_base_is_refused(sizes, message, peft_folder, hf_model, hf_folder):
    bank = AdapterBank(load_backbone(hf_folder(hf_model(**SIZES, **sizes))))
    refused(bank, peft_folder, BackboneMismatchError, message)


def test_an_export_knows_its_base_by_fingerprint(lora_bank, hf_model, hf_folder, tmp_path):
    lora_bank.add_task("birds", "lora", num_classes=2)
    lora_bank.export("birds", "peft", tmp_path / "birds")
    other = AdapterBank(load_backbone(hf_folder(hf_model(seed=1, **SIZES))))
    refused(other, tmp_path / "birds", BackboneMismatchError, "was made for the backbone")


def test_pickle_is_never_read(lora_bank, peft_folder, capsys):
    class Bomb:
        def __reduce__(self):
            return print, ("code has run",)

    (peft_folder / "adapter_model.safetensors").unlink()
    (peft_folder / "adapter_model.bin").write_bytes(pickle.dumps(Bomb()))
    refused(lora_bank, peft_folder, StorageError, "is a pickle, which can run code.*save_pretrained")
    assert "code has run" not in capsys.readouterr().out


def _drop(end):
    return lambda tensors: tensors.pop(next(key for key in tensors if key.endswith(end)))


def _set(end, make):
    def change(tensors):
        key = next(key for key in tensors if key.endswith(end))
        tensors[key] = make(tensors[key]).contiguous()

    return change


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (_drop("lora_B.weight"), "only one of lora_A and lora_B"),
        (_drop("classifier.dense.bias"), "holds a head without head.linear.bias"),
        (_drop("classifier.layernorm.weight"), "holds a head without head.norm.weight"),
        (_set("lora_A.weight", lambda t: t[:3]), "lora_A .3, 48. and lora_B .48, 4. of .* do not fit"),
        (_set("lora_A.weight", lambda t: t.flatten()), "do not fit"),
        (_set("lora_A.weight", lambda t: t.int()), "is of type torch.int32, expected floating point"),
        (_set("lora_B.weight", lambda t: t * float("nan")), "holds NaN or Inf"),
        (_set("classifier.dense.weight", lambda t: t[:, :5]), "does not fit 'lora': tensors head.linear.weight"),
        (lambda t: [t.pop(key) for key in list(t) if "lora" in key], "holds no lora_A and lora_B"),
    ],
)
def test_tensors_that_do_not_fit_are_refused(change, message, lora_bank, peft_folder):
    retensored(peft_folder, change)
    refused(lora_bank, peft_folder, AdapterBankError, message)
    refused(lora_bank, peft_folder, AdapterBankError, message, labels=["a", "b", "c"])  # no new head for a damaged one


def test_a_tensor_under_both_namings_is_refused(lora_bank, tmp_path):
    lora_bank.add_task("birds", "lora", num_classes=2)
    for names in ("old", "new"):
        lora_bank.export("birds", "peft", tmp_path / names, names=names)
    other = load_file(tmp_path / "old" / "adapter_model.safetensors")

    def add(tensors):
        tensors |= {key: tensor + 1 for key, tensor in other.items() if "lora_A" in key}

    retensored(tmp_path / "new", add)
    refused(lora_bank, tmp_path / "new", StorageError, "holds .* twice, under two names")


def test_an_export_of_another_format_version_is_refused(lora_bank, tmp_path, monkeypatch):
    lora_bank.add_task("birds", "lora", num_classes=2)
    # Written as a later release will: no file of one exists yet.
    monkeypatch.setattr("adapterbank.storage.task_file.FORMAT_VERSION", 99)
    lora_bank.export("birds", "peft", tmp_path / "later")
    monkeypatch.undo()
    refused(lora_bank, tmp_path / "later", StorageError, "exported by another version of this library", name="new")


def test_a_damaged_folder_is_refused(lora_bank, peft_folder, tmp_path):
    config, tensors = peft_folder / "adapter_config.json", peft_folder / "adapter_model.safetensors"
    content = tensors.read_bytes()
    tensors.write_bytes(content[:-9])
    refused(lora_bank, peft_folder, StorageError, "It is cut, or no safetensors file")
    tensors.unlink()
    refused(lora_bank, peft_folder, StorageError, "has no adapter_model.safetensors beside adapter_config.json")
    for text in ("{", "[]", "\x00"):
        config.write_text(text)
        refused(lora_bank, peft_folder, StorageError, "adapter_config.json")
    config.unlink()
    refused(lora_bank, peft_folder, StorageError, "adapter_config.json is missing; peft writes it")
    refused(lora_bank, tmp_path, StorageError, "adapter_config.json is missing")
    lora_bank.save(tmp_path / "bank")
    refused(lora_bank, tmp_path / "bank", StorageError, "is a saved bank")
    file = next((tmp_path / "bank" / "tasks").iterdir())
    refused(lora_bank, file, ConfigError, "got labels for .*: that is for folders of peft", labels=["a"])
    assert lora_bank.import_task(file, name="twin").name == "twin"


def test_a_folder_of_several_adapters_says_which(lora_bank, in_peft, tmp_path):
    in_peft().save_pretrained(tmp_path / "run" / "checkpoint-7")
    refused(lora_bank, tmp_path / "run", StorageError, "its folders checkpoint-7 have one: import one of them")


def test_wrong_labels_and_names_are_refused(lora_bank, peft_folder):
    refused(lora_bank, peft_folder, LabelsError, "got 2 labels for .*, expected 3", labels=["a", "b"])
    refused(lora_bank, peft_folder, LabelsError, "got 4 labels for .*, expected 3", num_classes=4)
    refused(lora_bank, peft_folder, LabelsError, "got num_classes=True", num_classes=True)
    refused(lora_bank, peft_folder, LabelsError, "got 'abc' as labels", labels="abc")
    refused(lora_bank, peft_folder, LabelsError, "stands twice", labels=["a", "a", "b"])
    refused(lora_bank, peft_folder, InvalidNameError, "got the task name 'A b'", name="A b")
    reserved = peft_folder.rename(peft_folder.with_name("all"))
    refused(lora_bank, reserved, InvalidNameError, "'all' is reserved")
