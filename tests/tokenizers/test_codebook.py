import json
import math
from pathlib import Path

import pytest
import timm
import torch
from torch import Tensor, nn

from mapet.errors import MapetError
from mapet.tokenizers.codebook import Codebook, perplexity, usage
from mapet.tokenizers.kmeans import assign
from mapet.tokenizers.teacher import Teacher
from mapet.view import View


class MeanColour(nn.Module):
    """A teacher that sees only its own patch: the mean colour of 4x4 pixels on a 2x3 grid."""

    name, stage, grid, width, origin, view = "mean", 0, (2, 3), 3, "random", View((8, 12))

    def forward(self, images: Tensor) -> Tensor:
        return nn.functional.avg_pool2d(images, 4).flatten(2).transpose(1, 2)

    def describe(self) -> dict[str, str]:
        return {"name": "mean"}


def pictures(count: int, size: tuple[int, int], seed: int = 0) -> Tensor:
    """Random pictures (B, 3, H, W) uint8 whose 4x4 blocks differ in colour."""
    generator = torch.Generator().manual_seed(seed)
    blocks = torch.randint(256, (count, 3, size[0] // 4, size[1] // 4), generator=generator)
    return blocks.repeat_interleave(4, 2).repeat_interleave(4, 3).to(torch.uint8)


def batches(images: Tensor, size: int, order: Tensor | None = None):
    order = torch.arange(len(images)) if order is None else order
    return [(images[index], index) for index in order.split(size)]


@pytest.fixture(scope="module")
def teacher() -> Teacher:
    return Teacher("resnet10t", (2, 2), stage=2, pretrained=False)


def test_fit_save_load_encode(teacher: Teacher, tmp_path: Path) -> None:
    images = pictures(20, teacher.view.size)
    seen: list[int] = []
    book = Codebook.fit(teacher, batches(images, 6), codes=16, iterations=5, progress=seen.append)
    assert seen == [6, 12, 18, 20]
    tokens = book.encode(images / 255)
    assert (tokens.shape, tokens.dtype, book.vocabulary, book.grid) == ((20, 4), torch.int64, 16, (2, 2))
    nearest = assign(teacher(images / 255).flatten(0, 1), book.centroids)[0]
    assert torch.equal(tokens.flatten(), nearest)
    assert usage(tokens, 16).tolist() == book.provenance["counts"]

    book.save(tmp_path / "book")
    again = Codebook.load(tmp_path / "book")
    assert torch.equal(again.encode(images / 255), tokens)
    assert again.hash == book.hash
    assert again.provenance == book.provenance
    assert again.view == teacher.view
    assert sorted(path.name for path in tmp_path.rglob("*.*")) == ["codebook.json", "codebook.safetensors"]


def test_provenance_tells_the_whole_story(teacher: Teacher, tmp_path: Path) -> None:
    images = pictures(10, teacher.view.size)
    Codebook.fit(teacher, batches(images, 5), codes=8, samples=30, iterations=3, seed=4).save(tmp_path / "book")
    fields = json.loads((tmp_path / "book" / "codebook.json").read_text())
    assert fields["teacher"] == teacher.describe()
    story = fields["provenance"]
    assert (story["seed"], story["samples"], story["pictures"], story["iterations"]) == (4, 30, 10, 3)
    assert sum(story["counts"]) == 30
    assert story["perplexity"] == pytest.approx(perplexity(torch.tensor(story["counts"])))
    assert 1 <= len(story["objective"]) <= 4
    assert set(story["versions"]) == {"mapet", "torch", "timm"}


@pytest.mark.parametrize("metric", ["euclidean", "cosine"])
@pytest.mark.parametrize("start", ["k-means++", "sample"])
def test_is_the_same_for_any_batches_and_order(metric: str, start: str) -> None:
    images = pictures(40, (8, 12))
    options = {"codes": 10, "samples": 100, "metric": metric, "start": start}
    one = Codebook.fit(MeanColour(), batches(images, 40), **options)
    other = Codebook.fit(MeanColour(), batches(images, 7, torch.arange(40).flip(0)), **options)
    assert torch.equal(one.centroids, other.centroids)
    assert one.hash == other.hash
    assert one.hash != Codebook.fit(MeanColour(), batches(images, 40), **options, seed=1).hash


def test_permuted_patches_give_permuted_tokens() -> None:
    images = pictures(30, (8, 12))
    book = Codebook.fit(MeanColour(), batches(images, 30), codes=50)
    blocks = images.view(30, 3, 2, 4, 3, 4).permute(0, 2, 4, 1, 3, 5).flatten(1, 2)  # (B, L, 3, 4, 4), row by row
    order = torch.tensor([4, 2, 0, 5, 1, 3])
    mixed = blocks[:, order].unflatten(1, (2, 3)).permute(0, 3, 1, 4, 2, 5).reshape(images.shape)
    tokens = book.encode(images / 255)
    assert len(tokens.unique()) == 50
    assert torch.equal(book.encode(mixed / 255), tokens[:, order])


def test_restarts_keep_the_best() -> None:
    images = pictures(30, (8, 12))

    def reached(restarts: int) -> float:
        book = Codebook.fit(
            MeanColour(), batches(images, 30), codes=20, iterations=1, start="sample", restarts=restarts
        )
        return min(book.provenance["objective"])

    values = [reached(restarts) for restarts in (1, 2, 4, 8)]
    assert values == sorted(values, reverse=True)
    assert values[-1] < values[0]


def test_cosine_ignores_brightness() -> None:
    images = pictures(30, (8, 12))
    book = Codebook.fit(MeanColour(), batches(images, 30), codes=20, metric="cosine")
    torch.testing.assert_close(book.centroids.norm(dim=1), torch.ones(20))
    assert torch.equal(book.encode(images / 255), book.encode(images / 510))


def test_the_hash_identifies_the_tokenizer(teacher: Teacher) -> None:
    centroids = torch.rand(5, teacher.width, generator=torch.Generator().manual_seed(0))
    book = Codebook(teacher, centroids, "euclidean", {})
    assert book.hash == Codebook(teacher, centroids.clone(), "euclidean", {"other": 1}).hash
    moved = centroids.clone()
    moved[3, 2] = torch.nextafter(moved[3, 2], torch.tensor(9.0))
    assert book.hash != Codebook(teacher, moved, "euclidean", {}).hash
    assert book.hash != Codebook(teacher, centroids, "cosine", {}).hash
    other = Teacher("resnet10t", (4, 4), stage=2, pretrained=False)
    assert book.hash != Codebook(other, centroids, "euclidean", {}).hash


def test_other_teacher_weights_are_refused_with_both_named(tmp_path: Path) -> None:
    file, other = tmp_path / "mine.pth", tmp_path / "other.pth"
    torch.save(timm.create_model("resnet10t").state_dict(), file)
    torch.save(timm.create_model("resnet10t").state_dict(), other)
    teacher = Teacher("resnet10t", (2, 2), stage=1, weights=file)
    book = Codebook(teacher, torch.rand(4, teacher.width), "euclidean", {})
    book.save(tmp_path / "book")
    assert Codebook.load(tmp_path / "book", teacher_weights=file).hash == book.hash
    with pytest.raises(MapetError, match=r"file mine.pth: name it with --teacher-weights"):
        Codebook.load(tmp_path / "book")
    with pytest.raises(MapetError, match="resnet10t weights") as caught:
        Codebook.load(tmp_path / "book", teacher_weights=other)
    assert teacher.describe()["weights"] in str(caught.value)


def test_damaged_folders_are_explained(teacher: Teacher, tmp_path: Path) -> None:
    folder = tmp_path / "book"
    with pytest.raises(MapetError, match="is not a codebook"):
        Codebook.load(folder)
    Codebook(teacher, torch.rand(4, teacher.width), "euclidean", {}).save(folder)
    older = (folder / "codebook.json").read_bytes()
    Codebook(teacher, torch.rand(4, teacher.width), "euclidean", {}).save(folder)
    assert Codebook.load(folder).vocabulary == 4
    newer = (folder / "codebook.json").read_bytes()
    for content, words in ((older, "do not belong together"), (b"{}", "damaged"), (b"{", "damaged")):
        (folder / "codebook.json").write_bytes(content)
        with pytest.raises(MapetError, match=words):
            Codebook.load(folder)
    (folder / "codebook.json").write_bytes(newer)
    (folder / "codebook.safetensors").write_bytes(b"not tensors")
    with pytest.raises(MapetError, match="damaged"):
        Codebook.load(folder)


def test_too_few_patches_and_unknown_words_are_explained() -> None:
    images = pictures(2, (8, 12))
    with pytest.raises(MapetError, match=r"there are 12 \(2 pictures, a grid of 2x3\): use fewer codes"):
        Codebook.fit(MeanColour(), batches(images, 2), codes=13)
    with pytest.raises(MapetError, match='Did you mean "k-means'):
        Codebook.fit(MeanColour(), batches(images, 2), codes=2, start="kmeans++")
    with pytest.raises(MapetError, match='Did you mean "cosine"'):
        Codebook.fit(MeanColour(), batches(images, 2), codes=2, metric="cosinus")


def test_usage_and_perplexity() -> None:
    counts = usage(torch.tensor([[0, 1], [1, 3]], dtype=torch.int32), 5)
    assert counts.tolist() == [1, 2, 0, 1, 0]
    assert perplexity(counts) == pytest.approx(math.exp(0.5 * math.log(4) + 0.5 * math.log(2)))
    assert perplexity(torch.full((7,), 3)) == pytest.approx(7)
    assert perplexity(torch.tensor([0, 9, 0])) == pytest.approx(1)
