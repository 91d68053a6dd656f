"""The peer of the benchmarks computes what the bank computes, from the same spectrograms."""

import pytest
import torch
from peers import answer, features, peer
from sidebyside import difference

from adapterbank import AdapterBank
from adapterbank.audio.mel import frame_count
from adapterbank.bank import AUDIOSET
from adapterbank.experiments.timing import noise


@pytest.fixture
def bank(hf_model, hf_folder):
    return AdapterBank.from_pretrained(hf_folder(hf_model()), device="cpu")


@pytest.mark.parametrize("whole", [True, False], ids=["padded", "own length"])
def test_the_peer_gives_the_banks_logits(whole, bank):
    sizes, classifier = bank.backbone.geometry, bank.task(AUDIOSET)
    own = bank.add_task("own", "head", num_classes=len(classifier.labels))
    own.head.load_state_dict(classifier.head.state_dict())
    waves = noise(2, 0.3)
    frames = sizes.max_frames if whole else sizes.whole_frames(frame_count(len(waves[0])))
    inputs = features(waves, frames)
    assert inputs.shape == (2, frames, sizes.mel_bins)
    theirs = answer(peer(bank, frames), inputs)
    assert difference(bank(waves, AUDIOSET if whole else "own"), theirs) < 1e-4


def test_the_peer_can_be_had_in_half_precision(bank):
    model = peer(bank, bank.backbone.geometry.max_frames, "bf16")
    assert {parameter.dtype for parameter in model.parameters()} == {torch.bfloat16}
