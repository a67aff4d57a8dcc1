"""Every default that no publication fixes, as a literal: what a call without options does does not change unseen."""

import pytest

from mapet.config import recipes
from mapet.config.benchmark import BenchmarkSettings
from mapet.config.compare import CompareSettings
from mapet.config.estimate import EstimateSettings
from mapet.config.evaluate import EvaluateSettings
from mapet.config.finetune import FinetuneRecipe
from mapet.config.flat import diff, dotted
from mapet.config.quickstart import QuickstartSettings
from mapet.config.recipe import Recipe, Tokenizer
from mapet.config.recipes import finetune
from mapet.config.report import ReportSettings
from mapet.config.runtime import PretrainRuntime
from mapet.config.segmentation import Decoder, SceneAugmentation, SegmentProbeSettings, ShapesSettings
from mapet.config.use import (
    AttendSettings,
    EmbedSettings,
    MasksSettings,
    NeighboursSettings,
    PredictSettings,
    RevealSettings,
)
from mapet.config.validate import RobustnessSettings
from mapet.config.verbs import (
    FitTokenizerSettings,
    ImportTokenizerSettings,
    InspectTokenizerSettings,
    PackSettings,
    TokenizeSettings,
)

PIXELS = 89_478_485  # Pillow's limit
IMAGES = {"split": None, "accelerator": "auto", "max_pixels": PIXELS, "max_bad_fraction": 1.0}
READING = {**IMAGES, "batch_size": 64, "num_heads": None, "workers": None}
LOADED = {"max_images": None, "max_pixels": PIXELS, "seed": 0, "workers": None, "max_bad_fraction": 0.01}
TOKENIZER = {
    "path": None,
    "teacher": "efficientnet_lite0",
    "teacher_stage": None,
    "teacher_output": "stage",
    "teacher_weights": None,
    "vocab_size": 8192,  # of BEiT
    "samples": None,
    "fit_images": None,
    "iterations": 20,
    "restarts": 1,
    "metric": "euclidean",
    "kmeans_init": "k-means++",
    "kmeans_mode": "sample",
    "kmeans_precision": "float32",
}
TOKENIZE = {**LOADED, "image_size": 224, "patch_size": 16, "draft": None, "batch_size": 64, "accelerator": "auto"}
TOKENIZE |= {f"tokenizer.{name}": value for name, value in TOKENIZER.items()}
NEAREST = {"k": 20, "temperature": 0.07}  # of DINO
DEFAULTS = {
    AttendSettings: {"block": None, "patch": None, "num_heads": None, "accelerator": "auto"},
    BenchmarkSettings: {
        **dict.fromkeys(("objectives", "models", "batch_sizes", "precisions", "baseline", "scaling"), ()),
        "compile": ("off",),
        "micro_batch_size": None,
        "rounds": 5,
        "skip_memory": False,
        "accelerator": "auto",
        "workers": None,
        "cache_gib": 2.0,
    },
    CompareSettings: {
        "objectives": ("mapet", "pet", "mim", "cae", "mae"),
        "seeds": 3,
        "evaluate": ("knn", "linear"),
        "budget": ("epochs",),
        **dict.fromkeys(("baselines", "vary", "tokenizers"), ()),
        "knn_every": 0.0,
        **dict.fromkeys(("eval_data", "eval_limit", "segment_data")),
    },
    Decoder: {"channels": 512, "auxiliary_channels": 256, "auxiliary_weight": 0.4},
    EmbedSettings: {**READING, "pool": "avg", "layer": None, "normalize": False},
    EstimateSettings: {"devices": 1, "images": None, "bench": None, "measure": False, "tflops": None},
    EvaluateSettings: {
        "seed": 0,
        **{f"features.{name}": value for name, value in LOADED.items() if name != "seed"},
        "features.random": False,
        "features.num_heads": None,
        "features.accelerator": "auto",
        "features.cache_gib": 16.0,
        "pooling.pool": "avg",
        **{f"knn.{name}": value for name, value in NEAREST.items()},
        "attentive.batch_size": None,
        "fewshot.shots": (1, 5, 10),
        "fewshot.draws": 5,
    },
    FitTokenizerSettings: {**TOKENIZE, "tokenizer.restarts": 5, "grid": None},
    ImportTokenizerSettings: {"image_size": None, "patch_size": 16, "heads": 12},
    InspectTokenizerSettings: {
        **LOADED,
        "max_images": 10_000,
        "num_codes": 8,
        "show": "",
        **dict.fromkeys(("compare_with", "teacher_weights", "compare_with_teacher_weights")),
        "accelerator": "auto",
    },
    MasksSettings: {**IMAGES, "stride": None},
    NeighboursSettings: {"k": 11, "images": None, "num_heads": None, "accelerator": "auto"},
    PackSettings: {**LOADED, "form": "uint8", "size": 224, "quality": None},
    PredictSettings: {**READING, "top_k": 5, "crop_pct": None},
    PretrainRuntime: {
        "workers": None,
        "accelerator": "auto",
        "devices": 1,
        "num_nodes": 1,
        "strategy": "ddp",
        "micro_batch_size": None,
        "compile": False,
        "grad_checkpointing": False,
        "save_every": 0,
        "cache_gib": 2.0,
        "logger": "none",
        "timeout": 30.0,  # minutes, as torch
        "max_bad_fraction": 0.01,
        "probe_every": 0.0,
        "probe_data": "",
        "probe_images": 2000,
        "panel_every": 0.0,
        "keep_best": "none",
    },
    QuickstartSettings: {"epochs": None, "max_images": None, "seed": 0, "accelerator": "auto"},
    ReportSettings: {"images": 4, "most": 500, "seed": 0, "accelerator": "auto"},
    RevealSettings: {"frames": 5, "seed": 0, "accelerator": "auto"},
    RobustnessSettings: {
        **READING,
        "max_bad_fraction": 0.01,
        "crop_pct": None,
        "subset": True,
        "real": None,
        "corruptions": (),
        "severities": (1, 2, 3, 4, 5),  # of ImageNet-C
        "seed": 0,
    },
    SceneAugmentation: {"scale": (0.5, 2.0), "hflip": 0.5, "photometric": True, "cat_max_ratio": 0.75},
    SegmentProbeSettings: {
        **NEAREST,
        **dict.fromkeys(("image_size", "max_images", "num_heads")),
        "max_patches": 50_000,
        "reduce_zero_label": True,
        "random": False,
        "seed": 0,
        "accelerator": "auto",
    },
    ShapesSettings: {"classes": 10, "train": 1000, "test": 250, "size": 224, "objects": 3, "seed": 0},
    TokenizeSettings: TOKENIZE,
    Tokenizer: TOKENIZER,
}
CIFAR10 = {  # what differs from the defaults, by which the figures of README and results were measured
    "cifar10-quickstart": {
        "data": "cifar10",
        "max_images": 8000,
        "model.name": "custom",
        "model.embed_dim": 128,
        "model.depth": 4,
        "model.num_heads": 4,
        "model.image_size": 32,
        "model.patch_size": 4,
        "model.init_values": None,
        "model.drop_path": 0.0,
        "tokenizer.vocab_size": 512,
        "tokenizer.samples": 51_200,
        "tokenizer.fit_images": 2000,
        "tokenizer.iterations": 10,
        "optimization.epochs": 3,
        "optimization.batch_size": 32,
        "optimization.lr": 2e-3,
        "optimization.warmup_epochs": 0.3,
        "optimization.betas": (0.9, 0.98),
    },
    "cifar10-vit-tiny": {
        "data": "cifar10",
        "precision": "bfloat16",
        "model.image_size": 32,
        "model.patch_size": 4,
        "model.drop_path": 0.0,
        "tokenizer.vocab_size": 512,
        "tokenizer.samples": 262_144,
        "optimization.epochs": 200,
        "optimization.lr": 1.5e-3,
    },
    "cifar10-finetune": {
        "data": "cifar10",
        "layer_decay": 0.75,
        "augmentation.scale": (0.33, 1.0),
        "augmentation.reprob": 0.1,
        "optimization.lr": 1e-3,
        "optimization.base_lr": 1.875e-4,  # without effect beside lr
    },
}


@pytest.mark.parametrize("kind", DEFAULTS, ids=lambda kind: kind.__name__)
def test_a_call_without_options(kind):
    assert dotted(kind()) == DEFAULTS[kind]


@pytest.mark.parametrize("name", CIFAR10)
def test_recipes_of_cifar10(name):
    plain, made = Recipe(), recipes.catalogue().get(name)
    if made is None:
        plain, made = FinetuneRecipe(), finetune.catalogue()[name]
    assert {setting: value for setting, (_, value) in diff(plain, made()).items()} == CIFAR10[name]
