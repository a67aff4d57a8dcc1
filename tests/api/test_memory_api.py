"""A micro-batch size is chosen where the batch does not fit, and memory that is exhausted is answered once."""

import json

import pytest
import torch

import mapet
from mapet.api.kept_runtime import kept
from mapet.api.memory import memory_of
from mapet.build import footprint
from mapet.cli import main
from mapet.config.flat import updated
from mapet.config.recipe import Recipe
from mapet.config.runtime import Runtime
from mapet.engine import fit, memory
from mapet.engine.run import load_checkpoint

SIZES = {"model": "custom", "embed_dim": 16, "depth": 1, "num_heads": 2, "image_size": 16, "patch_size": 4}
SHORT = {**SIZES, "batch_size": 16, "epochs": 1, "warmup_epochs": 0, "accelerator": "cpu", "objective": "mae"}
SHORT |= {"color_jitter": 0.0}


def train(images, out, **settings):
    return mapet.pretrain(data=images, out=out, **{**SHORT, **settings})


def weights(run):
    return load_checkpoint(run.last)[1]


def same(one, other):
    ours, theirs = weights(one), weights(other)
    return ours.keys() == theirs.keys() and all(torch.equal(t, theirs[name]) for name, t in ours.items())


def lines(run, start):
    return [text for line in run.log.read_text().splitlines() if (text := line.split("  ", 1)[1]).startswith(start)]


@pytest.fixture(scope="module")
def by_four(images, tmp_path_factory):
    """A run in micro-batches of 4 images from the start."""
    return train(images, tmp_path_factory.mktemp("by") / "four", micro_batch_size=4)


def room_for(monkeypatch, size):
    """Let as much memory be available as micro-batches of ``size`` images need, and little more."""
    fraction = {n: 1e6 * n for n in (1, 2, 4, 8, 16)}

    def predicted(recipe, runtime, **settings):
        from mapet.engine.footprint import Footprint

        return Footprint(0, 0, 0, int(fraction[runtime.micro_batch_size or recipe.optimization.batch_size]))

    monkeypatch.setattr("mapet.build.footprint.predict_footprint", predicted)
    monkeypatch.setattr("mapet.build.footprint.loading_bytes", lambda shuffled: 0)
    monkeypatch.setattr("mapet.api.memory._held", lambda objective: 0)
    monkeypatch.setattr(memory, "available", lambda device: int(1.2e6 * size))


def test_a_batch_that_does_not_fit_is_split_and_noted_and_kept(images, by_four, tmp_path, monkeypatch):
    with monkeypatch.context() as patched:
        room_for(patched, 4)
        run = train(images, tmp_path / "run", epochs=1)
    (note,) = [line for line in lines(run, "note") if "micro-batch-size" in line]
    assert "--micro-batch-size 4 is chosen" in note
    assert "16 = 4 parts × 4" in lines(run, "steps")[0]
    assert kept(run.folder, Runtime).micro_batch_size == 4
    assert same(run, by_four)


def test_where_the_batch_fits_nothing_is_chosen(images, tmp_path, monkeypatch):
    run = train(images, tmp_path / "plain")
    with monkeypatch.context() as patched:
        patched.setattr(memory, "available", lambda device: None)
        assert same(run, train(images, tmp_path / "unknown"))
    assert kept(run.folder, Runtime).micro_batch_size is None
    assert not [line for line in lines(run, "note") if "micro-batch" in line]
    (line,) = lines(run, "memory")
    assert all(part in line for part in ("GiB", "at the peak: process", "weights", "optimizer", "step", "available"))


def test_a_resumed_run_keeps_the_chosen_size_whatever_is_available(images, by_four, tmp_path, monkeypatch):
    backward, calls, out = fit.backward, [], tmp_path / "run"

    def interrupted(*given, **named):
        calls.append(1)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return backward(*given, **named)

    with monkeypatch.context() as patched:
        room_for(patched, 4)
        patched.setattr(fit, "backward", interrupted)
        with pytest.raises(KeyboardInterrupt):
            train(images, out, save_every=1)
    assert same(mapet.resume(out, accelerator="cpu", runtime=Runtime()), by_four)  # now all of it would fit


def test_a_given_size_is_not_changed_but_noted(images, tmp_path, monkeypatch):
    room_for(monkeypatch, 4)
    run = train(images, tmp_path / "run", micro_batch_size=8)
    assert kept(run.folder, Runtime).micro_batch_size == 8
    assert [line for line in lines(run, "note") if "may not fit: use a smaller --micro-batch-size" in line]


