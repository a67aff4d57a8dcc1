"""The verbs: what each does, how it is called, and which of its options the short help shows.

Nothing is imported here but the standard library.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field


@dataclass(frozen=True)
class Verb:
    """One verb of the command line."""

    about: str
    """What it does, in one line of ``mapet --help``."""
    usage: str = ""
    """Its call after ``mapet``; what is not in brackets is required."""
    words: Mapping[str, str] = field(default_factory=dict)
    """The option that a word stands for: DATA → data."""
    common: str = ""
    """Options of the short help, by flat name."""
    example: str = ""
    """Calls, one a line."""

    @property
    def required(self) -> list[str]:
        """Words and options of the usage outside brackets."""
        outside = re.sub(r"\[.*?\]", "", self.usage)
        return [part for part in outside.split() if part.startswith("--") or part in self.words]


IMAGES = "data max_images"
PROBE = "data max_images pool out accelerator workers"

GROUPS = {
    "Data and tokens": ("pack", "tokenizer", "tokenize", "shapes"),
    "Training": ("quickstart", "pretrain", "finetune", "segment", "compare"),
    "Evaluation": ("evaluate", "knn", "linear", "attentive", "fewshot", "segment-probe", "transfer"),
    "Classifiers": ("validate", "robustness"),
    "Use": ("report", "embed", "neighbours", "predict", "masks", "attend", "reveal"),
    "Tools": ("export", "bench", "show", "list", "check", "doctor"),
}

VERBS = {
    "quickstart": Verb(
        "CIFAR-10: pre-train a small encoder and evaluate it",
        "quickstart [--out FOLDER]",
        common="out epochs max_images seed accelerator",
        example="mapet quickstart",
    ),
    "pack": Verb(
        "decode all images once, into a folder that loads fast",
        "pack DATA --out FOLDER",
        {"DATA": "data"},
        "data out form size quality max_images workers",
        "mapet pack photos --out packed\nmapet pretrain packed --out runs/first",
    ),
    "tokenizer": Verb("fit, train, import or inspect a tokenizer"),
    "tokenize": Verb(
        "write one token per patch for all images",
        "tokenize DATA --out FOLDER",
        {"DATA": "data"},
        "data out tokenizer teacher vocab_size image_size patch_size max_images batch_size accelerator workers",
        "mapet tokenize photos --out tokens\nmapet pretrain photos --tokens tokens --out runs/first",
    ),
    "shapes": Verb(
        "compose a segmentation set: images with alpha over photographs",
        "shapes SHAPES PHOTOGRAPHS --out FOLDER",
        {"SHAPES": "shapes", "PHOTOGRAPHS": "photographs"},
        "shapes photographs out classes train test size objects seed",
        "mapet shapes stamps photos --out shapes",
    ),
    "pretrain": Verb(
        "train an encoder without labels by predicting tokens",
        "pretrain IMAGES --out RUN",
        {"IMAGES": "data"},
        "data out recipe resume settings",
        "mapet pretrain photos --out runs/first --model vit_small --epochs 100\nmapet pretrain --resume runs/first",
    ),
    "evaluate": Verb(
        "accuracy of an encoder under several protocols",
        "evaluate FROM [--data DATA]",
        {"FROM": "run"},
        f"run protocols {PROBE}",
        "mapet evaluate runs/first --data labelled --protocols knn,linear",
    ),
    "knn": Verb(
        "k-nearest-neighbour accuracy of an encoder",
        "knn FROM [--data DATA]",
        {"FROM": "run"},
        f"run k temperature {PROBE}",
        "mapet knn runs/first --data labelled",
    ),
    "linear": Verb(
        "linear-probe accuracy of an encoder",
        "linear FROM [--data DATA]",
        {"FROM": "run"},
        f"run protocol seed {PROBE}",
        "mapet linear runs/first --data labelled --protocol mae",
    ),
    "attentive": Verb(
        "attentive-probe accuracy of an encoder",
        "attentive FROM [--data DATA]",
        {"FROM": "run"},
        f"run seed batch_size {PROBE}",
        "mapet attentive runs/first --data labelled",
    ),
    "fewshot": Verb(
        "accuracy of an encoder with few labelled images per class",
        "fewshot FROM [--data DATA]",
        {"FROM": "run"},
        f"run shots draws seed {PROBE}",
        "mapet fewshot runs/first --data labelled --shots 1 5",
    ),
    "transfer": Verb(
        "an encoder on several data sets, in one table",
        "transfer FROM --data A,B --out FOLDER",
        {"FROM": "run"},
        "run data out protocols finetune recipe max_images pool accelerator workers",
        "mapet transfer runs/first --data cifar10,labelled --out transfer",
    ),
    "validate": Verb(
        "accuracy and calibration of a classifier",
        "validate CLASSIFIER --data DATA",
        {"CLASSIFIER": "run"},
        "run data crop_pct split subset real batch_size accelerator workers",
        "mapet validate vit_standard_base_patch16_224_KCLIP.tar --data imagenet",
    ),
    "robustness": Verb(
        "a classifier on shifted and corrupted images",
        "robustness CLASSIFIER --data A,B [--out FILE]",
        {"CLASSIFIER": "run"},
        "run data out baseline corruptions severities seed crop_pct real accelerator workers",
        "mapet robustness runs/clf --data imagenet-a,imagenet-r\n"
        "mapet robustness runs/clf --data imagenet --corruptions all --out r.json",
    ),
    "segment-probe": Verb(
        "mIoU of an encoder, whose patches are classified",
        "segment-probe FROM --data SET",
        {"FROM": "run"},
        "run data protocols out image_size max_images max_patches k random seed accelerator",
        "mapet segment-probe runs/first --data shapes",
    ),
    "finetune": Verb(
        "train a classifier from an encoder, and measure its accuracy",
        "finetune FROM --data DATA --out RUN",
        {"FROM": "init"},
        "init data out recipe resume evaluate_every settings",
        "mapet finetune runs/first --data labelled --out runs/classifier\nmapet finetune --resume runs/classifier",
    ),
    "segment": Verb(
        "train a segmentation model from an encoder, with its mIoU",
        "segment FROM --data SET --out RUN",
        {"FROM": "init"},
        "init data out recipe resume evaluate_every settings",
        "mapet segment runs/first --data shapes --out runs/segmenter\nmapet segment --resume runs/segmenter",
    ),
    "compare": Verb(
        "train several objectives under one setting: a table, figures",
        "compare [RECIPE] --data IMAGES --out FOLDER",
        {"RECIPE": "recipe"},
        "recipe resume data out objectives baselines seeds evaluate budget vary eval_data segment_data model epochs "
        "batch_size accelerator workers",
        "mapet compare cifar10-vit-tiny --out runs/table --seeds 3\nmapet compare --resume runs/table",
    ),
    "report": Verb(
        "draw what is in a folder on one HTML page",
        "report FOLDER",
        {"FOLDER": "folder"},
        "folder out images most watch seed accelerator",
        "mapet report runs/first\nmapet report runs/first --watch",
    ),
    "embed": Verb(
        "write the features of images",
        "embed FROM IMAGES --out FEATURES",
        {"FROM": "run", "IMAGES": "images"},
        "run images out pool layer normalize split batch_size accelerator workers overwrite",
        "mapet embed runs/first photos --out features.npz\n"
        "find photos -name '*.jpg' | mapet embed runs/first - --out features.npz",
    ),
    "neighbours": Verb(
        "find the images nearest to one, in a file of features",
        "neighbours FROM IMAGE --in FEATURES",
        {"FROM": "run", "IMAGE": "image"},
        "run image in out k images accelerator overwrite",
        "mapet neighbours runs/first cat.jpg --in features.npz --out cat.png",
    ),
    "predict": Verb(
        "write the classes of images, by a fine-tuned classifier",
        "predict CLASSIFIER IMAGES [--out FILE]",
        {"CLASSIFIER": "run", "IMAGES": "images"},
        "run images out top_k crop_pct split batch_size accelerator workers overwrite",
        "mapet predict runs/classifier photos --out predictions.csv\nmapet predict runs/classifier photo.jpg",
    ),
    "masks": Verb(
        "write the class of each pixel of images",
        "masks SEGMENTATION IMAGES [--out FOLDER]",
        {"SEGMENTATION": "run", "IMAGES": "images"},
        "run images out stride split accelerator",
        "mapet masks runs/segmenter photos --out masks\nmapet masks runs/segmenter photo.jpg",
    ),
    "attend": Verb(
        "draw where an encoder looks, and what it takes for similar",
        "attend FROM IMAGES --out FILE.png",
        {"FROM": "run", "IMAGES": "images"},
        "run images out overwrite block patch accelerator",
        "mapet attend runs/classifier photo.png --out attention.png",
    ),
    "reveal": Verb(
        "draw what a pre-trained model believes of hidden patches",
        "reveal RUN IMAGE --out FILE.png",
        {"RUN": "run", "IMAGE": "image"},
        "run image out overwrite frames seed accelerator",
        "mapet reveal runs/first photo.png --out reveal.png",
    ),
    "export": Verb(
        "write an encoder for other libraries",
        "export FROM [--to timm,onnx,torch]",
        {"FROM": "run"},
        "run to out overwrite",
        "mapet export runs/first --to timm",
    ),
    "bench": Verb(
        "measure the speed of a training step on this machine",
        "bench [RECIPE]",
        {"RECIPE": "recipe"},
        "recipe out objectives models batch_sizes precisions compile baseline against rounds accelerator",
        "mapet bench in1k-vit-base --objectives mapet,mim",
    ),
    "show": Verb(
        "draw a recipe's attention pattern and count its cost",
        "show [RECIPE]",
        {"RECIPE": "recipe"},
        "recipe model objective mask_ratio groups image_size patch_size epochs batch_size images bench measure tflops "
        "devices",
        "mapet show in1k-vit-base --tflops 150 --devices 8 --images 1281167",
    ),
    "list": Verb(
        "list models, objectives, recipes, teachers or protocols",
        "list WHAT",
        {"WHAT": "what"},
        example="mapet list recipes",
    ),
    "check": Verb(
        "verify all files of a folder that mapet wrote",
        "check FOLDER",
        {"FOLDER": "folder"},
        "folder",
        "mapet check runs/first",
    ),
    "doctor": Verb(
        "what this machine offers, and what will not work",
        "doctor",
        example="mapet doctor",
    ),
    "tokenizer fit": Verb(
        "k-means over a frozen teacher's features (with CLIP: k-CLIP)",
        "tokenizer fit DATA --out FOLDER",
        {"DATA": "data"},
        "data out teacher vocab_size restarts metric image_size patch_size max_images seed accelerator workers",
        "mapet tokenizer fit photos --out kclip --teacher resnet50x64_clip.openai",
    ),
    "tokenizer train-vqkd": Verb(
        "train a VQ-KD tokenizer (BEiT v2) on a teacher's features",
        "tokenizer train-vqkd DATA --out RUN",
        {"DATA": "data"},
        "data out resume settings",
        "mapet tokenizer train-vqkd photos --out vqkd\nmapet tokenizer train-vqkd --resume vqkd",
    ),
    "tokenizer import": Verb(
        "import published weights (VQ-KD, DALL-E, VQGAN)",
        "tokenizer import FILE --kind KIND --out FOLDER",
        {"FILE": "file"},
        "file kind out image_size patch_size",
        "mapet tokenizer import encoder.pkl --kind dalle --out dalle",
    ),
    "tokenizer inspect": Verb(
        "measure a tokenizer's health and draw its codes",
        "tokenizer inspect FOLDER DATA",
        {"FOLDER": "folder", "DATA": "data"},
        "folder data out max_images num_codes show compare_with seed accelerator workers",
        "mapet tokenizer inspect kclip photos",
    ),
}
DISTRIBUTED = ("tokenizer", "tokenize", "pretrain", "finetune", "segment")  # work in several processes
SUBVERBS = {name.split()[1]: verb for name, verb in VERBS.items() if name.startswith("tokenizer ")}
NAMED_WITH_UNDERSCORE = ("import", "list")  # a keyword, and a builtin that the module would hide


def module(verb: str) -> str:
    """The module of a verb: "tokenizer import" → mapet.cli.tokenizer.import_."""
    name = verb.replace("-", "_").replace(" ", ".")
    return f"mapet.cli.{name}{'_' * name.endswith(NAMED_WITH_UNDERSCORE)}"
