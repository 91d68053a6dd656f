"""Rows of recipes/benchmark.py beside transformers' AST: inference (1, 2) and front ends (11).

    python recipes/benchmark.py row=1            # starts this with what it needs

Both sides open one folder of random weights. The peer is given spectrograms that were made beforehand, we are given
waveforms: our front end is in every time but its (row 11 has the front ends alone).
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path

import torch
from omegaconf import DictConfig
from peers import answer, features, peer
from sidebyside import Bench, Claim, claim, difference, needs, script
from torch import Tensor

from adapterbank import AdapterBank, fit, load_folder
from adapterbank.audio.mel import frame_count
from adapterbank.backbone.checkpoints.embedded import EMBEDDED
from adapterbank.backbone.checkpoints.names import CLASSIFIER
from adapterbank.bank import AUDIOSET
from adapterbank.experiments.timing import noise
from adapterbank.routing.run import mels_of

Claims = Iterator[Claim]


def whole_clips(cfg: DictConfig, bench: Bench) -> Claims:
    """1: clips of 10 s in the 1024 frames that transformers pads them to, through one classifier."""
    waves = noise(bench.rows(8), 10.0)
    bank = bench.open(cfg.base, "fp32")
    frames = bank.backbone.geometry.max_frames
    model, inputs = peer(bank, frames), features(waves, frames)
    theirs = partial(answer, model, inputs)
    yield bench.compare("10 s, fp32", partial(bank, waves, AUDIOSET), theirs, 1.3)
    gap = difference(bank(waves, AUDIOSET).cpu(), theirs().cpu())
    yield claim("10 s, fp32: largest difference of logits", gap, 1e-4, at_most=True, check=True)
    bank.to(base_dtype=torch.bfloat16)
    yield bench.compare("10 s, bf16 base", partial(bank, waves, AUDIOSET), theirs, 3.0, precision="bf16")
    in_bf16 = partial(answer, peer(bank, frames, "bf16"), inputs)
    yield bench.compare("10 s, the peer with bf16 weights against its fp32", in_bf16, theirs, precision="bf16")
    yield agreement(cfg, bench)


def agreement(cfg: DictConfig, bench: Bench) -> Claim:
    """Trained ast-mini-2 with a head in both libraries: how often bf16 here and fp32 there name the same class."""
    what = f"same top-1 on {cfg.agreement.clips} real clips, bf16 base"
    if not Path(cfg.agreement.data).is_dir():
        return needs(what, f"the folder {cfg.agreement.data}; pass agreement.data=<a folder of clips with folds>")
    data = load_folder(cfg.agreement.data)
    bank = AdapterBank.from_pretrained(device=bench.device)
    frames = bank.backbone.geometry.max_frames
    bank.add_task("real", "head", labels=data.labels, clip_seconds=bank.backbone.clip_seconds)
    fit(bank, "real", data.subset(folds=data.fold_names[:2]), epochs=10, lr=1e-2, progress=False)
    heard = data.subset(folds=data.fold_names[2:])
    if len(heard) < cfg.agreement.clips:
        return needs(what, f"{cfg.agreement.clips} clips in all folds but two of {data.name}, found {len(heard)}")
    heard = heard.subset(indices=range(cfg.agreement.clips))
    model = peer(bank, frames, source=EMBEDDED["ast-mini-2"], num_labels=len(data.labels))
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
    """2: clips of 1 s at their own length, beside the padded ones that a user of the extractor gets.

    The module that `compile_task` makes of the task is what a service runs; the bank itself stands beside it.
    """
    waves = noise(bench.rows(32), 1.0)
    bank = bench.open(cfg.base, "bf16")
    bank.add_task("own", "head", num_classes=cfg.classes)
    sizes = bank.backbone.geometry
    short = sizes.whole_frames(frame_count(len(waves[0])))
    theirs = partial(answer, peer(bank, sizes.max_frames), features(waves, sizes.max_frames))
    ours, served = partial(bank, waves, "own"), partial(bank.compile_task("own", torch_compile=True), waves)
    yield bench.compare("1 s, bf16 base, the peer padded to 10 s", ours, theirs, 45.0, precision="bf16")
    what = "1 s, bf16 base, compile_task with torch.compile"
    if shutil.which("g++"):
        yield bench.compare(f"{what}, the peer padded to 10 s", served, theirs, 45.0, precision="bf16", counted=False)
        yield bench.compare(f"{what} against the bank", served, ours, precision="bf16", counted=False)
    else:
        yield needs(what, "a C++ compiler: install g++")
    cut = partial(answer, peer(bank, short, "bf16"), features(waves, short))
    yield bench.compare(f"1 s, bf16 base, the peer in bf16 and cut to {short} frames", ours, cut, precision="bf16")


def front_ends(cfg: DictConfig, bench: Bench) -> Claims:
    """11: waveforms to normalised spectrograms."""
    bank = bench.open(cfg.base, "fp32")
    sizes, task = bank.backbone.geometry, bank.task(AUDIOSET)
    for seconds, goal in ((10, 2.0), (1, 4.0)):
        waves = noise(bench.rows(64), seconds)
        whole = sizes.max_frames if seconds == 10 else sizes.whole_frames(frame_count(len(waves[0])))

        def ours(waves: Sequence[Tensor] = waves, frames: int = whole) -> Tensor:
            return torch.stack([task.prepare(mel, frames) for mel in mels_of(bank.backbone, waves)])

        theirs = partial(features, waves, sizes.max_frames)
        what = f"front end, {len(waves)} clips of {seconds} s"
        yield bench.compare(what, ours, theirs, goal, settle=True)  # some ms: collecting garbage empties the caches
        gap = difference(ours().cpu(), theirs()[:, :whole])
        yield claim(f"front end, {seconds} s: largest difference of spectrograms", gap)


ROWS = {1: whole_clips, 2: short_clips, 11: front_ends}


if __name__ == "__main__":
    script(ROWS)()
