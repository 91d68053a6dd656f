"""What several test files share. Nothing here reaches the network."""

from __future__ import annotations

import json
import os
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

os.environ.setdefault("MPLBACKEND", "Agg")
os.environ.setdefault("HF_HUB_OFFLINE", "1")

import pytest
import torch
import torch.nn.functional as F
import torchaudio.functional
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from adapterbank.audio.resampling import DEFAULT_KERNEL, KERNELS
from adapterbank.backbone.backbone import Backbone
from adapterbank.backbone.checkpoints import fingerprint
from adapterbank.backbone.checkpoints.opening import load_backbone
from adapterbank.backbone.kernels import forced
from adapterbank.backbone.weights import ASTWeights, BlockWeights, Geometry, expected_shapes
from adapterbank.bank import AdapterBank
from adapterbank.data import demo_tasks, load_folder
from adapterbank.routing.run import mels_of

ROOT = Path(__file__).resolve().parent.parent

# Our linears -> their names inside a block of transformers' AST: from 5.9, and before, which files on disk keep.
LINEARS = {
    "q": ("attention.q_proj", "attention.attention.query"),
    "k": ("attention.k_proj", "attention.attention.key"),
    "v": ("attention.v_proj", "attention.attention.value"),
    "proj": ("attention.o_proj", "attention.output.dense"),
    "fc1": ("mlp.fc1", "intermediate.dense"),
    "fc2": ("mlp.fc2", "output.dense"),
}
RENAMED = {"transformer.layers.": "transformer.encoder.layer."} | {
    f".{new}.": f".{old}." for new, old in LINEARS.values()
}


@dataclass(frozen=True)
class HFBlock:
    """One block of transformers' AST, whatever this version calls its parts.

    Attributes:
        linears: our names of its linears -> the names of the modules in the whole model.
    """

    module: nn.Module
    linears: dict[str, str]

    def __call__(self, x: Tensor) -> Tensor:
        return self.module(x)

    def attention(self, x: Tensor) -> Tensor:
        """Of the normed tokens, without the residual."""
        output = self.module.attention(x)
        return output[0] if isinstance(output, tuple) else output

    def mlp(self, x: Tensor) -> Tensor:
        """Of the normed tokens, without the residual."""
        block = self.module
        return block.mlp(x) if hasattr(block, "mlp") else block.output.dense(block.intermediate(x))


@pytest.fixture(scope="session")
def at_16_khz() -> Callable[[Tensor, int], Tensor]:
    """A waveform (T,) of another rate at 16 kHz: torchaudio's resampling, with the kernel that is our default."""
    kernel = KERNELS[DEFAULT_KERNEL]

    def resampled(clip: Tensor, rate: int) -> Tensor:
        found = torchaudio.functional.resample(
            clip.double(),  # in fp32 it would round the weights on the way
            rate,
            16_000,
            lowpass_filter_width=kernel.zeros,
            rolloff=kernel.rolloff,
            resampling_method="sinc_interp_kaiser",
            beta=kernel.beta,
        )
        return found.float()

    return resampled


@pytest.fixture(autouse=True)
def seed() -> None:
    """The same random inputs in every run."""
    torch.manual_seed(0)


@pytest.fixture
def shared_data() -> Path:
    """Real recordings that are not part of the project; tests that need them skip where they are absent."""
    folder = ROOT.parent / "shared" / "data"
    if not folder.is_dir():
        pytest.skip(f"no real recordings at {folder}")
    return folder


@pytest.fixture(params=["cpu", "cuda"])
def device(request: pytest.FixtureRequest) -> torch.device:
    """Each device of this machine."""
    if request.param == "cuda" and not torch.cuda.is_available():
        pytest.skip("no CUDA device")
    return torch.device(request.param)


@pytest.fixture(scope="session")
def labelled_clips() -> list[tuple[Tensor, str]]:
    """Twelve real recordings of three classes, of several lengths up to 0.8 s: (waveform (T,), class name)."""
    dataset = load_folder(demo_tasks()["instruments"])
    chosen: dict[str, list[Tensor]] = {"bass": [], "brass": [], "organ": []}
    for waveform, label in (dataset[index] for index in range(0, len(dataset), 3)):
        if label in chosen and len(chosen[label]) < 4:
            chosen[label].append(waveform[: 12_800 - 1000 * len(chosen[label])])
    return [(waveforms[i], label) for i in range(4) for label, waveforms in chosen.items()]


