"""Types of the public names. Written by tools/stub.py."""

from collections.abc import Iterable, Sequence
from os import PathLike
from pathlib import Path
from typing import Any, Literal, TypedDict, Unpack

from mapet.api.attend import Attended
from mapet.api.benchmark.report import Report as Report
from mapet.api.compare.plan import Plan as Plan
from mapet.api.compare.run import Comparison as Comparison
from mapet.api.doctor import doctor as doctor
from mapet.api.encoders import load_classifier as load_classifier
from mapet.api.encoders import load_encoder as load_encoder
from mapet.api.estimate import Estimate as Estimate
from mapet.api.export import export as export
from mapet.api.features import extract_features as extract_features
from mapet.api.masks import Mask as Mask
from mapet.api.masks import Masks as Masks
from mapet.api.neighbours import Neighbour as Neighbour
from mapet.api.predict import Prediction as Prediction
from mapet.api.predict import Predictions as Predictions
from mapet.api.quickstart import QuickstartResult
from mapet.api.reveal import Revealed
from mapet.api.robustness import Robustness as Robustness
from mapet.api.segment import load_segmenter as load_segmenter
from mapet.api.shapes import shapes as shapes
from mapet.api.transfer import Transfer as Transfer
from mapet.api.validate import Validation as Validation
from mapet.build.objectives import register_objective as register_objective
from mapet.config.benchmark import BenchmarkSettings
from mapet.config.compare import CompareSettings
from mapet.config.estimate import EstimateSettings
from mapet.config.evaluate import EvaluateSettings
from mapet.config.finetune import Augmentation as Augmentation
from mapet.config.finetune import Backbone as Backbone
from mapet.config.finetune import FinetuneRecipe as FinetuneRecipe
from mapet.config.quickstart import QuickstartSettings
from mapet.config.recipe import Model as Model
from mapet.config.recipe import Objective as Objective
from mapet.config.recipe import Recipe as Recipe
from mapet.config.recipe import Tokenizer as Tokenizer
from mapet.config.report import ReportSettings
from mapet.config.runtime import Runtime as Runtime
from mapet.config.segmentation import SegmentProbeSettings
from mapet.config.segmentation import SegmentRecipe as SegmentRecipe
from mapet.config.training import Optimization as Optimization
from mapet.config.use import (
    AttendSettings,
    EmbedSettings,
    MasksSettings,
    NeighboursSettings,
    PredictSettings,
    RevealSettings,
)
from mapet.config.validate import RobustnessSettings, ValidateSettings
from mapet.config.verbs import (
    FitTokenizerSettings,
    ImportTokenizerSettings,
    InspectTokenizerSettings,
    PackSettings,
    TokenizeSettings,
)
from mapet.config.vqkd import VQKDRecipe as VQKDRecipe
from mapet.data.dataset import ImageDataset as ImageDataset
from mapet.data.dataset import open_dataset as open_dataset
from mapet.engine.fit import fit as fit
from mapet.engine.run import Run as Run
from mapet.evals.feature_file import Embeddings as Embeddings
from mapet.evals.score import Score as Score
from mapet.evals.upernet import Segmenter as Segmenter
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

class _Attend(TypedDict, total=False):
    """Settings of ``AttendSettings``."""

    block: int | None
    patch: tuple[int, int] | None
    num_heads: int | None
    accelerator: Literal["auto", "cpu", "cuda", "mps"]

class _AttendSettings(_Attend, total=False):
    """Settings of ``attend``."""

class _Benchmark(TypedDict, total=False):
    """Settings of ``BenchmarkSettings``."""

    objectives: (
        str | Literal["mapet", "pet", "mim", "cae", "mae"] | Sequence[Literal["mapet", "pet", "mim", "cae", "mae"]]
    )
    models: (
        str
        | Literal["vit_tiny", "vit_small", "vit_base", "vit_large", "custom"]
        | Sequence[Literal["vit_tiny", "vit_small", "vit_base", "vit_large", "custom"]]
    )
    batch_sizes: str | int | Sequence[int]
    precisions: str | Literal["float32", "bfloat16"] | Sequence[Literal["float32", "bfloat16"]]
    compile: str | Literal["off", "on"] | Sequence[Literal["off", "on"]]
    micro_batch_size: int | None
    rounds: int
    baseline: str | Literal["dense", "transformers"] | Sequence[Literal["dense", "transformers"]]
    scaling: str | int | Sequence[int]
    skip_memory: bool
    accelerator: Literal["auto", "cpu", "cuda"]
    workers: int | None
    cache_gib: float

