"""ONNX and torch.export programs of an encoder; all that is exported is compared with it and refused if it differs."""

import io
import logging
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from copy import deepcopy
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from mapet.interop.export_folder import write
from mapet.method.encoder import Encoder
from mapet.utils.autograd import start_without_devices
from mapet.utils.errors import MapetError
from mapet.utils.rng import uniform

FILES = {"onnx": "onnx/model.onnx", "torch": "torch/model.pt2"}  # in an export
TOLERANCES = {"timm": 1e-5, "onnx": 1e-4, "torch": 1e-5}  # of the largest value, or of 1 if that is larger
BATCHES = (1, 5)  # sizes that are compared; a program is traced with 2
ONNX_PACKAGES = ("onnx", "onnxscript", "onnxruntime")


class Graph(nn.Module):
    """What a program computes: ``features`` (B, 1 + L, D) as ``Encoder.forward``; with a head ``logits``, too.

    Of a segmentation model (``dense``) it is ``logits`` (B, classes, H, W) alone.
    """

    def __init__(self, encoder: Encoder, *, dense: bool = False) -> None:
        super().__init__()
        self.encoder, self.dense = deepcopy(encoder).cpu().float(), dense
        self.names = ("logits",) if dense else ("features", "logits") if encoder.num_classes else ("features",)
        self.eval()

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        """(B, C, H, W) → features, and logits (B, classes) if there is a head; or dense logits."""
        if self.dense:
            return (self.encoder(images),)
        features = Encoder.forward(self.encoder, images)
        return (features, self.encoder.forward_head(features)) if self.encoder.num_classes else (features,)


def require_packages(target: str) -> None:
    """Refuse a format whose packages are missing.

    Raises:
        MapetError: names them, and the extra that installs them.
    """
    if target == "onnx" and (missing := [name for name in ONNX_PACKAGES if find_spec(name) is None]):
        raise MapetError(f"--to onnx needs {' and '.join(missing)}: pip install 'mapet[onnx]'.")


def write_graph(encoder: Encoder, target: str, folder: Path, *, dense: bool = False) -> None:
    """Write ``FILES[target]`` in ``folder``: float32, batches of any size, images of the encoder's size.

    The file is read back and compared with the encoder on noise and on smooth images, in batches of 1 and 5.

    Raises:
        MapetError: it computes something else, or its packages are missing.
    """
    require_packages(target)
    graph, path = Graph(encoder, dense=dense), folder / FILES[target]
    path.parent.mkdir()
    start_without_devices()  # export's tensors are fake
    with _quiet():
        program = torch.export.export(graph, (_images(encoder, 2),), dynamic_shapes=({0: torch.export.Dim("batch")},))
        for node in program.graph.nodes:
            node.meta.pop("stack_trace", None)  # has this machine's paths
        run = (_onnx if target == "onnx" else _torch)(program, graph.names, path)
        compare(graph, run, target)


def _torch(program: Any, names: tuple[str, ...], path: Path) -> Callable[[Tensor], tuple[Tensor, ...]]:
    """Write a torch.export program. Returns what the file computes."""
    buffer = io.BytesIO()
    torch.export.save(program, buffer)
    write(path, buffer.getvalue())
    found: Callable[[Tensor], tuple[Tensor, ...]] = torch.export.load(path).module()
    return found


def _onnx(program: Any, names: tuple[str, ...], path: Path) -> Callable[[Tensor], tuple[Tensor, ...]]:
    """Write an ONNX model. Returns what ONNX Runtime computes with it."""
    import onnxruntime

    model = torch.onnx.export(program, dynamo=True, input_names=["images"], output_names=list(names), verbose=False)
    assert model is not None
    for node in model.model.graph.all_nodes():
        node.metadata_props.clear()  # traces of calls
    write(path, model.model_proto.SerializeToString())
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    return lambda images: tuple(map(torch.from_numpy, session.run(list(names), {"images": images.numpy()})))


@torch.no_grad()
def compare(graph: Graph, run: Callable[[Tensor], tuple[Tensor, ...]], target: str) -> None:
    """Compare what ``run`` computes with ``graph``, on noise and on smooth images, in batches of 1 and 5.

    Raises:
        MapetError: ``graph`` gives NaN or infinity, or ``run`` gives other shapes or values.
    """
    for batch in BATCHES:
        noise = _images(graph.encoder, batch)
        smooth = F.interpolate(F.avg_pool2d(noise, graph.encoder.patch_size), graph.encoder.img_size, mode="bicubic")
        for images in (noise, smooth * 4):
            for name, expected, found in zip(graph.names, graph(images), run(images), strict=True):
                if not torch.isfinite(expected).all():
                    raise MapetError(f"The {name} of the encoder are NaN or infinite, so nothing is exported.")
                limit = TOLERANCES[target] * max(1.0, float(expected.abs().max()))
                same = found.shape == expected.shape
                difference = float((found - expected).abs().max()) if same else float("inf")
                if not difference <= limit:
                    way_out = "try another version of timm" if target == "timm" else f"leave {target} out of --to"
                    raise MapetError(
                        f"The {target} export computes other {name} than the encoder (difference {difference:.2g}, "
                        f"allowed {limit:.2g}, batch {batch}), so nothing is exported: {way_out}."
                    )


def _images(encoder: Encoder, batch: int) -> Tensor:
    """Noise in −2 … 2, the same in every call: (B, C, H, W)."""
    shape = torch.Size((batch, encoder.in_chans, *encoder.img_size))
    return uniform(batch, torch.arange(shape.numel())).view(shape).float() * 4 - 2


@contextmanager
def _quiet() -> Iterator[None]:
    """Without the exporters' warnings and notes, which speak of their own insides."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)
