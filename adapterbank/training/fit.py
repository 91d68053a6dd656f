"""Training of one task: the minimal honest loop. Only the task's own tensors are ever in the optimiser."""

from __future__ import annotations

import math
from collections.abc import Callable, Generator, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import asdict, dataclass, field
from functools import partial
from typing import Any

import torch
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from torch import Tensor, nn

from adapterbank.backbone.backbone import Backbone
from adapterbank.bank import AdapterBank
from adapterbank.errors import DatasetError, TrainingDivergedError, UnknownNameError
from adapterbank.evaluation import evaluate_task, loss_function, map_style, score
from adapterbank.routing.below import logits_above
from adapterbank.routing.run import run_rows
from adapterbank.task.task import Task, seeded
from adapterbank.training.augment import MAX_TIME_SHARE
from adapterbank.training.cache import FOLDER_BYTES, MEMORY_BYTES, Activations, Kept, Stores, reads_alike
from adapterbank.training.feed import Batch, Feed, as_dataset
from adapterbank.training.meter import Meter
from adapterbank.training.options import PRECISIONS, Options, in_precision

FREQ_MASK = 24  # mel bins; ESC-50 and UrbanSound8K in AAT
FUSED = ("cpu", "cuda")  # where one kernel makes a step of AdamW for all tensors
EpochHook = Callable[[int, dict[str, float]], None]


@dataclass
class History:
    """What a training did.

    Attributes:
        epochs: per epoch "train/loss", "lr", and with validation data "val/<metric>".
        best_epoch: whose weights the task has now, counted from 0: the best by validation, else the last.
        seconds, gpu_seconds, peak_memory_mb: as `Meter` measures them; of `fit_many` the task's share of the time.
        error: why `fit_many` stopped this task and gave it back as it was; empty if it did not.
    """

    task: str
    options: dict[str, Any]
    precision: str
    epochs: list[dict[str, float]] = field(default_factory=list)
    best_epoch: int = -1
    steps: int = 0
    seconds: float = 0.0
    gpu_seconds: float = 0.0
    peak_memory_mb: float = 0.0
    error: str = ""


def fit(
    bank: AdapterBank,
    task: str,
    train: Any,
    val: Any = None,
    *,
    progress: bool = True,
    on_epoch: EpochHook | None = None,
    **options: Any,
) -> History:
    """Trains one task of a bank; no tensor of the base or of another task changes.

    Args:
        train, val: datasets or iterables of (waveform at 16 kHz, label); labels are names or indices, or sets of them
            for multi-label tasks. The best epoch is chosen on `val`, by accuracy or mAP; without it the last one stays.
        progress: show a progress bar.
        on_epoch: called with (epoch, metrics) after each epoch.
        **options: the fields of `Options`.

    Raises:
        UnknownNameError: unknown task or option. LabelsError: a label that the task does not have.
        ConfigError: options that cannot work, such as a cache that is too small.
        TrainingDivergedError: NaN or Inf. After any error the task is as it was before.
    """
    chosen = options_of_fit(options)
    owner = bank.task(task)
    data = as_dataset(train, owner)
    before = TaskState(owner)
    bar = progress_bar(progress)
    try:
        with Meter(bank.backbone.device) as meter, bar:
            trainer = Trainer(bank.backbone, owner, data, chosen, val)
            history = History(task, asdict(chosen), trainer.precision)
            for batch in trainer.batches(history, bar, on_epoch):
                trainer.step(batch, history.steps)
    except BaseException:
        before.restore()
        raise
    finally:
        leave_training(owner)
    history.seconds, history.gpu_seconds = meter.seconds, meter.gpu_seconds
    history.peak_memory_mb = meter.peak_memory_mb
    return history


def leave_training(task: Task) -> None:
    """Back to eval mode, without gradients: else every trained task would keep its own in memory."""
    task.eval()
    task.zero_grad(set_to_none=True)


class TaskState:
    """A task's tensors and metrics at this moment."""

    def __init__(self, task: Task):
        self.task, self.tensors, self.metrics = task, _copy_state(task), task.metrics

    def restore(self) -> None:
        self.task.load_state_dict(self.tensors)
        self.task.metrics = self.metrics


