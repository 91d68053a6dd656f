"""Rows of recipes/benchmark.py beside other libraries: transformers' AST (1, 2, 11), peft's LoRA on it (4, 5, 8).

    python recipes/benchmark.py row=1            # starts this with what it needs

Both sides open one folder of random weights. The peers are given spectrograms that were made beforehand, we are given
waveforms: our front end is in every time but theirs (row 11 has the front ends alone).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import hydra
import torch
from omegaconf import DictConfig, OmegaConf
from torch import Tensor

from adapterbank import AdapterBank, fit, load_folder
from adapterbank.backbone.ast import positions
from adapterbank.backbone.checkpoints import CLASSIFIER, EMBEDDED
from adapterbank.backbone.frontend import SAMPLE_RATE, frame_count
from adapterbank.bank import AUDIOSET, default_device
from adapterbank.errors import exit_on_error
from adapterbank.methods.lora import RANK, SCALE
from adapterbank.routing import mels_of
from adapterbank.training.cost import stepper
from adapterbank.training.protocol import RunLog
from adapterbank.training.sidebyside import (
    PRECISIONS,
    Bench,
    Claim,
    as_if_trained,
    claim,
    keep,
    needs,
    noise,
    processor,
)

TARGETS = r".*\.(q_proj|v_proj|query|value)"  # q and v by both naming schemes of transformers
QUERY_AND_VALUE = {"r": RANK, "lora_alpha": SCALE * RANK, "target_modules": TARGETS, "modules_to_save": ["classifier"]}
Claims = Iterator[Claim]


def rows(cfg: DictConfig, count: int) -> int:
    return max(1, round(count * cfg.batch))


def open_bank(cfg: DictConfig, bench: Bench, precision: str) -> AdapterBank:
    return AdapterBank.from_pretrained(cfg.base, device=bench.device, base_dtype=PRECISIONS[precision])


def features(waves: Sequence[Tensor], frames: int) -> Tensor:
    """(B, frames, M) as transformers makes them."""
    from transformers import ASTFeatureExtractor

    arrays = [wave.numpy() for wave in waves]
    return ASTFeatureExtractor(max_length=frames)(arrays, sampling_rate=SAMPLE_RATE, return_tensors="pt").input_values


def peer(
    bank: AdapterBank, frames: int, precision: str = "fp32", source: str | Path | None = None, **config: Any
) -> Any:
    """transformers' AST for spectrograms of one length, with the middle positions as ours has them."""
    from transformers import ASTForAudioClassification

    config |= {"dtype": PRECISIONS[precision], "attn_implementation": "sdpa", "ignore_mismatched_sizes": True}
    model = ASTForAudioClassification.from_pretrained(source or bank.backbone.source, max_length=frames, **config)
    sizes, table = bank.backbone.geometry, bank.backbone.weights.embed.positions
    there = model.audio_spectrogram_transformer.embeddings.position_embeddings
    there.data = positions(table, sizes, sizes.columns(frames))[None].to(there.dtype)
    return model.to(bank.backbone.device).eval()


@torch.no_grad()
def answer(model: Any, inputs: Tensor, **options: Any) -> Tensor:
    dtype = next(model.parameters()).dtype
    return model(inputs.to(next(model.parameters()).device, dtype), **options).logits


def difference(one: Tensor, other: Tensor) -> float:
    return float((one - other).abs().max())


def whole_clips(cfg: DictConfig, bench: Bench) -> Claims:
    """1: clips of 10 s in the 1024 frames that transformers pads them to, through one classifier."""
    waves = noise(rows(cfg, 8), 10.0)
    bank = open_bank(cfg, bench, "fp32")
    frames = bank.backbone.geometry.max_frames
    model, inputs = peer(bank, frames), features(waves, frames)
    theirs = partial(answer, model, inputs)
    yield bench.compare("10 s, fp32", partial(bank, waves, AUDIOSET), theirs, 1.3)
    gap = difference(bank(waves, AUDIOSET).cpu(), theirs().cpu())
    yield claim("10 s, fp32: largest difference of logits", gap, 1e-4, at_most=True, check=True)
    bank.to(base_dtype=torch.bfloat16)
    yield bench.compare("10 s, bf16 base", partial(bank, waves, AUDIOSET), theirs, 3.0, precision="bf16")
    yield compiled(bank, bench, "10 s, bf16 base", waves)
    half = partial(answer, peer(bank, frames, "bf16"), inputs)
    yield bench.compare("10 s, the peer with bf16 weights against its fp32", half, theirs, precision="bf16")
    yield agreement(cfg, bench)


