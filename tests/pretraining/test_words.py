"""Views of single words: heard whole, known by name in the store, and drawn together by the loss."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from adapterbank.backbone.weights import Geometry
from adapterbank.errors import ConfigError
from adapterbank.pretraining.distill import Distiller
from adapterbank.pretraining.options import DistillOptions
from adapterbank.pretraining.pool import Pool
from adapterbank.pretraining.sources import Sound
from adapterbank.pretraining.teachers import Target
from adapterbank.pretraining.views import JoinedViews, ViewStore, draw_views, prepare, render

SMALL = Geometry(layers=2, width=12, heads=3, mlp_width=24, frequency_stride=16, time_stride=16, eps=1e-6)
WORDS = {"high": 2_000.0, "low": 300.0}


class Tones:
    """Two words, which are two tones, by several speakers; and noise, which is no word."""

    parts = 1

    def __init__(self, words: tuple[str, ...] = ("high", "low", "")):
        self.words = words

    def describe(self) -> dict[str, Any]:
        return {"words": list(self.words)}

    def part(self, number: int) -> Iterator[Sound]:
        rng = np.random.default_rng(number)
        for index in range(30):
            word = self.words[index % len(self.words)]
            time = np.arange(rng.integers(7_000, 12_000)) / 16_000
            tone = np.sin(2 * np.pi * WORDS[word] * time) if word else rng.normal(size=len(time))
            yield Sound((0.2 * tone).astype(np.float32), word)


class Level:
    """A teacher that says how loud a view is."""

    targets = (Target("level", 1, "embedding"),)

    def __call__(self, waves: Tensor) -> dict[str, Tensor]:
        return {"level": waves.square().mean(1)[:, None, None].sqrt()}


@pytest.fixture
def pool(tmp_path: Path) -> Pool:
    return Pool(Tones(), tmp_path / "pool")


@pytest.fixture
def store(pool: Pool, tmp_path: Path) -> ViewStore:
    return prepare(pool, draw_views(pool, 4, seed=0), [Level()], tmp_path / "views")


def test_a_word_view_is_one_whole_clip_at_its_speed(pool: Pool) -> None:
    views = [view for view in draw_views(pool, 4, seed=0) if view.word]
    assert len(views) > 40
    for view in views:
        assert len(view.clips) == 1
        whole = pool.clips[view.clips[0], 1] * view.speed[0] // view.speed[1]
        assert abs(render(pool, view)[1] - whole) <= 1


def test_the_store_knows_the_word_of_each_view_also_when_it_is_opened_again(store: ViewStore, pool: Pool) -> None:
    assert store.vocabulary == ["high", "low"]
    again = ViewStore.open(store.folder)
    assert again.vocabulary == store.vocabulary
    assert np.array_equal(again.said, store.said)
    clips = np.load(store.folder / "clips.npy")
    for said, clip in zip(store.said, clips[:, 0], strict=True):
        assert said == -1 or pool.said[clip] == store.vocabulary[said]
    assert (store.said == -1).any()


def test_joined_stores_share_one_vocabulary(store: ViewStore, tmp_path: Path) -> None:
    other_pool = Pool(Tones(("low", "")), tmp_path / "other_pool")
    other = prepare(other_pool, draw_views(other_pool, 2, seed=1), [Level()], tmp_path / "other")
    joined = JoinedViews([other, store])
    assert joined.vocabulary == ["high", "low"]
    words = [[each.vocabulary[said] if said >= 0 else "" for said in each.said] for each in (other, store)]
    assert [joined.vocabulary[said] if said >= 0 else "" for said in joined.said] == words[0] + words[1]


def test_with_the_word_loss_the_student_tells_the_words_apart_and_without_it_nothing_asks_for_them(
    store: ViewStore,
) -> None:
    def trained(weight: float) -> dict[str, float]:
        options = DistillOptions(steps=40, batch_tokens=600, lr=5e-3, ema=0.5, word_weight=weight, keep_rows=8)
        found: dict[str, float] = {}
        Distiller(store, options, SMALL, torch.float32).run(
            log_every=20, on_log=lambda step, losses: found.update(losses)
        )
        return found

    assert "word" not in trained(0.0)
    assert trained(1.0)["word"] < 0.35  # two words by guessing: 0.69


def test_a_word_loss_without_words_is_refused(tmp_path: Path) -> None:
    pool = Pool(Tones(("",)), tmp_path / "noise")
    store = prepare(pool, draw_views(pool, 1, seed=0), [Level()], tmp_path / "views")
    with pytest.raises(ConfigError, match="speech"):
        Distiller(store, DistillOptions(steps=2, word_weight=1.0), SMALL)
