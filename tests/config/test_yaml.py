"""YAML that cannot be used is one line with the file, whatever reads it."""

from dataclasses import fields

import pytest

from mapet.api.compare.plan import Plan
from mapet.cli import main
from mapet.config.file import content, read, save
from mapet.config.finetune import FinetuneRecipe
from mapet.config.recipe import Recipe
from mapet.config.vqkd import VQKDRecipe
from mapet.utils.errors import MapetError

KINDS = [Recipe, FinetuneRecipe, VQKDRecipe, Plan]
UNREADABLE = {  # PyYAML's exception → a text, and what is said of it
    "ValueError": ("data: 2024-31-12", "(month must be in 1..12); put it in quotes if it is text."),
    "KeyError": ("seed: !!bool maybe", "put it in quotes if it is text."),
    "AttributeError": ("data: !!timestamp 99", "put it in quotes if it is text."),
    "RecursionError": ("[" * 5000, "it is nested too deeply."),
    "RecursionError of groups": ("{a: " * 900 + "1" + "}" * 900, "it is nested too deeply."),
    "UnicodeDecodeError": (b"data: \xff", "it is not text in UTF-8 (byte 6)."),
    "ReaderError": ("data: \x00", "unacceptable character"),
    "ConstructorError": ("data: !!python/object:os.system {}", "could not determine a constructor"),
    "ParserError": ("model: [", "is not YAML"),
    "ComposerError": ("data: *x", "undefined alias"),
    "unhashable": ("? [a]\n: b", "unhashable key"),
    "digits": ("seed: " + "9" * 5000, "Exceeds the limit"),
}
REFUSED = {  # what YAML reads and no settings take
    "seed: 1" + "0" * 30: "seed must be >= 0",
    "seed: 0b" + "1" * 20000: "got a number of thousands of digits",
    "data: 2024-12-31": "data must be text, got 2024-12-31.",
    "data: &a [*a]": "data must be text, got [[...]]",
    "optimization: {epochs: .inf}": "epochs must be a finite number, got inf.",
    "optimization: {epochs: 1e400}": "epochs must be a",
    "epochs: 3": '"epochs" does not belong here: write it under "optimization".',
    "model: {epochs: 3}": '"epochs" does not belong here: write it under "optimization".',
    "recipe: {epochs: 3}": 'There is no setting "recipe".',
    "- a": "the settings must be a group of settings",
}


def refused(path, use):
    with pytest.raises(MapetError) as error:
        use()
    text = str(error.value)
    assert text.startswith(str(path))
    assert "\n" not in text
    assert len(text) < len(str(path)) + 300
    return text


@pytest.mark.parametrize("kind", [None, *KINDS])
@pytest.mark.parametrize("name", UNREADABLE)
def test_what_is_not_yaml_is_one_line(tmp_path, name, kind):
    text, said = UNREADABLE[name]
    path = tmp_path / "r.yaml"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    assert said in refused(path, lambda: read(path, kind) if kind else content(path))


@pytest.mark.parametrize("text", REFUSED)
def test_what_no_setting_takes_is_one_line(tmp_path, text):
    path = tmp_path / "r.yaml"
    path.write_text(text)
    assert REFUSED[text] in refused(path, lambda: read(path, Recipe))


@pytest.mark.parametrize("text", ["data: 2024-31-12", "seed: 1" + "0" * 30, "[" * 5000])
@pytest.mark.parametrize(
    "command",
    [
        "pretrain {images} --recipe {file} --out {out}",
        "pretrain --resume {folder}",
        "finetune random --data {images} --recipe {file} --out {out}",
        "finetune --resume {folder}",
        "tokenizer train-vqkd --resume {folder}",
        "compare {file} --data {images} --out {out}",
        "compare --tuning {file} --baselines scratch --data {images} --out {out}",
        "compare --resume {comparison}",
        "show {file}",
        "bench {file} --out {out}",
    ],
)
def test_every_verb_says_which_file(images, tmp_path, text, command, capsys):
    for folder, name in (("run", "recipe"), ("comparison", "compare")):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / f"{name}.yaml").write_text(text)
    file, comparison = tmp_path / "run" / "recipe.yaml", tmp_path / "comparison"
    names = {"images": images, "file": file, "folder": file.parent, "comparison": comparison, "out": tmp_path / "out"}
    words = [word.format(**names) for word in command.split()]
    assert main(words) == 2
    message = capsys.readouterr().err
    assert message.count("\n") == 1
    assert ".yaml" in message
    assert not (tmp_path / "out").exists()


def test_a_saved_recipe_keeps_the_sequence_of_its_fields(tmp_path):
    save(Recipe(), tmp_path / "recipe.yaml")
    written = list(content(tmp_path / "recipe.yaml"))
    assert written == [field.name for field in fields(Recipe) if field.name in written]
    assert written != sorted(written)
