"""Tasks trained one after another on one frozen AST, and what each training did to the tasks before it.

`train_sequence` gives every task its own adapters in a bank. After each training it tests all earlier tasks again and
raises an error unless their logits are the same bits as before.

`train_naive` is what the bank is compared with: one shared body that is fine-tuned for task after task. There every
training changes the earlier tasks, mostly for the worse.

What came of a sequence is the accuracy matrix R: R[i][j] is the test score on task j after the training of task i. Its
entries above the diagonal are None, because a task is not tested before it is trained.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from adapterbank.backbone.backbone import Backbone
from adapterbank.bank import AdapterBank
from adapterbank.errors import ConfigError, InterferenceError
from adapterbank.evaluation import Evaluation, evaluate_task
from adapterbank.files import write_atomically
from adapterbank.tracking.base import SequenceRun
from adapterbank.training.fit import fit
from adapterbank.training.history import History
from adapterbank.training.tracked import TrackedTask, check_tracker, failure_is_a_warning

if TYPE_CHECKING:
    from rich.table import Table


def average_accuracy(matrix: Sequence[Sequence[float | None]]) -> float:
    """Mean score over all tasks after the last training: the mean of the last row of R."""
    last = _row(matrix, len(matrix) - 1)
    return sum(last) / len(last)


def backward_transfer(matrix: Sequence[Sequence[float | None]]) -> float | None:
    """How much later trainings changed the earlier tasks; negative where they made them worse.

    BWT = mean over i < T of R[T][i] - R[i][i] (Lopez-Paz and Ranzato, 2017); None with a single task.
    """
    last = _row(matrix, len(matrix) - 1)
    changes = [last[i] - _row(matrix, i)[i] for i in range(len(matrix) - 1)]
    return sum(changes) / len(changes) if changes else None


def forgetting(matrix: Sequence[Sequence[float | None]]) -> float | None:
    """How far each earlier task has fallen from its best score.

    Mean over i < T of max_t R[t][i] - R[T][i], where the maximum is over i <= t <= T, as the library Mammoth (Boschini
    et al., 2022) computes it; None with a single task.
    """
    count = len(matrix)
    last = _row(matrix, count - 1)
    losses = [max(_row(matrix, t)[i] for t in range(i, count)) - last[i] for i in range(count - 1)]
    return sum(losses) / len(losses) if losses else None


def _row(matrix: Sequence[Sequence[float | None]], index: int) -> list[float]:
    """The entries of a row up to its diagonal; above it nothing was measured."""
    return [value for value in matrix[index][: index + 1] if value is not None]


DEFINITIONS = {
    "average_accuracy": "mean over tasks j of R[T,j], the test scores after the last training",
    "bwt": "backward transfer, mean over j < T of R[T,j] - R[j,j] (Lopez-Paz and Ranzato, 2017; Mammoth)",
    "forgetting": "mean over j < T of max over t of R[t,j], minus R[T,j] (Mammoth; Avalanche takes R[j,j] - R[T,j])",
}


_TRACKED = ("task", "log_scores", "log_result")  # what a sequence calls of its tracker

# What the naive model can take over from a task of the bank: all but the method and its options.
_NAIVE_OPTIONS = (
    *("labels", "num_classes", "multilabel", "head", "pooling"),
    *("clip_seconds", "partial_patches", "normalize", "seed"),
)


@dataclass(frozen=True)
class Stage:
    """One task of a sequence.

    Attributes:
        name: of the task.
        train, val, test: data of (waveform at 16 kHz, label); without `val` the last epoch is kept.
        task_options: arguments of `bank.add_task`: method, labels, ...
        fit_options: arguments of `fit`: epochs, lr, ...
    """

    name: str
    train: Any
    val: Any
    test: Any
    task_options: Mapping[str, Any] = field(default_factory=dict)
    fit_options: Mapping[str, Any] = field(default_factory=dict)


@dataclass
class SequenceResult:
    """What a sequence came to.

    Attributes:
        strategy: "bank" or "naive".
        tasks: in the order of their training.
        matrix: R[i][j], the test score (accuracy, or mAP of a multi-label task) on task j measured after training task
            i; None above the diagonal, where nothing was measured.
        histories: of each training; None for a task of a resumed bank whose history was lost.
        evaluations: of each task on its test data right after its own training.
    """

    strategy: str
    tasks: list[str] = field(default_factory=list)
    matrix: list[list[float | None]] = field(default_factory=list)
    histories: dict[str, History | None] = field(default_factory=dict)
    evaluations: dict[str, Evaluation] = field(default_factory=dict)

    def add(self, bank: AdapterBank, name: str, history: History | None, found: Mapping[str, Evaluation]) -> None:
        """For the sequence: a task was trained and all so far were tested. The matrix grows by a row and a column."""
        self.tasks.append(name)
        self.histories[name] = history
        self.evaluations[name] = found[name]
        for row in self.matrix:
            row.append(None)
        self.matrix.append([found[task].metrics[bank.task(task).primary_metric] for task in self.tasks])

    def seconds(self) -> float:
        """Of all trainings together."""
        return sum(history.seconds for history in self.histories.values() if history is not None)

    def numbers(self) -> dict[str, float | None]:
        """Average accuracy, backward transfer and forgetting, as in `DEFINITIONS`."""
        return {
            "average_accuracy": average_accuracy(self.matrix),
            "bwt": backward_transfer(self.matrix),
            "forgetting": forgetting(self.matrix),
        }

    def to_json(self) -> dict[str, Any]:
        """Tasks, matrix and numbers, with their definitions."""
        numbers = {**self.numbers(), "definitions": DEFINITIONS}
        return {"strategy": self.strategy, "tasks": self.tasks, "matrix": self.matrix, **numbers}


def train_sequence(
    bank: AdapterBank,
    stages: Sequence[Stage],
    *,
    folder: str | Path | None = None,
    resume: bool = False,
    tracker: SequenceRun | None = None,
    progress: bool = True,
) -> SequenceResult:
    """Trains tasks one after another in a bank; after each, tests all tasks so far.

    Args:
        folder: save the bank here after each task.
        resume: a stage whose task the bank has already is not trained again, only tested.
        tracker: the run of the sequence, in which a run per task is opened; what `Tracker().sequence(...)` gives, or
            anything else that fills the Protocol `adapterbank.tracking.base.SequenceRun`. What fails in the tracker is
            a warning.

    Raises:
        InterferenceError: the logits of an earlier task differ in any bit from those right after its own training.
        NameTakenError: the bank has such a task and `resume` is not set. ConfigError: it has it with another method or
            other labels, the sequence is empty or names a task twice, or the tracker is not the run of a sequence.
        Whatever `fit` raises: the bank then keeps the finished tasks, without the one that failed.
    """
    check_tracker(tracker, *_TRACKED)
    result = SequenceResult("bank")
    for index, stage in enumerate(_checked(stages)):
        there = trained = resume and stage.name in bank.tasks
        if there:
            _check_same(bank, stage)
        else:
            bank.add_task(stage.name, **stage.task_options)
        try:
            with _nested(tracker, bank, stages, index, "bank", resumed=there) as run:
                history = _recall(folder, stage.name) if there else _train(bank, stage, run, progress)
                trained = True
                found = _test(bank, stages[: index + 1])
                result.add(bank, stage.name, history, found)
                _check_unchanged(result, found)
                if folder is not None:
                    _remember(folder, stage.name, history)
                    bank.save(folder)
                _track(run, history, found[stage.name], index, replay=there)
                run.log_adapter()
        except BaseException:
            if not trained:
                bank.remove_task(stage.name)
            raise
        _track_scores(tracker, found, bank, index)
    _track_result(tracker, result)
    return result


def train_naive(
    backbone: Backbone,
    stages: Sequence[Stage],
    *,
    fit_options: Mapping[str, Any] | None = None,
    tracker: SequenceRun | None = None,
    progress: bool = True,
) -> SequenceResult:
    """The same sequence without a bank: one body, fully fine-tuned by task after task, and a head for each.

    Args:
        backbone: whose weights the shared body starts from; it is not touched.
        fit_options: in place of the stages' own, such as the lower learning rate that full fine-tuning needs.
        tracker: as in `train_sequence`.

    Raises:
        ConfigError: the sequence is empty or names a task twice, or the tracker is not the run of a sequence.
        Whatever `fit` raises.
    """
    check_tracker(tracker, *_TRACKED)
    result, bank = SequenceResult("naive"), AdapterBank(backbone)
    for index, stage in enumerate(_checked(stages)):
        kept = {key: value for key, value in stage.task_options.items() if key in _NAIVE_OPTIONS}
        task = bank.add_task(stage.name, "full", **kept)
        if index:
            task.share_adapters(bank.task(stages[0].name))  # one body: training any task changes it for all
        stage = dataclasses.replace(stage, fit_options={**stage.fit_options, **(fit_options or {})})
        with _nested(tracker, bank, stages, index, "naive") as run:
            history = _train(bank, stage, run, progress)
            found = _test(bank, stages[: index + 1])
            result.add(bank, stage.name, history, found)
            _track(run, history, found[stage.name], index)  # no adapter file: the next task overwrites the body
        _track_scores(tracker, found, bank, index)
    _track_result(tracker, result)
    return result


def matrix_table(result: SequenceResult) -> Table:
    """The accuracy matrix as a table for a terminal."""
    from rich.table import Table

    table = Table(title=f"{result.strategy}: test score on each task (column) after each training (row)")
    table.add_column("after training")
    for task in result.tasks:
        table.add_column(task, justify="right")
    for task, row in zip(result.tasks, result.matrix, strict=True):
        table.add_row(task, *("" if value is None else f"{value:.3f}" for value in row))
    return table


def comparison_table(results: Sequence[SequenceResult]) -> Table:
    """A column per strategy: the tasks' scores after the last training, and the numbers of `DEFINITIONS`."""
    from rich.table import Table

    table = Table(title="at the end of the sequence")
    table.add_column("")
    for result in results:
        table.add_column(result.strategy, justify="right")
    for column, task in enumerate(results[0].tasks):
        table.add_row(task, *(f"{result.matrix[-1][column]:.3f}" for result in results))
    table.add_section()
    for name in DEFINITIONS:
        values = [result.numbers()[name] for result in results]
        sign = "+" if name == "bwt" else ""
        table.add_row(name, *("-" if value is None else f"{value:{sign}.3f}" for value in values))
    table.add_row("seconds of training", *(f"{result.seconds():.0f}" for result in results))
    return table


