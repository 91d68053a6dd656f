"""LoRA tasks from and to peft: equal logits on transformers' AST in both directions, equal bits there and back."""

from __future__ import annotations

import json
import os
import pickle

import pytest
import torch
from safetensors.torch import load_file, save_file

from adapterbank.backbone.checkpoints import load_backbone
from adapterbank.bank import AdapterBank
from adapterbank.errors import (
    AdapterBankError,
    BackboneMismatchError,
    ConfigError,
    InvalidNameError,
    LabelsError,
    NameTakenError,
    StorageError,
    UnknownNameError,
)
from adapterbank.routing import mels_of

# peft 0.21 asks transformers 5.23 for a deprecated property.
pytestmark = pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing:FutureWarning")
KINDS = {"lora": {}, "rslora": {"use_rslora": True}, "dora": {"use_dora": True}}
SIZES = {"frequency_stride": 16, "time_stride": 16, "num_labels": 3}


@pytest.fixture
def model(hf_model):
    return hf_model(**SIZES)


@pytest.fixture
def bank(model, hf_folder):
    bank = AdapterBank(load_backbone(hf_folder(model)))
    bank.add_task("other", "prompt", num_classes=2)
    return bank


@pytest.fixture
def clip(clips):
    """128 frames, the model's own length."""
    return clips[4].repeat(9)[: (128 - 1) * 160 + 400]


@pytest.fixture
def theirs(model, hf_blocks, randomise):
    """Wraps the model in a trained adapter of peft: keywords go to its LoraConfig."""
    peft = pytest.importorskip("peft")

    def wrap(targets=("q", "v"), layers=(0, 1), body=False, **options):
        if "target_modules" not in options:
            blocks = hf_blocks(model)
            names = [blocks[layer].linears[name] for layer in layers for name in targets]
            options["target_modules"] = [name.partition(".")[2] for name in names]
        config = peft.LoraConfig(**{"r": 4, "lora_alpha": 12, "modules_to_save": ["classifier"], **options})
        wrapped = peft.get_peft_model(model.audio_spectrogram_transformer if body else model, config).eval()
        trained = [p for p in wrapped.parameters() if p.requires_grad]
        assert trained
        randomise(torch.nn.ParameterList(trained), seed=5, scale=0.2)
        return wrapped

    return wrap


@pytest.fixture
def saved(theirs, tmp_path):
    """A folder of peft."""
    folder = tmp_path / "Bird songs (v2)"
    theirs().save_pretrained(folder)
    return folder


def spectrogram(bank, clip, mean_std=None):
    mean, std = mean_std or (bank.backbone.mean, bank.backbone.std)
    (mel,) = mels_of(bank.backbone, [clip])
    return ((mel - mean) / (2 * std))[None]


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


# -- from peft ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("targets", [("q", "v"), ("q", "k", "v", "proj", "fc1", "fc2")])
@pytest.mark.parametrize("layers", [(0, 1), (1,)])
@pytest.mark.parametrize("kind", KINDS)
def test_what_peft_saved_answers_alike(kind, layers, targets, bank, theirs, clip, tmp_path):
    wrapped = theirs(targets, layers, lora_dropout=0.25, **KINDS[kind])
    wrapped.save_pretrained(tmp_path / "birds")
    task = bank.import_task(tmp_path / "birds", labels=["owl", "wren", "crow"])
    with torch.no_grad():
        expected = wrapped(spectrogram(bank, clip)).logits
    torch.testing.assert_close(bank([clip], "birds"), expected, rtol=0, atol=1e-5)
    assert (bank([clip], "birds") - task.head(bank.embed([clip]))).abs().max() > 0.01
    assert task.labels == ("owl", "wren", "crow")
    assert task.spec.options == {
        "targets": list(targets), "rank": 4, "alpha": 12, "dropout": 0.25, "rslora": kind == "rslora",
        "dora": kind == "dora", "layers": "all" if len(layers) == 2 else [1],
    }  # fmt: skip


def test_a_short_clip_hears_the_padding_of_transformers(bank, theirs, clips, tmp_path):
    from transformers import ASTFeatureExtractor

    wrapped = theirs()
    wrapped.save_pretrained(tmp_path / "birds")
    bank.import_task(tmp_path / "birds")
    inputs = ASTFeatureExtractor(max_length=128)(clips[0].numpy(), sampling_rate=16_000, return_tensors="pt")
    with torch.no_grad():
        expected = wrapped(**inputs).logits
    torch.testing.assert_close(bank(clips[:1], "birds"), expected, rtol=0, atol=1e-4)  # two front ends


