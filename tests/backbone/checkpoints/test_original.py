"""Original AST and SSAST files: equal to their architecture written out here; what does not fit is refused by name."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from torch import Tensor, nn

from adapterbank.audio.mel import AUDIOSET_MEAN, AUDIOSET_STD, log_mel, normalise, pad_frames
from adapterbank.backbone.backbone import Backbone
from adapterbank.backbone.checkpoints.opening import load_backbone
from adapterbank.backbone.encode import Segment, encode
from adapterbank.backbone.sites import NOTHING
from adapterbank.bank import AdapterBank
from adapterbank.errors import BackboneError, BackboneMismatchError, ConfigError


class Attention(nn.Module):
    def __init__(self, width: int):
        super().__init__()
        self.heads = width // 64
        self.qkv, self.proj = nn.Linear(width, 3 * width), nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        b, n, d = x.shape
        q, k, v = self.qkv(x).reshape(b, n, 3, self.heads, 64).permute(2, 0, 3, 1, 4)
        scores = (q @ k.transpose(-2, -1)) / 8.0
        return self.proj((scores.softmax(-1) @ v).transpose(1, 2).reshape(b, n, d))


class Block(nn.Module):
    """timm's pre-norm block."""

    def __init__(self, width: int):
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(width, eps=1e-6), nn.LayerNorm(width, eps=1e-6)
        self.attn = Attention(width)
        self.mlp = nn.Module()
        self.mlp.fc1, self.mlp.fc2 = nn.Linear(width, 2 * width), nn.Linear(2 * width, width)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attn(self.norm1(x))
        return x + self.mlp.fc2(F.gelu(self.mlp.fc1(self.norm2(x))))


class Reference(nn.Module):
    """AST by the names of its repository, with DeiT's two unused heads; `pretext` adds what SSAST's pretraining has."""

    def __init__(
        self,
        width: int = 128,
        layers: int = 2,
        grid: tuple[int, int] = (12, 101),
        stride: int = 10,
        classes: int | None = 527,
        patch: tuple[int, int] = (16, 16),
        pretext: tuple[int, int] | None = None,
    ):
        super().__init__()
        v = self.v = nn.Module()
        v.cls_token, v.dist_token = (nn.Parameter(torch.zeros(1, 1, width)) for _ in range(2))
        v.pos_embed = nn.Parameter(torch.zeros(1, 2 + grid[0] * grid[1], width))
        v.patch_embed = nn.Module()
        v.patch_embed.proj = nn.Conv2d(1, width, patch, stride)
        v.blocks = nn.ModuleList(Block(width) for _ in range(layers))
        v.norm = nn.LayerNorm(width, eps=1e-6)
        v.head, v.head_dist = nn.Linear(width, 10), nn.Linear(width, 10)
        if classes is not None:
            self.mlp_head = nn.Sequential(nn.LayerNorm(width), nn.Linear(width, classes))
        if pretext is not None:
            self.p_input_fdim, self.p_input_tdim = (
                nn.Parameter(torch.tensor(size), requires_grad=False) for size in pretext
            )
            self.mask_embed = nn.Parameter(torch.zeros(1, 1, width))
            self.cpredlayer, self.gpredlayer = (
                nn.Sequential(nn.Linear(width, width), nn.ReLU(), nn.Linear(width, 256)) for _ in range(2)
            )
        for name, parameter in self.named_parameters():
            if parameter.ndim:
                noise = torch.randn(parameter.shape)
                gain = parameter.ndim == 1 and name.endswith("weight")
                parameter.data = 1 + 0.1 * noise if gain else noise * parameter.shape[-1] ** -0.5

    def tokens(self, mel: Tensor) -> Tensor:
        """(B, F, M) -> (B, N, D)."""
        patches = self.v.patch_embed.proj(mel[:, None].transpose(2, 3)).flatten(2).transpose(1, 2)
        first = torch.cat((self.v.cls_token, self.v.dist_token), dim=1).expand(len(mel), -1, -1)
        x = torch.cat((first, patches), dim=1) + self.v.pos_embed
        for block in self.v.blocks:
            x = block(x)
        return self.v.norm(x)

    def forward(self, mel: Tensor) -> Tensor:
        x = self.tokens(mel)
        return self.mlp_head((x[:, 0] + x[:, 1]) / 2)


