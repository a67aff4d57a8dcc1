"""``mapet tokenizer inspect`` end to end, on small images and tokenizers with random weights."""

import json
import re
import shutil
from types import SimpleNamespace

import pytest
import torch
from PIL import Image

from mapet.api import inspect_tokenizer
from mapet.api.tokenizer_report import label_findings
from mapet.cli import main
from mapet.config.verbs import InspectTokenizerSettings
from mapet.data.dataset import open_dataset
from mapet.data.loader import in_order
from mapet.data.unreadable import UnreadableImages
from mapet.tokenizers.codebook import Codebook
from mapet.tokenizers.dalle import DalleEncoder
from mapet.tokenizers.health import Health
from mapet.tokenizers.teacher import Teacher
from mapet.tokenizers.tokenizer import load_tokenizer
from mapet.tokenizers.vqgan import VQGAN
from mapet.utils.errors import MapetError
from mapet.utils.view import CenterCropResize
from mapet.viz.figures import DPI

FIGURES = ("codes.png", "tokens.png", "usage.png")
VECTORS = ("codes.svg", "tokens.svg", "usage.svg")


def book(folder, source, grid=(4, 4), seed=0):
    """Save a codebook whose 12 centroids are features of the source's patches, drawn by the seed."""
    teacher = Teacher("resnet10t", grid, stage=1, pretrained=False)
    images = next(iter(in_order(source, teacher.view, 48, bad=UnreadableImages(48)))).images
    vectors = teacher(images / 255).flatten(0, 1)
    drawn = torch.randperm(len(vectors), generator=torch.Generator().manual_seed(seed))[:12]
    Codebook(teacher, vectors[drawn], "euclidean", {}).save(folder)


@pytest.fixture(scope="module")
def root(tmp_path_factory, images):
    """A folder with the labelled ``images``, codebooks of two seeds, one of another grid, and a small dVAE."""
    root = tmp_path_factory.mktemp("inspect")
    shutil.copytree(images, root / "labelled")
    source = open_dataset(str(images))
    book(root / "book", source)
    book(root / "second", source, seed=1)
    book(root / "coarse", source, grid=(2, 2))
    with torch.random.fork_rng():
        torch.manual_seed(0)
        DalleEncoder(image_size=32, n_hid=8, n_blk=1, vocabulary=16).save(root / "dvae")
    return root


@pytest.fixture
def inspect(root, monkeypatch, capsys):
    """Runs the verb in ``root``: exit code, printed lines, error."""
    monkeypatch.chdir(root)

    def run(*arguments):
        code = main(["tokenizer", "inspect", *arguments])
        said = capsys.readouterr()
        return code, said.out.splitlines(), said.err

    return run


@pytest.fixture
def undrawn(monkeypatch):
    """No figures, where the numbers are what is asked for."""
    monkeypatch.setattr("mapet.api.inspect_tokenizer.draw", lambda *_: [])


def found(folder):
    return json.loads((folder / "inspect.json").read_text())


def test_everything_is_printed_and_saved(root, inspect):
    code, lines, _ = inspect("book", "labelled", "--compare-with", "second", "--show", "3", "--num-codes", "2")
    assert code == 0
    assert len(lines) <= 20
    assert all(len(line) <= 80 for line in lines[2:-1])  # paths may be long
    topics = (
        "tokenizer images codes perplexity most distortion position _ a_token all_tokens _ _ agreement healthy saved"
    )
    assert [line[:12].strip() for line in lines] == [word.replace("_", " ").strip() for word in topics.split()]
    out = root / "book" / "inspect"
    assert sorted(path.name for path in out.iterdir()) == sorted(["inspect.json", *FIGURES, *VECTORS])
    for name in FIGURES:
        with Image.open(out / name) as image:
            assert image.format == "PNG"
            image.load()
    findings = found(out)
    assert findings["data"] == f"folder {root / 'labelled'}"
    assert findings["verdict"] == "healthy"
    assert 0 < findings["agreement"]["adjusted_mutual_information"] < 1
    with Image.open(out / "codes.png") as image:
        assert image.height == pytest.approx(3 * 1.25 * DPI, abs=2)  # one chosen code and two random ones


