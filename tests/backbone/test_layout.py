"""Layouts of packed tokens: what is whose, and new layouts in place of changed ones."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from adapterbank.backbone.layout import Layout, alike, neighbours, numbered, pack
from adapterbank.backbone.sites import NOTHING, Sites

FILLED = Sites(after_mlp=torch.neg)


def fills(sites: Sites) -> object:
    return sites.after_mlp


@pytest.fixture
def shared() -> list[Tensor]:
    """Four segments: the first, the third and the fourth are given one tensor."""
    x, other = torch.randn(2, 5, 8), torch.randn(1, 3, 8)
    return [x, other, x, x]


@pytest.fixture
def layout(shared: list[Tensor]) -> Layout:
    return Layout.of(shared, [NOTHING, NOTHING, FILLED, NOTHING])[0]


def test_numbers_follow_the_first_appearance():
    assert numbered("banana") == [0, 1, 2, 1, 2, 1]
    assert numbered([]) == []
    one, other = torch.zeros(1), torch.zeros(1)  # equal, and not the same
    assert alike([one, other, one], [other, other, other]) == [0, 1, 0]
    assert alike([one, one], [one, other]) == [0, 1]
    assert alike([one]) == [0]


def test_neighbours_are_equal_and_next_to_each_other():
    assert neighbours("aabaa") == [[0, 1], [2], [3, 4]]
    assert neighbours([]) == []
    assert neighbours([(1, 2)]) == [[0]]


def test_packing_puts_parts_behind_one_another_and_copies_no_single_one():
    a, b = torch.randn(2, 5, 4), torch.randn(3, 1, 4)
    assert torch.equal(pack([a, b]), torch.cat((a.reshape(10, 4), b.reshape(3, 4))))
    assert torch.equal(pack([a]), a.reshape(10, 4))
    assert pack([a]).data_ptr() == a.data_ptr()
    for parts in ([b, a], [a, a], [a[:, :1], a[:, 1:]], [a.transpose(0, 1), b]):
        assert torch.equal(pack(parts), torch.cat([part.reshape(-1, 4) for part in parts]))


def test_packing_sends_gradients_to_the_parts_that_they_belong_to():
    a, b = torch.randn(4, 2, 4, requires_grad=True), torch.randn(2, 2, 4, requires_grad=True)
    (pack([a, b]) * torch.arange(12.0)[:, None]).sum().backward()
    assert torch.equal(torch.cat((a.grad.flatten(0, 1), b.grad.flatten(0, 1)))[:, 0], torch.arange(12.0))


def test_segments_that_are_given_one_tensor_are_one_part(shared, layout):
    _, packed = Layout.of(shared, layout.sites_of_segments)
    assert layout.part_of == (0, 1, 0, 0)
    assert layout.first == (0, 1)
    assert layout.shapes == ((2, 5), (1, 3))
    assert layout.sites_of_parts == [NOTHING, NOTHING]
    assert torch.equal(packed, torch.cat((shared[0].flatten(0, 1), shared[1].flatten(0, 1))))


def test_splitting_undoes_packing_and_copies_nothing(shared, layout):
    _, packed = Layout.of(shared, layout.sites_of_segments)
    parts, outputs = layout.split(packed), layout.outputs(packed)
    assert torch.equal(parts[0], shared[0])
    assert torch.equal(parts[1], shared[1])
    assert parts[0].untyped_storage().data_ptr() == packed.untyped_storage().data_ptr()
    assert [torch.equal(out, x) for out, x in zip(outputs, shared, strict=True)] == [True] * 4
    assert outputs[0] is outputs[2] is outputs[3]


def test_a_layout_cannot_be_changed(layout):
    for name in layout._fields:
        with pytest.raises(AttributeError):
            setattr(layout, name, ())
        assert isinstance(getattr(layout, name), tuple)
    with pytest.raises(TypeError):
        layout.shapes[0] = (1, 1)
    hash(layout.part_of + layout.first + layout.shapes)


def test_replacing_parts_makes_another_tensor_in_the_dtype_of_the_old(shared, layout):
    _, packed = Layout.of(shared, layout.sites_of_segments)
    before = packed.clone()
    new = torch.randn(1, 3, 8, dtype=torch.float64)
    replaced = layout.with_parts(packed, [(1, new)])
    assert replaced.dtype == packed.dtype
    assert torch.equal(layout.split(replaced)[0], shared[0])
    assert torch.equal(layout.split(replaced)[1], new.float())
    assert torch.equal(packed, before)
    assert layout.with_parts(packed, []) is packed


def test_a_fork_gives_who_fills_a_site_a_part_of_its_own_and_leaves_the_old_layout_as_it_is(shared, layout):
    _, packed = Layout.of(shared, layout.sites_of_segments)
    old = Layout(*layout)
    forked, (one, other) = layout.fork(fills, packed, 2 * packed)
    assert layout == old
    assert forked.part_of == (0, 1, 2, 0)
    assert forked.first == (0, 1, 2)
    assert forked.shapes == ((2, 5), (1, 3), (2, 5))
    assert forked.sites_of_parts == [NOTHING, NOTHING, FILLED]
    assert [torch.equal(a, b) for a, b in zip(forked.outputs(one), shared, strict=True)] == [True] * 4
    assert torch.equal(other, 2 * one)


def test_where_no_part_is_shared_or_no_site_filled_a_fork_copies_nothing(shared, layout):
    apart, packed = Layout.of([x.clone() for x in shared], layout.sites_of_segments)
    same, (still,) = apart.fork(fills, packed)
    assert same is apart
    assert still is packed
    _, packed = Layout.of(shared, layout.sites_of_segments)
    unfilled, (still,) = layout.fork(lambda sites: False, packed)
    assert unfilled == layout
    assert torch.equal(still, packed)


def test_a_cut_keeps_first_tokens_and_parts_readers_of_different_numbers(shared, layout):
    _, packed = Layout.of(shared, layout.sites_of_segments)
    old = Layout(*layout)
    kept, whole, (cut,) = layout.cut([2, None, 2, 30], packed)
    assert layout == old
    assert kept.part_of == whole.part_of == (0, 1, 0, 2)
    assert kept.shapes == ((2, 2), (1, 3), (2, 5))
    assert whole.shapes == ((2, 5), (1, 3), (2, 5))
    for out, x, number in zip(kept.outputs(cut), shared, (2, 3, 2, 5), strict=True):
        assert torch.equal(out, x[:, :number])


def test_a_tensor_is_taken_over_into_a_finer_layout_and_not_copied_into_an_equal_one(shared, layout):
    _, packed = Layout.of(shared, layout.sites_of_segments)
    _, whole, _ = layout.cut([2, None, 2, 30], packed)
    taken = whole.taken(layout, packed)
    assert [torch.equal(a, b) for a, b in zip(whole.outputs(taken), shared, strict=True)] == [True] * 4
    assert layout.taken(layout, packed) is packed


def test_gradients_of_parts_that_were_shared_are_added(shared, layout):
    x = shared[0].clone().requires_grad_()
    own, packed = Layout.of([x, shared[1], x, x], layout.sites_of_segments)
    forked, (packed,) = own.fork(fills, packed)
    sum(out.sum() for out in forked.outputs(packed)).backward()
    assert torch.equal(x.grad, torch.full_like(x, 3.0))


def test_parts_that_adjoin_are_packed_without_a_copy_only_if_that_is_asked_for():
    whole = torch.randn(12, 4)
    a, b = (part.unflatten(0, (-1, 2)) for part in whole.split([8, 4]))
    assert torch.equal(pack([a, b]), whole)
    assert pack([a, b]).data_ptr() != whole.data_ptr()
    assert pack([a, b], view=True).data_ptr() == whole.data_ptr()
    assert torch.equal(pack([a, b], view=True), whole)
    for parts in ([b, a], [a, a], [a, b.clone()], [a[:2], b], [a, b.transpose(0, 1)], [a[:, :1], a[:, 1:]]):
        expected = torch.cat([part.reshape(-1, 4) for part in parts])
        assert torch.equal(pack(parts, view=True), expected)
        assert pack(parts, view=True).data_ptr() != whole.data_ptr()


def test_parts_are_written_into_the_packed_tensor_only_if_that_is_asked_for():
    xs = [torch.randn(2, 3, 4), torch.randn(1, 5, 4)]
    layout, packed = Layout.of(xs, [NOTHING, NOTHING])
    before, new = packed.clone(), torch.randn(1, 5, 4)
    apart = layout.with_parts(packed, [(1, new)])
    assert torch.equal(packed, before)
    written = layout.with_parts(packed, [(1, new)], in_place=True)
    assert written is packed
    assert torch.equal(written, apart)
