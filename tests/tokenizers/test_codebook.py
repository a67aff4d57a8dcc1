import json
import math
import os
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from torch import Tensor

from fitted import MeanColour, Shown, coloured
from mapet.interop.timm import to_timm
from mapet.method.encoder import Encoder
from mapet.tokenizers.assign import assign
from mapet.tokenizers.codebook import Codebook, perplexity, usage
from mapet.tokenizers.codebook_fit import KMeansSettings
from mapet.tokenizers.pixels import Pixels
from mapet.tokenizers.teacher import Features, Teacher, open_teacher
from mapet.tokenizers.tokenizer import load_tokenizer
from mapet.utils.errors import MapetError


def fit(teacher: Features, images: Tensor, size: int = 7, **settings: Any) -> Codebook:
    return Codebook.fit(teacher, Shown(images, size), torch.arange(len(images)), KMeansSettings(**settings))


@pytest.fixture(scope="module")
def teacher() -> Teacher:
    return Teacher("resnet10t", (2, 2), stage=2, pretrained=False)


def test_fit_save_load_encode(teacher: Teacher, tmp_path: Path) -> None:
    images = coloured(20, teacher.view.size)
    seen: list[tuple[str, int, int]] = []
    book = Codebook.fit(
        teacher,
        Shown(images, 6),
        torch.arange(20),
        KMeansSettings(codes=16, iterations=5),
        progress=lambda *told: seen.append(told),
    )
    assert seen[:4] == [("features", done, 20) for done in (6, 12, 18, 20)]
    assert set(seen[4:]) <= {("k-means", 80 * passes, 6 * 80) for passes in range(1, 7)}
    tokens = book.encode(images / 255)
    assert (tokens.shape, tokens.dtype, book.vocabulary, book.grid) == ((20, 4), torch.int64, 16, (2, 2))
    nearest = assign(teacher(images / 255).flatten(0, 1), book.centroids)[0]
    assert torch.equal(tokens.flatten(), nearest)
    assert usage(tokens, 16).tolist() == book.provenance["counts"]

    book.save(tmp_path / "book")
    again = load_tokenizer(tmp_path / "book")
    assert torch.equal(again.encode(images / 255), tokens)
    assert again.hash == book.hash
    assert again.provenance == book.provenance
    assert again.view == teacher.view
    assert sorted(path.name for path in tmp_path.rglob("*.*")) == ["tokenizer.json", "tokenizer.safetensors"]


def test_provenance_tells_the_whole_story(teacher: Teacher, tmp_path: Path) -> None:
    images = coloured(10, teacher.view.size)
    fit(teacher, images, codes=8, samples=30, iterations=3, seed=4).save(tmp_path / "book")
    fields = json.loads((tmp_path / "book" / "tokenizer.json").read_text())
    assert fields["teacher"] == teacher.describe()
    story = fields["provenance"]
    assert (story["seed"], story["samples"], story["images"], story["iterations"]) == (4, 30, 10, 3)
    assert sum(story["counts"]) == 30
    assert story["perplexity"] == pytest.approx(perplexity(torch.tensor(story["counts"])))
    assert 1 <= len(story["objective"]) <= 4
    assert set(story["versions"]) == {"mapet", "torch", "timm"}


def test_permuted_patches_give_permuted_tokens() -> None:
    images = coloured(30, (8, 12))
    book = fit(MeanColour(), images, codes=50)
    blocks = images.view(30, 3, 2, 4, 3, 4).permute(0, 2, 4, 1, 3, 5).flatten(1, 2)  # (B, L, 3, 4, 4), row by row
    order = torch.tensor([4, 2, 0, 5, 1, 3])
    mixed = blocks[:, order].unflatten(1, (2, 3)).permute(0, 3, 1, 4, 2, 5).reshape(images.shape)
    tokens = book.encode(images / 255)
    assert len(tokens.unique()) == 50
    assert torch.equal(book.encode(mixed / 255), tokens[:, order])


def test_cosine_ignores_brightness() -> None:
    images = coloured(30, (8, 12))
    book = fit(MeanColour(), images, codes=20, metric="cosine")
    torch.testing.assert_close(book.centroids.norm(dim=1), torch.ones(20))
    assert torch.equal(book.encode(images / 255), book.encode(images / 510))


