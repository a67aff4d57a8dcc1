"""One pre-trained encoder in every form that can be gone on from or probed."""

import torch

from mapet.api.export import export
from mapet.build.finetune import begin
from mapet.build.pretrain import build_objective
from mapet.config.finetune import FinetuneRecipe
from mapet.config.flat import updated
from mapet.config.recipe import Model, save
from mapet.engine.run import Run, prefixed
from mapet.method.encoder import Classifier

MODEL = Model(name="custom", embed_dim=16, depth=2, num_heads=2, image_size=16, patch_size=4)


def randomised(module):
    with torch.random.fork_rng():
        torch.manual_seed(4)
        for parameter in module.parameters():
            torch.nn.init.normal_(parameter, std=0.2)  # so that no norm, bias or scale is at a neutral value
    return module


def in_all_forms(recipe, root):
    """The recipe's encoder as a run, as an export folder, and as a checkpoint in the published format, by name."""
    objective, run = randomised(build_objective(recipe, 12)), Run.create(root / "run")
    save(recipe, run.recipe)
    run.save(9, prefixed("model", objective.state_dict().items()))
    export(run.folder, root / "export")
    torch.save({"state_dict": published(objective), "epoch": 3}, root / "published.pth.tar")
    return {name: root / name for name in ("run", "export", "published.pth.tar")}


def published(objective):
    """The state dict under the published names: q apart from kv, mask_positional_token, decoder."""
    theirs = {}
    for name, tensor in objective.state_dict().items():
        name = name.removeprefix("encoder.").replace("head.", "decoder.").replace("mask_token", "mask_positional_token")
        if "attn.qkv" in name:
            q, kv = tensor.split([len(tensor) // 3, 2 * len(tensor) // 3])
            theirs |= {name.replace("qkv", "q"): q, name.replace("qkv", "kv"): kv}
        else:
            theirs[name] = tensor
    return theirs


def as_finetuning(folder, classes, data="images", crop_pct=0.75):
    """A classifier of images of 16 pixels with random weights, as a fine-tuning before its first step."""
    t = updated(FinetuneRecipe(), init="random", data=str(data), crop_pct=crop_pct)
    model = Classifier(16, 4, embed_dim=16, depth=2, num_heads=2, global_pool="avg", num_classes=len(classes))
    run = Run.create(folder)
    save(t, run.recipe)
    begin(run, randomised(model), t, {"from": "random weights", "classes": list(classes)})
    return run.folder
