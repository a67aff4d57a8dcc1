"""What a verb does with its words: one call of the function of its name, and the result printed line by line."""

import sys
from pathlib import Path
from types import SimpleNamespace as Result

import numpy as np
import pytest

from mapet.api.doctor import Diagnosis
from mapet.cli import main
from mapet.config.evaluate import EvaluateSettings, KNNSettings


class Many(Result):
    """A result with a length that is read in sequence."""

    def __len__(self):
        return len(self.rows)

    def __iter__(self):
        return iter(self.rows)


class Score(str):
    note = "of few images"


FOUND = {"knn": {"top1": Score("12.0 %")}, "linear": {"a longer name": Score("3.0 %")}}
SIX = Many(rows=6 * [0], given=[1, 2], accuracy=[0.5, 0.25], tokens=np.zeros((1, 6)), block=3, image_ids=["a", "b"])
SIX.about, SIX.length, SIX.classes = {"shape": [4, 8]}, 16, ["sky", "sea"]
SHARES = Many(classes=["sky", "sea"], rows=[Result(image_id="a", labels=np.array([[1, 1], [0, 1]]))])
PREDICTED = Many(rows=[Result(image_id="a", classes=["cat", "dog"], probabilities=[0.75, 0.25])])
NEAR = [Result(similarity=0.5, image_id="a"), Result(similarity=0.25, image_id="b")]
IMPORTED = Result(kind="dalle", vocabulary=8192, grid=(2, 3), hash="ab", view=Result(size=(16, 24)))
FROM, OUT = ["FROM", "IMAGES"], ["--out", "OUT", "--overwrite"]

# The words of a call, the function in its module, what that returns, its positional arguments, some named ones, lines.
CASES = {
    "check": (["F"], "check", {"a": "", "b": "cut"}, ("F",), {}, ["valid     a", "damaged   b: cut"]),
    "reveal": (
        [*FROM, *OUT], "reveal_image", SIX, (*FROM, "OUT"), {"overwrite": True},
        ["   1 of 6 patches given: 50.0% of the others' tokens predicted",
         "   2 of 6 patches given: 25.0% of the others' tokens predicted", "figure in OUT"],
    ),
    "attend": (
        [*FROM, *OUT], "attend", SIX, (*FROM, "OUT"), {"overwrite": True},
        ["2 images, heads of block 3: figure in OUT"],
    ),
    "embed": ([*FROM, *OUT], "embed", SIX, (*FROM, "OUT"), {"overwrite": True}, ["6 images × 4 × 8 in OUT"]),
    "masks": ([*FROM, "--out", "OUT"], "masks", SIX, (*FROM, "OUT"), {}, ["6 masks in OUT"]),
    "masks of no folder": (FROM, "masks", SHARES, (*FROM, None), {}, ["a  sea 75.0 %, sky 25.0 %"]),
    "predict": ([*FROM, *OUT], "predict", SIX, (*FROM, "OUT"), {"overwrite": True}, ["6 predictions in OUT"]),
    "predict without a file": (FROM, "predict", PREDICTED, (*FROM, None), {}, ["a  cat 75.0 %, dog 25.0 %"]),
    "neighbours": (
        [*FROM, "--in", "FEATURES", *OUT], "neighbours", NEAR, (*FROM, "FEATURES", "OUT"), {"overwrite": True},
        ["0.5000  a", "0.2500  b", "sheet in OUT"],
    ),
    "tokenize": (["IMAGES", "--out", "OUT"], "tokenize", SIX, ("IMAGES", "OUT"), {}, ["6 images × 16 tokens in OUT"]),
    "pack": (
        ["IMAGES", "--out", "OUT"], "pack", Path("a b"), ("IMAGES", "OUT"), {}, ["packed    use it as --data 'a b'"],
    ),
    "tokenizer fit": (
        ["IMAGES", *OUT], "fit_tokenizer", SIX, ("IMAGES", "OUT"), {"overwrite": True}, ["saved     OUT"],
    ),
    "tokenizer import": (
        ["FILE", "--out", "OUT", "--kind", "dalle"], "import_tokenizer", IMPORTED, ("FILE", "OUT", "dalle"), {},
        ["dalle  8,192 codes, 2 × 3 tokens for 16 × 24 pixels, hash ab → OUT"],
    ),
    "export": (
        ["FROM", *OUT, "--to", "onnx"], "export", None, ("FROM", "OUT", "onnx", True), {"push": None}, ["loading"],
    ),
    "robustness": (["FROM", "--data", "DATA"], "robustness", {}, ("FROM", "DATA", None), {"baseline": None}, []),
}  # fmt: skip


def module_of(verb):
    return f"mapet.cli.{verb.replace(' import', ' import_').replace(' ', '.')}"


@pytest.fixture
def stub(monkeypatch):
    """Replace a function by one that notes its arguments and gives, or raises, a result."""

    def replace(where, result):
        calls = []

        def noted(*given, **named):
            calls.append((given, named))
            if isinstance(result, BaseException):
                raise result
            return result

        monkeypatch.setattr(where, noted)
        return calls

    return replace


@pytest.mark.parametrize("case", CASES)
def test_a_verb_is_one_call_and_its_lines(case, stub, capsys):
    verb = case.partition(" of ")[0].partition(" without ")[0]
    words, function, result, positional, named, lines = CASES[case]
    if verb == "export":
        stub("mapet.cli.export.loading_text", "loading")
    calls = stub(f"{module_of(verb)}.{function}", result)
    assert main([*verb.split(), *words]) == (1 if verb == "check" else 0)
    ((given, options),) = calls
    assert given == positional
    assert {name: options[name] for name in named} == named
    assert capsys.readouterr().out.splitlines() == lines