@pytest.fixture(scope="session")
def clips() -> list[Tensor]:
    """Six real recordings of the three demo tasks, of different lengths from 0.3 to 1 s."""
    datasets = [load_folder(folder) for folder in demo_tasks().values()]
    waveforms = [dataset[index][0] for index in (3, 40) for dataset in datasets]
    return [w[: 5000 + 2200 * place] for place, w in enumerate(waveforms)]


@pytest.fixture(scope="session")
def small_geometry() -> Geometry:
    return Geometry(
        layers=2, width=48, heads=3, mlp_width=96, max_frames=128, frequency_stride=16, time_stride=16, eps=1e-6
    )


@pytest.fixture(scope="session")
def random_backbone() -> Callable[..., Backbone]:
    """Makes a backbone with every tensor random: nothing is hidden by zero positions or unit gains."""

    def make(geometry: Geometry, seed: int = 0, qkv_bias: bool = True) -> Backbone:
        generator = torch.Generator().manual_seed(seed)
        tensors = {}
        for name, shape in expected_shapes(geometry, qkv_bias).items():
            noise = torch.randn(shape, generator=generator)
            gain = name.endswith(("ln1_weight", "ln2_weight", "norm.weight"))
            tensors[name] = 1 + 0.1 * noise if gain else noise * shape[-1] ** -0.5
        weights = ASTWeights.from_named(tensors, geometry.layers)
        return Backbone(geometry, weights, "random", fingerprint(geometry, tensors))

    return make


@pytest.fixture(scope="session")
def small_backbone(random_backbone: Callable[..., Backbone], small_geometry: Geometry) -> Backbone:
    return random_backbone(small_geometry)


@pytest.fixture(scope="session")
def randomise() -> Callable[..., None]:
    """Adds noise to every parameter of a module, as training would."""

    def change(module: nn.Module, seed: int = 0, scale: float = 0.1) -> None:
        generator = torch.Generator().manual_seed(seed)
        with torch.no_grad():
            for parameter in module.parameters():
                parameter += (scale * torch.randn(parameter.shape, generator=generator)).to(parameter.device)

    return change


class _CountsTokens(TorchFunctionMode):
    """Counts, by the name of their matrix, the tokens that F.linear is given."""

    def __init__(self, names: dict[int, str]):
        super().__init__()
        self.names, self.counts = names, Counter[str]()

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is F.linear and id(args[1]) in self.names:
            self.counts[self.names[id(args[1])]] += args[0].shape[:-1].numel()
        return func(*args, **kwargs or {})


@pytest.fixture
def tokens_per_linear() -> Callable[[ASTWeights | BlockWeights], AbstractContextManager[Counter[str]]]:
    """`with tokens_per_linear(weights) as counts`: how many tokens run through each frozen linear within it.

    Tokens of prompts that are only keys and values count too. The name is that of the matrix, such as "q_weight" in
    the weights of a block and "blocks.1.q_weight" in those of an AST. Within it every linear is `F.linear`.
    """

    @contextmanager
    def counted(weights: ASTWeights | BlockWeights) -> Iterator[Counter[str]]:
        named = weights._asdict().items() if isinstance(weights, BlockWeights) else weights.named()
        with forced(onednn=()), _CountsTokens({id(tensor): name for name, tensor in named}) as mode:
            yield mode.counts

    return counted


@pytest.fixture
def small_bank(small_backbone: Backbone, randomise: Callable[..., None]) -> AdapterBank:
    """Six tasks of six methods, as if trained."""
    bank = AdapterBank(small_backbone)
    for seed, (name, method) in enumerate(
        {
            "notes": "aat_ms",
            "tones": "prompt",
            "studio": "partial",
            "mix": "joint",
            "own": "full",
            "probe": "head",
        }.items()
    ):
        bank.add_task(name, method, num_classes=3 + seed % 3)
        randomise(bank.task(name), seed)
    return bank


@pytest.fixture
def hf_model() -> Callable[..., Any]:
    """Makes transformers' AST with a classifier and every tensor random; keywords go to its ASTConfig."""

    def make(seed: int = 0, **config: Any) -> Any:
        from transformers import ASTConfig, ASTForAudioClassification

        sizes = {"hidden_size": 48, "num_hidden_layers": 2, "num_attention_heads": 3, "intermediate_size": 96}
        model = ASTForAudioClassification(ASTConfig(**{**sizes, "max_length": 128, **config})).eval()
        generator = torch.Generator().manual_seed(seed)
        for name, parameter in model.named_parameters():
            noise = torch.randn(parameter.shape, generator=generator)
            gain = "layernorm" in name and name.endswith("weight")
            parameter.data = 1 + 0.1 * noise if gain else noise * parameter.shape[-1] ** -0.5
        return model

    return make


