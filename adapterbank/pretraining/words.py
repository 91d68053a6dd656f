"""What tells one word from another in a teacher's answers, whoever says it: a target of few directions.

The frames of a speech model also say who speaks, when, and in what noise, so that a mean squared error over all of them
asks for words only a little. Linear discriminant analysis (Fisher, 1936) finds the directions in which words differ
most, measured by how much voices differ that say the same word. They are found on synthetic voices alone.

Symbols: R rows of a batch, V all views, N tokens, D width, E width of a pooled answer, W words, K directions.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from adapterbank.errors import ConfigError, UnknownNameError
from adapterbank.pretraining.distill_losses import CLIP_SIGMA, init_linear, pooled_target, project
from adapterbank.pretraining.student import Tensors
from adapterbank.pretraining.teachers import Target
from adapterbank.pretraining.views import Views

DIRECTIONS = 128
SHRINKAGE = 0.1  # of the mean variance, added to every direction, because voices are few
FEWEST_VOICES = 4  # of a word whose mean is used
MOST_VIEWS = 40_000  # of which the directions are found: 370 MB of Whisper's answers


def target_of_words(store: Views, name: str) -> Target:
    """The target of this name. Raises UnknownNameError, or ConfigError where no view is a single word."""
    found = {target.name: target for target in store.targets}
    if name not in found:
        raise UnknownNameError("target", name, found, "word_target says whose answers tell words apart.")
    if not store.vocabulary:
        raise ConfigError("word_weight needs views of single words; add the source speech, or set it to 0.")
    return found[name]


def word_statistics(store: Views, target: Target, seed: int) -> Tensors:
    """The directions of words in a target's pooled answers.

    Returns:
        word.mean (E,) and word.directions (E, K): a pooled answer less the mean, times these, varies as much in each
        direction between voices of a word, and by 1 in the mean over directions and views of words. word.means (W, K):
        the words there, NaN for those with too few voices. word.std (K,): over all views of words.

    Raises:
        ConfigError: no word is said by several voices.
    """
    views = np.flatnonzero(store.said[: store.done] >= 0)
    if len(views) > MOST_VIEWS:
        views = np.sort(np.random.default_rng((seed, 4)).choice(views, MOST_VIEWS, replace=False))
    said = torch.from_numpy(store.said[views])
    # (views, E)
    answers = torch.cat([pooled_target(target, store.batch(target.name, [view])) for view in views.tolist()])
    counts = torch.bincount(said, minlength=len(store.vocabulary))
    often = counts >= FEWEST_VOICES
    if int(often.sum()) < 2:
        raise ConfigError(
            f"got fewer than two words of {FEWEST_VOICES} voices or more; ask the source speech for more speakers, or "
            "set word_weight=0."
        )
    mean = answers.mean(0)
    sums = torch.zeros(len(counts), answers.shape[1]).index_add_(0, said, answers - mean)
    means = sums / counts.clamp_min(1)[:, None]  # (W, E)
    rest = (answers - mean) - means[said]
    within = rest.T @ rest / len(rest)
    within += SHRINKAGE * within.diagonal().mean() * torch.eye(len(within))
    root = torch.linalg.cholesky(within)
    between = (means * (counts / len(said)).sqrt()[:, None])[often]
    white = torch.linalg.solve_triangular(root, between.T, upper=False)  # (E, words)
    chosen = torch.linalg.svd(white, full_matrices=False).U[:, : min(DIRECTIONS, int(often.sum()) - 1)]
    directions = torch.linalg.solve_triangular(root.T, chosen, upper=True)
    directions /= ((answers - mean) @ directions).square().mean().sqrt()
    words = torch.where(often[:, None], means @ directions, torch.nan)
    found = {"mean": mean, "directions": directions, "means": words, "std": ((answers - mean) @ directions).std(0)}
    return {f"word.{name}": tensor for name, tensor in found.items()}


def init_word_head(statistics: Mapping[str, Tensor], width: int, seed: int) -> Tensors:
    """word.weight (K, D) and word.bias (K,)."""
    return init_linear("word", statistics["word.directions"].shape[1], width, torch.Generator().manual_seed(seed + 3))


def word_loss(
    tokens: Tensor,
    answers: Tensor,
    said: Tensor,
    target: Target,
    heads: Mapping[str, Tensor],
    statistics: Mapping[str, Tensor],
) -> Tensor:
    """The squared error in the directions of words; 1 is what they vary by.

    A view of a single word is asked for the mean of all voices that said it, any other view for its own answer.

    Args:
        tokens: (R, N, D), the student's. The word is read from their mean, which is what ast-mini's heads read.
        answers: (R, S, E / parts), the teacher's.
        said: (R,) places in the vocabulary, or -1.
    """
    wanted = (pooled_target(target, answers) - statistics["word.mean"]) @ statistics["word.directions"]  # (R, K)
    word = statistics["word.means"][said.clamp_min(0)]
    known = (said >= 0) & ~word.isnan().any(1)
    std = statistics["word.std"]
    wanted = torch.where(known[:, None], word, wanted.clamp(-CLIP_SIGMA * std, CLIP_SIGMA * std))
    guess = project(tokens.mean(1), heads, "word")
    return F.mse_loss(guess, wanted)
