"""A pool: several sources one after another, and what is left of it after a kill."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from adapterbank.errors import DatasetError
from adapterbank.pretraining.pool import Pool
from adapterbank.pretraining.sources import Sound


class Steps:
    """Part n has two clips of constant level: n and n + 1 hundredths."""

    def __init__(self, parts: int, word: str = "", fails: int | None = None):
        self.parts, self.word, self.fails, self.made = parts, word, fails, 0

    def describe(self) -> dict[str, Any]:
        return {"parts": self.parts, "word": self.word}

    def part(self, number: int) -> Iterator[Sound]:
        self.made += 1
        for add in (0, 1):
            yield Sound(np.full(100 + number, (number + add) / 100, np.float32), self.word)
            if number == self.fails:
                raise KeyboardInterrupt


def levels(pool: Pool) -> list[float]:
    return [round(float(pool.read(clip).mean()), 3) for clip in range(len(pool))]


def test_clips_of_several_sources_follow_one_another_with_what_they_say(tmp_path: Path) -> None:
    pool = Pool([Steps(2), Steps(1, "yes")], tmp_path)
    assert levels(pool) == [0.0, 0.01, 0.01, 0.02, 0.0, 0.01]
    assert [len(pool.read(clip)) for clip in range(6)] == [100, 100, 101, 101, 100, 100]
    assert pool.said == ["", "", "", "", "yes", "yes"]
    assert pool.origin.tolist() == [0, 0, 0, 0, 1, 1]
    assert Pool([Steps(2), Steps(1, "yes")], tmp_path, exclude=[1]).origin.tolist() == [0, 0, 0, 1, 1]


def test_a_killed_run_goes_on_with_the_part_in_which_it_was_killed(tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt):
        Pool(Steps(4, fails=2), tmp_path)
    second = Steps(4)
    assert levels(Pool(second, tmp_path)) == levels(Pool(Steps(4), tmp_path / "other"))
    assert second.made == 2


def test_a_line_that_was_cut_off_counts_as_not_written(tmp_path: Path) -> None:
    Pool(Steps(3), tmp_path)
    lines = tmp_path / "parts.jsonl"
    lines.write_bytes(lines.read_bytes()[:-9])
    assert levels(Pool(Steps(3), tmp_path)) == levels(Pool(Steps(3), tmp_path / "other"))


def test_a_finished_pool_asks_no_source_again_and_refuses_another(tmp_path: Path) -> None:
    Pool(Steps(2), tmp_path)
    again = Steps(2)
    Pool(again, tmp_path)
    assert again.made == 0
    with pytest.raises(DatasetError, match="another source"):
        Pool(Steps(3), tmp_path)


def test_excluded_clips_are_counted_over_all_sources(tmp_path: Path) -> None:
    pool = Pool([Steps(1), Steps(1, "yes")], tmp_path, exclude=[1, 2])
    assert pool.said == ["", "yes"]
    assert list(pool.numbers) == [0, 3]


def test_samples_that_were_lost_are_an_error_and_no_silence(tmp_path: Path) -> None:
    Pool(Steps(2), tmp_path)
    (tmp_path / "samples.i16").unlink()
    with pytest.raises(DatasetError, match="lost samples"):
        Pool(Steps(2), tmp_path)


def test_sources_without_a_clip_are_an_error(tmp_path: Path) -> None:
    with pytest.raises(DatasetError, match="no clip"):
        Pool(Steps(0), tmp_path)


def test_a_pool_of_which_no_part_was_finished_may_be_made_of_other_audio(tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt):
        Pool(Steps(1, fails=0), tmp_path)
    assert levels(Pool(Steps(2, "yes"), tmp_path)) == [0.0, 0.01, 0.01, 0.02]


def test_the_cache_of_an_earlier_version_is_called_that(tmp_path: Path) -> None:
    (tmp_path / "source.json").write_text('{"files": [["a.wav", 4]]}')
    with pytest.raises(DatasetError, match="earlier version"):
        Pool(Steps(1), tmp_path)
