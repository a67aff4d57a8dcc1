"""Published weights in, a tokenizer's folder out; and every mistake one line that leaves what is there alone."""

import pytest
import torch

from golden_numbers import FOLDER, Golden
from mapet.cli import main
from mapet.tokenizers.tokenizer import load_tokenizer

DALLE = str(FOLDER / "dalle_encoder.weights.safetensors")
VQKD = str(FOLDER / "vqkd.weights.safetensors")


def import_weights(*arguments):
    return main(["tokenizer", "import", *map(str, arguments)])


@pytest.mark.parametrize("form", ["safetensors", "pth", "checkpoint"])
def test_dalle(tmp_path, capsys, form):
    golden, file, out = Golden("dalle_encoder"), DALLE, tmp_path / "new" / "dalle"
    if form != "safetensors":
        file = tmp_path / "encoder.pth"
        torch.save(golden.weights if form == "pth" else {"state_dict": golden.weights}, file)
    assert import_weights(file, "--kind", "dalle", "--image-size", 48, "--out", out) == 0
    tokenizer = load_tokenizer(out)
    assert torch.equal(tokenizer.encode(golden["images_raw"]), golden["codes"])
    line = f"dalle  96 codes, 6 × 6 tokens for 48 × 48 pixels, hash {tokenizer.hash} → {out}\n"
    assert capsys.readouterr().out == line
    assert tokenizer.provenance["file"] == str(file).rpartition("/")[2]
    assert sorted(path.name for path in out.parent.rglob("*")) == [
        "dalle",
        "tokenizer.json",
        "tokenizer.safetensors",
    ]


def test_vqkd(tmp_path, capsys):
    golden, out = Golden("vqkd"), tmp_path / "vqkd"
    config = golden.config
    sizes = ("--image-size", config["img_size"], "--patch-size", config["patch_size"], "--heads", config["num_heads"])
    assert import_weights("--kind", "vqkd", *sizes, "--out", out, VQKD) == 0
    assert torch.equal(load_tokenizer(out).encode(golden["images"]), golden["codes"])
    assert capsys.readouterr().out.startswith("vqkd  64 codes, 6 × 6 tokens for 48 × 48 pixels, hash ")


def test_vqgan(tmp_path, capsys):
    from mapet.tokenizers.vqgan import VQGAN

    vqgan = VQGAN(image_size=8, channels=32, widths=(32, 64), blocks=1, attention=(1,), codes=40)
    torch.nn.init.normal_(vqgan.quantize.embedding["weight"])
    content = {**vqgan.state_dict(), "decoder.conv_in.weight": torch.zeros(1), "loss.logvar": torch.zeros(())}
    torch.save({"state_dict": content, "global_step": 1}, tmp_path / "last.ckpt")
    assert import_weights(tmp_path / "last.ckpt", "--kind", "vqgan", "--out", tmp_path / "vqgan") == 0
    assert capsys.readouterr().out.startswith("vqgan  40 codes, 112 × 112 tokens for 224 × 224 pixels")
    assert (
        import_weights(tmp_path / "last.ckpt", "--kind", "vqgan", "--out", tmp_path / "small", "--image-size", 8) == 0
    )
    images = torch.rand(2, 3, 8, 8)
    assert torch.equal(load_tokenizer(tmp_path / "small").encode(images), vqgan.encode(images))


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ((), "needs one FILE, --kind and --out FOLDER"),
        ((DALLE, "--kind", "dalle"), "needs one FILE, --kind and --out FOLDER"),
        ((DALLE, VQKD, "--kind", "dalle", "--out", "new"), "Unexpected"),
        ((DALLE, "--kind", "dall-e", "--out", "new"), 'Did you mean "dalle"?'),
        ((DALLE, "--kind", "codebook", "--out", "new"), "Known: dalle, vqgan, vqkd"),
        ((DALLE, "--kinds", "dalle", "--out", "new"), 'Did you mean "--kind"?'),
        ((DALLE, "--kind", "vqgan", "--out", "new"), 'lack "encoder.conv_in.weight" (they hold blocks.'),
        ((DALLE, "--kind", "dalle", "--image-size", "50", "--out", "new"), "multiple of 8"),
        ((DALLE, "--kind", "dalle", "--image-size", "0", "--out", "new"), "multiple of 8"),
        ((VQKD, "--kind", "dalle", "--out", "new"), 'lack "blocks.input.w"'),
        (("absent.pth", "--kind", "dalle", "--out", "new"), "There is no weights file absent.pth"),
        (("encoder.pkl", "--kind", "dalle", "--out", "new"), "more than tensors"),
        ((DALLE, "--kind", "dalle", "--out", "used"), "used is not empty (it holds file): give another --out"),
        ((DALLE, "--kind", "dalle", "--out", "used/file"), "used/file is a file: give another --out"),
    ],
)
def test_mistakes_are_one_line(tmp_path, monkeypatch, capsys, arguments, said):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "used").mkdir()
    (tmp_path / "used" / "file").write_text("mine")
    torch.save(torch.nn.Linear(1, 1), tmp_path / "encoder.pkl")
    assert import_weights(*arguments) == 2
    captured = capsys.readouterr()
    assert said in captured.err
    assert captured.err.count("\n") == 1
    assert captured.out == ""
    assert (tmp_path / "used" / "file").read_text() == "mine"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["encoder.pkl", "used"]


def test_help_fits_80_columns(capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    with pytest.raises(SystemExit):
        import_weights("--help")
    text = capsys.readouterr().out
    assert "tokenizer import FILE" in text
    assert max(map(len, text.splitlines())) <= 80
