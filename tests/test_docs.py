"""Every command and every Python snippet in README, CONTRIBUTING and docs runs, on small images and a small model.

Commands of a page run one after another in one folder, where IMAGES, LABELLED and IMAGENET hold labelled images. Sizes
are replaced; nothing else is.
"""

import re
import shlex
import shutil
from importlib.util import find_spec
from pathlib import Path

import pytest
from PIL import Image

from mapet.cli import main

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]
VIT = {"--model": "custom", "--embed-dim": "16", "--depth": "2", "--num-heads": "2"}
SQUARE = {"--image-size": "16", "--patch-size": "4"}
STEPS = {"--epochs": "1", "--batch-size": "8", "--warmup-epochs": "0", "--accelerator": "cpu"}
KMEANS = {"--teacher": "pixels", "--vocab-size": "8", "--iterations": "2", "--restarts": "1"}
CPU = {"--accelerator": "cpu"}
SMALL = {  # options of each verb that are given, or replaced
    "pretrain": {**VIT, **SQUARE, **STEPS, **KMEANS},
    "finetune": STEPS,
    "evaluate": CPU,
    "knn": CPU,
    "linear": CPU,
    "tokenizer fit": {**SQUARE, **KMEANS, **CPU},
    "tokenizer train-vqkd": {**SQUARE, **STEPS, "--teacher": "pixels", "--teacher-output": "stage", "--vocab-size": "8",
                             "--embed-dim": "16", "--depth": "1", "--num-heads": "2", "--decoder-depth": "1"},
    "tokenizer inspect": {"--num-codes": "4", **CPU},
    "tokenizer import": {},
    "tokenize": {**SQUARE, **CPU},
    "compare": {**VIT, **SQUARE, **STEPS, **KMEANS, "--data": "IMAGES", "--seeds": "1", "--objectives": "mapet,mae",
                "--evaluate": "knn", "--max-images": "None"},
    "shapes": {"--classes": "2", "--train": "3", "--test": "2", "--size": "32"},
    "segment": {**STEPS, "--image-size": "16", "--batch-size": "2", "--channels": "8", "--auxiliary-channels": "4",
                "--stride": "8"},
    "segment-probe": CPU,
    "pack": {"--size": "16", "--workers": "0"},
    "report": {"--images": "1", "--most": "10", "--accelerator": "cpu"},
    "embed": CPU,
    "attend": CPU,
    "reveal": {},
    "neighbours": CPU,
    "predict": CPU,
    "masks": CPU,
    "validate": CPU,
    "robustness": CPU,
    "transfer": {**CPU, "--k": "3"},
    "export": {},
    "show": {**VIT, **SQUARE},
    "list": {},
    "check": {},
    "doctor": {},
}  # fmt: skip
FOLLOW = {  # these take their tokens or settings from what a page made before
    "--tokens": ["--teacher", "--vocab-size", "--iterations", "--restarts"],
    "--tokenizer": ["--teacher", "--vocab-size", "--iterations", "--restarts"],
    "--resume": list({**VIT, **SQUARE, **STEPS, **KMEANS}),
}
CANNOT = {"mapet tokenizer import": "There is no weights file"}  # published weights are not here: the one line is right
if find_spec("corrupt_tta") is None:
    CANNOT["mapet robustness runs/classifier --data LABELLED --corruptions"] = "pip install 'mapet[robustness]'"
SNIPPET = {'model="vit_small", epochs=10': "**tiny"}


def blocks(page, language):
    return re.findall(rf"^ *```{language}\n(.*?)^ *```", page.read_text(), re.M | re.S)


def commands(page):
    """Words of each command: continued lines joined, comments removed."""
    text = "".join(blocks(page, "sh")).replace("\\\n", " ")
    return [words for line in text.splitlines() if (words := shlex.split(line, comments=True))]


def verb_of(words):
    return " ".join(words[1:3]) if words[1] == "tokenizer" else words[1]


def shrunk(words):
    """The command with the sizes of ``SMALL``; a launcher is left out, and so are its devices."""
    if "mapet" in words[1:]:
        words = words[words.index("mapet") :]
        for option in ("--devices", "--num-nodes"):
            if option in words:
                at = words.index(option)
                words = words[:at] + words[at + 2 :]
    given = CPU if words[1:3] == ["compare", "--resume"] else dict(SMALL[verb_of(words)])
    for option, names in FOLLOW.items():
        if option in words:
            given = {name: value for name, value in given.items() if name not in names or name == "--accelerator"}
    if "--resume" in words and "--epochs" in words:
        given["--epochs"] = "2"
    words = list(words)
    for option, value in given.items():
        if option in words:
            words[words.index(option) + 1] = value
        else:
            words += [option, value]
    return words[1:]


