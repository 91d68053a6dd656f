"""Training of one task: the minimal honest loop. Only the task's own tensors are ever in the optimiser."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import asdict, dataclass, field
from typing import Any

import torch
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from torch import Tensor, nn
from torch.utils.data import DataLoader

from adapterbank.backbone.checkpoints import Backbone
from adapterbank.backbone.frontend import SAMPLE_RATE
from adapterbank.bank import AdapterBank
from adapterbank.errors import ConfigError, DatasetError, TrainingDivergedError, UnknownNameError
from adapterbank.routing import mels_of, run
from adapterbank.task import Task, seeded
from adapterbank.training.augment import MAX_TIME_SHARE, check_masks, random_crop, spec_augment
from adapterbank.training.meter import Meter
from adapterbank.training.metrics import batches, evaluate_task, items, loss_function, score

SCHEDULES = ("cosine", "multistep", "constant")
PRECISIONS = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
FREQ_MASK = 24  # mel bins; ESC-50 and UrbanSound8K in AAT


@dataclass(frozen=True)
class Options:
    """How to train.

    Attributes:
        epochs: passes over the training data; `steps` ends earlier.
        lr: peak learning rate of AdamW.
        schedule: after `warmup` (share of all steps, linear): "cosine" to 0; "multistep": times `gamma` at the start of
            each epoch in `milestones` (counted from 0); "constant".
        precision: "fp32", "bf16", "fp16" (with loss scaling) or "auto": what the device does well.
        crop_seconds: train on random crops of this length; evaluation always hears whole clips.
        freq_mask, time_mask: SpecAugment; None: 24 bins and 20 % of the frames if the method trains inside the
            backbone, nothing for `head`, whose frozen features are then computed once.
        clip_grad: largest gradient norm, 0 for none.
        seed: of data order and augmentation, together with the task's name.
    """

    epochs: int = 10
    steps: int | None = None
    batch_size: int = 32
    lr: float = 1e-3
    weight_decay: float = 0.05
    schedule: str = "cosine"
    warmup: float = 0.1
    milestones: tuple[int, ...] = ()
    gamma: float = 0.85
    precision: str = "auto"
    crop_seconds: float | None = None
    freq_mask: int | None = None
    time_mask: float | int | None = None
    clip_grad: float = 1.0
    seed: int = 0
    workers: int = 0

    def __post_init__(self) -> None:
        if self.schedule not in SCHEDULES:
            raise UnknownNameError("schedule", self.schedule, SCHEDULES)
        if self.precision not in ("auto", *PRECISIONS):
            raise UnknownNameError("precision", self.precision, ("auto", *PRECISIONS))
        for name in ("epochs", "batch_size", "steps"):
            value = getattr(self, name)
            if (name, value) != ("steps", None) and (not isinstance(value, int) or value < 1):
                raise ConfigError(f"got {name}={value!r}, expected a positive integer.")
        for name in ("lr", "weight_decay", "warmup", "gamma", "clip_grad", "crop_seconds"):
            value = getattr(self, name)
            number = isinstance(value, (int, float)) and math.isfinite(value) and value >= 0
            if not number and (name, value) != ("crop_seconds", None):
                raise ConfigError(f"got {name}={value!r}, expected a number from 0 up.")
        if not self.lr > 0:
            raise ConfigError(f"got lr={self.lr!r}, expected a positive number such as 1e-3.")
        if not 0 <= self.warmup < 1:
            raise ConfigError(f"got warmup={self.warmup!r}, expected a share of all steps from 0 to below 1.")
        if self.crop_seconds is not None and not self.crop_seconds > 0:
            raise ConfigError(f"got crop_seconds={self.crop_seconds!r}, expected a positive number or None.")
        check_masks(self.freq_mask or 0, self.time_mask or 0)


@dataclass
class History:
    """What a training did.

    Attributes:
        epochs: per epoch "train/loss", "lr", and with validation data "val/<metric>".
        best_epoch: whose weights the task has now, counted from 0: the best by validation, else the last.
        seconds, gpu_seconds, peak_memory_mb: as `Meter` measures them.
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


