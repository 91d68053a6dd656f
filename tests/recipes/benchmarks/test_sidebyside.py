"""Ratios are those of the pairs, operations are counted in full, and half a row is never kept."""

import gc
import itertools
import json
import shutil
import time

import pytest
import torch
import torch.nn.functional as F
from sidebyside import (
    MEASURED,
    Bench,
    claim,
    difference,
    keep,
    latest,
    log_in,
    machine,
    markdown,
    matmul_operations,
    matmul_peak,
    needs,
    saved_bank,
)

from adapterbank import AdapterBank
from adapterbank.backbone.kernels import Kernels
from adapterbank.backbone.kernels.attention import attention
from adapterbank.experiments.timing import Pairs, alternate, noise, timed

CPU = torch.device("cpu")


def test_ways_alternate_after_warm_up_with_the_garbage_collector_off():
    order, collecting = [], []

    def way(name, seconds):
        def run():
            order.append(name)
            collecting.append(gc.isenabled())
            return seconds

        return run

    pairs = alternate(way("ours", 1.0), way("theirs", 2.0), pairs=3, warm_up=1)
    assert order == ["ours", "theirs"] * 4
    assert collecting == [True] * 2 + [False] * 6
    assert gc.isenabled()
    assert pairs == Pairs((1.0,) * 3, (2.0,) * 3)
    assert pairs.speedups() == [2.0] * 3


def test_an_error_leaves_the_garbage_collector_on():
    calls = itertools.count()

    def fails():
        if next(calls) == 1:
            raise ZeroDivisionError
        return 1.0

    with pytest.raises(ZeroDivisionError):
        alternate(fails, lambda: 1.0, pairs=1, warm_up=1)
    assert gc.isenabled()


def test_a_step_takes_its_wall_clock_time():
    assert 0.01 <= timed(lambda: time.sleep(0.01), CPU)() < 1


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_operations_are_those_of_the_formula_forwards_and_backwards(dtype):
    x, weight = torch.randn(6, 16, dtype=dtype), torch.randn(8, 16, dtype=dtype, requires_grad=True)
    assert matmul_operations(lambda: F.linear(x, weight.detach())) == 2 * 6 * 16 * 8
    assert matmul_operations(lambda: F.linear(x, weight).sum().backward()) == 2 * (2 * 6 * 16 * 8)
    q = torch.randn(2, 3, 10, 4, dtype=dtype, requires_grad=True)
    forward = 2 * 3 * 2 * (2 * 10 * 10 * 4)  # rows, heads, two products
    assert matmul_operations(lambda: F.scaled_dot_product_attention(*[q.detach()] * 3)) == forward
    both = matmul_operations(lambda: F.scaled_dot_product_attention(q, q, q).sum().backward())
    assert both == 3.5 * forward  # backwards four products, and the scores once more


@pytest.mark.parametrize("written_out", [True, False])
def test_operations_of_attention_are_counted_on_every_path(written_out):
    inference = Kernels(grad=False, autocast=None, attention=(torch.bfloat16,) if written_out else ())
    training = inference._replace(grad=True)
    q = torch.randn(2, 3, 16, 4, dtype=torch.bfloat16, requires_grad=True)
    forward = 2 * 3 * 2 * (2 * 16 * 16 * 4)  # rows, heads, two products
    with torch.no_grad():
        assert matmul_operations(lambda: attention(q, q, q, inference)) == forward
    backward = 2 if written_out else 2.5  # times forward: torch's kernel computes the scores once more
    assert matmul_operations(lambda: attention(q, q, q, training).sum().backward()) == (1 + backward) * forward


def test_a_settled_step_runs_once_before_it_is_timed():
    naps = iter([0.5, 0.0])
    assert timed(lambda: time.sleep(next(naps)), CPU, settle=True)() < 0.5
    assert list(naps) == []


@pytest.mark.skipif(not torch.backends.mkldnn.is_available(), reason="no oneDNN")
def test_operations_of_prepacked_linears_are_counted():
    x, weight = torch.randn(6, 16), torch.randn(8, 16)
    packed = torch.ops.mkldnn._reorder_linear_weight(weight, 6)
    step = lambda: torch.ops.mkldnn._linear_pointwise(x, packed, None, "none", [], "")  # noqa: E731
    torch.testing.assert_close(step(), x @ weight.T)
    assert matmul_operations(step) == 2 * 6 * 16 * 8


def test_the_peak_is_a_rate():
    assert 1e6 < matmul_peak(32, torch.float32, CPU) < 1e15


