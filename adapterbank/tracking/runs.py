"""What is written into MLflow's runs: one parent per sequence of tasks, and one run per task, nested in it or alone.

Nothing here imports MLflow. Where runs are kept is a `Store`, which `adapterbank.tracking.mlflow.Tracker` is.
"""

from __future__ import annotations

import getpass
import json
import math
import sys
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from adapterbank.bank import AdapterBank
from adapterbank.errors import ConfigError
from adapterbank.evaluation import Evaluation
from adapterbank.files import json_bytes, write_atomically
from adapterbank.storage.task_file import task_bytes
from adapterbank.task.task import Task
from adapterbank.tracking import base
from adapterbank.tracking.facts import (
    PARTS,
    epoch_metrics,
    evaluation_metrics,
    task_params,
    task_tags,
    versions,
)
from adapterbank.tracking.process import process_name

if TYPE_CHECKING:
    from matplotlib.figure import Figure

# The columns that every task's run has, whatever the task; NaN where nothing was measured. A run holds besides them
# "val/<metric>" and "test/<metric>" for all metrics of `adapterbank.evaluation.METRICS` that its task has.
COLUMNS = (
    "test/score",  # the task's primary metric: accuracy, or mAP of a multi-label task
    "test/score_low",  # the ends of its 95 % interval
    "test/score_high",
    "test/clips",  # that were tested
    "test/accuracy",
    "val/score",
    "val/accuracy",
    "train/loss",
    "trainable_parameters",
    "percent_of_base",  # 100 x trainable / the frozen body's parameters
    "train_seconds",  # of wall clock
    "cpu_seconds",  # of processor time, of all threads together
    "gpu_seconds",  # by CUDA events; 0.0 without a GPU
    "peak_memory_mb",
)


class Store(Protocol):
    """Where runs are kept, and how one is written to."""

    def run(
        self, name: str, params: Mapping[str, Any], tags: Mapping[str, Any], *, run_id: str | None = None
    ) -> AbstractContextManager[str]:
        """A new run, or the one of this id once more; it ends with the block."""

    def sampled(self, run_id: str) -> AbstractContextManager[None]:
        """Within the block the machine's own numbers are logged into the run."""

    def log_params(self, run_id: str, params: Mapping[str, Any]) -> None: ...
    def log_metrics(self, run_id: str, metrics: Mapping[str, float], step: int = 0) -> None: ...
    def log_datasets(self, run_id: str, datasets: Mapping[str, Mapping[str, Any]]) -> None: ...
    def log_bytes(self, run_id: str, content: bytes, path: str) -> None: ...
    def log_figure(self, run_id: str, figure: Figure, path: str) -> None: ...


class RunFile:
    """The ids of the runs of one sequence, in a JSON file beside its results, so that a resumed one continues them.

    Args:
        path: of the file; None keeps nothing.
        store: address of the store and the id of the experiment: runs of another are not continued.
        resume: False starts anew, and the next run that is noted replaces what the file held.
    """

    PARENT = ""  # the key of the sequence's own run; no task has this name

    def __init__(self, path: Path | None, store: str, resume: bool):
        self._path, self._store = path, store
        self._runs: dict[str, str] = {}
        if path is not None and resume and path.is_file():
            with suppress(OSError, ValueError):
                known = json.loads(path.read_text(encoding="utf-8"))
                if isinstance(known, dict) and known.get("store") == store:
                    self._runs = {str(key): str(value) for key, value in dict(known.get("runs", {})).items()}

    def known(self, key: str) -> str | None:
        """The id of the run of this task, if there was one before."""
        return self._runs.get(key)

    def note(self, key: str, run_id: str) -> None:
        """Writes down the id of a run when it begins: what comes after that may be killed."""
        self._runs[key] = run_id
        if self._path is not None:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            write_atomically(self._path, json_bytes({"store": self._store, "runs": self._runs}))


class MlflowSequenceRun:
    """The parent run of a sequence, as `base.SequenceRun` describes it. Made by `Tracker.sequence`.

    Args:
        run_id: None for tasks that belong to no sequence: their runs have no parent.
        file: where the ids of the tasks' runs are noted.
    """

    def __init__(self, store: Store, run_id: str | None, name: str, file: RunFile):
        self._store, self.run_id, self.name, self._file = store, run_id, name, file
        self.task_runs: dict[str, str] = {}  # task -> run id

    @contextmanager
    def task(
        self,
        bank: AdapterBank,
        task: str,
        *,
        params: Mapping[str, Any] | None = None,
        tags: Mapping[str, Any] | None = None,
    ) -> Iterator[MlflowTaskRun]:
        """The nested run of one task.

        Args:
            params, tags: beside those that follow from the task itself.

        Raises:
            UnknownNameError: the bank has no such task.
        """
        owner = bank.task(task)
        parent = {} if self.run_id is None else {"mlflow.parentRunId": self.run_id}
        everything = {"kind": "task", **parent, **origin(), **versions(), **task_tags(bank, owner), **(tags or {})}
        strategy = f"{everything['strategy']}: " if "strategy" in everything else ""
        name = f"{strategy}{task} ({owner.method})"
        all_params = {**task_params(owner), **(params or {})}
        with self._store.run(name, all_params, everything, run_id=self._file.known(task)) as run_id:
            self._file.note(task, run_id)
            self.task_runs[task] = run_id
            with self._store.sampled(run_id):
                run = MlflowTaskRun(self._store, run_id, bank, owner, params or {})
                yield run
                run.fill()

    def log_scores(self, evaluations: Mapping[str, Evaluation], bank: AdapterBank, step: int) -> None:
        """Test metrics of the tasks so far, after the training of task number `step` (from 0), into each one's run.

        What the runs table shows is the last of them: the score at the end of the sequence.
        """
        for task, evaluation in evaluations.items():
            if task in self.task_runs:
                found = evaluation_metrics(bank.task(task), evaluation)
                self._store.log_metrics(self.task_runs[task], found, step)

    def log_result(self, result: base.SequenceOutcome) -> None:
        """Accuracy matrix as picture and JSON, and the numbers of continual learning."""
        from adapterbank import plots

        run_id = self._own("its result")
        self._store.log_metrics(run_id, {k: v for k, v in result.numbers().items() if v is not None})
        self._store.log_bytes(run_id, json_bytes(result.to_json()), "accuracy_matrix.json")
        self.log_figure(plots.accuracy_matrix({result.strategy: result.matrix}, result.tasks), "accuracy_matrix.png")

    def log_figure(self, figure: Figure, path: str) -> None:
        """A figure of matplotlib as the artifact `path`, such as "curve.png"."""
        self._store.log_figure(self._own(repr(path)), figure, path)

    def _own(self, what: str) -> str:
        if self.run_id is None:
            raise ConfigError(f"tasks without a sequence have no run for {what}; open one with Tracker.sequence(...).")
        return self.run_id


