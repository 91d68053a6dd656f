"""Activations below the first block that a task changes, computed once per clip and kept in memory or on disk.

Below that block nothing depends on what is trained, so that every epoch would compute the same values. What is kept of
a clip has a name, made of the SHA-256 of its waveform and of its padded length. It lies in a store, whose identity is
the rest of what the values depend on: backbone, dtypes, kernels, normalisation, block and what else `_identity` lists.
A clip that changed has another name, a backbone that changed has another store: nothing stale is ever found.

Symbols: B batch, T samples, F frames, M mel bins, N tokens, D width.
"""

from __future__ import annotations

import hashlib
import json
import shutil
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Protocol

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Subset

from adapterbank._version import __version__
from adapterbank.audio.clips import as_waveforms
from adapterbank.audio.mel import frame_count
from adapterbank.backbone.backbone import Backbone
from adapterbank.backbone.kernels import choose
from adapterbank.errors import ConfigError, StorageError
from adapterbank.files import sha256, write_atomically
from adapterbank.routing.below import first_block, tokens_below
from adapterbank.routing.run import mels_of, run_rows
from adapterbank.task.task import Task, seeded
from adapterbank.training.sample import spread

FORMAT = 2  # increase it when the front end or the AST computes other values, if only in their last bits
MEMORY_BYTES = 4 * 2**30
FOLDER_BYTES = 64 * 2**30
EXAMPLES = 4  # clips of a data set whose waveforms stay at hand
ENTRY = 4  # bytes of a number: the residual stream is fp32 whatever the frozen linears are


class Store(Protocol):
    """Where tensors are kept by name. Nothing is ever removed from it."""

    def __contains__(self, name: object) -> bool: ...

    def put(self, tensors: Mapping[str, Tensor]) -> None: ...

    def get(self, name: str) -> Tensor: ...


class MemoryStore:
    """A store in the memory of this process."""

    def __init__(self) -> None:
        self._tensors: dict[str, Tensor] = {}

    def __contains__(self, name: object) -> bool:
        return name in self._tensors

    def put(self, tensors: Mapping[str, Tensor]) -> None:
        self._tensors.update(tensors)

    def get(self, name: str) -> Tensor:
        return self._tensors[name]


class FolderStore:
    """A store in a folder, with one safetensors file per batch.

    Files are mapped, so that the system keeps in memory what is read often and drops it when memory is short. A file
    has the SHA-256 of its content as its name, is written in one step, and is verified when it is first read. Several
    processes may fill one folder: at worst both compute the same clip.

    Args:
        folder: the one that the user named; the store is a folder inside it.
        identity: what the tensors depend on beside the clip; its SHA-256 names the folder inside.

    Raises:
        StorageError: a file is cut or was changed, or the folder cannot be written.
    """

    def __init__(self, folder: Path, identity: Mapping[str, Any]):
        described_by = json.dumps(identity, sort_keys=True, indent=1).encode()
        self.folder = folder / sha256(described_by)[:32]
        self._where: dict[str, Any] = {}
        self._unverified: dict[Any, Path] = {}
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            if not (described := self.folder / "identity.json").exists():
                write_atomically(described, described_by)  # for people; nothing reads it
        except OSError as error:
            raise StorageError(f"cannot keep activations in {folder}: {error}. Choose another folder.") from error
        for path in sorted(self.folder.glob("*.safetensors")):
            self._open(path)

    def __contains__(self, name: object) -> bool:
        return name in self._where

    def put(self, tensors: Mapping[str, Tensor]) -> None:
        content = save(dict(tensors))
        path = self.folder / f"{sha256(content)}.safetensors"
        try:
            write_atomically(path, content)
        except OSError as error:
            raise StorageError(f"cannot keep activations in {self.folder}: {error}. What is there stays.") from error
        self._open(path)

    def get(self, name: str) -> Tensor:
        handle = self._where[name]
        self._verify(handle)
        found: Tensor = handle.get_tensor(name)  # a view of the mapped file
        return found

    def _open(self, path: Path) -> None:
        try:
            handle = safe_open(str(path), "pt")
            self._where.update(dict.fromkeys(handle.keys(), handle))
        except SafetensorError as error:
            raise StorageError(f"{path} is cut or was changed. Delete it: its clips are computed again.") from error
        except OSError as error:
            raise StorageError(f"cannot read {path}: {error}. Delete it: its clips are computed again.") from error
        self._unverified[handle] = path

    def _verify(self, handle: Any) -> None:
        path = self._unverified.get(handle)
        if path is None:
            return
        try:
            content = path.read_bytes()
        except OSError as error:
            raise StorageError(f"cannot read {path}: {error}. Delete it: its clips are computed again.") from error
        if sha256(content) != path.stem:
            raise StorageError(f"{path} is cut or was changed. Delete it: its clips are computed again.")
        del self._unverified[handle]


