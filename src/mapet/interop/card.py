"""The model card of an export, and the lines of Python that load it. A test runs every line."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from mapet.method.encoder import SIZES, Encoder

MODES = {1: "L", 4: "RGBA"}  # PIL's names of channels; others: RGB


def loading_lines(folder: str | Path, *, classifies: bool = False) -> str:
    """Return Python code that loads an export and computes one feature vector, or the logits, per image."""
    features = "features = model.forward_features(images)[:, 1:].mean(dim=1)  # the mean of the patches"
    place = folder.as_posix() if isinstance(folder, Path) else folder
    return (
        "import timm\n"
        f'model = timm.create_model("local-dir:{place}", pretrained=True).eval()\n'
        f"{'logits = model(images)' if classifies else features}"
    )


def card(encoder: Encoder, name: str, notes: Mapping[str, Any], formats: Sequence[str] = ()) -> str:
    """Return the model card: what the model is, how it was trained, and how each library loads it.

    Args:
        encoder: the exported model.
        name: of the folder, which the lines of Python load from its parent; a card has no path of this machine.
        notes: training settings and scores.
        formats: programs beside the weights: ``onnx``, ``torch``.
    """
    channels, (height, width) = encoder.in_chans, encoder.img_size
    trained = "".join(f"- {name}: {value}\n" for name, value in notes.items()) or "- not recorded\n"
    pretrained = "pre-trained without labels by predicting visual tokens"
    kind = f"a classifier of {encoder.num_classes} classes" if encoder.num_classes else pretrained
    other = "other classes" if encoder.num_classes else "fine-tuning"
    code = "\n\n".join(f"{what}:\n\n```python\n{lines}\n```" for what, lines in _uses(encoder, f"./{name}", formats))
    return f"""---
library_name: timm
tags:
- image-{"classification" if encoder.num_classes else "feature-extraction"}
- mapet
---
# {_title(encoder, notes)}

A vision transformer, {kind} (mapet).

- images: {channels} × {height} × {width} (channels, height, width), normalised as in `config.json`
- patches: {encoder.patch_size[0]} × {encoder.patch_size[1]} pixels, a grid of {encoder.grid[0]} × {encoder.grid[1]}
- width {encoder.embed_dim}, {len(encoder.blocks)} blocks, {encoder.num_heads} heads, \
{sum(parameter.numel() for parameter in encoder.parameters()) / 1e6:.2f} M parameters

## Training

{trained}
## Use

{_reads(encoder)} The lines run in the folder that holds `{name}`; `photo.png` is any image.

{code}

For {other} add `num_classes=…` to `create_model`.
"""


def segmentation_card(
    model: Encoder, name: str, config: Mapping[str, Any], notes: Mapping[str, Any], formats: Sequence[str]
) -> str:
    """Return the card of a segmentation model; arguments as those of ``card``, and the export's ``config``."""
    height, width = model.img_size
    code = "\n\n".join(f"{what}:\n\n```python\n{lines}\n```" for what, lines in _dense_uses(name, config, formats))
    trained = "".join(f"- {name}: {value}\n" for name, value in notes.items())
    return f"""---
library_name: mapet
tags:
- image-segmentation
- mapet
---
# UPerNet over {_size(model)}{f", {notes['data']}" if "data" in notes else ""}

A vision transformer with a UPerNet head that gives each pixel one of {len(config["label_names"])} classes (mapet).

- images: {model.in_chans} × {height} × {width} (channels, height, width), normalised as in `config.json`
- classes, in the order of the logits: {", ".join(config["label_names"])}
- {sum(parameter.numel() for parameter in model.parameters()) / 1e6:.2f} M parameters

## Training

{trained}
## Use

The lines run in the folder that holds `{name}`; `photo.png` is any image. `mask` has the index of a class for each
pixel of the resized image. In mapet the model takes images of any size, and `mapet.evals.upernet.sliding_logits`
moves a window over large ones, as the test does; the other files take images of {height} × {width} pixels.

{code}
"""


