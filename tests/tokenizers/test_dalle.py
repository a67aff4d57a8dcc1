"""Parity with the published encoder, number by number, from images in [0, 1]."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from golden_numbers import Golden
from mapet.tokenizers.dalle import DalleEncoder
from mapet.tokenizers.tokenizer import load_tokenizer
from mapet.utils.errors import MapetError
from mapet.utils.view import CenterCropResize

LOGITS = 1e-4  # float32 on a CPU


@pytest.fixture(scope="module")
def golden() -> Golden:
    return Golden("dalle_encoder")


@pytest.fixture(scope="module")
def encoder(golden: Golden) -> DalleEncoder:
    return DalleEncoder.from_openai(golden.weights, image_size=48)


def test_codes_and_logits(golden: Golden, encoder: DalleEncoder) -> None:
    torch.testing.assert_close(encoder.logits(golden["images_raw"]), golden["logits"], atol=LOGITS, rtol=0)
    codes = encoder.encode(golden["images_raw"])
    assert codes.dtype == torch.int64
    assert torch.equal(codes, golden["codes"])
    tokens, rank, vectors = encoder.measure(golden["images_raw"])
    assert torch.equal(tokens, codes)
    torch.testing.assert_close(rank, -golden["logits"].amax(dim=1).flatten(1), atol=LOGITS, rtol=0)
    assert vectors is None


def test_sizes_are_read_off_the_shapes(golden: Golden, encoder: DalleEncoder) -> None:
    config = golden.config
    assert encoder.config == {"image_size": 48, "n_hid": config["n_hid"], "n_blk": 2, "vocabulary": config["vocab"]}
    assert (encoder.vocabulary, encoder.grid, encoder.view) == (
        config["vocab"],
        (6, 6),
        CenterCropResize((48, 48), "lanczos"),
    )
    assert set(encoder.state_dict()) == set(golden.weights)
    assert not any(parameter.requires_grad for parameter in encoder.parameters())
    assert not encoder.training


def test_another_size_sees_the_same_patches(golden: Golden, encoder: DalleEncoder) -> None:
    """Far from the border a token does not depend on where the image ends: the network is convolutional."""
    larger = DalleEncoder.from_openai(golden.weights, image_size=144)
    generator = torch.Generator().manual_seed(0)
    ground = torch.rand(1, 3, 144, 144, generator=generator)
    ema_update = ground.roll((8, 16), dims=(2, 3))
    one, other = (larger.logits(images)[0] for images in (ground, ema_update))
    torch.testing.assert_close(one[:, 7:9, 7:9], other[:, 8:10, 9:11], atol=LOGITS, rtol=0)
    assert larger.grid == (18, 18)


def test_a_folder_keeps_it(golden: Golden, encoder: DalleEncoder, tmp_path) -> None:
    encoder.save(tmp_path / "dalle")
    again = load_tokenizer(tmp_path / "dalle")
    assert isinstance(again, DalleEncoder)
    assert (again.hash, again.view, again.grid) == (encoder.hash, encoder.view, encoder.grid)
    assert torch.equal(again.encode(golden["images_raw"]), golden["codes"])
    other = DalleEncoder.from_openai(golden.weights, image_size=56)
    assert other.hash != encoder.hash


def test_the_published_size() -> None:
    with torch.device("meta"):
        encoder = DalleEncoder()
    assert (encoder.grid, encoder.vocabulary) == ((14, 14), 8192)
    shapes = {name: tuple(tensor.shape) for name, tensor in encoder.state_dict().items()}
    assert shapes["blocks.input.w"] == (256, 3, 7, 7)
    assert shapes["blocks.group_4.block_1.id_path.w"] == (2048, 1024, 1, 1)
    assert shapes["blocks.group_4.block_2.res_path.conv_1.w"] == (512, 2048, 3, 3)
    assert shapes["blocks.output.conv.w"] == (8192, 2048, 1, 1)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda w: w.pop("blocks.input.w"), r'lack "blocks\.input\.w"'),
        (lambda w: w.pop("blocks.group_3.block_2.res_path.conv_4.b"), r'lack "blocks\.group_3\.block_2'),
        (lambda w: [w.pop(name) for name in list(w) if "group_1" in name], r'lack "blocks\.group_1\.block_1'),
        (lambda w: w.update({"blocks.input.w": torch.zeros(())}), r'"blocks\.input\.w" is \(\)'),
        (lambda w: w.update({"blocks.input.w": torch.zeros(16, 1, 7, 7)}), r"is \(16, 1, 7, 7\), not \(16, 3, 7, 7\)"),
        (lambda w: w.update({"blocks.group_2.block_3.id_path.b": torch.zeros(1)}), r"group_2\.block_3.*is unknown"),
        (lambda w: w.clear(), "they hold nothing"),
    ],
)
def test_other_weights_are_refused(golden: Golden, change: Callable[[dict[str, Tensor]], object], said: str) -> None:
    weights = dict(golden.weights)
    change(weights)
    with pytest.raises(MapetError, match=said):
        DalleEncoder.from_openai(weights, image_size=48)


def test_sizes_and_pictures_that_do_not_fit(golden: Golden, encoder: DalleEncoder) -> None:
    for size, near in ((50, "48"), (4, "8"), (-8, "8")):
        with pytest.raises(MapetError, match=f"multiple of 8, got .*: use {near}"):
            DalleEncoder.from_openai(golden.weights, image_size=size)
    with pytest.raises(MapetError, match=r"\(B, 3, 48, 48\) float32 .* \(1, 3, 56, 48\) float32"):
        encoder.encode(torch.zeros(1, 3, 56, 48))
    with pytest.raises(MapetError, match="uint8"):
        encoder.encode(torch.zeros(1, 3, 48, 48, dtype=torch.uint8))
