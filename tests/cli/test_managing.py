"""tasks, info, methods, export, import and remove."""

from __future__ import annotations

import csv
import io
import json

import torch

from adapterbank import methods
from adapterbank.bank import AdapterBank


def test_tasks_and_info_say_what_the_bank_holds(run, bank_folder):
    bank = AdapterBank.load(bank_folder, device="cpu")
    rows = list(csv.DictReader(io.StringIO(run("tasks", "--csv").stdout)))
    assert [(row["task"], row["method"], int(row["parameters"])) for row in rows] == [
        (name, task.method, task.trainable_parameters()) for name, task in bank.tasks.items()
    ]
    assert json.loads(run("tasks", "--json").stdout)[0]["value"] is None  # never measured
    assert "lora_notes" in run("tasks").stdout
    about = json.loads(run("info", "tags", "--json").stdout)
    assert (about["labels"], about["multilabel"], about["method"]) == (["loud", "low"], True, "head")
    whole = json.loads(run("info", "--json").stdout)
    assert (whole["tasks"], whole["fingerprint"]) == (list(bank.tasks), bank.backbone.fingerprint)
    assert "loud, low" in run("info", "tags").stdout
    assert bank.backbone.fingerprint in run("info").stdout


def test_methods_lists_them_all(run):
    rows = list(csv.DictReader(io.StringIO(run("methods", "--csv").stdout)))
    assert [row["method"] for row in rows] == list(methods.names())
    assert "aat_ms" in run("methods").stdout


def test_a_task_goes_out_and_in_again_bit_for_bit(run, bank_folder, tmp_path):
    before = AdapterBank.load(bank_folder, device="cpu").task("notes").state_dict()
    run("export", "notes", "notes.safetensors")
    assert "exists" in run("export", "notes", "notes.safetensors", code=2).stderr
    assert "exists" in run("import", "notes.safetensors", code=2).stderr
    run("import", "notes.safetensors", "--name", "again")
    bank = AdapterBank.load(bank_folder, device="cpu")
    assert list(bank.tasks) == ["notes", "lora_notes", "tags", "again"]
    torch.testing.assert_close(dict(bank.task("again").state_dict()), dict(before), rtol=0, atol=0)


def test_a_lora_task_goes_to_peft_and_others_are_refused(run, bank_folder, tmp_path):
    run("export", "lora_notes", "out", "--format", "peft")
    run("export", "lora_notes", "headless", "--format", "peft", "--no-head")
    assert "only --format peft" in run("export", "lora_notes", "x.safetensors", "--no-head", code=2).stderr
    assert (tmp_path / "out" / "adapter_model.safetensors").is_file()
    assert "Traceback" not in run("export", "notes", "other", "--format", "peft", code=2).output
    assert "Known: peft, safetensors" in run("export", "notes", "other", "--format", "onnxx", code=2).stderr


def test_remove_asks_first_and_changes_nothing_where_nobody_can_be_asked(run, bank_folder):
    manifest = (bank_folder / "manifest.json").read_bytes()
    assert "pass --yes" in run("remove", "notes", code=2).stderr
    assert "unknown task 'nots'" in run("remove", "nots", "--yes", code=2).stderr
    assert (bank_folder / "manifest.json").read_bytes() == manifest
    run("remove", "notes", "--yes")
    assert list(AdapterBank.load(bank_folder, device="cpu").tasks) == ["lora_notes", "tags"]


def test_a_damaged_bank_is_refused_with_a_reason(run, bank_folder):
    (bank_folder / "manifest.json").write_text("{", encoding="utf-8")
    for command in (("tasks",), ("info",), ("remove", "notes", "--yes")):
        result = run(*command, code=2)
        assert "manifest.json" in result.stderr
        assert "Traceback" not in result.output
