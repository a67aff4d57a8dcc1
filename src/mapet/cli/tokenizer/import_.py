"""``mapet tokenizer import``: a tokenizer's folder from the weights that others published."""

from pathlib import Path
from typing import TYPE_CHECKING

from mapet.cli.options import parse, positional
from mapet.utils.errors import MapetError, nearest
from mapet.utils.log import say

if TYPE_CHECKING:
    pass
from mapet.api.import_tokenizer import IMAGE_SIZE, Options, import_weights


def command(arguments: list[str]) -> int:
    """Parse, read, write, tell what came out."""
    files, rest = positional(arguments, Options())
    o = parse(Options(), rest, "tokenizer import FILE", "Turn published weights into a tokenizer's folder.")
    if len(files) != 1 or not o.kind or not o.out:
        raise MapetError("mapet tokenizer import needs a file, its kind and a folder: FILE --kind dalle --out FOLDER.")
    if o.kind not in IMAGE_SIZE:
        raise MapetError(f'There is no kind "{o.kind}" of weights.{nearest(o.kind, IMAGE_SIZE)}')
    network, out = import_weights(Path(files[0]), Path(o.out), o), o.out
    (rows, columns), (height, width) = network.grid, network.view.size
    codes = f"{network.vocabulary:,} codes, {rows} × {columns} tokens for {height} × {width} pixels"
    say(f"{network.kind}  {codes}, hash {network.hash} → {out}")
    return 0
