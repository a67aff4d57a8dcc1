"""``mapet tokenizer fit``: a codebook from images by one command, by one process or several."""

import json
import os
import shutil
import subprocess
import sys

import pytest
import torch

from mapet.api.fit_tokenizer import kmeans_settings
from mapet.cli import main
from mapet.config.recipe import Recipe
from mapet.config.verbs import FitTokenizerSettings
from mapet.tokenizers.codebook_fit import STARTS
from mapet.tokenizers.tokenizer import load_tokenizer
from processes import finished, pair

ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1"}
SMALL = ["--teacher", "pixels", "--image-size", "16", "--patch-size", "4", "--vocab-size", "12", "--iterations", "4"]


def fit(images, out, *options):
    return ["tokenizer", "fit", str(images), "--out", str(out), *SMALL, *options]


def story(folder):
    return json.loads((folder / "tokenizer.json").read_text())["provenance"]


@pytest.fixture(scope="module")
def book(images, tmp_path_factory):
    folder = tmp_path_factory.mktemp("fitted") / "book"
    assert main(fit(images, folder)) == 0
    return folder


def test_logs_its_memory_and_its_result(images, tmp_path, capsys):
    assert main(fit(images, tmp_path / "new" / "book")) == 0
    memory, codebook, fitted, saved = capsys.readouterr().out.splitlines()
    assert "GiB besides the teacher: 768 features of 48 channels" in memory
    assert "12 codes (perplexity " in codebook
    assert "objective " in fitted
    assert " of 12 codes in use" in fitted
    assert "images/s" in fitted
    assert saved == f"saved     {tmp_path / 'new' / 'book'}"
    found = load_tokenizer(tmp_path / "new" / "book")
    assert (found.vocabulary, found.grid, found.view.size) == (12, (4, 4), (16, 16))


def test_every_number_is_a_setting(images, tmp_path):
    options = ["--restarts", "2", "--samples", "300", "--kmeans-init", "sample", "--metric", "cosine", "--seed", "3"]
    assert main(fit(images, tmp_path, *options, "--fit-images", "30", "--grid", "3", "3")) == 0
    found = story(tmp_path)
    assert (found["restarts"], found["samples"], found["start"], found["seed"]) == (2, 270, "sample", 3)
    assert (found["metric"], found["images"], found["iterations"]) == ("cosine", 30, 4)
    assert load_tokenizer(tmp_path).view.size == (12, 12)


def test_the_defaults_are_the_published_numbers(images, tmp_path):
    """Those of k-CLIP, but for teacher and start."""
    settings = FitTokenizerSettings()
    t = settings.tokenizer
    assert (t.vocab_size, t.iterations, t.restarts, t.metric, t.kmeans_mode, t.samples) == (
        8192, 20, 5, "euclidean", "sample", None,
    )  # fmt: skip
    assert (settings.image_size, settings.patch_size, settings.seed, t.fit_images) == (224, 16, 0, None)
    recipe = Recipe(data="", tokenizer=t)
    assert kmeans_settings(recipe).held(10**9) == 512 * 8192 == 4_194_304
    assert main(fit(images, tmp_path)) == 0
    assert story(tmp_path)["restarts"] == 5
    assert (story(tmp_path)["metric"], story(tmp_path)["mode"]) == ("euclidean", "sample")


def test_the_published_start_is_a_plain_sample():
    """Different vectors as they are, each about as likely as any other, as faiss takes them."""
    vectors = torch.rand(20, 3, generator=torch.Generator().manual_seed(0)) + torch.arange(20)[:, None]
    drawn = torch.stack([STARTS["sample"](vectors, 5, seed) for seed in range(400)])
    numbers = drawn[:, :, 0].floor().long()
    assert torch.equal(drawn, vectors[numbers])
    assert all(len(set(row)) == 5 for row in numbers.tolist())
    counts = numbers.flatten().bincount(minlength=20)
    assert 70 < counts.min() <= counts.max() < 130  # 100 expected, with a deviation of 9


