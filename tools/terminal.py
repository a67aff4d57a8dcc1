"""Run a command in a terminal of 80 columns, and draw what it shows as SVG.

    python tools/terminal.py docs/terminal.svg mapet pretrain IMAGES --out runs/first

Progress that the command has erased in the end is not seen.
"""

import argparse
import os
import pty
import re
import shlex
import struct
import subprocess
import termios
from contextlib import suppress
from fcntl import ioctl
from pathlib import Path

from rich.console import Console
from rich.terminal_theme import DEFAULT_TERMINAL_THEME
from rich.text import Text

COLUMNS, ROWS = 80, 60
FOREIGN = re.compile(r"@font-face \{.*?\}\s*|\s*<!--.*?-->", re.S)  # fonts of a server; a browser has its own
CONTROL = re.compile(r"\x1b\[(\d*)([AKJG])|\x1b\[\?\d+[hl]|\r\n|\r|\n")


def recorded(command: list[str]) -> str:
    """What the command writes to a terminal."""
    ours, theirs = pty.openpty()
    ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", ROWS, COLUMNS, 0, 0))
    surrounding = {**os.environ, "TERM": "xterm-256color", "COLUMNS": str(COLUMNS)}
    running = subprocess.Popen(command, stdin=theirs, stdout=theirs, stderr=theirs, env=surrounding)
    os.close(theirs)
    found = b""
    with suppress(OSError):  # the command has ended
        while part := os.read(ours, 1 << 16):
            found += part
    running.wait()
    return found.decode(errors="replace")


def screen(written: str) -> list[str]:
    """The lines, with their colours, that are seen in the end."""
    lines, row, start = [""], 0, 0
    for match in [*CONTROL.finditer(written), None]:
        text, start = written[start : match.start() if match else None], match.end() if match else start
        lines[row] += text
        if match is None:
            break
        if match[0].endswith("\n"):
            row += 1
            lines += [""] * (row + 1 - len(lines))
        elif match[2] == "A":
            row = max(0, row - int(match[1] or 1))
        elif match[2] == "K":
            lines[row] = ""
    return lines


def main() -> None:
    """Parse, run, draw."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path)
    parser.add_argument("command", nargs=argparse.REMAINDER)
    o = parser.parse_args()
    console = Console(record=True, width=COLUMNS, file=open(os.devnull, "w"), force_terminal=True)  # noqa: SIM115
    shown = "\n".join(screen(recorded(o.command))).rstrip()
    for line in f"\x1b[1m$ {shlex.join(o.command)}\x1b[0m\n{shown}".splitlines():
        text = Text.from_ansi(line.rstrip())
        for part in text.divide(range(COLUMNS, len(text), COLUMNS)):  # a terminal wraps between any two characters
            console.print(part, no_wrap=True)
    drawn = FOREIGN.sub("", console.export_svg(title="mapet", theme=DEFAULT_TERMINAL_THEME))
    o.out.write_text(drawn, encoding="utf-8")
    print(o.out)


if __name__ == "__main__":
    main()
