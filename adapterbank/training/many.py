"""Several tasks trained at once: their rows run through the frozen AST together, everything else stays each task's own.

A step of a joint training is a step of each task: its own batch, loss, gradient scale, clipping and optimiser. Tasks
that get the same clips share the front end and all blocks below their first sites; above, rows of several tasks are
packed into the same frozen matmuls as long as they are few.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from rich.progress import Progress
from torch import Tensor

from adapterbank.backbone.backbone import Backbone
from adapterbank.bank import AdapterBank
from adapterbank.data.pairs import pairs_of
from adapterbank.errors import ConfigError, TrainingDivergedError, UnknownNameError
from adapterbank.routing.below import first_block, logits_above, tokens_below
from adapterbank.training.cache import Stores
from adapterbank.training.callbacks import Callback, OnEpoch
from adapterbank.training.feed import Batch, Feed, as_dataset
from adapterbank.training.fit import TaskState, options_of_fit, progress_bar, undone_on_error
from adapterbank.training.history import History
from adapterbank.training.meter import Meter
from adapterbank.training.options import Options, in_precision
from adapterbank.training.tracked import TrackedTraining, check_tracker
from adapterbank.training.trainer import Trainer, leave_training

if TYPE_CHECKING:
    from adapterbank.tracking.base import SequenceRun

PACKED_TOKENS = 4096  # rows of one matmul: more are no faster, and their activations would all be held at once
ManyHook = Callable[[str, int, dict[str, float]], None]


def fit_many(
    bank: AdapterBank,
    tasks: Sequence[str] | Mapping[str, Mapping[str, Any]],
    train: Any,
    val: Any = None,
    *,
    progress: bool = True,
    on_epoch: ManyHook | None = None,
    callbacks: Sequence[Callback] | Mapping[str, Sequence[Callback]] = (),
    tracker: SequenceRun | None = None,
    **options: Any,
) -> dict[str, History]:
    """Trains several tasks of a bank side by side; each comes out as `fit` with the same options leaves it.

    A task whose loss or gradient is NaN or Inf stops alone: it is given back as it was, `History.error` says why, and
    the others go on. With order="shared" all tasks of one seed get the same clips in each step, and each clip is read
    once for all of them.

    Small batches of short clips are faster together, because the rows of several tasks then run through the same matrix
    products. Large batches are faster together only where tasks get the same clips or keep the same activations.

    Args:
        tasks: names, or {name: its own options}, which win over those for all.
        train, val: as in `fit`, for all tasks, or {name: data of that task}.
        progress: show a line per task.
        on_epoch: called with (task, epoch, metrics) after each epoch of each task, after the callbacks.
        callbacks: as in `fit`. The same objects are told of all tasks, and `state.task` says of which; or {name: those
            of that task}, where a task without callbacks may be left out.
        tracker: the parent run that each task's run is nested in; that of a stopped task is marked as failed. What
            fails in the tracker is a warning.
        **options: the fields of `Options`, for all tasks.

    Returns:
        {task: history}; the time of the whole is shared out by steps.

    Raises:
        ConfigError: no task, one twice, options that cannot work, or a tracker that is not the run of a sequence.
        UnknownNameError: unknown task or option.
        Any error but a divergence ends all trainings, and all tasks are as they were before.
    """
    check_tracker(tracker, "task")
    chosen = _options(bank, tasks, options)
    hooks = _callbacks(bank, chosen, callbacks, tracker, on_epoch)
    running: list[Trainer] = []
    with undone_on_error([bank.task(name) for name in chosen], running) as states:
        members: list[Member] = []
        with Meter(bank.backbone.device) as meter, progress_bar(progress) as bar:
            for trainer in _trainers(bank, chosen, _by_task(train, chosen), _by_task(val, chosen), hooks):
                running.append(trainer)
                members.append(Member(trainer, states[trainer.task.name], bar))
            _train(members)
        steps = sum(trainer.history.steps for trainer in running)
        for trainer in running:
            trainer.finish(meter, trainer.history.steps / max(1, steps))
    return {trainer.task.name: trainer.history for trainer in running}


class Member:
    """One task of a joint training, and how far it is.

    Attributes:
        batch: of the step at hand.
        first: the first block this task changes, counted from 0, which is where its own rows start. None: its steps
            share nothing with those of other tasks, because it owns the embedding, only its head is left to run, a step
            has several passes, or blocks are computed again in the backward pass.
    """

    def __init__(self, trainer: Trainer, before: TaskState, bar: Progress):
        self.trainer, self.task, self.name = trainer, trainer.task, trainer.task.name
        self.history, self.before = trainer.history, before
        self.batches = trainer.epochs.batches(bar)
        self.batch = Batch([], [])
        kept = trainer.data.cache
        self.first = first_block(self.task, trainer.setting.backbone.weights) if kept is None else kept.block
        if trainer.setting.options.accumulate > 1 or trainer.setting.options.checkpointing:
            self.first = None

    def take_batch(self) -> bool:
        """Takes the next batch; false at the end of the training."""
        batch = next(self.batches, None)
        self.batch = batch or Batch([], [])
        return batch is not None

    def stop(self, error: TrainingDivergedError) -> None:
        """Gives the task back as it was."""
        self.trainer.epochs.note(error)
        self.batches.close()
        self.trainer.fail(error)
        self.trainer.state.end_step()
        self.before.restore()
        leave_training(self.task)
        self.history.error, self.history.best_epoch = str(error), -1


def _callbacks(
    bank: AdapterBank,
    names: Iterable[str],
    given: Sequence[Callback] | Mapping[str, Sequence[Callback]],
    tracker: SequenceRun | None,
    on_epoch: ManyHook | None,
) -> dict[str, list[Callback]]:
    """Of each task: its tracker's, the given ones, and that of `on_epoch`."""
    names = list(names)
    own = given if isinstance(given, Mapping) else dict.fromkeys(names, given)
    for name in own:
        if name not in names:
            raise UnknownNameError("task of callbacks", name, names)
    found: dict[str, list[Callback]] = {}
    for name in names:
        tracked = [] if tracker is None else [TrackedTraining(tracker, bank)]
        hooks = [] if on_epoch is None else [OnEpoch(partial(on_epoch, name))]
        found[name] = [*tracked, *own.get(name, ()), *hooks]
    return found


