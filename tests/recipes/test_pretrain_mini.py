"""Pretraining as a user starts it: killed, started again, and the same bits come out."""

import json
import time

import numpy as np
import pytest
import soundfile
import torch
from mlflow import MlflowClient

from adapterbank.backbone.checkpoints.opening import load_backbone
from adapterbank.pretraining.pool import Pool
from adapterbank.pretraining.sources.folder import Folder
from adapterbank.pretraining.student import MINI
from adapterbank.pretraining.views import ViewStore, draw_views, render

STEPS = 55  # the losses are logged at step 50


@pytest.fixture
def pool(tmp_path):
    rng = np.random.default_rng(0)
    folder = tmp_path / "pool"
    folder.mkdir()
    for number, seconds in enumerate((0.5, 0.9, 1.4, 0.7)):
        soundfile.write(folder / f"{number}.wav", rng.normal(size=round(seconds * 16_000)) * 0.1, 16_000)
    return folder


def arguments(pool, out, *more):
    sizes = (f"steps={STEPS}", "train.batch_tokens=60", "views.per_clip=3")
    return (f"pool={pool}", f"out={out}", *sizes, *more)


@pytest.mark.slow
@pytest.mark.parametrize("objective", [("teacher=log_mel",), ("objective=masked_patch", "teachers=null")])
def test_a_run_that_was_killed_goes_on_to_the_same_bits(pool, tmp_path, launch, run_recipe, objective):
    whole = run_recipe("pretrain_mini", tmp_path, *arguments(pool, "whole", *objective))
    assert whole.returncode == 0, whole.stderr
    killed = launch("pretrain_mini", tmp_path, *arguments(pool, "killed", *objective, "save_every=0"))
    state = tmp_path / "killed" / "state.pt"
    deadline = time.monotonic() + 240
    while killed.poll() is None and not state.is_file() and time.monotonic() < deadline:
        time.sleep(0.01)
    killed.kill()
    _, errors = killed.communicate()
    assert state.is_file(), errors
    assert torch.load(state, weights_only=True)["step"] < STEPS
    rest = run_recipe("pretrain_mini", tmp_path, *arguments(pool, "killed", *objective))
    assert rest.returncode == 0, rest.stderr
    assert f"{STEPS} steps" in rest.stdout

    models = [(tmp_path / out / "ast-mini" / "model.safetensors").read_bytes() for out in ("whole", "killed")]
    assert models[0] == models[1]
    assert load_backbone(tmp_path / "killed" / "ast-mini").geometry == MINI
    client = MlflowClient(f"sqlite:///{tmp_path / 'mlflow.db'}")
    runs = client.search_runs([client.get_experiment_by_name("pretrain_mini").experiment_id])
    assert {run.info.run_name for run in runs} == {"whole", "killed"}
    assert len(runs) == 3
    assert all(run.data.tags["kind"] == "pretraining" for run in runs)
    logged = [json.loads(line) for line in (tmp_path / "whole" / "log.jsonl").read_text().splitlines()]
    (first,) = [run for run in runs if run.info.run_name == "whole"]
    assert [entry["step"] for entry in logged] == [50]
    assert first.data.metrics["train/loss"] == pytest.approx(logged[0]["loss"], abs=1e-5)


@pytest.mark.slow
def test_a_stand_in_for_the_published_teacher_is_distilled_from_as_it_would_be(pool, tmp_path, run_recipe):
    """The published AST needs the hub; one of random weights, in the same files, goes the same way."""
    from transformers import ASTConfig, ASTFeatureExtractor, ASTForAudioClassification

    torch.manual_seed(0)
    config = ASTConfig(hidden_size=24, num_hidden_layers=2, num_attention_heads=2, intermediate_size=48, num_labels=7)
    model = ASTForAudioClassification(config).eval()
    model.save_pretrained(tmp_path / "published")
    ASTFeatureExtractor().save_pretrained(tmp_path / "published")
    (tmp_path / "more").mkdir()
    soundfile.write(tmp_path / "more" / "clip.wav", np.random.default_rng(1).normal(size=16_000) * 0.1, 16_000)
    sizes = ("steps=2", "train.batch_tokens=60", "views.per_clip={folder: 2, more: 3}")
    more = "+sources.more={source: folder, path: more}"
    run = run_recipe("pretrain_mini", tmp_path, f"pool={pool}", more, *sizes, "teacher=hf:published", "out=out")
    assert run.returncode == 0, run.stderr
    assert "5 clips" in run.stdout
    assert "11 views; 1 teachers" in run.stdout
    store = ViewStore.open(tmp_path / "out" / "views")
    made = Pool([Folder(pool), Folder(tmp_path / "more")], tmp_path / "out" / "pool")
    views = draw_views(made, [2, 3], seed=0)
    order = sorted(range(len(views)), key=lambda v: (v // len(made), views[v].columns, v))
    wave, _ = render(made, views[order[4]])
    heard = ASTFeatureExtractor()(wave.numpy(), sampling_rate=16_000, return_tensors="pt")
    with torch.no_grad():
        expected = model(**heard).logits.sigmoid()
    torch.testing.assert_close(store.batch("hf.scores", [4])[0], expected, atol=0.01, rtol=0.02)  # its own is in bf16
    assert load_backbone(tmp_path / "out" / "ast-mini").geometry == MINI


@pytest.mark.slow
def test_an_absent_pool_or_teacher_ends_with_one_clear_line(tmp_path, pool, run_recipe):
    absent = run_recipe("pretrain_mini", tmp_path, "pool=nowhere", "out=a", "teacher=log_mel")
    assert absent.returncode == 1
    assert "DatasetError: no audio in nowhere" in " ".join(absent.stderr.split())
    unknown = run_recipe("pretrain_mini", tmp_path, f"pool={pool}", "out=b", "teacher=yamnet")
    assert unknown.returncode == 1
    assert "Did you mean 'yamnet_onnx'?" in " ".join(unknown.stderr.split())
    assert "Traceback" not in absent.stderr + unknown.stderr
