"""Flipped bits and truncations in every file that mapet writes: one clear line, or the undamaged result.

The outcomes are counted: what is neither is a failure, and so is a kind of folder whose damage is never refused.
``mapet check`` finds every change in the content of weights, tokens and packed images.
"""

import logging
import random
import shutil
from collections import Counter
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch

import mapet
from forms import randomised
from mapet.api.check import check
from mapet.api.compare.results_folder import ResultsFolder, recorded
from mapet.api.encoders import load_from
from mapet.api.export import export
from mapet.build.finetune import begin, classifier_over
from mapet.config.finetune import FinetuneRecipe
from mapet.config.recipe import save
from mapet.data.image import UnreadableImage
from mapet.data.packed import open_pack
from mapet.engine import generations
from mapet.engine.run import Run
from mapet.tokenizers.store import TokenStore
from mapet.tokenizers.tokenizer import load_tokenizer
from mapet.utils.errors import MapetError
from packs import JPEG, RAW, noise, packed

FIXTURES = Path(__file__).parents[1] / "fixtures" / "v0.1"
SMALL = {"embed_dim": 16, "depth": 2, "num_heads": 2, "image_size": 16, "patch_size": 4, "batch_size": 16, "epochs": 2}
SMALL |= {"warmup_epochs": 1, "lr": 1e-3, "teacher": "pixels", "iterations": 2, "vocab_size": 8, "model": "custom"}
CONTENT = {"last.safetensors", "previous.safetensors", "model.safetensors", "tokens.bin", "sums.bin", "pictures.bin"}
COUNT = 48  # images
CASES = 24  # flips per file, and a third as many truncations


@pytest.fixture(scope="module")
def made(images, tmp_path_factory):
    """One folder of each kind."""
    root = tmp_path_factory.mktemp("made")
    mapet.pretrain(data=images, out=root / "run", accelerator="cpu", workers=0, **SMALL)
    shutil.copytree(root / "run" / "tokens", root / "tokens")
    for name in ("pretrain/tokens/tokenizer", "vqkd"):
        shutil.copytree(FIXTURES / name, root / Path(name).name)
    shutil.rmtree(root / "vqkd" / "checkpoints")
    t = FinetuneRecipe(init=str(root / "run"), data=str(images))
    classifier = randomised(classifier_over(mapet.load_encoder(root / "run"), t, 3))
    tuned = Run.create(root / "tuned")
    save(t, tuned.recipe)
    begin(tuned, classifier, t, {"from": "x", "classes": ["cat", "dog", "owl"]})
    export(root / "tuned", root / "export")
    (root / "noise").mkdir()
    source = noise(root / "noise")
    for one in (RAW, JPEG):
        packed(source, root / one.form, one)
    trial = type("Trial", (), {"name": "mim-seed0"})
    ResultsFolder(root / "comparison").path.mkdir()
    for what in ("cost", "knn"):
        ResultsFolder(root / "comparison").record(trial, what, {"top1": {"value": 0.5}, "seconds": 3})
    return root


def weights(model):
    return [tensor.tolist() for tensor in model.state_dict().values()]


def use_run(folder):
    found = load_from(folder)
    return weights(found.encoder), found.step, found.encoder.num_heads, getattr(found.encoder, "classes", None)


def use_export(folder):
    found = load_from(folder).encoder
    return weights(found), found.num_heads, found.classes, found.crop_pct


def use_tokens(folder):
    store = TokenStore.open(folder)
    ids = sorted(store.image_ids())
    if len(ids) < COUNT:
        raise MapetError("tokens are missing, which is refused for the images")
    return ids, store.gather(ids).tolist(), store.vocabulary, store.grid, store.view, store.tokenizer


def use_pack(folder):
    pack = open_pack(folder)
    images = []
    for index in range(len(pack)):
        try:
            images.append(np.asarray(pack.read(index)).tobytes())
        except UnreadableImage as reason:
            images.append(None if str(reason) == "zero bytes" else UnreadableImage)
    if UnreadableImage in images:
        raise MapetError("an image is unreadable, which is listed and counted")
    ids = [(pack.image_id(index), pack.label(index)) for index in range(len(pack))]
    return images, ids, pack.classes, pack.view


