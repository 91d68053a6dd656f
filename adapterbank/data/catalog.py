"""Datasets known by name: `add_task("speechcommands")` takes labels and clip length from here. No downloads."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from adapterbank.errors import LabelsError
from adapterbank.numbers import is_whole
from adapterbank.text import amount, nfc


@dataclass(frozen=True)
class DatasetInfo:
    """What a task on a well-known dataset needs, and how a person gets its audio.

    Attributes:
        name: as the bank writes it.
        title: the dataset as its authors name it.
        labels: its classes in their official order.
        clip_seconds: length of its clips; None: clips differ, each is taken at its own length.
        multilabel: whether a clip may have several labels.
        licence: of the audio.
        url: where it is described.
        how_to_get: what to download, and what `load_folder` then reads.
        aliases: other names under which people know it.
    """

    name: str
    title: str
    labels: tuple[str, ...]
    clip_seconds: float | None
    multilabel: bool
    licence: str
    url: str
    how_to_get: str
    aliases: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if len(set(self.labels)) != len(self.labels):
            doubled = sorted({label for label in self.labels if self.labels.count(label) > 1})
            raise LabelsError(f"dataset {self.name!r} lists labels twice: {', '.join(doubled)}; each may stand once.")


_SPEECH_COMMANDS_V1 = tuple(
    "bed bird cat dog down eight five four go happy house left marvin nine no off on one right seven sheila six stop "
    "three tree two up wow yes zero".split()
)
_SPEECH_COMMANDS_V2 = tuple(sorted((*_SPEECH_COMMANDS_V1, "backward", "follow", "forward", "learn", "visual")))
_SPEECH_URL = "http://download.tensorflow.org/data/speech_commands_v0.0{}.tar.gz"
_IN_PACKAGE = "Comes with adapterbank: load_folder(demo_tasks()[{!r}])."
_DEMO_URL = "adapterbank/data/demo/LICENCES.md"

_ENTRIES = (
    DatasetInfo(
        name="esc50",
        title="ESC-50: environmental sounds",
        labels=tuple(  # in the order of its target column, 0 to 49
            "dog rooster pig cow frog cat hen insects sheep crow "
            "rain sea_waves crackling_fire crickets chirping_birds water_drops wind pouring_water toilet_flush "
            "thunderstorm crying_baby sneezing clapping breathing coughing footsteps laughing brushing_teeth snoring "
            "drinking_sipping door_wood_knock mouse_click keyboard_typing door_wood_creaks can_opening washing_machine "
            "vacuum_cleaner clock_alarm clock_tick glass_breaking "
            "helicopter chainsaw siren car_horn engine train church_bells airplane fireworks hand_saw".split()
        ),
        clip_seconds=5.0,
        multilabel=False,
        licence="CC BY-NC 3.0",
        url="https://github.com/karolpiczak/ESC-50",
        how_to_get="Unpack the repository's ZIP (ESC-50-master.zip) and read the folder ESC-50-master.",
        aliases=("esc-50",),
    ),
    DatasetInfo(
        name="urbansound8k",
        title="UrbanSound8K",
        labels=tuple(  # in the order of its classID column, 0 to 9
            "air_conditioner car_horn children_playing dog_bark drilling engine_idling gun_shot jackhammer siren "
            "street_music".split()
        ),
        clip_seconds=4.0,
        multilabel=False,
        licence="CC BY-NC 3.0",
        url="https://urbansounddataset.weebly.com/urbansound8k.html",
        how_to_get="Ask for UrbanSound8K.tar.gz there, unpack it and read the folder UrbanSound8K.",
        aliases=("us8k", "urbansound"),
    ),
    DatasetInfo(
        name="speechcommands",
        title="Speech Commands v0.02",
        labels=_SPEECH_COMMANDS_V2,
        clip_seconds=1.0,
        multilabel=False,
        licence="CC BY 4.0",
        url=_SPEECH_URL.format(2),
        how_to_get="Unpack the archive into an empty folder and read that folder.",
        aliases=("speechcommands_v2", "speech_commands", "speech_commands_v2", "speech_commands_v0.02", "gsc"),
    ),
    DatasetInfo(
        name="speechcommands_v1",
        title="Speech Commands v0.01",
        labels=_SPEECH_COMMANDS_V1,
        clip_seconds=1.0,
        multilabel=False,
        licence="CC BY 4.0",
        url=_SPEECH_URL.format(1),
        how_to_get="Unpack the archive into an empty folder and read that folder.",
        aliases=("speech_commands_v1", "speech_commands_v0.01"),
    ),
    DatasetInfo(
        name="gtzan",
        title="GTZAN: music genres",
        labels=tuple("blues classical country disco hiphop jazz metal pop reggae rock".split()),
        clip_seconds=30.0,
        multilabel=False,
        licence="research use only",
        url="https://huggingface.co/datasets/marsyas/gtzan",
        how_to_get="Unpack genres.tar.gz and read the folder genres.",
    ),
    DatasetInfo(
        name="openmic",
        title="OpenMIC-2018: instruments in music",
        labels=tuple(
            "accordion banjo bass cello clarinet cymbals drums flute guitar mallet_percussion mandolin organ piano "
            "saxophone synthesizer trombone trumpet ukulele violin voice".split()
        ),
        clip_seconds=10.0,
        multilabel=True,
        licence="CC BY 4.0",
        url="https://zenodo.org/records/1432913",
        how_to_get=(
            "Unpack openmic-2018-v1.0.0.tgz and write a metadata.csv (filename,label,split) beside its audio; several "
            "labels are separated by ';'."
        ),
        aliases=("openmic2018", "openmic-2018", "openmic_2018"),
    ),
    DatasetInfo(
        name="instruments",
        title="Instrument families of the FluidR3 soundfont",
        labels=tuple("bass brass chromatic_perc ensemble guitar organ piano pipe reed strings".split()),
        clip_seconds=None,
        multilabel=False,
        licence="MIT",
        url=_DEMO_URL,
        how_to_get=_IN_PACKAGE.format("instruments"),
    ),
    DatasetInfo(
        name="mandarin_tones",
        title="Lexical tones of Mandarin syllables",
        labels=("tone1", "tone2", "tone3", "tone4"),
        clip_seconds=None,
        multilabel=False,
        licence="CC BY 3.0",
        url=_DEMO_URL,
        how_to_get=_IN_PACKAGE.format("mandarin_tones"),
    ),
    DatasetInfo(
        name="studio_samples",
        title="Studio samples of Sonic Pi",
        labels=tuple("ambient bass bass_drum electronic hihat_cymbal loop percussion snare tabla".split()),
        clip_seconds=None,
        multilabel=False,
        licence="CC0 1.0",
        url=_DEMO_URL,
        how_to_get=_IN_PACKAGE.format("studio_samples"),
    ),
)
_BY_NAME = {key: info for info in _ENTRIES for key in (info.name, *info.aliases)}


def lookup(name: str) -> DatasetInfo | None:
    """The dataset of this name or alias, in any case of letters; None if it is not known."""
    return _BY_NAME.get(name.lower())


def names() -> tuple[str, ...]:
    """The names of all known datasets, sorted, without aliases."""
    return tuple(sorted(info.name for info in _ENTRIES))


def labels_of(name: str, labels: Sequence[str] | None, num_classes: int | None) -> tuple[str, ...]:
    """Class names of a task that is no known dataset: those given, or numbers. Raises LabelsError."""
    if labels is None:
        if num_classes is None:
            raise LabelsError(
                f"the task {name!r} needs labels=[...] or num_classes=...; "
                f"only known datasets bring their own: {', '.join(names())}."
            )
        if not is_whole(num_classes):
            raise LabelsError(f"got num_classes={num_classes!r}, expected a positive integer.")
        return tuple(str(i) for i in range(num_classes))
    given = _in_order(labels)
    if num_classes is not None and num_classes != len(given):
        raise LabelsError(f"got {amount(len(given), 'label')} and num_classes={num_classes}; give one of them.")
    return given


def _in_order(labels: Any) -> tuple[str, ...]:
    """Class names in the order of the logits: of any iterable with an order, {index: name} or {name: index}."""
    if type(labels).__name__ == "ClassLabel":  # of `datasets`
        labels = labels.names
    if isinstance(labels, (set, frozenset)):
        raise LabelsError(
            f"got a {type(labels).__name__} as labels, which has no order: a class is known by its place in the list. "
            "Expected a list, such as sorted(labels) or dataset.labels."
        )
    if isinstance(labels, Mapping):
        by_index = all(isinstance(key, int) for key in labels)
        name_of = labels if by_index else {index: name for name, index in labels.items()}
        if set(name_of) != set(range(len(labels))):
            raise LabelsError(
                f"got the labels {str(dict(labels))[:80]}, expected {{0: 'name', 1: ...}} or {{'name': 0, ...}} with "
                f"each index from 0 to {len(labels) - 1} once; or a list of names."
            )
        labels = [name_of[index] for index in range(len(labels))]
    if isinstance(labels, (str, bytes)) or not isinstance(labels, Iterable):
        raise LabelsError(f"got {labels!r} as labels, expected a list of class names.")
    return tuple(nfc(str(label)) if isinstance(label, str) else label for label in labels)  # str: also of NumPy's
