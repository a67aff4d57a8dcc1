"""Whether images that lie elsewhere now are the same, by a sample of what they hold."""

import numpy as np
import pytest
import torch
from PIL import Image

from mapet.data.contents import SAMPLED, content_hash, differences, sample
from mapet.data.dataset import open_dataset
from mapet.data.device import to_device
from mapet.data.given import GivenImages


def noise(seed):
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (6, 5, 3), np.uint8))


@pytest.fixture
def folder(tmp_path):
    for number in range(40):
        noise(number).save(tmp_path / f"{number:02d}.png")
    return tmp_path


@pytest.mark.parametrize(("count", "every"), [(40, 3), (32, 2), (17, 2), (16, 1), (1, 1)])
def test_evenly_spaced_images_are_sampled(folder, count, every):
    source = open_dataset(str(folder))
    found = sample(source, torch.arange(count))
    assert list(found) == [f"{i:02d}.png" for i in range(0, count, every)]
    assert len(found) <= SAMPLED
    assert len(set(found.values())) == len(found)


def test_another_content_is_told_and_an_unreadable_or_missing_image_is_not(folder):
    recorded = sample(open_dataset(str(folder)), torch.arange(40))
    assert differences(open_dataset(str(folder)), recorded) == []
    noise(99).save(folder / "03.png")
    (folder / "06.png").write_bytes(b"damaged")
    (folder / "09.png").unlink()
    noise(98).save(folder / "04.png")  # not in the sample
    assert differences(open_dataset(str(folder)), recorded) == ['its image "03.png" has another content']
    assert differences(open_dataset(str(folder)), {}) == []


def test_images_in_memory_hash_by_pixels_and_cannot_be_compared_with_files(folder):
    pixels = [np.asarray(noise(n)) for n in (0, 0, 1)]
    hashes = [content_hash(GivenImages(pixels), i) for i in range(3)]
    assert hashes[0] == hashes[1] != hashes[2]
    assert all(one.startswith("pixels:") for one in hashes)
    (folder / "00.png").rename(folder / "0.png")
    said = differences(open_dataset(str(folder)), {"0.png": hashes[0]})
    assert said == ["its images are stored as file, not as pixels"]


class Stub:
    """Of a tensor, what a copy to a device uses."""

    def __init__(self, device):
        self.device, self.pinned = torch.device(device), False

    def pin_memory(self):
        self.pinned = True
        return self

    def to(self, device, non_blocking=False):
        return device, self.pinned, non_blocking


@pytest.mark.parametrize(
    ("where", "device", "pinned"),
    [("cpu", "cuda", True), ("cpu", "cuda:1", True), ("cuda", "cuda", False), ("cuda", "cpu", False)],
)
def test_only_copies_from_the_host_to_a_gpu_are_not_waited_for(where, device, pinned):
    assert to_device(Stub(where), device) == (device, pinned, pinned)