class KeptClips(Dataset[tuple[Tensor, Any]]):
    """A dataset of what is kept of clips. Item i is (tokens (N, D) or features (D,), label), once it is filled.

    Args:
        names: of what is kept, one per clip; clips that are equal have one name.
        labels: one per clip.
        data: the dataset of waveforms that it stands for.
        store: where the tensors are.

    Attributes:
        lengths: of the waveforms, in samples.
        examples: waveforms of a few clips, from which costs are estimated without reading any a second time.
        read_seconds: how long a clip took to be read and named, on average.
    """

    def __init__(self, names: Sequence[str], labels: Sequence[Any], data: Any, store: Store):
        self.names, self.labels, self.data, self.store = names, labels, data, store
        self.tensors: list[Tensor] = []
        self.lengths: list[int] = []
        self.examples: list[Tensor] = []
        self.read_seconds = 0.0

    def __len__(self) -> int:
        return len(self.names)

    def __getitem__(self, index: int) -> tuple[Tensor, Any]:
        return self.tensors[index], self.labels[index]

    @property
    def targets(self) -> Sequence[Any]:
        """The label of each clip, as datasets of `load_folder` have it."""
        return self.labels

    def missing(self) -> list[int]:
        """The place of the first clip of each name that is not in the store yet, in rising order."""
        first: dict[str, int] = {}
        for index, name in enumerate(self.names):
            first.setdefault(name, index)
        return [index for name, index in first.items() if name not in self.store]


@dataclass
class Stores:
    """What several trainings of one process share, so that `fit_many` computes each clip once.

    Attributes:
        by_identity: a store for each identity of activations.
        surveys: the names and labels of the clips of each dataset, by what names depend on.
    """

    by_identity: dict[str, Store] = field(default_factory=dict)
    surveys: dict[tuple[Any, ...], KeptClips] = field(default_factory=dict)


