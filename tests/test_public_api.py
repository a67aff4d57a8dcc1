"""Public names: each imports from outside the command line and is typed for editors and mypy."""

import importlib.util
import inspect
import re
import subprocess
import sys
from pathlib import Path

import pytest

import mapet

ROOT = Path(__file__).parents[1]
CALLS = {  # of a verb; each is checked once the verb takes ``**settings``
    "pretrain": [
        'mapet.pretrain(data="images", out="runs/first", model="vit_small", objective="mapet", epochs=100)',
        'mapet.pretrain("cifar10-quickstart", Path("out"), runtime=mapet.Runtime(), overwrite=True, workers=4)',
        'mapet.pretrain(mapet.Recipe(data="images"), "out", scale=(0.2, 1.0), max_images=None)',
    ],
    "resume": ['mapet.resume("runs/first")', 'mapet.resume(Path("runs/first"), workers=2, accelerator="cpu")'],
    "finetune": [
        'mapet.finetune("runs/first", data="labelled", out="runs/classifier", layer_decay=0.7)',
        'mapet.finetune("runs/first", Path("labelled"), "out", recipe="cifar10-finetune", evaluate_every=5)',
    ],
    "evaluate": [
        'mapet.evaluate("runs/first", data="labelled", protocols=["knn", "linear"])["knn"]["top1"].value',
        'mapet.evaluate(Path("runs/first"), "labelled", k=10)',
    ],
    "tokenize": ['mapet.tokenize("images", "tokens")', 'mapet.tokenize("images", "tokens", "kclip", max_images=100)'],
    "fit_tokenizer": ['mapet.fit_tokenizer("images", teacher="pixels", out="book", vocab_size=512)'],
    "train_vqkd": ['mapet.train_vqkd("images", "out", vocab_size=512, workers=1)'],
    "import_tokenizer": ['mapet.import_tokenizer("weights.pth", "dalle", "out", image_size=112)'],
    "inspect_tokenizer": ['mapet.inspect_tokenizer("book", "images", max_images=100)'],
    "load_encoder": ['mapet.load_encoder("runs/first")', 'mapet.load_encoder(Path("runs/first"))'],
    "load_classifier": ['mapet.load_classifier("runs/classifier")'],
    "export": ['mapet.export("runs/first")', 'mapet.export("runs/first", "out", to=("timm",), overwrite=True)'],
    "embed": [
        'mapet.embed("runs/first", "images", "features.npz", layer=3, pool="token", overwrite=True).features.shape',
        'mapet.embed(Path("runs/first"), ["one.png"]).image_ids[0].upper()',
    ],
    "neighbours": ['mapet.neighbours("runs/first", "one.png", "features.npz", "sheet.png", k=3)[0].similarity'],
    "predict": [
        'mapet.predict("runs/classifier", "images", top_k=3)[0].classes',
        'mapet.predict(mapet.load_classifier("c"), [])',
    ],
    "validate": ['mapet.validate("runs/classifier", "images", real=Path("real.json")).scores["top1"].value'],
    "robustness": ['mapet.robustness("runs/classifier", ["a", Path("r")], "r.json", corruptions="all")["a"].clean'],
    "transfer": ['mapet.transfer("runs/first", ["cifar10", "flowers"], "out", finetune=True, k=10).markdown()'],
    "shapes": ['mapet.shapes("stamps", Path("photos"), "out", classes=5).name'],
    "pack": ['mapet.pack("images", "packed", max_images=100)'],
    "compare": ['mapet.compare("cifar10-quickstart", "out", objectives=("mapet", "mae"), seeds=1, epochs=2)'],
    "estimate": ['mapet.estimate("in1k-vit-base")'],
    "benchmark": ['mapet.benchmark("in1k-vit-base")'],
    "show": ['mapet.show("in1k-vit-base")', 'mapet.show(mapet.Recipe(), objective="pet")'],
}
CORRECT = ['mapet.Recipe(data="images", seed=1)', "mapet.Runtime(workers=2)", 'mapet.FinetuneRecipe(init="runs/first")']
WRONG = {  # with the kind of mypy's error
    "mapet.Recipe(dtaa=3)": "call-arg",
    'mapet.Recipe(seed="one")': "arg-type",
    'mapet.Recipe(precision="float16")': "arg-type",
    "mapet.Runtime(workers=1.5)": "arg-type",
    "mapet.nothing": "attr-defined",
    'mapet.pretrain(data="images", out="out", epoch=3)': "call-arg",
    'mapet.pretrain(data="images", out="out", epochs="three")': "arg-type",
    'mapet.pretrain(data="images", out="out", objective=3)': "arg-type",
    'mapet.resume("runs/first", seed=3)': "call-arg",
    'mapet.resume("runs/first", epochs="3")': "arg-type",
    "mapet.load_encoder(3)": "arg-type",
    'mapet.embed("runs/first", "images", pool="layers")': "arg-type",
    'mapet.predict("runs/classifier", "images", k=3)': "call-arg",
}


