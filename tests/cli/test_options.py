"""Options from dataclasses: what is given, words, old names, and the command that sets them."""

from dataclasses import dataclass, field
from typing import Literal

import pytest

from mapet.cli import main
from mapet.cli.options import changed, given, parse, require
from mapet.cli.verbs import VERBS, Verb
from mapet.config.setting import Listed, Repeated
from mapet.utils.errors import MapetError, nearest, similar


@dataclass(frozen=True)
class Inner:
    max_images: int | None = None
    names: tuple[str, ...] = ()
    rate: float = 1.0


@dataclass(frozen=True)
class Middle:
    shape: Literal["round", "square"] = "round"
    inner: Inner = field(default_factory=Inner)


@dataclass(frozen=True)
class Options:
    data: str = ""
    out: str = ""
    overwrite: bool = False
    normalize: bool = True
    grid: tuple[int, int] | None = None
    betas: tuple[float, float] = (0.9, 0.99)
    vary: Repeated = ()
    shades: Listed[Literal["dark", "light"]] = ()
    middle: Middle = field(default_factory=Middle)


@pytest.fixture(autouse=True)
def verb(monkeypatch):
    monkeypatch.setitem(VERBS, "draw", Verb("draw", "draw DATA --out FOLDER", {"DATA": "data"}))


@pytest.mark.parametrize(
    ("line", "found"),
    [
        ("", {}),
        ("A", {"data": "A"}),
        ("--data A", {"data": "A"}),
        ("--out x A", {"out": "x", "data": "A"}),
        ("--out=x A", {"out": "x", "data": "A"}),
        ("--out=--x", {"out": "--x"}),
        ("--overwrite A --no-normalize", {"overwrite": True, "normalize": False, "data": "A"}),
        ("--max_images -1 A", {"max_images": -1, "data": "A"}),
        ("--max-images None", {"max_images": None}),
        ("--grid 2 3 A --betas .1 2", {"grid": (2, 3), "data": "A", "betas": (0.1, 2.0)}),
        ("--grid None A", {"grid": None, "data": "A"}),
        ("A --names x y", {"data": "A", "names": ("x", "y")}),
        ("--vary a=1 --vary b=2", {"vary": ("a=1", "b=2")}),
        ("--shades dark,light A", {"shades": "dark,light", "data": "A"}),
        ("--rate 1e-3 --shape square", {"rate": 1e-3, "shape": "square"}),
        ("--rate 1.0", {"rate": 1.0}),
        ("--seed-free", None),
    ],
)
def test_only_what_is_given_is_found(line, found):
    if found is None:
        with pytest.raises(MapetError):
            given(Options(), line.split(), "draw", "")
    else:
        assert given(Options(), line.split(), "draw", "") == found


def test_settings_at_any_depth_are_replaced():
    o = parse(Options(out="y"), ["A", "--rate", "2", "--shape", "square"], "draw DATA", "")
    assert (o.data, o.out, o.middle.shape, o.middle.inner.rate) == ("A", "y", "square", 2.0)


@pytest.mark.parametrize(
    ("line", "error"),
    [
        ("--rate x", '--rate must be a number, got "x".'),
        ("--max-images 1.5", '--max-images must be a whole number or None, got "1.5".'),
        ("--grid 2 x", '--grid must be two numbers or None, got "2 x".'),
        ("--grid 2 --out x", '--grid must be two numbers or None, got "2".'),
        ("--betas --out x", "--betas needs a value."),
        ("--shape rund", '--shape must be round or square, got "rund". Did you mean "round"?'),
        ("A --data B", "DATA and --data are the same: give one of them."),
        ("A B", 'Unexpected "B": mapet draw DATA --out FOLDER'),
        (
            "--max-image 2",
            'mapet draw has no option "--max-image". Did you mean "--max-images"? See mapet draw --help-all.',
        ),
    ],
)
def test_a_mistake_names_the_option_the_value_and_what_is_wanted(line, error):
    with pytest.raises(MapetError) as refusal:
        given(Options(), line.split(), "draw", "")
    assert refusal.value.option_text == error