@pytest.mark.parametrize("targets", ["all-linear", r".*\.(0|1)\..*(query|value|q_proj|v_proj)"])
def test_targets_by_pattern_are_read_from_the_tensors(targets, bank, theirs, clip, tmp_path):
    wrapped = theirs(target_modules=targets)
    wrapped.save_pretrained(tmp_path / "birds")
    task = bank.import_task(tmp_path / "birds")
    with torch.no_grad():
        expected = wrapped(spectrogram(bank, clip)).logits
    torch.testing.assert_close(bank([clip], "birds"), expected, rtol=0, atol=1e-5)
    wanted = ["q", "k", "v", "proj", "fc1", "fc2"] if targets == "all-linear" else ["q", "v"]
    assert task.spec.options["targets"] == wanted


def test_a_body_without_classifier_gets_a_new_head(bank, theirs, model, clip, tmp_path):
    wrapped = theirs(body=True, modules_to_save=["layernorm"])
    wrapped.save_pretrained(tmp_path / "body")
    with pytest.raises(LabelsError, match="holds no head; pass labels=.*or num_classes"):
        bank.import_task(tmp_path / "body")
    task = bank.import_task(tmp_path / "body", num_classes=5)
    assert task.spec.train_final_norm
    with torch.no_grad():
        hidden = wrapped(spectrogram(bank, clip)).pooler_output
        torch.testing.assert_close(bank([clip], "body"), task.head(hidden), rtol=0, atol=1e-5)
    assert bank([clip], "body").shape == (1, 5)


def test_either_naming_scheme_gives_the_same_bits(bank, saved, tmp_path):
    bank.import_task(saved, name="first")
    for names in ("old", "new"):
        bank.export("first", "peft", tmp_path / names, names=names)
        keys = load_file(tmp_path / names / "adapter_model.safetensors").keys()
        assert any(".encoder.layer." in key for key in keys) == (names == "old")
        again = bank.import_task(tmp_path / names)
        for key, tensor in bank.task("first").state_dict().items():
            assert torch.equal(again.state_dict()[key], tensor)


def test_name_labels_and_normalisation_come_from_the_folder(bank, saved):
    (saved / "config.json").write_text(json.dumps({"id2label": {"0": "owl", "1": "wren", "2": "crow"}}))
    (saved / "preprocessor_config.json").write_text(json.dumps({"mean": -6.5, "std": 5.25}))
    task = bank.import_task(saved)
    assert task.name == "bird-songs-v2-"
    assert task.labels == ("owl", "wren", "crow")
    assert task.mean_std == (-6.5, 5.25)
    assert bank.import_task(saved, name="again", num_classes=3, multilabel=True, clip_seconds=0.5).spec.multilabel
    with pytest.raises(NameTakenError, match="holds the task 'again', which exists"):
        bank.import_task(saved, name="again")


def test_half_precision_adapters_are_widened(bank, saved):
    retensored(saved, lambda t: t.update({key: tensor.bfloat16() for key, tensor in t.items()}))
    task = bank.import_task(saved, name="birds")
    assert {p.dtype for p in task.parameters()} == {torch.float32}


def test_one_alpha_may_be_given_by_a_pattern(bank, theirs, hf_blocks, model, clip, tmp_path):
    linears = hf_blocks(model)[0].linears
    names = [linears[name].rpartition(".")[2] for name in ("q", "v")]
    wrapped = theirs(alpha_pattern=dict.fromkeys(names, 3), rank_pattern=dict.fromkeys(names, 2))
    wrapped.save_pretrained(tmp_path / "birds")
    task = bank.import_task(tmp_path / "birds")
    assert (task.spec.options["rank"], task.spec.options["alpha"]) == (2, 3)
    with torch.no_grad():
        expected = wrapped(spectrogram(bank, clip)).logits
    torch.testing.assert_close(bank([clip], "birds"), expected, rtol=0, atol=1e-5)


