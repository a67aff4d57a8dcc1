"""Tokens of a batch: stored and made as the images come, they are the same; and always of what the student sees."""

from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from mapet.build.batches import Images, NoTokens, Online, PretrainBatches, Stored, require_fitting, shuffled_images
from mapet.config.recipe import Model, Recipe, Runtime
from mapet.data.augment import normalize, to_float
from mapet.data.crop import Crops
from mapet.data.dataset import open_dataset
from mapet.data.decode import Batch
from mapet.data.loader import Shuffled, in_order
from mapet.data.unreadable import UnreadableImages
from mapet.tokenizers.codebook import Codebook
from mapet.tokenizers.information import position_guess
from mapet.tokenizers.store import TokenStore
from mapet.tokenizers.teacher import Teacher
from mapet.utils.errors import MapetError
from mapet.utils.view import CenterCropResize

CPU = torch.device("cpu")
CROPS = Crops(0, (0.2, 1.0), hflip=0.5)


class Patches:
    """A quick tokenizer: the code of a patch is its mean of red, in 64 steps."""

    def __init__(self, view, grid):
        self.view, self.grid, self.vocabulary, self.hash = view, grid, 64, "patches"

    def to(self, device):
        return self

    def encode(self, images):
        assert images.dtype == torch.float32
        assert images.shape[2:] == self.view.size
        means = torch.nn.functional.adaptive_avg_pool2d(images[:, 0].double(), self.grid)
        return (means * 63.99).long().flatten(1)


@pytest.fixture(scope="module")
def source(images):
    return open_dataset(str(images))


def recipe_for(grid, patch_size=4, **settings):
    model = Model("custom", embed_dim=16, depth=1, num_heads=2, image_size=grid * patch_size, patch_size=patch_size)
    return Recipe(model=model, **settings)


def stream(source, recipe, second=None, **options):
    side = recipe.model.image_size
    settings = {"batch_size": 12, "epochs": 2, "seed": recipe.seed, "bad": UnreadableImages(len(source)), **options}
    return Shuffled(source, CenterCropResize((side, side)), second=second, **settings)


def online(source, recipe, tokenizer, **options):
    return PretrainBatches(recipe, stream(source, recipe, tokenizer.view, **options), Online(tokenizer, CPU), CPU)


def stored(source, tokenizer, folder):
    """The tokens of all images on disk, made 20 at a time."""
    about = {"grid": tokenizer.grid, "vocabulary": tokenizer.vocabulary, "tokenizer": tokenizer.hash}
    store = TokenStore.create(folder, view=tokenizer.view, **about)
    for batch in in_order(source, tokenizer.view, 20, bad=UnreadableImages(len(source))):
        store.append([source.image_id(i) for i in batch.index.tolist()], tokenizer.encode(to_float(batch.images)))
    return Stored(store, source, torch.arange(len(source)))


def same(ours, theirs):
    pairs = list(zip(ours, theirs, strict=True))
    assert pairs
    return all(a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a) for a, b in pairs)


@pytest.fixture(scope="module", params=[(4, 8), (8, 4)], ids=["teacher of 64 px", "teacher of 128 px"])
def codebook(request, source):
    """A codebook over a real teacher for a student of 32 pixels, and the student's recipe."""
    grid, patch_size = request.param
    teacher = Teacher("efficientnet_lite0", (grid, grid))
    batch = next(in_order(source, teacher.view, 16, bad=UnreadableImages(len(source))))
    centroids = teacher(to_float(batch.images)).flatten(0, 1)[::4]
    return Codebook(teacher, centroids, "euclidean", {}), recipe_for(grid, patch_size)


@pytest.mark.parametrize("options", [{}, {"memory": 0}])
def test_stored_and_online_tokens_are_equal(source, codebook, tmp_path, options):
    """Images of 24 × 32, 32 × 32 and 40 × 32 pixels; the student sees 32 × 32, the teacher 64 or 128."""
    book, recipe = codebook
    assert book.view.size[0] > recipe.model.image_size == 32
    ready = PretrainBatches(recipe, stream(source, recipe), stored(source, book, tmp_path), CPU)
    assert same(ready(0), online(source, recipe, book, **options)(0))
    assert len(torch.cat([batch["tokens"] for batch in ready(0)]).unique()) > 32


