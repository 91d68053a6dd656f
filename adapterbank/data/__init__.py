"""Labelled audio: folders as datasets, and the datasets known by name. `read_audio` is that of `adapterbank.audio`."""

from adapterbank.audio.mel import SAMPLE_RATE
from adapterbank.audio.read import read_audio
from adapterbank.data.catalog import DatasetInfo, lookup, names
from adapterbank.data.folder import FolderDataset, demo_tasks, load_folder, standard_splits

__all__ = [
    "SAMPLE_RATE",
    "DatasetInfo",
    "FolderDataset",
    "demo_tasks",
    "load_folder",
    "lookup",
    "names",
    "read_audio",
    "standard_splits",
]
