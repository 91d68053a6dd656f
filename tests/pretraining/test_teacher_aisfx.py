"""The teacher of effects with random weights: spectrogram and network against references, its windows, its file."""

from __future__ import annotations

import itertools
import pickle
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from adapterbank.errors import BackboneError
from adapterbank.pretraining import teachers
from adapterbank.pretraining.teacher_aisfx import Aisfx, effects_mel, mel_at_44100
from adapterbank.pretraining.teachers import view_samples

WIDTHS = (1, 3, 4, 5, 6)
STEP_SECONDS = 8 * 1024 / 44_100


class Block(nn.Module):
    """Two convolutions as the publication draws them, by the names of the checkpoint."""

    def __init__(self, channels: int, width: int, pool: int):
        super().__init__()
        self.conv1 = nn.Conv2d(channels, width, 3, padding=1, bias=False)
        self.conv2 = nn.Conv2d(width, width, 3, padding=1, bias=False)
        self.bn1, self.bn2 = nn.BatchNorm2d(width), nn.BatchNorm2d(width)
        self.pool = nn.MaxPool2d(pool)

    def forward(self, x: Tensor) -> Tensor:
        x = self.bn1(self.conv1(x)).relu()
        return self.pool(self.bn2(self.conv2(x)).relu())


def reference(seed: int = 0) -> nn.Sequential:
    """The network up to the mean over frequency: random weights, and running statistics that are not 0 and 1."""
    torch.manual_seed(seed)
    blocks = [Block(*sizes, pool) for sizes, pool in zip(itertools.pairwise(WIDTHS), (2, 2, 2, 1), strict=True)]
    net = nn.Sequential(*blocks).eval()
    for block in blocks:
        for norm in (block.bn1, block.bn2):
            norm.running_mean.normal_(std=0.1)
            norm.running_var.uniform_(0.2, 1.0)
            nn.init.normal_(norm.weight)  # of either sign, so that folding has to keep it
            nn.init.normal_(norm.bias)
    return net


def checkpoint(path: Path, net: nn.Sequential) -> Path:
    """In the form of the package's file: the tensors, and which dataset has how many classes."""
    tensors = {}
    for name, tensor in net.state_dict().items():
        number, rest = name.split(".", 1)
        tensors[f"embedding_net.conv_block{int(number) + 1}.{rest}"] = tensor
    torch.save((tensors, {"effects": (np.int64(0), 78)}), path)
    return path


def steps_of(net: nn.Sequential, waves: Tensor) -> Tensor:
    """(R, K, E)."""
    with torch.no_grad():
        return net(effects_mel(waves)[:, None]).mean(3).transpose(1, 2)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, nn.Sequential]:
    net = reference()
    return checkpoint(tmp_path_factory.mktemp("aisfx") / "checkpoint.pth", net), net


def views(rows: int, columns: int, seed: int = 0) -> Tensor:
    return torch.randn(rows, view_samples(columns), generator=torch.Generator().manual_seed(seed)) * 0.1


def test_the_spectrogram_is_essentias_formula_in_numpy() -> None:
    x = np.random.default_rng(0).normal(size=10_000) * np.linspace(0.001, 0.5, 10_000)
    hann = 0.5 - 0.5 * np.cos(2 * np.pi * np.arange(2048) / 2047)  # symmetric
    mel = np.linspace(0, 1127.01048 * np.log(1 + 22_050 / 700), 98)
    at = 1127.01048 * np.log(1 + np.arange(1025) * 44_100 / 2048 / 700)
    frames = []
    for centre in range(0, 10_000 + 1024, 1024):
        inside = np.zeros(2048)
        for i in range(max(0, 1024 - centre), min(2048, 10_000 + 1024 - centre)):
            inside[i] = x[centre - 1024 + i]
        power = np.abs(np.fft.rfft(inside * hann)) ** 2
        bands = []
        for low, middle, high in zip(mel, mel[1:], mel[2:], strict=False):
            weight = np.where(at < middle, (at - low) / (middle - low), (high - at) / (high - middle)).clip(0)
            bands.append(np.sum(weight * power) / weight.sum())
        frames.append(np.log10(1 + 10_000 * np.array(bands)) / 9.457798957824707)
    got = mel_at_44100(torch.from_numpy(x).float()[None])[0].numpy()
    np.testing.assert_allclose(got, np.stack(frames), atol=1e-5)


def test_sound_at_16_khz_has_the_spectrogram_that_it_has_at_44100_hz() -> None:
    def tones(rate: int) -> Tensor:
        t = torch.arange(rate, dtype=torch.float64) / rate
        found = sum(torch.sin(2 * torch.pi * hz * t) * 0.1 for hz in (110.0, 440.0, 3_000.0, 6_000.0))
        return torch.as_tensor(found).float()[None]

    got, expected = effects_mel(tones(16_000)), mel_at_44100(tones(44_100))
    assert got.shape == expected.shape
    inner = slice(2, -3)  # the ends of the sound are steps, which hold frequencies above 8 kHz
    loud = expected[:, inner] > 0.3  # 60 dB below full scale is 0.2
    torch.testing.assert_close(got[:, inner][loud], expected[:, inner][loud], atol=5e-3, rtol=0)
    assert got[:, inner, 75:].max() < 0.02


def test_folded_convolutions_are_the_network_with_its_batch_norms(made: tuple[Path, nn.Sequential]) -> None:
    path, net = made
    x = views(3, 9)
    expected = steps_of(net, x)
    exact, fast = Aisfx(path, dtype=torch.float32), Aisfx(path)
    torch.testing.assert_close(exact.steps(effects_mel(x)), expected, atol=1e-5, rtol=1e-5)
    assert torch.nn.functional.cosine_similarity(fast.steps(effects_mel(x)), expected, dim=-1).min() > 0.999


