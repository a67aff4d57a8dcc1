"""The training stream is a pure function of (seed, step), however it is read."""

import re
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from mapet.data.crop import Crop, Crops
from mapet.data.dataset import ImageDataset, open_dataset
from mapet.data.decode import Batch
from mapet.data.image import UnreadableImage
from mapet.data.loader import Shuffled, in_memory, in_order, steps_in
from mapet.data.unreadable import UnreadableImages
from mapet.utils.errors import MapetError
from mapet.utils.view import CenterCropResize

VIEW, LARGER = CenterCropResize((6, 8)), CenterCropResize((9, 12), "lanczos")
CROPS = Crops(5, (0.2, 1.0), hflip=0.5)
COUNT, BROKEN = 23, (4, 17)


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> ImageDataset:
    root = tmp_path_factory.mktemp("images")
    noise = np.random.default_rng(0).integers(0, 256, (COUNT, 9, 10, 3), dtype=np.uint8)
    for number, image in enumerate(noise):
        Image.fromarray(image).save(root / f"{number:02d}.png")
    for number in BROKEN:
        (root / f"{number:02d}.png").write_bytes(b"")
    return open_dataset(str(root))


def lenient(path: Path | None = None) -> UnreadableImages:
    return UnreadableImages(COUNT, max_fraction=0.5, path=path)


def stream(source: ImageDataset, **options: Any) -> Shuffled:
    return Shuffled(source, VIEW, **{"batch_size": 6, "epochs": 3, "seed": 5, "bad": lenient(), **options})


def same(ours: Iterator[Batch], theirs: Iterator[Batch]) -> bool:
    pairs = list(zip(ours, theirs, strict=True))
    assert pairs
    return all(
        a.epoch == b.epoch
        and all(map(torch.equal, [a.index, *a.views], [b.index, *b.views]))
        and len(a.views) == len(b.views)
        for a, b in pairs
    )


def test_in_order_gives_every_good_picture_once(source: ImageDataset) -> None:
    bad = lenient()
    batches = list(in_order(source, VIEW, 5, bad=bad))
    index = torch.cat([batch.index for batch in batches]).tolist()
    assert index == [i for i in range(COUNT) if i not in BROKEN]
    assert len(bad) == len(BROKEN)
    for batch in batches:
        assert (batch.images.dtype, batch.images.shape[1:]) == (torch.uint8, (3, 6, 8))
        for image, index in zip(batch.images, batch.index.tolist(), strict=True):
            assert np.array_equal(image.permute(1, 2, 0), np.asarray(VIEW(source.read(index))))


def test_in_order_over_chosen_places_yields_no_empty_batch(source: ImageDataset) -> None:
    batches = list(in_order(source, VIEW, 2, bad=lenient(), indices=[17, 4, 3, 20, 9]))
    assert [batch.index.tolist() for batch in batches] == [[3], [9], [20]]
    assert same(in_order(source, VIEW, 4, bad=lenient()), in_order(source, VIEW, 4, workers=2, bad=lenient()))


def test_in_memory_is_in_order_at_once(source: ImageDataset) -> None:
    (images,), index = in_memory(source, [VIEW], bad=lenient())
    batches = list(in_order(source, VIEW, 7, bad=lenient()))
    assert torch.equal(images, torch.cat([batch.images for batch in batches]))
    assert torch.equal(index, torch.cat([batch.index for batch in batches]))


@pytest.mark.parametrize("memory", [0, 1 << 20])
def test_an_epoch_visits_each_picture_at_most_once_and_epochs_differ(source: ImageDataset, memory: int) -> None:
    shuffled = stream(source, memory=memory)
    assert (shuffled.steps_per_epoch, shuffled.steps, shuffled.held) == (3, 9, memory > 0)
    batches = list(shuffled())
    assert [batch.epoch for batch in batches] == [0, 0, 0, 1, 1, 1, 2, 2, 2]
    epochs = [torch.cat([b.index for b in batches if b.epoch == epoch]).tolist() for epoch in range(3)]
    assert all(len(set(epoch)) == len(epoch) >= 18 - len(BROKEN) for epoch in epochs)
    assert len({tuple(epoch) for epoch in epochs}) == 3
    assert set().union(*epochs) == set(range(COUNT)) - set(BROKEN)
    assert len(shuffled.bad) == len(BROKEN)


