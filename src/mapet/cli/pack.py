"""``mapet pack``: every image decoded once, into a folder that loads fast."""

from typing import TYPE_CHECKING

from mapet.cli.options import parse, positional
from mapet.utils.errors import MapetError
from mapet.utils.log import say
from mapet.utils.owned import require_apart

if TYPE_CHECKING:
    pass
from mapet.api.pack import Options, absolute, again, pack

ABOUT = """Decode every image once, into a folder that loads fast: --data OUT then takes the place of --data DATA.

--form uint8 keeps the pixels of the whole centred square at --size: nothing is left to decode, and a training sees the
same bits as from DATA. --form jpeg keeps whole images, shrunk to --size: smaller on disk, and random crops stay
possible.

A call that was stopped at any moment goes on when it is given again."""


def command(arguments: list[str]) -> int:
    """Parse, pack, tell what came out; after Ctrl-C the command that goes on is told."""
    words, rest = positional(arguments, Options())
    o = parse(Options(), rest, "pack DATA", ABOUT)
    data, *more = [*words, *([o.data] if o.data else [])] or [""]
    if not data or not o.out or more:
        raise MapetError("mapet pack needs images (a folder, or cifar10) and a folder: mapet pack DATA --out FOLDER.")
    for option, fits, wanted in (
        ("max-images", o.max_images is None or o.max_images >= 1, "at least 1"),
        ("workers", o.workers is None or o.workers >= 0, "at least 0"),
        ("max-bad-fraction", 0 <= o.max_bad_fraction <= 1, "0 … 1"),
    ):
        if not fits:
            raise MapetError(f"--{option} does not fit: it must be {wanted}.")
    from mapet.data.packing import Packing

    packing = Packing(o.form, o.size, o.quality)
    require_apart(absolute(o.out), data=data)
    try:
        pack(
            data,
            o.out,
            packing,
            max_images=o.max_images,
            seed=o.seed,
            workers=o.workers,
            max_bad_fraction=o.max_bad_fraction,
        )
    except KeyboardInterrupt:
        say(f"stopped   what was packed stays; go on with: {again(data, o)}")
        return 130
    return 0
