"""LoRA, rsLoRA and DoRA against peft on transformers' AST with the same weights."""

from __future__ import annotations

import pytest
import torch

from adapterbank.backbone.checkpoints.opening import load_backbone
from adapterbank.bank import AdapterBank
from adapterbank.routing.run import mels_of

# peft 0.21 asks transformers 5.23 for a deprecated property.
pytestmark = pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing:FutureWarning")
TARGETS = ("q", "k", "v", "proj", "fc1", "fc2")


@pytest.mark.parametrize("targets", [("q", "v"), TARGETS])
@pytest.mark.parametrize("kind", ["lora", "rslora", "dora"])
def test_logits_equal_those_of_peft(kind, targets, hf_model, hf_folder, hf_blocks, clips):
    peft = pytest.importorskip("peft")
    model = hf_model(frequency_stride=16, time_stride=16)
    bank = AdapterBank(load_backbone(hf_folder(model)))
    options = {} if kind == "lora" else {kind: True}
    task = bank.add_task("t", "lora", num_classes=2, targets=targets, rank=4, alpha=12, **options)
    config = peft.LoraConfig(
        r=4,
        lora_alpha=12,
        target_modules=[block.linears[name] for block in hf_blocks(model) for name in targets],
        use_rslora=kind == "rslora",
        use_dora=kind == "dora",
    )
    wrapped = peft.get_peft_model(model, config).eval()
    generator = torch.Generator().manual_seed(3)
    theirs = dict(wrapped.named_parameters())
    with torch.no_grad():
        for layer, block in enumerate(hf_blocks(model)):
            for name in targets:
                ours = task.adapters.changes[layer][name]
                prefix = f"base_model.model.{block.linears[name]}"
                pairs = {"lora_A.default.weight": ours.down, "lora_B.default.weight": ours.up}
                if kind == "dora":
                    key = "lora_magnitude_vector.default.weight"
                    torch.testing.assert_close(theirs[f"{prefix}.{key}"], ours.magnitude)  # |W| at the start
                    pairs[key] = ours.magnitude
                for key, mine in pairs.items():
                    mine += 0.2 * torch.randn(mine.shape, generator=generator)
                    theirs[f"{prefix}.{key}"].copy_(mine)
        clip = clips[4].repeat(9)[: (128 - 1) * 160 + 400]  # 128 frames, the model's own length
        (mel,) = mels_of(bank.backbone, [clip])
        normal = ((mel - bank.backbone.mean) / (2 * bank.backbone.std))[None]
        hidden = model.audio_spectrogram_transformer(normal).pooler_output  # peft put its layers into the model
        torch.testing.assert_close(bank([clip], "t"), task.head(hidden), rtol=0, atol=1e-5)
        assert (bank.embed([clip]) - hidden).abs().max() > 0.05


def test_gradients_equal_those_of_peft(hf_model, hf_folder, hf_blocks, clips):
    peft = pytest.importorskip("peft")
    model = hf_model(frequency_stride=16, time_stride=16)
    bank = AdapterBank(load_backbone(hf_folder(model)))
    task = bank.add_task("t", "lora", num_classes=2, rank=3, alpha=6, dora=True)
    modules = [block.linears[name] for block in hf_blocks(model) for name in ("q", "v")]
    config = peft.LoraConfig(r=3, lora_alpha=6, target_modules=modules, use_dora=True)
    wrapped = peft.get_peft_model(model, config).eval()
    theirs = dict(wrapped.named_parameters())
    pairs = []
    with torch.no_grad():
        for layer, block in enumerate(hf_blocks(model)):
            for name in ("q", "v"):
                ours = task.adapters.changes[layer][name]
                for key, mine in (
                    ("lora_A", ours.down),
                    ("lora_B", ours.up),
                    ("lora_magnitude_vector", ours.magnitude),
                ):
                    full = f"base_model.model.{block.linears[name]}.{key}.default.weight"
                    mine += 0.1 * torch.randn_like(mine)
                    theirs[full].copy_(mine)
                    pairs.append((mine, theirs[full]))
    clip = clips[4].repeat(9)[: (128 - 1) * 160 + 400]
    (mel,) = mels_of(bank.backbone, [clip])
    normal = ((mel - bank.backbone.mean) / (2 * bank.backbone.std))[None]
    task.head(model.audio_spectrogram_transformer(normal).pooler_output).square().sum().backward()
    bank.task_module("t")([clip]).square().sum().backward()
    for mine, other in pairs:
        torch.testing.assert_close(mine.grad, other.grad, rtol=1e-3, atol=1e-4)
