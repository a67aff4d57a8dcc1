"""Files of weights: all honest forms are read, nothing in them is run, and the rest is told in one line."""

import argparse
import pickle
import re
import sys
import types
from itertools import accumulate
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from mapet.utils.errors import MapetError
from mapet.utils.weights import count, extent, fill, join_qkv_bias, named, read_weights

STATE = {"conv.weight": torch.arange(6.0).view(2, 3), "conv.bias": torch.ones(2)}
OTHER = {"conv.weight": torch.zeros(2, 3)}
OLD = pytest.mark.parametrize("old", [False, True])  # PyTorch's two file formats


def write(path: Path, content: Any, old: bool = False) -> Path:
    torch.save(content, path, _use_new_zipfile_serialization=not old)
    return path


def same(found: dict[str, torch.Tensor]) -> bool:
    return found.keys() == STATE.keys() and all(torch.equal(found[name], STATE[name]) for name in STATE)


@pytest.mark.parametrize(
    "content",
    [
        STATE,
        {"state_dict": STATE, "epoch": 3},
        {"model": STATE, "optimizer": {"lr": 0.1}, "args": argparse.Namespace(lr=0.1)},
        {f"module._orig_mod.{name}": tensor for name, tensor in STATE.items()},
        {"model": STATE, "model_ema": OTHER},
        {"teacher": STATE, "student": OTHER},
        {"backbone": STATE},
        {f"_fsdp_wrapped_module.{name.replace('.', '._checkpoint_wrapped_module.')}": STATE[name] for name in STATE},
        {"model": STATE, "best": np.float64(71.2), "step": np.int64(3), "flag": np.bool_(True), "curve": np.ones(3)},
        {"model": STATE, "args": argparse.Namespace(out=Path("run")), "names": np.array(["a", "b"])},
    ],
)
@OLD
def test_state_dicts_are_found(tmp_path, content, old):
    assert same(read_weights(write(tmp_path / "some.pth", content, old)))


def test_safetensors_and_averages(tmp_path):
    save_file(STATE, tmp_path / "some.safetensors")
    assert same(read_weights(tmp_path / "some.safetensors"))
    both = write(tmp_path / "both.pth", {"state_dict": OTHER, "state_dict_ema": STATE})
    assert same(read_weights(both, ema=True))
    assert not same(read_weights(both))


@pytest.fixture
def absent():
    """Makes a class that a file may name while it is written; ``leave`` takes its module away before it is read."""
    with pytest.MonkeyPatch.context() as patch:

        def make(module: str, name: str, bases: tuple[type, ...] = ()):
            cls = type(name, bases, {"__module__": module})
            for part in accumulate(module.split("."), "{}.{}".format):
                patch.setitem(sys.modules, part, types.ModuleType(part))
            setattr(sys.modules[module], name, cls)
            return cls

        yield make, patch.undo


@OLD
def test_older_lightning_checkpoints(tmp_path, absent, old):
    """They use a class as a key; taming-transformers' checkpoints are of that kind."""
    make, leave = absent
    callback = make("pytorch_lightning.callbacks.model_checkpoint", "ModelCheckpoint")
    score = torch.tensor(0.5)
    content = {"state_dict": STATE, "callbacks": {callback: {"best_model_score": score}}}
    path = write(tmp_path / "last.ckpt", content, old)
    leave()
    assert same(read_weights(path))


@OLD
def test_a_pickled_module_is_not_opened(tmp_path, absent, old):
    make, leave = absent
    path = write(tmp_path / "encoder.pkl", make("dall_e.encoder", "Encoder", (nn.Module,))(), old)
    leave()
    with pytest.raises(MapetError) as caught:
        read_weights(path)
    said = str(caught.value)
    assert "\n" not in said
    assert "more than tensors (dall_e.encoder.Encoder)" in said
    assert f"torch.load('{path}', weights_only=False)" in said
    assert "content.state_dict() of a module, or the part of a dict" in said


@OLD
def test_the_printed_lines_convert_a_configuration_beside_the_weights(tmp_path, absent, old):
    """As checkpoints of fairseq have one of OmegaConf; weights may be transposed or shared."""
    make, leave = absent
    config = make("omegaconf.dictconfig", "DictConfig")()
    weights = torch.arange(6.0).view(2, 3)
    path = write(tmp_path / "some.pt", {"model": {"a": weights, "b": weights, "c": weights.T}, "cfg": config}, old)
    with pytest.raises(
        MapetError, match=r"omegaconf.dictconfig.DictConfig.* where Python can import omegaconf"
    ) as caught:
        read_weights(path)
    lines = re.search(r": (content = .*), where STATE", str(caught.value))[1].replace("STATE", "content['model']")
    exec(lines, {"torch": torch})  # omegaconf can be imported
    leave()
    found = read_weights(tmp_path / "some-weights.pth")
    assert torch.equal(found["c"], weights.T)
    assert list(found) == ["a", "b", "c"]


def test_a_name_that_only_ends_like_a_wrapper_stays(tmp_path):
    names = {"submodule.weight": torch.ones(1), "head.module_list.0": torch.ones(1)}
    assert read_weights(write(tmp_path / "some.pth", names)).keys() == names.keys()


