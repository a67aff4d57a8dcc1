"""Attention by windows against attention by the mask, for every kind of pattern, with gradients."""

import pytest
import torch
from torch.nn import functional as F

from mapet.method.encoder import Encoder
from mapet.method.pattern import mapet, mim, pet, reveal
from mapet.method.predict import TokenPrediction
from mapet.method.windows import SHARED, Visible, attend, by_products, readable

PATTERNS = {
    "mapet": mapet(24, 17),
    "pet": pet(24, 17),
    "mim": mim(24, 17),
    "two groups": reveal(24, [SHARED, 9], fill=True),
    "two groups of pet": reveal(24, [9, SHARED], fill=False),
    "mixed groups": reveal(24, [1, 3, 9, 1, 2, 1], fill=True),
    "one patch": mapet(24, 1),
    "no context": mapet(24, 24),
}


def random_pattern(seed):
    """Groups of random sizes over 20 patches."""
    draw = torch.Generator().manual_seed(seed)
    groups, left = [], int(torch.randint(1, 21, (), generator=draw))
    while left:
        groups.append(int(torch.randint(1, min(left, 10) + 1, (), generator=draw)))
        left -= groups[-1]
    return reveal(20, groups, fill=bool(seed % 2))


def rows_of(count, seed, dtype=torch.float64):
    return torch.randn(2, 3, count, 8, dtype=dtype, generator=torch.Generator().manual_seed(seed)).requires_grad_()


def both(pattern, start, dtype=torch.float64):
    """(windows, mask): the output and the gradients of q, k, v."""
    visible = Visible(pattern.visible[:, : pattern.keys])
    found = []
    for way in ("windows", "mask"):
        q, k, v = (rows_of(n, i, dtype) for i, n in enumerate((pattern.rows - start, pattern.keys, pattern.keys)))
        mask = visible.mask[start:]
        out = visible.attend(q, k, v, start) if way == "windows" else F.scaled_dot_product_attention(q, k, v, mask)
        weight = torch.randn(out.shape, dtype=dtype, generator=torch.Generator().manual_seed(9))
        (out * weight).sum().backward()
        found.append((out.detach(), q.grad, k.grad, v.grad))
    return found


@pytest.mark.parametrize("last", [False, True])
@pytest.mark.parametrize("name", PATTERNS)
def test_windows_equal_the_mask(name, last):
    pattern = PATTERNS[name]
    windows, mask = both(pattern, pattern.rows - len(pattern.predict) if last else 0)
    for ours, theirs in zip(windows, mask, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-12)


@pytest.mark.parametrize("seed", range(20))
def test_windows_equal_the_mask_for_random_groups(seed):
    pattern = random_pattern(seed)
    start = int(torch.randint(pattern.rows, (), generator=torch.Generator().manual_seed(seed)))
    for ours, theirs in zip(*both(pattern, start), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-12)


def test_float32_differs_by_rounding_only():
    for ours, theirs in zip(*both(mapet(196, 147), 0, torch.float32), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=0, atol=5e-6)


def test_every_row_is_in_one_band_and_bands_of_equal_windows_need_no_mask():
    for pattern in [*PATTERNS.values(), *map(random_pattern, range(20))]:
        visible = Visible(pattern.visible[:, : pattern.keys])
        rows = [row for ranges, _ in visible.ranges for low, high in ranges for row in range(low, high)]
        assert sorted(rows) == list(range(pattern.rows))
        covered = torch.zeros_like(visible.mask)
        for number, (ranges, keys) in enumerate(visible.ranges):
            for low, high in ranges:
                covered[low:high, keys[0] : keys[1]] = True
            same = len({tuple(visible.mask[row].tolist()) for low, high in ranges for row in range(low, high)}) == 1
            assert (getattr(visible, f"bias_{number}") is None) == (same and bool(_contiguous(visible.mask[low])))
        assert covered[visible.mask].all()