def ssast(width: int = 128, **sizes: Any) -> Reference:
    return Reference(
        **{"width": width, "grid": (8, 64), "stride": 16, "classes": None, "pretext": (128, 1024), **sizes}
    )


@pytest.fixture
def write(tmp_path: Path) -> Callable[..., Path]:
    """Saves a model as its authors do, from inside DataParallel; `change` edits the state dict."""

    def save(
        model: nn.Module,
        name: str = "audioset_10_10_0.4593.pth",
        prefix: str = "module.",
        change: Callable[[dict[str, Any]], Any] = lambda state: None,
        **options: Any,
    ) -> Path:
        state = {prefix + key: tensor.clone() for key, tensor in model.state_dict().items()}
        change(state)
        torch.save(state, tmp_path / name, **options)
        return tmp_path / name

    return save


@torch.no_grad()
def tokens_of(backbone: Backbone, mel: Tensor) -> Tensor:
    segment = Segment((NOTHING,) * backbone.geometry.layers, backbone.weights)
    return encode([mel], [segment], backbone.geometry)[0]


def assert_same_tokens(backbone: Backbone, model: Reference, frames: int) -> None:
    mel = torch.randn(2, frames, 128)
    with torch.no_grad():
        torch.testing.assert_close(tokens_of(backbone, mel), model.tokens(mel), rtol=0, atol=1e-4)


# -- AST -------------------------------------------------------------------------------------------------------------


def test_the_audioset_classifier_gives_the_logits_of_the_original_architecture(write, clips):
    model = Reference()
    bank = AdapterBank.from_pretrained(write(model), device="cpu")
    task = bank.task("audioset")
    assert task.labels == tuple(map(str, range(527)))
    assert task.spec.multilabel
    waveforms = [clips[0], torch.cat([clips[5]] * 20)[:160_000]]
    mels = [normalise(pad_frames(mel, 1024), AUDIOSET_MEAN, AUDIOSET_STD) for mel in log_mel(waveforms, 128)]
    with torch.no_grad():
        expected = model(torch.stack(mels))
    torch.testing.assert_close(bank(waveforms, "audioset"), expected, rtol=0, atol=1e-4)


@pytest.mark.parametrize("frames", [1024, 512, 128])
@pytest.mark.parametrize(("stride", "rows"), [(10, 12), (12, 10), (14, 9), (16, 8)])
def test_the_grid_of_every_published_stride_and_length_is_found(stride, rows, frames, write):
    columns = (frames - 16) // stride + 1
    model = Reference(width=64, layers=1, grid=(rows, columns), stride=stride, classes=3)
    backbone = load_backbone(write(model))
    sizes = backbone.geometry
    assert (sizes.frequency_stride, sizes.time_stride, sizes.max_frames) == (stride, stride, frames)
    assert (sizes.layers, sizes.width, sizes.heads, sizes.mlp_width, sizes.eps) == (1, 64, 1, 128, 1e-6)
    assert_same_tokens(backbone, model, frames)


def test_speech_commands_brings_its_own_normalisation(write):
    backbone = load_backbone(write(Reference(grid=(12, 12), classes=35)))
    assert (backbone.mean, backbone.std) == (-6.845978, 5.5654526)
    assert backbone.classifier is not None
    assert not backbone.classifier.multilabel
    assert backbone.classifier.labels == tuple(map(str, range(35)))
    assert load_backbone(write(Reference(classes=35))).mean == AUDIOSET_MEAN
    assert load_backbone(write(Reference(grid=(12, 12), classes=30))).mean == AUDIOSET_MEAN


