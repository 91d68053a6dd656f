"""Teachers: their features against plain numpy, alignment with patch columns, and errors."""

from __future__ import annotations

import csv
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch

from adapterbank.errors import BackboneError, ConfigError, NameTakenError, UnknownNameError
from adapterbank.pretraining import teachers
from adapterbank.pretraining.teachers import Target, WhisperNpz, view_samples, whisper_mel, yamnet_windows

PRETRAIN = Path(__file__).resolve().parents[3] / "shared" / "pretrain"


@pytest.fixture
def pretrain() -> Path:
    if not (PRETRAIN / "yamnet.onnx").is_file():
        pytest.skip(f"no teachers at {PRETRAIN}")
    return PRETRAIN


def hann(size: int) -> np.ndarray:
    return 0.5 - 0.5 * np.cos(2 * np.pi * np.arange(size) / size)


def triangle(f: float, left: float, centre: float, right: float) -> float:
    if f <= left or f >= right:
        return 0.0
    return (f - left) / (centre - left) if f <= centre else (right - f) / (right - centre)


def speech(folder: Path, seconds: float) -> torch.Tensor:
    """The start of the first speech clip of the pool that is long enough."""
    samples = round(seconds * 16_000)
    with (folder / "pool" / "index.csv").open() as file:
        row = next(r for r in csv.DictReader(file) if r["kind"] == "speech" and int(r["num_samples"]) > samples)
    start = int(row["start_sample"])
    audio, _ = soundfile.read(folder / "pool" / f"{row['shard']}.ogg", start=start, stop=start + samples)
    return torch.from_numpy(audio).float()


def tiny_whisper(path: Path, width: int = 12) -> Path:
    rng = np.random.default_rng(0)
    shapes: dict[str, tuple[int, ...]] = {
        "conv1.weight": (width, 80, 3), "conv1.bias": (width,),
        "conv2.weight": (width, width, 3), "conv2.bias": (width,),
        "positional_embedding": (1500, width), "blocks.0.mlp.0.weight": (24, width), "blocks.0.mlp.0.bias": (24,),
        "blocks.0.mlp.2.weight": (width, 24), "blocks.0.mlp.2.bias": (width,),
    }  # fmt: skip
    for name in ("query", "key", "value", "out"):
        shapes[f"blocks.0.attn.{name}.weight"] = (width, width)
        if name != "key":
            shapes[f"blocks.0.attn.{name}.bias"] = (width,)
    for norm in ("blocks.0.attn_ln", "blocks.0.mlp_ln", "ln_post"):
        shapes |= {f"{norm}.weight": (width,), f"{norm}.bias": (width,)}
    np.savez(path, **{n: (rng.normal(size=s) * 0.2).astype(np.float16) for n, s in shapes.items()})
    return path


def test_yamnet_windows_follow_the_published_feature() -> None:
    x = np.random.default_rng(0).normal(size=view_samples(9)).astype(np.float32) * 0.1
    edges = 700 * (10 ** (np.linspace(*(2595 * np.log10(1 + f / 700) for f in (125, 7500)), 66) / 2595) - 1)
    bank = np.array([[triangle(k * 31.25, *edges[m : m + 3]) for k in range(257)] for m in range(64)])
    frames = np.lib.stride_tricks.sliding_window_view(x, 400)[::160] * hann(400)
    mel = np.log(np.abs(np.fft.rfft(frames, 512)) @ bank.T + 1e-3)
    got = yamnet_windows(torch.from_numpy(x)[None])[0].numpy()
    assert got.shape == (2, 96, 64)
    np.testing.assert_allclose(got, np.stack([mel[0:96], mel[48:144]]), atol=2e-4)


def test_whisper_mel_is_that_of_the_zero_padded_clip() -> None:
    x = np.random.default_rng(0).normal(size=8_000).astype(np.float32) * 0.1
    mels = np.linspace(0, 15 + 27 * np.log(8) / np.log(6.4), 82)
    edges = np.where(mels < 15, mels * 200 / 3, 1000 * 6.4 ** ((mels - 15) / 27))
    bank = [
        [triangle(k * 40, *edges[m : m + 3]) * 2 / (edges[m + 2] - edges[m]) for k in range(201)] for m in range(80)
    ]
    padded = np.pad(np.pad(x, (0, 480_000 - len(x))), 200, mode="reflect")
    power = np.abs(np.fft.rfft(np.lib.stride_tricks.sliding_window_view(padded, 400)[::160][:3000] * hann(400))) ** 2
    mel = np.log10(np.maximum(power @ np.array(bank).T, 1e-10))
    mel = ((np.maximum(mel, mel.max() - 8) + 4) / 4).T
    got, silence = whisper_mel(torch.from_numpy(x)[None], 80)
    np.testing.assert_allclose(got[0].numpy(), mel[:, :80], atol=2e-4)
    np.testing.assert_allclose(silence.item(), mel[0, -1], atol=1e-5)