@pytest.mark.parametrize("argument", ["--limit 3", "--limit=3"])
def test_an_old_name_works_and_is_noted(argument, caplog):
    caplog.set_level("INFO", "mapet")
    assert given(Options(), argument.split(), "draw", "") == {"max_images": 3}
    assert caplog.messages == ["note      --limit is now --max-images"]


def test_an_old_name_is_unknown_where_the_verb_lacks_the_option():
    with pytest.raises(MapetError, match="no option"):
        given(Options(), ["--memory", "3"], "draw", "")


def test_what_is_required_is_named_with_the_form_of_the_call():
    require("draw", data="A", out="x")
    with pytest.raises(MapetError) as refusal:
        require("draw", data="", out=None)
    assert refusal.value.option_text == "mapet draw needs DATA and --out: mapet draw DATA --out FOLDER"


@pytest.mark.parametrize(
    "line",
    ["", "--out x --no-normalize --betas 0.1 0.2 --names a b", "--overwrite --max-images 3", "--vary a=1 --vary b=2"],
)
def test_changed_options_are_parsed_back(line):
    o = parse(Options(), line.split(), "draw", "")
    assert parse(Options(), changed(o), "draw", "") == o


@pytest.mark.parametrize(
    ("name", "names", "found"),
    [
        ("--limit", ["--init", "--lr"], None),
        ("BEIT", ["mapet", "mim"], "mim"),
        ("--init", ["--init-values", "--out"], "--init-values"),
        ("bf16", ["float32", "bfloat16"], "bfloat16"),
        ("num_workers", ["workers", "epochs"], "workers"),
    ],
)
def test_similar_names(name, names, found):
    assert similar(name, names, cutoff=0.75) == found


def test_few_names_are_listed_where_none_is_near():
    assert nearest("zzz", ["a", "b"]) == " Known: a, b."
    assert nearest("zzz", map(str, range(99))) == ""


def test_the_images_of_pretrain_are_a_word_or_an_option(tmp_path, capsys):
    for arguments in (["absent", "--out", "x"], ["--data", "absent", "--out", "x"]):
        assert main(["pretrain", *arguments]) == 2
        assert "absent" in capsys.readouterr().err


@pytest.mark.parametrize("verb", sorted({*VERBS} - {"tokenizer"}))
def test_an_out_that_cannot_be_written_is_refused_at_once(verb, tmp_path, capsys):
    file = tmp_path / "file"
    file.touch()
    for out, said in (("", "--out is empty"), (str(file / "x"), f"{file} is not a folder")):
        assert main([*verb.split(), "--out", out]) == 2
        text = capsys.readouterr().err
        assert text.count("\n") == 1
        assert said in text or 'has no option "--out"' in text


def test_some_verbs_have_an_out(capsys):
    assert sum(main([*verb.split(), "--out", ""]) == 2 and "is empty" in capsys.readouterr().err for verb in VERBS) > 20


@pytest.mark.parametrize("flag", ["--help", "--help-all"])
def test_a_verb_without_options_has_no_empty_section(flag, capsys):
    with pytest.raises(SystemExit):
        main(["doctor", flag])
    text = capsys.readouterr().out
    assert "has no options" in text
    assert "\n\n\n" not in text
    assert "all 0" not in text


def test_the_help_of_an_option_that_turns_something_off_says_so(capsys):
    with pytest.raises(SystemExit):
        main(["pretrain", "--help-all"])
    text = " ".join(capsys.readouterr().out.split())
    assert "--no-normalize-pixels Turn off: Normalize each target patch" in text
    assert "--pos-embed {learn,sincos} Position embedding" in text


def test_a_negative_layer_scale_is_refused(capsys, tmp_path):
    assert main(["pretrain", str(tmp_path), "--init-values", "-1", "--out", str(tmp_path / "run")]) == 2
    assert "--init-values must be >= 0, got -1" in capsys.readouterr().err
