"""Backbones from disk or hub: ast-mini, any Hugging Face AST by either naming scheme, original `.pth` files.

Every checkpoint is brought to the canonical names of `ASTWeights.named`; the fingerprint is taken there, so that old
and new Hugging Face names, and a base cast to bf16, are the same backbone.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import snapshot_download
from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError
from torch import Tensor

from adapterbank.backbone.ast import PREFIX_TOKENS, ASTWeights, Geometry, at_stride
from adapterbank.backbone.files import check_digest, read_json, read_tensors
from adapterbank.backbone.frontend import AUDIOSET_MEAN, AUDIOSET_STD, HOP, SAMPLE_RATE, WINDOW
from adapterbank.backbone.names import CLASSIFIER, PREFIX, canonical
from adapterbank.backbone.original import SUFFIXES, translate
from adapterbank.errors import BackboneError

EMBEDDED = {"ast-mini": Path(__file__).parent / "weights" / "ast-mini"}
EMBEDDED_SHA256 = {"ast-mini": "d2a25938c9220d143f5a47886bc307cfd14db1335383954cd9a9017bcbc6ab88"}  # of the weights
AUDIOSET_CLASSES = 527
MODEL_TYPE = "audio-spectrogram-transformer"
INIT_STD = 0.02  # `initializer_range` of transformers' ASTConfig
WEIGHT_FILES = ("model.safetensors", "pytorch_model.bin")


@dataclass(frozen=True)
class Classifier:
    """The head that a checkpoint brought: LayerNorm and Linear tensors by the names of our `Head`."""

    tensors: Mapping[str, Tensor]
    labels: tuple[str, ...]
    multilabel: bool


@dataclass(frozen=True)
class Backbone:
    """A frozen AST and what has to be known about it.

    Attributes:
        source: the name, folder or file it was loaded from, by which a saved bank finds it again.
        mean, std: of log-mels in its training; inputs are `(mel - mean) / (2 std)`.
        fingerprint: SHA-256 over geometry and canonical fp32 values.
        stride: what was asked for at loading, which a saved bank repeats; None: the checkpoint's own.
    """

    geometry: Geometry
    weights: ASTWeights
    source: str
    fingerprint: str
    mean: float = AUDIOSET_MEAN
    std: float = AUDIOSET_STD
    classifier: Classifier | None = None
    stride: int | None = None

    def to(self, device: torch.device | str | None = None, dtype: torch.dtype | None = None) -> Backbone:
        """On another device, or with frozen linears of another dtype. The fingerprint stays: the same backbone.

        Raises:
            BackboneError: a dtype that frozen linears cannot have.
        """
        return replace(self, weights=self.weights.to(device, dtype))

    @property
    def device(self) -> torch.device:
        return self.weights.embed.cls.device

    @property
    def dtype(self) -> torch.dtype:
        """What the frozen linears multiply in; of an int8 base that is bf16."""
        return self.weights.embed.patch_weight.dtype

    @property
    def clip_seconds(self) -> float:
        """Of its whole position table."""
        return ((self.geometry.max_frames - 1) * HOP + WINDOW) / SAMPLE_RATE

    def parameters(self) -> int:
        """How many numbers the body holds."""
        return sum(tensor.numel() for _, tensor in self.weights.named())


def load_backbone(name_or_folder: str | Path, *, stride: int | None = None) -> Backbone:
    """Opens a backbone on the CPU, in fp32.

    Args:
        name_or_folder: "ast-mini" (inside this package), a folder with `config.json` and weights as
            `save_pretrained` writes them, a Hugging Face hub id such as "MIT/ast-finetuned-audioset-10-10-0.4593", or
            a `.pth` file of the AST or SSAST repository such as "audioset_10_10_0.4593.pth".
        stride: of the patches, in place of the checkpoint's own: 10 is how AAT and SSAST's authors run SSAST, which is
            pretrained at 16. Positions are interpolated, the fingerprint is another, and a classifier is left out.

    Raises:
        BackboneError: not found, not an AST, unreadable, or tensors that do not fit the configuration.
    """
    source = str(name_or_folder)
    path = Path(source).expanduser()
    backbone = _from_file(path, stride) if _is_original(path) else _from_folder(source)
    if stride is not None:
        backbone = _restride(backbone, stride)
    return replace(backbone, source=source if source in EMBEDDED or not path.exists() else str(path.resolve()))


def _is_original(path: Path) -> bool:
    return path.suffix.lower() in SUFFIXES and not path.is_dir()


def _from_file(path: Path, stride: int | None) -> Backbone:
    """An original AST or SSAST."""
    if not path.is_file():
        raise BackboneError(
            f"there is no file {path}. Download the checkpoint from the AST or SSAST repository and pass its path."
        )
    geometry, body, head, mean, std = translate(read_tensors(path), path, stride)
    backbone = _assemble(geometry, body, path, mean, std)
    return replace(backbone, classifier=_classifier(head, {}, geometry, path))


def _from_folder(name: str) -> Backbone:
    """An embedded backbone, or a Hugging Face AST."""
    folder = _find(name)
    if name in EMBEDDED:
        check_digest(folder / WEIGHT_FILES[0], EMBEDDED_SHA256[name])
    config = read_json(folder / "config.json")
    geometry = _geometry(config, folder)
    body, head = _canonical(_read_weights(folder), folder)
    qkv_bias = bool(config.get("qkv_bias", True))
    backbone = _assemble(geometry, body, folder, *_normalisation(folder), qkv_bias=qkv_bias)
    return replace(backbone, classifier=_classifier(head, config, geometry, folder))


def _assemble(
    geometry: Geometry, body: dict[str, Tensor], where: Path, mean: float, std: float, qkv_bias: bool = True
) -> Backbone:
    """Flattens what checkpoints keep in more axes, checks every tensor and takes the fingerprint."""
    flat = {"embed.patch_weight": (1, -1), "embed.cls": (0, -1), "embed.dist": (0, -1), "embed.positions": (0, 1)}
    for name, (first, last) in flat.items():
        if name in body and body[name].ndim > 1:
            body[name] = body[name].flatten(first, last)
    _check_shapes(body, geometry, qkv_bias, where)
    weights = ASTWeights.from_named(body, geometry.layers)
    return Backbone(geometry, weights, str(where), fingerprint(geometry, body), mean, std)


def _restride(backbone: Backbone, stride: int) -> Backbone:
    """The backbone with its patches cut at another stride; at its own, the same with that on record."""
    sizes = backbone.geometry
    if type(stride) is int and (sizes.frequency_stride, sizes.time_stride) == (stride, stride):
        return replace(backbone, stride=stride)
    embed = backbone.weights.embed
    geometry, table = at_stride(sizes, embed.positions, stride)
    weights = backbone.weights._replace(embed=embed._replace(positions=table))
    mark = fingerprint(geometry, dict(weights.named()))
    return replace(backbone, geometry=geometry, weights=weights, fingerprint=mark, classifier=None, stride=stride)


def random_backbone(like: Backbone, seed: int = 0) -> Backbone:
    """An untrained AST of the same sizes: the baseline of any pretraining.

    Truncated normal of deviation 0.02 for every matrix, token and position, norms 1, biases 0: how DeiT, and with it
    the original AST, starts. (transformers' `_init_weights` leaves tokens and positions at zero.)
    """
    generator = torch.Generator().manual_seed(seed)

    def draw(name: str, tensor: Tensor) -> Tensor:
        if name.endswith("bias"):
            return torch.zeros_like(tensor)
        if "ln" in name or name.startswith("norm"):
            return torch.ones_like(tensor)
        drawn = torch.empty(tensor.shape, dtype=tensor.dtype)
        return torch.nn.init.trunc_normal_(drawn, std=INIT_STD, generator=generator).to(tensor.device)

    weights = like.weights.map(draw)
    mark = fingerprint(like.geometry, dict(weights.named()))
    return replace(like, weights=weights, source="random", fingerprint=mark, classifier=None, stride=None)


def fingerprint(geometry: Geometry, tensors: Mapping[str, Tensor]) -> str:
    """SHA-256, in hexadecimal, over sizes, eps, canonical names, shapes and fp32 values."""
    digest = hashlib.sha256(json.dumps(asdict(geometry), sort_keys=True).encode())
    for name in sorted(tensors):
        tensor = tensors[name].detach().to("cpu", torch.float32).contiguous()
        digest.update(f"{name}{tuple(tensor.shape)}".encode())
        digest.update(tensor.numpy().data)
    return digest.hexdigest()


def _find(name: str) -> Path:
    if name in EMBEDDED:
        return EMBEDDED[name]
    folder = Path(name).expanduser()
    if folder.is_dir():
        if not (folder / "config.json").is_file():
            raise BackboneError(
                f"{folder} has neither config.json (a backbone) nor manifest.json (a bank). "
                f"Put config.json and {WEIGHT_FILES[0]} there, as save_pretrained writes them."
            )
        return folder
    wanted = ["config.json", "preprocessor_config.json", *WEIGHT_FILES]
    try:
        return Path(snapshot_download(name, allow_patterns=wanted))
    except (HfHubHTTPError, HFValidationError, LocalEntryNotFoundError, OSError) as error:
        raise BackboneError(
            f"no backbone {name!r}: not embedded ({', '.join(EMBEDDED)}), no such folder, and the Hugging Face hub "
            f"gave {type(error).__name__}. Without internet, put config.json, preprocessor_config.json and "
            f"{WEIGHT_FILES[0]} of that model into a folder and pass its path."
        ) from error


def _geometry(config: Mapping[str, Any], folder: Path) -> Geometry:
    if config.get("model_type") != MODEL_TYPE:
        raise BackboneError(f"{folder} is a {config.get('model_type')!r} model, expected {MODEL_TYPE!r}.")
    if (activation := config.get("hidden_act", "gelu")) != "gelu":
        raise BackboneError(f"{folder} has the activation {activation!r}, expected 'gelu' as in every published AST.")
    patch = config.get("patch_size", 16)
    if isinstance(patch, list):
        if len(set(patch)) != 1:
            raise BackboneError(f"{folder} has patches of {patch}, expected square ones.")
        patch = patch[0]
    default = Geometry()
    return Geometry(
        layers=config.get("num_hidden_layers", default.layers),
        width=config.get("hidden_size", default.width),
        heads=config.get("num_attention_heads", default.heads),
        mlp_width=config.get("intermediate_size", default.mlp_width),
        mel_bins=config.get("num_mel_bins", default.mel_bins),
        max_frames=config.get("max_length", default.max_frames),
        patch=patch,
        frequency_stride=config.get("frequency_stride", default.frequency_stride),
        time_stride=config.get("time_stride", default.time_stride),
        eps=config.get("layer_norm_eps", default.eps),
    )


def _read_weights(folder: Path) -> dict[str, Tensor]:
    path = next((folder / name for name in WEIGHT_FILES if (folder / name).is_file()), None)
    if path is None:
        raise BackboneError(f"{folder} has no weights, expected {' or '.join(WEIGHT_FILES)} beside config.json.")
    return read_tensors(path)


def _canonical(tensors: Mapping[str, Tensor], folder: Path) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    body: dict[str, Tensor] = {}
    head: dict[str, Tensor] = {}
    unknown = []
    for original, tensor in tensors.items():
        if (name := canonical(original)) is not None:
            body[name] = tensor.to(torch.float32)
        elif (name := original.removeprefix(PREFIX)) in CLASSIFIER:
            head[CLASSIFIER[name]] = tensor.to(torch.float32)
        else:
            unknown.append(original)
    if unknown:
        raise BackboneError(f"{folder} has tensors that no AST has: {', '.join(unknown[:5])}.")
    return body, head


def expected_shapes(geometry: Geometry, qkv_bias: bool = True) -> dict[str, tuple[int, ...]]:
    """Shape of every canonical tensor of an AST of this geometry."""
    d, mlp = geometry.width, geometry.mlp_width
    grid = geometry.rows * geometry.columns(geometry.max_frames)
    shapes: dict[str, tuple[int, ...]] = {
        "embed.patch_weight": (d, geometry.patch**2),
        "embed.patch_bias": (d,),
        "embed.cls": (d,),
        "embed.dist": (d,),
        "embed.positions": (PREFIX_TOKENS + grid, d),
        "norm.weight": (d,),
        "norm.bias": (d,),
    }
    linears = {"q": (d, d), "k": (d, d), "v": (d, d), "proj": (d, d), "fc1": (mlp, d), "fc2": (d, mlp)}
    for layer in range(geometry.layers):
        for norm in ("ln1", "ln2"):
            shapes[f"blocks.{layer}.{norm}_weight"] = shapes[f"blocks.{layer}.{norm}_bias"] = (d,)
        for name, shape in linears.items():
            shapes[f"blocks.{layer}.{name}_weight"] = shape
            if qkv_bias or name not in "qkv":
                shapes[f"blocks.{layer}.{name}_bias"] = shape[:1]
    return shapes


def _check_shapes(body: Mapping[str, Tensor], geometry: Geometry, qkv_bias: bool, folder: Path) -> None:
    expected = expected_shapes(geometry, qkv_bias)
    missing, extra = sorted(expected.keys() - body.keys()), sorted(body.keys() - expected.keys())
    if missing or extra:
        raise BackboneError(
            f"{folder} does not fit its config.json ({geometry.layers} layers): "
            f"missing {', '.join(missing[:3]) or 'nothing'}, unexpected {', '.join(extra[:3]) or 'nothing'}."
        )
    for name, shape in expected.items():
        if tuple(body[name].shape) != shape:
            raise BackboneError(
                f"{folder}: {name} has shape {tuple(body[name].shape)}, expected {shape} from its config.json."
            )
        if not torch.isfinite(body[name]).all():
            raise BackboneError(f"{folder}: {name} holds NaN or Inf. Fetch the file again.")


def _normalisation(folder: Path) -> tuple[float, float]:
    path = folder / "preprocessor_config.json"
    if not path.is_file():
        return AUDIOSET_MEAN, AUDIOSET_STD
    config = read_json(path)
    if config.get("do_normalize", True) is False:
        return 0.0, 0.5  # (mel - 0) / (2 * 0.5): as it is
    mean, std = config.get("mean", AUDIOSET_MEAN), config.get("std", AUDIOSET_STD)
    if not all(isinstance(value, (int, float)) and math.isfinite(value) for value in (mean, std)) or std <= 0:
        raise BackboneError(f"{path} has mean {mean!r} and std {std!r}, expected finite numbers and a positive std.")
    return float(mean), float(std)


def normalisation_in(folder: Path) -> tuple[float, float] | None:
    """(mean, std) of the feature extractor whose preprocessor_config.json lies in a folder; None without one."""
    return _normalisation(folder) if (folder / "preprocessor_config.json").is_file() else None


def _classifier(
    head: Mapping[str, Tensor], config: Mapping[str, Any], geometry: Geometry, folder: Path
) -> Classifier | None:
    if not head:
        return None
    missing = sorted(set(CLASSIFIER.values()) - head.keys())
    if missing:
        raise BackboneError(f"{folder} has an incomplete classifier: missing {', '.join(missing)}.")
    classes = head["linear.bias"].numel()
    expected = {
        "norm.weight": (geometry.width,),
        "norm.bias": (geometry.width,),
        "linear.weight": (classes, geometry.width),
        "linear.bias": (classes,),
    }
    for name, shape in expected.items():
        if (got := tuple(head[name].shape)) != shape:
            raise BackboneError(f"{folder}: {name} of the classifier has shape {got}, expected {shape}.")
        if not torch.isfinite(head[name]).all():
            raise BackboneError(f"{folder}: {name} of the classifier holds NaN or Inf. Fetch the file again.")
    names = config.get("id2label") or {}
    labels = tuple(str(names.get(str(i), i)) for i in range(classes))
    if len(set(labels)) != classes:
        labels = tuple(f"{i}:{label}" for i, label in enumerate(labels))
    multilabel = config.get("problem_type") == "multi_label_classification" or classes == AUDIOSET_CLASSES
    own = {name: tensor.clone() for name, tensor in head.items()}  # views would keep the whole mapped file in memory
    return Classifier(own, labels, multilabel)
