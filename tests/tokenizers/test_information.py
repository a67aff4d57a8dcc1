"""What tokens tell: against distributions whose information is known, and against scikit-learn."""

import math

import pytest
import torch
from sklearn.metrics import adjusted_mutual_info_score, mutual_info_score
from sklearn.naive_bayes import MultinomialNB
from torch import Tensor

from mapet.tokenizers.information import (
    HELD_OUT,
    agreement,
    bag_guesses,
    entropy,
    mutual_information,
    naive_bayes,
    position_guess,
)
from mapet.utils.rng import random_bits


def chance(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def labelled(images: int, length: int, table: Tensor, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Labels, even, and for each image tokens drawn independently from its label's row of ``table`` (C, V)."""
    labels = torch.randint(len(table), (images,), generator=chance(seed))
    return torch.multinomial(table[labels], length, replacement=True, generator=chance(seed + 1)), labels


def known(table: Tensor) -> float:
    """I(token; label) in bits for even labels and tokens from the rows of ``table`` (C, V)."""
    joint = table.double() / len(table)
    return float((joint * (joint / (joint.sum(0) / len(table))).log2()).sum())


def test_entropy() -> None:
    assert entropy(torch.arange(32).view(4, 8)) == pytest.approx(5)
    assert entropy(torch.full((3, 3), 7)) == 0
    assert entropy(torch.tensor([0, 1, 1, 1])) == pytest.approx(0.25 * 2 + 0.75 * math.log2(4 / 3))


@pytest.mark.parametrize("length", [1, 4])
def test_the_samples_information_is_scikit_learns(length: int) -> None:
    tokens, labels = labelled(200, length, torch.rand(5, 30, generator=chance()))
    expected = mutual_info_score(labels.repeat_interleave(length), tokens.flatten()) / math.log(2)
    assert mutual_information(tokens, labels)[0] == pytest.approx(expected)


@pytest.mark.parametrize(("codes", "images", "length"), [(64, 500, 16), (512, 500, 64), (512, 2000, 64)])
def test_the_information_is_the_known_one(codes: int, images: int, length: int) -> None:
    """In the mean over a dozen data sets, to a quarter of what is wrong with the samples' own number."""
    table = (0.7 * torch.randn(10, codes, generator=chance(7))).softmax(1)
    pairs = torch.tensor([mutual_information(*labelled(images, length, table, 2 * seed)) for seed in range(12)])
    found, by_chance = pairs.mean(0).tolist()
    wrong = found - known(table)
    assert wrong > 0.02
    assert found - by_chance == pytest.approx(known(table), abs=wrong / 4)


@pytest.mark.parametrize("images", [300, 3000])
def test_patches_that_are_alike_tell_nothing_about_chance_labels(images: int) -> None:
    """All patches of an image have one token: the correction of Miller and Madow, that takes them for 64, fails."""
    tokens = torch.randint(50, (images, 1), generator=chance(1)).expand(-1, 64)
    labels = torch.randint(10, (images,), generator=chance(2))
    found, by_chance = mutual_information(tokens, labels)
    assert found - by_chance == pytest.approx(0, abs=75 / images)  # three standard deviations
    cells = len(torch.unique(tokens * 10 + labels[:, None]))
    miller_madow = found - (cells - 50 - 10 + 1) / (2 * tokens.numel() * math.log(2))
    assert miller_madow > 225 / images


def test_tokens_that_name_the_label_tell_all_of_it() -> None:
    labels = torch.randint(4, (4000,), generator=chance())
    tokens = labels[:, None] * 10 + torch.randint(10, (4000, 8), generator=chance(1))
    found, by_chance = mutual_information(tokens, labels)
    assert found == pytest.approx(entropy(labels))
    assert by_chance < 0.01


def test_names_do_not_count_and_the_seed_hardly() -> None:
    tokens, labels = labelled(300, 8, torch.rand(5, 30, generator=chance()))
    names = torch.randperm(30, generator=chance(4))
    one, other = mutual_information(tokens, labels), mutual_information(names[tokens].int(), 4 - labels)
    assert one == pytest.approx(other)
    reseeded = mutual_information(tokens, labels, seed=1)
    assert one[1] != reseeded[1]
    assert one[1] == pytest.approx(reseeded[1], rel=0.1)


@pytest.mark.parametrize("changed", [0.0, 0.3, 0.7, 1.0])
@pytest.mark.parametrize(("patches", "codes"), [(4000, 20), (20_000, 300)])
def test_agreement_is_scikit_learns(changed: float, patches: int, codes: int) -> None:
    one = torch.randint(codes, (patches,), generator=chance())
    noise = torch.randint(codes, (patches,), generator=chance(3))
    other = torch.where(torch.rand(patches, generator=chance(1)) < changed, noise, one)
    other = torch.randperm(codes, generator=chance(2))[other]
    found = agreement(one.view(-1, 4), other.view(-1, 4))
    assert found == pytest.approx(adjusted_mutual_info_score(one, other), abs=1.5e-3)
    assert found == pytest.approx(agreement(other, one), abs=1.5e-3)


def test_the_ends_of_agreement() -> None:
    tokens = torch.randint(40, (100, 30), generator=chance())
    assert agreement(tokens, 39 - tokens) == pytest.approx(1)
    assert agreement(tokens, torch.randint(40, (100, 30), generator=chance(1))) == pytest.approx(0, abs=0.01)
    assert agreement(tokens, torch.zeros_like(tokens)) == pytest.approx(0)
    assert agreement(torch.zeros_like(tokens), torch.zeros_like(tokens)) == 1


def test_naive_bayes_is_scikit_learns() -> None:
    table = torch.rand(4, 30, generator=chance(3)) ** 2
    tokens, labels = labelled(120, 9, table)
    bags = torch.stack([row.bincount(minlength=30) for row in tokens])
    oracle = MultinomialNB().fit(bags[:80], labels[:80])
    counts = torch.stack([bags[:80][labels[:80] == label].sum(0) for label in range(4)])
    found = naive_bayes(tokens[80:], counts, labels[:80].bincount(minlength=4))
    assert found.tolist() == oracle.predict(bags[80:]).tolist()
    assert len(found.unique()) == 4


def test_bags_of_tokens() -> None:
    tokens, labels = labelled(500, 16, torch.eye(5).repeat_interleave(6, dim=1) + 0.05)
    found, true, guess = bag_guesses(tokens.int(), labels, 30)
    assert (len(found), found.dtype) == (100, torch.int64)
    assert (found == true).float().mean() > 0.95
    assert 0.1 < guess < 0.3
    found, true, _ = bag_guesses(tokens, labels.roll(1), 30)
    assert (found == true).float().mean() < 0.4
    assert not len(bag_guesses(tokens[:4], labels[:4], 30)[0])


def test_what_is_held_out_is_not_learned_from() -> None:
    """Each image has a token of its own: known images give their label away, others do not."""
    tokens = torch.arange(1000)[:, None].expand(-1, 20)
    labels = torch.randint(10, (1000,), generator=chance())
    found, true, guess = bag_guesses(tokens, labels, 1000)
    assert (found == true).float().mean() < 0.3
    assert guess < 0.3


@pytest.mark.parametrize("seed", [0, 1])
def test_the_guess_by_position_equals_a_slow_reference(seed: int) -> None:
    tokens = torch.randint(6, (40, 5), generator=chance(seed)) + torch.randint(3, (5,), generator=chance(9))
    order = random_bits(seed, HELD_OUT, torch.arange(40)).argsort().tolist()
    held, kept = order[:8], order[8:]
    hits = plain = 0
    for position in range(5):
        seen = [int(tokens[image, position]) for image in kept]
        most = max(sorted(set(seen)), key=seen.count)
        every = [int(token) for image in kept for token in tokens[image]]
        hits += sum(int(tokens[image, position]) == most for image in held)
        plain += sum(int(tokens[image, position]) == max(sorted(set(every)), key=every.count) for image in held)
    found = position_guess(tokens, seed)
    assert found.accuracy == pytest.approx(hits / 40)
    assert found.constant == pytest.approx(plain / 40)
    assert found.best == max(found.accuracy, found.constant)


def test_tokens_that_are_their_position_and_tokens_that_know_nothing_of_it() -> None:
    known_places = position_guess(torch.arange(8).expand(50, -1))
    assert known_places.accuracy == 1
    assert known_places.bits == pytest.approx(3, abs=0.2)
    assert known_places.entropy == pytest.approx(3)
    free = position_guess(torch.randint(8, (2000, 8), generator=chance()))
    assert free.bits < 0.01
    assert free.accuracy < 0.2
    assert position_guess(torch.randint(3, (2, 4), generator=chance())).entropy > 0
