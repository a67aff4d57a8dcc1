"""Pre-train vision transformers on unlabelled images by predicting visual tokens.

Nouns and verbs by name; each is imported when it is first used.
"""

from importlib import import_module
from typing import Any

_HOMES = {
    "Pattern": "method.pattern",
    "reveal": "method.pattern",
    "Encoder": "method.encoder",
    "TokenPrediction": "method.predict",
    "Codebook": "tokenizers.codebook",
    "TokenStore": "tokenizers.store",
    "Teacher": "tokenizers.teacher",
    "load_tokenizer": "tokenizers.tokenizer",
    "CenterCropResize": "utils.view",
    "Recipe": "config.recipe",
    "Runtime": "config.recipe",
    "FinetuneRecipe": "config.finetune",
    "MapetError": "utils.errors",
    "Run": "engine.run",
    "fit": "engine.fit",
    "open_dataset": "data.dataset",
    "load_encoder": "api.encoders",
    "load_classifier": "api.encoders",
    "pack": "api.pack",
    "Packing": "data.packing",
    "tokenize": "api.tokenize",
    "pretrain": "api.pretrain",
    "resume": "api.resume",
    "register_objective": "build.objectives",
    "Plan": "api.compare.plan",
    "compare": "api.compare.run",
    "finetune": "api.finetune",
    "evaluate": "api.evaluate",
    "train_vqkd": "api.train_vqkd",
    "export": "api.export",
}
__all__ = list(_HOMES)


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)


def __dir__() -> list[str]:
    return sorted(_HOMES)
