"""Information of tokens about the labels of their images, or about the tokens of another tokenizer."""

from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import embedding_bag

from mapet.utils.rng import random_bits

SHUFFLES = 8  # random pairings, whose mean estimates the chance level
SHUFFLE, HELD_OUT = 0x5348, 0x484F  # salts
SMOOTHING = 1.0  # Laplace smoothing: count added to every code of every class


def entropy(symbols: Tensor) -> float:
    """Entropy in bits of the distribution of integers (any shape)."""
    shares = torch.unique(symbols, return_counts=True)[1].double() / symbols.numel()
    return float(-(shares * shares.log2()).sum())


def mutual_information(tokens: Tensor, others: Tensor, seed: int = 0) -> tuple[float, float]:
    """Mutual information of a token and its row's other symbol, and its chance level, both in bits.

    The estimate from samples is biased upwards, the more the more codes there are. The chance level is its mean over
    ``SHUFFLES`` random pairings of rows with symbols; the difference estimates the information, slightly too low if
    there is much. As whole rows are paired again, tokens of one row may depend on each other in any way; corrections
    that treat patches as independent samples, such as Miller and Madow's, are wrong for (N, L) tokens and one label per
    image. For rows of one token the chance level estimates the expectation in the adjusted mutual information of Vinh,
    Epps and Bailey (JMLR 11, 2010).

    Args:
        tokens: (N, L) integers from 0 on.
        others: (N,) integers from 0 on.
        seed: random seed of the pairings.

    Returns:
        I(token; other) of the samples, and the chance level to subtract.
    """
    apart = entropy(tokens) + entropy(others)
    rows = torch.arange(len(others))
    orders = (random_bits(seed, SHUFFLE, turn, rows).argsort() for turn in range(SHUFFLES))
    by_chance = [apart - _together(tokens, others[order]) for order in orders]
    return apart - _together(tokens, others), sum(by_chance) / SHUFFLES


def agreement(one: Tensor, other: Tensor, seed: int = 0) -> float:
    """Adjusted mutual information of two tokenizers: 1 if they differ by a permutation of codes, 0 for chance.

    (I - E) / (mean of both entropies - E), where E is the chance level: Vinh, Epps and Bailey, JMLR 11, 2010.

    Args:
        one: tokens, integers of any shape.
        other: tokens of the other tokenizer for the same patches, of the same shape.
        seed: random seed of the pairings that estimate E.
    """
    shared, chance = mutual_information(one.reshape(-1, 1), other.flatten(), seed)
    room = (entropy(one) + entropy(other)) / 2 - chance
    return (shared - chance) / room if room > 1e-9 else 1.0


def bag_guesses(tokens: Tensor, labels: Tensor, vocabulary: int, seed: int = 0) -> tuple[Tensor, Tensor, float]:
    """Predict labels from the bag of an image's tokens, by multinomial naive Bayes with Laplace smoothing.

    A random fifth of the images is held out.

    Args:
        tokens: (N, L) integers below ``vocabulary``.
        labels: (N,) int64 from 0 on.
        vocabulary: number of codes.
        seed: random seed of the held-out part.

    Returns:
        Predicted labels (M,) int64 of the held-out images, their labels (M,) int64, and the accuracy of always guessing
        the most frequent label of the others.
    """
    order = random_bits(seed, HELD_OUT, torch.arange(len(labels))).argsort()
    held, kept = order.tensor_split([len(order) // 5])
    counts = _class_counts(tokens[kept], labels[kept], int(labels.max()) + 1, vocabulary)
    found = naive_bayes(tokens[held], counts, labels[kept].bincount(minlength=len(counts)))
    guess = labels[kept].bincount().argmax()
    return found, labels[held], float((labels[held] == guess).double().mean())


def naive_bayes(tokens: Tensor, counts: Tensor, prior: Tensor) -> Tensor:
    """The most probable class (M,) int64 of bags of tokens; ties go to the first class.

    Args:
        tokens: (M, L) integers below V.
        counts: (classes, V) int64, occurrences of each code in each class.
        prior: (classes,) int64, images of each class; a class without images is never predicted.
    """
    smooth = counts.double() + SMOOTHING
    likely = (smooth / smooth.sum(dim=1, keepdim=True)).log()
    scores = embedding_bag(tokens.long(), likely.T.contiguous(), mode="sum")
    return (scores + prior.double().log()).argmax(dim=1)


class PositionGuess(NamedTuple):
    """What the position of a patch tells of its token.

    Attributes:
        accuracy: of guessing, on held-out images, the token that is most frequent at each position in the others.
        constant: of guessing everywhere the most frequent token of the others.
        bits: mutual information of token and position, its chance level subtracted.
        entropy: of a token, in bits.
    """

    accuracy: float
    constant: float
    bits: float
    entropy: float

    @property
    def best(self) -> float:
        """The better of the two guesses: what a model reaches that never looks at the image."""
        return max(self.accuracy, self.constant)


def position_guess(tokens: Tensor, seed: int = 0) -> PositionGuess:
    """How well a patch's token is guessed from its position alone.

    Tokens of convolutional teachers encode the position, for instance by the zeros that pad the image's borders. A
    random fifth of the images is held out. The chance level of ``bits`` is its mean over random permutations of the
    tokens within each image.

    Args:
        tokens: (N, L) integers from 0 on, of N >= 2 images.
        seed: random seed of the held-out part and of the permutations.
    """
    order = random_bits(seed, HELD_OUT, torch.arange(len(tokens))).argsort()
    held, kept = order.tensor_split([max(1, len(order) // 5)])
    most = torch.stack([column.bincount().argmax() for column in tokens[kept].long().unbind(dim=1)])
    constant = tokens[kept].flatten().long().bincount().argmax()
    positions = torch.arange(tokens.shape[1])
    rows, columns = torch.arange(len(tokens))[:, None], positions[None]
    orders = (random_bits(seed, SHUFFLE, turn, rows, columns).argsort(dim=1) for turn in range(2))
    apart, by_position = entropy(tokens) + entropy(positions), tokens.T
    chance = [apart - _together(tokens.gather(1, order).T, positions) for order in orders]
    return PositionGuess(
        float((tokens[held] == most).double().mean()),
        float((tokens[held] == constant).double().mean()),
        max(0.0, apart - _together(by_position, positions) - sum(chance) / len(chance)),
        entropy(tokens),
    )


def _class_counts(tokens: Tensor, labels: Tensor, classes: int, vocabulary: int) -> Tensor:
    pairs = labels[:, None] * vocabulary + tokens
    return pairs.flatten().bincount(minlength=classes * vocabulary).view(classes, vocabulary)


def _together(tokens: Tensor, others: Tensor) -> float:
    """Joint entropy in bits of tokens (N, L) and their row's symbol (N,)."""
    return entropy(tokens.long() * (others.max() + 1) + others[:, None])