class Trainer:
    """One training of one task: data, precision, optimiser and the order of its steps.

    Args:
        data: map-style, of (waveform at 16 kHz, label). val: the same, any iterable, or None.
        stores: what caches keep, for several trainings of one process.
    """

    def __init__(
        self,
        backbone: Backbone,
        task: Task,
        data: Any,
        options: Options,
        val: Any = None,
        stores: Stores | None = None,
    ):
        self.task, self.options, self.device = task, options, backbone.device
        self.precision = options.precision_on(self.device)
        dtype = PRECISIONS[self.precision]
        self.backbone = in_precision(backbone, self.precision)
        self.autocast = (
            nullcontext() if dtype == torch.float32 else torch.autocast(self.device.type, dtype, cache_enabled=True)
        )
        augmented = not (task.uses_frozen_features() or options.keeps)
        masks = (
            options.freq_mask if options.freq_mask is not None else FREQ_MASK * augmented,
            options.time_mask if options.time_mask is not None else MAX_TIME_SHARE * augmented,
        )
        self.clip_seconds = task.spec.clip_seconds
        if self.clip_seconds is not None and options.crop_seconds is not None:
            self.clip_seconds = min(self.clip_seconds, options.crop_seconds)
        self.val: Any = None if val is None else map_style(val)
        self.activations: Activations | None = None
        if options.keeps or (options.cache == "auto" and self._may_keep(data, masks)):
            self.activations = self._activations(stores)
            data = self.activations.survey(data, training=True)
            task.targets(data.labels)  # a wrong label is an error before the long part
            if self.val is not None:
                self.val = self.activations.survey(self.val, training=False)
            self.activations.check(*(part for part in (data, self.val) if part is not None))
        self.data: Any = data
        self.feed = Feed(self.backbone, task, data, options, masks)
        trained = [parameter for parameter in task.parameters() if parameter.requires_grad]
        fused = self.device.type in FUSED or None  # None: torch's own choice, on the CPU a loop over tensors
        self.optimizer = torch.optim.AdamW(trained, lr=options.lr, weight_decay=options.weight_decay, fused=fused)
        every = options.epochs * len(self.feed)
        self.total = every if options.steps is None else min(every, options.steps)
        # No method of this object: a cycle would keep optimiser and cache in memory until Python looks for cycles.
        rate = partial(lr_factor, options, self.total, len(self.feed))
        self.scheduler = torch.optim.lr_scheduler.LambdaLR(self.optimizer, rate)
        self.scaler = torch.amp.GradScaler(self.device.type, enabled=self.precision == "fp16")
        self.losses: list[float] = []  # of the epoch so far

    def batches(self, history: History, bar: Progress, on_epoch: EpochHook | None) -> Generator[Batch]:
        """The batches of all epochs; whoever takes one makes its step before asking for the next.

        Between epochs it validates, writes the history and remembers the best epoch, whose tensors the task has at the
        end.
        """
        best, best_state = -math.inf, None
        self._fill(bar)
        row = bar.add_task(f"{self.task.name} ({self.task.method})", total=self.total, note="")
        for epoch in range(self.options.epochs):
            self.task.train()
            self.losses = []
            for place in range(len(self.feed)):
                if history.steps >= self.total:
                    break
                try:
                    yield self.feed.batch(epoch, place)
                except GeneratorExit:
                    bar.update(row, note="stopped")
                    raise
                history.steps += 1
                bar.update(row, advance=1)
            record = {"train/loss": sum(self.losses) / len(self.losses), "lr": float(self.scheduler.get_last_lr()[0])}
            record.update({f"val/{name}": value for name, value in self._validate().items()})
            history.epochs.append(record)
            score_now = record.get(f"val/{self.task.primary_metric}", math.nan)
            goal = -math.inf if math.isnan(score_now) else score_now  # mAP without a positive is NaN
            if self.val is None or goal > best or best_state is None:
                best, history.best_epoch = goal, epoch
                best_state = _copy_state(self.task) if self.val is not None else None
            bar.update(row, note=_note(record))
            if on_epoch is not None:
                on_epoch(epoch, record)
            if history.steps >= self.total:
                break
        if best_state is not None:
            self.task.load_state_dict(best_state)
        # Without validation nothing is known of the new weights: what was measured on the old ones must not stay.
        found = history.epochs[history.best_epoch] if self.val is not None else {}
        self.task.metrics = {k.removeprefix("val/"): v for k, v in found.items() if k.startswith("val/")}

    def step(self, batch: Batch, step: int) -> float:
        """One optimiser step; gives the loss."""
        with self.autocast, self.dropout(step):
            logits = self.logits(batch.rows)
        loss = self.loss(logits, batch.labels, step)
        loss.backward()
        self.update(step)
        return self.losses[-1]

    def logits(self, rows: list[Tensor]) -> Tensor:
        """Log-mels (F, M), or what is kept of B clips -> (B, C)."""
        if self.activations is None:
            return torch.stack(run_rows(self.backbone, [self.task] * len(rows), rows, [self.clip_seconds] * len(rows)))
        rows = [row.to(self.device) for row in rows]
        if self.activations.block is None:
            return self.task.head(torch.stack(rows))
        return torch.stack(logits_above(self.backbone, [self.task] * len(rows), rows, self.activations.block))

    def loss(self, logits: Tensor, labels: list[Any], step: int) -> Tensor:
        """What the backward pass starts from: the loss, scaled if the precision needs it. Clears old gradients.

        Raises:
            TrainingDivergedError: it is not finite. LabelsError.
        """
        loss = loss_function(self.task, logits, self.task.targets(labels).to(self.device))
        value = loss.item()
        if not math.isfinite(value):
            raise self._diverged(step, f"loss {value}")
        self.losses.append(value)
        self.optimizer.zero_grad(set_to_none=True)
        scaled: Tensor = self.scaler.scale(loss)
        return scaled

    def update(self, step: int) -> None:
        """The optimiser's part of a step, after the backward pass. Raises TrainingDivergedError."""
        self.scaler.unscale_(self.optimizer)
        limit = self.options.clip_grad or math.inf
        norm = torch.nn.utils.clip_grad_norm_(self.task.parameters(), limit)
        # A scaler expects an overflow now and then, skips that step and lowers its scale; below 1 nothing overflows any
        # more, so what is not finite comes from the data or the weights.
        scale = self.scaler.get_scale()
        if not torch.isfinite(norm) and (not self.scaler.is_enabled() or scale < 1):
            raise self._diverged(step, f"gradient norm {norm.item()}")
        self.scaler.step(self.optimizer)
        self.scaler.update()
        if self.scaler.get_scale() >= scale:  # else the step was skipped
            self.scheduler.step()

    @contextmanager
    def dropout(self, step: int) -> Iterator[None]:
        """Dropout by (seed, task, step); the caller's random state stays as it was."""
        if not self.has_dropout:
            yield
            return
        devices = [self.device] if self.device.type == "cuda" else []
        with torch.random.fork_rng(devices=devices):
            torch.manual_seed(seeded(self.options.seed, self.task.name, "dropout", str(step)).initial_seed())
            yield

    @property
    def has_dropout(self) -> bool:
        return any(isinstance(module, nn.Dropout) for module in self.task.modules())

    def _may_keep(self, data: Any, masks: tuple[int, float | int]) -> bool:
        """Whether its head is all that this task trains, and it would hear the same clips in each epoch."""
        augments = any(masks) or self.options.crop_seconds is not None
        parts = [part for part in (data, self.val) if part is not None]
        return self.task.uses_frozen_features() and not augments and all(map(reads_alike, parts))

    def _activations(self, stores: Stores | None) -> Activations:
        options = self.options
        where = "memory" if options.cache == "auto" else str(options.cache)
        standard = MEMORY_BYTES if where == "memory" else FOLDER_BYTES
        limit = options.cache_bytes or (None if options.cache == "auto" else standard)
        return Activations(
            self.backbone,
            self.task,
            where,
            limit=limit,
            batch_size=options.batch_size,
            workers=options.workers,
            precision=self.precision,
            autocast=self.autocast,
            stores=stores,
        )

    def _fill(self, bar: Progress) -> None:
        """Computes what a cache keeps, if there is one."""
        if self.activations is None:
            return
        if self.val is not None and not len(self.val):
            raise DatasetError(f"got no validation clips for {self.task.name!r}; pass val=None to train without.")
        parts: list[tuple[Kept, bool]] = [(self.data, True)] + ([] if self.val is None else [(self.val, False)])
        missing = sum(len(part.missing()) for part, _ in parts)
        row = bar.add_task(f"{self.task.name}: what its cache keeps", total=missing, note="", visible=missing > 0)
        for part, training in parts:
            self.activations.fill(part, training=training, advance=lambda clips: bar.update(row, advance=clips))

    def _validate(self) -> dict[str, float]:
        """Metrics on the validation data, if there is any."""
        if self.val is None:
            return {}
        size = self.options.batch_size
        if not isinstance(self.val, Kept):
            with self.autocast:
                return evaluate_task(self.backbone, self.task, self.val, batch_size=size).metrics
        self.task.eval()
        tensors = self.val.tensors
        with torch.no_grad(), self.autocast:
            parts = [self.logits(tensors[at : at + size]).float().cpu() for at in range(0, len(tensors), size)]
        return score(self.task, torch.cat(parts), self.task.targets(self.val.labels))

    def _diverged(self, step: int, what: str) -> TrainingDivergedError:
        return TrainingDivergedError(
            f"training {self.task.name!r} ({self.task.method}, {self.precision}, lr {self.options.lr:g}) gave {what} "
            f"at step {step}. The task is as it was before. Try a lower lr, precision='fp32', or look for broken clips."
        )