@pytest.fixture
def hf_blocks() -> Callable[[Any], list[HFBlock]]:
    """The blocks of an ASTForAudioClassification."""

    def blocks(model: Any) -> list[HFBlock]:
        body = model.audio_spectrogram_transformer
        new = hasattr(body, "layers")
        prefix = f"audio_spectrogram_transformer.{'layers' if new else 'encoder.layer'}"
        return [
            HFBlock(module, {name: f"{prefix}.{place}.{names[not new]}" for name, names in LINEARS.items()})
            for place, module in enumerate(body.layers if new else body.encoder.layer)
        ]

    return blocks


@pytest.fixture
def hf_folder(tmp_path: Path) -> Callable[..., Path]:
    """Writes a model as transformers does: its configuration, tensors by new or old names, and the extractor's mean."""

    def write(
        model: Any, *, names: str = "old", file: str = "model.safetensors", preprocessor: dict[str, Any] | None = None
    ) -> Path:
        folder = tmp_path / f"hf-{len(list(tmp_path.iterdir()))}"
        folder.mkdir()
        (folder / "config.json").write_text(json.dumps(model.config.to_dict()))
        if preprocessor is not None:
            (folder / "preprocessor_config.json").write_text(json.dumps(preprocessor))
        tensors = {key: tensor.contiguous() for key, tensor in model.state_dict().items()}
        for new, old in RENAMED.items():
            given, wanted = (new, old) if names == "old" else (old, new)
            tensors = {key.replace(given, wanted): tensor for key, tensor in tensors.items()}
        if file.endswith(".bin"):
            torch.save(tensors, folder / file)
        else:
            save_file(tensors, folder / file)
        return folder

    return write


# -- peft -------------------------------------------------------------------------------------------------------------


@pytest.fixture
def peft_base(hf_model: Callable[..., Any]) -> Any:
    """What peft wraps: transformers' AST with three classes."""
    return hf_model(frequency_stride=16, time_stride=16, num_labels=3)


@pytest.fixture
def lora_bank(peft_base: Any, hf_folder: Callable[..., Path]) -> AdapterBank:
    """A bank on the body of `peft_base`, with a task that nobody should touch."""
    bank = AdapterBank(load_backbone(hf_folder(peft_base)))
    bank.add_task("other", "prompt", num_classes=2)
    return bank


@pytest.fixture
def clip(clips: list[Tensor]) -> Tensor:
    """128 frames, the length of `peft_base`."""
    return clips[4].repeat(9)[: (128 - 1) * 160 + 400]


@pytest.fixture
def heard(lora_bank: AdapterBank) -> Callable[..., Tensor]:
    """A clip as the model of transformers takes it."""

    def spectrogram(clip: Tensor, mean_std: tuple[float, float] | None = None) -> Tensor:
        mean, std = mean_std or (lora_bank.backbone.mean, lora_bank.backbone.std)
        (mel,) = mels_of(lora_bank.backbone, [clip])
        return ((mel - mean) / (2 * std))[None]

    return spectrogram


@pytest.fixture
def in_peft(
    peft_base: Any, hf_blocks: Callable[[Any], list[HFBlock]], randomise: Callable[..., Any]
) -> Callable[..., Any]:
    """Wraps `peft_base` in a trained adapter of peft: keywords go to its LoraConfig."""
    peft = pytest.importorskip("peft")

    def wrap(
        targets: Sequence[str] = ("q", "v"), layers: Sequence[int] = (0, 1), body: bool = False, **options: Any
    ) -> Any:
        if "target_modules" not in options:
            blocks = hf_blocks(peft_base)
            names = [blocks[layer].linears[name] for layer in layers for name in targets]
            options["target_modules"] = [name.partition(".")[2] for name in names]
        config = peft.LoraConfig(**{"r": 4, "lora_alpha": 12, "modules_to_save": ["classifier"], **options})
        wrapped = peft.get_peft_model(peft_base.audio_spectrogram_transformer if body else peft_base, config).eval()
        trained = [p for p in wrapped.parameters() if p.requires_grad]
        assert trained
        randomise(nn.ParameterList(trained), seed=5, scale=0.2)
        return wrapped

    return wrap


@pytest.fixture
def peft_folder(in_peft: Callable[..., Any], tmp_path: Path) -> Path:
    """What peft saves."""
    folder = tmp_path / "Bird songs (v2)"
    in_peft().save_pretrained(folder)
    return folder
