"""``mapet pack``: decode every image once, into a folder that loads fast."""

import shlex
from dataclasses import dataclass, field

from mapet.api.pack import pack, pack_command
from mapet.cli.options import parse
from mapet.cli.output import made
from mapet.config.verbs import PackSettings
from mapet.utils.log import log

ABOUT = """Decode every image once, into a folder that loads fast: use --data OUT instead of --data DATA.

--form uint8 keeps the pixels of the whole centred square at --size: nothing is left to decode, and training sees the
same bits as from DATA. --form jpeg keeps whole images, shrunk to --size: smaller on disk, and random crops stay
possible.

Run the same command again to continue after an interruption."""


@dataclass(frozen=True)
class Options:
    """Options of ``mapet pack DATA``."""

    data: str = ""
    """A folder of images, nested in any way, or cifar10; the same as DATA. All of its splits are packed."""
    out: str = ""
    """Folder for the pack; an interrupted one is continued."""
    settings: PackSettings = field(default_factory=PackSettings)


def command(arguments: list[str]) -> int:
    """Pack, and print how to use the result; after Ctrl-C, how to continue."""
    o = parse(Options(), arguments, "pack DATA", ABOUT)
    try:
        out = made(pack(o.data, o.out, settings=o.settings))
    except KeyboardInterrupt:
        log.info(f"Interrupted. Continue with: {pack_command(o.data, o.out, o.settings)}")
        return 130
    log.info(f"packed    use it as --data {shlex.quote(str(out))}")
    return 0
