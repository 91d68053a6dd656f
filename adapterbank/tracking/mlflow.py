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

import json
import os
import shlex
import sys
import tempfile
import time
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from adapterbank.bank import AdapterBank
from adapterbank.errors import ConfigError
from adapterbank.files import lock
from adapterbank.tracking import base, views
from adapterbank.tracking.facts import versions
from adapterbank.tracking.process import is_over, unwound_by_sigterm
from adapterbank.tracking.runs import COLUMNS as COLUMNS
from adapterbank.tracking.runs import MlflowSequenceRun, RunFile, Store, origin
from adapterbank.tracking.system import SystemMetrics
from adapterbank.training.tracked import TrackedTask

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from mlflow import MlflowClient
    from mlflow.entities import Run

DEFAULT_STORE = "sqlite:///mlflow.db"  # in the working folder: what `mlflow ui` opens there without arguments

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
        system_metrics: log into each task's run how busy processors, memory and GPU are, every ten seconds.

    Attributes:
        uri: of the store in use.
        client: MLflow's client for it.

    Raises:
        ConfigError: the experiment was deleted in that store.
        mlflow.exceptions.MlflowException: the store cannot be opened.
    """

    def __init__(self, experiment: str = "adapterbank", uri: str | None = None, *, system_metrics: bool = True):
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
        self._system = SystemMetrics(self.log_metrics) if system_metrics else None
        self._before: dict[str, Before] = {}  # of the runs that were continued
        _close_runs_of_ended_processes(self.client, self.experiment_id)

    @contextmanager
    def sequence(
        self,
        name: str,
        *,
        params: Mapping[str, Any] | None = None,
        tags: Mapping[str, Any] | None = None,
        run_file: str | os.PathLike[str] | None = None,
        resume: bool = False,
    ) -> Iterator[MlflowSequenceRun]:
        """The parent run of a sequence; FAILED if the block raises, KILLED if it is interrupted.

        Args:
            run_file: a JSON file in which the ids of the runs are kept, best beside the results of the sequence.
            resume: continue the runs that the file names, those of the tasks as well; without one of them a new run
                begins.
        """
        path = None if run_file is None else Path(run_file)
        file = RunFile(path, f"{self.uri} {self.experiment_id}", resume)
        tags = {"kind": "sequence", **origin(), **versions(), **(tags or {})}
        with self.run(name, params or {}, tags, run_id=file.known(RunFile.PARENT)) as run_id:
            file.note(RunFile.PARENT, run_id)
            yield MlflowSequenceRun(self, run_id, name, file)

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
        above = MlflowSequenceRun(self, None, task, RunFile(None, "", False)) if sequence is None else sequence
        with TrackedTask(above, bank, task, params=params, tags=tags, data=parts) as run:
            yield run
        if show_link:
            print(self.how_to_open(), file=sys.stderr)

    @property
    def view(self) -> str:
        """The page of all task runs as a table, as the last part of the address in MLflow's UI."""
        return views.address(self.experiment_id)

    @property
    def link(self) -> str:
        """The address of that page: of the server, or for a local store that of the UI that `how_to_open` starts."""
        return f"{self._server()}/{self.view}"

    @property
    def chart_link(self) -> str:
        """The address of the page that compares all task runs: score against trained parameters comes first."""
        return f"{self._server()}/{views.address(self.experiment_id, views.SCORES)}"

    def how_to_open(self) -> str:
        """A line or two for a terminal: the link, and for a local store the command that makes it work."""
        if self.uri.startswith(("http://", "https://")):
            return f"every task's cost and score: {self.link}\nscore against parameters:    {self.chart_link}"
        default = _sqlite_file(self.uri) == _sqlite_file(DEFAULT_STORE)  # what `mlflow ui` opens by itself
        store = "" if default else f" --backend-store-uri {shlex.quote(self.uri)}"
        return (
            f"start MLflow's pages with: mlflow ui{store}\nevery task's cost and score: {self.link}\n"
            f"score against parameters:    {self.chart_link}"
        )

    def _server(self) -> str:
        return self.uri.rstrip("/") if self.uri.startswith(("http://", "https://")) else "http://localhost:5000"

    @contextmanager
    def run(
        self, name: str, params: Mapping[str, Any], tags: Mapping[str, Any], *, run_id: str | None = None
    ) -> Iterator[str]:
        """A run of the experiment, by its id; FAILED if the block raises, KILLED if it is interrupted, also by SIGTERM.

        Args:
            run_id: of a run to continue; one that is gone is begun anew, with a warning.
        """
        with unwound_by_sigterm():
            run_id = self._begin(name, _texts(tags), run_id)
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

    def _begin(self, name: str, tags: Mapping[str, str], run_id: str | None) -> str:
        """The id of a new run, or of the one to continue, which is RUNNING again."""
        known = None if run_id is None else self._find(run_id)
        if known is None:
            return str(self.client.create_run(self.experiment_id, tags=dict(tags), run_name=name).info.run_id)
        found: str = known.info.run_id
        self._before[found] = Before(self.client, known)
        self.client.update_run(found, status="RUNNING", name=name)
        for key, value in {**tags, "resumed": "True"}.items():
            self.client.set_tag(found, key, value)
        if "error" in known.data.tags:
            self.client.delete_tag(found, "error")
        return found

    def _find(self, run_id: str) -> Run | None:
        from mlflow.exceptions import MlflowException

        try:
            run = self.client.get_run(run_id)
        except MlflowException:
            run = None
        if run is None or run.info.lifecycle_stage != "active":
            warnings.warn(f"the run {run_id} is gone from {self.uri}; a new one begins.", RuntimeWarning, stacklevel=5)
            return None
        return run

    @contextmanager
    def sampled(self, run_id: str) -> Iterator[None]:
        """Within the block the machine's own numbers are logged into the run."""
        if self._system is None:
            yield
            return
        self._system.open(run_id)
        try:
            yield
        finally:
            self._system.close(run_id)

    def log_params(self, run_id: str, params: Mapping[str, Any]) -> None:
        """Several parameters of one run in one transaction.

        MLflow lets no parameter change. Those of a continued run that are other than before go into the tag
        "resumed_with".
        """
        from mlflow.entities import Param

        values = _texts(params)
        if run_id in self._before:
            values, changed = self._before[run_id].split(values)
            if changed:
                self.client.set_tag(run_id, "resumed_with", json.dumps(changed)[:5000])
        self.client.log_batch(run_id, params=[Param(key, value) for key, value in values.items()])

    def log_metrics(self, run_id: str, metrics: Mapping[str, float], step: int = 0) -> None:
        """Several metrics of one run in one transaction. A continued run gets no point twice."""
        from mlflow.entities import Metric

        now = int(time.time() * 1000)
        values = {key: round(float(value), _DIGITS.get(key, 6)) for key, value in metrics.items()}
        if run_id in self._before:
            values = {key: v for key, v in values.items() if not self._before[run_id].has(key, step, v)}
        self.client.log_batch(run_id, metrics=[Metric(key, value, now, step) for key, value in values.items()])

    def log_datasets(self, run_id: str, datasets: Mapping[str, Mapping[str, Any]]) -> None:
        """{part: {"name", "digest", "clips"}} as datasets of MLflow, which the pages of the run show.

        What MLflow calls their source is where the clips can be had: that is not known here, so it is the name.
        """
        from mlflow.entities import Dataset, DatasetInput, InputTag

        inputs = [
            DatasetInput(
                Dataset(
                    name=str(facts["name"]),
                    digest=str(facts["digest"]),
                    source_type="local",
                    source=json.dumps({"uri": str(facts["name"])}),
                    profile=json.dumps({"clips": facts["clips"]}),
                ),
                [InputTag("mlflow.data.context", part)],
            )
            for part, facts in datasets.items()
        ]
        self.client.log_inputs(run_id, inputs)

    def log_bytes(self, run_id: str, content: bytes, path: str) -> None:
        """A file that exists only in memory, as the artifact `path` ("folder/name")."""
        with tempfile.TemporaryDirectory() as folder:
            file = Path(folder) / Path(path).name
            file.write_bytes(content)
            parent = Path(path).parent
            self.client.log_artifact(run_id, str(file), None if parent == Path() else str(parent))

    def log_figure(self, run_id: str, figure: Figure, path: str) -> None:
        """A figure of matplotlib as the artifact `path`, such as "curve.png"."""
        self.client.log_figure(run_id, figure, path)


