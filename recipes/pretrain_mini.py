"""Pretrains a small AST on unlabelled audio, by frozen teachers or masked patches; this made `ast-mini-2`.

    pip install -e '.[pretrain]'
    python recipes/pretrain_mini.py pool=<folder of audio> minutes=60 out=outputs/pretrain_mini
    python recipes/pretrain_mini.py out=outputs/pretrain_mini           # goes on after a kill, to the same bits
    python recipes/pretrain_mini.py steps=200000 teacher=hf:MIT/ast-finetuned-audioset-10-10-0.4593 out=outputs/base
    python recipes/pretrain_mini.py 'sources.speech={speakers: 5}' 'sources.notes={}' 'views.per_clip={folder: 3}'
    python recipes/pretrain_mini.py objective=masked_patch minutes=60 out=outputs/pretrain_ssl          # ast-mini-ssl
    python recipes/pretrain_mini.py start=outputs/pretrain_mini/state.pt views.seed=1 out=outputs/second_leg
    python recipes/pretrain_mini.py 'views_dir=[outputs/first/views,outputs/second/views]' out=outputs/third

Three steps, each of which resumes: (1) draw views of every clip: crops of about 0.2 to 10 s, other speeds, mixtures of
two clips, gain; (2) let every teacher hear every view once; (3) train the student, which hears the same views through
SpecAugment. `out/ast-mini` is a backbone in Hugging Face's format, refreshed while training goes on:
`AdapterBank.from_pretrained("outputs/pretrain_mini/ast-mini")`. Training runs one thread per micro-batch: start it with
OMP_NUM_THREADS=1, more so where others use the machine as well.
"""

from __future__ import annotations

import json
import time
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import hydra
from omegaconf import DictConfig, OmegaConf
from rich.console import Console

from adapterbank.errors import ConfigError, exit_on_error
from adapterbank.pretraining import sources, teachers
from adapterbank.pretraining.distill import Distiller, read_checkpoint
from adapterbank.pretraining.options import DistillOptions
from adapterbank.pretraining.pool import Pool
from adapterbank.pretraining.sources import Source
from adapterbank.pretraining.student import MINI, export_backbone
from adapterbank.pretraining.views import JoinedViews, Views, ViewStore, draw_views, prepare, views_per_source
from adapterbank.tracking.mlflow import Tracker
from adapterbank.training.memory import keep_freed_memory

MEASURED_STEPS = 20  # after as many that warm up, to see how many fit into `minutes`
console = Console()


def plain(node: Any) -> dict[str, Any]:
    """A part of the configuration as a plain dictionary."""
    values: Any = OmegaConf.to_container(node, resolve=True)
    return dict(values)


def made_from(cfg: DictConfig) -> dict[str, Source]:
    """The sources of sound that the configuration names; a folder is `pool` where it names no other."""
    asked = {name: plain(options) for name, options in cfg.sources.items() if options is not None}
    if "folder" in asked:
        asked["folder"] = {"path": cfg.pool, **asked["folder"]}
    return {name: sources.build(options.pop("source", name), **options) for name, options in asked.items()}