def _checked(stages: Sequence[Stage]) -> Sequence[Stage]:
    names = [stage.name for stage in stages]
    if not names or len(set(names)) != len(names):
        raise ConfigError(f"got the sequence {names}, expected at least one task, and each once.")
    return stages


def _check_same(bank: AdapterBank, stage: Stage) -> None:
    """A resumed bank must hold what the caller would have trained."""
    asked = AdapterBank(bank.backbone).add_task(stage.name, **stage.task_options)
    found = bank.task(stage.name).spec.to_json()
    for key, wanted in asked.spec.to_json().items():  # as stored: a saved bank gives tuples back as lists
        got = found[key]
        if got != wanted:
            raise ConfigError(
                f"the bank to resume holds {stage.name!r} with {key}={got!r}, asked for is {wanted!r}. "
                "Resume with the options it was started with, or start another bank in another folder."
            )


def _train(bank: AdapterBank, stage: Stage, run: TrackedTask, progress: bool) -> History:
    options = stage.fit_options
    return fit(bank, stage.name, stage.train, stage.val, progress=progress, on_epoch=run.log_epoch, **options)


def _test(bank: AdapterBank, stages: Sequence[Stage]) -> dict[str, Evaluation]:
    """Test metrics and logits of every task so far, measured now; kept in the tasks for `bank.summary()`."""
    found = {}
    for stage in stages:
        size = stage.fit_options.get("batch_size", 32)
        found[stage.name] = evaluate_task(bank.backbone, bank.task(stage.name), stage.test, batch_size=size)
        bank.task(stage.name).metrics = found[stage.name].metrics
    return found


