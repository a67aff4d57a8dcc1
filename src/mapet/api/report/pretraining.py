"""The report of a pre-training."""

from functools import cached_property, partial
from itertools import islice
from operator import itemgetter
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mapet.api.report.sections import RunFiles, filled, readable, section
from mapet.config.report import ReportSettings
from mapet.method.encoder import SIZES
from mapet.utils.errors import MapetError
from mapet.viz.report.page import Code, Page, Part, Table, Text, drawn, image

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from PIL import Image

    from mapet.config.recipe import Recipe
    from mapet.data.dataset import ImageDataset
    from mapet.tokenizers.information import PositionGuess

TITLES = {"mapet": "MaPeT", "pet": "PeT", "mim": "MIM", "cae": "CAE", "mae": "MAE"}
COLLAPSED = 0.02  # effective rank over width below which features have collapsed
NEIGHBOURS, FRAMES = 5, 5
SALT = 0x5250


def page(folder: Path, s: ReportSettings) -> Page:
    """All sections; those that need model or data only with ``s.images``."""
    from mapet.config.file import read_run
    from mapet.config.recipe import Recipe

    files = RunFiles(folder)
    try:
        shown = _Shown(files, read_run(files.run.recipe, Recipe), s)
    except MapetError as error:
        return _without_recipe(files, error.option_text)
    recipe = shown.recipe
    looking = {
        "What it believes of hidden patches": shown.revealed,
        "Where it looks, and what it takes for similar": shown.attention,
        "Nearest neighbours": shown.neighbours,
    }
    sections = [
        section("Training", shown.training),
        section("What the encoder has learned", shown.learned),
        section("Tokens", shown.tokens),
        section("Predicted tokens on the way", files.panels),
        *(section(title, build) for title, build in looking.items() if s.images),
        section("Cost", shown.cost),
        section("Use the encoder", shown.usage),
        section("Recipe, command and versions", files.origin),
    ]
    title = f"{TITLES.get(recipe.objective.name, recipe.objective.name)}: {folder.resolve().name}"
    return Page(title, shown.lead(), filled(sections), shown.notes())


def _without_recipe(files: RunFiles, why: str) -> Page:
    """What is known of a run whose recipe is damaged."""
    sections = [
        section("Training", partial(files.curves, "Loss and token accuracy over steps")),
        section("What the encoder has learned", files.learned),
        section("Predicted tokens on the way", files.panels),
        section("Recipe, command and versions", files.origin),
    ]
    lead = f"A run of {files.steps:,} steps. Its recipe is not known, so neither model nor data can be shown."
    return Page(f"Run: {files.folder.resolve().name}", lead, filled(sections), [why, *files.notes()])