class Before:
    """What a run that is continued holds from before, so that nothing is logged twice."""

    def __init__(self, client: MlflowClient, run: Run):
        self._client, self._run = client, run
        self._params: dict[str, str] = dict(run.data.params)
        self._points: dict[str, set[tuple[int, str]]] = {}  # of the metrics that were asked for

    def has(self, key: str, step: int, value: float) -> bool:
        """Whether this point of a metric stands there. NaN is a point like any other."""
        if key not in self._run.data.metrics:
            return False
        if key not in self._points:
            history = self._client.get_metric_history(self._run.info.run_id, key)
            self._points[key] = {(point.step, repr(float(point.value))) for point in history}
        return (step, repr(value)) in self._points[key]

    def split(self, params: Mapping[str, str]) -> tuple[dict[str, str], dict[str, str]]:
        """Those parameters that are new, and those that have another value than before."""
        new = {key: value for key, value in params.items() if key not in self._params}
        changed = {key: value for key, value in params.items() if self._params.get(key, value) != value}
        self._params.update(new)
        return new, changed


if TYPE_CHECKING:  # a type checker refuses it if a method is missing
    _tracker_fills_the_protocol: type[base.Tracker] = Tracker
    _tracker_is_a_store: type[Store] = Tracker


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


def _experiment(client: MlflowClient, name: str, place: str | None) -> str:
    """The id of the experiment of this name, which is made if there is none, with the views of this version."""
    from mlflow.exceptions import MlflowException

    found = client.get_experiment_by_name(name)
    if found is None:
        try:
            return str(client.create_experiment(name, artifact_location=place, tags=views.experiment_tags()))
        except MlflowException:  # on a server another client may have been quicker
            found = client.get_experiment_by_name(name)
            if found is None:
                raise
    if found.lifecycle_stage != "active":
        raise ConfigError(f"the MLflow experiment {name!r} was deleted; restore it in the UI, or choose another name.")
    with suppress(MlflowException):  # who may not change the experiment keeps the views it has
        for key, value in views.outdated(found.tags).items():
            client.set_experiment_tag(found.experiment_id, key, value)
    return str(found.experiment_id)


def _close_runs_of_ended_processes(client: MlflowClient, experiment_id: str) -> None:
    """Marks runs as KILLED that say RUNNING although their process is gone from this machine, as after `kill -9`."""
    from mlflow.exceptions import MlflowException

    try:
        running = client.search_runs([experiment_id], "attributes.status = 'RUNNING'")
        for run in running:
            if is_over(run.data.tags.get("process", "")):
                client.set_tag(run.info.run_id, "error", "the process ended without a word: it was killed, or crashed")
                client.set_terminated(run.info.run_id, "KILLED")
    except MlflowException as error:  # nothing that the caller asked for has failed
        warnings.warn(f"the runs of ended processes could not be closed: {error}", RuntimeWarning, stacklevel=3)