@pytest.mark.parametrize("options", [{"prefix": ""}, {"name": "AST.PT"}, {"_use_new_zipfile_serialization": False}])
def test_without_dataparallel_or_in_torchs_old_format_it_is_the_same_backbone(options, write):
    model = Reference(width=64, classes=None)
    assert load_backbone(write(model, **options)).fingerprint == load_backbone(write(model)).fingerprint


def test_a_model_saved_in_half_precision_opens_in_fp32(write):
    backbone = load_backbone(write(Reference(width=64).half()))
    assert {tensor.dtype for _, tensor in backbone.weights.named()} == {torch.float32}


def renamed(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """transformers' AST, by its names since 5.9, by the original names: the inverse of its conversion."""
    theirs = {key.removeprefix("audio_spectrogram_transformer."): t for key, t in tensors.items()}
    names = {
        "embeddings.cls_token": "v.cls_token",
        "embeddings.distillation_token": "v.dist_token",
        "embeddings.position_embeddings": "v.pos_embed",
        "embeddings.patch_embeddings.projection": "v.patch_embed.proj",
        "classifier.layernorm": "mlp_head.0",
        "classifier.dense": "mlp_head.1",
        "layernorm_before": "norm1",
        "layernorm_after": "norm2",
        "layernorm": "v.norm",
        "layers.": "v.blocks.",
        "attention.o_proj": "attn.proj",
    }
    state = {}
    for key, tensor in theirs.items():
        if ".k_proj." in key or ".v_proj." in key:
            continue
        if ".q_proj." in key:
            tensor = torch.cat([theirs[key.replace(".q_proj.", f".{part}_proj.")] for part in "qkv"])
            key = key.replace("attention.q_proj", "attn.qkv")
        for new, old in names.items():
            key = key.replace(new, old)
        state["module." + key] = tensor
    return state


def test_hugging_face_names_give_the_same_fingerprint_at_one_eps_and_another_at_theirs(hf_model, hf_folder, tmp_path):
    sizes = {"hidden_size": 128, "num_attention_heads": 2, "intermediate_size": 256, "max_length": 1024}
    model = hf_model(**sizes, num_labels=527, layer_norm_eps=1e-6)
    tensors = load_file(hf_folder(model, names="new") / "model.safetensors")
    torch.save(renamed(tensors), tmp_path / "ast.pth")
    ours, theirs = load_backbone(tmp_path / "ast.pth"), load_backbone(hf_folder(model))
    assert ours.fingerprint == theirs.fingerprint
    assert ours.geometry == theirs.geometry
    for name, tensor in theirs.classifier.tensors.items():
        assert torch.equal(ours.classifier.tensors[name], tensor)
    mel = torch.randn(1, 1024, 128)
    with torch.no_grad():
        expected = model.audio_spectrogram_transformer(mel).last_hidden_state
    torch.testing.assert_close(tokens_of(ours, mel), expected, rtol=0, atol=1e-4)
    converted = load_backbone(hf_folder(hf_model(**sizes, num_labels=527)))  # at 1e-12, as published
    assert converted.fingerprint != ours.fingerprint


# -- SSAST -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("width", "heads"), [(64, 1), (192, 3)])
def test_a_pretrained_ssast_opens_as_it_was_pretrained_and_without_its_pretext_layers(width, heads, write):
    model = ssast(width)
    backbone = load_backbone(write(model))
    sizes = backbone.geometry
    assert (sizes.rows, sizes.columns(1024), sizes.max_frames, sizes.heads) == (8, 64, 1024, heads)
    assert (backbone.mean, backbone.std, backbone.classifier) == (AUDIOSET_MEAN, AUDIOSET_STD, None)
    unused = sum(p.numel() for p in (*model.v.head.parameters(), *model.v.head_dist.parameters()))
    assert backbone.num_parameters() == sum(p.numel() for p in model.v.parameters()) - unused
    assert_same_tokens(backbone, model, 1024)


def test_its_recorded_length_decides_where_the_number_of_positions_does_not(write):
    backbone = load_backbone(write(ssast(64, grid=(8, 30), pretext=(128, 487))))
    assert (backbone.geometry.rows, backbone.geometry.max_frames) == (8, 487)
    fewer_bins = load_backbone(write(ssast(64, grid=(4, 30), pretext=(64, 480))))
    assert (fewer_bins.geometry.mel_bins, fewer_bins.geometry.rows) == (64, 4)


def at_stride_10(model: Reference, frames: int) -> Reference:
    """SSAST's recipe for fine-tuning: time cut or interpolated first, then frequency from 8 rows to 12."""
    columns = (frames - 16) // 10 + 1
    other = Reference(model.v.norm.weight.numel(), grid=(12, columns), classes=None)
    state = {key: t for key, t in model.state_dict().items() if key.startswith("v.")}
    table = state["v.pos_embed"]
    grid = table[:, 2:].transpose(1, 2).reshape(1, -1, 8, 64)
    if columns < 64:
        grid = grid[..., 32 - columns // 2 : 32 - columns // 2 + columns]
    else:
        grid = F.interpolate(grid, size=(8, columns), mode="bilinear")
    grid = F.interpolate(grid, size=(12, columns), mode="bilinear")
    state["v.pos_embed"] = torch.cat((table[:, :2], grid.flatten(2).transpose(1, 2)), dim=1)
    other.load_state_dict(state)
    return other


@pytest.mark.parametrize("frames", [128, 256, 512, 646, 656, 1024])
def test_at_stride_10_ssast_runs_as_its_authors_fine_tune_it_at_any_length(frames, write):
    model = ssast()
    backbone = load_backbone(write(model), stride=10)
    assert (backbone.geometry.rows, backbone.geometry.frequency_stride, backbone.geometry.time_stride) == (12, 10, 10)
    assert_same_tokens(backbone, at_stride_10(model, frames), frames)


# -- another stride --------------------------------------------------------------------------------------------------


def test_another_stride_is_another_backbone_without_the_classifier_and_its_own_is_the_same(hf_model, hf_folder):
    folder = hf_folder(hf_model(num_labels=3))
    plain, own, other = load_backbone(folder), load_backbone(folder, stride=10), load_backbone(folder, stride=16)
    assert own.fingerprint == plain.fingerprint
    assert own.classifier is not None
    assert other.fingerprint != plain.fingerprint
    assert other.classifier is None
    assert (other.geometry.rows, other.geometry.columns(other.geometry.max_frames)) == (8, 12)
    assert list(AdapterBank.from_pretrained(folder, device="cpu", stride=16).tasks) == []


@pytest.mark.parametrize("stride", [0, -1, 17, 10.0, True, "10", [10]])
def test_an_impossible_stride_is_refused(stride, write):
    with pytest.raises(BackboneError, match="got stride=.*, expected an integer from 1 to 16"):
        load_backbone(write(Reference(width=64, layers=1)), stride=stride)


def test_several_possible_grids_are_named_and_the_stride_decides(write):
    path = write(Reference(width=64, layers=1, grid=(8, 30), stride=16))
    with pytest.raises(BackboneError, match=r"12 x 20 \(stride 10\), 10 x 24 .*, 8 x 30 \(stride 16\).*stride="):
        load_backbone(path)
    assert load_backbone(path, stride=16).geometry.rows == 8
    assert load_backbone(path, stride=10).geometry.max_frames == 206
    with pytest.raises(BackboneError, match="Say which"):
        load_backbone(path, stride=14)
    only = load_backbone(write(Reference(width=64, layers=1, grid=(8, 7), stride=16)), stride=10)
    assert only.geometry.rows == 12


# -- refusals --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda s: s.pop("module.v.dist_token"), "lacks 1 of the .* tensors .* of 2 layers: module.v.dist_token"),
        (lambda s: s.pop("module.v.blocks.0.attn.qkv.bias"), "lacks .*: module.v.blocks.0.attn.qkv.bias"),
        (lambda s: s.pop("module.v.patch_embed.proj.weight"), "lacks .*: module.v.patch_embed.proj.weight"),
        (lambda s: s.pop("module.mlp_head.1.bias"), "lacks .*: module.mlp_head.1.bias"),
        (lambda s: s.update({"module.p_input_fdim": torch.tensor(128)}), "lacks .*: module.p_input_tdim"),
        (lambda s: s.update({"module.decoder.weight": torch.ones(2)}), "that no AST has: module.decoder.weight"),
        (lambda s: s.update({"module.v.norm.bias": torch.ones(3)}), r"module.v.norm.bias has shape \(3,\), expected"),
        (lambda s: s.update({"module.v.blocks.1.attn.qkv.weight": torch.ones(383, 128)}), r"\(383, 128\).*\(384, 128"),
        (lambda s: s.update({"module.v.pos_embed": torch.ones(1214, 128)}), "v.pos_embed has shape"),
        (lambda s: s.update({"module.v.patch_embed.proj.weight": torch.ones(3)}), "has patches of no size"),
        (lambda s: s["module.v.cls_token"].fill_(float("nan")), "embed.cls holds NaN or Inf"),
        (lambda s: s["module.mlp_head.1.bias"].fill_(float("inf")), "the classifier holds NaN or Inf"),
        (lambda s: s.update({"module.mlp_head.1.bias": torch.ones(3)}), "the classifier has shape"),
        (lambda s: [s.pop(name) for name in list(s) if ".blocks." in name], "no original AST or SSAST"),
        (lambda s: s.clear(), "no original AST or SSAST: got tensors such as none"),
    ],
)
def test_a_file_that_does_not_fit_is_refused_by_name(change, message, write):
    with pytest.raises(BackboneError, match=message):
        load_backbone(write(Reference(), change=change))


