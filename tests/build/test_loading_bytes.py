"""The bytes that loading needs beside the training are counted from shapes."""

import pytest

from mapet.build.footprint import WORKER, loading_bytes
from mapet.data.dataset import open_dataset
from mapet.data.loader import Shuffled
from mapet.data.unreadable import UnreadableImages
from mapet.utils.view import CenterCropResize

IMAGE = 3 * (16 * 8 + 6 * 3)  # in both views


@pytest.fixture(scope="module")
def shuffled(images):
    def made(**options):
        source, views = open_dataset(str(images)), (CenterCropResize((16, 8)), CenterCropResize((6, 3)))
        options = {"batch_size": 12, "epochs": 1, "seed": 0, "bad": UnreadableImages(len(source)), **options}
        return Shuffled(source, views[0], second=views[1], **options)

    return made


def test_a_process_holds_its_batch_and_two_more_for_each_worker(shuffled):
    assert loading_bytes(shuffled(memory=0)) == 12 * IMAGE
    assert loading_bytes(shuffled(memory=0, world_size=3)) == 4 * IMAGE
    assert loading_bytes(shuffled(memory=0, workers=1)) == 3 * 12 * IMAGE + WORKER
    assert loading_bytes(shuffled(memory=0, workers=4, world_size=2)) == 9 * 6 * IMAGE + 4 * WORKER


def test_images_that_are_kept_are_counted_until_they_are_decoded(shuffled):
    kept = shuffled(workers=2)
    assert loading_bytes(kept) == 48 * IMAGE
    next(kept(0))
    assert loading_bytes(kept) == 0