def test_stored_and_online_tokens_are_equal_where_one_view_serves_both(source, tmp_path):
    recipe, tokenizer = recipe_for(4), Patches(CenterCropResize((16, 16)), (4, 4))
    pretrain_batches = online(source, recipe, tokenizer)
    assert len(pretrain_batches.shuffled.views) == 1
    assert same(
        PretrainBatches(recipe, stream(source, recipe), stored(source, tokenizer, tmp_path), CPU)(0),
        pretrain_batches(0),
    )


def test_the_tokens_of_a_crop_are_those_of_the_cropped_image(source, codebook):
    book, recipe = codebook
    pretrain_batches = online(source, replace(recipe, color_jitter=0.0), book, crops=CROPS, epochs=1)
    for batch, given in zip(pretrain_batches.shuffled(0), pretrain_batches(0), strict=True):
        crops = CROPS(batch.epoch, batch.index.tolist())
        cut = [image.crop(crop.box(*image.size)) for image, crop in zip(read(source, batch), crops, strict=True)]
        assert torch.equal(given["images"], normalize(shown(cut, crops, CenterCropResize((32, 32)))))
        assert torch.equal(given["tokens"], book.encode(shown(cut, crops, book.view)))


def read(source, batch):
    return [source.read(index) for index in batch.index.tolist()]


def shown(cut, crops, view):
    """Whole images, stretched to the view's size and mirrored as their crops say: (B, 3, H, W) in [0, 1]."""
    seen = [np.array(view(image, (0, 0, *image.size))) for image in cut]
    mirrored = [pixels[:, ::-1] if crop.flip else pixels for pixels, crop in zip(seen, crops, strict=True)]
    return to_float(torch.from_numpy(np.stack(mirrored)).permute(0, 3, 1, 2))


def by_picture(pretrain_batches, start=0):
    """What was made of each image in each epoch, by (epoch, index)."""
    found = {}
    for batch, given in zip(pretrain_batches.shuffled(start), pretrain_batches(start), strict=True):
        for row, index in enumerate(batch.index.tolist()):
            assert (batch.epoch, index) not in found
            found[batch.epoch, index] = (given["tokens"][row].tolist(), given["images"][row].sum().item())
    return found


def test_batches_workers_processes_and_interruption_change_no_crop_and_no_token(source):
    recipe, tokenizer = recipe_for(4), Patches(CenterCropResize((24, 24)), (4, 4))
    whole = by_picture(online(source, recipe, tokenizer, crops=CROPS))
    assert len({tuple(tokens) for tokens, _ in whole.values()}) == len(whole) == 96
    for options in ({"batch_size": 4}, {"batch_size": 48}, {"workers": 2}):
        assert by_picture(online(source, recipe, tokenizer, crops=CROPS, **options)) == whole
    ranks = [by_picture(online(source, recipe, tokenizer, crops=CROPS, rank=rank, world_size=3)) for rank in range(3)]
    assert {**ranks[0], **ranks[1], **ranks[2]} == whole
    later = by_picture(online(source, recipe, tokenizer, crops=CROPS), start=5)
    assert later == {key: whole[key] for key in later}
    assert len(later) == 36


def test_a_real_tokenizer_s_tokens_do_not_hang_on_the_batch_either(source, codebook):
    book, recipe = codebook
    one, other = (by_picture(online(source, recipe, book, crops=CROPS, epochs=1, batch_size=n)) for n in (3, 24))
    assert {key: tokens for key, (tokens, _) in one.items()} == {key: tokens for key, (tokens, _) in other.items()}


def test_a_mirrored_image_has_mirrored_tokens(source):
    recipe, tokenizer = recipe_for(4, color_jitter=0.0), Patches(CenterCropResize((24, 24)), (4, 4))
    plain, mirrored = (online(source, recipe, tokenizer, crops=Crops(0, (0.3, 0.9), hflip=p)) for p in (0.0, 1.0))
    for ours, theirs in zip(plain(0), mirrored(0), strict=True):
        assert torch.equal(ours["images"].flip(3), theirs["images"])
        assert torch.equal(ours["tokens"].unflatten(1, (4, 4)).flip(2).flatten(1), theirs["tokens"])
        assert not torch.equal(ours["tokens"], theirs["tokens"])