class _Recipe(TypedDict, total=False):
    """Settings of ``Recipe``."""

    data: str | PathLike[str]
    max_images: int | None
    max_pixels: int
    precision: Literal["auto", "float32", "bfloat16"]
    seed: int
    tokens: str | PathLike[str] | None
    init: str | PathLike[str]
    draft: int | None
    scale: tuple[float, float] | None
    ratio: tuple[float, float]
    hflip: float
    color_jitter: float

class _Model(TypedDict, total=False):
    """Settings of ``Model``."""

    model: Literal["vit_tiny", "vit_small", "vit_base", "vit_large", "custom"]
    embed_dim: int | None
    depth: int | None
    num_heads: int | None
    image_size: int
    patch_size: int
    init_values: float | None
    drop_path: float
    pos_embed: Literal["learn", "sincos"]

class _Objective(TypedDict, total=False):
    """Settings of ``Objective``."""

    objective: str
    mask_ratio: float
    order: Literal["uniform", "blockwise", "raster"]
    groups: int | None
    cls_layer: int | None
    decoder_embed_dim: int | None
    decoder_num_heads: int | None
    decoder_depth: int | None
    regressor_depth: int
    alignment_weight: float
    normalize_pixels: bool

class _Tokenizer(TypedDict, total=False):
    """Settings of ``Tokenizer``."""

    tokenizer: str | PathLike[str] | None
    teacher: str | PathLike[str]
    teacher_stage: int | None
    teacher_output: Literal["stage", "norm", "head"]
    teacher_weights: str | PathLike[str] | None
    vocab_size: int
    samples: int | None
    fit_images: int | None
    iterations: int
    restarts: int
    metric: Literal["euclidean", "cosine"]
    kmeans_init: Literal["k-means++", "sample"]
    kmeans_mode: Literal["sample", "stream"]
    kmeans_precision: Literal["float32", "tf32", "bfloat16"]

class _Optimization(TypedDict, total=False):
    """Settings of ``Optimization``."""

    epochs: float
    batch_size: int
    lr: float | None
    base_lr: float
    min_lr: float
    warmup_lr: float
    warmup_epochs: float
    weight_decay: float
    betas: tuple[float, float]
    no_decay: tuple[str, ...]
    clip_grad: float | None
    ema_decay: float | None

class _BenchmarkSettings(_Benchmark, _Recipe, _Model, _Objective, _Tokenizer, _Optimization, total=False):
    """Settings of ``benchmark``."""

class _Compare(TypedDict, total=False):
    """Settings of ``CompareSettings``."""

    objectives: str | Sequence[str]
    baselines: str | Literal["random", "scratch"] | Sequence[Literal["random", "scratch"]]
    seeds: int
    evaluate: (
        str
        | Literal[
            "knn",
            "linear",
            "linear-mae",
            "linear-beit",
            "attentive",
            "fewshot",
            "finetune",
            "segment-linear",
            "segment-knn",
        ]
        | Sequence[
            Literal[
                "knn",
                "linear",
                "linear-mae",
                "linear-beit",
                "attentive",
                "fewshot",
                "finetune",
                "segment-linear",
                "segment-knn",
            ]
        ]
    )
    budget: str | Literal["epochs", "compute"] | Sequence[Literal["epochs", "compute"]]
    vary: str | Sequence[str]
    tokenizers: str | Sequence[str]
    knn_every: float
    eval_data: str | PathLike[str] | None
    eval_limit: int | None
    segment_data: str | PathLike[str] | None

class _Runtime(TypedDict, total=False):
    """Settings of ``Runtime``."""

    workers: int | None
    accelerator: Literal["auto", "cpu", "cuda", "mps"]
    devices: int
    num_nodes: int
    strategy: Literal["ddp", "fsdp"]
    micro_batch_size: int | None
    compile: bool
    grad_checkpointing: bool
    save_every: int
    cache_gib: float
    logger: str | PathLike[str]
    timeout: float
    max_bad_fraction: float

