"""AdapterBank: one frozen AST and its named tasks. The front door: what it does is done in the rooms below."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Literal, NoReturn, overload

import torch
from rich.console import Console
from torch import Tensor

from adapterbank import exchange
from adapterbank.audio.clips import read_clips
from adapterbank.audio.mel import SAMPLE_RATE
from adapterbank.backbone.backbone import Backbone, default_device
from adapterbank.backbone.checkpoints import at_its_stride, load_backbone
from adapterbank.backbone.encode import Segment
from adapterbank.backbone.sites import NOTHING
from adapterbank.errors import UnknownNameError
from adapterbank.evaluation import Evaluation, calibrate_task, evaluate_task
from adapterbank.guesses import no_such_attribute
from adapterbank.routing.module import TaskModule
from adapterbank.routing.run import ask, embed, filled, logits_of
from adapterbank.scanning.result import Scan
from adapterbank.scanning.scan import scan
from adapterbank.serving.compiled import CompiledTask
from adapterbank.storage import manifest
from adapterbank.storage.shelf import Shelf
from adapterbank.storage.task_file import SavedTask
from adapterbank.task.calibration import Calibration
from adapterbank.task.compose import compose
from adapterbank.task.describe import describe
from adapterbank.task.head import POOLINGS
from adapterbank.task.overview import Summary, overview
from adapterbank.task.task import Prediction, Task

AUDIOSET = "audioset"  # the built-in task of a backbone that has a classifier


class AdapterBank:
    """A frozen AST that hosts named tasks, routed row by row.

    Not an `nn.Module` on purpose: `train()`, `state_dict()` or an optimiser over "all parameters" would reach every
    task. `task_module(name)` gives one task as a module.

    Args:
        resident: how many unchanged tasks of a saved bank stay in memory; see `load`.
    """

    def __init__(
        self, backbone: Backbone, tasks: Mapping[str, Task | SavedTask] | None = None, resident: int | None = None
    ):
        self._backbone = backbone
        self._tasks = Shelf(backbone, tasks or {}, resident)

    # -- opening and keeping -------------------------------------------------------------------------------------

    @classmethod
    def from_pretrained(
        cls,
        name_or_folder: str | Path | Backbone = "ast-mini-2",
        *,
        device: torch.device | str | None = None,
        base_dtype: torch.dtype | None = None,
        stride: int | None = None,
        resident: int | None = None,
    ) -> AdapterBank:
        """A new bank on a backbone, or a saved bank. All arguments work for both.

        Args:
            name_or_folder: "ast-mini-2" (embedded), a Hugging Face AST by hub id or folder (`config.json`), a `.pth`
                file of the AST or SSAST repository, the folder of a saved bank (`manifest.json`), or a `Backbone`.
            device: where to run; the accelerator if there is one, else the CPU.
            base_dtype: of the frozen linears: torch.bfloat16, or torch.int8 (half of that memory, dequantised for each
                product); everything that is trained stays fp32.
            stride: of the patches, as in `load_backbone`. A saved bank and a `Backbone` have theirs already: it must be
                the same.
            resident: how many unchanged tasks of a saved bank stay in memory, as in `load`. A new bank has no files, so
                all of its tasks stay.

        Raises:
            BackboneError: no such backbone, it is damaged, or a dtype that frozen linears cannot have.
            StorageError: the saved bank is damaged. ConfigError: `resident` below 1, or a stride other than the saved.
        """
        tasks: Mapping[str, Task | SavedTask]
        if isinstance(name_or_folder, Backbone):
            backbone = at_its_stride(name_or_folder, stride)
            tasks = _shipped_with(backbone)
        elif (folder := Path(name_or_folder).expanduser()).joinpath(manifest.MANIFEST).is_file():
            content = manifest.read_manifest(folder)
            backbone = manifest.open_backbone(folder, content, stride=stride)
            tasks = manifest.saved_tasks(folder, content, backbone)
        else:
            backbone = load_backbone(name_or_folder, stride=stride)
            tasks = _shipped_with(backbone)
        return cls(backbone, tasks, resident).to(device or default_device(), base_dtype=base_dtype)

    def save(self, folder: str | Path) -> None:
        """Writes `manifest.json` and one safetensors file per task, atomically; the backbone is named, not copied.

        Raises:
            StorageError: the folder cannot be written, or belongs to something else; or the bank was opened with
                `resident` and a file that it was opened from is no longer there, or another.
        """
        self._tasks.save(Path(folder).expanduser())

    @classmethod
    def load(
        cls,
        folder: str | Path,
        backbone: str | Path | Backbone | None = None,
        *,
        device: torch.device | str | None = None,
        base_dtype: torch.dtype | None = None,
        resident: int | None = None,
    ) -> AdapterBank:
        """Opens a saved bank.

        Args:
            backbone: in place of the one that the manifest names, such as a file that was moved; a path is opened
                with the stride that the bank was saved with. It must have the same fingerprint.
            resident: None opens and verifies all tasks now. A number opens and verifies each when it is first used and
                keeps that many in memory, for banks of hundreds of tasks; the folder has to stay. Tasks that your code
                still holds stay too, until you let go. Tasks that were changed, renamed or added stay for good. A
                change is never lost: handing out a task costs a digest of its tensors (some milliseconds), by which
                the bank sees later whether it was changed. Calling the bank costs none.

        Raises:
            BackboneError: the backbone that the manifest names is not there, or a dtype that it cannot have.
            StorageError: a file is missing, cut or was changed; the last, with `resident`, at first use.
            BackboneMismatchError: the bank belongs to another backbone. ConfigError: `resident` below 1.
        """
        folder = Path(folder).expanduser()
        content = manifest.read_manifest(folder)
        if not isinstance(backbone, Backbone):
            backbone = manifest.open_backbone(folder, content, backbone)
        bank = cls(backbone, manifest.saved_tasks(folder, content, backbone), resident)
        return bank.to(device or default_device(), base_dtype=base_dtype)

    def to(self, device: torch.device | str | None = None, *, base_dtype: torch.dtype | None = None) -> AdapterBank:
        """Moves the bank, or stores its frozen linears in another dtype. Returns the bank itself.

        Raises:
            BackboneError: a dtype that frozen linears cannot have.
        """
        self._backbone = self._backbone.to(device, base_dtype)
        self._tasks.to(self._backbone)
        return self

    # -- the tasks -----------------------------------------------------------------------------------------------

    @property
    def backbone(self) -> Backbone:
        """The frozen AST."""
        return self._backbone

    @property
    def tasks(self) -> Mapping[str, Task]:
        """The tasks by name; a read-only view. Reading opens a task and pins nothing, as `load(resident=...)` says."""
        return MappingProxyType(self._tasks)

    def add_task(
        self,
        name: str,
        method: str = "aat_ms",
        *,
        labels: Sequence[str] | None = None,
        num_classes: int | None = None,
        multilabel: bool | None = None,
        head: str | None = None,
        pooling: str | None = None,
        train_final_norm: bool = False,
        clip_seconds: float | None = None,
        partial_patches: str = "pad",
        normalize: str | tuple[float, float] = "backbone",
        seed: int = 0,
        init_from: str | None = None,
        **method_options: Any,
    ) -> Task:
        """Adds a new, untrained task.

        Args:
            name: 1 to 64 of a-z, 0-9, ".", "_", "-". The name of a known dataset brings its clip length, whether
                it is multi-label and, where neither `labels` nor `num_classes` are given, its labels.
            method: a method or composition, as in `adapterbank.methods.names()`.
            labels: class names in the order of the logits; or only `num_classes`.
            multilabel: each class is present or not (sigmoid, mAP) instead of one of all (softmax, accuracy); None: as
                the known dataset, else False.
            head: "ln_linear" (AST, AAT) or "linear" (PETL_AST); None: the method's own, which is "ln_linear" for all
                but `linear`.
            pooling: "cls_dist" (AST, AAT) or "mean" over all tokens (PETL_AST); None: the method's own if it has one,
                as `linear` has, else the backbone's: "mean" on ast-mini-2, "cls_dist" on any other.
            clip_seconds: pad shorter clips to this length; None: as the known dataset, else each clip keeps its own.
            partial_patches: "pad" clips to whole patches, or "cut" them to whole patches and to `clip_seconds`, as the
                published codes of AST, AAT and PETL_AST do; see docs/features.md.
            normalize: "backbone", or (mean, std) of this task's log-mels.
            seed: of the initialisation, together with the name.
            init_from: a task whose tensors of the same names and shapes the new one starts with (warm start).
            **method_options: such as ratio=0.25; for one part of a composition: prompt={"tokens": 24}.

        Raises:
            NameTakenError, InvalidNameError, LabelsError, UnknownNameError, CompositionError, ConfigError:
                and the bank is as it was.
        """
        self._tasks.free(name, f"remove_task({name!r}) first, or choose another name.")
        source = None if init_from is None else self._tasks.use(init_from)
        spec = describe(
            name,
            method,
            labels=labels,
            num_classes=num_classes,
            multilabel=multilabel,
            head=head,
            pooling=pooling,
            clip_seconds=clip_seconds,
            options=method_options,
            backbone_pooling=self._backbone.pooling,
            train_final_norm=train_final_norm,
            partial_patches=partial_patches,
            normalize=normalize,
            seed=seed,
        )
        task = Task(spec, self._backbone)
        if source is not None:
            task.start_from(source)
        self._tasks[name] = task
        return task

    def remove_task(self, name: str) -> None:
        """Forgets a task; its tensors are freed when nothing else holds them."""
        del self._tasks[self._tasks.known(name)]

    def rename_task(self, name: str, new_name: str) -> None:
        """Gives a task another name; its place and all its tensors stay."""
        self._tasks.rename(name, new_name)

    def relabel(self, task: str, new_names: Mapping[str, str]) -> None:
        """Gives classes of a task other names, {name of today: new name}; order and logits stay.

        Raises:
            UnknownNameError: no such task or class. LabelsError: two classes would have one name, which would merge
                them. The task is then as it was.
        """
        self._tasks.relabel(task, new_names)

    def import_task(self, file: str | Path, *, name: str | None = None, **options: Any) -> Task:
        """Adds a task from one of the safetensors files of a saved bank, or from a LoRA folder of peft.

        Args:
            name: in place of the one in the file, or of the folder's.
            **options: of a folder: labels, num_classes, multilabel, clip_seconds; see `adapterbank.exchange.peft_read`.

        Raises:
            StorageError: the file is damaged, or no task. BackboneMismatchError: made for another backbone.
            NameTakenError: a task of that name exists. Of a folder also ConfigError, LabelsError.
        """
        task = exchange.read(Path(file).expanduser(), self._backbone, self._tasks, name=name, **options)
        self._tasks[task.name] = task
        return task

    def export(self, task: str, format: str, folder: str | Path, **options: Any) -> None:
        """Writes a task for elsewhere: "safetensors", a file for `import_task`; "peft", a LoRA task as a folder.

        Options of "peft" are those of `adapterbank.exchange.peft_write`.

        Raises:
            UnknownNameError: no such task or format. ConfigError: the format cannot express it. StorageError.
        """
        exchange.write(self._tasks.use(task), self._backbone, format, folder, **options)

    def compose(self, name: str, tasks: Sequence[str], how: str = "joint", **options: Any) -> Task:
        """A new task whose adapters are copies of those of trained tasks, all in one forward pass.

        The sources stay as they are, bit for bit. Arguments and errors as in `adapterbank.task.compose`: `freeze`,
        `head_from`, `labels`, `seed`.

        Raises:
            NameTakenError, UnknownNameError, CompositionError, ConfigError, LabelsError: the bank is as it was.

        Warns:
            UntrainedHeadWarning: without `head_from` the head is new, and knows nothing before it is trained.
        """
        self._tasks.free(name)
        sources = [self._tasks.use(source) for source in ([tasks] if isinstance(tasks, str) else tasks)]
        self._tasks[name] = compose(name, sources, self._backbone, how=how, **options)
        return self._tasks[name]

    def task(self, name: str) -> Task:
        """A task by name. Raises UnknownNameError; a name never falls through to the base or another task."""
        return self._tasks[self._tasks.known(name)]

    def task_module(self, name: str) -> TaskModule:
        """One task as an `nn.Module` for your own training loop."""
        return TaskModule(self.task(name), self)

    def compile_task(self, name: str, *, torch_compile: bool = False) -> CompiledTask:
        """One task as it is now, as a module for serving: equal to 1e-5, and not changed by later training.

        Args:
            torch_compile: run its encoder through `torch.compile`, which takes a while at the first call, and again at
                a new clip length or batch size. On a CPU it needs a C++ compiler, and a floating base is packed for
                the processor's linears: once more the memory of its matrices, and a compilation for each module.

        Raises:
            UnknownNameError: no such task.
        """
        return CompiledTask(self._tasks.use(name), self._backbone, torch_compile=torch_compile)

    def trainable_parameters(self, task: str) -> int:
        """How many numbers training this task may change."""
        return self._tasks.facts(task).parameters

    # -- inference -----------------------------------------------------------------------------------------------

    @overload
    def __call__(self, x: Any, task: str, *, sample_rate: int | Sequence[int] = ..., on_error: str = ...) -> Tensor: ...
    @overload
    def __call__(
        self, x: Any, task: Sequence[str], *, sample_rate: int | Sequence[int] = ..., on_error: str = ...
    ) -> list[Tensor]: ...

    @torch.no_grad()
    def __call__(
        self,
        x: Any,
        task: str | Sequence[str],
        *,
        sample_rate: int | Sequence[int] = SAMPLE_RATE,
        on_error: str = "raise",
    ) -> Tensor | list[Tensor]:
        """Logits, each clip through its own task.

        Args:
            x: one clip or several: files, waveforms (T,) or (B, T) in [-1, 1], (waveform, sample_rate), dicts of
                Hugging Face, a list of these, or a data set; all that `adapterbank.audio.clips` lists. Of a clip of
                more than a minute the logits are the mean over windows of at most a minute; `scan` tells them apart.
            task: one name for all clips, or one per clip in any order and mix.
            sample_rate: in Hz, of arrays and tensors that come without one; one for all, or one per clip.
            on_error: "raise", or "skip": the logits of a clip that cannot be used are NaN, the other clips are
                answered, and one `SkippedClipsWarning` counts and names what was left out.

        Returns:
            (B, C) for one name; a list of B vectors (C of that row's task,) for a list of names. One clip is B = 1.

        Raises:
            WaveformError, AudioFileError: a clip that cannot be used. UnknownNameError. ConfigError: a list of another
            length, or a sample rate that is none.
        """
        clips = read_clips(x, sample_rate, on_error)
        tasks = self._tasks.by_row(task, len(clips))
        sizes = [len(owner.labels) for owner in tasks]
        logits = filled(logits_of(self._backbone, tasks, clips), sizes, self._backbone.device)
        return torch.stack(logits) if isinstance(task, str) else logits

    @torch.no_grad()
    def ask(
        self,
        x: Any,
        tasks: Sequence[str],
        *,
        sample_rate: int | Sequence[int] = SAMPLE_RATE,
        on_error: str = "raise",
    ) -> dict[str, Tensor]:
        """Logits of several tasks on the same clips, {task: (B, C)}; what they have in common is computed once.

        Shared are the spectrogram and all blocks below the first one that a task changes. Tasks that adapt the last
        four of twelve blocks share eight, if they pad and normalise alike. Above, it is a batch of B x len(tasks) rows,
        on the CPU a few clips at a time. `x`, `sample_rate` and `on_error` as in calling the bank.

        Raises:
            ConfigError: no name, or one twice. Others as calling the bank.
        """
        names = [tasks] if isinstance(tasks, str) else tasks
        owners = [self._tasks.use(name) for name in names]
        return ask(self._backbone, owners, read_clips(x, sample_rate, on_error))

    @torch.no_grad()
    def embed(
        self,
        x: Any,
        *,
        sample_rate: int | Sequence[int] = SAMPLE_RATE,
        pooling: str = "cls_dist",
        on_error: str = "raise",
    ) -> Tensor:
        """Features of the frozen AST, with no task, after the final norm: (B, D).

        Args:
            x, sample_rate, on_error: as in calling the bank.
            pooling: "cls_dist", (cls + dist) / 2; or "mean" over all tokens, for backbones whose two were not trained.

        Raises:
            UnknownNameError: another pooling. Others as calling the bank.
        """
        if pooling not in POOLINGS:
            raise UnknownNameError("pooling", pooling, POOLINGS)
        backbone = self._backbone
        untouched = Segment((NOTHING,) * backbone.geometry.layers, backbone.weights)
        return embed(backbone, untouched, read_clips(x, sample_rate, on_error), pooling)

    @overload
    def predict(
        self,
        x: Any,
        task: str | Sequence[str],
        *,
        sample_rate: int | Sequence[int] = ...,
        threshold: float | Mapping[str, float] | None = ...,
        on_error: Literal["raise"] = ...,
    ) -> list[Prediction]: ...
    @overload
    def predict(
        self,
        x: Any,
        task: str | Sequence[str],
        *,
        sample_rate: int | Sequence[int] = ...,
        threshold: float | Mapping[str, float] | None = ...,
        on_error: str,
    ) -> list[Prediction | None]: ...

    @torch.no_grad()
    def predict(
        self,
        x: Any,
        task: str | Sequence[str],
        *,
        sample_rate: int | Sequence[int] = SAMPLE_RATE,
        threshold: float | Mapping[str, float] | None = None,
        on_error: str = "raise",
    ) -> list[Prediction] | list[Prediction | None]:
        """Class names and probabilities, one `Prediction` per clip; None for a clip that on_error="skip" left out.

        Other arguments and errors as in calling the bank.

        Args:
            threshold: the probability that a label has to exceed, for all labels or as {label: probability}. None: of a
                multi-label task the thresholds that `calibrate` found, or one half; of any other task none, the most
                likely class is the answer. With a threshold the answer may be nothing: `Prediction.label` is then None.
        """
        clips = read_clips(x, sample_rate, on_error)
        tasks = self._tasks.by_row(task, len(clips))
        rows = zip(tasks, logits_of(self._backbone, tasks, clips), strict=True)
        return [None if logits is None else owner.prediction(logits, threshold) for owner, logits in rows]

    @torch.no_grad()
    def scan(
        self,
        recording: Any,
        tasks: str | Sequence[str] = "all",
        *,
        window: float | None = None,
        hop: float | None = None,
        sample_rate: int = SAMPLE_RATE,
        on_error: str = "raise",
        batch_size: int = 32,
        progress: bool = True,
    ) -> Scan:
        """Labels with their times along a recording of any length, in memory that does not grow with it.

        All tasks hear the same windows and share what `ask` shares. The answer has `events()`, in which windows of one
        label that overlap or touch are one, `to_csv`, `to_audacity` and `plot`.

        Args:
            recording: one clip in any form that a call takes, or an iterator of blocks (T,). Of these only a path and
                an iterator need no memory for the whole recording.
            tasks: one name, several, or "all".
            window: seconds, 0.1 to 120; None: as long as the clips of the task with the longest, by its `clip_seconds`
                or else its training, at most 60; or 5 if that is known of none.
            hop: seconds from the start of one window to that of the next; None: the window, side by side. Both are
                rounded to 10 ms. The last window ends with the recording, and so overlaps the one before it.
            sample_rate: in Hz, of samples in memory that do not say theirs.
            on_error: what happens where a file breaks, or samples are NaN, Inf or far too loud. "raise" is an error
                that says at what second. "skip" answers for all else, notes it in the answer and warns
                (`SkippedClipsWarning`).
            batch_size: windows at a time.
            progress: show a progress bar.

        Raises:
            AudioFileError, WaveformError: not a recording, or it breaks. UnknownNameError: no such task.
            ConfigError: a window, hop or rate that cannot be; no task, or one twice.
        """
        names = list(self._tasks) if tasks == "all" else [tasks] if isinstance(tasks, str) else tasks
        return scan(
            self._backbone,
            [self._tasks.use(name) for name in names],
            recording,
            window=window,
            hop=hop,
            sample_rate=sample_rate,
            on_error=on_error,
            batch_size=batch_size,
            progress=progress,
        )

    def evaluate(self, task: str, data: Any, *, batch_size: int = 32, on_error: str = "raise") -> Evaluation:
        """Metrics of a task on a data set; kept for `summary()`.

        Args:
            data: pairs of a clip and a label, a `datasets.Dataset`, a DataLoader, {path: label}; all that
                `adapterbank.data.pairs` lists.
            on_error: "raise", or "skip": items that cannot be used are left out of the metrics, and one
                `SkippedClipsWarning` counts and names them.

        Returns:
            A dict with every metric of `adapterbank.evaluation.METRICS` that this kind of task has, by name. It also
            has `clips`, `interval` (95 %, of the primary metric), `per_class`, `confusion`, `table()`, `to_csv(path)`.

        Raises:
            UnknownNameError: no such task. ConfigError: `batch_size` below 1.
            LabelsError, DatasetError, WaveformError: data that the task cannot use.
        """
        found = evaluate_task(self._backbone, self._tasks.use(task), data, batch_size=batch_size, on_error=on_error)
        self._tasks.record(task, found)
        return found

    def calibrate(self, task: str, val: Any, *, batch_size: int = 32, on_error: str = "raise") -> Calibration:
        """Fits to validation data what makes a task's probabilities mean what they say; stored with the task.

        That is a temperature, and for a multi-label task a threshold per label, by F1. Logits stay as they are. The
        next training of the task forgets it.

        Args:
            val: clips and labels in any form that `evaluate` takes, none of which the task was trained on.
            on_error: as in `evaluate`.

        Raises:
            UnknownNameError, ConfigError, LabelsError, DatasetError, WaveformError: as `evaluate`.

        Warns:
            CalibrationWarning: the data cannot tell the temperature, or the threshold of some label.
        """
        return calibrate_task(self._backbone, self.task(task), val, batch_size=batch_size, on_error=on_error)

    def summary(self) -> Summary:
        """Prints all tasks and returns them as rows: method, parameters, share of the base, bytes, last metric."""
        summary = overview(self._backbone, self._tasks.all_facts())
        Console().print(summary.table())
        return summary

    if not TYPE_CHECKING:  # a type checker finds wrong names by itself, unless this tells it that any name will do

        def __getattr__(self, name: str) -> NoReturn:
            """What to call in place of `bank.train()` and other first guesses. Raises NoSuchAttributeError."""
            if name.startswith("_"):  # what copy, pickle and notebooks ask every object for
                raise AttributeError(f"{type(self).__name__!r} object has no attribute {name!r}")
            raise no_such_attribute(self, name)

    def __repr__(self) -> str:
        return f"AdapterBank({self._backbone.source!r}, tasks=[{', '.join(self._tasks)}])"


def _shipped_with(backbone: Backbone) -> dict[str, Task]:
    """The classifier that the backbone came with as a task, if it has one."""
    return {} if backbone.classifier is None else {AUDIOSET: Task.of_classifier(AUDIOSET, backbone)}