@pytest.mark.parametrize(
    ("model", "message"),
    [
        (
            lambda: ssast(64, patch=(128, 2), grid=(1, 512)),
            r"128 x 2 \(mel bins x frames: an SSAST frame model\), .*16 x",
        ),
        (lambda: ssast(64, patch=(8, 8), grid=(16, 128)), "patches of 8 x 8, expected 16 x 16"),
        (lambda: ssast(64, pretext=(128, 512)), "has 514 positions, expected 258 for 128 mel bins x 512 frames"),
        (lambda: ssast(64, pretext=(128, 0)), "got max_frames=0"),
        (lambda: ssast(64, pretext=(128.0, 1024.0)), "no integer scalar"),
        (lambda: Reference(width=64, grid=(1, 1213)), "has 1215 positions, which is no grid of 128 mel bins"),
        (lambda: Reference(width=64, grid=(0, 0)), "has 2 positions, which is no grid"),
    ],
)
def test_a_model_that_is_not_supported_is_refused(model, message, write):
    with pytest.raises(BackboneError, match=message):
        load_backbone(write(model()))


def test_a_width_that_no_deit_has_is_refused(write):
    def narrow(state: dict[str, Tensor]) -> None:
        for name, tensor in state.items():
            for axis, size in enumerate(tensor.shape):
                if size in (64, 192):
                    tensor = tensor.narrow(axis, 0, 48 if size == 64 else 144)
            state[name] = tensor.clone()

    with pytest.raises(BackboneError, match="has width 48, expected a multiple of 64"):
        load_backbone(write(Reference(width=64, classes=None), change=narrow))