def compiled(bank: AdapterBank, bench: Bench, what: str, waves: Sequence[Tensor]) -> Claim:
    """An aat_ms task as a module of its own beside the same task in the bank."""
    what = f"{what}, compile_task of aat_ms against the bank"
    if not hasattr(bank, "compile_task"):
        return needs(what, "bank.compile_task")
    as_if_trained(bank.add_task("adapted", "aat_ms", num_classes=2))
    return bench.compare(
        what, partial(bank.compile_task("adapted"), waves), partial(bank, waves, "adapted"), precision="bf16"
    )


def agreement(cfg: DictConfig, bench: Bench) -> Claim:
    """Trained ast-mini with a head in both libraries: how often bf16 here and fp32 there name the same class."""
    what = f"same top-1 on {cfg.agreement.clips} real clips, bf16 base"
    if not Path(cfg.agreement.data).is_dir():
        return needs(what, f"the folder {cfg.agreement.data}; pass agreement.data=<a folder of clips with folds>")
    data = load_folder(cfg.agreement.data)
    bank = AdapterBank.from_pretrained(device=bench.device)
    frames = bank.backbone.geometry.max_frames
    bank.add_task("real", "head", labels=data.labels, clip_seconds=bank.backbone.clip_seconds)
    fit(bank, "real", data.subset(folds=data.fold_names[:2]), epochs=10, lr=1e-2, progress=False)
    heard = data.subset(folds=data.fold_names[2:])
    heard = heard.subset(indices=range(min(len(heard), cfg.agreement.clips)))
    model = peer(bank, frames, source=EMBEDDED["ast-mini"], num_labels=len(data.labels))
    head = bank.task("real").head.state_dict()
    model.classifier.load_state_dict(
        {theirs.removeprefix("classifier."): head[own] for theirs, own in CLASSIFIER.items()}
    )
    bank.to(base_dtype=torch.bfloat16)
    same = 0
    for start in range(0, len(heard), 8):
        waves = [heard[index][0] for index in range(start, min(start + 8, len(heard)))]
        theirs = answer(model, features(waves, frames)).argmax(1)
        same += int((bank(waves, "real").argmax(1) == theirs).sum())
    return claim(what, same / len(heard), 0.995, clips=len(heard))


def short_clips(cfg: DictConfig, bench: Bench) -> Claims:
    """2: clips of 1 s at their own length, beside the padded ones that a user of the extractor gets."""
    waves = noise(rows(cfg, 32), 1.0)
    bank = open_bank(cfg, bench, "bf16")
    bank.add_task("own", "head", num_classes=cfg.classes)
    sizes = bank.backbone.geometry
    short = sizes.whole_frames(frame_count(len(waves[0])))
    theirs = partial(answer, peer(bank, sizes.max_frames), features(waves, sizes.max_frames))
    ours = partial(bank, waves, "own")
    yield bench.compare("1 s, bf16 base, the peer padded to 10 s", ours, theirs, 45.0, precision="bf16")
    yield compiled(bank, bench, "1 s, bf16 base", waves)
    cut = partial(answer, peer(bank, short, "bf16"), features(waves, short))
    yield bench.compare(f"1 s, bf16 base, the peer in bf16 and cut to {short} frames", ours, cut, precision="bf16")


def peft_step(cfg: DictConfig, bank: AdapterBank, count: int, frames: int, precision: str) -> Callable[[], None]:
    """Forward, backward, clipping and AdamW of peft's LoRA with transformers' AST."""
    from peft import LoraConfig, get_peft_model

    model = get_peft_model(peer(bank, frames, precision), LoraConfig(**QUERY_AND_VALUE)).train()
    inputs = features(noise(count, 1.0), frames).to(bank.backbone.device, PRECISIONS[precision])
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


def our_step(cfg: DictConfig, bank: AdapterBank, method: str, precision: str) -> Callable[[], float]:
    batch = {"batch_size": rows(cfg, 32), "clip_seconds": 1.0, "classes": cfg.classes, "precision": precision}
    return stepper(bank, method, {"method": method}, **batch)


def training_by_default(cfg: DictConfig, bench: Bench) -> Claims:
    """4: clips a second of aat_ms at their own length in bf16, and of peft's LoRA as a user gets it."""
    bank, count = open_bank(cfg, bench, "bf16"), rows(cfg, cfg.peer_batch)
    theirs = peft_step(cfg, bank, count, bank.backbone.geometry.max_frames, "fp32")
    ours = our_step(cfg, bank, "aat_ms", "bf16")
    more = {"precision": "bf16", "work": rows(cfg, 32) / count}
    yield bench.compare("aat_ms, bf16, clips/s against peft LoRA padded in fp32", ours, theirs, 40.0, **more)