class _CompareSettings(_Compare, _Recipe, _Model, _Objective, _Tokenizer, _Optimization, _Runtime, total=False):
    """Settings of ``compare``."""

class _Embed(TypedDict, total=False):
    """Settings of ``EmbedSettings``."""

    split: Literal["train", "test"] | None
    accelerator: Literal["auto", "cpu", "cuda", "mps"]
    max_pixels: int
    max_bad_fraction: float
    batch_size: int
    num_heads: int | None
    workers: int | None
    pool: Literal["avg", "token", "avg+token", "patches"]
    layer: int | None
    normalize: bool

class _EmbedSettings(_Embed, total=False):
    """Settings of ``embed``."""

class _Estimate(TypedDict, total=False):
    """Settings of ``EstimateSettings``."""

    devices: int
    images: int | None
    bench: str | PathLike[str] | None
    measure: bool
    tflops: float | None

class _EstimateSettings(_Estimate, _Recipe, _Model, _Objective, _Tokenizer, _Optimization, total=False):
    """Settings of ``estimate``."""

class _Evaluate(TypedDict, total=False):
    """Settings of ``EvaluateSettings``."""

    seed: int

class _Feature(TypedDict, total=False):
    """Settings of ``FeatureSettings``."""

    max_images: int | None
    max_pixels: int
    random: bool
    num_heads: int | None
    accelerator: Literal["auto", "cpu", "cuda", "mps"]
    workers: int | None
    max_bad_fraction: float
    cache_gib: float

class _Pool(TypedDict, total=False):
    """Settings of ``PoolSettings``."""

    pool: Literal["avg", "token", "avg+token"]

class _KNN(TypedDict, total=False):
    """Settings of ``KNNSettings``."""

    k: int
    temperature: float

class _Attentive(TypedDict, total=False):
    """Settings of ``AttentiveSettings``."""

    batch_size: int | None

class _Fewshot(TypedDict, total=False):
    """Settings of ``FewshotSettings``."""

    shots: tuple[int, ...]
    draws: int

class _EvaluateSettings(_Evaluate, _Feature, _Pool, _KNN, _Attentive, _Fewshot, total=False):
    """Settings of ``evaluate``."""

class _FinetuneRecipeOfFinetune(TypedDict, total=False):
    """Settings of ``FinetuneRecipe``."""

    max_images: int | None
    max_pixels: int
    precision: Literal["auto", "float32", "bfloat16"]
    seed: int
    init: str | PathLike[str]
    fresh_head: bool
    drop_path: float
    layer_decay: float
    crop_pct: float

class _Backbone(TypedDict, total=False):
    """Settings of ``Backbone``."""

    image_size: int | None
    num_heads: int | None
    model: Literal["vit_tiny", "vit_small", "vit_base", "vit_large", "custom"] | None
    embed_dim: int | None
    depth: int | None
    patch_size: int | None
    init_values: float | None
    pos_embed: Literal["learn", "sincos"] | None

class _Augmentation(TypedDict, total=False):
    """Settings of ``Augmentation``."""

    scale: tuple[float, float]
    ratio: tuple[float, float]
    hflip: float
    auto_augment: str | None
    color_jitter: float
    reprob: float
    remode: Literal["pixel", "rand", "const"]
    recount: int
    mixup: float
    cutmix: float
    mixup_prob: float
    mixup_switch_prob: float
    smoothing: float

class _FinetuneSettings(_FinetuneRecipeOfFinetune, _Backbone, _Augmentation, _Optimization, _Runtime, total=False):
    """Settings of ``finetune``."""

class _FitTokenizer(TypedDict, total=False):
    """Settings of ``FitTokenizerSettings``."""

    image_size: int
    patch_size: int
    max_images: int | None
    max_pixels: int
    draft: int | None
    seed: int
    batch_size: int
    accelerator: Literal["auto", "cpu", "cuda", "mps"]
    workers: int | None
    max_bad_fraction: float
    grid: tuple[int, int] | None

class _FitTokenizerSettings(_FitTokenizer, _Tokenizer, total=False):
    """Settings of ``fit_tokenizer``."""

class _ImportTokenizer(TypedDict, total=False):
    """Settings of ``ImportTokenizerSettings``."""

    image_size: int | None
    patch_size: int
    heads: int

