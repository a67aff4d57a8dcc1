"""Every verb once from Python and once from the command line, on the same input: equal results."""

import json
import re
import shutil
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image
from safetensors import safe_open

import mapet
from golden_numbers import FOLDER
from mapet.api.check import check
from mapet.api.listing import listing
from mapet.cli import main
from mapet.cli.validate import show
from mapet.cli.verbs import VERBS
from mapet.data.cifar import Cifar10
from mapet.engine.run import load_checkpoint

VIT = {"model": "custom", "embed_dim": 16, "depth": 2, "num_heads": 2}
SQUARE = {"image_size": 16, "patch_size": 4}
STEPS = {"epochs": 1, "batch_size": 16, "warmup_epochs": 0, "accelerator": "cpu"}
KMEANS = {"teacher": "pixels", "vocab_size": 8, "iterations": 2, "restarts": 1}
VQKD = {
    **SQUARE, **STEPS, "teacher": "pixels", "teacher_output": "stage", "vocab_size": 8, "embed_dim": 16, "depth": 1,
    "num_heads": 2, "decoder_depth": 1,
}  # fmt: skip
DALLE = {"kind": "dalle", "image_size": 48}
COMPARE = {**VIT, **SQUARE, **STEPS, **KMEANS, "objectives": "mim,mae", "seeds": 1, "evaluate": "knn"}
BENCH = {**VIT, **SQUARE, "objectives": "mim", "batch_sizes": "2", "rounds": 1, "skip_memory": True,
         "accelerator": "cpu"}  # fmt: skip
SEGMENT = {"batch_size": 3, "channels": 8, "auxiliary_channels": 4}
SHAPES = {"classes": 2, "train": 3, "test": 2, "size": 32}
QUICK = {"epochs": 1, "max_images": 128, "accelerator": "cpu"}


@pytest.fixture(scope="module")
def made(images, tmp_path_factory):
    """What the verbs start from."""
    root = tmp_path_factory.mktemp("made")
    run = mapet.pretrain(data=images, out=root / "run", **VIT, **SQUARE, **STEPS, **KMEANS).folder
    clf = mapet.finetune(run, images, root / "classifier", **STEPS).folder
    mapet.embed(run, images, root / "features.npz")
    photo = root / "photo.png"
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (20, 20, 3), dtype=np.uint8)).save(photo)
    book = run / "tokens" / "tokenizer"
    for name, split in (("disc", 0), ("disc", 1), ("square", 2), ("square", 3)):
        cut = np.zeros((12, 12, 4), np.uint8)
        cut[2:10, 2 : 8 + split] = (200, 60 * split, 30, 255)
        (root / "shapes" / name).mkdir(parents=True, exist_ok=True)
        Image.fromarray(cut).save(root / "shapes" / name / f"{split}.png")
    mapet.shapes(root / "shapes", images, root / "set", **SHAPES)
    named = {
        "set": root / "set",
        "segmenter": mapet.segment(run, root / "set", root / "segmenter", **STEPS | SEGMENT).folder,
        "images": images,
        "run": run,
        "clf": clf,
        "photo": photo,
        "book": book,
        "shapes": root / "shapes",
    }
    return SimpleNamespace(**named, features=root / "features.npz")


def options(settings):
    """Settings as options of the command line."""
    words = []
    for name, value in settings.items():
        flag = f"--{name.replace('_', '-')}"
        words += [flag] if value is True else [flag, str(value)]
    return words


def weights(out, _):
    found = load_checkpoint(mapet.Run(out).last)
    return {name: tensor.numpy().tobytes() for name, tensor in found[1].items()}, mapet.Run(out).metrics.read_bytes()


def file(*names):
    return lambda out, _: [(out / name if name else out).read_bytes() for name in names]


def exported(out, _):
    """Tensors, and how to read them; the metadata hold a hash of the file, whose sequence safetensors leaves open."""
    with safe_open(out / "model.safetensors", "pt") as model:
        tensors = {name: model.get_tensor(name).numpy().tobytes() for name in model.keys()}  # noqa: SIM118
        return tensors, json.loads((out / "config.json").read_bytes())


def tokenizer(out, _):
    return mapet.load_tokenizer(out).hash


def findings(out, _):
    found = json.loads((out / "inspect.json").read_bytes())
    return found["health"], found["position"], found["verdict"], found["figures"]


def cases_of(out, _):
    return [(row["objective"], row["batch"]) for row in json.loads((out / "bench.json").read_bytes())["rows"]]


def table(out, _):
    found = {path.stem: json.loads(path.read_bytes()) for path in (out / "scores").glob("*.json")}
    assert found
    return {
        name: {key: value for key, value in one.items() if key not in ("cost", "fingerprint")}
        for name, one in found.items()
    }


def copied(images, out: Path) -> Path:
    """Images that no training has seen, as far as can be known."""
    return shutil.copytree(images, out.parent / "unseen", dirs_exist_ok=True)


def printed(_, said):
    return said


def scores(out, _):
    return [{k: v for k, v in entry.items() if k != "time"} for entry in json.loads(out.read_bytes())]


