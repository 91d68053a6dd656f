"""What an import costs: names are resolved when they are first used, and heavy libraries when they are needed."""

import ast
import subprocess
import sys
from importlib import import_module
from pathlib import Path

import pytest

import adapterbank

HEAVY = {"mlflow", "scipy", "matplotlib", "transformers", "torchmetrics", "sklearn", "pandas", "hydra", "peft"}


def fresh(code: str) -> str:
    """What `code` prints in a new Python."""
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def loaded_by(statement: str) -> set[str]:
    """Top-level modules that are loaded after a statement in a new Python."""
    printed = fresh(f"{statement}\nimport sys\nprint(*sorted({{name.partition('.')[0] for name in sys.modules}}))")
    return set(printed.split())


def test_importing_the_package_and_its_errors_loads_no_torch():
    loaded = loaded_by("import adapterbank; adapterbank.__version__; adapterbank.AdapterBankError; dir(adapterbank)")
    assert not loaded & (HEAVY | {"torch", "numpy"})


@pytest.mark.parametrize(
    "statement",
    [
        "from adapterbank import AdapterBank",
        "from adapterbank import fit, fit_many, load_folder, layer_importance, CompiledTask",
        "from adapterbank import methods, data, evaluation, sequence",
        "from adapterbank.tracking import Tracker",
    ],
)
def test_nothing_heavy_is_loaded_before_it_is_needed(statement):
    loaded = loaded_by(statement)
    assert "torch" in loaded
    assert not loaded & HEAVY


@pytest.mark.parametrize("name", sorted(adapterbank._PLACES))
def test_every_public_name_is_what_its_module_defines(name):
    module = import_module(f"adapterbank.{adapterbank._PLACES[name]}")
    assert getattr(adapterbank, name) is getattr(module, name)
    assert name in dir(adapterbank)


def test_type_checkers_see_the_names_where_they_are():
    tree = ast.parse(Path(adapterbank.__file__).read_text(encoding="utf-8"))
    (block,) = (node for node in tree.body if isinstance(node, ast.If))
    seen = {alias.name: node.module for node in block.body for alias in node.names}
    places = {name: f"adapterbank.{place}" for name, place in adapterbank._PLACES.items()}
    assert seen == {**places, "methods": "adapterbank"}
    assert seen.keys() == set(adapterbank.__all__)


def test_modules_are_attributes_after_one_import():
    code = (
        "import adapterbank\n"
        "print(adapterbank.methods(), adapterbank.methods.names()[:0], adapterbank.plots.BLUE)\n"
        "print(adapterbank.data.SAMPLE_RATE, adapterbank.tracking.Tracker.__name__, adapterbank.bank.AdapterBank)"
    )
    printed = fresh(code)
    assert "aat_ms" in printed
    assert "16000 Tracker" in printed


def test_an_unknown_name_is_an_attribute_error_with_the_known_ones():
    with pytest.raises(AttributeError, match="no attribute 'AdapterBanc'.*AdapterBank"):
        adapterbank.AdapterBanc  # noqa: B018
    assert not hasattr(adapterbank, "__wrapped__")