class Bomb:
    def __reduce__(self) -> tuple[Any, ...]:
        return (print, ("code from a checkpoint ran",))


def test_no_code_in_a_file_runs_and_the_refusal_says_what_it_holds(write, tmp_path, capsys):
    path = write(Reference(width=64), change=lambda s: s.update(x=Bomb()))
    with pytest.raises(BackboneError, match="holds more than tensors and is not read: it holds .*print") as error:
        load_backbone(path)
    assert "weights_only" not in str(error.value)  # torch's advice on how to run that code
    assert "state_dict" in str(error.value)
    torch.save(Reference(width=64, layers=1), tmp_path / "whole.pth")
    with pytest.raises(BackboneError, match="it holds .*Reference"):
        load_backbone(tmp_path / "whole.pth")
    assert "code from a checkpoint ran" not in capsys.readouterr().out


@pytest.mark.parametrize("content", [[torch.zeros(3)], {"epoch": 3}, {1: torch.zeros(3)}, torch.zeros(3)])
def test_a_file_of_something_else_is_refused(content, tmp_path):
    torch.save(content, tmp_path / "other.pth")
    with pytest.raises(BackboneError, match="other.pth holds more than tensors.* no dict of names and tensors"):
        load_backbone(tmp_path / "other.pth")


@pytest.mark.parametrize("keep", [0, 7, 500, -100])
def test_a_cut_file_is_refused(keep, write):
    path = write(Reference(width=64))
    path.write_bytes(path.read_bytes()[:keep] if keep else b"")
    with pytest.raises(BackboneError, match="audioset_10_10_0.4593.pth"):
        load_backbone(path)