def use_tokenizer(folder):
    tokenizer = load_tokenizer(folder)
    images = torch.rand(2, 3, *tokenizer.view.size, generator=torch.Generator().manual_seed(0))
    return tokenizer.encode(images).tolist(), tokenizer.view, tokenizer.grid, tokenizer.vocabulary, tokenizer.hash


def use_comparison(folder):
    found = recorded(folder / "scores" / "mim-seed0.json")
    if found is None:
        raise MapetError("measured again, which is logged")
    return found["cost"], found["knn"]


USES = {
    "run": use_run,
    "tuned": use_run,
    "export": use_export,
    "tokens": use_tokens,
    "uint8": use_pack,
    "jpeg": use_pack,
    "tokenizer": use_tokenizer,
    "vqkd": use_tokenizer,
    "comparison": use_comparison,
}


def damages(content, chance):
    """(changed content, what was done)."""
    for number in range(CASES):
        changed = bytearray(content)
        changed[position := chance.randrange(len(content))] ^= 1 << chance.randrange(8)
        yield bytes(changed), f"flip at {position}"
        if number % 3 == 0:
            yield content[: (end := chance.randrange(len(content)))], f"cut at {end}"


def files_of(folder):
    found = sorted(path for path in folder.rglob("*") if path.is_file() and path.stat().st_size)
    return [path for path in found if not {"tensorboard", "inspect"} & set(path.relative_to(folder).parts)]


def refusal(act):
    """The line of a refusal; None if there is none."""
    try:
        act()
    except MapetError as error:
        return str(error)
    return None


def outcome(use, folder, expected, caplog):
    caplog.clear()
    generations._logged.clear()  # it is said once for each run
    found = []
    line = refusal(lambda: found.append(use(folder)))
    if line is not None:
        assert "\n" not in line
        return "refused"
    if "previous.safetensors of step 3 is used instead" in caplog.text:
        return "the one before, which is said"
    assert found == [expected]
    return "correct"


@pytest.mark.parametrize("kind", USES)
def test_damage_is_refused_or_changes_nothing(made, tmp_path, kind, caplog):
    caplog.set_level(logging.INFO, "mapet")
    folder, use, counts = shutil.copytree(made / kind, tmp_path / kind), USES[kind], Counter()
    expected = use(folder)
    for path in files_of(folder):
        content, chance = path.read_bytes(), random.Random(path.name)
        for changed, what in damages(content, chance):
            path.write_bytes(changed)
            try:
                counts[outcome(use, folder, expected, caplog)] += 1
            except Exception as error:
                raise AssertionError(f"{path.relative_to(folder)}, {what}") from error
        path.write_bytes(content)
    assert counts["refused"] >= CASES // 2, counts


@pytest.mark.parametrize("kind", [kind for kind in USES if kind not in ("tokenizer", "vqkd")])
def test_check_finds_every_change_of_content(made, tmp_path, kind):
    folder = shutil.copytree(made / kind, tmp_path / kind)
    assert not any(check(folder).values())
    paths = [path for path in files_of(folder) if path.name in CONTENT or path.parent.name == "scores"]
    assert paths
    for path in paths:
        content, chance = path.read_bytes(), random.Random(path.name)
        for _ in range(3):
            changed = bytearray(content)
            part = (10, 60) if path.suffix == ".json" else (len(content) * 3 // 4, len(content) - 8)
            changed[position := chance.randrange(*part)] ^= 1 << chance.randrange(8)
            path.write_bytes(bytes(changed))
            assert any(check(folder).values()), (path.name, position)
        path.write_bytes(content)


def test_a_run_with_any_damaged_file_is_resumed_or_refused_in_one_line(made, tmp_path):
    end, counts = Run(made / "run").checkpoint.read_all(), Counter()
    for number, path in enumerate(files_of(made / "run")):
        name, chance = path.relative_to(made / "run"), random.Random(path.name)
        folder = shutil.copytree(made / "run", tmp_path / f"{number}")
        (folder / name).write_bytes(list(damages(path.read_bytes(), chance))[number % 2][0])
        line = refusal(partial(mapet.resume, folder, accelerator="cpu", workers=0))
        if line is not None:
            assert "\n" not in line
            counts["refused"] += 1
            continue
        found = Run(folder).checkpoint.read_all()
        assert all(torch.equal(tensor, end[key]) for key, tensor in found.items()), name
        counts["resumed"] += 1
    assert counts["refused"]
    assert counts["resumed"] > 5