def lr_factor(options: Options, total: int, epoch_steps: int, step: int) -> float:
    """The share of the peak rate at a step of `total`."""
    warmup = round(options.warmup * total)
    if step < warmup:
        return (step + 1) / warmup
    if options.schedule == "cosine":
        return 0.5 * (1 + math.cos(math.pi * min(1.0, (step - warmup) / max(1, total - warmup))))
    if options.schedule == "multistep":
        epoch = step // epoch_steps
        return options.gamma ** sum(epoch >= milestone for milestone in options.milestones)
    return 1.0


def options_of_fit(given: Mapping[str, Any]) -> Options:
    """Raises UnknownNameError for what is no option, ConfigError for a value that cannot work."""
    unknown = sorted(given.keys() - Options.__dataclass_fields__.keys())
    if unknown:
        raise UnknownNameError("option of fit", unknown[0], Options.__dataclass_fields__)
    return Options(**given)


def _copy_state(task: Task) -> dict[str, Tensor]:
    return {name: tensor.detach().clone() for name, tensor in task.state_dict().items()}


def progress_bar(show: bool) -> Progress:
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    return Progress(*columns, TextColumn("{task.fields[note]}"), disable=not show)


def _note(record: dict[str, float]) -> str:
    return "  ".join(
        f"{name} {record[name]:.3f}" for name in ("train/loss", "val/accuracy", "val/map") if name in record
    )