def training_alike(cfg: DictConfig, bench: Bench) -> Claims:
    """5: the same tokens and precision as peft's LoRA."""
    for precision in PRECISIONS:
        bank = open_bank(cfg, bench, precision)
        frames = bank.backbone.geometry.whole_frames(frame_count(SAMPLE_RATE))
        theirs = peft_step(cfg, bank, rows(cfg, 32), frames, precision)
        for method, goal in (("aat_ms", 0.9), ("lora", 1.0)):
            ours = our_step(cfg, bank, method, precision)
            yield bench.compare(f"{method}, {precision}, against peft LoRA", ours, theirs, goal, precision=precision)


def mixed_lora(cfg: DictConfig, bench: Bench) -> Claims:
    """8: sixteen LoRA tasks in one batch, written by us and opened by peft."""
    from peft import PeftModel

    bank = open_bank(cfg, bench, "fp32")
    waves, names = noise(16, 1.0), [f"t{number}" for number in range(16)]
    frames = bank.backbone.geometry.whole_frames(frame_count(SAMPLE_RATE))
    inputs = features(waves, frames)
    with TemporaryDirectory() as folder:
        for seed, name in enumerate(names):
            task = bank.add_task(name, "lora", num_classes=cfg.classes)
            as_if_trained(task, seed)
            task.head.load_state_dict(dict(bank.backbone.classifier.tensors))  # peft's mixed batches share one
            bank.export(name, "peft", Path(folder) / name, head=False)
        for precision in PRECISIONS:
            model = PeftModel.from_pretrained(peer(bank, frames, precision), Path(folder) / "t0", adapter_name="t0")
            for name in names[1:]:
                model.load_adapter(Path(folder) / name, adapter_name=name)
            bank.to(base_dtype=PRECISIONS[precision])
            ours, theirs = partial(bank, waves, names), partial(answer, model.eval(), inputs, adapter_names=names)
            yield bench.compare(f"16 LoRA tasks, {precision}", ours, theirs, 1.0, precision=precision)
            if precision == "fp32":
                gap = difference(torch.stack(ours()).cpu(), theirs().cpu())
                yield claim("16 LoRA tasks, fp32: largest difference of logits", gap, 1e-4, at_most=True, check=True)


def front_ends(cfg: DictConfig, bench: Bench) -> Claims:
    """11: waveforms to normalised spectrograms."""
    bank = open_bank(cfg, bench, "fp32")
    sizes, task = bank.backbone.geometry, bank.task(AUDIOSET)
    for seconds, goal in ((10, 2.0), (1, 4.0)):
        waves = noise(rows(cfg, 64), seconds)
        whole = sizes.max_frames if seconds == 10 else sizes.whole_frames(frame_count(len(waves[0])))

        def ours(waves: Sequence[Tensor] = waves, frames: int = whole) -> Tensor:
            return torch.stack([task.prepare(mel, frames) for mel in mels_of(bank.backbone, waves)])

        theirs = partial(features, waves, sizes.max_frames)
        yield bench.compare(f"front end, {len(waves)} clips of {seconds} s", ours, theirs, goal)
        gap = difference(ours().cpu(), theirs()[:, :whole])
        yield claim(f"front end, {seconds} s: largest difference of spectrograms", gap)


ROWS = {
    1: whole_clips,
    2: short_clips,
    4: training_by_default,
    5: training_alike,
    8: mixed_lora,
    11: front_ends,
}


def run(cfg: DictConfig) -> None:
    if cfg.threads is not None:
        torch.set_num_threads(cfg.threads)
    bench = Bench(torch.device(cfg.device or default_device()), cfg.pairs, cfg.matrix)
    if cfg.row in (4, 5, 8) and find_spec("peft") is None:
        claims = iter([needs(str(ROWS[cfg.row].__doc__).partition(": ")[2], "peft: pip install -e '.[bench]'")])
    else:
        claims = ROWS[cfg.row](cfg, bench)
    log = RunLog(Path(cfg.out) / "rows.jsonl", {"cpu": processor()})
    keep(log, cfg.row, claims, OmegaConf.to_container(cfg.configuration, resolve=True))


@hydra.main(version_base=None, config_path="conf", config_name="benchmark")
def main(cfg: DictConfig) -> None:
    with exit_on_error():
        run(cfg)


if __name__ == "__main__":
    main()
