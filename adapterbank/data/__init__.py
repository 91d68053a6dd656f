"""Labelled audio: folders as datasets, and the datasets known by name. `read_audio` is that of `adapterbank.audio`."""

from adapterbank.audio.mel import SAMPLE_RATE
from adapterbank.audio.read import read_audio
from adapterbank.data.catalog import DatasetInfo, lookup, names
from adapterbank.data.check import DatasetReport, Finding
from adapterbank.data.folder import FolderDataset, demo_tasks, load_folder
from adapterbank.data.standard import check_splits, standard_splits
from adapterbank.data.statistics import MeanStd, mean_std

__all__ = [
    "SAMPLE_RATE",
    "DatasetInfo",
    "DatasetReport",
    "Finding",
    "FolderDataset",
    "MeanStd",
    "check_splits",
    "demo_tasks",
    "load_folder",
    "lookup",
    "mean_std",
    "names",
    "read_audio",
    "standard_splits",
]
