"""How good a task is: the table of metrics, running a task over data, and calibration.

ranking     metrics of an order: average precision, area under the ROC curve
metrics     the other functions, and the table `METRICS` that evaluation, training, trackers and plots read
interval    95 % intervals of the primary metric, and of the difference of two tasks
result      what an evaluation found: a dict of metrics with classes, confusions and a table
run         a task over data, in the data's order
calibrate   temperature and thresholds from validation data
"""

from adapterbank.evaluation.calibrate import calibrate_task
from adapterbank.evaluation.interval import paired_interval
from adapterbank.evaluation.metrics import (
    METRICS,
    Metric,
    accuracy,
    balanced_accuracy,
    binary_accuracy,
    binary_cross_entropy,
    cross_entropy,
    current_name,
    loss_function,
    mean_average_precision,
    register_metric,
    score,
)
from adapterbank.evaluation.result import ClassScore, Evaluation, difference
from adapterbank.evaluation.run import batches, evaluate_task

__all__ = [
    "METRICS",
    "ClassScore",
    "Evaluation",
    "Metric",
    "accuracy",
    "balanced_accuracy",
    "batches",
    "binary_accuracy",
    "binary_cross_entropy",
    "calibrate_task",
    "cross_entropy",
    "current_name",
    "difference",
    "evaluate_task",
    "loss_function",
    "mean_average_precision",
    "paired_interval",
    "register_metric",
    "score",
]