class _ImportTokenizerSettings(_ImportTokenizer, total=False):
    """Settings of ``import_tokenizer``."""

class _InspectTokenizer(TypedDict, total=False):
    """Settings of ``InspectTokenizerSettings``."""

    max_images: int | None
    max_pixels: int
    num_codes: int
    show: str | PathLike[str]
    compare_with: str | PathLike[str] | None
    teacher_weights: str | PathLike[str] | None
    compare_with_teacher_weights: str | PathLike[str] | None
    seed: int
    accelerator: Literal["auto", "cpu", "cuda", "mps"]
    workers: int | None
    max_bad_fraction: float

class _InspectTokenizerSettings(_InspectTokenizer, total=False):
    """Settings of ``inspect_tokenizer``."""

class _Masks(TypedDict, total=False):
    """Settings of ``MasksSettings``."""

    split: Literal["train", "test"] | None
    accelerator: Literal["auto", "cpu", "cuda", "mps"]
    max_pixels: int
    max_bad_fraction: float
    stride: int | None

class _MasksSettings(_Masks, total=False):
    """Settings of ``masks``."""

class _Neighbours(TypedDict, total=False):
    """Settings of ``NeighboursSettings``."""

    k: int
    images: str | None
    num_heads: int | None
    accelerator: Literal["auto", "cpu", "cuda", "mps"]

class _NeighboursSettings(_Neighbours, total=False):
    """Settings of ``neighbours``."""

class _Pack(TypedDict, total=False):
    """Settings of ``PackSettings``."""

    form: Literal["uint8", "jpeg"]
    size: int
    quality: int | None
    max_images: int | None
    max_pixels: int
    seed: int
    workers: int | None
    max_bad_fraction: float

class _PackSettings(_Pack, total=False):
    """Settings of ``pack``."""

class _Predict(TypedDict, total=False):
    """Settings of ``PredictSettings``."""

    split: Literal["train", "test"] | None
    accelerator: Literal["auto", "cpu", "cuda", "mps"]
    max_pixels: int
    max_bad_fraction: float
    batch_size: int
    num_heads: int | None
    workers: int | None
    top_k: int
    crop_pct: float | None

class _PredictSettings(_Predict, total=False):
    """Settings of ``predict``."""

class _PretrainSettings(_Recipe, _Model, _Objective, _Tokenizer, _Optimization, _Runtime, total=False):
    """Settings of ``pretrain``."""

class _Quickstart(TypedDict, total=False):
    """Settings of ``QuickstartSettings``."""

    epochs: float | None
    max_images: int | None
    seed: int
    accelerator: Literal["auto", "cpu", "cuda", "mps"]

class _QuickstartSettings(_Quickstart, total=False):
    """Settings of ``quickstart``."""

class _Report(TypedDict, total=False):
    """Settings of ``ReportSettings``."""

    images: int
    most: int
    seed: int
    accelerator: Literal["auto", "cpu", "cuda", "mps"]

class _ReportSettings(_Report, total=False):
    """Settings of ``report``."""

class _ResumeSettings(_Runtime, total=False):
    """Settings of ``resume``."""

class _Reveal(TypedDict, total=False):
    """Settings of ``RevealSettings``."""

    frames: int
    seed: int
    accelerator: Literal["auto", "cpu", "cuda", "mps"]

class _RevealImageSettings(_Reveal, total=False):
    """Settings of ``reveal_image``."""

class _Robustness(TypedDict, total=False):
    """Settings of ``RobustnessSettings``."""

    split: Literal["train", "test"] | None
    accelerator: Literal["auto", "cpu", "cuda", "mps"]
    max_pixels: int
    max_bad_fraction: float
    batch_size: int
    num_heads: int | None
    workers: int | None
    crop_pct: float | None
    subset: bool
    real: str | PathLike[str] | None
    corruptions: str | Sequence[str]
    severities: str | int | Sequence[int]
    seed: int

class _RobustnessSettings(_Robustness, total=False):
    """Settings of ``robustness``."""

class _SegmentRecipeOfSegment(TypedDict, total=False):
    """Settings of ``SegmentRecipe``."""

    max_images: int | None
    max_pixels: int
    precision: Literal["auto", "float32", "bfloat16"]
    seed: int
    init: str | PathLike[str]
    reduce_zero_label: bool
    drop_path: float
    layer_decay: float
    stride: int | None