def test_the_numbers_are_those_of_all_patches(root, inspect, undrawn):
    assert inspect("book", "labelled", "--out", "numbers")[0] == 0
    findings, book, source = (
        found(root / "numbers"),
        load_tokenizer(root / "book"),
        open_dataset(str(root / "labelled")),
    )
    batches = in_order(source, book.view, 48, bad=UnreadableImages(48))
    tokens, squared, vectors = book.measure(next(iter(batches)).images / 255)
    health = Health.of(tokens, 12)
    assert findings["health"]["perplexity"] == pytest.approx(health.perplexity)
    assert findings["health"]["patches"] == 48 * 16
    assert findings["distortion"]["mean"] == pytest.approx(float(squared.mean()), rel=1e-4)
    flat = vectors.flatten(0, 1)
    variance = float((flat - flat.mean(0)).square().sum(1).mean())
    assert findings["distortion"]["share_of_variance"] == pytest.approx(float(squared.mean()) / variance, rel=1e-4)
    assert findings["token"]["label_bits"] == pytest.approx(1)
    assert 0 < findings["token"]["bits"] < 1
    assert 0 <= findings["bag"]["bits_at_least"] <= 1


def test_the_information_of_all_tokens_is_bounded_by_the_predictions():
    """All of two bits where the tokens give four labels away; none where they have nothing to do with them."""
    classes = torch.arange(400) % 4
    for tokens, bits in ((classes[:, None].expand(-1, 6), 2.0), (torch.arange(400)[:, None] // 4 % 5, 0.0)):
        bag = label_findings(tokens, classes, 5, 0)["bag"]
        assert bag["bits_at_least"] == pytest.approx(bits, abs=0.15)


def test_the_patches_shown_are_of_their_codes_and_the_nearest(root, inspect, monkeypatch):
    """Of 30 of the 48 images; shown at the tokenizer's own size, so that they can be tokenized again."""
    shown = []
    monkeypatch.setattr("mapet.api.inspect_tokenizer.PATCH", 1)
    monkeypatch.setattr("mapet.viz.codes.patch_rows", lambda rows, grid, size, out, **_: shown.extend(rows) or out)
    arguments = ("--max-images", "30", "--num-codes", "3", "--show", "7,2", "--out", "shown")
    assert inspect("book", "labelled", *arguments)[0] == 0
    book = load_tokenizer(root / "book")
    codes = [int(row.label.split()[1]) for row in shown]
    assert codes[:2] == [7, 2]
    assert len(set(codes)) == 5
    for code, row in zip(codes, shown, strict=True):
        tokens, squared, _ = book.measure(torch.from_numpy(row.images) / 255)
        number = torch.arange(len(row.patches))
        own = squared.where(tokens == code, torch.inf)
        assert own[number, row.patches].tolist() == own.min(dim=1).values.tolist()
        assert own[number, row.patches].tolist() == sorted(own[number, row.patches].tolist())
        assert len(torch.from_numpy(row.images).flatten(1).unique(dim=0)) == len(row.images)


def test_runs_are_repeatable_and_the_seed_is_used(root, inspect):
    for out, seed in (("a", "0"), ("b", "0"), ("c", "1")):
        assert (
            inspect("book", "labelled", "--max-images", "30", "--num-codes", "2", "--out", out, "--seed", seed)[0] == 0
        )
    a, b, c = ([(root / out / name).read_bytes() for name in ("inspect.json", *FIGURES)] for out in "abc")
    assert a == b
    assert all(one != other for one, other in zip(a, c, strict=True))


def test_compared_with_itself_agreement_is_one(inspect, undrawn):
    code, lines, _ = inspect("book", "labelled", "--compare-with", "book", "--out", "itself")
    assert code == 0
    assert any(re.match("agreement +1.000 ", line) for line in lines)


def test_options_of_version_0_1_are_understood(root, inspect, undrawn):
    code, lines, _ = inspect("book", "labelled", "--against", "book", "--codes", "0", "--out", "before")
    assert code == 0
    assert lines[:2] == ["note      --against is now --compare-with", "note      --codes is now --num-codes"]
    assert found(root / "before")["agreement"]["with"] == str(root / "book")


def test_without_labels_there_are_no_findings_about_them(root, inspect, undrawn):
    assert inspect("book", "labelled/across", "--out", "unlabelled")[0] == 0
    assert not {"token", "bag"} & found(root / "unlabelled").keys()


def test_a_network_without_centroids_is_shown_all_the_same(root, inspect):
    code, lines, _ = inspect("dvae", "labelled", "--out", "dvae-out", "--show=0,15", "--num-codes=1")
    findings = found(root / "dvae-out")
    assert code == 0
    assert "distortion" not in findings
    assert findings["verdict"] == "unhealthy"  # random weights
    assert [line[12:] for line in lines if line.startswith("WARNING")] == findings["warnings"]
    assert (root / "dvae-out" / "codes.png").is_file()


def test_a_vqgan_has_a_distortion(root, inspect, undrawn):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        sizes = {"widths": (32, 32), "blocks": 1, "attention": (), "latent": 8, "code_width": 8, "codes": 10}
        VQGAN(image_size=32, channels=32, **sizes).save(root / "vqgan")
    assert inspect("vqgan", "labelled", "--out", "vqgan-out", "--max-images", "8")[0] == 0
    assert found(root / "vqgan-out")["distortion"]["mean"] > 0


def test_few_images_are_not_judged(inspect, undrawn):
    code, lines, _ = inspect("book", "labelled", "--max-images", "4", "--out", "few")
    assert code == 0
    assert lines[-2] == "undecided   too few images to judge 12 codes: use 8 or more"
    assert inspect("book", "labelled", "--max-images", "8", "--out", "few")[1][-2].startswith("healthy")


def test_no_codes_no_figure_of_them(root, inspect):
    """An earlier figure of codes is not left beside the new findings; what others wrote stays."""
    assert inspect("book", "labelled", "--num-codes", "1", "--out", "none")[0] == 0
    assert (root / "none" / "codes.png").is_file()
    (root / "none" / "codes.txt").write_text("3, 5\n")
    assert inspect("book", "labelled", "--num-codes", "0", "--out", "none")[0] == 0
    assert sorted(path.name for path in (root / "none").iterdir()) == sorted(
        ["codes.txt", "inspect.json", *FIGURES[1:], *VECTORS[1:]]
    )


def test_unreadable_images_are_skipped(root, inspect, undrawn):
    shutil.copytree(root / "labelled", root / "mixed")
    (root / "mixed" / "along" / "zero.png").write_bytes(b"")
    assert inspect("book", "mixed", "--out", "bad")[2].count("zero bytes") == 1
    assert inspect("book", "mixed", "--max-bad-fraction", "0.1", "--compare-with", "second", "--out", "bad")[0] == 0
    assert found(root / "bad")["health"]["images"] == 48


def test_images_where_the_figures_would_go_are_left_alone(root, inspect, undrawn):
    """A folder of photos, or one among the images that are looked at."""
    photos = shutil.copytree(root / "labelled", root / "photos")
    image = next(photos.rglob("*.png")).rename(photos / "codes.png")
    before = image.read_bytes()
    for data, out, said in (
        ("labelled", "photos", "is not empty"),
        ("labelled", "labelled/look", "where it would be among images"),
    ):
        code, _, error = inspect("book", data, "--out", out)
        assert (code, error.count("\n")) == (2, 1)
        assert said in error
    assert image.read_bytes() == before
    assert not (root / "labelled" / "look").exists()


def test_tokenizers_that_show_other_parts_of_an_image_are_not_compared(monkeypatch):
    square, wide = (SimpleNamespace(grid=(4, 4), view=CenterCropResize(size)) for size in ((16, 16), (16, 32)))
    monkeypatch.setattr(inspect_tokenizer, "_load", lambda *given: wide)
    with pytest.raises(MapetError, match="crop an image differently"):
        inspect_tokenizer._other(square, InspectTokenizerSettings(compare_with="wide"))
    assert inspect_tokenizer._other(wide, InspectTokenizerSettings(compare_with="wide")) == wide


MISTAKES = {
    ("book",): "one FOLDER",
    ("book", "labelled", "more"): 'Unexpected "more"',
    ("labelled", "labelled"): "is not a tokenizer",
    ("book", "labeled"): 'Did you mean "labelled"?',
    ("book", "labelled", "--show", "12"): "--show must be numbers from 0 to 11",
    ("book", "labelled", "--show", "x"): "--show must be numbers from 0 to 11",
    ("book", "labelled", "--num-codes", "101"): "--num-codes must be >= 0 and <= 100",
    ("book", "labelled", "--num-codes=-1"): "--num-codes must be >= 0 and <= 100",
    ("book", "labelled", "--max-images", "0"): "--max-images must be >= 1",
    ("book", "labelled", "--max-images=-1"): "--max-images must be >= 1",
    ("book", "labelled", "--compare-with", "coarse"): "grids (4, 4) and (2, 2)",
    ("book", "labelled", "--compare-wit", "coarse"): 'Did you mean "--compare-with"?',
}


@pytest.mark.parametrize(("arguments", "said"), MISTAKES.items(), ids=[" ".join(words) for words in MISTAKES])
def test_a_mistake_is_one_line(root, inspect, arguments, said):
    code, lines, error = inspect(*arguments, "--out", "mistake")
    assert (code, lines) == (2, [])
    assert error.count("\n") == 1
    assert said in error
    assert not (root / "mistake").exists()