def _options(
    bank: AdapterBank, tasks: Sequence[str] | Mapping[str, Mapping[str, Any]], shared: Mapping[str, Any]
) -> dict[str, Options]:
    names = [tasks] if isinstance(tasks, str) else list(tasks)
    if not names or len(set(names)) != len(names):
        raise ConfigError(f"got the tasks {names}, expected at least one task of the bank, and each once.")
    own = tasks if isinstance(tasks, Mapping) else {}
    return {bank.task(name).name: options_of_fit({**shared, **own.get(name, {})}) for name in names}


def _by_task(data: Any, names: Mapping[str, Any]) -> dict[str, Any]:
    """{task: map-style data}; what is given for several tasks is one object, read once."""
    given = dict(data) if isinstance(data, Mapping) else dict.fromkeys(names, data)
    if given.keys() != names.keys():
        raise ConfigError(f"got data for {sorted(given)}, expected it for each task: {sorted(names)}, or one for all.")
    read: dict[int, Any] = {}
    for each in given.values():
        if id(each) not in read:
            read[id(each)] = None if each is None else pairs_of(each)
    return {name: read[id(given[name])] for name in names}


def _trainers(
    bank: AdapterBank,
    chosen: Mapping[str, Options],
    train: Mapping[str, Any],
    val: Mapping[str, Any],
    callbacks: Mapping[str, Sequence[Callback]],
) -> Iterator[Trainer]:
    """With one backbone per precision, one feed for all that get the same batches, and one memory for all caches."""
    bases: dict[str, Backbone] = {}
    feeds: dict[Any, Feed] = {}
    stores = Stores()
    for name, options in chosen.items():
        precision = options.precision_on(bank.backbone.device)
        if precision not in bases:
            bases[precision] = in_precision(bank.backbone, precision)
        task = bank.task(name)
        data = as_dataset(train[name], task)
        trainer = Trainer(bases[precision], task, data, options, val[name], callbacks=callbacks[name], stores=stores)
        trainer.data.feed = feeds.setdefault(trainer.data.feed.key, trainer.data.feed)
        yield trainer


