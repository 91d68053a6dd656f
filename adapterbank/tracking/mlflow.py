"""The tracker for MLflow. A training of your own is logged by three lines, its data, tests and adapter file included:

    with Tracker().task(bank, "birds") as run:
        fit(bank, "birds", train, val, callbacks=[run])
        run.log_test(test)

A sequence of tasks has one parent run, and in it one nested run per task:

    with Tracker().sequence("my tasks") as sequence:
        train_sequence(bank, stages, tracker=sequence)

All task runs have the metrics of `COLUMNS`, so that MLflow's compare page can line them up.

MLflow and matplotlib are slow to import, so each is imported by the method that needs it, not with this module.

Everything goes through an explicit `MlflowClient`. Nothing here reads or sets MLflow's global "active run", so trackers
in several threads do not disturb each other, nor a user's own MLflow code.
"""

from __future__ import annotations

import base64
import getpass
import json
import math
import os
import shlex
import sys
import tempfile
import time
import zlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from adapterbank._version import __version__
from adapterbank.bank import AdapterBank
from adapterbank.errors import ConfigError
from adapterbank.evaluation import Evaluation
from adapterbank.files import lock
from adapterbank.storage.task_file import task_bytes
from adapterbank.task.task import Task
from adapterbank.tracking import base
from adapterbank.tracking.facts import epoch_metrics, evaluation_metrics, task_params, task_tags
from adapterbank.training.tracked import TrackedTask

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from mlflow import MlflowClient

DEFAULT_STORE = "sqlite:///mlflow.db"  # in the working folder: what `mlflow ui` opens there without arguments

