"""`adapterbank.methods()`: a module that is called, formulas that count what is really built, a table that is read."""

from __future__ import annotations

import importlib
import re
import subprocess
import sys

import pytest

import adapterbank
import adapterbank.methods
from adapterbank import methods
from adapterbank.backbone.weights import Geometry
from adapterbank.errors import ConfigError, UnknownNameError
from adapterbank.methods.base import Adapters
from adapterbank.methods.registry import register

# At width 48 the reductions of 64 and 96 leave nothing.
NARROW = {
    "bottleneck": {"reduction": 8},
    "conformer": {"reduction": 8},
    "moa": {"reduction": 8},
}
# Other values than the defaults; to whole numbers 1 is added.
OTHER = {"ratio": 0.5, "blocks": 1, "targets": ("q", "k", "v", "proj")}


def evaluate(formula: str, geometry: Geometry, options: dict[str, object]) -> int:
    """What a method's `parameters` comes to; the library itself never evaluates it."""
    code = re.sub(r"(?<=[\w)]) (?=[\w(])", " * ", formula.partition(";")[0]).replace("* or *", "or")
    total, *definitions = code.split(", ")
    blocks = options.get("layers", "all")
    tokens = geometry.tokens(geometry.max_frames)
    names = {"L": geometry.layers if blocks == "all" else len(blocks), "D": geometry.width, "M": geometry.mlp_width}
    names |= {"N": tokens, "P": geometry.patch, "len": len, "int": int, **options}
    for definition in definitions:
        name, value = definition.split(" = ")
        names[name] = eval(value, {"__builtins__": {}}, names)
    return eval(total, {"__builtins__": {}}, names)


def variants(row: methods.Method, changes: dict[str, object]) -> list[dict[str, object]]:
    """Options that the formula must follow: the defaults, each option that it names changed, and one block only."""
    named = [key for key in row.options if re.search(rf"\b{key}\b", row.parameters.partition(";")[0])]
    changed = [{key: OTHER.get(key, changes.get(key, row.options[key])) for key in [name]} for name in named]
    changed = [{k: v + 1 if type(v) is int and k not in OTHER else v for k, v in one.items()} for one in changed]
    return [{}, *changed, *([{"layers": [1]}] if "layers" in row.options else [])]


@pytest.mark.parametrize("name", methods.names())
def test_every_formula_counts_what_is_built_on_two_geometries(name, small_geometry):
    row = next(row for row in methods.overview() if row.name == name)
    for geometry, changes in ((small_geometry, NARROW.get(name, {})), (Geometry(), {})):
        for variant in variants(row, changes):
            options = {**changes, **variant}
            expected = methods.count(name, geometry, **options)
            assert evaluate(row.parameters, geometry, {**row.options, **options}) == expected, options


def test_the_package_is_a_module_and_a_function():
    module = importlib.import_module("adapterbank.methods")
    assert module is methods is adapterbank.methods is sys.modules["adapterbank.methods"]
    assert module.register is register
    assert isinstance(adapterbank.methods(), tuple)
    assert [row.name for row in adapterbank.methods()] == list(methods.names())


def test_every_row_says_what_is_trained_how_much_and_where_it_was_published():
    for row in adapterbank.methods():
        assert row.summary
        assert len(row.summary) < 100
        assert row.paper
        assert row.parameters
    rows = {row.name: row for row in adapterbank.methods()}
    assert rows["lora"].options["rank"] == 6
    assert rows["joint"].options == {**rows["aat_ms"].options, **rows["prompt"].options}


def test_what_an_alias_builds_is_what_its_parts_build(small_backbone):
    from adapterbank.task.task import seeded

    row = next(row for row in methods.overview() if row.name == "joint")
    built = row.build(small_backbone.geometry, small_backbone.weights, seeded(0), tokens=3)
    assert built.part("prompt").prompts[0].shape == (3, 48)


@pytest.mark.parametrize("columns", [80, 200])
def test_a_person_reads_names_formulas_options_and_papers(columns, monkeypatch):
    monkeypatch.setenv("COLUMNS", str(columns))
    shown = repr(adapterbank.methods())
    assert max(map(len, shown.splitlines())) <= min(columns, 120)
    assert "\x1b" not in shown
    text = " ".join(shown.split())
    for part in ("aat_ms", "7,100,928", "2 L (2 D r + r + D), r = int(ratio D)", "ratio=0.25", "LN-tuning", "joint"):
        assert part in text
    assert str(adapterbank.methods()) == shown


def test_count_takes_options_and_compositions(small_geometry):
    assert methods.count("conformer", kernel=31) == 233_856
    assert methods.count("lora+prompt") == 221_184 + 110_592
    assert methods.count("prompt", small_geometry, tokens=3) == 2 * 3 * 48
    with pytest.raises(UnknownNameError, match="option of lora 'ranks'"):
        methods.count("lora", ranks=3)


@pytest.mark.slow
def test_the_command_prints_the_table_of_the_page():
    printed = subprocess.run(
        [sys.executable, "-m", "adapterbank.methods"], capture_output=True, text=True, check=True, timeout=300
    )
    assert printed.stdout.strip() == methods.overview().markdown()


@pytest.fixture
def _forgets_mine():
    """Forgets a method of that name after the test, if one is left."""
    yield
    if "mine" in methods.names():
        methods.unregister("mine")


@pytest.mark.usefixtures("_forgets_mine")
def test_a_method_is_forgotten_when_asked_and_can_then_be_registered_anew():
    for _ in range(2):
        register("mine", paper="none", parameters="0")(lambda geometry, base, generator: Adapters())
        with pytest.raises(ConfigError, match=r"methods\.unregister\('mine'\)"):
            register("mine", paper="none", parameters="0")(lambda geometry, base, generator: Adapters())
        methods.unregister("mine")
    with pytest.raises(UnknownNameError, match="unknown method 'mine'.*once its file is imported"):
        methods.unregister("mine")


@pytest.mark.usefixtures("_forgets_mine")
def test_a_builders_own_default_goes_before_that_of_what_it_passes_to():
    def inner(*, gate="static", layers="all"):
        return Adapters()

    @register("mine", paper="none", parameters="0", passes_to=inner)
    def mine(geometry, base, generator, *, gate="scalar", **options):
        return inner(gate=gate, **options)

    assert methods.get("mine").options == {"gate": "scalar", "layers": "all"}


def test_an_option_without_a_default_is_refused_at_registration():
    with pytest.raises(ConfigError, match="option 'rank' of the method 'mine' has no default"):
        register("mine", paper="none", parameters="0")(lambda geometry, base, generator, rank: Adapters())
    with pytest.raises(ConfigError, match="'mine' takes any 'options'.*passes_to"):
        register("mine", paper="none", parameters="0")(lambda geometry, base, generator, **options: Adapters())
    assert "mine" not in methods.names()


def test_options_that_a_builder_passes_on_are_its_own():
    assert set(methods.get("aat_ms").options) == {"ratio", "layers", "gate", "gate_level", "dropout"}
    assert set(methods.get("aat_s").options) == {"ratio", "layers", "dropout"}
    where = {"placement": "pfeiffer", "form": "parallel", "layers": "all", "gate": "static", "gate_level": "clip"}
    for name in ("bottleneck", "conformer"):
        assert where.items() <= methods.get(name).options.items()
    with pytest.raises(UnknownNameError, match=r"unknown option of bottleneck 'placment'. Did you mean 'placement'"):
        methods.count("bottleneck", placment="houlsby")
