"""A method in one file outside the package: CONTRIBUTING's example does everything that a method of ours does."""

from __future__ import annotations

import importlib
import importlib.util
import re
import sys
from pathlib import Path

import pytest
import torch

from adapterbank import AdapterBank, fit, methods
from adapterbank.backbone.weights import Geometry
from adapterbank.errors import UnknownNameError

ROOT = Path(__file__).parents[2]
LABELS = ["bass", "brass", "organ"]


# The imports that the example had before `adapterbank.methods` exported everything: files that follow its advice.
OLD_IMPORTS = """
from adapterbank.backbone.ast import LINEAR_NAMES, ASTWeights, FrozenLinear, Geometry
from adapterbank.methods import register
from adapterbank.methods.layers import ByLayer, Layers, chosen
from adapterbank.methods.sites import Adapters, Sites
"""


def example() -> str:
    """CONTRIBUTING's method as it stands there."""
    (source,) = re.findall(r"```python\n(.*?)```", (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8"), re.DOTALL)
    return source


def with_old_imports() -> str:
    """The example of before: the same method, with other imports."""
    source, replaced = re.subn(r"\nfrom adapterbank\.methods import \(.*?\)\n", OLD_IMPORTS, example(), flags=re.DOTALL)
    assert replaced == 1
    return source


@pytest.fixture(params=[example, with_old_imports])
def ssf(request, tmp_path, monkeypatch):
    """The example as a module of somebody's own; forgotten again after the test."""
    file = tmp_path / "ssf.py"
    file.write_text(request.param(), encoding="utf-8")
    spec = importlib.util.spec_from_file_location("ssf", file)
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, "ssf", module)
    before = methods.names()
    spec.loader.exec_module(module)
    yield module
    if "ssf" in methods.names():
        methods.unregister("ssf")
    assert methods.names() == before


@pytest.fixture
def bank(ssf, small_backbone, randomise):
    """Tasks of the third party's method, alone and composed, beside two of ours."""
    bank = AdapterBank(small_backbone)
    for name, method in (("mine", "ssf"), ("both", "ssf+prompt"), ("theirs", "lora"), ("probe", "head")):
        bank.add_task(name, method, labels=LABELS)
    randomise(bank.task("both"))
    randomise(bank.task("theirs"))
    return bank


def test_an_untrained_one_is_the_base(bank, clips):
    bank.task("probe").head.load_state_dict(bank.task("mine").head.state_dict())
    torch.testing.assert_close(bank(clips, "mine"), bank(clips, "probe"), rtol=0, atol=1e-6)


def test_compiled_it_runs_as_in_the_bank(bank, clips):
    torch.testing.assert_close(bank.compile_task("both")(clips), bank(clips, "both"), rtol=0, atol=1e-5)


@pytest.mark.parametrize("address", ["backbone.ast", "methods.layers", "methods.sites"])
def test_an_address_of_before_gives_the_names_of_today(address):
    module = importlib.import_module(f"adapterbank.{address}")
    for name in module.__all__:
        assert getattr(module, name) is getattr(methods, name, getattr(module, name))
    assert "of before" in module.__doc__


def test_all_that_an_author_needs_is_exported_at_one_address():
    offered = {name for line in methods.__doc__.splitlines() if line.startswith("    ") for name in _names(line)}
    assert {"register", "Adapters", "Sites", "Affine", "LinearHook", "PerToken", "trainable_copies"} <= offered
    assert offered == set(methods.__all__)
    assert all(hasattr(methods, name) for name in methods.__all__)


def _names(line: str) -> list[str]:
    """The names at the start of a line of the docstring's table."""
    return re.split(r"\s{2,}", line.strip())[0].split(", ")


def test_it_stands_in_the_overview_and_its_formula_counts(ssf, small_geometry):
    row = next(row for row in methods.overview() if row.name == "ssf")
    assert row.summary == "Scale and shift of the output of every linear"
    assert row.options == {"layers": "all"}
    for g in (small_geometry, Geometry()):
        assert methods.count("ssf", g) == 2 * g.layers * (5 * g.width + g.mlp_width)


def test_it_trains_and_leaves_the_others_as_they_were(bank, clips, labelled_clips):
    before = {name: bank(clips, name) for name in bank.tasks}
    start = {key: tensor.clone() for key, tensor in bank.task("mine").state_dict().items()}
    history = fit(bank, "mine", labelled_clips, epochs=1, batch_size=6, lr=1e-2, precision="fp32", progress=False)
    assert history.steps == 2
    moved = [key for key, tensor in bank.task("mine").state_dict().items() if not torch.equal(tensor, start[key])]
    assert {key.rsplit(".", 2)[-2] for key in moved if "changes" in key} == {"q", "k", "v", "proj", "fc1", "fc2"}
    assert not torch.equal(bank(clips, "mine"), before["mine"])
    assert all(torch.equal(bank(clips, name), before[name]) for name in ("both", "theirs", "probe"))


def test_its_rows_go_through_a_mixed_batch(bank, clips, randomise):
    randomise(bank.task("mine"), seed=1)
    names = ["probe", "mine", "both", "theirs", "mine", "both"]
    for row, clip, name in zip(bank(clips, names), clips, names, strict=True):
        torch.testing.assert_close(row, bank([clip], name)[0], rtol=1e-5, atol=2e-5)


def test_it_comes_back_from_disk(bank, clips, randomise, tmp_path):
    randomise(bank.task("mine"), seed=1)
    bank.save(tmp_path / "bank")
    again = AdapterBank.load(tmp_path / "bank", backbone=bank.backbone)
    assert all(torch.equal(again(clips, name), bank(clips, name)) for name in ("mine", "both"))


def test_a_bank_opened_without_the_file_says_what_to_import(bank, small_backbone, tmp_path):
    bank.save(tmp_path / "bank")
    methods.unregister("ssf")
    bank.save(tmp_path / "again")  # tasks that are there stay as they are
    assert b"registered_by" in next((tmp_path / "again" / "tasks").glob("mine.*")).read_bytes()
    with pytest.raises(
        UnknownNameError, match=r"unknown method 'ssf'.*mine\.\w+\.safetensors .*the module 'ssf'.*open"
    ):
        AdapterBank.load(tmp_path / "bank", backbone=small_backbone)
    file = next((tmp_path / "bank" / "tasks").glob("both.*"))
    with pytest.raises(UnknownNameError, match=r"unknown method 'ssf'.*both\..*import what registers it"):
        AdapterBank(small_backbone).import_task(file)
    with pytest.raises(UnknownNameError, match="unknown method 'ssf'.*once its file is imported"):
        AdapterBank(small_backbone).add_task("new", "ssf", num_classes=2)


def test_files_of_our_own_methods_name_no_module(bank, tmp_path):
    bank.save(tmp_path / "bank")
    for file in (tmp_path / "bank" / "tasks").iterdir():
        assert (b"registered_by" in file.read_bytes()) == file.name.startswith(("mine", "both"))