class Recorder:
    """Would be built by an unpickler that trusts what stands beside the weights."""

    built = 0

    def __init__(self) -> None:
        Recorder.built += 1

    def __reduce__(self):
        return Recorder, ()


def test_unknown_objects_beside_the_weights_are_refused(tmp_path):
    path = write(tmp_path / "some.pth", {"model": STATE, "logger": Recorder()})
    before = Recorder.built
    with pytest.raises(MapetError, match="Recorder"):
        read_weights(path)
    assert Recorder.built == before


class Malicious:
    """Creates a file when it is unpickled."""

    def __init__(self, target: Path) -> None:
        self.target = target

    def __reduce__(self):
        return Path.touch, (self.target,)


@OLD
def test_nothing_is_run(tmp_path, old):
    path = write(tmp_path / "some.pth", {**STATE, "more": Malicious(tmp_path / "run")}, old)
    with pytest.raises(MapetError, match=r"some\.pth cannot be read"):
        read_weights(path)
    assert not (tmp_path / "run").exists()
    torch.load(path, weights_only=False)
    assert (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"", "it is empty: give"),
        (b"\x89PNG\r\n", "starts with"),
        (b"PK\x03\x04 cut off", "a damaged file"),
        (pickle.dumps(print, protocol=4), "a pickle of more than tensors: give"),
        (STATE["conv.bias"], "does not hold a state dict"),
        ({"epoch": 3}, "does not hold a state dict"),
        ({"state_dict": {"epoch": 3}}, "does not hold a state dict"),
        ({}, "does not hold a state dict"),
    ],
)
def test_other_files_are_refused(tmp_path, recwarn, content, said):
    path = tmp_path / "some.pth"
    path.write_bytes(content) if isinstance(content, bytes) else write(path, content)
    with pytest.raises(MapetError, match=said) as caught:
        read_weights(path)
    assert "\n" not in str(caught.value)
    assert not recwarn


def test_a_missing_file(tmp_path):
    with pytest.raises(MapetError, match="There is no weights file"):
        read_weights(tmp_path / "absent.pth")
    with pytest.raises(MapetError, match="There is no weights file"):
        read_weights(tmp_path)


def test_weights_that_are_not_finite_are_refused():
    layer = torch.nn.Linear(2, 2)
    broken = {name: tensor.detach().clone() for name, tensor in layer.state_dict().items()}
    broken["bias"][1] = torch.nan
    with pytest.raises(MapetError, match='"bias" holds NaN'):
        fill(layer, broken, "a layer")
    assert layer.bias.isfinite().all()


def test_a_missing_tensor_or_axis_is_named():
    weights = {"a": torch.zeros(2, 3), "b": torch.zeros(1), "c": torch.zeros(1), "d": torch.zeros(1)}
    assert named(weights, "b", "a layer") is weights["b"]
    assert [extent(weights, "a", "a layer", axis) for axis in (0, 1)] == [2, 3]
    with pytest.raises(MapetError, match=r'weights of a layer: they lack "e" \(they hold a, b, c …\)'):
        named(weights, "e", "a layer")
    with pytest.raises(MapetError, match=r'lack "e" \(they hold nothing …\)'):
        extent({}, "e", "a layer")
    with pytest.raises(MapetError, match=r'weights of a layer: "a" is \(2, 3\)'):
        extent(weights, "a", "a layer", 2)


def test_blocks_are_counted_by_their_numbers():
    names = ["blocks.0.a", "blocks.0.b", "blocks.10.a", "blocks", "norm", "other.blocks.2.a", "blocks.3"]
    assert count(dict.fromkeys(names), "blocks.") == 3


def test_biases_of_queries_and_values_are_joined_around_zeros():
    weights = {"x.q_bias": torch.tensor([1.0, 2.0]), "x.v_bias": torch.tensor([3.0, 4.0]), "y": torch.ones(1)}
    joined = join_qkv_bias(weights, "BEiT")
    assert joined.keys() == {"x.qkv.bias", "y"}
    assert joined["x.qkv.bias"].tolist() == [1, 2, 0, 0, 3, 4]
    with pytest.raises(MapetError, match=r'weights of BEiT: they lack "x\.v_bias"'):
        join_qkv_bias({"x.q_bias": torch.ones(2)}, "BEiT")


def test_weights_fill_a_layer_only_if_all_fits():
    layer = torch.nn.Linear(2, 2)
    weights = {"weight": torch.ones(2, 2), "bias": torch.ones(2)}
    wrong = [
        ({**weights, "weight": torch.ones(2, 3)}, r'do not fit a layer: "weight" is \(2, 3\), not \(2, 2\)'),
        ({"weight": torch.ones(2, 2)}, 'lack "bias"'),
        ({**weights, "more": torch.ones(2)}, '"more" is unknown'),
    ]
    for given, said in wrong:
        with pytest.raises(MapetError, match=said):
            fill(layer, given, "a layer")
    fill(layer, weights, "a layer")
    assert all((parameter == 1).all() for parameter in layer.parameters())
