"""What is measured of a VQ-KD tokenizer, on batches of different sizes."""

from types import SimpleNamespace as Stub

import pytest
import torch
from torch.nn.functional import cosine_similarity

from mapet.build.vqkd import measure


def test_the_similarity_is_the_mean_over_images_and_the_codes_are_counted_once_for_each_patch():
    chance = torch.Generator().manual_seed(0)
    codes, target = torch.randn(5, 3, generator=chance), torch.randn(6, 2, 3, generator=chance)
    tokens = torch.tensor([[0, 1], [1, 1], [3, 0], [1, 0], [0, 3], [3, 3]])
    network = Stub(vocabulary=5, codes=codes, encode=lambda images: tokens[images])
    objective = Stub(network=network, decode=lambda vectors: 2 * vectors, eval=lambda: None)
    parts = torch.arange(6).split(4)  # 4 and 2 images
    prepared = [{"images": part, "target": target[part]} for part in parts]
    found = measure(objective, Stub(prepared=lambda part: prepared[part], some=lambda count: range(len(parts))), 6)
    expected = cosine_similarity(codes[tokens], target, dim=-1).mean()
    shares = torch.tensor([4, 4, 4]) / 12
    assert (found["images"], found["used"]) == (6, 3)
    assert found["cosine"] == pytest.approx(expected.item(), abs=1e-6)
    assert found["perplexity"] == pytest.approx(float((-(shares * shares.log()).sum()).exp()), rel=1e-5)