class MlflowTaskRun:
    """The run of one task, as `base.TaskRun` describes it. Made by `MlflowSequenceRun.task`."""

    def __init__(self, store: Store, run_id: str, bank: AdapterBank, task: Task, params: Mapping[str, Any]):
        self._store, self.run_id, self.bank, self.task = store, run_id, bank, task
        self._params = dict(params)
        self._logged: set[str] = set()
        count = task.trainable_parameters()
        share = 100 * count / bank.backbone.num_parameters()
        self._log({"trainable_parameters": count, "percent_of_base": share})
        self._store.log_bytes(run_id, json_bytes({"classes": list(task.labels)}), "classes.json")
        self._log_datasets(params)

    def log_data(self, facts: Mapping[str, Any]) -> None:
        """Name, sizes and digests of parts of the data, as `data_facts` gives them."""
        new = {key: value for key, value in facts.items() if key not in self._params}
        self._params.update(new)
        self._store.log_params(self.run_id, new)
        self._log_datasets({"dataset": self._params.get("dataset"), **new})

    def log_epoch(self, epoch: int, record: Mapping[str, float]) -> None:
        """One record of `History.epochs`; fits `fit(on_epoch=...)`."""
        self._log(epoch_metrics(self.task, record), epoch)

    def log_training(self, history: base.TrainingHistory) -> None:
        """What a training used and cost, its learning curve, and as the last point of the validation metrics those of
        the weights that were kept, so that the runs table shows them."""
        from adapterbank import plots

        self._log(
            {
                "train_seconds": history.seconds,
                "cpu_seconds": history.cpu_seconds,
                "gpu_seconds": history.gpu_seconds,
                "peak_memory_mb": history.peak_memory_mb,
            }
        )
        if history.epochs:
            kept = epoch_metrics(self.task, history.epochs[history.best_epoch])
            self._log({k: v for k, v in kept.items() if k.startswith("val/")}, len(history.epochs))
            title = f"{self.task.name} · {self.task.method}"
            curve = plots.learning_curve(history.epochs, best_epoch=history.best_epoch, title=title)
            self._store.log_figure(self.run_id, curve, "learning_curve.png")
        used = {**history.options, "precision": history.precision, "best_epoch": history.best_epoch + 1}
        used["steps"] = history.steps  # those that were made, in place of the limit that the options hold
        self._store.log_params(self.run_id, used)

    def log_test(self, evaluation: Evaluation, step: int = 0) -> None:
        """Test metrics, a table with a line per class, and the confusion matrix."""
        from adapterbank import plots

        found = evaluation_metrics(self.task, evaluation)
        self._log(found, step)
        self._store.log_bytes(self.run_id, evaluation.as_csv().encode(), "per_class.csv")
        title = f"{self.task.name} · {self.task.method} · test {self.task.primary_metric} {found['test/score']:.3f}"
        figure = plots.confusion_matrix(evaluation.confusion, self.task.labels, title=title)
        self._store.log_figure(self.run_id, figure, "confusion_matrix.png")

    def log_adapter(self) -> None:
        """The task's file, as a saved bank holds it: `bank.import_task` reads it."""
        content = task_bytes(self.task, self.bank.backbone)
        self._store.log_bytes(self.run_id, content, f"adapter/{self.task.name}.safetensors")

    def fill(self) -> None:
        """NaN for what was not measured: the compare page lines up runs that have the same keys."""
        self._log({key: math.nan for key in COLUMNS if key not in self._logged})

    def _log(self, metrics: Mapping[str, float], step: int = 0) -> None:
        self._logged.update(metrics)
        self._store.log_metrics(self.run_id, metrics, step)

    def _log_datasets(self, facts: Mapping[str, Any]) -> None:
        """As MLflow's own datasets, which its pages show; those without a digest are parameters only."""
        parts = {
            part: {"name": facts.get("dataset"), "digest": facts[f"{part}_digest"], "clips": facts[f"{part}_clips"]}
            for part in PARTS
            if facts.get(f"{part}_digest", "none") not in ("none", "unknown")
        }
        if parts:
            self._store.log_datasets(self.run_id, parts)


def origin() -> dict[str, str]:
    """Who and what started the run, partly under the keys of MLflow's own columns."""
    tags = {
        "process": process_name(),
        "mlflow.source.name": Path(sys.argv[0]).name or "python",
        "mlflow.source.type": "LOCAL",
    }
    with suppress(OSError, KeyError, ImportError):  # a container without a name for its user
        tags["mlflow.user"] = getpass.getuser()
    return tags