def _train(members: Sequence[Member]) -> None:
    """Steps of all until each is at its end or stopped."""
    live = list(members)
    while live:
        live = [member for member in live if member.take_batch()]
        rows = _enter(live)
        for pack in _packs(live, rows):
            _step(pack, rows)
        live = [member for member in live if not member.history.error]


def _enter(members: Sequence[Member]) -> dict[str, list[Tensor]]:
    """The tokens (N, D) of each clip that enter the first block its task changes, by the tasks' names.

    They are read from the task's cache, or computed once for all tasks that get the same clips.
    """
    rows: dict[str, list[Tensor]] = {}
    alike: dict[Any, list[Member]] = {}
    for member in members:
        setting = member.trainer.setting
        if member.trainer.data.cache is not None:
            rows[member.name] = [row.to(setting.device) for row in member.batch.rows]
        elif member.first is not None:
            lengths = setting.clip_seconds, member.task.spec.partial_patches
            computed_from = (id(member.batch), setting.precision, member.task.mean_std, *lengths)
            alike.setdefault(computed_from, []).append(member)
    for group in alike.values():
        one = group[0].trainer.setting
        blocks = {member.first for member in group if member.first is not None}
        with one.autocast:
            found = tokens_below(one.backbone, one.task, group[0].batch.rows, blocks, one.clip_seconds)
        rows.update({member.name: found[member.first] for member in group if member.first is not None})
    return rows


def _packs(members: Sequence[Member], rows: Mapping[str, Sequence[Tensor]]) -> Iterator[list[Member]]:
    """Tasks whose rows run together: those with the same first block and precision, up to `PACKED_TOKENS`.

    A task with dropout runs alone, because dropout draws from the global random state in the order of that task's own
    rows. So does one of which no block is the base's, or none is left to run.
    """
    packs: dict[Any, list[Member]] = {}
    sizes: dict[Any, int] = {}
    for member in members:
        setting = member.trainer.setting
        alone = member.first is None or setting.has_dropout
        key = (setting.precision, member.first, member.name if alone else None)
        size = 0 if member.first is None else sum(map(len, rows[member.name]))
        if key in packs and sizes[key] + size > PACKED_TOKENS:
            yield packs.pop(key)
        if key not in packs:
            packs[key], sizes[key] = [], 0
        packs[key].append(member)
        sizes[key] += size
    yield from packs.values()


def _step(pack: Sequence[Member], rows: Mapping[str, list[Tensor]]) -> None:
    """One optimiser step of each task of a pack; a task that diverges is stopped."""
    one = pack[0].trainer
    if pack[0].first is None:
        with _stopping(pack[0]):
            one.optimizer_step.take(pack[0].batch)
        return
    tokens = [row for member in pack for row in rows[member.name]]
    tasks = [member.task for member in pack for _ in rows[member.name]]
    with one.setting.autocast, one.optimizer_step.seeded_dropout() if len(pack) == 1 else nullcontext():
        logits = iter(logits_above(one.setting.backbone, tasks, tokens, pack[0].first))
    losses: dict[Member, Tensor] = {}
    diverged: dict[Member, TrainingDivergedError] = {}
    for member in pack:
        mine = torch.stack([next(logits) for _ in rows[member.name]])
        try:
            losses[member] = member.trainer.optimizer_step.begin(mine, member.batch)
        except TrainingDivergedError as error:
            diverged[member] = error
    # One pass for all: no tensor that gets a gradient belongs to two tasks, and rows do not meet on the way.
    torch.autograd.backward(list(losses.values()))
    for member, reason in diverged.items():  # only now: the pass reads the tensors that are put back
        member.stop(reason)
    for member in losses:
        with _stopping(member):
            member.trainer.optimizer_step.update()


@contextmanager
def _stopping(member: Member) -> Iterator[None]:
    """A task that diverges in here is given back as it was; the others do not notice."""
    try:
        yield
    except TrainingDivergedError as error:
        member.stop(error)
