"""Views of single words: heard whole, known by name in the store, and drawn together by the loss."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from sklearn.discriminant_analysis import LinearDiscriminantAnalysis
from torch import Tensor

from adapterbank.audio.mel import AUDIOSET_MEAN, AUDIOSET_STD, normalise
from adapterbank.backbone.weights import Geometry
from adapterbank.errors import ConfigError, UnknownNameError
from adapterbank.pretraining.distill import Distiller
from adapterbank.pretraining.distill_losses import pooled_target, project
from adapterbank.pretraining.options import DistillOptions
from adapterbank.pretraining.pool import Pool
from adapterbank.pretraining.sources import Sound
from adapterbank.pretraining.student import student_tokens
from adapterbank.pretraining.teachers import LogMel, Target
from adapterbank.pretraining.views import JoinedViews, ViewStore, draw_views, prepare, render
from adapterbank.pretraining.words import SHRINKAGE, init_word_head, word_loss, word_statistics

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


@pytest.fixture
def heard(pool: Pool, tmp_path: Path) -> ViewStore:
    """Views with a teacher that hears which word it is."""
    return prepare(pool, draw_views(pool, 4, seed=0), [LogMel()], tmp_path / "heard")


def test_the_nearest_word_in_its_directions_is_that_of_linear_discriminant_analysis(heard: ViewStore) -> None:
    target = heard.targets[0]
    statistics = word_statistics(heard, target, seed=0)
    views = np.flatnonzero(heard.said >= 0)
    answers = torch.cat([pooled_target(target, heard.batch(target.name, [view])) for view in views])
    share = SHRINKAGE / (1 + SHRINKAGE)  # scikit-learn's own way to write the same
    reference = LinearDiscriminantAnalysis(solver="eigen", shrinkage=share, priors=[0.5, 0.5])
    noisy = answers + 6 * torch.randn(answers.shape, generator=torch.Generator().manual_seed(0))
    expected = reference.fit(answers.double().numpy(), heard.said[views]).predict(noisy.double().numpy())
    projected = (noisy - statistics["word.mean"]) @ statistics["word.directions"]
    found = torch.cdist(projected, statistics["word.means"]).argmin(1).numpy()
    assert (found == expected).mean() > 0.97
    assert 0 < (expected == heard.said[views]).mean() < 1


def test_with_the_word_loss_the_student_hears_the_words_and_without_it_nothing_asks_for_them(heard: ViewStore) -> None:
    shared = {"word_target": "mel.halves", "row_weight": 0.0, "keep_rows": 8, "ema": 0.5}
    options = DistillOptions(steps=300, batch_tokens=600, lr=5e-3, word_weight=1.0, **shared)
    logged: list[dict[str, float]] = []
    distiller = Distiller(heard, options, SMALL, torch.float32)

    def right() -> float:
        """Of the words, how many are nearest to their own mean where the student hears them."""
        hits = []
        for view in np.flatnonzero(heard.said >= 0):
            mel = normalise(heard.batch("mel", [view]), AUDIOSET_MEAN, AUDIOSET_STD)
            tokens = student_tokens(distiller.student, mel, SMALL, torch.float32)
            guess = project(tokens.mean(1), distiller.heads, "word")
            hits.append(int(torch.cdist(guess, distiller.statistics["word.means"]).argmin()) == heard.said[view])
        return float(np.mean(hits))

    assert right() < 0.8
    distiller.run(log_every=50, on_log=lambda step, losses: logged.append(losses))
    assert right() > 0.9
    assert all("word" in losses for losses in logged)
    assert "word.weight" not in Distiller(heard, replace(options, word_weight=0.0), SMALL).heads


def test_a_word_is_asked_for_what_all_its_voices_have_in_common(heard: ViewStore) -> None:
    target = heard.targets[0]
    statistics = word_statistics(heard, target, seed=0)
    heads = init_word_head(statistics, 12, seed=0)
    view = int(np.flatnonzero(heard.said == 1)[0])
    tokens, answers = torch.zeros(1, 4, 12), heard.batch(target.name, [view])

    def loss(said: int, answers: Tensor) -> float:
        return float(word_loss(tokens, answers, torch.tensor([said]), target, heads, statistics))

    assert loss(1, answers) == loss(1, answers + 1.0)  # whoever says it
    assert loss(1, answers) == pytest.approx(float(statistics["word.means"][1].square().mean()), rel=1e-3)
    assert loss(-1, answers) != loss(-1, answers + torch.linspace(-1, 1, answers.shape[2]))


def test_a_word_loss_without_words_or_voices_or_teacher_is_refused(heard: ViewStore, tmp_path: Path) -> None:
    options = DistillOptions(steps=2, word_weight=1.0, word_target="mel.halves")
    for words, clips, message in (
        (("",), 1, "add the source speech"),
        (("high", *[""] * 11), 1, "fewer than two words"),
    ):
        pool = Pool(Tones(words), tmp_path / f"pool {len(words)}")
        store = prepare(pool, draw_views(pool, clips, seed=0), [LogMel()], tmp_path / f"views {len(words)}")
        with pytest.raises(ConfigError, match=message):
            Distiller(store, options, SMALL)
    with pytest.raises(UnknownNameError, match=r"unknown target 'whisper.frames'.*mel.halves"):
        Distiller(heard, replace(options, word_target="whisper.frames"), SMALL)