@pytest.mark.parametrize(("epochs", "steps"), [(0.01, 1), (0.5, 2), (1.75, 5), (2, 6)])
def test_a_fraction_of_an_epoch_is_the_head_of_a_longer_stream(source: ImageDataset, epochs: float, steps: int) -> None:
    part, whole = stream(source, epochs=epochs), stream(source)
    assert part.steps == steps
    for start in (0, steps - 1):
        ours, longer = list(part(start)), list(whole(start))
        assert len(ours) == steps - start
        assert all(torch.equal(a.images, b.images) and a.epoch == b.epoch for a, b in zip(ours, longer, strict=False))


def test_another_seed_gives_another_sequence(source: ImageDataset) -> None:
    assert not torch.equal(stream(source).sequence(0), stream(source, seed=6).sequence(0))


def test_memory_and_workers_change_nothing(source: ImageDataset) -> None:
    assert same(stream(source)(), stream(source, memory=0)())
    assert same(stream(source, workers=2)(), stream(source, memory=0, workers=2)())
    assert same(stream(source, second=LARGER)(), stream(source, second=LARGER, memory=0, workers=2)())
    assert same(stream(source, crops=CROPS, second=LARGER)(), stream(source, crops=CROPS, second=LARGER, workers=2)())


@pytest.mark.parametrize("second", [None, LARGER])
@pytest.mark.parametrize("crops", [None, CROPS])
def test_a_batch_shows_each_picture_as_its_epoch_does(
    source: ImageDataset, crops: Crops | None, second: CenterCropResize | None
) -> None:
    """Whatever the batch, all views are of the one crop of (seed, epoch, index)."""
    for batch in stream(source, crops=crops, second=second, epochs=2)():
        for row, index in enumerate(batch.index.tolist()):
            crop = crops(batch.epoch, [index])[0] if crops else Crop()
            for images, view in zip(batch.views, [VIEW, LARGER], strict=second is not None):
                assert np.array_equal(images[row].permute(1, 2, 0), crop(source.read(index), view))


def test_equal_views_are_made_once(source: ImageDataset) -> None:
    batch = next(stream(source, second=CenterCropResize((6, 8)))())
    assert batch.second is None
    assert batch.views == (batch.images,)
    assert next(stream(source, second=CenterCropResize((6, 8), "lanczos"))()).second is not None


def test_pictures_are_held_when_all_views_fit_and_none_is_random(source: ImageDataset) -> None:
    one, both = COUNT * 3 * 6 * 8, COUNT * 3 * (6 * 8 + 9 * 12)
    assert [stream(source, memory=memory).held for memory in (one - 1, one)] == [False, True]
    assert [stream(source, memory=memory, second=LARGER).held for memory in (both - 1, both)] == [False, True]
    assert not stream(source, crops=CROPS).held


@pytest.mark.parametrize("options", [{}, {"memory": 0}, {"crops": CROPS}])
def test_any_pictures_of_an_epoch_can_be_looked_at(source: ImageDataset, options: dict[str, Any]) -> None:
    shuffled = stream(source, second=LARGER, **options)
    batches = list(shuffled())
    assert same(iter([shuffled.at(batch.epoch, batch.index) for batch in batches]), iter(batches))


CASES = [{}, {"memory": 0}, {"memory": 0, "workers": 2}, {"crops": CROPS, "second": LARGER}]


@pytest.mark.parametrize("options", [*CASES, {"crops": CROPS, "second": LARGER, "workers": 2}])
def test_a_later_start_gives_the_tail(source: ImageDataset, options: dict[str, Any]) -> None:
    whole = list(stream(source, **options)())
    for start in (1, 3, 7) if options.get("workers") else range(9):
        assert same(stream(source, **options)(start), iter(whole[start:]))
    assert list(stream(source, **options)(9)) == []