def test_colours_are_jittered_for_the_student_alone(source):
    tokenizer = Patches(CenterCropResize((16, 16)), (4, 4))
    calm, wild = (online(source, recipe_for(4, color_jitter=strength), tokenizer) for strength in (0.0, 1.0))
    for ours, theirs in zip(calm(0), wild(0), strict=True):
        assert torch.equal(ours["tokens"], theirs["tokens"])
        assert not torch.allclose(ours["images"], theirs["images"], atol=0.1)


def test_the_guess_does_not_depend_on_batches_or_processes(source, tmp_path):
    recipe, tokenizer = recipe_for(4), Patches(CenterCropResize((24, 24)), (4, 4))
    feeds = [online(source, recipe, tokenizer, batch_size=n, rank=r, world_size=r + 1) for n, r in ((12, 0), (48, 1))]
    feeds.append(PretrainBatches(recipe, stream(source, recipe), stored(source, tokenizer, tmp_path), CPU))
    tokens = torch.from_numpy(feeds[2].tokens.store.tokens[:].astype(np.int64))
    assert {feed.guess() for feed in feeds[:2]} == {feeds[0].guess()}
    assert feeds[2].guess() == position_guess(tokens)
    cropped = [online(source, recipe, tokenizer, crops=CROPS, batch_size=n).guess() for n in (12, 48)]
    assert cropped[0] == cropped[1] != feeds[0].guess()


def test_a_batch_without_an_image_has_no_tokens(codebook):
    book, recipe = codebook
    empty = [torch.empty((0, 3, side, side), dtype=torch.uint8) for side in (32, book.view.size[0])]
    batch = Batch(empty[0], torch.empty(0, dtype=torch.int64), 0, empty[1])
    assert Online(book, CPU)(batch).shape == (0, recipe.grid[0] * recipe.grid[1])


def test_an_objective_without_tokens_has_none_for_each_image(source):
    feed = stream(source, recipe_for(4))
    batch = next(feed(0))
    assert NoTokens()(batch).shape == (12, 0)
    assert NoTokens().some(feed).shape == (0, 0)


def test_a_filler_is_one_black_image_with_tokens_0_in_raster_sequence(source):
    """It has the names, shapes and types of a batch, as all processes run the same operations."""
    recipe, tokenizer = recipe_for(4), Patches(CenterCropResize((24, 24)), (4, 4))
    feed = online(source, recipe, tokenizer)
    batch = next(feed(0))
    filler = feed.filler(batch)
    assert {name: (one.shape, one.dtype) for name, one in filler.items()} == {
        name: (one[:1].shape, one.dtype) for name, one in batch.items()
    }
    assert filler.pop("order").tolist() == [list(range(17))]
    assert not any(one.any() for one in filler.values())


def test_a_tokenizer_of_another_grid_or_aspect_is_refused(tmp_path):
    recipe = recipe_for(4)
    require_fitting(Patches(CenterCropResize((24, 24)), (4, 4)), tmp_path, recipe)
    with pytest.raises(MapetError, match=r"\(8, 8\).*\(4, 4\)"):
        require_fitting(Patches(CenterCropResize((24, 24)), (8, 8)), tmp_path, recipe)
    with pytest.raises(MapetError, match="aspect"):
        require_fitting(Patches(CenterCropResize((24, 48)), (4, 4)), tmp_path, recipe)


@pytest.mark.parametrize(("spare", "held"), [(0, True), (-1, False)])
def test_images_are_cached_where_they_fit_into_its_gib(source, spare, held):
    images, view = Images(source, torch.arange(48), UnreadableImages(48)), CenterCropResize((16, 16))
    settings = Runtime(cache_gib=(48 * 3 * 16 * 16 + spare) / 2**30, workers=1)
    process = SimpleNamespace(global_rank=1, world_size=2, device=CPU)
    made = shuffled_images(images, (view,), None, batch_size=12, epochs=2, seed=5, runtime=settings, fabric=process)
    assert made.held is held
    assert (made.rank, made.world_size, made.workers, made.batch_size, made.seed) == (1, 2, 1, 12, 5)
