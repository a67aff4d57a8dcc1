"""What a recipe looks like, costs and takes, from Python."""

import pytest

from mapet.api.estimate import estimate
from mapet.api.listing import TEACHERS, listing
from mapet.api.memory import in_units, memory_of
from mapet.api.show import drawing, show
from mapet.cli import main
from mapet.config.flat import updated
from mapet.config.recipe import Recipe
from mapet.config.runtime import Runtime
from mapet.utils.errors import MapetError


def test_show_returns_what_the_command_prints(capsys):
    text = show("in1k-vit-base", objective="pet", model="custom", embed_dim=64, depth=1, num_heads=1)
    assert not capsys.readouterr().out
    assert "343" in text
    size = ["--model", "custom", "--embed-dim", "64", "--depth", "1", "--num-heads", "1"]
    assert main(["show", "in1k-vit-base", "--objective", "pet", *size]) == 0
    assert capsys.readouterr().out.startswith(f"{text}\n")


def test_the_memory_of_a_step_is_shown(monkeypatch):
    """By a batch, and by single images."""
    recipe = updated(Recipe(), model="custom", embed_dim=64, depth=1, num_heads=1, batch_size=32, precision="float32")
    need, one = memory_of(recipe), memory_of(recipe, Runtime(micro_batch_size=1))
    line = " ".join(show(recipe).partition("\nmemory")[2].split())
    assert line.startswith(f"{in_units(need.total)} for steps of 32: images {in_units(need.batch)}, ")
    assert line.endswith(f"; {in_units(one.total)} with --micro-batch-size 1")
    monkeypatch.setattr("mapet.api.show.memory_of", lambda *_: None)
    assert "\nmemory" not in show(recipe)


def test_teachers_are_ours_and_then_timms(monkeypatch):
    monkeypatch.setattr("timm.list_models", lambda pretrained: ["a_model", "b_model"] * pretrained)
    found = listing("teachers")
    assert list(found) == [*TEACHERS, "a_model", "b_model"]
    assert {name: found[name] for name in TEACHERS} == TEACHERS
    assert found["b_model"] == ""


def test_an_estimate_follows_from_its_steps():
    found = estimate(Recipe(), images=25_600, tflops=10)
    assert found.steps == 300 * 100
    assert found.hours == pytest.approx(found.steps * found.seconds_per_step / 3600)
    assert estimate(Recipe(), images=25_600, tflops=10, devices=4).hours == pytest.approx(found.hours / 4)
    assert estimate(Recipe(), images=25_600, tflops=20).hours == pytest.approx(found.hours / 2)
    assert estimate(images=25_600, tflops=10, epochs=30).steps == 3_000
    assert f"hours      {found.hours:.3g} on 1 device: 30,000 steps of 256" in str(found)


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"images": 5_000}, "give bench, measure or tflops"),
        ({"tflops": 1}, "give images or data"),
        ({"tflops": 0}, "^tflops must be > 0, got 0"),
        ({"tflops": 1, "measure": True}, "exclude each other"),
        ({"tflops": 1, "images": 5}, "fewer than one batch of 256"),
    ],
)
def test_an_estimate_that_cannot_be_made_is_refused(settings, said):
    with pytest.raises(MapetError, match=said):
        estimate(Recipe(), **settings)


@pytest.mark.parametrize(("share", "masked"), [(0.75, 4), (0.5, 3), (0.2, 2), (1.0, 6)])
def test_the_drawing_masks_the_recipe_s_share_of_six_patches(share, masked):
    text = drawing(updated(Recipe(), mask_ratio=share))
    assert f"mapet on 6 patches, {masked} masked" in text
    assert text.count("▶") == 1 + masked  # and once in the legend
