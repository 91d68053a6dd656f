"""Linear probes: what frozen features are worth without any training inside the model. Needs scikit-learn.

Symbols: B clips, D width of the features, C classes.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from rich.progress import track
from torch import Tensor

from adapterbank.errors import ConfigError, UnknownNameError
from adapterbank.evaluation import batches, mean_average_precision
from adapterbank.task.labels import targets

if TYPE_CHECKING:
    from adapterbank.data import FolderDataset


MODELS = ("logistic", "ridge")
LOGISTIC_C = 0.1  # inverse strength of the penalty on standardised features, the same for all backbones
RIDGE_ALPHA = 10.0
BATCH = 32


def features(extract: Callable[[list[Tensor]], Tensor], dataset: FolderDataset, title: str = "") -> np.ndarray:
    """(B, D) of all clips, with a progress bar; `extract` makes (B, D) of a list of waveforms at 16 kHz."""
    steps = track(batches(dataset, BATCH), description=title, total=-(-len(dataset) // BATCH))
    return np.concatenate([extract(waveforms).float().cpu().numpy() for waveforms, _ in steps])


def fold_of_each(dataset: FolderDataset, folds: int = 5, seed: int = 0) -> np.ndarray:
    """(B,) the folder's own folds as indices, or `folds` seeded ones that keep groups together."""
    if dataset.fold_names:
        return np.array([dataset.fold_names.index(fold) for fold in dataset.folds])
    fold_of = {file: fold for fold, part in enumerate(dataset.group_folds(folds, seed)) for file in part.files}
    return np.array([fold_of[file] for file in dataset.files])


def targets_of(dataset: FolderDataset) -> np.ndarray:
    """(B,) class indices, or (B, C) zeros and ones if the labels are sets."""
    return targets(dataset.targets, dataset.labels, dataset.multilabel, dataset.name).long().numpy()


def cross_scores(x: np.ndarray, y: np.ndarray, folds: np.ndarray, model: str = "logistic") -> np.ndarray:
    """Scores of every clip from a model trained on the other folds: (B, D) -> (B, C).

    Args:
        y: (B,) class indices, or (B, C) zeros and ones.
        folds: (B,).
        model: "logistic" regression (penalty `LOGISTIC_C`) or "ridge" (`RIDGE_ALPHA`), on standardised features.

    Raises:
        UnknownNameError: another model. ConfigError: scikit-learn is not installed, or there is one fold only.
    """
    if model not in MODELS:
        raise UnknownNameError("probe", model, MODELS)
    if len(np.unique(folds)) < 2:
        raise ConfigError("got one fold; a probe is tested on clips that it was not trained on: two or more.")
    classes = y.shape[1] if y.ndim > 1 else int(y.max()) + 1
    scores = np.full((len(x), classes), -np.inf)
    for fold in np.unique(folds):
        inside, outside = folds != fold, folds == fold
        mean, std = x[inside].mean(0), x[inside].std(0)
        std[std < 1e-6 * (1 + abs(mean))] = 1.0  # a constant feature tells nothing: its rounding must not be blown up
        train, test = (x[inside] - mean) / std, (x[outside] - mean) / std
        if y.ndim == 1:
            known = np.unique(y[inside])
            scores[np.ix_(outside, known)] = _scores(train, y[inside], test, model)
        else:
            for column in range(classes):
                if 0 < y[inside, column].mean() < 1:
                    scores[outside, column] = _scores(train, y[inside, column], test, model)[:, 1]
    return scores


def _scores(x: np.ndarray, y: np.ndarray, test: np.ndarray, model: str) -> np.ndarray:
    """(B, classes that occur in `y`)."""
    try:
        from sklearn.linear_model import LogisticRegression, RidgeClassifier
    except ImportError as error:
        raise ConfigError("a linear probe needs scikit-learn: pip install 'adapterbank[pretrain]'.") from error
    fitted = LogisticRegression(C=LOGISTIC_C, max_iter=2000) if model == "logistic" else RidgeClassifier(RIDGE_ALPHA)
    scores: Any = fitted.fit(x, y).decision_function(test)
    if model == "ridge":
        return scores if scores.ndim > 1 else np.stack([-scores, scores], axis=1)
    # scikit-learn's own predict_log_proba takes the logarithm of probabilities that may have become 0.
    logits = torch.from_numpy(scores if scores.ndim > 1 else np.stack([0 * scores, scores], axis=1))
    return logits.log_softmax(1).numpy()


def accuracy(y: np.ndarray, scores: np.ndarray) -> float:
    """Share of clips whose highest score is their class, in float64; `evaluation.accuracy` rounds it to fp32."""
    return float((scores.argmax(1) == y).mean())


def macro_accuracy(y: np.ndarray, scores: np.ndarray) -> float:
    """Accuracy of each class that occurs, averaged in float64; `evaluation.balanced_accuracy` rounds it to fp32."""
    hits = scores.argmax(1) == y
    return float(np.mean([hits[y == label].mean() for label in np.unique(y)]))


def fold_score(y: np.ndarray, scores: np.ndarray, folds: np.ndarray) -> float:
    """Accuracy over all clips; for multi-label targets the mean of the folds' mAP, as their models differ in scale."""
    if y.ndim == 1:
        return accuracy(y, scores)
    parts = [(torch.from_numpy(scores[folds == f]), torch.from_numpy(y[folds == f])) for f in np.unique(folds)]
    return float(np.mean([float(mean_average_precision(s.sigmoid(), t)) for s, t in parts]))


def interval(y: np.ndarray, scores: np.ndarray, resamples: int = 2000, seed: int = 0) -> tuple[float, float]:
    """95 % percentile bootstrap of the macro-accuracy, over clips."""
    random = np.random.default_rng(seed)
    draws = (random.integers(len(y), size=len(y)) for _ in range(resamples))
    low, high = np.percentile([macro_accuracy(y[draw], scores[draw]) for draw in draws], [2.5, 97.5])
    return float(low), float(high)
