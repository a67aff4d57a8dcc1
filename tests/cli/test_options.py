from dataclasses import dataclass, field

import pytest

from mapet.cli.options import positional


@dataclass(frozen=True)
class Inner:
    max_images: int | None = None
    names: tuple[str, ...] = ()


@dataclass(frozen=True)
class Options:
    out: str = ""
    overwrite: bool = False
    grid: tuple[int, int] | None = None
    betas: tuple[float, float] = (0.9, 0.99)
    inner: Inner = field(default_factory=Inner)


@pytest.mark.parametrize(
    ("line", "words", "rest"),
    [
        ("", "", ""),
        ("A B --out x", "A B", "--out x"),
        ("--out x A", "A", "--out x"),
        ("--out=x A", "A", "--out=x"),
        ("--overwrite A --max-images -1 B", "A B", "--overwrite --max-images -1"),
        ("--grid 2 3 A --betas 1 2 B", "A B", "--grid 2 3 --betas 1 2"),
        ("A --names x y z", "A", "--names x y z"),
        ("A -h B", "A B", "-h"),
        ("--unknown 1 A", "A", "--unknown 1"),
        ("--help A", "A", "--help"),
    ],
)
def test_words_that_belong_to_no_option(line, words, rest):
    assert positional(line.split(), Options()) == (words.split(), rest.split())
