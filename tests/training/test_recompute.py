"""A block that is computed twice gives the same training: gradients, dropout and the statistics of BatchNorm."""

from __future__ import annotations

import pytest
import torch

from adapterbank.bank import AdapterBank
from adapterbank.training.fit import fit
from adapterbank.training.many import fit_many

METHODS = {
    "aat_ms": {"dropout": 0.3},
    "conformer": {"reduction": 12},
    "lora": {},
    "prompt": {},
    "full": {},
    "moa": {"reduction": 8},
    "bitfit": {},
    "prefix": {},
    "aat_m+prompt": {},
}


def trained(backbone, clips, method, train=fit, **options):
    bank = AdapterBank(backbone)
    for name in ("new", "other"):
        bank.add_task(name, method, labels=["bass", "brass", "organ"], **METHODS[method])
    tasks = "new" if train is fit else ["new", "other"]
    train(bank, tasks, clips, progress=False, epochs=2, batch_size=6, lr=1e-3, **{"precision": "fp32", **options})
    return bank.task("new").state_dict()


@pytest.mark.parametrize("method", METHODS)
def test_a_training_that_computes_blocks_again_ends_with_the_same_tensors(method, small_backbone, labelled_clips):
    kept = trained(small_backbone, labelled_clips, method)
    again = trained(small_backbone, labelled_clips, method, checkpointing=True)
    for name, tensor in kept.items():
        torch.testing.assert_close(
            again[name], tensor, rtol=1e-5, atol=1e-6, msg=lambda text, name=name: f"{name}: {text}"
        )


@pytest.mark.parametrize("options", [{"precision": "bf16"}, {"accumulate": 2}, {"train": fit_many}])
def test_it_does_so_in_half_precision_in_parts_and_beside_other_tasks(options, small_backbone, labelled_clips):
    kept, again = (trained(small_backbone, labelled_clips, "aat_ms", checkpointing=c, **options) for c in (False, True))
    for name, tensor in kept.items():
        torch.testing.assert_close(again[name], tensor, rtol=1e-3, atol=1e-4)
