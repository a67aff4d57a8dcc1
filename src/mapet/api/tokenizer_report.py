"""The findings of ``inspect_tokenizer`` as data, and as lines of text."""

import math
from collections.abc import Iterator
from dataclasses import asdict, fields
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import Tensor

    from mapet.tokenizers.health import Distortion, Health

COLUMN = 12  # width of a line's topic


def health_findings(health: "Health") -> dict[str, Any]:
    """How many codes are in use and how evenly, and whether that is healthy."""
    warnings = health.warnings()
    verdict = "unhealthy" if warnings else "healthy" if health.judged else "undecided"
    numbers = {**asdict(health), "dead": health.dead, "entropy_bits": health.bits}
    return {"health": numbers, "verdict": verdict, "warnings": warnings}


def distortion_findings(distortion: "Distortion | None") -> dict[str, Any]:
    """How far the vectors lie from their codes, for tokenizers with vectors."""
    if distortion is None:
        return {}
    mean, share = distortion.result()
    return {"distortion": {"mean": mean, "share_of_variance": share}}


def position_findings(tokens: "Tensor", seed: int) -> dict[str, Any]:
    """What a patch's position tells of its token; needs two images."""
    from mapet.tokenizers.information import position_guess

    if len(tokens) < 2:
        return {}
    found = position_guess(tokens, seed)
    return {"position": found._asdict()}


def label_findings(tokens: "Tensor", labels: "Tensor", vocabulary: int, seed: int) -> dict[str, Any]:
    """Information about an image's label in one token, and in all its tokens; needs two classes.

    No function of the tokens holds more information about the label than the tokens themselves, so the predictions of
    naive Bayes give a lower bound. With few images of many classes the estimate is too high; as for a single token, the
    mean over random pairings is subtracted, after which it errs a little downwards.
    """
    from mapet.evals.score import share
    from mapet.tokenizers.information import bag_guesses, entropy, mutual_information

    label_bits = entropy(labels)
    if not label_bits:
        return {}
    found, random = mutual_information(tokens, labels, seed)
    bits = found - random
    token = {"bits": bits, "taken_off": random, "label_bits": label_bits, "share": bits / label_bits}
    predicted, true, guess = bag_guesses(tokens, labels, vocabulary, seed)
    if not len(true):
        return {"token": token}
    score = share(int((predicted == true).sum()), len(true))
    found, random = mutual_information(predicted[:, None], true, seed)
    information = {"bits_at_least": max(0.0, found - random), "taken_off": random}
    return {"token": token, "bag": {"protocol": "naive Bayes", "guess": guess, **information, **asdict(score)}}


def report_lines(found: dict[str, Any]) -> list[str]:
    """The findings as lines for a person."""
    return [f"{topic:<{COLUMN}}{text}" for topic, text in _topics(found)]


def _topics(found: dict[str, Any]) -> Iterator[tuple[str, str]]:
    from mapet.tokenizers.health import Health

    about, (rows, columns) = found["tokenizer"], found["tokenizer"]["grid"]
    health = Health(**{one.name: found["health"][one.name] for one in fields(Health)})
    yield "tokenizer", f"{about['kind']}, {health.vocabulary:,} codes, {rows} × {columns} patches: {about['folder']}"
    yield "images", f"{health.images:,} ({health.patches:,} patches) of {found['data']}"
    yield from _use(health)
    if distortion := found.get("distortion"):
        share = f"{distortion['share_of_variance']:.0%} of the features' variance"
        yield "distortion", f"{distortion['mean']:.4g} mean squared distance, {share}"
    if position := found.get("position"):
        yield "position", f"{position['bits']:.2f} of a token's {position['entropy']:.2f} bits"
        yield "", f"a guess by position {position['accuracy']:.1%}, by the most frequent {position['constant']:.1%}"
    yield from _labels(found)
    if agreement := found.get("agreement"):
        value = agreement["adjusted_mutual_information"]
        yield "agreement", f"{value:.3f} adjusted mutual information with the other (1 same, 0 random)"
    for text in found["warnings"]:
        yield "WARNING", text
    if found["verdict"] == "undecided":
        yield "undecided", f"too few images to judge {health.vocabulary:,} codes: use {_enough(health):,} or more"
    elif found["verdict"] == "healthy":
        yield "healthy", "few dead codes, even use, no code in excess"


def _use(health: "Health") -> Iterator[tuple[str, str]]:
    estimate = f"; about {health.dead:,.0f} dead, {health.missed:,.0f} not sampled" if health.judged else ""
    share, most = health.perplexity / health.vocabulary, math.log2(health.vocabulary)
    yield "codes", f"{health.seen:,} of {health.vocabulary:,} seen{estimate}"
    yield "perplexity", f"{health.perplexity:,.1f}, {share:.0%} of all; entropy {health.bits:.2f} of {most:.2f} bits"
    yield "most", f"code {health.most} is {health.share:.2%} of patches: the score of always predicting it"


def _labels(found: dict[str, Any]) -> Iterator[tuple[str, str]]:
    if token := found.get("token"):
        bits, share = f"{token['bits']:.3f} of the label's {token['label_bits']:.2f} bits", f"{token['share']:.1%}"
        yield "a token", f"has {bits} ({share}; {token['taken_off']:.3f} taken off)"
    if bag := found.get("bag"):
        from mapet.evals.score import Score

        score = Score(**{one.name: bag[one.name] for one in fields(Score)})
        yield "all tokens", f"label right for {score} of {score.count:,}; a guess {bag['guess']:.1%}"
        yield "", f"so they have at least {bag['bits_at_least']:.2f} bits of it ({bag['taken_off']:.2f} taken off)"
        yield "", "(naive Bayes on the bag of an image's tokens, tested on a fifth)"


def _enough(health: "Health") -> int:
    """Images that are enough to judge the vocabulary."""
    from mapet.tokenizers.health import ENOUGH

    return math.ceil(ENOUGH * health.vocabulary * health.images / health.patches)