# -- to peft --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("own_norm", [False, True])
@pytest.mark.parametrize("layers", ["all", [0]])
def test_peft_opens_what_was_exported_and_answers_alike(
    layers, own_norm, kind, bank, model, hf_model, randomise, clip, tmp_path
):
    peft = pytest.importorskip("peft")
    options = {} if kind == "lora" else {kind: True}
    targets = ("q", "proj", "fc2")
    task = bank.add_task(
        "birds", "lora", labels=["a", "b", "c"], rank=3, targets=targets, layers=layers, normalize=(-6.5, 5.25),
        train_final_norm=own_norm, **options,
    )  # fmt: skip
    randomise(task, scale=0.2)
    bank.export("birds", "peft", tmp_path / "out")
    base = hf_model(**SIZES)  # its classifier is another one: the head must come from the folder
    base.load_state_dict({k: t for k, t in model.state_dict().items() if "classifier" not in k}, strict=False)
    before = base(spectrogram(bank, clip, (-6.5, 5.25))).logits
    wrapped = peft.PeftModel.from_pretrained(base, tmp_path / "out").eval()
    with torch.no_grad():
        logits = wrapped(spectrogram(bank, clip, (-6.5, 5.25))).logits
    torch.testing.assert_close(logits, bank([clip], "birds"), rtol=0, atol=1e-5)
    assert (logits - before).abs().max() > 0.1
    lora = [n for n, _ in wrapped.named_parameters() if n.endswith("lora_A.default.weight")]
    assert len(lora) == 3 * (2 if layers == "all" else 1)


def test_the_exported_extractor_hears_what_the_task_hears(bank, model, randomise, clips, tmp_path):
    peft = pytest.importorskip("peft")
    from transformers import ASTFeatureExtractor

    seconds = ((128 - 1) * 160 + 400) / 16_000
    task = bank.add_task("birds", "lora", num_classes=3, normalize=(-6.5, 5.25), clip_seconds=seconds)
    randomise(task, scale=0.2)
    bank.export("birds", "peft", tmp_path / "out")
    extractor = ASTFeatureExtractor.from_pretrained(tmp_path / "out")
    wrapped = peft.PeftModel.from_pretrained(model, tmp_path / "out").eval()
    inputs = extractor(clips[0].numpy(), sampling_rate=16_000, return_tensors="pt")
    with torch.no_grad():
        logits = wrapped(**inputs).logits
    torch.testing.assert_close(logits, bank(clips[:1], "birds"), rtol=0, atol=1e-4)  # two front ends


@pytest.mark.parametrize("head", [True, False])
def test_there_and_back_is_the_same_task_bit_for_bit(head, bank, randomise, clips, tmp_path):
    task = bank.add_task(
        "birds", "lora", labels=["owl", "ärn ☃"], multilabel=True, normalize=(-6.5, 5.25), clip_seconds=0.7, rank=3,
        dora=True, dropout=0.5, layers=[-1], train_final_norm=True, seed=4,
    )  # fmt: skip
    randomise(task)
    task.metrics = {"map": 0.5}
    bank.export("birds", "peft", tmp_path / "birds", head=head)
    expected, tensors, old = bank(clips, "birds"), task.state_dict(), task.spec
    bank.remove_task("birds")
    again = bank.import_task(tmp_path / "birds", labels=None if head else ["x", "y", "z"])
    for key, tensor in tensors.items():
        if head or not key.startswith("head."):
            assert torch.equal(again.state_dict()[key], tensor)
    for field in ("name", "multilabel", "normalize", "clip_seconds", "train_final_norm", "seed"):
        assert getattr(again.spec, field) == getattr(old, field)
    assert again.adapters.changes[1]["q"].scale == task.adapters.changes[1]["q"].scale
    if head:
        assert again.labels == old.labels
        assert again.metrics == {"map": 0.5}
        assert torch.equal(bank(clips, "birds"), expected)
    else:
        assert again.labels == ("x", "y", "z")
        assert again.metrics == {}


def test_a_head_that_asts_classifier_cannot_be_stays_behind(bank, tmp_path):
    bank.add_task("birds", "lora", num_classes=2, head="linear", pooling="mean")
    with pytest.raises(ConfigError, match="head='linear' and pooling='mean'.*head=False"):
        bank.export("birds", "peft", tmp_path / "out")
    assert not (tmp_path / "out").exists()
    bank.export("birds", "peft", tmp_path / "out", head=False)
    assert not any("classifier" in key for key in load_file(tmp_path / "out" / "adapter_model.safetensors"))
    again = bank.import_task(tmp_path / "out", num_classes=2)
    assert (again.spec.head, again.spec.pooling) == ("linear", "mean")


@pytest.mark.parametrize("method", ["aat_ms", "lora+prompt", "head", "full"])
def test_other_methods_are_refused_by_name(method, bank, tmp_path):
    bank.add_task("birds", method, num_classes=2)
    with pytest.raises(ConfigError, match=rf"the method '{method.replace('+', '.')}'.*'lora' alone.*bank.save"):
        bank.export("birds", "peft", tmp_path / "out")
    assert list(tmp_path.glob("*out*")) == []