def test_whisper_without_thinning_is_the_whole_window(tmp_path: Path) -> None:
    teacher = WhisperNpz(tiny_whisper(tmp_path / "w.npz"), dtype=torch.float32, silence_stride=1)
    x = torch.randn(2, view_samples(3)) * 0.1
    whole = torch.nn.functional.pad(x, (0, 480_000 - x.shape[1]))
    rows = -(-x.shape[1] // 320)
    expected = teacher.encode(whole)
    assert expected.shape == (2, 1500, 12)
    torch.testing.assert_close(teacher.encode(x), expected[:, :rows], atol=1e-4, rtol=0)


def test_whisper_gives_two_means_of_80_ms_per_patch_column(tmp_path: Path) -> None:
    teacher = WhisperNpz(tiny_whisper(tmp_path / "w.npz"))
    x = torch.randn(1, view_samples(4)) * 0.1
    frames, got = teacher.encode(x), teacher(x)["whisper.frames"]
    assert got.shape == (1, 4, 24)
    torch.testing.assert_close(got[0, 1], torch.cat((frames[0, 8:12].mean(0), frames[0, 12:16].mean(0))))


def test_thinned_silence_hardly_changes_whisper_on_speech(pretrain: Path) -> None:
    path = pretrain / "whisper_tiny_encoder.npz"
    x = speech(pretrain, view_samples(6) / 16_000)[None]
    exact = WhisperNpz(path, dtype=torch.float32, silence_stride=1)(x)["whisper.frames"]
    thinned = WhisperNpz(path)(x)["whisper.frames"]
    assert torch.nn.functional.cosine_similarity(exact, thinned, dim=-1).mean() > 0.97


def test_yamnet_hears_speech(pretrain: Path) -> None:
    pytest.importorskip("onnxruntime")
    teacher = teachers.build("yamnet_onnx", path=pretrain / "yamnet.onnx", threads=1)
    answer = teacher(speech(pretrain, view_samples(9) / 16_000)[None])
    assert answer["yamnet.embedding"].shape == (1, 2, 1024)
    assert answer["yamnet.scores"].mean((0, 1)).argmax() == 0  # "Speech" is the first class


def test_rows_of_a_target_follow_from_patch_columns() -> None:
    windows = Target("y", 1, "embedding", span=6, hop=3)
    assert [windows.rows(t) for t in (1, 6, 8, 9, 62)] == [1, 1, 1, 2, 19]
    assert Target("h", 1, "embedding").rows(62) == 1


def test_a_hugging_face_ast_can_teach(tmp_path: Path) -> None:
    from transformers import ASTConfig, ASTFeatureExtractor, ASTForAudioClassification

    config = ASTConfig(
        hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16, max_length=64, num_labels=3
    )
    ASTForAudioClassification(config).save_pretrained(tmp_path)
    ASTFeatureExtractor(max_length=64).save_pretrained(tmp_path)
    teacher = teachers.build(f"hf:{tmp_path}", dtype=torch.float32)
    answer = teacher(torch.randn(2, view_samples(3)) * 0.1)
    assert answer["hf.embedding"].shape == (2, 1, 16)
    assert answer["hf.scores"].shape == (2, 1, 3)
    assert ((answer["hf.scores"] > 0) & (answer["hf.scores"] < 1)).all()


def test_the_log_mel_target_ignores_level_and_keeps_time_and_pitch() -> None:
    teacher = teachers.build("log_mel")
    x = torch.randn(1, view_samples(4)) * torch.linspace(0.01, 0.1, view_samples(4))
    got = teacher(x)["mel.halves"]
    assert got.shape == (1, 4, 256)
    torch.testing.assert_close(teacher(x * 0.3)["mel.halves"], got, atol=1e-3, rtol=0)
    assert (got[0, :-1].mean(1) < got[0, 1:].mean(1)).all()


def test_errors_say_what_to_put_where(tmp_path: Path) -> None:
    with pytest.raises(UnknownNameError, match=r"yamnet_onnx"):
        teachers.build("yamnet")
    with pytest.raises(ConfigError, match="whisper_npz"):
        teachers.build("whisper_npz", file="x")
    with pytest.raises(BackboneError, match=r"whisper_tiny_encoder\.npz"):
        teachers.build("whisper_npz", path=tmp_path / "none.npz")
    with pytest.raises(BackboneError, match=r"model\.safetensors"):
        teachers.build(f"hf:{tmp_path}")
    with pytest.raises(NameTakenError, match="registered already"):
        teachers.register("hf")(WhisperNpz)