# The columns that every task's run has, whatever the task; NaN where nothing was measured. A run holds besides them
# "val/<metric>" and "test/<metric>" for all metrics of `adapterbank.evaluation.METRICS` that its task has.
COLUMNS = (
    "test/score",  # the task's primary metric: accuracy, or mAP of a multi-label task
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

VIEW = "tasks"  # key of the saved view that a new experiment has: "Views > Tasks", or ?viewStateShareKey=tasks

_VIEW_COLUMNS = {  # column -> width in pixels
    "test/score": 90,
    "trainable_parameters": 145,
    "percent_of_base": 125,
    "train_seconds": 110,
    "cpu_seconds": 100,
    "gpu_seconds": 100,
    "peak_memory_mb": 125,
}

_DIGITS = {  # else 6: what the columns hold
    "percent_of_base": 3,
    "train_seconds": 2,
    "cpu_seconds": 2,
    "gpu_seconds": 2,
    "peak_memory_mb": 1,
}

_SQLITE = "sqlite:///"


class Tracker:
    """One experiment in one MLflow store. It fills the Protocol `adapterbank.tracking.base.Tracker`.

    Args:
        experiment: its name; made if there is none.
        uri: of the store; None: the environment's MLFLOW_TRACKING_URI, else `sqlite:///mlflow.db`.

    Attributes:
        uri: of the store in use.
        client: MLflow's client for it.

    Raises:
        ConfigError: the experiment was deleted in that store.
        mlflow.exceptions.MlflowException: the store cannot be opened.
    """

    def __init__(self, experiment: str = "adapterbank", uri: str | None = None):
        from mlflow import MlflowClient

        uri = uri or os.environ.get("MLFLOW_TRACKING_URI") or DEFAULT_STORE
        file = _sqlite_file(uri)
        # MLflow keeps one engine per address: a relative one would follow the first working folder for ever.
        self.uri = uri if file is None else f"{_SQLITE}{file.as_posix()}{''.join(uri.partition('?')[1:])}"
        with _initialising(file):
            self.client = MlflowClient(self.uri)
            # Beside the database: opened in that folder, the UI finds both.
            place = None if file is None else (file.parent / "mlartifacts" / experiment).as_uri()
            self.experiment_id = _experiment(self.client, experiment, place)

    @contextmanager
    def sequence(
        self, name: str, *, params: Mapping[str, Any] | None = None, tags: Mapping[str, Any] | None = None
    ) -> Iterator[MlflowSequenceRun]:
        """The parent run of a sequence; FAILED if the block raises, KILLED if it is interrupted."""
        tags = {"kind": "sequence", **_origin(), **(tags or {})}
        with self.run(name, params or {}, tags) as run_id:
            yield MlflowSequenceRun(self, run_id, name)

    @contextmanager
    def task(
        self,
        bank: AdapterBank,
        task: str,
        *,
        data: Any = None,
        params: Mapping[str, Any] | None = None,
        tags: Mapping[str, Any] | None = None,
        sequence: MlflowSequenceRun | None = None,
        show_link: bool = True,
    ) -> Iterator[TrackedTask]:
        """A run for one task by itself: a callback for `fit`, which also stores the adapter file when the block ends.

        What MLflow fails at inside the block is a warning: a lost log must not cost a training.

        Args:
            data: a dataset, or {"train": ..., "val": ..., "test": ...}. It is only needed where the run is no callback
                of `fit`, which tells it the data anyway.
            params, tags: beside those that follow from the task and its training.
            sequence: what `sequence(...)` gave, to nest the run in; None for a run without a parent.
            show_link: print the address of the page of all runs at the end, to stderr.

        Raises:
            UnknownNameError: the bank has no such task.
        """
        parts = data if data is None or isinstance(data, Mapping) else {"train": data}
        above = MlflowSequenceRun(self, None, task) if sequence is None else sequence
        with TrackedTask(above, bank, task, params=params, tags=tags, data=parts) as run:
            yield run
        if show_link:
            print(self.how_to_open(), file=sys.stderr)

    @property
    def view(self) -> str:
        """The page of the saved view of all task runs, as the last part of the address of MLflow's UI."""
        # Without the type of workflow MLflow 3 opens its pages for language models.
        return f"#/experiments/{self.experiment_id}/runs?viewStateShareKey={VIEW}&workflowType=machine_learning"

    @property
    def link(self) -> str:
        """The address of that page: of the server, or for a local store that of the UI that `how_to_open` starts."""
        server = self.uri if self.uri.startswith(("http://", "https://")) else "http://localhost:5000"
        return f"{server.rstrip('/')}/{self.view}"

    def how_to_open(self) -> str:
        """One line for a terminal: the link, and for a local store the command that makes it work."""
        if self.uri.startswith(("http://", "https://")):
            return f"every task's cost and score: {self.link}"
        default = _sqlite_file(self.uri) == _sqlite_file(DEFAULT_STORE)  # what `mlflow ui` opens by itself
        store = "" if default else f" --backend-store-uri {shlex.quote(self.uri)}"
        return f"every task's cost and score: mlflow ui{store}, then {self.link}"

    @contextmanager
    def run(self, name: str, params: Mapping[str, Any], tags: Mapping[str, Any]) -> Iterator[str]:
        """A run of the experiment, by its id; FAILED if the block raises, KILLED if it is interrupted."""
        # MLflow refuses tags that are no strings.
        run = self.client.create_run(self.experiment_id, tags=_texts(tags), run_name=name)
        run_id: str = run.info.run_id
        status = "FAILED"
        try:
            self.log_params(run_id, params)
            yield run_id
            status = "FINISHED"
        except BaseException as error:
            status = "FAILED" if isinstance(error, Exception) else "KILLED"
            self.client.set_tag(run_id, "error", f"{type(error).__name__}: {error}"[:5000])
            raise
        finally:
            self.client.set_terminated(run_id, status)

    def log_params(self, run_id: str, params: Mapping[str, Any]) -> None:
        """Several parameters of one run in one transaction."""
        from mlflow.entities import Param

        self.client.log_batch(run_id, params=[Param(key, value) for key, value in _texts(params).items()])

    def log_metrics(self, run_id: str, metrics: Mapping[str, float], step: int = 0) -> None:
        """Several metrics of one run in one transaction."""
        from mlflow.entities import Metric

        now = int(time.time() * 1000)
        values = [Metric(key, round(float(v), _DIGITS.get(key, 6)), now, step) for key, v in metrics.items()]
        self.client.log_batch(run_id, metrics=values)

    def log_bytes(self, run_id: str, content: bytes, path: str) -> None:
        """A file that exists only in memory, as the artifact `path` ("folder/name")."""
        with tempfile.TemporaryDirectory() as folder:
            file = Path(folder) / Path(path).name
            file.write_bytes(content)
            self.client.log_artifact(run_id, str(file), str(Path(path).parent))


class MlflowSequenceRun:
    """The parent run of a sequence, as `base.SequenceRun` describes it. Made by `Tracker.sequence`.

    Args:
        run_id: None for tasks that belong to no sequence: their runs have no parent.
    """

    def __init__(self, tracker: Tracker, run_id: str | None, name: str):
        self.tracker, self.run_id, self.name = tracker, run_id, name
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
        everything = {"kind": "task", **parent, **_origin(), **task_tags(bank, owner), **(tags or {})}
        strategy = f"{everything['strategy']}: " if "strategy" in everything else ""
        name = f"{strategy}{task} ({owner.method})"
        with self.tracker.run(name, {**task_params(owner), **(params or {})}, everything) as run_id:
            self.task_runs[task] = run_id
            run = MlflowTaskRun(self.tracker, run_id, bank, owner, params or {})
            yield run
            run.fill()

    def log_scores(self, evaluations: Mapping[str, Evaluation], bank: AdapterBank, step: int) -> None:
        """Test metrics of the tasks so far, after the training of task number `step` (from 0), into each one's run.

        What the runs table shows is the last of them: the score at the end of the sequence.
        """
        for task, evaluation in evaluations.items():
            if task in self.task_runs:
                found = evaluation_metrics(bank.task(task), evaluation)
                self.tracker.log_metrics(self.task_runs[task], found, step)

    def log_result(self, result: base.SequenceOutcome) -> None:
        """Accuracy matrix as picture and JSON, and the numbers of continual learning."""
        from adapterbank import plots

        if self.run_id is None:
            raise ConfigError(
                "tasks without a sequence have no run for its result; open one with Tracker.sequence(...)."
            )
        self.tracker.log_metrics(self.run_id, {k: v for k, v in result.numbers().items() if v is not None})
        self.tracker.client.log_dict(self.run_id, result.to_json(), "accuracy_matrix.json")
        self.log_figure(plots.accuracy_matrix({result.strategy: result.matrix}, result.tasks), "accuracy_matrix.png")

    def log_figure(self, figure: Figure, path: str) -> None:
        """A figure of matplotlib as the artifact `path`, such as "curve.png"."""
        if self.run_id is None:
            raise ConfigError(
                f"tasks without a sequence have no run for {path!r}; open one with Tracker.sequence(...)."
            )
        self.tracker.client.log_figure(self.run_id, figure, path)


class MlflowTaskRun:
    """The run of one task, as `base.TaskRun` describes it. Made by `MlflowSequenceRun.task`."""

    def __init__(self, tracker: Tracker, run_id: str, bank: AdapterBank, task: Task, params: Mapping[str, Any]):
        self.tracker, self.run_id, self.bank, self.task = tracker, run_id, bank, task
        self._params = dict(params)
        self._logged: set[str] = set()
        count = task.trainable_parameters()
        share = 100 * count / bank.backbone.num_parameters()
        self._log({"trainable_parameters": count, "percent_of_base": share})

    def log_data(self, facts: Mapping[str, Any]) -> None:
        """Name, sizes and digests of parts of the data, as `data_facts` gives them."""
        new = {key: value for key, value in facts.items() if key not in self._params}
        self._params.update(new)
        self.tracker.log_params(self.run_id, new)

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
            self.tracker.client.log_figure(self.run_id, curve, "learning_curve.png")
        used = {**history.options, "precision": history.precision, "best_epoch": history.best_epoch + 1}
        used["steps"] = history.steps  # those that were made, in place of the limit that the options hold
        self.tracker.log_params(self.run_id, used)

    def log_test(self, evaluation: Evaluation, step: int = 0) -> None:
        """Test metrics and the confusion matrix."""
        from adapterbank import plots

        found = evaluation_metrics(self.task, evaluation)
        self._log(found, step)
        counts = plots.confusion_counts(evaluation.logits, evaluation.targets)
        title = f"{self.task.name} · {self.task.method} · test {self.task.primary_metric} {found['test/score']:.3f}"
        figure = plots.confusion_matrix(counts, self.task.labels, title=title)
        self.tracker.client.log_figure(self.run_id, figure, "confusion_matrix.png")

    def log_adapter(self) -> None:
        """The task's file, as a saved bank holds it: `bank.import_task` reads it."""
        content = task_bytes(self.task, self.bank.backbone)
        self.tracker.log_bytes(self.run_id, content, f"adapter/{self.task.name}.safetensors")

    def fill(self) -> None:
        """NaN for what was not measured: the compare page lines up runs that have the same keys."""
        self._log({key: math.nan for key in COLUMNS if key not in self._logged})

    def _log(self, metrics: Mapping[str, float], step: int = 0) -> None:
        self._logged.update(metrics)
        self.tracker.log_metrics(self.run_id, metrics, step)


if TYPE_CHECKING:
    _tracker_fills_the_protocol: type[base.Tracker] = Tracker  # a type checker refuses it if a method is missing


def _origin() -> dict[str, str]:
    """Who and what started the run, under the keys of MLflow's own columns."""
    tags = {
        "adapterbank": __version__,
        "mlflow.source.name": Path(sys.argv[0]).name or "python",
        "mlflow.source.type": "LOCAL",
    }
    with suppress(OSError, KeyError, ImportError):  # a container without a name for its user
        tags["mlflow.user"] = getpass.getuser()
    return tags


def _texts(values: Mapping[str, Any]) -> dict[str, str]:
    return {key: str(value) for key, value in values.items()}


def _sqlite_file(uri: str) -> Path | None:
    """The database file of `sqlite:///relative` or `sqlite:////absolute`; None for any other store."""
    if not uri.startswith(_SQLITE):
        return None
    name = uri.removeprefix(_SQLITE).partition("?")[0]
    return Path(name).absolute() if name and name != ":memory:" else None


def _initialising(file: Path | None) -> Any:
    """Lets one process at a time open a SQLite store: two that find it empty both run all migrations, and one dies of
    "duplicate column name"."""
    return nullcontext() if file is None else lock(file)


def _experiment_tags() -> dict[str, str]:
    """What the UI shows of a new experiment: model training, and a saved view with a line per task.

    A saved view is a tag of the experiment, with the UI's own state in it (MLflow 3; other versions ignore it).
    """
    columns = [("tags", "task", 120), ("tags", "method", 80)]
    columns += [("metrics", name, width) for name, width in _VIEW_COLUMNS.items()]
    keys = {f"{kind}.`{name}`": width for kind, name, width in columns}
    shown = {"attributes.`Run Name`": 220, **keys}
    state = {
        "searchFilter": "tags.kind = 'task'",
        "orderByKey": "tags.`task`",
        "orderByAsc": True,
        "selectedColumns": list(keys),
        "columnOrder": list(shown),
        "columnWidths": shown,
    }
    packed = base64.b64encode(zlib.compress(json.dumps(state).encode())).decode()
    now = int(time.time() * 1000)
    view = {"name": "Tasks", "createdAt": now, "updatedAt": now, "state": f"deflate;{packed}"}
    return {
        "mlflow.experimentKind": "custom_model_development",
        f"mlflow.sharedViewState.{VIEW}": json.dumps(view),
    }


def _experiment(client: MlflowClient, name: str, place: str | None) -> str:
    """The id of the experiment of this name, which is made if there is none."""
    from mlflow.exceptions import MlflowException

    found = client.get_experiment_by_name(name)
    if found is None:
        try:
            return str(client.create_experiment(name, artifact_location=place, tags=_experiment_tags()))
        except MlflowException:  # on a server another client may have been quicker
            found = client.get_experiment_by_name(name)
            if found is None:
                raise
    if found.lifecycle_stage != "active":
        raise ConfigError(f"the MLflow experiment {name!r} was deleted; restore it in the UI, or choose another name.")
    return str(found.experiment_id)