def _contiguous(row):
    read = row.nonzero().flatten()
    return len(read) == read[-1] - read[0] + 1


def test_mapet_is_one_plain_attention_and_a_sliding_window():
    visible = Visible(mapet(196, 147).visible[:, :343])
    plain, *sliding = visible.ranges
    assert plain == ([(146, 343)], (146, 343))  # 1 + L rows over 1 + L keys
    for (content, queries), _ in sliding:
        assert content[1] - content[0] == queries[1] - queries[0]  # two rows for each window
        assert content[0] + queries[1] == 489


def test_products_equal_the_fused_kernel():
    q, k, v = (rows_of(n, i) for i, n in enumerate((7, 9, 9)))
    torch.testing.assert_close(by_products(q, k, v), F.scaled_dot_product_attention(q, k, v), rtol=0, atol=1e-12)


def test_float32_keeps_the_fused_kernel():
    pattern = mapet(24, 17)
    visible = Visible(pattern.visible[:, : pattern.keys])
    q, k, v = (rows_of(n, i, torch.float32) for i, n in enumerate((pattern.rows, pattern.keys, pattern.keys)))
    assert attend(q, k, v, visible, 0).equal(F.scaled_dot_product_attention(q, k, v, visible.mask))


@pytest.mark.parametrize("name", ["mapet", "pet", "mim", "mixed groups"])
def test_bfloat16_training_is_near_float32(name):
    torch.manual_seed(0)
    encoder = Encoder(img_size=(16, 24), patch_size=4, embed_dim=32, depth=3, num_heads=2)
    objective = TokenPrediction(encoder, PATTERNS[name], 11)
    images, tokens = torch.randn(4, 3, 16, 24), torch.randint(11, (4, 24))
    order = torch.cat([torch.zeros(4, 1), 1 + torch.rand(4, 24).argsort()], dim=1).long()
    gradients = []
    for precision in (torch.float32, torch.bfloat16):
        objective.zero_grad()
        with torch.autocast("cpu", precision, enabled=precision is torch.bfloat16):
            objective(images, tokens, order)["loss"].backward()
        gradients.append(torch.cat([one.grad.flatten() for one in objective.parameters()]))
    full, half = gradients
    assert (full - half).norm() < 0.03 * full.norm()


def test_bfloat16_takes_the_windows_in_training_only(monkeypatch):
    pattern = mapet(24, 17)
    visible = Visible(pattern.visible[:, : pattern.keys])
    taken = []
    monkeypatch.setattr(visible, "attend", lambda *rows: taken.append(rows) or rows[0])
    q, k, v = (rows_of(n, 0, torch.bfloat16) for n in (pattern.rows, pattern.keys, pattern.keys))
    attend(q.detach(), k, v, visible, 0)
    assert not taken
    attend(q, k, v, visible, 0)
    assert len(taken) == 1


@pytest.mark.parametrize("name", ["mapet", "pet", "mixed groups"])
def test_compiled_attention_is_one_graph_and_equals_the_mask(name):
    pattern = PATTERNS[name]
    visible = Visible(pattern.visible[:, : pattern.keys])
    q, k, v = (rows_of(n, i) for i, n in enumerate((pattern.rows, pattern.keys, pattern.keys)))
    compiled = torch.compile(visible.attend, fullgraph=True, backend="aot_eager")
    expected = F.scaled_dot_product_attention(q, k, v, visible.mask)
    torch.testing.assert_close(compiled(q, k, v, 0), expected, rtol=0, atol=1e-12)


def test_a_mask_alone_tells_which_rows_are_read():
    rows, mask = torch.randn(2, 7, 8), torch.rand(7, 5, generator=torch.Generator().manual_seed(0)) < 0.7
    assert torch.equal(readable(rows, mask), rows[:, :5])
    assert torch.equal(readable(rows, Visible(mask)), rows[:, :5])
    assert readable(rows, None) is rows
