"""Rows of recipes/benchmark.py beside peft's LoRA on transformers' AST: training (4, 5) and mixed batches (8).

    pip install -e ".[bench]"                    # peft
    python recipes/benchmark.py row=4            # starts this with what it needs

Both sides open one folder of random weights. The peer is given spectrograms that were made beforehand, we are given
waveforms: our front end is in every time but its.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from omegaconf import DictConfig
from peers import answer, features, peer
from sidebyside import MEASURED, Bench, Claim, Row, as_if_trained, claim, difference, needs, script

from adapterbank import AdapterBank
from adapterbank.audio.mel import SAMPLE_RATE, frame_count
from adapterbank.backbone.precision import DTYPES
from adapterbank.experiments.cost import stepper
from adapterbank.experiments.timing import noise
from adapterbank.methods.lora import RANK, SCALE

TARGETS = r".*\.(q_proj|v_proj|query|value)"  # q and v by both naming schemes of transformers
QUERY_AND_VALUE = {"r": RANK, "lora_alpha": SCALE * RANK, "target_modules": TARGETS, "modules_to_save": ["classifier"]}
Claims = Iterator[Claim]


def peft_step(cfg: DictConfig, bank: AdapterBank, count: int, frames: int, precision: str) -> Callable[[], None]:
    """Forward, backward, clipping and AdamW of peft's LoRA with transformers' AST."""
    from peft import LoraConfig, get_peft_model

    model = get_peft_model(peer(bank, frames, precision), LoraConfig(**QUERY_AND_VALUE)).train()
    inputs = features(noise(count, 1.0), frames).to(bank.backbone.device, DTYPES[precision])
    labels = torch.arange(count, device=inputs.device) % cfg.classes
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=1e-3, weight_decay=0.05)

    def step() -> None:
        loss = model(inputs, labels=labels).loss
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(trained, 1.0)
        optimizer.step()
        loss.item()

    return step


def our_step(cfg: DictConfig, bench: Bench, bank: AdapterBank, method: str, precision: str) -> Callable[[], float]:
    batch = {"batch_size": bench.rows(32), "clip_seconds": 1.0, "classes": cfg.classes, "precision": precision}
    return stepper(bank, method, {"method": method}, **batch)


def training_by_default(cfg: DictConfig, bench: Bench) -> Claims:
    """4: clips a second of aat_ms at their own length in bf16, and of peft's LoRA as a user gets it."""
    bank, count = bench.open(cfg.base, "bf16"), bench.rows(cfg.peer_batch)
    theirs = peft_step(cfg, bank, count, bank.backbone.geometry.max_frames, "fp32")
    ours = our_step(cfg, bench, bank, "aat_ms", "bf16")
    more = {"precision": "bf16", "work": bench.rows(32) / count, "settle": True}
    yield bench.compare("aat_ms, bf16, clips/s against peft LoRA padded in fp32", ours, theirs, 40.0, **more)


def training_alike(cfg: DictConfig, bench: Bench) -> Claims:
    """5: the same tokens and precision as peft's LoRA."""
    for precision in MEASURED:
        bank = bench.open(cfg.base, precision)
        frames = bank.backbone.geometry.whole_frames(frame_count(SAMPLE_RATE))
        theirs = peft_step(cfg, bank, bench.rows(32), frames, precision)
        for method, goal in (("aat_ms", 0.9), ("lora", 1.0)):
            ours = our_step(cfg, bench, bank, method, precision)
            yield bench.compare(f"{method}, {precision}, against peft LoRA", ours, theirs, goal, precision=precision)


def mixed_lora(cfg: DictConfig, bench: Bench) -> Claims:
    """8: sixteen LoRA tasks in one batch, written by us and opened by peft."""
    from peft import PeftModel

    bank = bench.open(cfg.base, "fp32")
    waves, names = noise(16, 1.0), [f"t{number}" for number in range(16)]
    frames = bank.backbone.geometry.whole_frames(frame_count(SAMPLE_RATE))
    inputs = features(waves, frames)
    with TemporaryDirectory() as folder:
        for seed, name in enumerate(names):
            task = bank.add_task(name, "lora", num_classes=cfg.classes)
            as_if_trained(task, seed)
            task.head.load_state_dict(dict(bank.backbone.classifier.tensors))  # peft's mixed batches share one
            bank.export(name, "peft", Path(folder) / name, head=False)
        for precision in MEASURED:
            model = PeftModel.from_pretrained(peer(bank, frames, precision), Path(folder) / "t0", adapter_name="t0")
            for name in names[1:]:
                model.load_adapter(Path(folder) / name, adapter_name=name)
            bank.to(base_dtype=DTYPES[precision])
            ours, theirs = partial(bank, waves, names), partial(answer, model.eval(), inputs, adapter_names=names)
            yield bench.compare(f"16 LoRA tasks, {precision}", ours, theirs, 1.0, precision=precision)
            if precision == "fp32":
                gap = difference(torch.stack(ours()).cpu(), theirs().cpu())
                yield claim("16 LoRA tasks, fp32: largest difference of logits", gap, 1e-4, at_most=True, check=True)


def without_peft(row: Row) -> Row:
    """What stands in the place of a row where peft is not installed."""
    return lambda cfg, bench: iter([needs(str(row.__doc__).partition(": ")[2], "peft: pip install -e '.[bench]'")])


ROWS: dict[int | str, Row] = {4: training_by_default, 5: training_alike, 8: mixed_lora}
if find_spec("peft") is None:
    ROWS = {number: without_peft(row) for number, row in ROWS.items()}


if __name__ == "__main__":
    script(ROWS)()