def probe(verb, **settings):
    """An evaluation from Python under its protocol, and from the command line."""
    protocol = {"evaluate": ["knn", "linear"]}.get(verb, [verb])
    return (
        lambda m, out: [verb, m.run, "--data", m.images, "--out", out, *options(settings)],
        lambda m, out: mapet.evaluate(m.run, m.images, protocol, out=out, **settings),
        scores,
    )


CASES = {  # verb: (words, call, what is compared of the output and of what was printed)
    "pack": (
        lambda m, out: ["pack", m.images, "--out", out, "--size", "16"],
        lambda m, out: mapet.pack(m.images, out, size=16),
        lambda out, _: {path.name: path.read_bytes() for path in out.iterdir() if path.suffix in (".bin", ".npy")},
    ),
    "shapes": (
        lambda m, out: ["shapes", m.shapes, m.images, "--out", out, *options(SHAPES)],
        lambda m, out: mapet.shapes(m.shapes, m.images, out, **SHAPES),
        lambda out, _: {path.name: path.read_bytes() for path in out.rglob("*.png")},
    ),
    "tokenizer fit": (
        lambda m, out: ["tokenizer", "fit", m.images, "--out", out, *options(SQUARE | KMEANS)],
        lambda m, out: mapet.fit_tokenizer(m.images, out, **SQUARE, **KMEANS),
        tokenizer,
    ),
    "tokenizer train-vqkd": (
        lambda m, out: ["tokenizer", "train-vqkd", m.images, "--out", out, *options(VQKD)],
        lambda m, out: mapet.train_vqkd(m.images, out, **VQKD),
        weights,
    ),
    "tokenizer import": (
        lambda m, out: ["tokenizer", "import", FOLDER / "dalle_encoder.weights.safetensors", "--out", out,
                        *options(DALLE)],
        lambda m, out: mapet.import_tokenizer(FOLDER / "dalle_encoder.weights.safetensors", out, **DALLE),
        tokenizer,
    ),
    "tokenizer inspect": (
        lambda m, out: ["tokenizer", "inspect", m.book, m.images, "--out", out, "--num-codes", "2"],
        lambda m, out: mapet.inspect_tokenizer(m.book, m.images, out, num_codes=2),
        findings,
    ),
    "tokenize": (
        lambda m, out: ["tokenize", m.images, "--out", out, "--tokenizer", m.book, *options(SQUARE)],
        lambda m, out: mapet.tokenize(m.images, out, tokenizer=m.book, **SQUARE),
        file("tokens.bin"),
    ),
    "pretrain": (
        lambda m, out: ["pretrain", m.images, "--out", out, "--tokens", m.run / "tokens",
                        *options(VIT | SQUARE | STEPS)],
        lambda m, out: mapet.pretrain(data=m.images, out=out, tokens=m.run / "tokens", **VIT, **SQUARE, **STEPS),
        weights,
    ),
    "finetune": (
        lambda m, out: ["finetune", m.run, "--data", m.images, "--out", out, *options(STEPS)],
        lambda m, out: mapet.finetune(m.run, m.images, out, **STEPS),
        weights,
    ),
    "segment": (
        lambda m, out: ["segment", m.run, "--data", m.set, "--out", out, *options(STEPS | SEGMENT)],
        lambda m, out: mapet.segment(m.run, m.set, out, **STEPS | SEGMENT),
        weights,
    ),
    "compare": (
        lambda m, out: ["compare", "--data", m.images, "--out", out, *options(COMPARE)],
        lambda m, out: mapet.compare(data=m.images, out=out, **COMPARE),
        table,
    ),
    "evaluate": probe("evaluate", k=3),
    "knn": probe("knn", k=3),
    "linear": probe("linear", pool="token"),
    "attentive": probe("attentive", batch_size=8),
    "fewshot": probe("fewshot", draws=2),
    "doctor": (
        lambda m, out: ["doctor"],
        lambda m, out: print(re.sub(r"\s+", " ", " ".join(f"{d.topic} {d.found}" for d in mapet.doctor()))),
        lambda out, said: sorted(re.findall(r"versions|images|processor|compiler|memory|disk|cache|extras", said)),
    ),
    "report": (
        lambda m, out: ["report", m.run, "--out", out.with_suffix(".html"), "--images", "1", "--most", "20"],
        lambda m, out: mapet.report(m.run, out.with_suffix(".html"), images=1, most=20),
        lambda out, _: re.sub(r"<footer>.*</footer>", "", out.with_suffix(".html").read_text()),
    ),
    "transfer": (
        lambda m, out: ["transfer", m.run, "--data", m.images, "--out", out, "--k", "3"],
        lambda m, out: mapet.transfer(m.run, m.images, out, k=3),
        file("transfer.json", "transfer.md"),
    ),
    "validate": (
        lambda m, out: ["validate", m.clf, "--data", copied(m.images, out), "--crop-pct", "0.9"],
        lambda m, out: show(mapet.validate(m.clf, copied(m.images, out), crop_pct=0.9)),
        printed,
    ),
    "robustness": (
        lambda m, out: ["robustness", m.clf, "--data", m.images, "--out", out.with_suffix(".json")],
        lambda m, out: mapet.robustness(m.clf, m.images, out.with_suffix(".json")),
        lambda out, _: file("")(out.with_suffix(".json"), _),
    ),
    "segment-probe": (
        lambda m, out: ["segment-probe", m.run, "--data", m.set, "--out", out, "--k", "3", "--accelerator", "cpu"],
        lambda m, out: mapet.segment_probe(m.run, m.set, out=out, k=3, accelerator="cpu"),
        scores,
    ),
    "embed": (
        lambda m, out: ["embed", m.run, m.images, "--out", out.with_suffix(".npz"), "--pool", "token"],
        lambda m, out: mapet.embed(m.run, m.images, out.with_suffix(".npz"), pool="token"),
        lambda out, _: file("")(out.with_suffix(".npz"), _),
    ),
    "neighbours": (
        lambda m, out: ["neighbours", m.run, m.photo, "--in", m.features, "--out", out.with_suffix(".png"), "--k", "3"],
        lambda m, out: mapet.neighbours(m.run, m.photo, m.features, out.with_suffix(".png"), k=3),
        lambda out, _: file("")(out.with_suffix(".png"), _),
    ),
    "predict": (
        lambda m, out: ["predict", m.clf, m.images, "--out", out.with_suffix(".csv"), "--top-k", "2"],
        lambda m, out: mapet.predict(m.clf, m.images, out.with_suffix(".csv"), top_k=2),
        lambda out, _: file("")(out.with_suffix(".csv"), _),
    ),
    "masks": (
        lambda m, out: ["masks", m.segmenter, m.images, "--out", out],
        lambda m, out: mapet.masks(m.segmenter, m.images, out),
        lambda out, _: {path.relative_to(out): path.read_bytes() for path in out.rglob("*") if path.is_file()},
    ),
    "attend": (
        lambda m, out: ["attend", m.clf, m.photo, "--out", out.with_suffix(".png"), "--block", "1"],
        lambda m, out: mapet.attend(m.clf, m.photo, out.with_suffix(".png"), block=1),
        lambda out, _: file("")(out.with_suffix(".png"), _),
    ),
    "reveal": (
        lambda m, out: ["reveal", m.run, m.photo, "--out", out.with_suffix(".png"), "--frames", "2"],
        lambda m, out: mapet.reveal_image(m.run, m.photo, out.with_suffix(".png"), frames=2),
        lambda out, _: file("")(out.with_suffix(".png"), _),
    ),
    "export": (
        lambda m, out: ["export", m.run, "--out", out],
        lambda m, out: mapet.export(m.run, out),
        exported,
    ),
    "bench": (
        lambda m, out: ["bench", "--out", out, *options(BENCH)],
        lambda m, out: mapet.benchmark(out=out, **BENCH),
        cases_of,
    ),
    "show": (
        lambda m, out: ["show", "--objective", "pet", *options(VIT)],
        lambda m, out: print(mapet.show(objective="pet", **VIT)),
        lambda _, said: said.partition("hours")[0].partition("memory")[0].strip(),
    ),
    "list": (
        lambda m, out: ["list", "objectives"],
        lambda m, out: print("\n".join(listing("objectives"))),
        lambda _, said: [line.split()[0] for line in said.splitlines() if line[:1].strip()],
    ),
    "check": (
        lambda m, out: ["check", m.run],
        lambda m, out: print("\n".join(f"valid     {part}" for part, fault in check(m.run).items() if not fault)),
        printed,
    ),
    "quickstart": (
        lambda m, out: ["quickstart", "--out", out, *options(QUICK)],
        lambda m, out: mapet.quickstart(out, **QUICK),
        lambda out, _: mapet.Run(out).metrics.read_bytes(),
    ),
}  # fmt: skip


def test_no_verb_is_missing():
    groups = {name.split()[0] for name in VERBS if " " in name}
    assert CASES.keys() == VERBS.keys() - groups


@pytest.mark.parametrize("verb", [verb for verb in CASES if verb != "quickstart"])
def test_python_equals_the_command_line(verb, made, tmp_path, capsys):
    compare(verb, made, tmp_path, capsys)


@pytest.mark.timeout(1200)  # two whole ones
def test_quickstart_is_that_of_the_command_line(cifar10, made, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(Cifar10, "__len__", lambda self: {"train": 50_000, "test": 200}[self.split])
    monkeypatch.setattr("mapet.api.quickstart.SHOWN", 40)
    monkeypatch.setattr("mapet.api.quickstart.LABELLED", 200)
    compare("quickstart", made, tmp_path, capsys)


def compare(verb, made, folder: Path, capsys):
    words, call, result = CASES[verb]
    capsys.readouterr()
    call(made, folder / "python")
    first = result(folder / "python", capsys.readouterr().out)
    assert main([str(word) for word in words(made, folder / "command")]) == 0
    assert result(folder / "command", capsys.readouterr().out) == first
