"""Masked patches: against the formulas of SSAST written out clip by clip, and in the loop that resumes to the bit."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F

from adapterbank.backbone.encode import Segment, encode
from adapterbank.backbone.sites import Sites
from adapterbank.backbone.weights import ASTWeights, Geometry
from adapterbank.errors import ConfigError, UnknownNameError
from adapterbank.pretraining.distill import Distiller
from adapterbank.pretraining.masked import HEADS, MaskedPatches, draw_hidden
from adapterbank.pretraining.options import DistillOptions
from adapterbank.pretraining.student import init_student
from adapterbank.pretraining.views import ViewStore

SMALL = Geometry(layers=2, width=12, heads=3, mlp_width=24, frequency_stride=16, time_stride=16, eps=1e-6)
OPTIONS = DistillOptions(steps=8, batch_tokens=200, accumulate=2, objective="masked_patch")


@pytest.fixture
def store(tmp_path) -> ViewStore:
    """Views of two lengths that nobody was asked about."""
    columns = torch.tensor([3] * 6 + [5] * 6).numpy()
    store = ViewStore(tmp_path, columns, [], mode="w+")
    for view, length in enumerate(columns):
        store.write("mel", view, torch.randn(1, 16 * int(length), 128) * 4 - 4)
    store.done = len(columns)
    return store


@pytest.mark.parametrize(("columns", "share"), [(1, 0.6), (7, 0.6), (64, 0.78)])
def test_every_clip_hides_the_same_number_of_patches(columns, share):
    hidden = draw_hidden(5, 8, columns, share, torch.Generator().manual_seed(0))
    assert hidden.shape == (5, 8 * columns)
    assert set(hidden.sum(1).tolist()) == {round(share * 8 * columns)}
    assert len({tuple(row.tolist()) for row in hidden}) > 1


def test_hidden_patches_come_in_clusters():
    grid = draw_hidden(20, 8, 40, 0.3, torch.Generator().manual_seed(0)).unflatten(1, (8, 40))
    neighbours = (grid[:, :, 1:] & grid[:, :, :-1]).sum() / grid.sum()
    assert neighbours > 0.6  # 0.3 if each patch were drawn by itself


def test_the_loss_is_that_of_the_paper_clip_by_clip():
    objective = MaskedPatches(SMALL, share=0.5)
    student, heads = init_student(SMALL, 0), objective.init_heads(0)
    heads = {name: tensor + 0.05 * torch.randn_like(tensor) for name, tensor in heads.items()}
    mel = torch.randn(3, 64, 128)
    found, parts = objective.loss(student, heads, mel, torch.float32, torch.Generator().manual_seed(4))
    hidden = draw_hidden(3, 8, 4, 0.5, torch.Generator().manual_seed(4))

    # The host, with the hidden patches' embedding taken out by hand.
    weights = ASTWeights.from_named(student, SMALL.layers)
    blank = mel.clone()
    for clip, patch in hidden.nonzero().tolist():
        row, column = divmod(patch, 4)
        blank[clip, 16 * column : 16 * column + 16, 16 * row : 16 * row + 16] = 0
    nce, mse = [], []
    for clip in range(3):
        positions = student["embed.positions"].clone()
        middle = positions[2:].unflatten(0, (8, 64))[:, 30:34].flatten(0, 1)  # the columns that four patches use
        middle[hidden[clip]] += heads["mask"]
        short = replace(SMALL, max_frames=64)
        embed = weights.embed._replace(positions=torch.cat((positions[:2], middle)))
        segment = Segment((Sites(),) * SMALL.layers, weights._replace(embed=embed))
        tokens = encode([blank[clip : clip + 1]], [segment], short)[0][0, 2:][hidden[clip]]
        patches = mel[clip].unfold(0, 16, 16).unfold(1, 16, 16)  # (t, rows, time, frequency)
        wanted = patches.permute(1, 0, 3, 2).flatten(2).flatten(0, 1)[hidden[clip]]
        guesses = []
        for name in HEADS:
            x = (tokens.bfloat16() @ heads[f"{name}.hidden"].bfloat16().T).relu()
            guesses.append((x @ heads[f"{name}.out"].bfloat16().T).float() + heads[f"{name}.bias"])
        scores = (guesses[0] @ wanted.T).exp()
        nce.append(-(scores.diagonal() / scores.sum(1)).log().mean())  # eq. 1
        mse.append((guesses[1] - wanted).square().mean())  # eq. 2
    torch.testing.assert_close(torch.tensor(parts["match"]), torch.stack(nce).mean(), rtol=1e-2, atol=1e-2)
    torch.testing.assert_close(torch.tensor(parts["pixels"]), torch.stack(mse).mean(), rtol=1e-3, atol=1e-3)
    torch.testing.assert_close(found, torch.tensor(parts["match"] + 10 * parts["pixels"]))


def test_what_a_hidden_patch_held_never_reaches_the_student():
    objective = MaskedPatches(SMALL, share=0.5)
    student, heads = init_student(SMALL, 0), objective.init_heads(0)
    mel = torch.randn(1, 48, 128)
    hidden = draw_hidden(1, 8, 3, 0.5, torch.Generator().manual_seed(1))[0].unflatten(0, (8, 3))
    row, column = hidden.nonzero()[0].tolist()
    other = mel.clone()
    other[0, 16 * column : 16 * column + 16, 16 * row : 16 * row + 16] += 5

    def guesses(clip):
        seen = []
        patch = F.mse_loss

        def spy(guess, wanted):
            seen.append(guess)
            return patch(guess, wanted)

        # The guesses are nowhere in what `loss` returns, so torch's own function, which is given them, is listened to.
        with pytest.MonkeyPatch.context() as context:
            context.setattr(F, "mse_loss", spy)
            objective.loss(student, heads, clip, torch.float32, torch.Generator().manual_seed(1))
        return seen[0]

    assert torch.equal(guesses(mel), guesses(other))


def test_a_killed_run_resumes_to_the_same_bits(store, tmp_path):
    whole = Distiller(store, OPTIONS, SMALL)
    losses = []
    whole.run(log_every=4, on_log=lambda step, means: losses.append(means))
    assert {"match", "pixels"} <= losses[0].keys()
    Distiller(store, OPTIONS, SMALL).run(tmp_path / "state.pt", until=3)
    resumed = Distiller(store, OPTIONS, SMALL)
    resumed.run(tmp_path / "state.pt")
    for name, tensor in whole.ema.items():
        assert torch.equal(tensor, resumed.ema[name])
    assert torch.equal(whole.heads["mask"], resumed.heads["mask"])


def test_impossible_objectives_are_refused(store):
    with pytest.raises(ConfigError, match="must not overlap"):
        MaskedPatches(Geometry(layers=2, width=12, heads=3, mlp_width=24))
    with pytest.raises(ConfigError, match=r"share=1\.0"):
        MaskedPatches(SMALL, share=1.0)
    with pytest.raises(UnknownNameError, match="masked_patch, teachers"):
        DistillOptions(steps=1, objective="guess")
    with pytest.raises(ConfigError, match="objective=masked_patch"):
        Distiller(store, replace(OPTIONS, objective="teachers"), SMALL)
