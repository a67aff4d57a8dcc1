"""``mapet tokenizer inspect``: is a tokenizer healthy, what do its tokens tell, and what do its codes look like?"""

from pathlib import Path
from typing import TYPE_CHECKING

from mapet.cli.options import parse, positional
from mapet.utils.errors import MapetError

if TYPE_CHECKING:
    pass
from mapet.api.inspect_tokenizer import Options, inspect


def command(arguments: list[str]) -> int:
    """Parse, look, tell, draw."""
    words, rest = positional(arguments, Options())
    o = parse(Options(), rest, "tokenizer inspect FOLDER DATA", "Health of a tokenizer, and images of its codes.")
    if len(words) != 2:
        raise MapetError(
            "mapet tokenizer inspect needs a tokenizer's folder and images: mapet tokenizer inspect FOLDER DATA."
        )
    inspect(Path(words[0]), words[1], o)
    return 0
