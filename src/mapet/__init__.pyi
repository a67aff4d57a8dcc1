"""Types of the public names. Written by tools/stub.py."""

from mapet.api.compare.plan import Plan as Plan
from mapet.api.compare.run import compare as compare
from mapet.api.export import export as export
from mapet.api.finetune import finetune as finetune
from mapet.api.pack import pack as pack
from mapet.api.pretrain import pretrain as pretrain
from mapet.api.pretrain import resume as resume
from mapet.api.tokenize import tokenize as tokenize
from mapet.build.finetune import load_classifier as load_classifier
from mapet.build.pretrain import load_encoder as load_encoder
from mapet.config.finetune import Augmentation as Augmentation
from mapet.config.finetune import Backbone as Backbone
from mapet.config.finetune import FinetuneRecipe as FinetuneRecipe
from mapet.config.recipe import Model as Model
from mapet.config.recipe import Objective as Objective
from mapet.config.recipe import Optimization as Optimization
from mapet.config.recipe import Recipe as Recipe
from mapet.config.recipe import Runtime as Runtime
from mapet.config.recipe import Tokenizer as Tokenizer
from mapet.config.vqkd import VQKDRecipe as VQKDRecipe
from mapet.data.dataset import open_dataset as open_dataset
from mapet.data.packing import Packing as Packing
from mapet.engine.fit import fit as fit
from mapet.engine.run import Run as Run
from mapet.evals.score import Score as Score
from mapet.method.encoder import Classifier as Classifier
from mapet.method.encoder import Encoder as Encoder
from mapet.method.pattern import Pattern as Pattern
from mapet.method.pattern import reveal as reveal
from mapet.method.predict import TokenPrediction as TokenPrediction
from mapet.tokenizers.codebook import Codebook as Codebook
from mapet.tokenizers.store import TokenStore as TokenStore
from mapet.tokenizers.teacher import Teacher as Teacher
from mapet.tokenizers.tokenizer import Network as Network
from mapet.tokenizers.tokenizer import load_tokenizer as load_tokenizer
from mapet.utils.errors import MapetError as MapetError
from mapet.utils.view import CenterCropResize as CenterCropResize

__all__ = [
    "Augmentation",
    "Backbone",
    "CenterCropResize",
    "Classifier",
    "Codebook",
    "Encoder",
    "FinetuneRecipe",
    "MapetError",
    "Model",
    "Network",
    "Objective",
    "Optimization",
    "Packing",
    "Pattern",
    "Plan",
    "Recipe",
    "Run",
    "Runtime",
    "Score",
    "Teacher",
    "TokenPrediction",
    "TokenStore",
    "Tokenizer",
    "VQKDRecipe",
    "compare",
    "export",
    "finetune",
    "fit",
    "load_classifier",
    "load_encoder",
    "load_tokenizer",
    "open_dataset",
    "pack",
    "pretrain",
    "resume",
    "reveal",
    "tokenize",
]
__version__: str
