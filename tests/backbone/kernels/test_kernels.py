"""The decisions for one call: what they depend on, who may change them, and that they are handed down."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import pytest
import torch

from adapterbank.backbone import kernels as module
from adapterbank.backbone.encode import Segment, encode, run_layers
from adapterbank.backbone.kernels import CHUNK_TOKENS, HALF, SWITCHES, Kernels, choose, forced, plain_kernels
from adapterbank.backbone.sites import NOTHING
from adapterbank.errors import UnknownNameError

CPU = torch.device("cpu")
OFF = {name: Kernels._field_defaults[name] for name in SWITCHES}
onednn = pytest.mark.skipif(not torch.backends.mkldnn.is_available(), reason="no oneDNN")


@pytest.fixture
def processor(monkeypatch):
    """Makes this CPU another one: oneDNN with bf16 products, of a maker, with or without a matrix unit.

    The processor is replaced under the decisions, since no argument of `choose` names it.
    """

    def become(*, amd: bool, matrix_unit: bool) -> None:
        known = {"cpu_name": "AMD EPYC" if amd else "another", "amx_bf16": matrix_unit}
        monkeypatch.setattr(module, "_processor", lambda: known)
        monkeypatch.setattr(torch.ops.mkldnn, "_is_mkldnn_bf16_supported", lambda: True)

    return become


@onednn
@pytest.mark.parametrize("amd", [True, False])
def test_onednn_multiplies_bf16_and_fp32_only_on_the_processors_that_mkl_is_not_made_for(amd, processor):
    processor(amd=amd, matrix_unit=False)
    assert set(choose(CPU).onednn) == ({torch.bfloat16, torch.float32} if amd else {torch.bfloat16})


@onednn
@pytest.mark.parametrize("asked", [torch.bfloat16, torch.float16])
def test_under_autocast_no_product_is_made_in_another_dtype_than_was_asked_for(asked, processor):
    processor(amd=True, matrix_unit=False)
    with torch.autocast("cpu", asked):
        found = choose(CPU)
    assert found.autocast == asked
    assert set(found.onednn) <= {asked}
    assert choose(CPU).autocast is None


@onednn
@pytest.mark.parametrize("matrix_unit", [True, False])
def test_attention_is_written_out_in_training_and_without_gradients_where_there_is_no_matrix_unit(
    matrix_unit, processor
):
    processor(amd=False, matrix_unit=matrix_unit)
    assert choose(CPU).attention == HALF
    with torch.no_grad():
        assert choose(CPU).attention == (() if matrix_unit else (torch.bfloat16,))


def test_the_grad_mode_decides_what_is_recomputed_and_what_runs_in_chunks():
    learning = choose(CPU)
    with torch.no_grad():
        answering = choose(CPU)
    assert learning.grad
    assert learning.recompute
    assert learning.chunk_tokens is None
    assert not answering.grad
    assert not answering.recompute
    assert answering.chunk_tokens == CHUNK_TOKENS * torch.get_num_threads()
    assert not learning.in_place  # the backward pass may need the old values
    assert answering.in_place
    assert not learning.gelu  # oneDNN's has no derivative
    assert answering.gelu
    assert learning.last_block
    assert answering.last_block


@pytest.mark.parametrize("training", [True, False])
def test_on_a_gpu_torchs_own_operations_are_used_and_nothing_is_cut(training):
    with torch.set_grad_enabled(training):
        assert choose(torch.device("cuda")) == Kernels(
            training, None, packing=True, in_place=not training, recompute=training, last_block=True
        )


def test_devices_that_know_no_autocast_run_without():
    assert choose(torch.device("meta")).autocast is None


def test_a_compiler_sees_torchs_own_operations_whatever_is_forced():
    seen = []

    def run(x: torch.Tensor) -> torch.Tensor:
        seen.append(choose(x.device))
        return x + 1

    with torch.no_grad(), forced(onednn=(torch.float32,), attention=HALF, fill_keys=True, chunk_tokens=3):
        torch.compile(run, backend="eager", fullgraph=True)(torch.zeros(2))
    torch._dynamo.reset()
    assert seen == [Kernels(False, None, packing=True, last_block=True)]


def test_a_matrix_of_a_task_is_multiplied_in_the_dtype_of_autocast_and_any_other_in_its_own():
    trained, frozen = torch.zeros(2, 2, requires_grad=True), torch.zeros(2, 2, dtype=torch.bfloat16)
    for autocast, of_task in ((None, torch.float32), (torch.float16, torch.float16)):
        decided = Kernels(True, autocast)
        assert decided.product_dtype(trained) == of_task
        assert decided.product_dtype(frozen) == torch.bfloat16


# -- turned off, and forced -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("training", [True, False])
def test_with_plain_kernels_all_switches_are_off_and_on_again_behind_it(training):
    with torch.set_grad_enabled(training):
        before = choose(CPU)
        with plain_kernels():
            assert choose(CPU) == Kernels(training, None)
        assert choose(CPU) == before
        assert before != Kernels(training, None)


@pytest.mark.parametrize("name", SWITCHES)
def test_each_switch_is_turned_off_alone(name):
    before = choose(CPU)
    with plain_kernels(name):
        assert choose(CPU) == before._replace(**{name: OFF[name]})
    assert choose(CPU) == before


def test_several_switches_and_blocks_inside_one_another_add_up():
    before = choose(CPU)
    with plain_kernels("attention", "recompute"):
        outer = before._replace(attention=(), recompute=False)
        with plain_kernels("last_block"):
            assert choose(CPU) == outer._replace(last_block=False)
            with forced(attention=(torch.float16,)):
                assert choose(CPU) == outer._replace(last_block=False, attention=(torch.float16,))
        assert choose(CPU) == outer
    assert choose(CPU) == before


def test_an_exception_restores_what_was():
    before = choose(CPU)
    for context in (plain_kernels(), forced(chunk_tokens=1)):
        with pytest.raises(ZeroDivisionError), context:
            raise ZeroDivisionError
        assert choose(CPU) == before


@pytest.mark.parametrize("name", ["norms", "grad", "autocast"])
def test_an_unknown_switch_names_those_that_there_are_and_turns_nothing_off(name):
    before = choose(CPU)
    known = "Known: attention, chunk_tokens,.*onednn"
    with pytest.raises(UnknownNameError, match=f"unknown switch of the kernels '{name}'.*{known}"):
        plain_kernels("attention", name).__enter__()
    assert choose(CPU) == before


def test_other_threads_are_not_touched():
    with ThreadPoolExecutor(1) as pool:
        before = pool.submit(choose, CPU).result()
        with plain_kernels(), forced(chunk_tokens=7):
            assert pool.submit(choose, CPU).result() == before
            with ThreadPoolExecutor(1) as started_inside:
                assert started_inside.submit(choose, CPU).result() == before
        assert choose(CPU) == before


# -- handed down ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("cut", [True, False])
def test_who_is_handed_decisions_asks_for_none(cut, small_backbone):
    geometry = small_backbone.geometry
    segments = [Segment((NOTHING,) * geometry.layers, small_backbone.weights, read=2)]
    mel = torch.randn(2, 64, 128)
    with forced(last_block=not cut):
        found = encode([mel], segments, geometry, Kernels(True, None, packing=True, last_block=cut))[0]
        other = encode([mel], segments, geometry)[0]
    assert (found.shape[1], other.shape[1]) == ((2, 34) if cut else (34, 2))
    torch.testing.assert_close(found[:, :2], other[:, :2], rtol=0, atol=1e-5)


def test_decisions_hold_for_all_blocks_of_a_call(small_backbone):
    geometry = small_backbone.geometry
    segments = [Segment((NOTHING,) * geometry.layers, small_backbone.weights, read=2)]
    x = torch.randn(2, 18, 48)
    whole, cut = (
        run_layers([x], segments, 0, geometry.layers, geometry, Kernels(False, None, packing=True, last_block=last))[0]
        for last in (False, True)
    )
    assert whole.shape == (2, 18, 48)
    assert cut.shape == (2, 2, 48)
    torch.testing.assert_close(cut, whole[:, :2], rtol=0, atol=1e-5)