def prepare_views(cfg: DictConfig, out: Path) -> Views:
    """Steps 1 and 2: the views, and what the teachers say about them."""
    if cfg.views_dir is not None:
        if cfg.teacher is not None:
            raise ConfigError("views_dir brings the answers of its own teachers; leave out teacher=, or views_dir=.")
        folders = [cfg.views_dir] if isinstance(cfg.views_dir, str) else list(cfg.views_dir)
        stores = [ViewStore.open(folder) for folder in folders]
        kept = out / "views_used.json"  # a store may grow meanwhile; a resumed run must hear the same views
        if cfg.resume and kept.is_file():
            counts = json.loads(kept.read_text(encoding="utf-8"))
            if len(counts) != len(stores):
                raise ConfigError(
                    f"{out} was begun with {len(counts)} folders in views_dir, now there are {len(stores)}."
                )
            for store, done in zip(stores, counts, strict=True):
                store.done = min(store.done, done)
        kept.write_text(json.dumps([store.done for store in stores]), encoding="utf-8")
        for store in stores:
            console.print(f"{store.folder}: {store.done:,} of {len(store.columns):,} views are ready and used")
        joined = JoinedViews(stores, list(cfg.exclude))
        if cfg.exclude:
            console.print(f"{joined.done:,} views are without the clips {list(cfg.exclude)}")
        return joined
    made = made_from(cfg)
    pool = Pool([*made.values()], out / "pool", exclude=list(cfg.exclude))
    asked_views = plain(cfg.views)
    views = draw_views(pool, views_per_source(asked_views.pop("per_clip"), [*made]), **asked_views)
    known = {name: plain(options) for name, options in (cfg.teachers or {}).items() if options is not None}
    names = list(known) if cfg.teacher is None else [cfg.teacher] if isinstance(cfg.teacher, str) else cfg.teacher
    if cfg.objective == "masked_patch":
        names = []
    asked = [teachers.build(name, **known.get(name, {})) for name in names]
    seconds = sum(int(samples) for _, samples in pool.clips) / 16_000
    console.print(f"{len(pool)} clips, {seconds / 3600:.1f} h; {len(views)} views; {len(asked)} teachers")
    return prepare(pool, views, asked, out / "views", pass_size=len(pool), threads=cfg.teacher_threads)


def planned_steps(cfg: DictConfig, store: Views, checkpoint: Path) -> int:
    """How many steps to train: as asked, as the checkpoint says, or as many as fit into `minutes`."""
    if cfg.steps is not None:
        return int(cfg.steps)
    if cfg.resume and checkpoint.is_file():
        return int(read_checkpoint(checkpoint)["options"]["steps"])
    options = DistillOptions(steps=2 * MEASURED_STEPS, objective=cfg.objective, **plain(cfg.train))
    # The measured half has as large a share of the slower steps, those with all patch rows, as the whole run will have.
    trial = Distiller(store, replace(options, keep_until=(1 + options.keep_until) / 2))
    trial.run(until=MEASURED_STEPS)
    began = time.monotonic()
    trial.run()
    each = (time.monotonic() - began) / MEASURED_STEPS
    steps = max(100, int(60 * cfg.minutes / each))
    console.print(f"{each:.2f} s a step: {steps} steps in {cfg.minutes} minutes")
    return steps


@hydra.main(version_base=None, config_path="conf", config_name="pretrain_mini")
@exit_on_error()
def main(cfg: DictConfig) -> None:
    out = Path(cfg.out)
    out.mkdir(parents=True, exist_ok=True)
    keep_freed_memory()
    store = prepare_views(cfg, out)
    checkpoint = out / "state.pt"
    if not cfg.resume:
        checkpoint.unlink(missing_ok=True)
    steps = planned_steps(cfg, store, checkpoint)
    options = DistillOptions(steps=steps, objective=cfg.objective, **plain(cfg.train))
    distiller = Distiller(store, options, MINI)
    if cfg.start is not None:
        distiller.start_from(cfg.start)  # a checkpoint in `out`, if there is one, still goes first

    def export(state: Distiller) -> None:
        export_backbone(state.ema, state.geometry, out / "ast-mini")

    params = {"pool": cfg.pool, "views": store.done, "out": out, **asdict(options)}
    tracker = Tracker(cfg.experiment)
    with tracker.sequence(out.name, params=params, tags={"kind": "pretraining"}) as tracked:

        def log(step: int, losses: dict[str, float]) -> None:
            with (out / "log.jsonl").open("a", encoding="utf-8") as file:
                file.write(json.dumps({"step": step, **losses}) + "\n")
            metrics = {f"train/{name}": value for name, value in losses.items()}
            tracker.log_metrics(tracked.run_id, metrics, step)

        distiller.run(checkpoint, save_every=cfg.save_every, on_log=log, on_save=export)
    console.print(f"{distiller.step} steps, {distiller.seconds / 60:.1f} minutes of training: {out / 'ast-mini'}")


if __name__ == "__main__":
    main()
