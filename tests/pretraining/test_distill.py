"""Distillation: views, stored targets, the student and a loop that resumes to the bit."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
from torch import Tensor

from adapterbank.audio.mel import AUDIOSET_STD
from adapterbank.backbone.checkpoints.opening import load_backbone
from adapterbank.backbone.encode import Segment, encode
from adapterbank.backbone.sites import Sites
from adapterbank.backbone.weights import ASTWeights, Geometry
from adapterbank.errors import BackboneError, ConfigError, DatasetError, StorageError, TrainingDivergedError
from adapterbank.pretraining.distill import (
    Distiller,
    epoch_batches,
    learning_rate,
    random_gain,
)
from adapterbank.pretraining.distill_losses import pooled_target
from adapterbank.pretraining.masked import RECONSTRUCTION_WEIGHT
from adapterbank.pretraining.options import DistillOptions
from adapterbank.pretraining.pool import Pool
from adapterbank.pretraining.sources import Sound
from adapterbank.pretraining.sources.folder import Folder
from adapterbank.pretraining.student import MINI, export_backbone, init_student, student_tokens
from adapterbank.pretraining.teachers import Target, view_samples
from adapterbank.pretraining.views import (
    JoinedViews,
    ViewStore,
    draw_views,
    in_a_room,
    prepare,
    render,
    views_per_source,
)

SMALL = Geometry(layers=2, width=12, heads=3, mlp_width=24, frequency_stride=16, time_stride=16, eps=1e-6)
OPTIONS = DistillOptions(steps=12, batch_tokens=300, accumulate=2, keep_rows=5)


class Loudness:
    """A teacher that says how loud each patch column and the whole view are."""

    targets = (
        Target("loud.columns", 1, "embedding", span=1, hop=1, parts=3),
        Target("loud.score", 2, "probability"),
    )

    def __init__(self) -> None:
        self.calls = 0

    def __call__(self, waves: Tensor) -> dict[str, Tensor]:
        self.calls += 1
        columns = waves[:, 240:].unflatten(1, (-1, 2560)).square().mean(2, keepdim=True).sqrt()
        score = columns.mean(1, keepdim=True).clamp(0, 1)
        return {"loud.columns": columns, "loud.score": torch.cat((score, 1 - score), dim=2)}


@pytest.fixture
def pool(tmp_path: Path) -> Pool:
    rng = np.random.default_rng(0)
    folder = tmp_path / "audio"
    folder.mkdir()
    for number, seconds in enumerate((0.4, 1.3, 2.0, 0.01, 3.1, 0.8)):
        sound = rng.normal(size=round(seconds * 16_000)) * rng.uniform(0.02, 0.3)
        soundfile.write(folder / f"{number}.wav", sound, 16_000)
    return Pool(folder, tmp_path / "cache")


@pytest.fixture
def store(pool: Pool, tmp_path: Path) -> ViewStore:
    return prepare(pool, draw_views(pool, 4, seed=0), [Loudness()], tmp_path / "views", pass_size=len(pool))


def state_of(distiller: Distiller) -> list[Tensor]:
    return [*distiller.student.values(), *distiller.heads.values(), *distiller.ema.values()]


def test_a_view_is_the_same_whenever_it_is_rendered(pool: Pool) -> None:
    first, second = draw_views(pool, 5, seed=3), draw_views(pool, 5, seed=3)
    assert first == second
    for view in first:
        wave, length = render(pool, view)
        again, _ = render(pool, view)
        assert torch.equal(wave, again)
        assert wave.shape == (view_samples(view.columns),)
        assert 0 < length <= len(wave)
        assert wave.abs().max() <= 1.0 + 1e-6
        assert not wave[length:].any()
    assert {view.mix >= 0 for view in first} == {True, False}
    assert draw_views(pool, 5, seed=4) != first


def test_excluded_clips_are_never_heard(pool: Pool, store: ViewStore, tmp_path: Path) -> None:
    less = Pool(tmp_path / "audio", tmp_path / "cache", exclude=[1, 4])
    kept = [0, 2, 3, 5]
    assert len(less) == len(kept)
    for mine, theirs in enumerate(kept):
        assert torch.equal(less.read(mine), pool.read(theirs))
    with pytest.raises(DatasetError, match=r"exclude=\[6\], expected clip numbers from 0 to 5"):
        Pool(tmp_path / "audio", tmp_path / "cache", exclude=[6])
    views = draw_views(pool, 4, seed=0)
    with_them = {v for v in range(len(views)) if {1, 4} & {*views[v].clips, views[v].mix}}
    assert 0 < len(with_them) < len(views)
    order = sorted(range(len(views)), key=lambda v: (v // len(pool), views[v].columns, v))
    kept_views = [place for place, view in enumerate(order) if view not in with_them]
    prepared = JoinedViews([store], exclude=[1, 4])
    assert prepared.done == len(prepared.columns) == len(kept_views)
    for mine, theirs in enumerate(kept_views):
        assert torch.equal(prepared.batch("mel", [mine]), store.batch("mel", [theirs]))
    again = prepare(less, draw_views(less, 1, seed=0), [], tmp_path / "less")
    assert not again.holds([1, 4]).any()
    assert again.holds([5]).any()
    (tmp_path / "less" / "clips.npy").unlink()
    with pytest.raises(DatasetError, match="draw the views again"):
        again.holds([1])


def test_short_clips_keep_their_own_length(pool: Pool) -> None:
    lengths = [
        v.columns for v in draw_views(pool, 20, seed=0, mix=0.0, join=0.0) if v.clips == (0,) and v.speed == (1, 1)
    ]
    assert max(lengths) == 3  # 0.4 s are 38 frames: longer views are not filled up


class Words:
    """A source of five words of a second, each a tone of its own."""

    parts = 1

    def describe(self) -> dict[str, object]:
        return {"words": 5}

    def part(self, number: int) -> Iterator[Sound]:
        times = np.arange(16_000) / 16_000
        for word in range(5):
            yield Sound((0.3 * np.sin(2 * np.pi * 200 * (word + 1) * times)).astype(np.float32), f"word {word}")


@pytest.fixture
def words_too(tmp_path: Path, pool: Pool) -> Pool:
    return Pool([Folder(tmp_path / "audio"), Words()], tmp_path / "both")


def test_each_source_has_as_many_views_of_a_clip_as_asked(words_too: Pool) -> None:
    views = draw_views(words_too, [3, 1], seed=0)
    assert Counter(view.clips[0] for view in views) == {**dict.fromkeys(range(6), 3), **dict.fromkeys(range(6, 11), 1)}
    every = {view.seed: view for view in draw_views(words_too, 3, seed=0)}
    assert all(every[view.seed] == view for view in views)  # a view does not depend on how many others there are
    assert draw_views(words_too, [0, 0], seed=0) == []
    assert views_per_source({"words": 1, "folder": 3}, ["folder", "words"]) == [3, 1]
    assert views_per_source({"folder": 4}, ["folder", "words"]) == [4, 1]
    assert views_per_source(2, ["folder", "words"]) == 2
    with pytest.raises(ConfigError, match=r"per_clip names \['notes'\], expected some .*\['folder', 'words'\]"):
        views_per_source({"notes": 2}, ["folder", "words"])


def test_no_single_word_is_laid_over_a_view(words_too: Pool) -> None:
    laid = {view.mix for view in draw_views(words_too, 60, seed=0, mix=1.0)}
    assert laid == set(range(6))


def test_a_room_keeps_length_and_level_and_lets_a_click_ring(pool: Pool) -> None:
    views = draw_views(pool, 40, seed=0, room=0.5)
    dry = draw_views(pool, 40, seed=0)
    assert 0.35 < np.mean([view.room for view in views]) < 0.65
    assert [replace(view, room=False) for view in views] == dry
    for view, without in zip(views[:12], dry, strict=False):
        (wave, length), (plain, _) = render(pool, view), render(pool, without)
        assert not wave[length:].any()
        assert torch.equal(wave, plain) != view.room
    click = torch.zeros(16_000)
    click[1_000] = 0.5
    heard = in_a_room(click, np.random.default_rng(0))
    assert heard.shape == click.shape
    assert not heard[:990].abs().gt(1e-5).any()  # nothing is heard before it sounds
    assert heard[1_001:4_000].square().mean() > heard[-4_000:].square().mean()
    torch.testing.assert_close(heard.square().mean(), click.square().mean(), rtol=1e-3, atol=0)


def test_teachers_side_by_side_leave_the_files_of_one_after_another(
    pool: Pool, store: ViewStore, tmp_path: Path
) -> None:
    prepare(
        pool, draw_views(pool, 4, seed=0), [Loudness()], tmp_path / "both", pass_size=6, threads=3, batch_columns=20
    )
    for file in sorted((tmp_path / "views").iterdir()):
        assert (tmp_path / "both" / file.name).read_bytes() == file.read_bytes()


class Killed(Loudness):
    """A teacher during whose work the process ends: when it has heard so many views and is asked about more."""

    def __init__(self, after: int) -> None:
        super().__init__()
        self.left = after

    def __call__(self, waves: Tensor) -> dict[str, Tensor]:
        if self.left <= 0:
            raise KeyboardInterrupt
        self.left -= len(waves)
        return super().__call__(waves)


def test_prepare_goes_on_where_it_was_killed(pool: Pool, store: ViewStore, tmp_path: Path) -> None:
    views = draw_views(pool, 4, seed=0)
    with pytest.raises(KeyboardInterrupt):
        prepare(pool, views, [Killed(after=len(views) // 2 + 1)], tmp_path / "again", pass_size=len(pool))
    ready = ViewStore.open(tmp_path / "again").done
    assert len(views) // 2 < ready < len(views)
    prepare(pool, views, [Loudness()], tmp_path / "again", pass_size=len(pool))
    for name in ("mel", "loud.columns", "loud.score"):
        assert (tmp_path / "again" / f"{name}.f16").read_bytes() == (tmp_path / "views" / f"{name}.f16").read_bytes()
    done = Loudness()
    prepare(pool, views, [done], tmp_path / "again", pass_size=len(pool))
    assert not done.calls


def test_stored_targets_belong_to_their_views(pool: Pool, store: ViewStore) -> None:
    views = draw_views(pool, 4, seed=0)
    order = sorted(range(len(views)), key=lambda v: (v // len(pool), views[v].columns, v))
    for place in (0, 7, len(views) - 1):
        view = views[order[place]]
        wave, _ = render(pool, view)
        expected = Loudness()(wave[None])["loud.columns"]
        torch.testing.assert_close(store.batch("loud.columns", [place]), expected, atol=1e-3, rtol=1e-3)
        assert store.batch("mel", [place]).shape == (1, 16 * view.columns, 128)


def test_joined_stores_answer_as_each_store_does(pool: Pool, store: ViewStore, tmp_path: Path) -> None:
    views = draw_views(pool, 1, seed=7)
    other = prepare(pool, views, [Loudness()], tmp_path / "other")
    joined = JoinedViews([store, other])
    assert joined.done == store.done + other.done
    for name in ("mel", *(target.name for target in store.targets)):
        for view in (0, store.done - 1):
            assert torch.equal(joined.batch(name, [view]), store.batch(name, [view]))
            mixed = np.flatnonzero(joined.columns == other.columns[0])
            expected = [(store if v < store.done else other, int(v) - store.done * (v >= store.done)) for v in mixed]
            assert torch.equal(joined.batch(name, mixed), torch.cat([s.batch(name, [v]) for s, v in expected]))
    with pytest.raises(DatasetError, match="other teachers"):
        JoinedViews([store, prepare(pool, views, [], tmp_path / "silent")])


def test_a_store_refuses_other_views(pool: Pool, store: ViewStore, tmp_path: Path) -> None:
    with pytest.raises(DatasetError, match="other views"):
        prepare(pool, draw_views(pool, 4, seed=1), [Loudness()], tmp_path / "views", pass_size=len(pool))
    with pytest.raises(DatasetError, match="prepare"):
        ViewStore.open(tmp_path / "nothing")
    (tmp_path / "empty").mkdir()
    with pytest.raises(DatasetError, match="no audio"):
        Pool(tmp_path / "empty", tmp_path / "other")


@pytest.mark.parametrize("columns", [1, 7, 64])
def test_the_student_computes_what_the_host_computes(columns: int) -> None:
    tensors = {name: t + 0.02 * torch.randn_like(t) for name, t in init_student(SMALL, 0).items()}
    mel = torch.randn(2, 16 * columns, 128)
    segment = Segment((Sites(),) * SMALL.layers, ASTWeights.from_named(tensors, SMALL.layers))
    expected = encode([mel], [segment], SMALL)[0]
    torch.testing.assert_close(student_tokens(tensors, mel, SMALL, torch.float32), expected, atol=1e-4, rtol=0)


def test_rows_left_out_are_absent_and_the_rest_keep_their_positions() -> None:
    tensors = init_student(SMALL, 0)
    mel = torch.randn(2, 48, 128)
    every = torch.arange(8).expand(2, 8)
    full = student_tokens(tensors, mel, SMALL, torch.float32)
    torch.testing.assert_close(student_tokens(tensors, mel, SMALL, torch.float32, every), full)
    kept = torch.tensor([[0, 2], [5, 7]])
    before = student_tokens(tensors, mel, SMALL, torch.float32, kept)
    mel[0, :, 64:80] = 9.0  # row 4, which neither clip keeps
    assert torch.equal(student_tokens(tensors, mel, SMALL, torch.float32, kept), before)
    assert before.shape == (2, 2 + 2 * 3, SMALL.width)


def test_training_lowers_the_loss_and_moves_every_tensor(store: ViewStore) -> None:
    distiller = Distiller(store, replace(OPTIONS, steps=60, lr=3e-3), SMALL)
    before = [t.detach().clone() for t in distiller.student.values()]
    losses: list[float] = []
    distiller.run(log_every=10, on_log=lambda step, means: losses.append(means["loss"]))
    assert losses[-1] < losses[0]
    # The key bias has no gradient: it adds the same to every logit of a softmax.
    still = [n for (n, t), b in zip(distiller.student.items(), before, strict=True) if torch.equal(t, b)]
    assert all(name.endswith("k_bias") for name in still)


def test_a_masked_patch_loss_beside_the_teachers_adds_itself_by_its_weight(store: ViewStore) -> None:
    plain, both = (Distiller(store, replace(OPTIONS, masked_weight=weight), SMALL) for weight in (0.0, 0.5))
    for name, tensor in both.student.items():
        assert torch.equal(tensor, plain.student[name])
    views = np.flatnonzero(store.columns == store.columns[0])[:2]
    alone, _ = plain.loss(views, torch.Generator().manual_seed(1))
    total, parts = both.loss(views, torch.Generator().manual_seed(1))
    guessed = parts["match"] + RECONSTRUCTION_WEIGHT * parts["pixels"]
    assert float(total.detach()) == pytest.approx(float(alone.detach()) + 0.5 * guessed, rel=1e-5)
    losses: list[float] = []
    both.run(on_log=lambda _, means: losses.append(means["pixels"]), log_every=3)
    assert losses[-1] < losses[0]


def test_logged_losses_are_means_of_the_steps_since_the_last_log(store: ViewStore, tmp_path: Path) -> None:
    single: list[float] = []
    Distiller(store, OPTIONS, SMALL).run(log_every=1, until=6, on_log=lambda _, means: single.append(means["loss"]))
    Distiller(store, OPTIONS, SMALL).run(tmp_path / "state.pt", until=2)
    logged: list[float] = []
    resumed = Distiller(store, OPTIONS, SMALL)
    resumed.run(tmp_path / "state.pt", log_every=3, until=6, on_log=lambda _, means: logged.append(means["loss"]))
    assert logged == pytest.approx([single[2], np.mean(single[3:])])


def test_a_killed_run_resumes_to_the_same_bits(store: ViewStore, tmp_path: Path) -> None:
    whole = Distiller(store, OPTIONS, SMALL)
    whole.run()
    Distiller(store, OPTIONS, SMALL).run(tmp_path / "state.pt", until=5)
    resumed = Distiller(store, OPTIONS, SMALL)
    resumed.run(tmp_path / "state.pt")
    assert resumed.step == whole.step == OPTIONS.steps
    for a, b in zip(state_of(whole), state_of(resumed), strict=True):
        assert torch.equal(a, b)


def test_a_run_can_start_from_the_averaged_student_of_another(store: ViewStore, tmp_path: Path) -> None:
    first = Distiller(store, OPTIONS, SMALL)
    first.run(tmp_path / "state.pt", until=4)
    second = Distiller(store, replace(OPTIONS, lr=3e-4), SMALL)
    second.start_from(tmp_path / "state.pt")
    assert second.step == 0
    for name, tensor in first.ema.items():
        assert torch.equal(second.student[name], tensor)
        assert torch.equal(second.ema[name], tensor)
    with pytest.raises(StorageError, match="geometry"):
        Distiller(store, OPTIONS, replace(SMALL, layers=1)).start_from(tmp_path / "state.pt")


def test_a_run_can_start_from_an_exported_backbone(store: ViewStore, tmp_path: Path) -> None:
    first = Distiller(store, OPTIONS, SMALL)
    first.run(until=4)
    export_backbone(first.ema, SMALL, tmp_path / "exported")
    second = Distiller(store, OPTIONS, SMALL)
    second.start_from(tmp_path / "exported")
    for name, tensor in first.ema.items():
        stored = tensor.to(torch.bfloat16).float()
        assert torch.equal(second.student[name], stored)
        assert torch.equal(second.ema[name], stored)
    with pytest.raises(StorageError, match="geometry"):
        Distiller(store, OPTIONS, replace(SMALL, layers=1)).start_from(tmp_path / "exported")
    with pytest.raises(BackboneError):
        second.start_from(tmp_path)


def test_a_checkpoint_of_another_run_is_refused(store: ViewStore, tmp_path: Path) -> None:
    Distiller(store, OPTIONS, SMALL).run(tmp_path / "state.pt", until=1)
    with pytest.raises(StorageError, match="options"):
        Distiller(store, replace(OPTIONS, lr=1.0), SMALL).load(tmp_path / "state.pt")
    Distiller(store, replace(OPTIONS, steps=99), SMALL).load(tmp_path / "state.pt")
    (tmp_path / "cut.pt").write_bytes((tmp_path / "state.pt").read_bytes()[:1000])
    with pytest.raises(StorageError, match=r"cut\.pt"):
        Distiller(store, OPTIONS, SMALL).load(tmp_path / "cut.pt")


def test_a_checkpoint_whose_masks_were_drawn_otherwise_is_not_gone_on_with(store: ViewStore, tmp_path: Path) -> None:
    checkpoint = tmp_path / "state.pt"
    Distiller(store, OPTIONS, SMALL).run(checkpoint, until=1)
    state = torch.load(checkpoint)
    del state["version"]  # as files were before they had one
    torch.save(state, checkpoint)
    later = Distiller(store, OPTIONS, SMALL)
    with pytest.raises(StorageError, match=r"version 1, expected 2.*Finish it .* or start anew"):
        later.run(checkpoint)
    assert later.step == 0
    later.start_from(checkpoint)  # the averaged student is worth as much as ever
    for name, tensor in state["ema"].items():
        assert torch.equal(later.student[name], tensor)


@pytest.mark.parametrize("fails", [False, True])
def test_a_training_leaves_the_number_of_threads_as_it_was(store: ViewStore, fails: bool) -> None:
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(2)
        distiller = Distiller(store, OPTIONS, SMALL)
        with torch.no_grad():
            distiller.student["norm.weight"].mul_(float("nan") if fails else 1.0)
        with pytest.raises(TrainingDivergedError) if fails else nullcontext():
            distiller.run(until=1)
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)


def test_a_diverging_run_says_so(store: ViewStore) -> None:
    distiller = Distiller(store, OPTIONS, SMALL)
    with torch.no_grad():
        distiller.student["norm.weight"].fill_(float("nan"))
    with pytest.raises(TrainingDivergedError, match="step 0"):
        distiller.run()
    with pytest.raises(ConfigError, match="steps=0"):
        DistillOptions(steps=0)


def test_an_epoch_holds_every_view_once_in_batches_of_one_length(store: ViewStore) -> None:
    batches = epoch_batches(store.columns, OPTIONS, SMALL, epoch=0)
    assert sorted(np.concatenate(batches)) == list(range(len(store.columns)))
    assert all(len(set(store.columns[batch])) == 1 for batch in batches)
    other = epoch_batches(store.columns, OPTIONS, SMALL, epoch=1)
    assert [b.tolist() for b in other] != [b.tolist() for b in batches]


def test_the_learning_rate_warms_up_and_ends_near_zero() -> None:
    options = DistillOptions(steps=100, lr=1.0, warmup=0.1)
    rates = [learning_rate(step, options) for step in range(100)]
    assert rates[0] == pytest.approx(0.1)
    assert max(rates) == pytest.approx(1.0)
    assert rates[-1] < 0.02


def test_gain_moves_every_bin_of_a_clip_by_the_same_few_decibels() -> None:
    mel = torch.randn(64, 32, 128)
    moved = (random_gain(mel, replace(OPTIONS, gain=4.0), torch.Generator().manual_seed(0)) - mel) * 2 * AUDIOSET_STD
    decibels = moved * 10 / np.log(10)
    assert decibels.std(dim=(1, 2)).max() < 1e-4
    assert 2 < decibels.abs().max() <= 4.001


def test_pooled_targets_are_means_over_equal_parts_of_time() -> None:
    rows = torch.arange(6.0)[None, :, None]
    assert pooled_target(Target("x", 1, "embedding", 1, 1, parts=3), rows).tolist() == [[0.5, 2.5, 4.5]]
    assert pooled_target(Target("x", 1, "embedding", 1, 1), rows).tolist() == [[2.5]]


def test_the_export_is_a_backbone_for_us_and_for_transformers(tmp_path: Path) -> None:
    from transformers import ASTModel

    tensors = {n: t + 0.02 * torch.randn_like(t) for n, t in init_student(SMALL, 0).items()}
    export_backbone(tensors, SMALL, tmp_path)
    backbone = load_backbone(tmp_path)
    assert backbone.geometry == SMALL
    for name, tensor in backbone.weights.named():
        assert torch.equal(tensor, tensors[name].bfloat16().float())
    model, info = ASTModel.from_pretrained(tmp_path, output_loading_info=True, dtype=torch.float32)
    assert not any(info[kind] for kind in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    mel = torch.randn(1, 1024, 128)
    ours = student_tokens(dict(backbone.weights.named()), mel, SMALL, torch.float32)
    torch.testing.assert_close(model.eval()(mel).last_hidden_state, ours, atol=1e-4, rtol=0)


def test_the_embedded_geometry_has_five_and_a_half_million_parameters() -> None:
    assert 5.4e6 < sum(t.numel() for t in init_student(MINI, 0).values()) < 5.7e6