@pytest.mark.parametrize("mode", ["sample", "stream"])
def test_two_processes_fit_the_codebook_of_one(images, tmp_path, mode):
    options = ["--kmeans-mode", mode, "--restarts", "2"]
    assert main(fit(images, tmp_path / "one", *options)) == 0
    said = finished(pair(tmp_path / "said", *fit(images, tmp_path / "two", *options)))
    assert said.count("fitted") == said.count("saved") == 1
    one, two = story(tmp_path / "one"), story(tmp_path / "two")
    assert min(two["objective"]) == pytest.approx(min(one["objective"]), rel=1e-4)
    assert two["samples"] == one["samples"]
    ours, theirs = (load_tokenizer(tmp_path / name).centroids for name in ("one", "two"))
    torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-4)


def test_runs_under_torchrun(images, tmp_path):
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m", "mapet"]
    command = [*launch, *fit(images, tmp_path / "book", "--restarts", "1")]
    done = subprocess.run(command, env=ENVIRONMENT, capture_output=True, text=True, timeout=200)
    assert done.returncode == 0, done.stderr[-2000:]
    assert "per process besides the teacher" in done.stdout
    assert load_tokenizer(tmp_path / "book").vocabulary == 12


def test_a_tokenizer_in_the_way_is_kept_unless_replaced(images, book, tmp_path, capsys):
    mine = shutil.copytree(book, tmp_path / "mine")
    before = (mine / "tokenizer.json").read_bytes()
    assert main(fit(images, mine)) == 2
    assert "--overwrite" in capsys.readouterr().err
    assert (mine / "tokenizer.json").read_bytes() == before
    assert main(fit(images, mine, "--overwrite", "--seed", "1")) == 0
    assert load_tokenizer(mine).hash != load_tokenizer(book).hash


def test_unreadable_images_are_listed(images, tmp_path, capsys):
    mixed = shutil.copytree(images, tmp_path / "mixed")
    (mixed / "along" / "zero.png").write_bytes(b"")
    assert main(fit(mixed, tmp_path / "refused")) == 2
    assert "--max-bad-fraction" in capsys.readouterr().err
    assert main(fit(mixed, tmp_path / "book", "--max-bad-fraction", "0.1", "--kmeans-mode", "stream")) == 0
    assert (tmp_path / "book" / "unreadable-images.txt").read_text().count("\n") == 1
    assert sum(story(tmp_path / "book")["counts"]) == 768
    (tmp_path / "book" / "unreadable-images.txt.7").write_text("of another\tcall\n")
    assert main(fit(images, tmp_path / "book", "--overwrite")) == 0
    assert not list((tmp_path / "book").glob("unreadable-images.txt*"))


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--vocab-size", "769"], "use fewer codes"),
        (["--vocab-size", "20", "--samples", "10"], "more samples"),
        (["--kmeans-init", "kmeans"], 'Did you mean "k-means++"'),
        (["--kmeans-mode", "steam"], 'Did you mean "stream"'),
        (["--kmeans-precision", "bf16"], 'Did you mean "bfloat16"'),
        (["--tokenizer", "x"], "use mapet tokenize"),
        (["--batch-size", "0"], "--batch-size"),
        (["--grid", "2", "4"], "--grid must be two equal numbers >= 1, as all students see square images, got 2 4"),
        (["more"], 'Unexpected "more": mapet tokenizer fit DATA'),
        (["--teacher", "pixel"], "There is no teacher"),
        (["--teacher-stage", "3"], "no stages, outputs or weights"),
        (["--teacher-output", "norm"], "no stages, outputs or weights"),
        (["--teacher", "efficientnet_lite0", "--teacher-weights", "absent.pth"], "absent.pth"),
    ],
)
def test_a_mistake_is_one_line(images, tmp_path, capsys, options, said):
    assert main(fit(images, tmp_path / "book", *options)) == 2
    message = capsys.readouterr().err
    assert message.count("\n") == 1
    assert said in message
    assert not (tmp_path / "book" / "tokenizer.json").exists()


def test_without_a_folder_to_write_or_images(capsys):
    for options in ([], ["x"], ["--out", "x"]):
        assert main(["tokenizer", "fit", *options]) == 2
        assert "mapet tokenizer fit needs one DATA" in capsys.readouterr().err