class _Decoder(TypedDict, total=False):
    """Settings of ``Decoder``."""

    channels: int
    auxiliary_channels: int
    auxiliary_weight: float

class _SceneAugmentation(TypedDict, total=False):
    """Settings of ``SceneAugmentation``."""

    scale: tuple[float, float]
    hflip: float
    photometric: bool
    cat_max_ratio: float

class _SegmentSettings(
    _SegmentRecipeOfSegment, _Backbone, _Decoder, _SceneAugmentation, _Optimization, _Runtime, total=False
):
    """Settings of ``segment``."""

class _SegmentProbe(TypedDict, total=False):
    """Settings of ``SegmentProbeSettings``."""

    image_size: int | None
    max_images: int | None
    max_patches: int
    k: int
    temperature: float
    reduce_zero_label: bool
    random: bool
    num_heads: int | None
    seed: int
    accelerator: Literal["auto", "cpu", "cuda", "mps"]

class _SegmentProbeSettings(_SegmentProbe, total=False):
    """Settings of ``segment_probe``."""

class _ShowSettings(_Recipe, _Model, _Objective, _Tokenizer, _Optimization, total=False):
    """Settings of ``show``."""

class _Tokenize(TypedDict, total=False):
    """Settings of ``TokenizeSettings``."""

    image_size: int
    patch_size: int
    max_images: int | None
    max_pixels: int
    draft: int | None
    seed: int
    batch_size: int
    accelerator: Literal["auto", "cpu", "cuda", "mps"]
    workers: int | None
    max_bad_fraction: float

class _TokenizerOfTokenize(TypedDict, total=False):
    """Settings of ``Tokenizer``."""

    teacher: str | PathLike[str]
    teacher_stage: int | None
    teacher_output: Literal["stage", "norm", "head"]
    teacher_weights: str | PathLike[str] | None
    vocab_size: int
    samples: int | None
    fit_images: int | None
    iterations: int
    restarts: int
    metric: Literal["euclidean", "cosine"]
    kmeans_init: Literal["k-means++", "sample"]
    kmeans_mode: Literal["sample", "stream"]
    kmeans_precision: Literal["float32", "tf32", "bfloat16"]

class _TokenizeSettings(_Tokenize, _TokenizerOfTokenize, total=False):
    """Settings of ``tokenize``."""

class _VQKDRecipeOfTrainVqkd(TypedDict, total=False):
    """Settings of ``VQKDRecipe``."""

    max_images: int | None
    max_pixels: int
    precision: Literal["auto", "float32", "bfloat16"]
    seed: int
    teacher: str | PathLike[str]
    teacher_stage: int | None
    teacher_output: Literal["stage", "norm", "head"]
    teacher_weights: str | PathLike[str] | None
    vocab_size: int
    code_dim: int
    image_size: int
    patch_size: int
    embed_dim: int
    depth: int
    num_heads: int
    decoder_depth: int
    commitment: float
    decay: float
    restart: float
    scale: tuple[float, float] | None
    hflip: float
    epochs: int
    batch_size: int
    lr: float | None
    min_lr: float
    warmup_lr: float
    warmup_epochs: float
    weight_decay: float
    betas: tuple[float, float]
    clip_grad: float | None

class _TrainVqkdSettings(_VQKDRecipeOfTrainVqkd, _Runtime, total=False):
    """Settings of ``train_vqkd``."""

class _TransferSettings(_Evaluate, _Feature, _Pool, _KNN, _Attentive, _Fewshot, total=False):
    """Settings of ``transfer``."""

class _Validate(TypedDict, total=False):
    """Settings of ``ValidateSettings``."""

    split: Literal["train", "test"] | None
    accelerator: Literal["auto", "cpu", "cuda", "mps"]
    max_pixels: int
    max_bad_fraction: float
    batch_size: int
    num_heads: int | None
    workers: int | None
    crop_pct: float | None
    subset: bool
    real: str | PathLike[str] | None

class _ValidateSettings(_Validate, total=False):
    """Settings of ``validate``."""

