"""What a checkpoint's preprocessor_config.json says: how its log-mels are normalised, and whether they are ours.

transformers' `ASTFeatureExtractor` has few settings. We make spectrograms of 16 kHz with the sizes of the model; a
checkpoint that was trained on others would hear something else from us than it was trained on, so it is refused.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from adapterbank.audio.mel import AUDIOSET_MEAN, AUDIOSET_STD, SAMPLE_RATE
from adapterbank.backbone.weights import Geometry
from adapterbank.errors import BackboneError
from adapterbank.files import read_json
from adapterbank.numbers import is_real

EXTRACTOR = "preprocessor_config.json"
_TYPE = "ASTFeatureExtractor"
_OWN_SCALE = (0.0, 0.5)  # (mel - 0) / (2 * 0.5): as it is


def normalisation(folder: Path, geometry: Geometry | None = None) -> tuple[float, float] | None:
    """(mean, std) of the feature extractor whose settings lie in a folder; None without one.

    Args:
        geometry: of the model beside it, whose sizes the extractor has to share.

    Raises:
        BackboneError: the extractor makes other spectrograms than we do.
    """
    path = folder / EXTRACTOR
    if not path.is_file():
        return None
    config = read_json(path)
    expected: dict[str, Any] = {"sampling_rate": SAMPLE_RATE, "feature_size": 1}
    if geometry is not None:
        expected |= {"num_mel_bins": geometry.mel_bins, "max_length": geometry.max_frames}
    for key, value in expected.items():
        if (got := config.get(key, value)) != value:
            unit = {"sampling_rate": " Hz", "num_mel_bins": " as its config.json", "max_length": " as its config.json"}
            raise BackboneError(
                f"{path} has {key} {got!r}, expected {value}{unit.get(key, '')}: the model was trained on other "
                "spectrograms than this library makes. If the entry is wrong, correct it there; else take a checkpoint "
                f"for {SAMPLE_RATE // 1000} kHz whose extractor fits its model."
            )
    if (kind := config.get("feature_extractor_type", _TYPE)) != _TYPE:
        raise BackboneError(f"{path} is of a {kind!r}, expected {_TYPE!r}, whose spectrograms are the ones made here.")
    normalises = config.get("do_normalize", True)
    if not isinstance(normalises, bool):
        raise BackboneError(f"{path} has do_normalize {normalises!r}, expected true or false.")
    if not normalises:
        return _OWN_SCALE
    mean, std = config.get("mean", AUDIOSET_MEAN), config.get("std", AUDIOSET_STD)
    if not (is_real(mean) and is_real(std) and std > 0):
        raise BackboneError(f"{path} has mean {mean!r} and std {std!r}, expected finite numbers and a positive std.")
    return float(mean), float(std)