def test_a_missing_file_is_not_looked_for_on_the_hub(tmp_path):
    with pytest.raises(BackboneError, match=r"there is no file .*none.pth. Download the checkpoint"):
        AdapterBank.from_pretrained(tmp_path / "none.pth")


# -- a saved bank ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("stride", [None, 10])
def test_a_bank_on_a_file_opens_anywhere_at_its_stride(stride, write, tmp_path, clips, randomise, monkeypatch):
    write(ssast(64), name="SSAST-Tiny-Patch-400.pth")
    monkeypatch.chdir(tmp_path)
    bank = AdapterBank.from_pretrained("SSAST-Tiny-Patch-400.pth", device="cpu", stride=stride)
    bank.add_task("notes", "aat_ms", num_classes=3, pooling="mean")
    randomise(bank.task("notes"))
    bank.save("bank")
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    again = AdapterBank.from_pretrained(tmp_path / "bank", device="cpu")
    assert again.backbone.fingerprint == bank.backbone.fingerprint
    assert again.backbone.geometry.time_stride == (stride or 16)
    assert torch.equal(again(clips, "notes"), bank(clips, "notes"))
    again.save(tmp_path / "copy")
    assert AdapterBank.load(tmp_path / "copy", device="cpu").backbone.stride == stride


def test_a_bank_whose_file_was_moved_says_how_to_open_it_and_opens_so(write, tmp_path, clips):
    path = write(ssast(64))
    bank = AdapterBank.from_pretrained(path, device="cpu", stride=10)
    bank.add_task("notes", "head", num_classes=3)
    bank.save(tmp_path / "bank")
    moved = path.rename(tmp_path / "moved.pth")
    with pytest.raises(BackboneError, match=r"made on load_backbone\(.*, stride=10\), .* no file .*backbone=<its path"):
        AdapterBank.load(tmp_path / "bank")
    again = AdapterBank.load(tmp_path / "bank", backbone=moved, device="cpu")
    assert torch.equal(again(clips, "notes"), bank(clips, "notes"))
    with pytest.raises(BackboneMismatchError, match=r"saved on load_backbone\(.*, stride=10\), was made for"):
        AdapterBank.load(tmp_path / "bank", backbone=load_backbone(moved))
    with pytest.raises(ConfigError, match="got stride=16, but .* at a stride of 10"):  # although the file is not there
        AdapterBank.from_pretrained(tmp_path / "bank", device="cpu", stride=16)
    moved.rename(path)
    back = AdapterBank.from_pretrained(tmp_path / "bank", device="cpu", stride=10)
    assert torch.equal(back(clips, "notes"), bank(clips, "notes"))
