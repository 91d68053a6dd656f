"""The backbone inside the package: what the default of `from_pretrained` promises."""

import shutil
from pathlib import Path

import pytest
import torch
from safetensors import safe_open

from adapterbank import AdapterBank
from adapterbank.backbone.checkpoints import huggingface as checkpoints
from adapterbank.backbone.checkpoints.embedded import EMBEDDED, EMBEDDED_SHA256
from adapterbank.backbone.checkpoints.opening import load_backbone
from adapterbank.backbone.weights import Geometry
from adapterbank.errors import BackboneError
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
    file = EMBEDDED["ast-mini"] / "model.safetensors"
    assert file.stat().st_size <= 12 * MEGABYTE
    with safe_open(file, framework="pt") as handle:
        assert {handle.get_tensor(name).dtype for name in handle.keys()} == {torch.bfloat16}  # noqa: SIM118


def test_transformers_reads_the_embedded_folder_and_agrees():
    from transformers import ASTModel

    model = ASTModel.from_pretrained(EMBEDDED["ast-mini"], dtype=torch.float32).eval()
    bank = AdapterBank.from_pretrained(device="cpu")
    generator = torch.Generator().manual_seed(0)
    clip = 0.1 * torch.randn(1, (1024 - 1) * 160 + 400, generator=generator)
    mel = mels_of(bank.backbone, clip)[0]
    with torch.no_grad():
        pooled = model(((mel - bank.backbone.mean) / (2 * bank.backbone.std))[None]).pooler_output
    torch.testing.assert_close(bank.embed(clip), pooled, rtol=0, atol=1e-4)


def test_the_card_names_the_digest_that_loading_checks():
    assert EMBEDDED_SHA256["ast-mini"] in CARD.read_text(encoding="utf-8")


def test_an_embedded_file_with_one_other_bit_is_refused(tmp_path, monkeypatch):
    folder = shutil.copytree(EMBEDDED["ast-mini"], tmp_path / "ast-mini")
    content = bytearray((folder / "model.safetensors").read_bytes())
    content[-1] ^= 1
    (folder / "model.safetensors").write_bytes(content)
    monkeypatch.setitem(checkpoints.EMBEDDED, "ast-mini", folder)
    with pytest.raises(BackboneError, match=f"expected {EMBEDDED_SHA256['ast-mini']}.*[Rr]einstall"):
        load_backbone("ast-mini")