def _dense_uses(name: str, config: Mapping[str, Any], formats: Sequence[str]) -> list[tuple[str, str]]:
    """As ``_uses``; the lines of the programs follow those of mapet."""
    (_, height, width), mean, std = (config["pretrained_cfg"][key] for key in ("input_size", "mean", "std"))
    prepare = (
        "import mapet\nimport torch\nfrom PIL import Image\nfrom torchvision.transforms import functional\n\n"
        f'image = Image.open("photo.png").convert("RGB").resize(({width}, {height}))\n'
        f"images = functional.normalize(functional.to_tensor(image), {mean}, {std})[None]"
    )
    mask = "mask = logits.argmax(dim=1)[0]"
    load = f'model = mapet.load_segmenter("./{name}")\nlogits = model(images)'
    uses = [("mapet", f"{prepare}\n{load}\n{mask}\nnames = model.classes")]
    if "onnx" in formats:
        session = f'import onnxruntime\nsession = onnxruntime.InferenceSession("./{name}/onnx/model.onnx")'
        run = 'logits = torch.from_numpy(session.run(["logits"], {"images": images.numpy()})[0])'
        uses.append(("ONNX Runtime, with `images` as for mapet", f"{session}\n{run}\n{mask}"))
    if "torch" in formats:
        lines = f'import torch\n(logits,) = torch.export.load("./{name}/torch/model.pt2").module()(images)\n{mask}'
        uses.append(("torch without any of these libraries, with `images` as for mapet", lines))
    return uses


def _title(encoder: Encoder, notes: Mapping[str, Any]) -> str:
    by = f", {notes['objective']}" if "objective" in notes else ""
    data = f", {notes['data']}" if "data" in notes else ""
    return f"{_size(encoder)}{' classifier' if encoder.num_classes else ''}{by}{data}"


def _size(encoder: Encoder) -> str:
    """As "ViT-Small/16"; without a known size "ViT/16"."""
    size = next((name for name, size in SIZES.items() if size["embed_dim"] == encoder.embed_dim), "vit")
    family, _, word = size.partition("_")
    return f"ViT{f'-{word.capitalize()}' if family and word else ''}/{encoder.patch_size[0]}"


def _reads(encoder: Encoder) -> str:
    if encoder.num_classes:
        return "`model(images)` gives the logits; the class names are `label_names` in `config.json`."
    returned = "CLS" if encoder.global_pool == "token" else "the normalised mean of the patches"
    return f"Features are the mean of the patches; `model(images)` gives {returned}."


def _uses(encoder: Encoder, place: str, formats: Sequence[str]) -> list[tuple[str, str]]:
    """Each way to use the export, with lines that run by themselves but for those of programs, which follow timm's."""
    classifies = encoder.num_classes > 0
    load, compute = loading_lines(place, classifies=classifies).rsplit("\n", 1)
    prepare = (
        "from PIL import Image\n"
        "transform = timm.data.create_transform(**timm.data.resolve_model_data_config(model))\n"
        f'images = transform(Image.open("photo.png").convert("{MODES.get(encoder.in_chans, "RGB")}"))[None]'
    )
    uses = [("timm", f"{load}\n{prepare}\n{compute}")]
    if encoder.in_chans == 3:
        uses += [("transformers", _transformers(place, classifies)), ("mapet", _mapet(place, classifies))]
    if "onnx" in formats:
        rest = "" if classifies else "[:, 1:].mean(axis=1)"
        output = "logits" if classifies else "features"
        uses.append(
            (
                "ONNX Runtime, with `images` as for timm",
                f'import onnxruntime\nsession = onnxruntime.InferenceSession("{place}/onnx/model.onnx")\n'
                f'{output} = session.run(["{output}"], {{"images": images.numpy()}})[0]{rest}',
            )
        )
    if "torch" in formats:
        unpack = "features, logits = model(images)" if classifies else "features = model(images)[0][:, 1:].mean(dim=1)"
        lines = f'import torch\nmodel = torch.export.load("{place}/torch/model.pt2").module()\n{unpack}'
        uses.append(("torch without any of these libraries, with `images` as for timm", lines))
    return uses


def _transformers(place: str, classifies: bool) -> str:
    if classifies:
        return (
            "from transformers import pipeline\n"
            f'print(pipeline("image-classification", "{place}")("photo.png"))  # with class names'
        )
    return (
        "from PIL import Image\n"
        "from transformers import AutoImageProcessor, AutoModel\n"
        f'processor, model = AutoImageProcessor.from_pretrained("{place}"), AutoModel.from_pretrained("{place}")\n'
        'images = processor(Image.open("photo.png").convert("RGB"), return_tensors="pt")["pixel_values"]\n'
        "features = model.eval()(images).last_hidden_state[:, 1:].mean(dim=1)"
    )


def _mapet(place: str, classifies: bool) -> str:
    if classifies:
        return f'import mapet\nprint(mapet.predict("{place}", ["photo.png"])[0].classes)'
    return f'import mapet\nfeatures = mapet.embed("{place}", ["photo.png"]).features'
