"""ONNX and torch.export files compute what the encoder computes, and are not written if they do not."""

import re
from pathlib import Path

import pytest
import torch

from mapet.interop import graphs
from mapet.interop.graphs import FILES, write_graph
from mapet.interop.timm import to_timm
from mapet.method.encoder import Classifier, Encoder
from mapet.utils.errors import MapetError

MODEL = {"patch_size": 16, "embed_dim": 32, "depth": 2, "num_heads": 2}
HEAD = {"kind": Classifier, "num_classes": 3, "global_pool": "avg"}
CASES = {"224": (224, HEAD), "256 x 192": ((256, 192), {"init_values": 0.1})}


def make(size=32, kind=Encoder, **settings):
    torch.manual_seed(0)
    encoder = kind(size, **{**MODEL, **settings})
    for parameter in encoder.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    return encoder.eval()


def real_like(batch, encoder):
    """Flat areas with sharp edges and a gradient, normalised as training does."""
    height, width = encoder.img_size
    y, x = torch.meshgrid(torch.linspace(0, 1, height), torch.linspace(0, 1, width), indexing="ij")
    discs = [((y - 0.5) ** 2 + (x - i / 5) ** 2 < 0.09).float() for i in range(batch)]
    images = torch.stack([torch.stack([y, x, disc]) for disc in discs])
    return (images - 0.45) / 0.225


def compute(target, folder, names, images):
    if target == "torch":
        return torch.export.load(folder / FILES["torch"]).module()(images)
    runtime = pytest.importorskip("onnxruntime")
    session = runtime.InferenceSession(folder / FILES["onnx"], providers=["CPUExecutionProvider"])
    assert [one.name for one in session.get_inputs()] == ["images"]
    assert [one.name for one in session.get_outputs()] == names
    return [torch.from_numpy(found) for found in session.run(names, {"images": images.numpy()})]


def written(encoder, target, folder):
    if target == "onnx":
        pytest.importorskip("onnxscript")
        pytest.importorskip("onnxruntime")
    write_graph(encoder, target, folder)
    return folder


@pytest.mark.parametrize("target", FILES)
@pytest.mark.parametrize(("size", "settings"), CASES.values(), ids=CASES)
def test_the_file_computes_the_same(tmp_path, target, size, settings):
    encoder = make(size, **settings)
    kind = encoder.num_classes > 0
    folder = written(encoder, target, tmp_path)
    names = ["features", "logits"] if kind else ["features"]
    for batch in (1, 5, 3):
        for images in (torch.randn(batch, 3, *encoder.img_size), real_like(batch, encoder)):
            with torch.no_grad():
                features = Encoder.forward(encoder, images)
                expected = [features, encoder(images)] if kind else [features]
            found = compute(target, folder, names, images)
            limit = {"onnx": 1e-4, "torch": 1e-5}[target]
            for one, other in zip(found, expected, strict=True):
                torch.testing.assert_close(one, other, atol=limit * max(1, float(other.abs().max())), rtol=0)


@pytest.mark.parametrize("target", FILES)
def test_the_file_tells_nothing_of_this_machine(tmp_path, target):
    folder = written(make(), target, tmp_path)
    content = (folder / FILES[target]).read_bytes()
    assert not re.search(rb"\.py\b|Traceback|" + re.escape(str(Path(graphs.__file__).parents[3])).encode(), content)


@pytest.mark.parametrize("target", graphs.TOLERANCES)
@pytest.mark.parametrize("wrong", ["values", "shape", "nan", "large batches"])
def test_what_computes_something_else_is_refused(target, wrong):
    graph = graphs.Graph(make())
    graphs.compare(graph, graph, target)
    change = {
        "values": lambda found: found + 2 * graphs.TOLERANCES[target] * found.abs().max(),
        "nan": lambda found: found * float("nan"),
        "shape": lambda found: found[:, :-1],
        "large batches": lambda found: torch.cat([found[:1], found[:-1]]),
    }[wrong]
    with pytest.raises(MapetError, match=rf"The {target} export computes other features than the encoder"):
        graphs.compare(graph, lambda images: tuple(map(change, graph(images))), target)


@pytest.mark.parametrize(("target", "allowed"), [("timm", 1e-5), ("torch", 1e-5), ("onnx", 1e-4)])
@pytest.mark.parametrize("scale", [0.1, 10.0])
def test_differences_are_allowed_up_to_a_share_of_the_largest_value(target, allowed, scale):
    """Of 1 where all values are smaller."""

    def changed(features, by):
        most = max(1.0, features.abs().max().item())
        return (features.index_fill(1, torch.tensor([0]), features[0, 0].max().item() + by * allowed * most),)

    graph = graphs.Graph(make())
    graph.forward = lambda images: (torch.full((len(images), 2, 2), scale, dtype=torch.float64),)
    for by in (0.9, -0.9):
        graphs.compare(graph, lambda images, by=by: changed(*graph.forward(images), by), target)
    for by in (1.1, -1.1):
        with pytest.raises(MapetError, match="computes other features"):
            graphs.compare(graph, lambda images, by=by: changed(*graph.forward(images), by), target)


@pytest.mark.parametrize("target", FILES)
def test_a_wrong_file_leaves_the_earlier_export(tmp_path, monkeypatch, target):
    if target == "onnx":
        pytest.importorskip("onnxscript")
        pytest.importorskip("onnxruntime")
    writer = getattr(graphs, f"_{target}")

    def changed(*given):
        run = writer(*given)
        return lambda images: tuple(found + 1e-3 * found.abs().max() for found in run(images))

    monkeypatch.setattr(graphs, f"_{target}", changed)
    statistics = {"mean": [0.4] * 3, "std": [0.2] * 3}
    earlier = to_timm(make(), tmp_path / "out", **statistics)
    before = {path.name: path.read_bytes() for path in earlier.iterdir()}
    with pytest.raises(MapetError, match=rf"The {target} export computes other features .*leave {target} out of"):
        to_timm(make(depth=3), earlier, **statistics, formats=[target], overwrite=True)
    assert {path.name: path.read_bytes() for path in earlier.iterdir()} == before
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_missing_packages_are_one_line(tmp_path, monkeypatch):
    monkeypatch.setattr(graphs, "find_spec", lambda name: None if name == "onnxscript" else object())
    with pytest.raises(MapetError, match=r"^to onnx needs onnxscript: pip install 'mapet\[onnx\]'\.$"):
        write_graph(make(), "onnx", tmp_path)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("training", [True, False])
def test_the_encoder_stays_as_it_is(tmp_path, training):
    encoder = make(drop_path_rate=0.5).train(training)
    before = {name: tensor.clone() for name, tensor in encoder.state_dict().items()}
    write_graph(encoder, "torch", tmp_path)
    assert encoder.training == training
    assert all(torch.equal(tensor, before[name]) for name, tensor in encoder.state_dict().items())
