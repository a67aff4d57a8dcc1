"""Pre-train vision transformers on unlabelled images by predicting visual tokens.

Each public name is imported when it is first used. Their types are in ``__init__.pyi``, which tools/stub.py writes.
"""

from importlib import import_module
from typing import Any

_HOMES = {
    "Augmentation": "config.finetune",
    "Backbone": "config.finetune",
    "CenterCropResize": "utils.view",
    "Classifier": "method.encoder",
    "Codebook": "tokenizers.codebook",
    "Comparison": "api.compare.run",
    "Embeddings": "evals.feature_file",
    "Encoder": "method.encoder",
    "Estimate": "api.estimate",
    "FinetuneRecipe": "config.finetune",
    "ImageDataset": "data.dataset",
    "MapetError": "utils.errors",
    "Model": "config.recipe",
    "Network": "tokenizers.tokenizer",
    "Objective": "config.recipe",
    "Optimization": "config.training",
    "Pattern": "method.pattern",
    "Mask": "api.masks",
    "Masks": "api.masks",
    "Neighbour": "api.neighbours",
    "Plan": "api.compare.plan",
    "Prediction": "api.predict",
    "Predictions": "api.predict",
    "Recipe": "config.recipe",
    "Report": "api.benchmark.report",
    "Run": "engine.run",
    "Robustness": "api.robustness",
    "SegmentRecipe": "config.segmentation",
    "Segmenter": "evals.upernet",
    "Runtime": "config.runtime",
    "Score": "evals.score",
    "Teacher": "tokenizers.teacher",
    "TokenPrediction": "method.predict",
    "TokenStore": "tokenizers.store",
    "Tokenizer": "config.recipe",
    "VQKDRecipe": "config.vqkd",
    "Transfer": "api.transfer",
    "Validation": "api.validate",
    "benchmark": "api.benchmark.run",
    "compare": "api.compare.run",
    "doctor": "api.doctor",
    "attend": "api.attend",
    "embed": "api.embed",
    "reveal_image": "api.reveal",
    "report": "api.report.write",
    "estimate": "api.estimate",
    "evaluate": "api.evaluate",
    "export": "api.export",
    "finetune": "api.finetune",
    "extract_features": "api.features",
    "fit": "engine.fit",
    "fit_tokenizer": "api.fit_tokenizer",
    "import_tokenizer": "api.import_tokenizer",
    "inspect_tokenizer": "api.inspect_tokenizer",
    "load_classifier": "api.encoders",
    "load_encoder": "api.encoders",
    "load_segmenter": "api.segment",
    "load_tokenizer": "tokenizers.tokenizer",
    "masks": "api.masks",
    "neighbours": "api.neighbours",
    "open_dataset": "data.dataset",
    "pack": "api.pack",
    "predict": "api.predict",
    "pretrain": "api.pretrain",
    "quickstart": "api.quickstart",
    "register_objective": "build.objectives",
    "resume": "api.resume",
    "reveal": "method.pattern",
    "robustness": "api.robustness",
    "segment": "api.segment",
    "segment_probe": "api.segment_probe",
    "shapes": "api.shapes",
    "show": "api.show",
    "tokenize": "api.tokenize",
    "transfer": "api.transfer",
    "train_vqkd": "api.train_vqkd",
    "validate": "api.validate",
}
__all__ = list(_HOMES)


def __getattr__(name: str) -> Any:
    if name == "__version__":
        from mapet.utils.versions import versions

        return versions(["mapet"])["mapet"] or "0+unknown"
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)


def __dir__() -> list[str]:
    return sorted([*_HOMES, "__version__"])