def test_unknown_tasks_formats_and_namings_are_refused(bank, tmp_path):
    bank.add_task("birds", "lora", num_classes=2)
    with pytest.raises(UnknownNameError, match="unknown task 'bird'.*Did you mean 'birds'"):
        bank.export("bird", "peft", tmp_path / "out")
    with pytest.raises(UnknownNameError, match="unknown format 'onnx'.*Known: peft"):
        bank.export("birds", "onnx", tmp_path / "out")
    with pytest.raises(UnknownNameError, match="unknown naming '5.9'.*Known: new, old"):
        bank.export("birds", "peft", tmp_path / "out", names="5.9")


def test_a_folder_in_use_is_never_touched(bank, tmp_path):
    bank.add_task("birds", "lora", num_classes=2)
    (tmp_path / "out").mkdir()
    bank.export("birds", "peft", tmp_path / "out")
    before = {file.name: file.read_bytes() for file in (tmp_path / "out").iterdir()}
    (tmp_path / "file").write_text("mine")
    for place in ("out", "file", "file/inside"):
        with pytest.raises(StorageError, match="no empty folder|cannot write"):
            bank.export("birds", "peft", tmp_path / place)
    assert {file.name: file.read_bytes() for file in (tmp_path / "out").iterdir()} == before
    assert (tmp_path / "file").read_text() == "mine"


@pytest.mark.parametrize("failing", range(5))
def test_an_export_that_dies_at_any_moment_leaves_nothing(failing, bank, tmp_path, monkeypatch):
    bank.add_task("birds", "lora", num_classes=2)
    done, real = [], os.replace

    def dying(*arguments):
        done.append(arguments)
        if len(done) > failing:
            raise OSError(28, "No space left on device")
        return real(*arguments)

    before = sorted(tmp_path.iterdir())
    monkeypatch.setattr(os, "replace", dying)
    with pytest.raises(StorageError, match="No space left.*Nothing was left there"):
        bank.export("birds", "peft", tmp_path / "out", names="new")
    assert sorted(tmp_path.iterdir()) == before


# -- folders that are wrong -----------------------------------------------------------------------------------------


def refused(bank, folder, error, message, **options):
    """The import fails with a reason, and the bank is as it was."""
    names = list(bank.tasks)
    bits = {name: {k: t.clone() for k, t in task.state_dict().items()} for name, task in bank.tasks.items()}
    with pytest.raises(error, match=message) as caught:
        bank.import_task(folder, **options)
    assert isinstance(caught.value, AdapterBankError)
    assert list(bank.tasks) == names
    for name, tensors in bits.items():
        assert all(torch.equal(bank.task(name).state_dict()[key], tensor) for key, tensor in tensors.items())


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
def test_a_configuration_that_lora_cannot_express_is_refused_by_name(changes, error, message, bank, saved):
    edited(saved, **changes)
    refused(bank, saved, error, message)


def test_layers_that_differ_are_refused(bank, theirs, hf_blocks, model, tmp_path):
    first, second = (block.linears for block in hf_blocks(model))
    theirs(target_modules=[first["q"], second["v"]]).save_pretrained(tmp_path / "uneven")
    refused(bank, tmp_path / "uneven", ConfigError, "other linears in some blocks than in others")


def test_ranks_that_differ_are_refused(bank, theirs, hf_blocks, model, tmp_path):
    theirs(rank_pattern={hf_blocks(model)[0].linears["q"].rpartition(".")[2]: 2}).save_pretrained(tmp_path / "ranks")
    refused(bank, tmp_path / "ranks", ConfigError, r"ranks \[2, 4\] \(rank_pattern\)")


def test_an_adapted_classifier_is_refused(bank, theirs, tmp_path):
    theirs(target_modules="all-linear", modules_to_save=None).save_pretrained(tmp_path / "linear")
    refused(bank, tmp_path / "linear", ConfigError, "adapts 'classifier.dense'.*modules_to_save=")


def test_another_module_to_save_is_refused(bank, theirs, tmp_path):
    theirs(modules_to_save=["embeddings"]).save_pretrained(tmp_path / "emb")
    refused(bank, tmp_path / "emb", ConfigError, "embeddings.*which the method 'lora' cannot take")


