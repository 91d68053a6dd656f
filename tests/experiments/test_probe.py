"""Linear probes against scikit-learn's own pipelines, and what they must not be fed."""

import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression, RidgeClassifier
from sklearn.metrics import average_precision_score, balanced_accuracy_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from adapterbank.data import demo_tasks, load_folder
from adapterbank.errors import ConfigError, UnknownNameError
from adapterbank.experiments import probe


@pytest.fixture
def features():
    """Three classes in five folds, 8 features, of which two tell something."""
    random = np.random.default_rng(0)
    y = random.integers(3, size=90)
    x = random.normal(size=(90, 8)) * 3 + 1
    x[:, 0] += 4 * y
    x[:, 1] -= 3 * (y == 1)
    return x, y, np.arange(90) % 5


@pytest.mark.parametrize(
    ("name", "model"),
    [
        ("logistic", LogisticRegression(C=probe.LOGISTIC_C, max_iter=2000)),
        ("ridge", RidgeClassifier(alpha=probe.RIDGE_ALPHA)),
    ],
)
def test_cross_scores_predict_what_a_pipeline_of_scikit_learn_predicts(name, model, features):
    x, y, folds = features
    expected = np.empty_like(y)
    for fold in range(5):
        fitted = make_pipeline(StandardScaler(), model).fit(x[folds != fold], y[folds != fold])
        expected[folds == fold] = fitted.predict(x[folds == fold])
    scores = probe.cross_scores(x, y, folds, name)
    assert (scores.argmax(1) == expected).all()
    assert probe.accuracy(y, scores) == (expected == y).mean() > 0.55
    assert probe.macro_accuracy(y, scores) == pytest.approx(balanced_accuracy_score(y, expected))


@pytest.mark.parametrize("classes", [2, 4])
def test_log_probabilities_are_those_of_scikit_learn_and_stay_finite_where_its_are_not(classes):
    rng = np.random.default_rng(0)
    y = np.arange(120) % classes
    x = rng.normal(size=(120, 5)) + np.eye(classes, 5)[y] * 8
    folds = np.arange(120) // classes % 2
    x[folds == 1] *= 1 + 400 * (np.arange(60)[:, None] % 2)  # half of what is tested lies far out
    scores = probe.cross_scores(x, y, folds)[folds == 1]
    inside = x[folds == 0]
    scaled = StandardScaler().fit(inside)
    model = LogisticRegression(C=probe.LOGISTIC_C, max_iter=2000).fit(scaled.transform(inside), y[folds == 0])
    with np.errstate(divide="ignore"):
        expected = model.predict_log_proba(scaled.transform(x[folds == 1]))
    finite = np.isfinite(expected)
    assert 0 < finite.mean() < 1
    np.testing.assert_allclose(scores[finite], expected[finite], rtol=1e-4, atol=1e-9)
    assert np.isfinite(scores).all()


def test_the_clips_of_a_fold_never_train_its_own_model(features):
    x, y, folds = features
    scores = probe.cross_scores(x, y, folds)
    spoilt = np.where(folds == 2, (y + 1) % 3, y)
    again = probe.cross_scores(x, spoilt, folds)
    assert np.array_equal(scores[folds == 2], again[folds == 2])
    assert not np.array_equal(scores[folds != 2], again[folds != 2])


def test_a_class_that_only_the_test_fold_has_is_never_predicted(features):
    x, y, folds = features
    y = np.where(folds == 4, 3, y)
    assert not (probe.cross_scores(x, y, folds)[folds == 4].argmax(1) == 3).any()


def test_multilabel_scores_are_the_mean_over_folds_of_the_mean_average_precision(features):
    x, y, folds = features
    hot = np.stack([y == 0, y != 1, y == 2], axis=1).astype(int)
    scores = probe.cross_scores(x, hot, folds)
    expected = [average_precision_score(hot[folds == f], scores[folds == f], average="macro") for f in range(5)]
    assert probe.fold_score(hot, scores, folds) == pytest.approx(np.mean(expected), abs=1e-6)


def test_the_interval_of_perfect_and_of_useless_scores(features):
    y = np.tile(features[1], 30)
    assert probe.interval(y, np.eye(3)[y], 200) == (1.0, 1.0)
    low, high = probe.interval(y, np.random.default_rng(1).normal(size=(len(y), 3)), 500)
    assert low < 1 / 3 < high


def test_groups_stay_in_one_fold_and_own_folds_go_first(shared_data):
    instruments = load_folder(demo_tasks()["instruments"])
    folds = probe.fold_of_each(instruments, 4)
    assert set(folds) == {0, 1, 2, 3}
    assert all(len(set(folds[np.array(instruments.groups) == group])) == 1 for group in set(instruments.groups))
    urban = load_folder(shared_data / "urbansound8k")
    assert [urban.fold_names[fold] for fold in probe.fold_of_each(urban)] == list(urban.folds)
    mixes = load_folder(shared_data / "instrument_mix_multilabel")
    hot = probe.targets_of(mixes)
    assert [tuple(label for label, there in zip(mixes.labels, row, strict=True) if there) for row in hot] == [
        tuple(sorted(labels)) for labels in mixes.targets
    ]


def test_impossible_probes_are_refused(features):
    x, y, folds = features
    with pytest.raises(ConfigError, match="one fold"):
        probe.cross_scores(x, y, np.zeros_like(folds))
    with pytest.raises(UnknownNameError, match=r"unknown probe 'svm'.*logistic, ridge"):
        probe.cross_scores(x, y, folds, "svm")