def test_one_image_that_does_not_fit_is_refused_before_the_first_step(images, tmp_path, monkeypatch, capsys):
    room_for(monkeypatch, 0.5)
    settings = [f"--{name.replace('_', '-')}={value}" for name, value in SHORT.items()]
    assert main(["pretrain", "--data", str(images), "--out", str(tmp_path / "run"), *settings]) == 2
    said = capsys.readouterr().err
    assert said.count("\n") == 1
    assert "One image at a time needs 977 KiB of memory, and 586 KiB are available: use --grad-checkpointing" in said
    assert not (tmp_path / "run" / "metrics.csv").exists()


GPU = torch.OutOfMemoryError("CUDA out of memory")


def failing(times, error=GPU):
    """``backward`` that fails in the middle of the step's passes, with gradients of the first left behind."""
    backward, left = fit.backward, list(range(times))

    def fails(fabric, model, batch, accumulate, **named):
        if left:
            backward(fabric, model, {name: tensor[:1] for name, tensor in batch.items()}, 1, **named)
            left.pop()
            raise error
        return backward(fabric, model, batch, accumulate, **named)

    return fails


@pytest.mark.parametrize(
    "error",
    [GPU, RuntimeError("DefaultCPUAllocator: can't allocate memory: …")],
    ids=["gpu", "cpu"],
)
def test_exhausted_memory_is_answered_by_half_the_micro_batch(images, by_four, tmp_path, monkeypatch, error):
    monkeypatch.setattr(fit, "backward", failing(1, error))
    run = train(images, tmp_path / "run", micro_batch_size=8)
    assert [line for line in lines(run, "note") if "8 images at a time do not fit" in line]
    assert kept(run.folder, Runtime).micro_batch_size == 4
    assert same(run, by_four)
    assert run.metrics.read_text() == by_four.metrics.read_text()


@pytest.mark.parametrize(("size", "times"), [(8, 2), (1, 1)])
def test_memory_exhausted_again_is_one_line_with_the_way_out(images, tmp_path, monkeypatch, capsys, size, times):
    monkeypatch.setattr(fit, "backward", failing(times))
    settings = [f"--{name.replace('_', '-')}={value}" for name, value in SHORT.items()]
    settings += ["--micro-batch-size", str(size)]
    assert main(["pretrain", "--data", str(images), "--out", str(tmp_path / "run"), *settings]) == 2
    said = capsys.readouterr().err
    assert said.count("\n") == 1
    now, smaller = (4, "--micro-batch-size 2, ") if size == 8 else (1, "")
    assert f"A step of {now} images at a time does not fit into memory: use {smaller}--grad-checkpointing" in said


def test_other_errors_pass(images, tmp_path, monkeypatch):
    monkeypatch.setattr(fit, "backward", failing(1, RuntimeError("something else")))
    with pytest.raises(RuntimeError, match="something else"):
        train(images, tmp_path / "run")


def test_recomputation_needs_less_and_an_average_more():
    recipe = updated(Recipe(), **{**SIZES, "depth": 4, "batch_size": 512})
    plain = memory_of(recipe, device="cpu").total
    assert memory_of(recipe, Runtime(grad_checkpointing=True), "cpu").total < 0.8 * plain
    assert memory_of(updated(recipe, ema_decay=0.9), device="cpu").optimizer > memory_of(recipe, device="cpu").optimizer
    assert memory_of(recipe, Runtime(micro_batch_size=32), "cpu").total < 0.5 * plain


MATTERS = [{"batch_size": 32}, {"ema_decay": 0.9}, {"color_jitter": 0.0}, {"precision": "bfloat16"}, {"depth": 2}]
MATTERS += [{"objective": name} for name in ("pet", "mae")] + [{"mask_ratio": 0.5}]
RUNS = [Runtime(micro_batch_size=4), Runtime(devices=2), Runtime(devices=2, strategy="fsdp"), Runtime(num_nodes=2)]
RUNS += [Runtime(grad_checkpointing=True, micro_batch_size=8)]


def test_a_prediction_is_kept_for_all_that_it_depends_on():
    recipe = updated(Recipe(), **{**SIZES, "batch_size": 16, "objective": "mim"})
    kept = footprint.predict_footprint(recipe)
    assert all(footprint.predict_footprint(updated(recipe, **change)) != kept for change in MATTERS)
    assert all(footprint.predict_footprint(recipe, runtime) != kept for runtime in RUNS)
    assert footprint.predict_footprint(recipe, vocabulary=9) != kept
    same = updated(recipe, seed=3, data="elsewhere", epochs=7, lr=1.0, hflip=0.5, max_images=99, fit_images=5)
    assert footprint.predict_footprint(same, Runtime(workers=3, cache_gib=0)) is kept
    assert footprint._predicted(same, Runtime(), same.tokenizer.vocab_size, "cpu") == kept


def test_runtime_json_names_the_size(by_four):
    assert json.loads((by_four.folder / "runtime.json").read_text())["micro_batch_size"] == 4
