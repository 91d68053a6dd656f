"""Opens a backbone by its name, whatever kind of checkpoint it is, at its own stride or another."""

from __future__ import annotations

import difflib
from dataclasses import replace
from pathlib import Path

from adapterbank.backbone.backbone import Backbone
from adapterbank.backbone.checkpoints.assemble import assemble, fingerprint
from adapterbank.backbone.checkpoints.embedded import EMBEDDED, EMBEDDED_POOLING, pooling_of
from adapterbank.backbone.checkpoints.huggingface import classifier_of, from_folder
from adapterbank.backbone.checkpoints.original import SUFFIXES, translate
from adapterbank.backbone.embedding import at_stride
from adapterbank.errors import BackboneError, ConfigError
from adapterbank.files import read_tensors


def load_backbone(name_or_folder: str | Path, *, stride: int | None = None) -> Backbone:
    """Opens a backbone on the CPU, in fp32.

    Args:
        name_or_folder: "ast-mini-2" (inside this package), a folder with `config.json` and weights as
            `save_pretrained` writes them, a Hugging Face hub id such as "MIT/ast-finetuned-audioset-10-10-0.4593", or
            a `.pth` file of the AST or SSAST repository such as "audioset_10_10_0.4593.pth".
        stride: of the patches, in place of the checkpoint's own: 10 is how AAT and SSAST's authors run SSAST, which is
            pretrained at 16. Positions are interpolated, the fingerprint is another, and a classifier is left out.

    Raises:
        BackboneError: not found, not an AST, unreadable, or tensors that do not fit the configuration.
    """
    source = str(name_or_folder)
    path = Path(source).expanduser()
    backbone = _from_file(path, stride) if _is_original(path) else from_folder(source)
    backbone = replace(backbone, pooling=pooling_of(backbone.fingerprint) or backbone.pooling)  # before the stride
    if stride is not None:
        backbone = _restride(backbone, stride)
    if source in EMBEDDED:
        return replace(backbone, source=source, pooling=EMBEDDED_POOLING[source])
    return replace(backbone, source=source if not path.exists() else str(path.resolve()))


def at_its_stride(backbone: Backbone, stride: int | None) -> Backbone:
    """The backbone itself, if its patches are at this stride already; None asks for nothing.

    Positions were interpolated when it was opened. To do that a second time would give another backbone than opening
    the checkpoint at the new stride.

    Raises:
        ConfigError: they are at another stride.
    """
    sizes = backbone.geometry
    own = (sizes.frequency_stride, sizes.time_stride)
    if stride is None or (type(stride) is int and own == (stride, stride)):
        return backbone
    raise another_stride(stride, backbone.source, own[0] if own[0] == own[1] else own)


def another_stride(stride: object, source: str, has: object) -> ConfigError:
    """The error for a stride that a backbone at the stride `has` was asked for."""
    return ConfigError(
        f"got stride={stride!r}, but this backbone ({source}) was opened or saved with patches at a stride of {has}. "
        "Leave the argument out; for another stride, start a new bank from the checkpoint."
    )


def _is_original(path: Path) -> bool:
    return path.suffix.lower() in SUFFIXES and not path.is_dir()


def _from_file(path: Path, stride: int | None) -> Backbone:
    """An original AST or SSAST."""
    if not path.is_file():
        there = [file.name for file in path.parent.glob("*") if file.suffix.lower() in SUFFIXES]
        near = difflib.get_close_matches(path.name, there, n=1)
        guess = f" Did you mean {str(path.with_name(near[0]))!r}?" if near else ""
        raise BackboneError(
            f"there is no file {path}.{guess} Download the checkpoint from the AST or SSAST repository and pass its "
            "path."
        )
    geometry, body, head, mean, std = translate(read_tensors(path), path, stride)
    backbone = assemble(geometry, body, path, mean, std, sizes_from="the sizes that its other tensors imply")
    return replace(backbone, classifier=classifier_of(head, {}, geometry, path))


def _restride(backbone: Backbone, stride: int) -> Backbone:
    """The backbone with its patches cut at another stride; at its own, the same with that on record."""
    sizes = backbone.geometry
    if type(stride) is int and (sizes.frequency_stride, sizes.time_stride) == (stride, stride):
        return replace(backbone, stride=stride)
    embed = backbone.weights.embed
    geometry, table = at_stride(sizes, embed.positions, stride)
    weights = backbone.weights._replace(embed=embed._replace(positions=table))
    found = fingerprint(geometry, dict(weights.named()))
    return replace(backbone, geometry=geometry, weights=weights, fingerprint=found, classifier=None, stride=stride)
