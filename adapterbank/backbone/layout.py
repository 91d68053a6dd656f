"""Where the rows of many segments lie in one packed tensor.

A block runs on all segments of a call at once: their tokens stand one behind the other in one tensor (S, X), so that a
frozen linear is one product for all of them. A `Layout` says whose tokens are where. It never changes: what gives the
tokens another arrangement returns another layout together with the rearranged tensors.

Symbols: R rows of a part, N tokens, D width, S = sum of R x N over the parts, X any width.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from adapterbank.backbone.sites import Sites


class Layout(NamedTuple):
    """Parts of a packed tensor, and which of them is whose.

    A part is what is computed once. Segments that were given the same tensor are one part. A segment leaves it for a
    part of its own when it fills a site; the others stay together until they fill theirs. So several tasks on the same
    clips share what lies below their first sites.

    Attributes:
        sites_of_segments: what each segment fills in this block.
        part_of: the part of each segment.
        first: one segment of each part. Where segments share a part, none of them has filled a site yet.
        shapes: (R, N) of each part.
    """

    sites_of_segments: tuple[Sites, ...]
    part_of: tuple[int, ...]
    first: tuple[int, ...]
    shapes: tuple[tuple[int, int], ...]

    @classmethod
    def of(cls, xs: Sequence[Tensor], segments: Sequence[Sites], view: bool = False) -> tuple[Layout, Tensor]:
        """The layout of one (R, N, D) tensor per segment, and their tokens packed, (S, D).

        Args:
            view: the packed tokens may be the memory of `xs` itself, where that has the right order.
        """
        layout = cls._numbered(segments, alike(xs), [(x.shape[0], x.shape[1]) for x in xs])
        return layout, pack([xs[segment] for segment in layout.first], view)

    @classmethod
    def _numbered(cls, segments: Sequence[Sites], part_of: Sequence[int], shapes: Sequence[tuple[int, int]]) -> Layout:
        """From the part of each segment and (R, N) of each segment."""
        first: dict[int, int] = {}
        for segment, part in enumerate(part_of):
            first.setdefault(part, segment)
        firsts = tuple(first.values())
        return cls(tuple(segments), tuple(part_of), firsts, tuple(shapes[segment] for segment in firsts))

    @property
    def sites_of_parts(self) -> list[Sites]:
        """What acts on each part."""
        return [self.sites_of_segments[segment] for segment in self.first]

    def split(self, packed: Tensor) -> list[Tensor]:
        """(S, X) -> one (R, N, X) view per part."""
        # In the backward pass a split is a concatenation, also the split into a single part.
        parts = packed.split([rows * tokens for rows, tokens in self.shapes]) if len(self.shapes) > 1 else [packed]
        return [part.unflatten(0, shape) for part, shape in zip(parts, self.shapes, strict=True)]

    def outputs(self, packed: Tensor) -> list[Tensor]:
        """(S, X) -> one (R, N, X) view per segment; segments of one part get the same tensor."""
        parts = self.split(packed)
        return [parts[part] for part in self.part_of]

    def with_parts(self, packed: Tensor, own: Iterable[tuple[int, Tensor]], in_place: bool = False) -> Tensor:
        """`packed`, (S, X), with other tensors (R, N, X) in the places of some parts.

        Args:
            in_place: write them into `packed`, which the caller has made and nobody else reads.
        """
        if in_place:
            parts = self.split(packed)
            for i, part in own:
                parts[i].copy_(part)
            return packed
        new = dict(own)
        if not new:
            return packed
        return pack([new[i].to(packed.dtype) if i in new else part for i, part in enumerate(self.split(packed))])

    def fork(self, fills: Callable[[Sites], object], *packed: Tensor) -> tuple[Layout, tuple[Tensor, ...]]:
        """Gives segments that fill these sites a part of their own.

        Returns:
            The new layout, and the tensors, (S, X) each, in that layout.
        """
        if len(self.shapes) == len(self.part_of):
            return self, packed
        alone = [segment if fills(sites) else None for segment, sites in enumerate(self.sites_of_segments)]
        after = numbered(zip(self.part_of, alone, strict=True))
        layout = self._numbered(self.sites_of_segments, after, [self.shapes[part] for part in self.part_of])
        return layout, tuple(layout._taken(self, tensor) for tensor in packed)

    def cut(self, read: Sequence[int | None], *packed: Tensor) -> tuple[Layout, Layout, tuple[Tensor, ...]]:
        """Keeps the first `read` tokens of each segment, all for None.

        Segments of one part that read different numbers get parts of their own.

        Returns:
            The layout of the kept tokens; one with the same parts and all of their tokens, which keys and values need;
            and the tensors, (S, X) each, cut.
        """
        shapes = [self.shapes[part] for part in self.part_of]
        wanted = [
            tokens if number is None else min(number, tokens) for number, (_, tokens) in zip(read, shapes, strict=True)
        ]
        after = numbered(zip(self.part_of, wanted, strict=True))
        whole = self._numbered(self.sites_of_segments, after, shapes)
        kept = self._numbered(
            self.sites_of_segments, after, [(rows, n) for (rows, _), n in zip(shapes, wanted, strict=True)]
        )
        return (
            kept,
            whole,
            tuple(
                pack([part[:, :n] for part, (_, n) in zip(whole._parts(self, tensor), kept.shapes, strict=True)])
                for tensor in packed
            ),
        )

    def taken(self, before: Layout, packed: Tensor) -> Tensor:
        """A tensor of the layout before, (S, X), in this one, which has the same parts or finer ones."""
        return packed if len(before.shapes) == len(self.shapes) else self._taken(before, packed)

    def _taken(self, before: Layout, packed: Tensor) -> Tensor:
        return pack(self._parts(before, packed))

    def _parts(self, before: Layout, packed: Tensor) -> list[Tensor]:
        parts = before.split(packed)
        return [parts[before.part_of[segment]] for segment in self.first]


def pack(parts: Sequence[Tensor], view: bool = False) -> Tensor:
    """(R, N, X) per part -> (S, X).

    Args:
        view: without a copy where the parts lie one behind the other in memory. Autograd must not record it: it would
            send the gradients of all parts to the first.
    """
    if len(parts) == 1:
        return parts[0].flatten(0, 1)
    if view and _adjoin(parts):
        width = parts[0].shape[-1]
        return parts[0].as_strided((sum(part.numel() for part in parts) // width, width), (width, 1))
    return torch.cat([part.flatten(0, 1) for part in parts])


def _adjoin(parts: Sequence[Tensor]) -> bool:
    """Whether tensors are contiguous and lie one behind the other in memory, as `Layout.split` leaves them."""
    storage, place = parts[0].untyped_storage().data_ptr(), parts[0].storage_offset()
    for part in parts:
        if part.untyped_storage().data_ptr() != storage or part.storage_offset() != place or not part.is_contiguous():
            return False
        place += part.numel()
    return True


def numbered(keys: Iterable[Hashable]) -> list[int]:
    """Each key's number, counted in the order in which new ones appear: "b", "a", "b" -> 0, 1, 0."""
    numbers: dict[Hashable, int] = {}
    return [numbers.setdefault(key, len(numbers)) for key in keys]


def alike(*lists: Sequence[object]) -> list[int]:
    """Numbers places, by first appearance: two get the same number if every list holds the same object at both."""
    if len(lists[0]) == 1:
        return [0]  # torch.compile, which sees one task at a time, traces no id() of a tensor
    return numbered(tuple(id(entry) for entry in place) for place in zip(*lists, strict=True))


def neighbours(sizes: Sequence[Hashable]) -> list[list[int]]:
    """Places that are next to each other and equal: "aab" -> [[0, 1], [2]]."""
    found: list[list[int]] = []
    for place, size in enumerate(sizes):
        if place and size == sizes[place - 1]:
            found[-1].append(place)
        else:
            found.append([place])
    return found
