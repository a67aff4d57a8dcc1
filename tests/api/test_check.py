import pytest
import torch

from mapet.api.check import check
from mapet.cli import main
from mapet.engine.run import Run
from mapet.tokenizers.store import TokenStore
from mapet.utils.errors import MapetError
from mapet.utils.view import CenterCropResize


def test_checkpoints_of_a_run_are_verified(tmp_path, capsys):
    run = Run.create(tmp_path / "run")
    for step in (1, 2):
        run.save(step, {"model/x": torch.ones(50)})
    assert main(["check", str(run.folder)]) == 0
    content = bytearray(run.last.read_bytes())
    content[-3] ^= 8
    run.last.write_bytes(bytes(content))
    assert main(["check", str(run.folder)]) == 1
    damaged, valid = capsys.readouterr().out.splitlines()[-2:]
    assert damaged.startswith("damaged   checkpoints/last.safetensors: ")
    assert valid == "valid     checkpoints/previous.safetensors"


def test_weights_that_are_not_finite_are_found(tmp_path):
    Run.create(tmp_path).save(1, {"model/x": torch.tensor([1.0, float("inf")])})
    assert "model/x has values" in check(tmp_path)["checkpoints/last.safetensors"]


def test_tokens_outside_the_vocabulary_and_leftover_bytes_are_found(tmp_path):
    store = TokenStore.create(tmp_path, view=CenterCropResize((8, 8)), grid=(1, 2), vocabulary=9, tokenizer="x")
    store.append(["a", "b"], torch.tensor([[1, 2], [3, 8]]))
    store.release()
    assert check(tmp_path) == {"tokens.bin": ""}
    path = tmp_path / "tokens.bin"
    content = path.read_bytes()
    path.write_bytes(content[:-1] + b"\x01")
    assert "has the token 264, and its vocabulary is 9" in check(tmp_path)["tokens.bin"]
    path.write_bytes(content + b"\x01")
    assert "has 9 bytes" in check(tmp_path)["tokens.bin"]


def test_other_folders_are_refused(tmp_path):
    with pytest.raises(MapetError, match="holds no run, tokens"):
        check(tmp_path)