def attend(
    source: str | Path,
    images: Any,
    out: str | Path | None = None,
    *,
    overwrite: bool = False,
    settings: AttendSettings | None = None,
    **changes: Unpack[_AttendSettings],
) -> Attended: ...
def benchmark(
    recipe: str | Path | Recipe | None = None,
    out: str | Path = "bench",
    *,
    settings: BenchmarkSettings | None = None,
    **changes: Unpack[_BenchmarkSettings],
) -> Report: ...
def compare(
    recipe: str | Path | Recipe | None = None,
    out: str | Path | None = None,
    *,
    settings: CompareSettings | None = None,
    tuning: str | Path | FinetuneRecipe | None = None,
    runtime: Runtime | None = None,
    **changes: Unpack[_CompareSettings],
) -> Comparison: ...
def embed(
    source: str | Path,
    images: Any,
    out: str | Path | None = None,
    *,
    overwrite: bool = False,
    settings: EmbedSettings | None = None,
    **changes: Unpack[_EmbedSettings],
) -> Embeddings: ...
def estimate(
    recipe: Recipe | str | Path | None = None,
    *,
    settings: EstimateSettings | None = None,
    **changes: Unpack[_EstimateSettings],
) -> Estimate: ...
def evaluate(
    source: str | Path,
    data: str | Path | None = None,
    protocols: str | Iterable[str] = ("knn", "linear"),
    *,
    out: str | Path | None = None,
    settings: EvaluateSettings | None = None,
    **changes: Unpack[_EvaluateSettings],
) -> dict[str, dict[str, Score]]: ...
def finetune(
    source: str | Path | None = None,
    data: str | Path | None = None,
    out: str | Path | None = None,
    *,
    recipe: FinetuneRecipe | str | Path | None = None,
    runtime: Runtime | None = None,
    overwrite: bool = False,
    evaluate_every: int = 0,
    **settings: Unpack[_FinetuneSettings],
) -> Run: ...
def fit_tokenizer(
    data: str | Path,
    out: str | Path,
    *,
    overwrite: bool = False,
    settings: FitTokenizerSettings | None = None,
    **changes: Unpack[_FitTokenizerSettings],
) -> Codebook: ...
def import_tokenizer(
    file: str | Path,
    out: str | Path,
    kind: str,
    *,
    settings: ImportTokenizerSettings | None = None,
    **changes: Unpack[_ImportTokenizerSettings],
) -> Network: ...
def inspect_tokenizer(
    folder: str | Path,
    data: str | Path,
    out: str | Path | None = None,
    *,
    settings: InspectTokenizerSettings | None = None,
    **changes: Unpack[_InspectTokenizerSettings],
) -> dict[str, Any]: ...
def masks(
    model: str | Path | Segmenter,
    images: Any,
    out: str | Path | None = None,
    *,
    settings: MasksSettings | None = None,
    **changes: Unpack[_MasksSettings],
) -> Masks: ...
def neighbours(
    source: str | Path,
    image: Any,
    features: str | Path | Embeddings,
    out: str | Path | None = None,
    *,
    overwrite: bool = False,
    settings: NeighboursSettings | None = None,
    **changes: Unpack[_NeighboursSettings],
) -> list[Neighbour]: ...
def pack(
    data: str | Path | ImageDataset,
    out: str | Path,
    *,
    settings: PackSettings | None = None,
    **changes: Unpack[_PackSettings],
) -> Path: ...
def predict(
    model: str | Path | Classifier,
    images: Any,
    out: str | Path | None = None,
    *,
    overwrite: bool = False,
    settings: PredictSettings | None = None,
    **changes: Unpack[_PredictSettings],
) -> Predictions: ...
def pretrain(
    recipe: Recipe | str | Path | None = None,
    out: str | Path | None = None,
    *,
    runtime: Runtime | None = None,
    overwrite: bool = False,
    **settings: Unpack[_PretrainSettings],
) -> Run: ...
def quickstart(
    out: str | Path = "quickstart",
    *,
    settings: QuickstartSettings | None = None,
    **changes: Unpack[_QuickstartSettings],
) -> QuickstartResult: ...
def report(
    folder: str | Path,
    out: str | Path | None = None,
    *,
    refresh: int = 0,
    settings: ReportSettings | None = None,
    **changes: Unpack[_ReportSettings],
) -> Path: ...
def resume(
    folder: str | Path,
    *,
    runtime: Runtime | None = None,
    evaluate_every: int | None = None,
    epochs: float | None = None,
    **settings: Unpack[_ResumeSettings],
) -> Run | Comparison: ...
def reveal_image(
    run: str | Path,
    image: Any,
    out: str | Path | None = None,
    *,
    overwrite: bool = False,
    settings: RevealSettings | None = None,
    **changes: Unpack[_RevealImageSettings],
) -> Revealed: ...
def robustness(
    model: str | Path | Classifier,
    data: str | Path | Sequence[str | Path],
    out: str | Path | None = None,
    *,
    baseline: str | Path | None = None,
    settings: RobustnessSettings | None = None,
    **changes: Unpack[_RobustnessSettings],
) -> dict[str, Robustness]: ...
def segment(
    source: str | Path | None = None,
    data: str | Path | None = None,
    out: str | Path | None = None,
    *,
    recipe: SegmentRecipe | str | Path | None = None,
    runtime: Runtime | None = None,
    overwrite: bool = False,
    evaluate_every: int = 0,
    **settings: Unpack[_SegmentSettings],
) -> Run: ...
def segment_probe(
    source: str | Path,
    data: str | Path,
    protocols: str | Iterable[str] = ...,
    *,
    out: str | Path | None = None,
    settings: SegmentProbeSettings | None = None,
    **changes: Unpack[_SegmentProbeSettings],
) -> dict[str, dict[str, Score]]: ...
def show(recipe: Recipe | str | Path | None = None, **changes: Unpack[_ShowSettings]) -> str: ...
def tokenize(
    data: str | Path,
    out: str | Path,
    tokenizer: str | Path | None = None,
    *,
    settings: TokenizeSettings | None = None,
    **changes: Unpack[_TokenizeSettings],
) -> TokenStore: ...
def train_vqkd(
    data: str | Path | None = None,
    out: str | Path | None = None,
    *,
    recipe: VQKDRecipe | str | Path | None = None,
    runtime: Runtime | None = None,
    overwrite: bool = False,
    **settings: Unpack[_TrainVqkdSettings],
) -> Run: ...
def transfer(
    source: str | Path,
    data: str | Path | Sequence[str | Path],
    out: str | Path,
    *,
    protocols: str | Iterable[str] = ("knn", "linear"),
    finetune: bool = False,
    recipe: FinetuneRecipe | str | Path | None = None,
    settings: EvaluateSettings | None = None,
    **changes: Unpack[_TransferSettings],
) -> Transfer: ...
def validate(
    model: str | Path | Classifier,
    data: str | Path,
    *,
    settings: ValidateSettings | None = None,
    **changes: Unpack[_ValidateSettings],
) -> Validation: ...