def test_features_that_are_no_numbers_have_no_tokens() -> None:
    book = fit(MeanColour(), coloured(30, (8, 12)), codes=20)
    images = coloured(2, (8, 12)) / 255
    images[1, 0, 5, 5] = torch.nan
    with pytest.raises(MapetError, match="hold NaN or Inf"):
        book.encode(images)


def test_the_hash_identifies_the_tokenizer(teacher: Teacher) -> None:
    centroids = torch.rand(5, teacher.width, generator=torch.Generator().manual_seed(0))
    book = Codebook(teacher, centroids, "euclidean", {})
    assert book.hash == Codebook(teacher, centroids.clone(), "euclidean", {"other": 1}).hash
    ema_update = centroids.clone()
    ema_update[3, 2] = torch.nextafter(ema_update[3, 2], torch.tensor(9.0))
    assert book.hash != Codebook(teacher, ema_update, "euclidean", {}).hash
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
    assert load_tokenizer(tmp_path / "book", teacher_weights=file).hash == book.hash
    with pytest.raises(MapetError, match=r"file mine.pth: give it with teacher_weights"):
        load_tokenizer(tmp_path / "book")
    with pytest.raises(MapetError, match="resnet10t weights") as caught:
        load_tokenizer(tmp_path / "book", teacher_weights=other)
    assert teacher.describe()["weights"] in str(caught.value)


