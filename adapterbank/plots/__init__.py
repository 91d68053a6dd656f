"""Pictures of a training (learning curve, confusion matrix, accuracy matrix of a sequence) and of a task's inside.

Every function returns a matplotlib `Figure` that belongs to no global state (no pyplot): safe in threads and servers,
and freed like any other object. Save one with `figure.savefig(path)`.
"""

from adapterbank.plots.comparison import accuracy_matrix, score_bars, spectrogram_pairs
from adapterbank.plots.confusion import confusion_counts, confusion_matrix
from adapterbank.plots.inside import gate_values, layer_importance
from adapterbank.plots.style import BLUE, COUNTED_CLASSES, DPI, INK, MUTED, ORANGE
from adapterbank.plots.timeline import timeline
from adapterbank.plots.training import convergence, learning_curve

__all__ = [
    "BLUE",
    "COUNTED_CLASSES",
    "DPI",
    "INK",
    "MUTED",
    "ORANGE",
    "accuracy_matrix",
    "confusion_counts",
    "confusion_matrix",
    "convergence",
    "gate_values",
    "layer_importance",
    "learning_curve",
    "score_bars",
    "spectrogram_pairs",
    "timeline",
]