@pytest.mark.parametrize("options", CASES)
def test_the_parts_of_two_processes_make_the_batch_of_one(source: ImageDataset, options: dict[str, Any]) -> None:
    parts = [stream(source, rank=rank, world_size=2, **options)() for rank in range(2)]
    joined = (
        Batch(images, torch.cat([a.index, b.index]), a.epoch, *second)
        for a, b in zip(*parts, strict=True)
        for images, *second in [map(torch.cat, zip(a.views, b.views, strict=True))]
    )
    assert same(joined, stream(source, **options)())


@pytest.mark.parametrize("memory", [0, 1 << 20])
def test_chosen_places_alone_are_visited(source: ImageDataset, memory: int) -> None:
    indices = torch.tensor([20, 3, 4, 9, 11, 3])
    batches = list(stream(source, memory=memory, indices=indices, batch_size=5, epochs=2)())
    assert [sorted(batch.index.tolist()) for batch in batches] == [[3, 9, 11, 20]] * 2


def test_adding_pictures_keeps_the_order_of_the_others(source: ImageDataset) -> None:
    few, all_of_them = stream(source, indices=torch.arange(10)).sequence(1), stream(source).sequence(1)
    assert torch.equal(all_of_them[all_of_them < 10], few)


def test_bad_pictures_are_listed_once_by_key(source: ImageDataset, tmp_path: Path) -> None:
    path = tmp_path / "bad.tsv"
    assert sum(len(batch.index) for batch in stream(source, memory=0, bad=lenient(path), epochs=9)()) > 0
    assert sorted(path.read_text().splitlines()) == ["04.png\tzero bytes", "17.png\tzero bytes"]


@pytest.mark.parametrize("options", [{}, {"memory": 0}, {"memory": 0, "workers": 2}])
def test_too_many_bad_pictures_stop_the_stream(source: ImageDataset, options: dict[str, int]) -> None:
    with pytest.raises(MapetError, match="2 of 23"):
        list(stream(source, bad=UnreadableImages(COUNT, max_fraction=0.05), epochs=9, **options)())


def test_torch_s_global_randomness_is_left_alone(source: ImageDataset) -> None:
    before = torch.get_rng_state()
    list(stream(source, memory=0, workers=2, epochs=1)())
    list(in_order(source, VIEW, 4, bad=lenient()))
    assert torch.equal(torch.get_rng_state(), before)


class Telltale:
    """A source whose only image is bad, for the reason that its reader handles Ctrl-C as it does."""

    name, classes = "telltale", ()

    def __len__(self) -> int:
        return 1

    def image_id(self, i: int) -> str:
        return "key"

    def label(self, i: int) -> int:
        return -1

    def read(self, i: int) -> Image.Image:
        raise UnreadableImage(str(signal.getsignal(signal.SIGINT)))


def test_workers_leave_ctrl_c_to_the_main_process(tmp_path: Path) -> None:
    for workers in (1, 0):
        path = tmp_path / f"{workers}.tsv"
        assert not list(in_order(Telltale(), VIEW, 1, workers=workers, bad=UnreadableImages(1, 1.0, path)))
        assert path.read_text() == f"key\t{signal.SIG_IGN if workers else signal.getsignal(signal.SIGINT)}\n"
    assert signal.getsignal(signal.SIGINT) != signal.SIG_IGN


def test_a_stream_can_be_left_early(source: ImageDataset) -> None:
    batches = stream(source, memory=0, workers=2)()
    assert next(batches).epoch == 0
    del batches


@pytest.mark.parametrize("options", [{"batch_size": 24}, {"batch_size": 0}, {"batch_size": 6, "world_size": 4}])
def test_batches_that_cannot_be_are_refused(source: ImageDataset, options: dict[str, int]) -> None:
    with pytest.raises(MapetError, match="batch_size") as stop:
        stream(source, **options)
    assert "\n" not in str(stop.value)


def test_epochs_beyond_counting_are_refused():
    assert steps_in(1e12, 8, 4) == 2 * 10**12
    assert steps_in(2.0**53 - 1, 4, 4) == 2**53 - 1
    for epochs in (2.0**53, 1e308):  # from the first on floats leave out numbers
        with pytest.raises(MapetError, match=re.escape(f"epochs {epochs:g} is more than can be counted")):
            steps_in(epochs, 4, 4)