class ActivationCache:
    """The cache of one training.

    It keeps the tokens (N, D) that enter the first block which the task changes; where the task trains only its head,
    the pooled features (D,) that the head reads.

    Args:
        backbone: in the precision of the training.
        where: "memory" or a folder.
        limit: how many bytes one training may keep; None for any number.
        batch_size: clips that are computed, and written to a file, at a time.
        workers: processes that read clips ahead, 0 for none.
        precision, autocast: of the training.
        stores: shared by trainings of one process.

    Attributes:
        block: the first block that the task changes, counted from 0; None if features are kept.

    Raises:
        ConfigError: the task changes the first block, so that there is nothing to keep.
    """

    def __init__(
        self,
        backbone: Backbone,
        task: Task,
        where: str,
        *,
        limit: int | None,
        batch_size: int,
        workers: int,
        precision: str,
        autocast: AbstractContextManager[Any],
        stores: Stores | None = None,
    ):
        self.backbone, self.task, self.limit = backbone, task, limit
        self.folder = None if where == "memory" else Path(where).expanduser()
        self.batch_size, self.workers, self.precision, self.autocast = batch_size, workers, precision, autocast
        self.stores = Stores() if stores is None else stores
        self._values = _digest(dict(backbone.weights.named()))  # the fingerprint is of those before dtype changes
        self.block = None if task.uses_frozen_features() else first_block(task, backbone.weights)
        if not self.block and not task.uses_frozen_features():
            raise ConfigError(
                f"got cache={where!r} for {task.name!r}, whose method {task.method!r} acts from the first block on: "
                "nothing below it could be kept. Pass cache=None, or give its method the later blocks (layers=[6, 7])."
            )

    def survey(self, data: Any, *, training: bool) -> KeptClips:
        """Names and labels of all clips of a map-style dataset; every clip is read once, nothing is computed."""
        store = self._store(training)
        key = (id(data), id(store), self.task.spec.clip_seconds, self.task.spec.partial_patches)
        if key not in self.stores.surveys:
            names: list[str] = []
            lengths: list[int] = []
            labels: list[Any] = []
            examples: list[Tensor] = []
            wanted, start = spread(len(data), EXAMPLES), time.perf_counter()
            for waveforms, batch_labels in self._read(data, range(len(data)), self.workers):
                examples += [wave for number, wave in enumerate(waveforms, len(names)) if number in wanted]
                clips = [as_waveforms([waveform])[0] for waveform in waveforms]
                names += [self._name(clip) for clip in clips]
                lengths += map(len, clips)
                labels += batch_labels
            found = self.stores.surveys[key] = KeptClips(names, labels, data, store)
            found.lengths = lengths
            found.examples = as_waveforms(examples) if examples else []
            found.read_seconds = (time.perf_counter() - start) / max(1, len(names))
        return self.stores.surveys[key]

    def check(self, *parts: KeptClips) -> None:
        """Raises ConfigError if what these parts need is more than may be kept, or than the disk has room for."""
        wanted = {(id(part.store), name) for part in parts for name in part.names}
        missing = {(id(part.store), name) for part in parts for name in part.names if name not in part.store}
        needed, lacking = (sum(self._bytes(name) for _, name in names) for names in (wanted, missing))
        what = "pooled features" if self.block is None else f"the tokens that enter block {self.block}"
        what = f"{what} of {sum(map(len, parts)):,} clips need"
        anew = "cache=None to compute them in each epoch"
        if self.limit is not None and needed > self.limit:
            disk = "" if self.folder is not None else "cache=<a folder> to keep them on disk, or "
            raise ConfigError(
                f"{what} {_mib(needed)}, cache_bytes allows {_mib(self.limit)}. "
                f"Pass cache_bytes={needed}, {disk}{anew}."
            )
        if self.folder is not None and lacking > (free := shutil.disk_usage(self.folder).free):
            raise ConfigError(
                f"{what} {_mib(lacking)} more in {self.folder}, whose disk has {_mib(free)} left. Choose a folder on "
                f"another disk, or {anew}."
            )

    def fill(self, kept: KeptClips, *, training: bool, advance: Callable[[int], None] = lambda clips: None) -> None:
        """Computes what is missing, batch by batch, and opens all of it.

        Args:
            training: compute with gradients on, as a training step does; else as an evaluation does. The two may choose
                other kernels, whose results differ in their last bits.
            advance: called with the clips of each batch that was computed.

        Raises:
            ConfigError: the data gives other waveforms when it is read again.
        """
        self.task.eval()
        missing = kept.missing()
        for waveforms, _ in self._read(kept.data, missing, self.workers):
            wanted = [kept.names[index] for index in missing[: len(waveforms)]]
            if [self._name(as_waveforms([waveform])[0]) for waveform in waveforms] != wanted:
                raise ConfigError(
                    f"the data of {self.task.name!r} gives another waveform each time a clip is read. What is kept "
                    "would freeze the first: take the random part out of the dataset, or pass cache=None."
                )
            values = [value.float().cpu() for value in self.compute(waveforms, training)]
            # Copies: a row of a batch would hold all of it in memory, and safetensors refuses shared storage.
            copies = [value.clone(memory_format=torch.contiguous_format) for value in values]
            kept.store.put(dict(zip(wanted, copies, strict=True)))
            advance(len(waveforms))
            missing = missing[len(waveforms) :]
        kept.tensors = [kept.store.get(name) for name in kept.names]

    def compute(self, waveforms: list[Tensor], training: bool) -> list[Tensor]:
        """What is kept of B waveforms (T,) at 16 kHz: tokens (N, D), or a feature (D,), of each."""
        with torch.no_grad():
            mels = mels_of(self.backbone, waveforms)
        with self._mode(training):
            if self.block is None:
                return run_rows(self.backbone, [self.task] * len(mels), mels, pooled=True)
            seconds = self.task.spec.clip_seconds
            return tokens_below(self.backbone, self.task, mels, [self.block], seconds)[self.block]

    @contextmanager
    def _mode(self, training: bool) -> Iterator[None]:
        """The grad mode and the autocast that decide which kernels run. Nothing that is kept has a gradient."""
        with torch.set_grad_enabled(training), self.autocast:
            yield

    def _kernels(self, training: bool) -> dict[str, str]:
        """The kernels that compute what is kept, as text; without those that change no value."""
        with self._mode(training):
            chosen = choose(self.backbone.device)._asdict()
        return {name: str(decision) for name, decision in chosen.items() if name not in ("chunk_tokens", "checkpoint")}

    def _read(self, data: Any, indices: Sequence[int], workers: int) -> Iterator[tuple[list[Tensor], list[Any]]]:
        part: Any = Subset(data, indices)
        # A generator of its own: a loader without one draws from the global state.
        loader: Any = DataLoader(
            part, self.batch_size, collate_fn=collate, num_workers=workers, generator=seeded(0, "cache")
        )
        return iter(loader)

    def _name(self, clip: Tensor) -> str:
        frames = self.task.used_frames(frame_count(len(clip)), self.task.spec.clip_seconds)
        return f"{sha256(clip.contiguous().cpu().numpy().tobytes())}-{frames}"

    def _bytes(self, name: str) -> int:
        geometry = self.backbone.geometry
        tokens = 1 if self.block is None else geometry.tokens(int(name.rpartition("-")[2]))
        return ENTRY * geometry.width * tokens

    def _store(self, training: bool) -> Store:
        identity = self._identity(training)
        key = json.dumps([str(self.folder), identity], sort_keys=True)
        stores = self.stores.by_identity
        if key not in stores:
            stores[key] = MemoryStore() if self.folder is None else FolderStore(self.folder, identity)
        return stores[key]

    def _identity(self, training: bool) -> dict[str, Any]:
        """Everything beside a clip that its activations depend on."""
        backbone, task = self.backbone, self.task
        kept: dict[str, Any] = {"block": self.block}
        if self.block is None:
            kept = {"pooling": task.spec.pooling, "method": task.method, "options": str(dict(task.spec.options))}
            kept["adapters"] = _digest(dict(task.adapters.state_dict()))  # frozen ones, as `compose` makes them
        return {
            "format": FORMAT,
            "adapterbank": __version__,
            "torch": torch.__version__,
            "device": backbone.device.type,
            "backbone": backbone.fingerprint,
            "geometry": asdict(backbone.geometry),
            "values": self._values,
            "precision": self.precision,
            "matmul": torch.get_float32_matmul_precision(),
            "training": training,
            "kernels": self._kernels(training),
            "mean_std": list(task.mean_std),
            **kept,
        }


def collate(pairs: Sequence[tuple[Tensor, Any]]) -> tuple[list[Tensor], list[Any]]:
    """A batch as two lists: clips have any lengths, labels any form."""
    return [clip for clip, _ in pairs], [label for _, label in pairs]


def _mib(count: int) -> str:
    return f"{count / 2**20:,.1f} MiB"


def _digest(tensors: Mapping[str, Tensor]) -> str:
    digest = hashlib.sha256()
    for name, tensor in sorted(tensors.items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().data)
    return digest.hexdigest()