def _takes_settings(verb):
    function = getattr(mapet, verb) if verb in mapet.__all__ else None
    return function is not None and any(
        one.kind is one.VAR_KEYWORD or verb.startswith("load_")
        for one in inspect.signature(function).parameters.values()
    )


def _applies(call):
    verb = re.match(r"mapet\.(\w+)", call)[1]
    return verb not in CALLS or _takes_settings(verb)


def _tool():
    spec = importlib.util.spec_from_file_location("stub", ROOT / "tools" / "stub.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("name", mapet.__all__)
def test_every_name_imports_from_outside_the_command_line(name):
    value = getattr(mapet, name)
    assert not (getattr(value, "__module__", None) or "").startswith("mapet.cli")
    assert name in dir(mapet)


def test_importing_mapet_imports_nothing_heavy():
    code = "import sys, mapet; print(sorted({'torch', 'numpy', 'pydantic', 'yaml', 'mapet.cli'} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "[]\n"


def test_an_unknown_name_is_an_attribute_error():
    with pytest.raises(AttributeError, match=r"^module 'mapet' has no attribute 'pretrian'"):
        mapet.pretrian
    assert re.match(r"\d", mapet.__version__)


def test_the_stub_is_what_the_tool_writes():
    tool = _tool()
    assert tool.STUB.read_text() == tool.stub(), "run python tools/stub.py"


def test_mypy_knows_the_public_names(tmp_path):
    calls = [call for verb in CALLS for call in CALLS[verb] if _takes_settings(verb)] + CORRECT
    names = [f"mapet.{name}" for name in mapet.__all__]
    wrong = [call for call in WRONG if _applies(call)]
    program = ["from pathlib import Path", "import mapet", *(f"reveal_type({one})" for one in calls + names), *wrong]
    (tmp_path / "program.py").write_text("\n".join(program) + "\n")
    found = _mypy(tmp_path / "program.py")
    for line, text in enumerate(program, 1):
        said = found.get(line, [])
        if text in wrong:
            assert any("error: " in one and f"[{WRONG[text]}]" in one for one in said), (text, said)
        else:
            assert not any("error: " in one for one in said), (text, said)
        if text.startswith("reveal_type"):
            assert any("Revealed type is" in one for one in said), (text, said)
            assert not any(re.search(r'Revealed type is "Any"', one) for one in said), (text, said)


def _mypy(path):
    """What mypy says of each line."""
    command = [sys.executable, "-m", "mypy", f"--config-file={ROOT / 'pyproject.toml'}", str(path)]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, env=_environment())
    found = {}
    for line in done.stdout.splitlines():
        if match := re.match(r".*program\.py:(\d+): (.*)", line):
            found.setdefault(int(match[1]), []).append(match[2])
    assert found, done.stdout + done.stderr
    return found


def _environment():
    import os

    return {**os.environ, "MYPYPATH": str(ROOT / "src")}