__all__ = [
    "Augmentation",
    "Backbone",
    "CenterCropResize",
    "Classifier",
    "Codebook",
    "Comparison",
    "Embeddings",
    "Encoder",
    "Estimate",
    "FinetuneRecipe",
    "ImageDataset",
    "MapetError",
    "Mask",
    "Masks",
    "Model",
    "Neighbour",
    "Network",
    "Objective",
    "Optimization",
    "Pattern",
    "Plan",
    "Prediction",
    "Predictions",
    "Recipe",
    "Report",
    "Robustness",
    "Run",
    "Runtime",
    "Score",
    "SegmentRecipe",
    "Segmenter",
    "Teacher",
    "TokenPrediction",
    "TokenStore",
    "Tokenizer",
    "Transfer",
    "VQKDRecipe",
    "Validation",
    "attend",
    "benchmark",
    "compare",
    "doctor",
    "embed",
    "estimate",
    "evaluate",
    "export",
    "extract_features",
    "finetune",
    "fit",
    "fit_tokenizer",
    "import_tokenizer",
    "inspect_tokenizer",
    "load_classifier",
    "load_encoder",
    "load_segmenter",
    "load_tokenizer",
    "masks",
    "neighbours",
    "open_dataset",
    "pack",
    "predict",
    "pretrain",
    "quickstart",
    "register_objective",
    "report",
    "resume",
    "reveal",
    "reveal_image",
    "robustness",
    "segment",
    "segment_probe",
    "shapes",
    "show",
    "tokenize",
    "train_vqkd",
    "transfer",
    "validate",
]
__version__: str