REPLACING = [case for case, row in CASES.items() if "overwrite" in row[4]]


@pytest.mark.parametrize("verb", REPLACING)
def test_nothing_is_replaced_unless_asked(verb, stub, capsys):
    words, function, result, *_ = CASES[verb]
    calls = stub(f"{module_of(verb)}.{function}", result)
    assert main([*verb.split(), *(word for word in words if word != "--overwrite")]) == 0
    assert calls[0][1]["overwrite"] is False
    capsys.readouterr()


INTERRUPTED = {
    **dict.fromkeys(("tokenize", "embed", "masks", "predict"), "Interrupted. Run the same command to continue."),
    "pack": f"Interrupted. Continue with: mapet pack {Path.cwd() / 'IMAGES'} --out {Path.cwd() / 'OUT'}",
}


@pytest.mark.parametrize("verb", INTERRUPTED)
def test_an_interrupted_verb_says_how_to_continue(verb, stub, capsys):
    words, function, *_ = CASES[verb]
    stub(f"{module_of(verb)}.{function}", KeyboardInterrupt())
    assert main([*verb.split(), *words]) == 130
    assert capsys.readouterr().out.splitlines() == [INTERRUPTED[verb]]


@pytest.mark.parametrize(
    ("verb", "words", "protocols", "changed"),
    [
        ("evaluate", ["--protocols", "knn", "--seed", "3"], "knn", {"seed": 3}),
        ("evaluate", [], "knn,linear", {}),
        ("knn", ["--k", "7"], ["knn"], {"knn": KNNSettings(k=7)}),
        ("linear", ["--seed", "3"], ["linear"], {"seed": 3}),
        ("attentive", ["--seed", "3"], ["attentive"], {"seed": 3}),
        ("fewshot", ["--seed", "3"], ["fewshot"], {"seed": 3}),
    ],
)
def test_a_probe_is_one_evaluation(verb, words, protocols, changed, stub, capsys):
    calls = stub("mapet.api.evaluate.evaluate", FOUND)
    assert main([verb, "FROM", "--data", "DATA", "--out", "OUT", *words]) == 0
    ((given, named),) = calls
    assert given == ("FROM", "DATA", protocols)
    assert named["out"] == "OUT"
    settings, plain = named["settings"], EvaluateSettings()
    assert settings.seed == changed.get("seed", plain.seed)
    assert settings.knn == changed.get("knn", plain.knn)
    lines = capsys.readouterr().out.splitlines()
    assert [line.startswith("protocol  ") for line in lines] == [True, False, True, False]
    assert lines[1::2] == ["top1      12.0 %  of few images", "a longer name 3.0 %  of few images"]


@pytest.mark.parametrize("verb", ["evaluate", "knn", "linear", "attentive", "fewshot", "segment-probe", "export"])
def test_a_verb_of_an_encoder_needs_from(verb, capsys):
    assert main([verb, "--data", "DATA"] if verb != "export" else [verb]) == 2
    said = capsys.readouterr().err
    assert f"mapet {verb} needs FROM: " in said
    assert said.count("\n") == 1


def test_long_findings_continue_below_their_second_word(stub, capsys):
    found = [Diagnosis("topic", " ".join(30 * ["word"]), " ".join(30 * ["what"])), Diagnosis("other", "fine")]
    stub("mapet.cli.doctor.doctor", found)
    assert main(["doctor"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert all(len(line) <= 80 for line in lines)
    assert lines[0] == f"topic      {' '.join(14 * ['word'])}"
    assert lines[1] == f"{11 * ' '}{' '.join(14 * ['word'])}"
    assert lines[3] == f"{11 * ' '}problem: {' '.join(12 * ['what'])}"
    assert lines[4] == f"{13 * ' '}{' '.join(13 * ['what'])}"
    assert lines[-1] == "other      fine"


def test_an_inspection_is_logged_line_by_line(stub, capsys):
    stub("mapet.cli.tokenizer.inspect.inspect_tokenizer", {"figures": ["codes.png"]})
    stub("mapet.cli.tokenizer.inspect.report_lines", ["one", "two"])
    assert main(["tokenizer", "inspect", "FOLDER", "DATA"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[:2] == ["one", "two"]
    assert lines[2].split(maxsplit=1) == ["saved", "inspect.json, codes.png and .svg in FOLDER/inspect"]


@pytest.mark.parametrize("content", [b"a\nb c\n\n", b"a\0b c\0", b"a\r\nb c"])
def test_paths_come_from_standard_input(content, stub, monkeypatch, capsys):
    calls = stub("mapet.cli.embed.embed", SIX)
    monkeypatch.setattr(sys, "stdin", Result(buffer=Result(read=lambda: content)))
    assert main(["embed", "FROM", "-", "--out", "OUT"]) == 0
    assert calls[0][0] == ("FROM", ["a", "b c"], "OUT")
    monkeypatch.setattr(sys, "stdin", None)
    assert main(["embed", "FROM", "-", "--out", "OUT"]) == 2
    assert "there is no standard input: give a folder or a file" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ("knn --k many FROM", 'mapet: --k must be a whole number, got "many".'),
        ("knn FROM --k=many", 'mapet: --k must be a whole number, got "many".'),
        ("knn FROM --k", "mapet: --k needs a value."),
        ("finetune --scale 1 x FROM --data D --out O", 'mapet: --scale must be two numbers, got "1 x".'),
    ],
)
def test_a_wrong_value_is_quoted_without_the_words_behind_it(words, said, capsys):
    assert main(words.split()) == 2
    assert capsys.readouterr().err.strip() == said