def test_a_codebook_over_a_head_finds_it_again(tmp_path: Path) -> None:
    teacher = Teacher("vit_tiny_patch16_224", (2, 2), output="head", pretrained=False)
    book = Codebook(teacher, torch.rand(4, 1000), "euclidean", {})
    book.save(tmp_path / "book")
    again = load_tokenizer(tmp_path / "book")
    images = torch.rand(1, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    assert (again.hash, again.encode(images).tolist()) == (book.hash, book.encode(images).tolist())


def test_a_codebook_over_pixels_needs_nothing_else(tmp_path: Path) -> None:
    images = coloured(12, (8, 12))
    book = fit(Pixels((2, 3), 4), images, codes=9)
    book.save(tmp_path / "book")
    again = load_tokenizer(tmp_path / "book")
    assert torch.equal(again.encode(images / 255), book.encode(images / 255))
    assert (again.hash, again.grid, again.view.size) == (book.hash, (2, 3), (8, 12))


def test_a_codebook_over_a_run_finds_its_export_wherever_it_is(export: Path, tmp_path: Path) -> None:
    book = Codebook(open_teacher(str(export), (4, 4)), torch.rand(5, 16), "euclidean", {})
    book.save(tmp_path / "book")
    assert load_tokenizer(tmp_path / "book").hash == book.hash
    ema_update = export.rename(tmp_path / "elsewhere")
    with pytest.raises(MapetError, match=f"was in {export}: give its folder with teacher_weights"):
        load_tokenizer(tmp_path / "book")
    assert load_tokenizer(tmp_path / "book", teacher_weights=ema_update).hash == book.hash


@pytest.fixture
def export(tmp_path: Path) -> Path:
    encoder = Encoder((16, 16), 4, embed_dim=16, depth=2, num_heads=2)
    return to_timm(encoder, tmp_path / "export", mean=(0.5, 0.4, 0.3), std=(0.2, 0.3, 0.4))


def test_damaged_folders_are_explained(teacher: Teacher, tmp_path: Path) -> None:
    folder = tmp_path / "book"
    with pytest.raises(MapetError, match="is not a tokenizer"):
        load_tokenizer(folder)
    Codebook(teacher, torch.rand(4, teacher.width), "euclidean", {}).save(folder)
    older = (folder / "tokenizer.json").read_bytes()
    Codebook(teacher, torch.rand(4, teacher.width), "euclidean", {}).save(folder)
    assert load_tokenizer(folder).vocabulary == 4
    newer = (folder / "tokenizer.json").read_bytes()
    for content, words in ((older, "do not match"), (b"{}", "damaged"), (b"{", "damaged")):
        (folder / "tokenizer.json").write_bytes(content)
        with pytest.raises(MapetError, match=words):
            load_tokenizer(folder)
    (folder / "tokenizer.json").write_bytes(newer)
    (folder / "tokenizer.safetensors").write_bytes(b"not tensors")
    with pytest.raises(MapetError, match="damaged"):
        load_tokenizer(folder)


@pytest.mark.parametrize("error", [RuntimeError("no such\nkernel"), ImportError("no package")])
def test_a_teacher_that_cannot_be_built_is_not_a_damaged_folder(tmp_path: Path, monkeypatch, error: Exception) -> None:
    Codebook(Pixels((2, 3), 4), torch.rand(4, 48), "euclidean", {}).save(tmp_path / "book")

    def broken(*_: Any, **__: Any) -> Features:
        raise error

    monkeypatch.setattr("mapet.tokenizers.codebook.open_teacher", broken)
    with pytest.raises(MapetError, match=r"The teacher pixels of .* cannot be built here .*: no ") as caught:
        load_tokenizer(tmp_path / "book")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("moment", range(1, 9))
def test_a_kill_leaves_the_old_tokenizer_or_the_new_one(tmp_path: Path, moment: int, monkeypatch) -> None:
    """Killed before its nth renaming or removal; the next call completes whatever is left."""
    old, new, third = (Codebook(Pixels((2, 3), 4), torch.rand(4, 48), "euclidean", {}) for _ in range(3))
    folder, done = tmp_path / "book", []
    old.save(folder)
    (folder / "inspect").mkdir()
    with monkeypatch.context() as mortal:
        for owner, name in ((os, "rename"), (os, "replace"), (os, "rmdir")):
            mortal.setattr(owner, name, until(moment, getattr(owner, name), done))
        with suppress(KeyboardInterrupt):
            new.save(folder)
            assert moment > len(done)
    assert load_tokenizer(folder).hash in (old.hash, new.hash)
    assert (load_tokenizer(folder).hash == new.hash) == (moment > 3)
    third.save(folder)
    assert load_tokenizer(folder).hash == third.hash
    assert sorted(path.name for path in folder.iterdir()) == ["inspect", "tokenizer.json", "tokenizer.safetensors"]


def until(moment: int, work: Callable[..., Any], done: list[int]) -> Callable[..., Any]:
    """``work`` until the nth call of all that share ``done``, which is a kill."""

    def call(*arguments: Any, **options: Any) -> Any:
        done.append(1)
        if len(done) == moment:
            raise KeyboardInterrupt
        return work(*arguments, **options)

    return call


def test_what_lies_beside_the_folder_is_left_alone(tmp_path: Path) -> None:
    book = Codebook(Pixels((2, 3), 4), torch.rand(4, 48), "euclidean", {})
    foreign = tmp_path / "book.part" / "mine"
    foreign.mkdir(parents=True)
    for _ in range(2):
        book.save(tmp_path / "book")
    assert sorted(path.name for path in (tmp_path / "book").iterdir()) == ["tokenizer.json", "tokenizer.safetensors"]
    assert foreign.is_dir()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["book", "book.part"]


def test_usage_and_perplexity() -> None:
    counts = usage(torch.tensor([[0, 1], [1, 3]], dtype=torch.int32), 5)
    assert counts.tolist() == [1, 2, 0, 1, 0]
    assert perplexity(counts) == pytest.approx(math.exp(0.5 * math.log(4) + 0.5 * math.log(2)))
    assert perplexity(torch.full((7,), 3)) == pytest.approx(7)
    assert perplexity(torch.tensor([0, 9, 0])) == pytest.approx(1)


def test_saves_into_the_folder_that_one_is_in(teacher: Teacher, tmp_path: Path, monkeypatch) -> None:
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    Codebook(teacher, torch.rand(4, teacher.width), "euclidean", {}).save(Path())
    assert load_tokenizer(tmp_path / "here").vocabulary == 4


def test_pictures_of_another_view_are_refused(teacher: Teacher) -> None:
    book = Codebook(teacher, torch.rand(4, teacher.width), "euclidean", {})
    height, width = teacher.view.size
    for images in (torch.rand(1, 3, height // 2, width), torch.zeros(1, 3, height, width, dtype=torch.uint8)):
        with pytest.raises(MapetError, match="convert them to its view"):
            book.encode(images)


def test_what_changes_the_features_changes_the_hash(teacher: Teacher) -> None:
    book = Codebook(teacher, torch.rand(4, teacher.width), "euclidean", {})
    before = book.hash
    mean = teacher.mean.clone()
    teacher.mean += 0.1
    assert book.hash != before
    teacher.mean.copy_(mean)
    assert book.hash == before
