"""What tokens tell: about the labels of their images, and about the tokens of another tokenizer."""

import torch
from torch import Tensor
from torch.nn.functional import embedding_bag

from mapet.utils.rng import random_bits

SHUFFLES = 8  # random pairings whose mean is what chance alone would show
SHUFFLE, HELD_OUT = 0x5348, 0x484F  # salts
SMOOTHING = 1.0  # Laplace's: a count added to every code of every class


def entropy(symbols: Tensor) -> float:
    """Bits of the distribution of integers (any shape)."""
    shares = torch.unique(symbols, return_counts=True)[1].double() / symbols.numel()
    return float(-(shares * shares.log2()).sum())


def mutual_information(tokens: Tensor, others: Tensor, seed: int = 0) -> tuple[float, float]:
    """Bits that a token shares with its row's other symbol, and how many of them chance explains.

    From samples the first number comes out too high, the more so the more codes there are. The second one is its mean
    over ``SHUFFLES`` random pairings of rows with symbols; the difference estimates the information, from a little
    below where there is much. As whole rows are paired anew, tokens of one row may depend on one another in any way:
    with (N, L) tokens of images and one label an image, this is what a correction that takes patches for independent
    samples, such as Miller and Madow's, gets wrong. With rows of one token, the second number estimates the expectation
    that defines the adjusted mutual information of Vinh, Epps and Bailey (JMLR 11, 2010).

    Args:
        tokens: (N, L) integers from 0 on.
        others: (N,) integers from 0 on.
        seed: of the pairings.

    Returns:
        I(token; other) of the samples, and the part to take off, both in bits.
    """
    apart = entropy(tokens) + entropy(others)
    rows = torch.arange(len(others))
    orders = (random_bits(seed, SHUFFLE, turn, rows).argsort() for turn in range(SHUFFLES))
    by_chance = [apart - _together(tokens, others[order]) for order in orders]
    return apart - _together(tokens, others), sum(by_chance) / SHUFFLES


def agreement(one: Tensor, other: Tensor, seed: int = 0) -> float:
    """Adjusted mutual information of two tokenizers over the same patches: 1 where only names differ, 0 for chance.

    (I - E) / (mean of both entropies - E), E being what chance explains: Vinh, Epps and Bailey, JMLR 11, 2010.

    Args:
        one: tokens, integers of any shape.
        other: those of the other tokenizer for the same patches, of the same shape.
        seed: of the pairings that estimate E.
    """
    shared, chance = mutual_information(one.reshape(-1, 1), other.flatten(), seed)
    room = (entropy(one) + entropy(other)) / 2 - chance
    return (shared - chance) / room if room > 1e-9 else 1.0


def bag_guesses(tokens: Tensor, labels: Tensor, vocabulary: int, seed: int = 0) -> tuple[Tensor, Tensor, float]:
    """What the bag of an image's tokens says of its label, by multinomial naive Bayes with Laplace smoothing.

    A fifth of the images, drawn by the seed, is held out; the others are learned from.

    Args:
        tokens: (N, L) integers below ``vocabulary``.
        labels: (N,) int64 from 0 on.
        vocabulary: codes in all.
        seed: of the held-out part.

    Returns:
        (M,) int64, the label found for each image held out; (M,) int64, its own; and the share of the label that is
        most frequent in the rest, among them: the accuracy of a guess.
    """
    order = random_bits(seed, HELD_OUT, torch.arange(len(labels))).argsort()
    held, kept = order.tensor_split([len(order) // 5])
    counts = _class_counts(tokens[kept], labels[kept], int(labels.max()) + 1, vocabulary)
    found = naive_bayes(tokens[held], counts, labels[kept].bincount(minlength=len(counts)))
    guess = labels[kept].bincount().argmax()
    return found, labels[held], float((labels[held] == guess).double().mean())


def naive_bayes(tokens: Tensor, counts: Tensor, prior: Tensor) -> Tensor:
    """The most probable class (M,) int64 of bags of tokens (M, L), of equals the first.

    Args:
        tokens: (M, L) integers below V.
        counts: (classes, V) int64, how often each code occurs in each class.
        prior: (classes,) int64, images of each class; a class without is never found.
    """
    smooth = counts.double() + SMOOTHING
    likely = (smooth / smooth.sum(dim=1, keepdim=True)).log()
    scores = embedding_bag(tokens.long(), likely.T.contiguous(), mode="sum")
    return (scores + prior.double().log()).argmax(dim=1)


def _class_counts(tokens: Tensor, labels: Tensor, classes: int, vocabulary: int) -> Tensor:
    cells = labels[:, None] * vocabulary + tokens
    return cells.flatten().bincount(minlength=classes * vocabulary).view(classes, vocabulary)


def _together(tokens: Tensor, others: Tensor) -> float:
    """The joint entropy in bits of all tokens (N, L) with their row's symbol (N,)."""
    return entropy(tokens.long() * (others.max() + 1) + others[:, None])