@pytest.fixture(scope="module")
def prepared(images, tmp_path_factory):
    """Working directories with what the pages start from, by the page's name; pages with the same needs share one."""
    made = {}

    def give(page):
        name = "using" if page.stem == "robustness" else page.stem
        if name not in made:
            made[name] = tmp_path_factory.mktemp(name)
            for folder in ("IMAGES", "LABELLED", "IMAGENET/train"):
                shutil.copytree(images, made[name] / folder)
            with pytest.MonkeyPatch.context() as patch:
                patch.chdir(made[name])
                prepare(page)
        return made[name]

    return give


@pytest.fixture
def desk(page, prepared, tmp_path, monkeypatch, capsys):
    """A working directory of the page's own."""
    shutil.copytree(prepared(page), tmp_path, dirs_exist_ok=True)
    capsys.readouterr()
    monkeypatch.chdir(tmp_path)
    return tmp_path


def prepare(page):
    """What a page takes as given, into the working directory."""
    size = ["--image-size", "16", "--patch-size", "4", "--accelerator", "cpu"]
    kmeans = ["--teacher", "pixels", "--vocab-size", "8", "--iterations", "2"]
    if page.stem == "clusters":
        assert main(["tokenize", "IMAGES", "--out", "TOKENS", *size, *kmeans]) == 0
    if page.stem in ("own-images", "segmentation"):
        shutil.copy("IMAGES/across/00.png", "photo.png")
    if page.stem == "own-parts":
        shutil.copy(ROOT / "examples" / "own_objective.py", "OBJECTIVE.py")
    if page.stem in ("using", "robustness"):
        shutil.copy("IMAGES/across/00.png", "photo.png")
        Path("FINETUNE.yaml").write_text("optimization: {epochs: 1, batch_size: 8, warmup_epochs: 0}\n")
        assert main(shrunk(["mapet", "pretrain", "IMAGES", "--out", "runs/first"])) == 0
        assert main(shrunk(["mapet", "finetune", "runs/first", "--data", "LABELLED", "--out", "runs/classifier"])) == 0
        assert main(shrunk(["mapet", "embed", "runs/first", "IMAGES", "--out", "features.npz"])) == 0
    if page.stem == "segmentation":
        for path in (f"STAMPS/{name}/{i}.png" for name in ("animals", "plants") for i in range(2)):
            Path(path).parent.mkdir(parents=True, exist_ok=True)
            stamp = Image.new("RGBA", (8, 8))
            stamp.paste((255, 0, 0, 255), (2, 2, 6, 6))
            stamp.save(path)
        shutil.copytree("IMAGES", "PHOTOS")
        assert main(shrunk(["mapet", "pretrain", "IMAGES", "--out", "runs/first"])) == 0
        sizes = ["--classes", "2", "--train", "3", "--test", "2", "--size", "32"]
        assert main(["shapes", "STAMPS", "PHOTOS", "--out", "shapes", *sizes]) == 0
        shutil.copytree("shapes", "ADE20K")
        shutil.copytree("runs/first", "runs/base")
    if page.stem == "tokenizers":
        assert main(["tokenizer", "fit", "IMAGES", "--out", "kclip", *size, *kmeans]) == 0


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_every_command_runs(page, desk, capsys):
    for words in commands(page):
        line = " ".join(words)
        if words[0] == "make":
            assert all(re.search(rf"^{target}:", (ROOT / "Makefile").read_text(), re.M) for target in words[1:]), line
        elif words[0] == "pip":
            assert re.search(r"^robustness = ", (ROOT / "pyproject.toml").read_text(), re.M) or "[" not in line
        elif words[0] == "python":
            assert (ROOT / words[1]).is_file(), line
        else:
            if (out := desk / words[words.index("--out") + 1] if "--out" in words else None) and out.exists():
                out.unlink() if out.is_file() else shutil.rmtree(out)
            code, reason = (
                main(shrunk(words)),
                next((text for start, text in CANNOT.items() if line.startswith(start)), ""),
            )
            said = capsys.readouterr()
            assert code == (2 if reason else 0), f"{line}\n{said.out}{said.err}"
            assert reason in said.err


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_every_snippet_runs(page, desk, capsys):
    tiny = {"model": "custom", "embed_dim": 16, "depth": 2, "num_heads": 2, "image_size": 16, "patch_size": 4}
    tiny |= {
        "epochs": 1,
        "batch_size": 8,
        "warmup_epochs": 0,
        "teacher": "pixels",
        "vocab_size": 8,
        "accelerator": "cpu",
    }
    scope = {"tiny": tiny}
    for code in blocks(page, "python"):
        for written, small in SNIPPET.items():
            code = code.replace(written, small)
        exec(compile(code, str(page), "exec"), scope)


def test_pages_name_files_that_are_there():
    for page in PAGES:
        for target in re.findall(r"\]\((?!https?:)([^)#]+)", page.read_text()):
            assert (page.parent / target).exists(), f"{page.name} links to {target}"
