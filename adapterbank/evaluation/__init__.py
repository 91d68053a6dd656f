"""How good a task is: the table of metrics, and running a task over data.

metrics   the functions, and the table `METRICS` that evaluation, training, trackers and plots read
run       a task over data, in the data's order
"""

from adapterbank.evaluation.metrics import (
    METRICS,
    Metric,
    accuracy,
    binary_accuracy,
    binary_cross_entropy,
    cross_entropy,
    loss_function,
    macro_accuracy,
    mean_average_precision,
    register_metric,
    score,
)
from adapterbank.evaluation.run import Evaluation, batches, evaluate_task

__all__ = [
    "METRICS",
    "Evaluation",
    "Metric",
    "accuracy",
    "batches",
    "binary_accuracy",
    "binary_cross_entropy",
    "cross_entropy",
    "evaluate_task",
    "loss_function",
    "macro_accuracy",
    "mean_average_precision",
    "register_metric",
    "score",
]
