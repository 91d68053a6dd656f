"""The backbone inside the package: what the default of `from_pretrained` promises."""

import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors import safe_open

from adapterbank import AdapterBank
from adapterbank.backbone.checkpoints import huggingface as checkpoints
from adapterbank.backbone.checkpoints.embedded import EMBEDDED, EMBEDDED_SHA256, RETIRED, Retired
from adapterbank.backbone.checkpoints.opening import load_backbone
from adapterbank.backbone.weights import Geometry
from adapterbank.errors import BackboneError
from adapterbank.pretraining.student import export_backbone, init_student
from adapterbank.routing.run import mels_of

DEIT_TINY = Geometry(
    layers=12, width=192, heads=3, mlp_width=768, max_frames=1024, frequency_stride=16, time_stride=16, eps=1e-6
)
MEGABYTE = 10**6
CARD = Path(__file__).parents[3] / "docs" / "ast_mini.md"


def test_the_default_backbone_is_an_ast_of_deit_tiny_size():
    bank = AdapterBank.from_pretrained()
    assert bank.backbone.geometry == DEIT_TINY
    assert 5.3e6 < bank.backbone.num_parameters() < 5.7e6
    assert dict(bank.tasks) == {}


def test_the_embedded_file_is_bf16_and_small():
    file = EMBEDDED["ast-mini-2"] / "model.safetensors"
    assert file.stat().st_size <= 12 * MEGABYTE
    with safe_open(file, framework="pt") as handle:
        assert {handle.get_tensor(name).dtype for name in handle.keys()} == {torch.bfloat16}  # noqa: SIM118


def test_transformers_reads_the_embedded_folder_and_agrees():
    from transformers import ASTModel

    model = ASTModel.from_pretrained(EMBEDDED["ast-mini-2"], dtype=torch.float32).eval()
    bank = AdapterBank.from_pretrained(device="cpu")
    generator = torch.Generator().manual_seed(0)
    clip = 0.1 * torch.randn(1, (1024 - 1) * 160 + 400, generator=generator)
    mel = mels_of(bank.backbone, clip)[0]
    with torch.no_grad():
        pooled = model(((mel - bank.backbone.mean) / (2 * bank.backbone.std))[None]).pooler_output
    torch.testing.assert_close(bank.embed(clip), pooled, rtol=0, atol=1e-4)


def test_the_card_names_the_digest_that_loading_checks():
    assert EMBEDDED_SHA256["ast-mini-2"] in CARD.read_text(encoding="utf-8")


def test_an_embedded_file_with_one_other_bit_is_refused(tmp_path, monkeypatch):
    folder = shutil.copytree(EMBEDDED["ast-mini-2"], tmp_path / "ast-mini-2")
    content = bytearray((folder / "model.safetensors").read_bytes())
    content[-1] ^= 1
    (folder / "model.safetensors").write_bytes(content)
    monkeypatch.setitem(checkpoints.EMBEDDED, "ast-mini-2", folder)
    with pytest.raises(BackboneError, match=f"expected {EMBEDDED_SHA256['ast-mini-2']}.*[Rr]einstall"):
        load_backbone("ast-mini-2")


@pytest.fixture
def old_weights(tmp_path, monkeypatch):
    """Weights that were once in the package as "old-mini", and where somebody keeps them now."""
    generator = torch.Generator().manual_seed(0)
    small = replace(DEIT_TINY, layers=1, width=12, heads=3, mlp_width=24)
    export_backbone(init_student(small, 0), small, tmp_path / "kept")
    backbone = replace(load_backbone(tmp_path / "kept"), source="old-mini", pooling="mean")
    gone = Retired(backbone.fingerprint, "mean", "c0ffee1", "weights/old-mini", "5ha256")
    monkeypatch.setitem(RETIRED, "old-mini", gone)
    return backbone, tmp_path / "kept", 0.1 * torch.randn(1, 16_000, generator=generator)


def test_a_bank_on_weights_that_left_the_package_says_where_they_are_and_opens_with_them(tmp_path, old_weights):
    backbone, kept, clip = old_weights
    bank = AdapterBank(backbone)
    bank.add_task("birds", labels=["wren", "robin"])
    answers = bank(clip, "birds")
    bank.save(tmp_path / "bank")
    with pytest.raises(BackboneError, match=r"weights/old-mini.*c0ffee1.*5ha256.*AdapterBank.load\(.*backbone="):
        AdapterBank.load(tmp_path / "bank")
    with pytest.raises(BackboneError, match="'old-mini' is no longer inside this package.*'ast-mini-2'.*pass its path"):
        AdapterBank.from_pretrained("old-mini")
    again = AdapterBank.load(tmp_path / "bank", backbone=kept, device="cpu")
    assert torch.equal(again(clip, "birds"), answers)
    again.add_task("more", labels=["a", "b"])
    assert again.task("more").spec.pooling == "mean"  # as on the day when the name still worked
    assert load_backbone(kept, stride=10).pooling == "mean"


def test_ast_mini_names_its_files():
    with pytest.raises(BackboneError, match="weights/ast-mini out of .*pass its path .*d2a25938c9220d14"):
        load_backbone("ast-mini")