def test_a_ratio_says_how_fast_or_what_part_of_the_time_and_stands_beside_its_goal():
    bench = Bench(CPU)
    pairs = Pairs((1.0, 1.0, 2.0, 1.0, 1.0), (2.0, 3.0, 2.0, 4.0, 3.0))
    faster = bench.beside("a", pairs, 2.5)
    assert (faster["ratio"], faster["reached"], faster["quartiles"]) == (3.0, True, [2.0, 3.0])
    assert (faster["ours"], faster["theirs"], faster["pairs"]) == (1.0, 3.0, 5)
    assert bench.beside("b", pairs, 2.5, work=0.5)["reached"] is False
    part = bench.beside("c", pairs, 0.4, at_most=True)
    assert part["ratio"] == pytest.approx(1 / 3)
    assert part["reached"] is True
    assert bench.beside("d", pairs)["reached"] is None
    assert claim("e", 1.0, 1.0)["reached"] is claim("e", 1.0, 1.0, at_most=True)["reached"] is True


def test_a_comparison_tells_the_share_of_the_peak_of_the_same_moment():
    square = torch.randn(64, 64)
    found = Bench(CPU, pairs=3, matrix=64).compare("a", lambda: square @ square, lambda: square @ square)
    assert found["gflop"] == 2 * 64**3 / 1e9
    assert found["share_of_peak"] == pytest.approx(found["gflop"] / found["ours"] / found["peak_gflops"]["fp32"])
    plain = Bench(CPU, pairs=1, matrix=64).compare("b", lambda: None, lambda: None, counted=False)
    assert "share_of_peak" not in plain


def test_the_claims_of_a_row_are_kept_together_or_not_at_all(tmp_path):
    def broken():
        yield claim("a", 1.0)
        raise ZeroDivisionError

    log = log_in(tmp_path)
    with pytest.raises(ZeroDivisionError):
        keep(tmp_path, 1, broken(), {})
    assert not log.file.exists()
    keep(tmp_path, 1, [claim("a", 1.0), needs("b", "peft")], {"geometry": "tiny"})
    lines = [json.loads(line) for line in log.file.read_text().splitlines()]
    assert [(line["row"], line["what"]) for line in lines] == [(1, "a"), (1, "b")]
    assert {line["measured"] for line in lines} == {lines[0]["measured"]}
    assert log.find(configuration={"geometry": "tiny"}, what="b")[0]["needs"] == "peft"


def test_a_row_measured_again_replaces_all_its_earlier_lines(tmp_path):
    log = log_in(tmp_path)
    for day, row, whats in (("1", 10, "ab"), ("1", 2, "c"), ("2", 10, "d")):
        for what in whats:
            log.add({"row": row, "measured": day, "configuration": {"x": 1}, **claim(what, 1.0)})
    log.add({"row": 3, "measured": "2", "configuration": {"x": 2}, **claim("e", 1.0)})
    assert [(found["row"], found["what"]) for found in latest(log, {"x": 1})] == [(2, "c"), (10, "d")]


def test_the_issues_precisions_are_measured_and_no_other():
    assert set(MEASURED) == {"fp32", "bf16"}


def test_the_table_says_which_goal_was_missed_and_what_was_not_measured():
    claims = [{"row": 3, **claim("slow", 0.8, 0.7, at_most=True)}, {"row": 4, **claim("fast", 4000.0, 45.0)}]
    lines = markdown([*claims, {"row": 5, **needs("alike", "peft")}]).splitlines()
    assert [line.count("|") for line in lines] == [lines[0].count("|")] * 5
    assert "| 0.8 | | ≤ 0.7 | **no** |" in " ".join(lines[2].split())
    assert "| 4,000 | | ≥ 45 | yes |" in " ".join(lines[3].split())
    assert "needs peft" in lines[4]


def test_a_bank_for_the_disk_is_made_once_with_adapters_that_do_something(tmp_path, hf_model, hf_folder):
    shutil.copytree(hf_folder(hf_model()), tmp_path / "backbones" / "mini-3")
    folder = saved_bank(tmp_path, "mini", 2, classes=3)
    before = (folder / "manifest.json").stat().st_mtime_ns
    assert saved_bank(tmp_path, "mini", 2, classes=3) == folder
    assert (folder / "manifest.json").stat().st_mtime_ns == before
    bank = AdapterBank.load(folder, resident=1)
    assert list(bank.tasks) == ["t0", "t1"]
    logits = bank(noise(1, 0.2) * 2, ["t0", "t1"])
    assert difference(logits[:1], logits[1:]) > 1e-3


def test_the_machine_names_its_processor_threads_and_libraries():
    found = machine()
    assert found["cpu"]
    assert found["threads"] == torch.get_num_threads()
    assert found["torch"] == torch.__version__.partition("+")[0] or found["torch"] == torch.__version__
