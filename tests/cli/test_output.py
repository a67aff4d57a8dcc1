"""``--quiet`` says nothing but refusals, and ``--json`` ends with the result, for every kind of verb."""

import json

import pytest

from mapet.cli import main

TINY = [
    "--model", "custom", "--embed-dim", "16", "--depth", "2", "--num-heads", "2", "--image-size", "16",
    "--patch-size", "4", "--epochs", "1", "--batch-size", "16", "--warmup-epochs", "0", "--accelerator", "cpu",
]  # fmt: skip
TOKENS = ["--teacher", "pixels", "--vocab-size", "8", "--iterations", "2", "--restarts", "1"]


@pytest.fixture(scope="module")
def run(images, tmp_path_factory):
    folder = tmp_path_factory.mktemp("made") / "run"
    assert main(["pretrain", str(images), "--out", str(folder), "--quiet", *TINY, *TOKENS]) == 0
    return folder


def test_a_quiet_training_says_nothing(images, tmp_path, capfd):
    words = ["pretrain", str(images), "--out", str(tmp_path / "run"), "--objective", "mae", *TINY]
    assert main(["--quiet", *words]) == 0
    assert capfd.readouterr() == ("", "")
    assert main([*words, "--quiet"]) == 2
    out, err = capfd.readouterr()
    assert (out, len(err.splitlines())) == ("", 1)


def test_the_result_of_a_training(images, tmp_path, capsys):
    words = ["pretrain", str(images), "--out", str(tmp_path / "run"), "--objective", "mae", "--json", *TINY]
    assert main(words) == 0
    *text, last = capsys.readouterr().out.splitlines()
    assert any(line.startswith("done") for line in text)
    found = json.loads(last)
    assert found == {"exit_code": 0, "result": {"run": str(tmp_path / "run"), "step": 3, "scores": []}}


def verbs(run, images, tmp_path):
    return {
        "list objectives": lambda r: r["mapet"],
        f"check {run}": lambda r: not any(r.values()),
        "doctor": lambda r: "versions" in [one["topic"] for one in r],
        f"knn {run} --data {images}": lambda r: 0 <= r["knn"]["top1"]["value"] <= 1,
        f"embed {run} {images} --out {tmp_path / 'f.npz'}": lambda r: r == {"path": str(tmp_path / "f.npz"),
                                                                            "count": 48},
        f"pack {images} --out {tmp_path / 'packed'} --size 16": lambda r: r == str(tmp_path / "packed"),
        f"export {run} --out {tmp_path / 'export'}": lambda r: r == str(tmp_path / "export"),
        f"tokenizer inspect {run / 'tokens' / 'tokenizer'} {images} --out {tmp_path / 'i'} --num-codes 1":
            lambda r: r["verdict"],
        f"report {run} --out {tmp_path / 'r.html'} --images 0": lambda r: r == str(tmp_path / "r.html"),
    }  # fmt: skip


@pytest.mark.parametrize("number", range(9))
def test_the_result_of_other_verbs(run, images, tmp_path, capsys, number):
    words, holds = list(verbs(run, images, tmp_path).items())[number]
    assert main(["--json", "--quiet", *words.split()]) == 0
    out, err = capsys.readouterr()
    assert len(out.splitlines()) == 1, out
    assert holds(json.loads(out)["result"])
    assert not err


def test_a_verb_after_another_has_no_result_of_it(capsys):
    main(["--json", "--quiet", "list", "models"])
    assert main(["--json", "--version"]) == 0
    assert json.loads(capsys.readouterr().out.splitlines()[-1]) == {"exit_code": 0, "result": None}
