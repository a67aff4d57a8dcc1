"""What a recipe looks like, costs and takes, from Python."""

import pytest

from mapet.api.estimate import estimate
from mapet.api.show import show
from mapet.cli import main
from mapet.config.recipe import Recipe
from mapet.utils.errors import MapetError


def test_show_returns_what_the_command_prints(capsys):
    text = show("in1k-vit-base", objective="pet", model="custom", embed_dim=64, depth=1, num_heads=1)
    assert not capsys.readouterr().out
    assert "343" in text
    size = ["--model", "custom", "--embed-dim", "64", "--depth", "1", "--num-heads", "1"]
    assert main(["show", "in1k-vit-base", "--objective", "pet", *size]) == 0
    assert capsys.readouterr().out.startswith(f"{text}\n")


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
