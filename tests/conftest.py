"""Images for the tests: small ones made here, and CIFAR-10 where it can be had."""

import gc
import os
import signal
import traceback

os.environ["OMP_NUM_THREADS"] = "1"  # before torch is imported: bit-equality holds for one number of threads
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:  # as under nohup, and inherited by every process of a test
    signal.signal(signal.SIGINT, signal.default_int_handler)

import numpy as np
import pytest
import torch
from PIL import Image

from mapet.utils.errors import MapetError

LONGEST = (  # files that take longest: begun first, none is left alone at the end
    "test_site", "test_every_verb", "test_compare", "test_docs", "test_pretrain", "test_public_api",
    "test_footprint", "test_sharding", "test_bench", "test_signals", "test_leftovers", "test_damage", "test_report",
)  # fmt: skip


def pytest_collection_modifyitems(items):
    items.sort(key=lambda item: LONGEST.index(item.path.stem) if item.path.stem in LONGEST else len(LONGEST))


def pytest_collection():
    """Modules hold half a million objects that are never garbage: they are not searched, and forks share them."""
    gc.disable()


def pytest_collection_finish():
    gc.freeze()
    gc.enable()


@pytest.hookimpl(tryfirst=True)
def pytest_pyfunc_call(pyfuncitem):
    """A test marked ``isolated`` runs in a fork: what it does to torch (threads of fake devices) ends with it."""
    if pyfuncitem.get_closest_marker("isolated") is None:
        return None
    arguments = {name: pyfuncitem.funcargs[name] for name in pyfuncitem._fixtureinfo.argnames}
    read, write = os.pipe()
    pid = os.fork()
    if not pid:
        os.close(read)
        text = ""
        try:
            pyfuncitem.obj(**arguments)
        except BaseException:
            text = traceback.format_exc()
        os.write(write, text.encode()[-60_000:])
        os._exit(0)
    os.close(write)
    with os.fdopen(read, "rb") as pipe:
        text = pipe.read().decode(errors="replace")
    _, status = os.waitpid(pid, 0)
    if text or status:
        pytest.fail(text or f"the process ended with status {status}", pytrace=False)
    return True


@pytest.fixture(autouse=True)
def seeded():
    """The same numbers for a test whatever ran before it."""
    torch.manual_seed(0)


@pytest.fixture(scope="session")
def images(tmp_path_factory):
    """A labelled folder: 2 classes of 24 images, stripes across or along on a coloured ground, sizes mixed."""
    root = tmp_path_factory.mktemp("images")
    chance = np.random.default_rng(0)
    for label, name in enumerate(("across", "along")):
        (root / name).mkdir()
        for number in range(24):
            height, width = 24 + number % 3 * 8, 32
            stripes = np.indices((height, width))[label] // chance.integers(2, 5) % 2
            pixels = stripes[..., None] * chance.integers(60, 200, 3) + chance.integers(0, 50, (height, width, 3))
            Image.fromarray(pixels.astype(np.uint8)).save(root / name / f"{number:02d}.png")
    return root


@pytest.fixture(scope="session")
def cifar10():
    """("cifar10" training source, test source); skips where the images cannot be had."""
    from mapet.data.dataset import open_dataset

    try:
        return open_dataset("cifar10", "train"), open_dataset("cifar10", "test")
    except MapetError as error:
        pytest.skip(str(error))
