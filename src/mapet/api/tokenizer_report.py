"""What ``mapet tokenizer inspect`` finds: each function prints its line and returns its part of ``inspect.json``."""

import math
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mapet.utils.log import say

if TYPE_CHECKING:
    from torch import Tensor

    from mapet.tokenizers.health import Distortion, Health
    from mapet.tokenizers.tokenizer import Tokenizer

COLUMN = 12  # width of what a line is about


def line(about: str, text: str) -> None:
    """One line for the person at the screen."""
    say(f"{about:<{COLUMN}}{text}")


def subject(tokenizer: "Tokenizer", folder: Path, source: str, health: "Health") -> dict[str, Any]:
    """Which tokenizer, and on what."""
    rows, columns = tokenizer.grid
    line("tokenizer", f"{tokenizer.kind}, {tokenizer.vocabulary:,} codes, {rows} × {columns} patches: {folder}")
    line("images", f"{health.images:,} ({health.patches:,} patches) of {source}")
    about = {"folder": str(folder), "kind": tokenizer.kind, "hash": tokenizer.hash, "grid": tokenizer.grid}
    return {"tokenizer": about, "data": source}


def use(health: "Health") -> dict[str, Any]:
    """How many codes are in use, and how evenly."""
    estimate = f"; about {health.dead:,.0f} dead, {health.missed:,.0f} missed by chance" if health.judged else ""
    line("codes", f"{health.seen:,} of {health.vocabulary:,} seen{estimate}")
    share, most = health.perplexity / health.vocabulary, math.log2(health.vocabulary)
    line("perplexity", f"{health.perplexity:,.1f}, {share:.0%} of all; entropy {health.bits:.2f} of {most:.2f} bits")
    line("most", f"code {health.most} is {health.share:.2%} of patches: what always guessing it scores")
    return {"health": {**asdict(health), "dead": health.dead, "entropy_bits": health.bits}}


def distance(distortion: "Distortion | None") -> dict[str, Any]:
    """How far the vectors lie from their codes, where there are vectors."""
    if distortion is None:
        return {}
    mean, share = distortion.result()
    line("distortion", f"{mean:.4g} mean squared distance, {share:.0%} of the features' variance")
    return {"distortion": {"mean": mean, "share_of_variance": share}}


def labels(tokens: "Tensor", classes: "Tensor", vocabulary: int, seed: int) -> dict[str, Any]:
    """What one token tells about its image's label, and all tokens of an image together; needs two classes.

    No function of the tokens tells more of the label than the tokens themselves, so that what the answers of naive
    Bayes tell is a lower bound. From few images of many classes it comes out too high; as for a single token, what
    random pairings show is taken off, after which it errs a little downwards.
    """
    from mapet.evals.score import share
    from mapet.tokenizers.information import bag_guesses, entropy, mutual_information

    whole = entropy(classes)
    if not whole:
        return {}
    found, chance = mutual_information(tokens, classes, seed)
    bits = found - chance
    line("a token", f"tells {bits:.3f} of the label's {whole:.2f} bits ({bits / whole:.1%}; {chance:.3f} taken off)")
    fields = {"bits": bits, "taken_off": chance, "label_bits": whole, "share": bits / whole}
    answers, true, guess = bag_guesses(tokens, classes, vocabulary, seed)
    if not len(true):
        return {"token": fields}
    score = share(int((answers == true).sum()), len(true))
    line("all tokens", f"label right for {score} of {len(true):,}; a guess {guess:.1%}")
    found, chance = mutual_information(answers[:, None], true, seed)
    bits = max(0.0, found - chance)
    line("", f"so they tell {bits:.2f} bits of it at least ({chance:.2f} taken off for chance)")
    line("", "(naive Bayes on the bag of an image's tokens, tested on a fifth)")
    told = {"bits_at_least": bits, "taken_off": chance}
    return {"token": fields, "bag": {"protocol": "naive Bayes", "guess": guess, **told, **asdict(score)}}


def other(tokens: "Tensor", others: "Tensor", folder: Path, seed: int) -> dict[str, Any]:
    """How far two tokenizers agree about the same patches."""
    from mapet.tokenizers.information import agreement

    value = agreement(tokens, others, seed)
    line("agreement", f"{value:.3f} adjusted mutual information with the other (1 same, 0 chance)")
    return {"agreement": {"with": str(folder), "adjusted_mutual_information": value}}


def verdict(health: "Health") -> dict[str, Any]:
    """Healthy or not, in plain words."""
    from mapet.tokenizers.health import ENOUGH

    warnings = health.warnings()
    for text in warnings:
        line("WARNING", text)
    if warnings:
        return {"verdict": "unhealthy", "warnings": warnings}
    if not health.judged:
        wanted = math.ceil(ENOUGH * health.vocabulary * health.images / health.patches)
        line("undecided", f"too few images to judge {health.vocabulary:,} codes: give {wanted:,} or more")
        return {"verdict": "undecided", "warnings": []}
    line("healthy", "few dead codes, even use, no code in excess")
    return {"verdict": "healthy", "warnings": []}