def fit(
    bank: AdapterBank,
    task: str,
    train: Any,
    val: Any = None,
    *,
    progress: bool = True,
    on_epoch: Callable[[int, dict[str, float]], None] | None = None,
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
        TrainingDivergedError: NaN or Inf. After any error the task is as it was before.
    """
    unknown = sorted(options.keys() - Options.__dataclass_fields__.keys())
    if unknown:
        raise UnknownNameError("option of fit", unknown[0], Options.__dataclass_fields__)
    chosen = Options(**options)
    owner = bank.task(task)
    trainer = Trainer(bank.backbone, owner, _as_dataset(train, owner), chosen)
    history = History(task, asdict(chosen), trainer.precision)
    before, metrics_before = _copy_state(owner), owner.metrics
    bar = _bar(not progress)
    try:
        with Meter(bank.backbone.device) as meter, bar:
            trainer.run(val, history, bar, on_epoch)
    except BaseException:
        owner.load_state_dict(before)
        owner.metrics = metrics_before
        raise
    finally:
        owner.eval()
        owner.zero_grad(set_to_none=True)  # else every trained task keeps its gradients in memory
    history.seconds, history.gpu_seconds = meter.seconds, meter.gpu_seconds
    history.peak_memory_mb = meter.peak_memory_mb
    return history


class Trainer:
    """One `fit`: data, precision, optimiser and the loop over epochs."""

    def __init__(self, backbone: Backbone, task: Task, data: Any, options: Options):
        self.task, self.options, self.device = task, options, backbone.device
        self.precision = _default_precision(self.device) if options.precision == "auto" else options.precision
        dtype = PRECISIONS[self.precision]
        # Autocast would cast the frozen weights anew on every call: cast them once instead.
        self.backbone = backbone if dtype == torch.float32 else backbone.to(dtype=dtype)
        self.autocast = (
            nullcontext() if dtype == torch.float32 else torch.autocast(self.device.type, dtype, cache_enabled=True)
        )
        augmented = not task.uses_frozen_features()
        self.freq_mask = options.freq_mask if options.freq_mask is not None else FREQ_MASK * augmented
        self.time_mask = options.time_mask if options.time_mask is not None else MAX_TIME_SHARE * augmented
        self.cached = not (augmented or self.freq_mask or self.time_mask or options.crop_seconds)
        self.generator = seeded(options.seed, task.name, "data")
        self.data: Any = self._features(data) if self.cached else data
        self.loader = DataLoader(
            self.data,  # type: ignore[arg-type]
            options.batch_size,
            shuffle=True,
            generator=self.generator,
            collate_fn=_collate,
            num_workers=0 if self.cached else options.workers,
        )
        trained = [parameter for parameter in task.parameters() if parameter.requires_grad]
        self.optimizer = torch.optim.AdamW(trained, lr=options.lr, weight_decay=options.weight_decay)
        self.total = min(options.epochs * len(self.loader), options.steps or math.inf)
        self.scheduler = torch.optim.lr_scheduler.LambdaLR(self.optimizer, self._lr_factor)
        self.scaler = torch.amp.GradScaler(self.device.type, enabled=self.precision == "fp16")

    def run(
        self, val: Any, history: History, bar: Progress, on_epoch: Callable[[int, dict[str, float]], None] | None
    ) -> None:
        validate = self._validator(val)
        best, best_state = -math.inf, None
        row = bar.add_task(f"{self.task.name} ({self.task.method})", total=self.total, note="")
        for epoch in range(self.options.epochs):
            record = self._epoch(history, bar, row)
            if validate is not None:
                record.update({f"val/{name}": value for name, value in validate().items()})
            history.epochs.append(record)
            score_now = record.get(f"val/{self.task.primary_metric}", math.nan)
            goal = -math.inf if math.isnan(score_now) else score_now  # mAP without a positive is NaN
            if validate is None or goal > best or best_state is None:
                best, history.best_epoch = goal, epoch
                best_state = _copy_state(self.task) if validate is not None else None
            bar.update(row, note=_note(record))
            if on_epoch is not None:
                on_epoch(epoch, record)
            if history.steps >= self.total:
                break
        if best_state is not None:
            self.task.load_state_dict(best_state)
        # Without validation nothing is known of the new weights: what was measured on the old ones must not stay.
        found = history.epochs[history.best_epoch] if validate is not None else {}
        self.task.metrics = {k.removeprefix("val/"): v for k, v in found.items() if k.startswith("val/")}

    def _epoch(self, history: History, bar: Progress, row: Any) -> dict[str, float]:
        self.task.train()
        losses: list[float] = []
        for inputs, labels in self.loader:
            if history.steps >= self.total:
                break
            losses.append(self.step(inputs, labels, history.steps))
            history.steps += 1
            bar.update(row, advance=1)
        return {"train/loss": sum(losses) / len(losses), "lr": float(self.scheduler.get_last_lr()[0])}

    def step(self, inputs: list[Tensor], labels: list[Any], step: int) -> float:
        """One optimiser step on B waveforms (T,) at 16 kHz (or cached features) and their labels; gives the loss."""
        targets = self.task.targets(labels).to(self.device)
        with self.autocast, self._dropout(step):
            logits = self._logits(inputs)
        loss = loss_function(self.task, logits, targets)
        if not torch.isfinite(loss):
            raise self._diverged(step, f"loss {loss.item()}")
        self.optimizer.zero_grad(set_to_none=True)
        self.scaler.scale(loss).backward()
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
        return loss.item()

    @contextmanager
    def _dropout(self, step: int) -> Iterator[None]:
        """Dropout by (seed, task, step); the caller's random state stays as it was."""
        if not any(isinstance(module, nn.Dropout) for module in self.task.modules()):
            yield
            return
        devices = [self.device] if self.device.type == "cuda" else []
        with torch.random.fork_rng(devices=devices):
            torch.manual_seed(seeded(self.options.seed, self.task.name, "dropout", str(step)).initial_seed())
            yield

    def _logits(self, inputs: list[Tensor]) -> Tensor:
        if self.cached:
            return self.task.head(torch.stack(inputs).to(self.device))
        options = self.options
        seconds = self.task.spec.clip_seconds
        if options.crop_seconds is not None:
            samples = round(options.crop_seconds * SAMPLE_RATE)
            inputs = [random_crop(w, samples, self.generator) for w in inputs]
            seconds = None if seconds is None else min(seconds, options.crop_seconds)
        with torch.no_grad():
            mels = mels_of(self.backbone, inputs)
            if self.freq_mask or self.time_mask:
                mels = [spec_augment(mel, self.freq_mask, self.time_mask, self.generator) for mel in mels]
        return torch.stack(run(self.backbone, [self.task] * len(mels), mels, [seconds] * len(mels)))

    def _features(self, data: Any) -> list[tuple[Tensor, Any]]:
        """(pooled feature (D,), label) of each clip: all that a head ever sees of it."""
        features: list[tuple[Tensor, Any]] = []
        self.task.eval()
        with torch.no_grad(), self.autocast:
            for waveforms, labels in batches(data, self.options.batch_size):
                mels = mels_of(self.backbone, waveforms)
                vectors = run(self.backbone, [self.task] * len(mels), mels, pooled=True)
                features.extend(zip((v.float() for v in vectors), labels, strict=True))
        return features

    def _validator(self, val: Any) -> Callable[[], dict[str, float]] | None:
        if val is None:
            return None
        data = val if hasattr(val, "__len__") else list(items(val))
        if not self.task.uses_frozen_features():

            def evaluate() -> dict[str, float]:
                with self.autocast:
                    return evaluate_task(self.backbone, self.task, data, batch_size=self.options.batch_size).metrics

            return evaluate
        features = self._features(data)
        if not features:
            raise DatasetError(f"got no validation clips for {self.task.name!r}; pass val=None to train without.")
        vectors = torch.stack([vector for vector, _ in features])
        targets = self.task.targets([label for _, label in features])

        def evaluate_head() -> dict[str, float]:
            self.task.eval()
            with torch.no_grad(), self.autocast:
                logits = self.task.head(vectors)
            return score(self.task, logits.float().cpu(), targets)

        return evaluate_head

    def _lr_factor(self, step: int) -> float:
        options, total = self.options, self.total
        warmup = round(options.warmup * total)
        if step < warmup:
            return (step + 1) / warmup
        if options.schedule == "cosine":
            return 0.5 * (1 + math.cos(math.pi * min(1.0, (step - warmup) / max(1, total - warmup))))
        if options.schedule == "multistep":
            epoch = step // len(self.loader)
            return options.gamma ** sum(epoch >= milestone for milestone in options.milestones)
        return 1.0

    def _diverged(self, step: int, what: str) -> TrainingDivergedError:
        return TrainingDivergedError(
            f"training {self.task.name!r} ({self.task.method}, {self.precision}, lr {self.options.lr:g}) gave {what} "
            f"at step {step}. The task is as it was before. Try a lower lr, precision='fp32', or look for broken clips."
        )


def _collate(pairs: Sequence[tuple[Tensor, Any]]) -> tuple[list[Tensor], list[Any]]:
    return [waveform for waveform, _ in pairs], [label for _, label in pairs]


def _as_dataset(data: Any, task: Task) -> Any:
    """A map-style dataset; any other iterable is read into a list once."""
    data = data if hasattr(data, "__len__") and hasattr(data, "__getitem__") else list(items(data))
    if not len(data):
        raise DatasetError(f"got no clips to train {task.name!r} on, expected (waveform, label) pairs.")
    return data


def _copy_state(task: Task) -> dict[str, Tensor]:
    return {name: tensor.detach().clone() for name, tensor in task.state_dict().items()}


def _default_precision(device: torch.device) -> str:
    if device.type == "cuda":
        return "bf16" if torch.cuda.is_bf16_supported(including_emulation=False) else "fp16"
    if device.type == "cpu":
        capabilities: dict[str, bool] = getattr(torch.cpu, "get_capabilities", dict)()
        return "bf16" if capabilities.get("amx_bf16") or capabilities.get("avx512_bf16") else "fp32"
    return "fp32"


def _bar(disable: bool) -> Progress:
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    return Progress(*columns, TextColumn("{task.fields[note]}"), disable=disable)


def _note(record: dict[str, float]) -> str:
    return "  ".join(
        f"{name} {record[name]:.3f}" for name in ("train/loss", "val/accuracy", "val/map") if name in record
    )