def _check_unchanged(result: SequenceResult, found: Mapping[str, Evaluation]) -> None:
    changed = [name for name, now in found.items() if not torch.equal(now.logits, result.evaluations[name].logits)]
    if changed:
        raise InterferenceError(
            f"training {result.tasks[-1]!r} changed the test logits of {', '.join(map(repr, changed))}. No task may "
            "change another: please report this with the methods in use. The saved bank is that of the task before."
        )


def _nested(
    tracker: SequenceRun | None, bank: AdapterBank, stages: Sequence[Stage], index: int, strategy: str, **tags: Any
) -> TrackedTask:
    stage = stages[index]
    data = {"train": stage.train, "val": stage.val, "test": stage.test}
    tags = {"strategy": strategy, "position": f"{index + 1}/{len(stages)}", **tags}
    return TrackedTask(tracker, bank, stage.name, tags=tags, data=data)


def _track(
    run: TrackedTask, history: History | None, evaluation: Evaluation, index: int, *, replay: bool = False
) -> None:
    if history is not None:
        for epoch, record in enumerate(history.epochs if replay else ()):
            run.log_epoch(epoch, record)
        run.log_training(history)
    run.log_test(evaluation, index)


def _track_scores(tracker: SequenceRun | None, found: Mapping[str, Evaluation], bank: AdapterBank, index: int) -> None:
    if tracker is not None:
        with failure_is_a_warning("log_scores"):
            tracker.log_scores(found, bank, index)


def _track_result(tracker: SequenceRun | None, result: SequenceResult) -> None:
    if tracker is not None:
        with failure_is_a_warning("log_result"):
            tracker.log_result(result)


def _history_file(folder: str | Path, name: str) -> Path:
    return Path(folder) / "histories" / f"{name}.json"


def _remember(folder: str | Path, name: str, history: History | None) -> None:
    """Written before the bank is saved, so that a task which a resumed run finds there has its history."""
    if history is not None:
        path = _history_file(folder, name)
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(path, json.dumps(dataclasses.asdict(history), indent=1).encode())


def _recall(folder: str | Path | None, name: str) -> History | None:
    """What the killed run wrote; None if that is gone: costs are then unknown, the task itself is whole."""
    if folder is None or not _history_file(folder, name).is_file():
        return None
    try:
        return History(**json.loads(_history_file(folder, name).read_text(encoding="utf-8")))
    except (ValueError, TypeError):
        return None