@pytest.mark.parametrize(
    ("sizes", "message"),
    [
        ({"hidden_size": 24, "intermediate_size": 96}, r"a linear of \(48, 48\) at 'q' of block 0.*is \(24, 24\)"),
        ({"num_hidden_layers": 1}, "adapts block 1, .* has blocks 0 to 0"),
    ],
)
def test_another_base_is_refused(sizes, message, saved, hf_model, hf_folder):
    bank = AdapterBank(load_backbone(hf_folder(hf_model(**SIZES, **sizes))))
    refused(bank, saved, BackboneMismatchError, message)


def test_an_export_knows_its_base_by_fingerprint(bank, hf_model, hf_folder, tmp_path):
    bank.add_task("birds", "lora", num_classes=2)
    bank.export("birds", "peft", tmp_path / "birds")
    other = AdapterBank(load_backbone(hf_folder(hf_model(seed=1, **SIZES))))
    refused(other, tmp_path / "birds", BackboneMismatchError, "was made for the backbone")


def test_pickle_is_never_read(bank, saved, capsys):
    class Bomb:
        def __reduce__(self):
            return print, ("code has run",)

    (saved / "adapter_model.safetensors").unlink()
    (saved / "adapter_model.bin").write_bytes(pickle.dumps(Bomb()))
    refused(bank, saved, StorageError, "is a pickle, which can run code.*save_pretrained")
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
def test_tensors_that_do_not_fit_are_refused(change, message, bank, saved):
    retensored(saved, change)
    refused(bank, saved, AdapterBankError, message)
    refused(bank, saved, AdapterBankError, message, labels=["a", "b", "c"])  # no new head for a damaged one


def test_a_tensor_under_both_namings_is_refused(bank, tmp_path):
    bank.add_task("birds", "lora", num_classes=2)
    for names in ("old", "new"):
        bank.export("birds", "peft", tmp_path / names, names=names)
    other = load_file(tmp_path / "old" / "adapter_model.safetensors")

    def add(tensors):
        tensors |= {key: tensor + 1 for key, tensor in other.items() if "lora_A" in key}

    retensored(tmp_path / "new", add)
    refused(bank, tmp_path / "new", StorageError, "holds .* twice, under two names")


def test_an_export_of_another_format_version_is_refused(bank, tmp_path, monkeypatch):
    bank.add_task("birds", "lora", num_classes=2)
    monkeypatch.setattr("adapterbank.storage.FORMAT_VERSION", 99)
    bank.export("birds", "peft", tmp_path / "later")
    monkeypatch.undo()
    refused(bank, tmp_path / "later", StorageError, "exported by another version of this library", name="new")


def test_a_damaged_folder_is_refused(bank, saved, tmp_path):
    config, tensors = saved / "adapter_config.json", saved / "adapter_model.safetensors"
    content = tensors.read_bytes()
    tensors.write_bytes(content[:-9])
    refused(bank, saved, StorageError, "It is cut, or no safetensors file")
    tensors.unlink()
    refused(bank, saved, StorageError, "has no adapter_model.safetensors beside adapter_config.json")
    for text in ("{", "[]", "\x00"):
        config.write_text(text)
        refused(bank, saved, StorageError, "adapter_config.json")
    config.unlink()
    refused(bank, saved, StorageError, "adapter_config.json is missing; peft writes it")
    refused(bank, tmp_path, StorageError, "adapter_config.json is missing")
    bank.save(tmp_path / "bank")
    refused(bank, tmp_path / "bank", StorageError, "is a saved bank")
    file = next((tmp_path / "bank" / "tasks").iterdir())
    refused(bank, file, ConfigError, "got labels for .*: that is for folders of peft", labels=["a"])
    assert bank.import_task(file, name="twin").name == "twin"


def test_a_folder_of_several_adapters_says_which(bank, theirs, tmp_path):
    theirs().save_pretrained(tmp_path / "run" / "checkpoint-7")
    refused(bank, tmp_path / "run", StorageError, "its folders checkpoint-7 have one: import one of them")


def test_wrong_labels_and_names_are_refused(bank, saved):
    refused(bank, saved, LabelsError, "got 2 labels for .*, expected 3", labels=["a", "b"])
    refused(bank, saved, LabelsError, "got 4 labels for .*, expected 3", num_classes=4)
    refused(bank, saved, LabelsError, "got num_classes=True", num_classes=True)
    refused(bank, saved, LabelsError, "got 'abc' as labels", labels="abc")
    refused(bank, saved, LabelsError, "stands twice", labels=["a", "a", "b"])
    refused(bank, saved, InvalidNameError, "got the task name 'A b'", name="A b")
    reserved = saved.rename(saved.with_name("all"))
    refused(bank, reserved, InvalidNameError, "'all' is reserved")