def test_a_row_is_the_maximum_over_the_steps_whose_middle_it_covers(made: tuple[Path, nn.Sequential]) -> None:
    path, net = made
    teacher = Aisfx(path, dtype=torch.float32)
    for columns in (1, 6, 8, 9, 16, 62):
        x = views(2, columns)
        steps, answer = steps_of(net, x), teacher(x)
        torch.testing.assert_close(answer["aisfx.view"], steps.amax(1, keepdim=True), atol=1e-5, rtol=1e-5)
        got = answer["aisfx.embedding"]
        assert got.shape == (2, teacher.targets[0].rows(columns), 6)
        middles = [STEP_SECONDS * k + 3.5 * 1024 / 44_100 for k in range(steps.shape[1])]
        for row in range(got.shape[1]):
            own = [steps[:, k] for k, middle in enumerate(middles) if 0.48 * row <= middle < 0.48 * row + 0.96]
            torch.testing.assert_close(got[:, row], torch.stack(own).amax(0), atol=1e-5, rtol=1e-5)


def test_a_sound_changes_the_rows_that_hear_it_and_no_others(made: tuple[Path, nn.Sequential]) -> None:
    teacher = Aisfx(made[0])
    quiet, struck = views(8, 24), views(8, 24)
    struck[:, 20 * 2560 :] = views(8, 24, seed=1)[:, 20 * 2560 :] * 5  # from column 20 of 24
    before, after = (teacher(x)["aisfx.embedding"] for x in (quiet, struck))
    changed = (before != after).any(2).any(0)  # rows begin every 3 columns and cover 6
    # The convolutions see 30 frames, 4.4 columns, beyond a row's steps: row 3 ends at column 15 and hears up to 19.6.
    assert not changed[:4].any()
    assert changed[5:].all()


def test_an_answer_does_not_depend_on_the_rest_of_the_batch_nor_on_grad_mode(made: tuple[Path, nn.Sequential]) -> None:
    teacher = Aisfx(made[0], dtype=torch.float32)
    x = views(21, 10)  # more than go through the network at once
    together = teacher(x)["aisfx.embedding"]
    assert not together.requires_grad
    torch.testing.assert_close(teacher(x)["aisfx.embedding"], together, rtol=0, atol=0)
    alone = torch.cat([teacher(row[None])["aisfx.embedding"] for row in x])
    torch.testing.assert_close(alone, together, atol=1e-5, rtol=1e-5)
    with torch.inference_mode():
        torch.testing.assert_close(teacher(x)["aisfx.embedding"], together, rtol=0, atol=0)


def test_it_is_built_by_name_and_joins_others_in_a_probe(made: tuple[Path, nn.Sequential]) -> None:
    assert "aisfx" in teachers.names()
    teacher = teachers.build("aisfx", path=made[0])
    answer = teacher(views(2, 14))
    assert {target.name: (2, target.rows(14), target.width) for target in teacher.targets} == {
        name: tuple(rows.shape) for name, rows in answer.items()
    }
    assert teachers.pooled_embedding(teacher, views(1, 100)[0]).shape == (12,)
    assert teachers.pooled_embedding(teacher, torch.zeros(500)).isfinite().all()


class Intruder:
    """Would make a file if it were unpickled by the ordinary rules."""

    def __init__(self, path: Path):
        self.path = path

    def __reduce__(self) -> tuple[object, tuple[Path]]:
        return Path.touch, (self.path,)


def test_a_file_that_is_not_the_checkpoint_is_refused_with_the_way_to_it(
    tmp_path: Path, made: tuple[Path, nn.Sequential]
) -> None:
    path = tmp_path / "checkpoint.pth"
    with pytest.raises(BackboneError, match=r"no aiSFX checkpoint at .*pip download --no-deps aisfx"):
        teachers.build("aisfx", path=path)
    whole = made[0].read_bytes()
    for content in (b"", b"RIFF and more", whole[: len(whole) // 2], pickle.dumps({"a": 1})):
        path.write_bytes(content)
        with pytest.raises(BackboneError, match=r"is not aiSFX's checkpoint\.pth"):
            teachers.build("aisfx", path=path)
    tensors, datasets = torch.load(made[0], weights_only=False)
    tensors["embedding_net.conv_block3.conv1.weight"] = torch.zeros(5, 7, 3, 3)
    torch.save((tensors, datasets), path)
    with pytest.raises(BackboneError, match=r"conv_block3\.conv1\.weight is \(5, 7, 3, 3\)"):
        teachers.build("aisfx", path=path)
    del tensors["embedding_net.conv_block2.bn1.running_var"]
    torch.save((tensors, datasets), path)
    with pytest.raises(BackboneError, match=r"has no embedding_net\.conv_block2\.bn1\.running_var"):
        teachers.build("aisfx", path=path)


def test_code_in_a_checkpoint_is_not_run(tmp_path: Path, made: tuple[Path, nn.Sequential]) -> None:
    path, trace = tmp_path / "checkpoint.pth", tmp_path / "ran"
    tensors, _ = torch.load(made[0], weights_only=False)
    torch.save((tensors, {"effects": Intruder(trace)}), path)
    with pytest.raises(BackboneError, match=r"it holds \S+, which is not data"):
        teachers.build("aisfx", path=path)
    assert not trace.exists()
