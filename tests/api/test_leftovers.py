"""A kill at any moment, and a full disk, leave nothing that the next start does not use or delete."""

import os
import shutil
import subprocess
import sys
import textwrap
from functools import partial
from pathlib import Path

import pytest
import torch
from safetensors import safe_open

from mapet.api.training import RESTORED, _restored_on_failure
from mapet.data.augment import IMAGENET_MEAN, IMAGENET_STD
from mapet.engine.run import Run
from mapet.interop.timm import to_timm
from mapet.method.encoder import Encoder
from mapet.tokenizers.store import TokenStore
from mapet.tokenizers.tokenizer import write_folder
from mapet.utils.errors import MapetError  # noqa: F401
from mapet.utils.view import CenterCropResize
from packs import RAW, noise, packed
from processes import Forked, stopping

IDS = [f"{number}.png" for number in range(6)]


def write_export(folder, images):
    torch.manual_seed(0)
    encoder = Encoder(16, 4, embed_dim=16, depth=1, num_heads=2)
    to_timm(encoder, folder / "out", mean=IMAGENET_MEAN, std=IMAGENET_STD, overwrite=True)


def write_tokens(folder, images):
    store = TokenStore.create(folder / "out", view=CenterCropResize((8, 8)), grid=(1, 300), vocabulary=9, tokenizer="x")
    store.reserve()
    for part in (IDS[:3], IDS[3:]):
        if new := [image_id for image_id in part if image_id not in store]:
            store.append(new, torch.tensor([[int(image_id[0])] * 300 for image_id in new]))
    store.release()


def write_pack(folder, images):
    packed(images, folder / "out", RAW)


def write_tokenizer(folder, images):
    for seed in (0, 1):  # a new folder, then a replacement
        write_folder(folder / "out", {"kind": "codebook", "seed": seed}, {"centroids": torch.full((2000,), seed)})


def write_run(folder, images):
    run = Run(folder / "out")
    run.folder.mkdir(exist_ok=True)
    run.clean()
    for step in range(run.completed + 1, 4):
        run.save(step, {"model/x": torch.full((2000,), step)}, keep=step == 2)


KINDS = {act.__name__: act for act in (write_export, write_tokens, write_pack, write_tokenizer, write_run)}


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    return noise(tmp_path_factory.mktemp("images"))


def content(folder):
    """What files hold, by name; the sequence of metadata in safetensors files is arbitrary."""
    found = {}
    for path in sorted(folder.rglob("*")):
        if path.suffix == ".safetensors":
            file = safe_open(path, "np")
            tensors = {name: file.get_tensor(name).tolist() for name in file.keys()}  # noqa: SIM118
            found[path.relative_to(folder)] = (file.metadata(), tensors)
        elif path.is_file():
            found[path.relative_to(folder)] = path.read_bytes().replace(bytes(folder), b"")
    return found


@pytest.mark.parametrize("kind", KINDS)
def test_killed_at_any_flush_the_next_start_ends_as_if_there_was_none(kind, images, tmp_path, monkeypatch):
    act, flushes, flush = KINDS[kind], [], os.fsync
    (whole := tmp_path / "whole").mkdir()
    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", lambda number: flushes.append(flush(number)))
        act(whole, images)
    assert len(flushes) >= 4
    for number in range(1, len(flushes) + 1, 1 + len(flushes) // 8):
        (folder := tmp_path / str(number)).mkdir()
        process = Forked(tmp_path, work=stopping(os, "fsync", number, partial(act, folder, images)))
        process.wait_for_stop()
        process.kill()
        process.wait()
        act(folder, images)
        assert content(folder) == content(whole), number
        assert {path.name for path in folder.iterdir()} == {"out"}


FULL = """
    import sys
    sys.path[:0] = {paths!r}
    from pathlib import Path
    from test_leftovers import KINDS, MapetError, noise
    (images := Path({images!r})).mkdir()
    source, root = noise(images), Path({folder!r})
    for kind, act in KINDS.items():
        (folder := root / kind).mkdir()
        if kind != "write_pack":
            act(folder, source)
        for left in (0, 1500, 6000):
            if kind in ("write_tokens", "write_pack", "write_run") and (folder / "out").exists():
                shutil.rmtree(folder / "out")
            (root / "filler").write_bytes(b"")
            room = (root / "filler").open("wb", buffering=0)
            try:
                while room.write(bytes(4096)):
                    pass
            except OSError:
                pass
            room.truncate(max(0, room.tell() - left // 4096 * 4096 - 4096 * (left > 0)))
            try:
                act(folder, source)
                print(kind, "written")
            except (MapetError, OSError) as error:
                assert "\\n" not in str(error) and str(folder) in str(error), error
                print(kind, "refused")
            unfinished = [path.name for path in folder.rglob("*") if path.name.endswith((".part", ".partial"))]
            assert not unfinished, unfinished
            room.close()
            (root / "filler").unlink()
            act(folder, source)
            assert {{path.name for path in folder.iterdir()}} == {{"out"}}, list(folder.iterdir())
"""


def test_a_full_disk_leaves_nothing_and_is_one_line(tmp_path):
    tests = Path(__file__).parents[1]
    (disk := tmp_path / "disk").mkdir()
    paths = [str(Path(__file__).parent), str(tests), *filter(None, sys.path)]
    script = textwrap.dedent(FULL).format(paths=paths, images=str(tmp_path / "images"), folder=str(disk))
    user = [] if os.getuid() == 0 else ["-Ur"]
    mount = f'mount -t tmpfs -o size=1m tmpfs {disk} || exit 77; exec {sys.executable} -c "$SCRIPT"'
    if not shutil.which("unshare") or subprocess.run(["unshare", *user, "-m", "true"], check=False).returncode:
        pytest.skip("no mount namespaces here")
    done = subprocess.run(
        ["unshare", *user, "-m", "sh", "-c", mount],
        env={**os.environ, "SCRIPT": "import shutil\n" + script},
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode == 77:
        pytest.skip("no file system can be mounted here")
    assert done.returncode == 0, done.stderr
    refused = {line.split()[0] for line in done.stdout.splitlines() if line.endswith("refused")}
    assert refused == set(KINDS)


@pytest.mark.parametrize("earlier", [False, True])
def test_an_error_before_the_first_step_knows_whether_an_earlier_run_is_back(tmp_path, earlier):
    run = Run.create(tmp_path / "run")
    if earlier:
        run.recipe.write_text("data: x\n")
        run.append_metrics([{"step": 1, "loss": 2.0}])
        run = Run.create(tmp_path / "run", overwrite=True)
    with pytest.raises(RuntimeError) as failed, _restored_on_failure(run):
        raise RuntimeError("a worker")
    assert getattr(failed.value, "__notes__", []) == [RESTORED] * earlier
    assert run.metrics.exists() == earlier