class _Shown:
    """The sections of one run."""

    def __init__(self, files: RunFiles, recipe: "Recipe", s: ReportSettings) -> None:
        self.files, self.recipe, self.s, self.run = files, recipe, s, files.run

    @property
    def total(self) -> int | None:
        """Steps of the whole training, if the number of images is known."""
        from mapet.data.loader import steps_in

        o, images = self.recipe.optimization, self.files.images
        return steps_in(o.epochs, images, o.batch_size) if images else None

    def lead(self) -> str:
        """One paragraph: what was trained on what, how far, and how long it took."""
        from mapet.engine.progress import clock

        r, o, steps = self.recipe, self.recipe.optimization, self.files.steps
        images = f"{self.files.images:,} images of " if self.files.images else ""
        size = r.model.name if r.model.name != "custom" else f"width {r.model.embed_dim}, depth {r.model.depth}"
        tokens = f", predicting visual tokens ({r.tokenizer.vocab_size:,} codes)" if r.reads_tokens else ""
        data = r.data if r.data == "cifar10" else Path(r.data).name
        took = f" in {clock(self.files.seconds)}" if self.files.seconds else ""
        far = f"{steps:,} of {self.total:,} steps" if self.total else f"{steps:,} steps"
        return (
            f"A vision transformer ({size}, patches of {r.model.patch_size} pixels of {r.model.image_size}) trained "
            f"without labels on {images}{data}{tokens}: {far} of {o.batch_size} images{took}."
        )

    def notes(self) -> list[str]:
        """What looks wrong."""
        found = self.files.notes()
        if self.total and self.files.steps < self.total:
            found.append(
                f"The training is not finished: mapet pretrain --resume {self.run.folder.name} goes on with it."
            )
        guess, accuracy = self.guess, self.files.tenths("accuracy") if self.files.steps else None
        if guess and accuracy and accuracy[1] <= guess.best:
            found.append(
                f"The token accuracy ({accuracy[1]:.1%}) is not above what the position alone tells "
                f"({guess.best:.1%}): train longer, or with more images."
            )
        rows = self.files.probes
        width = self.recipe.model.embed_dim or SIZES.get(self.recipe.model.name, {}).get("embed_dim", 0)
        if rows and rows[-1].get("rank", width) < COLLAPSED * width:
            found.append(f"The features have collapsed: effective rank {rows[-1]['rank']:.1f} of {width}.")
        return found

    @cached_property
    def guess(self) -> "PositionGuess | None":
        """What a position tells of its token, from the stored tokens; None without them."""
        from mapet.tokenizers.information import position_guess

        try:
            return None if self._tokens is None else position_guess(self._tokens, self.recipe.seed)
        except Exception:  # tokens elsewhere, or damaged
            return None

    @cached_property
    def _tokens(self) -> Any:
        """Up to 10,000 rows (N, L) of the stored tokens; None without a store."""
        import numpy as np
        import torch

        from mapet.tokenizers.store import TokenStore

        own = self.run.folder / "tokens"
        folder = own if own.is_dir() else Path(self.recipe.tokens) if self.recipe.tokens else None
        if folder is None or not self.recipe.reads_tokens:
            return None
        store = TokenStore.open(folder)
        rows = np.arange(len(store))[:: -(-len(store) // 10_000)]
        return torch.from_numpy(store.read(rows).astype(np.int64))

    def training(self) -> list[Part]:
        """Loss, token accuracy against the guess, learning rate, gradient."""
        return self.files.curves("Loss and token accuracy over steps", self.guess.best if self.guess else None)

    def learned(self) -> list[Part]:
        """Evaluations, and what was measured on the way."""
        name = self.run.folder.name
        return self.files.learned() or [
            Text(f"Not measured yet: mapet evaluate {name} --data LABELLED, or --probe-every 1.")
        ]

    def tokens(self) -> list[Part]:
        """How the codes are used, and the images' token maps."""
        from mapet.tokenizers.codebook import usage
        from mapet.tokenizers.health import Health
        from mapet.viz.codes import usage_figure
        from mapet.viz.figures import plain

        tokens = self._tokens
        if tokens is None:
            return []
        size = max(int(tokens.max()) + 1, self.recipe.tokenizer.vocab_size)
        counts, health, guess = usage(tokens, size), Health.of(tokens, size), self.guess
        told = f"; {guess.bits:.2f} of a token's {guess.entropy:.2f} bits tell the patch's position" if guess else ""
        caption = (
            f"{health.patches:,} patches of {health.images:,} images; {health.seen:,} of {size:,} codes are in use, "
            f"as evenly as {health.perplexity:,.0f} equally frequent ones{told}."
        )
        chart = usage_figure(counts)
        plain(chart.axes[0])
        return [drawn(chart, "Share of patches per code", caption)]

    def revealed(self) -> list[Part]:
        """An order over one image in frames, and the first frame of others."""
        from tempfile import TemporaryDirectory

        from mapet.api.panels import DRAWN
        from mapet.api.reveal import Revealer, draw
        from mapet.config.use import RevealSettings

        if self.recipe.objective.name not in DRAWN:
            return []
        revealer = Revealer(self.run.folder, self.s.most, self.s.accelerator)
        source, images = self._chosen
        parts: list[Part] = [
            Text(
                "Patches are given one after another along a random order; of all others the model predicts the token. "
                "Each code is drawn as its most typical patch, paler than given patches."
            )
        ]
        with TemporaryDirectory() as folder:
            for number, index in enumerate(images):
                found = revealer(source, index, RevealSettings(frames=1 if number else FRAMES, seed=self.s.seed))
                name = source.image_id(index)
                path = draw(found, Path(folder) / f"{number}.png")
                parts.append(image(path, f"Given, believed and true patches of {name}", name))
        return parts

    def attention(self) -> list[Part]:
        """Attention of CLS, rollout, components and similarity."""
        from tempfile import TemporaryDirectory

        from mapet.api.attend import attend

        with TemporaryDirectory() as folder:
            path = Path(folder) / "attention.png"
            attend(self.run.folder, list(self._chosen[1].values()), path, accelerator=self.s.accelerator)
            caption = (
                "From left to right: image, attention rollout, heads of CLS in the last block, principal components of "
                "the patches as colours, cosine similarity to the framed patch. Predicting tokens gives CLS no loss."
            )
            return [image(path, "Attention maps, components and similarities of some images", caption)]

    def neighbours(self) -> list[Part]:
        """Some images, each with those whose features are nearest."""
        from tempfile import TemporaryDirectory

        import numpy as np

        from mapet.viz.sheet import contact_sheet

        (shown, queries), (source, known) = self._chosen, self._images(self.s.most, training=True)
        ours, theirs = (self._features(list(images.values())) for images in (queries, known))
        tiles, indices = [], list(known)
        for index, features in zip(queries, ours, strict=True):
            tiles.append(("image", shown.image_id(index), queries[index]))
            similarity = theirs @ features
            order = np.argsort(-similarity, kind="stable").tolist()
            others = [i for i in order if indices[i] != index or source.name != shown.name]
            for i in others[:NEIGHBOURS]:
                tiles.append((f"{similarity[i]:.3f}", source.image_id(indices[i]), known[indices[i]]))
        with TemporaryDirectory() as folder:
            path = contact_sheet(tiles, Path(folder) / "neighbours.png", 1 + NEIGHBOURS)
            caption = f"Cosine similarity of the mean of patches, among {len(known):,} training images."
            return [image(path, "Some images and their nearest neighbours", caption)]

    def _features(self, images: "list[Image.Image]") -> "NDArray[Any]":
        """(N, F), of unit length."""
        import numpy as np

        from mapet.api.embed import embed

        found = embed(self.run.folder, images, normalize=True, accelerator=self.s.accelerator)
        return np.concatenate([rows for _, rows in found.chunks()])

    @cached_property
    def _chosen(self) -> "tuple[ImageDataset, dict[int, Image.Image]]":
        """The images of all sections."""
        return self._images(self.s.images)

    def _images(self, count: int, *, training: bool = False) -> "tuple[ImageDataset, dict[int, Image.Image]]":
        """So many readable images by index: held-out ones where the data has them, drawn by the seed."""
        from mapet.data.dataset import has_held_out, open_dataset

        split = "train" if training or not has_held_out(self.recipe.data) else "test"
        source = open_dataset(self.recipe.data, split, self.recipe.max_pixels, self.recipe.draft)
        good = ((index, one) for index, one in readable(source, self.s.seed, SALT) if one is not None)
        return source, dict(sorted(islice(good, count), key=itemgetter(0)))

    def cost(self) -> list[Part]:
        """Images, operations, time and memory."""
        from mapet.api.show import cost
        from mapet.engine.progress import clock

        o, seen = self.recipe.optimization, self.files.steps * self.recipe.optimization.batch_size
        rows = [("images seen", f"{seen:,}")]
        if seconds := self.files.seconds:
            rows += [("training time", clock(seconds)), ("images per second", f"{seen / seconds:,.0f}")]
            if (waited := self.files.waited) is not None:
                rows.append(("waiting for data", f"{waited / seconds:.0%} of the time"))
        rows.append(("batch size", f"{o.batch_size}"))
        lines = [line.split(maxsplit=1) for line in cost(self.recipe).replace("\n ", " ").splitlines()]
        return [Table("Cost", [*rows, *((one[0], one[1]) for one in lines if len(one) == 2)])]

    def usage(self) -> list[Part]:
        """How the encoder is read in Python, and what can be done with it."""
        name = self.run.folder.name
        return [
            Code(
                "import mapet\n\n"
                f'encoder = mapet.load_encoder("{name}")\n'
                f'features = mapet.embed("{name}", "photos")  # the mean of the patches'
            ),
            Code(
                f"mapet evaluate {name} --data LABELLED\n"
                f"mapet finetune {name} --data LABELLED --out {name}-classifier\n"
                f"mapet export {name} --to timm  # also read by transformers"
            ),
        ]
