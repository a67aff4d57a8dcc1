"""The encoder against timm's, against plain formulas, and against itself with its rows permuted."""

import numpy as np
import pytest
import torch

from mapet.method.encoder import SIZES, Classifier, Encoder, drop_path_scale, fork_seed
from mapet.method.layer_scale import LayerScale, scaled
from mapet.method.windows import Visible
from method_oracle import PATTERNS, plain_block, shaken

TIMM = {
    "token": {},
    "avg": {"global_pool": "avg"},
    "layer scale": {"init_values": 0.1},
    "classes": {"num_classes": 7},
    "avg classes layer scale": {"global_pool": "avg", "num_classes": 5, "init_values": 0.1},
    "wide image": {"img_size": (12, 20), "patch_size": (4, 5)},
    "one channel": {"in_chans": 1},
    "five channels, small mlp": {"in_chans": 5, "mlp_ratio": 1.5},
}
TINY = {"img_size": (12, 16), "patch_size": 4, "embed_dim": 24, "depth": 3, "num_heads": 3}


@pytest.mark.parametrize("changes", TIMM.values(), ids=TIMM.keys())
def test_state_dict_and_outputs_are_timms(changes):
    from timm.models.vision_transformer import VisionTransformer

    settings = {**TINY, "global_pool": "token", "num_classes": 0, **changes}
    theirs, ours = shaken(VisionTransformer(**settings)), shaken(Classifier(**settings), seed=1)
    theirs, ours = theirs.eval().double(), ours.eval().double()
    assert {name: tensor.shape for name, tensor in ours.state_dict().items()} == {
        name: tensor.shape for name, tensor in theirs.state_dict().items()
    }
    height, width = ours.img_size
    images = torch.randn(2, ours.in_chans, height, width, dtype=torch.float64)
    assert not torch.allclose(ours(images), theirs(images), atol=1e-2)
    ours.load_state_dict(theirs.state_dict(), strict=True)
    theirs.load_state_dict(ours.state_dict(), strict=True)
    features = Encoder.forward(ours, images)
    torch.testing.assert_close(features, theirs.forward_features(images), atol=1e-9, rtol=1e-9)
    torch.testing.assert_close(ours(images), theirs(images), atol=1e-9, rtol=1e-9)


@pytest.mark.parametrize("name", SIZES)
def test_named_sizes_are_timms(name):
    import timm

    with torch.device("meta"):
        ours, theirs = Encoder(**SIZES[name]), timm.create_model(f"{name}_patch16_224", num_classes=0)
    assert {name: tensor.shape for name, tensor in ours.state_dict().items()} == {
        name: tensor.shape for name, tensor in theirs.state_dict().items()
    }
    assert ours.num_heads == theirs.blocks[0].attn.num_heads


@pytest.mark.parametrize("name", PATTERNS)
def test_run_equals_all_rows_computed_and_sliced(name):
    pattern = PATTERNS[name]
    encoder = shaken(Encoder(**TINY, init_values=0.5).double())
    rows = torch.randn(2, pattern.rows, 24, dtype=torch.float64)
    plain = rows
    for block in encoder.blocks:
        plain = plain_block(block, plain, pattern.visible)
    plain, count = encoder.norm(plain), len(pattern.predict)
    readable = Visible(pattern.visible[:, : pattern.keys])
    torch.testing.assert_close(encoder.run(rows, readable), plain, atol=1e-10, rtol=0)
    torch.testing.assert_close(encoder.run(rows, readable, count), plain[:, -count:], atol=1e-10, rtol=0)
    torch.testing.assert_close(
        encoder.float().run(rows.float(), readable, count).double(), plain[:, -count:], atol=2e-5, rtol=0
    )


@pytest.mark.parametrize("name", [name for name, pattern in PATTERNS.items() if pattern.keys < pattern.rows])
def test_unread_rows_influence_only_themselves(name):
    pattern = PATTERNS[name]
    encoder = shaken(Encoder(**TINY))
    rows = torch.randn(1, pattern.rows, 24)
    readable = Visible(pattern.visible[:, : pattern.keys])
    before = encoder.run(rows, readable)
    other = rows.clone()
    other[:, -1] += torch.randn(24)
    after = encoder.run(other, readable)
    assert torch.equal(before[:, :-1], after[:, :-1])
    assert not torch.allclose(before[:, -1], after[:, -1], atol=1e-2)


@pytest.mark.parametrize("masked", [False, True])
def test_permuted_rows_give_permuted_outputs(masked):
    encoder = shaken(Encoder(**TINY).double())
    rows = torch.randn(2, 11, 24, dtype=torch.float64)
    generator = torch.Generator().manual_seed(0)
    permutation = torch.randperm(11, generator=generator)
    visible = (torch.rand(11, 11, generator=generator) < 0.5) | torch.eye(11, dtype=torch.bool) if masked else None
    shuffled = visible[permutation][:, permutation] if masked else None
    straight = encoder.run(rows, Visible(visible) if masked else None)
    torch.testing.assert_close(
        encoder.run(rows[:, permutation], Visible(shuffled) if masked else None),
        straight[:, permutation],
        atol=1e-10,
        rtol=0,
    )
    assert not torch.allclose(straight[:, permutation], straight, atol=1e-2)


@pytest.mark.parametrize(("grid", "dim"), [((3, 5), 8), ((4, 4), 24), ((1, 2), 4)])
def test_sincos_table(grid, dim):
    """As in MAE: for every patch sin, cos of the column, then of the row, at falling frequencies."""
    encoder = Encoder((4 * grid[0], 4 * grid[1]), 4, embed_dim=dim, depth=1, num_heads=1, pos_embed="sincos")
    quarter = dim // 4
    expected = np.zeros((1 + grid[0] * grid[1], dim))
    for row in range(grid[0]):
        for column in range(grid[1]):
            for k in range(quarter):
                rate = 1 / 10000 ** (k / quarter)
                waves = [np.sin(column * rate), np.cos(column * rate), np.sin(row * rate), np.cos(row * rate)]
                expected[1 + row * grid[1] + column, k::quarter] = waves
    np.testing.assert_allclose(encoder.pos_embed[0].numpy(), expected, atol=1e-6)
    assert not encoder.pos_embed.requires_grad
    assert "pos_embed" in encoder.state_dict()


def branches(block, rows):
    """Outputs of a block with each branch (attention, MLP) dropped or doubled."""
    outcomes = []
    for attention in (0, 2):
        inner = rows + attention * block.ls1(block.attn(block.norm1(rows), None, 0))
        outcomes += [inner + mlp * block.ls2(block.mlp(block.norm2(inner))) for mlp in (0, 2)]
    return torch.stack(outcomes)


def with_drop_path():
    return shaken(Encoder(8, 4, embed_dim=8, depth=2, num_heads=2, drop_path_rate=0.5, global_pool="avg")).train()


@pytest.mark.parametrize("seeded", [False, True])
def test_stochastic_depth_keeps_or_drops_a_sample_whole(seeded):
    """The rates are 0 and 1/2: each sample has one of four outcomes, equally often."""
    torch.manual_seed(0)
    encoder, samples = with_drop_path(), 2000
    rows = torch.randn(samples, 5, 8)
    with torch.no_grad():
        found = encoder.run(rows, seed=torch.arange(samples) if seeded else None)
        outcomes = branches(encoder.blocks[1], encoder.blocks[0](rows))
    matches = (outcomes - found).abs().amax((2, 3)) < 1e-4
    assert (matches.sum(0) == 1).all()
    shares = matches.double().mean(1)
    assert (shares - 0.25).abs().max() < 4 * (0.25 * 0.75 / samples) ** 0.5


def test_stochastic_depth_keeps_the_expectation():
    """With a linear last branch, the mean over draws is the output without dropping."""
    torch.manual_seed(1)
    encoder, samples = with_drop_path(), 4000
    row = torch.randn(1, 5, 8)
    with torch.no_grad():
        encoder.blocks[1].mlp.fc2.weight.zero_()
        draws = encoder.run(row.expand(samples, -1, -1))
        plain = encoder.eval().run(row)
    error = draws.std(0) / samples**0.5
    assert ((draws.mean(0) - plain[0]).abs() < 5 * error + 1e-5).all()


def test_stochastic_depth_is_a_function_of_the_seed():
    encoder, rows = with_drop_path(), torch.randn(12, 5, 8)
    seed = torch.arange(12) * 7919
    with torch.no_grad():
        together = encoder.run(rows, seed=seed)
        apart = [encoder.run(rows[part], seed=seed[part]) for part in (slice(5), slice(5, 12))]
        elsewhere = encoder.run(rows, seed=seed + 1)
    torch.testing.assert_close(together, torch.cat(apart), atol=1e-5, rtol=0)
    assert not torch.allclose(together, elsewhere, atol=1e-2)


def test_no_stochastic_depth_in_evaluation():
    encoder, rows = with_drop_path().eval(), torch.randn(6, 5, 8)
    torch.testing.assert_close(encoder.run(rows), encoder.run(rows, seed=torch.arange(6)), atol=0, rtol=0)
    plain = encoder.blocks[1](encoder.blocks[0](rows))
    torch.testing.assert_close(encoder.run(rows), plain, atol=0, rtol=0)


@pytest.mark.parametrize(
    ("changes", "match"),
    [
        ({"img_size": (12, 18)}, "tile"),
        ({"num_heads": 5}, "heads"),
        ({"embed_dim": 6, "num_heads": 2, "pos_embed": "sincos"}, "divisible by 4"),
    ],
)
def test_invalid_sizes(changes, match):
    with pytest.raises(ValueError, match=match):
        Encoder(**{**TINY, **changes})


def test_scaled_weights_scale_the_rows():
    """The values of LayerScale after the product, and the gradients of all that is trained."""
    torch.manual_seed(0)
    linear, scale = torch.nn.Linear(6, 5).double(), LayerScale(5, 0.1).double()
    scale.gamma.data.normal_()
    rows = torch.randn(2, 3, 6, dtype=torch.float64, requires_grad=True)
    trained, given = [rows, linear.weight, linear.bias, scale.gamma], torch.randn(2, 3, 5, dtype=torch.float64)
    found, known = scaled(linear, rows, scale), scale(linear(rows))
    torch.testing.assert_close(found, known)
    torch.testing.assert_close(torch.autograd.grad(found, trained, given), torch.autograd.grad(known, trained, given))
    assert torch.equal(scaled(linear, rows, torch.nn.Identity()), linear(rows))


def test_stochastic_depth_without_seeds_draws_two_factors_for_each_block_and_sample():
    blocks = Encoder(**TINY).train().blocks
    scales = drop_path_scale(blocks, 0.5, 4, None)
    assert [scale.shape for scale in scales] == [(2, 4, 1, 1)] * 3
    assert (scales[0] == 1).all()  # the rate grows from zero


def test_defaults_are_those_of_timms_vit_base():
    from timm.models.vision_transformer import VisionTransformer

    with torch.device("meta"):
        theirs = VisionTransformer(num_classes=0).state_dict()
        ours = Encoder().state_dict()
    assert {name: tensor.shape for name, tensor in ours.items()} == {
        name: tensor.shape for name, tensor in theirs.items()
    }
    encoder = Encoder(img_size=16)
    assert (encoder.num_heads, encoder.init_values, encoder.drop_path_rate, encoder.num_classes) == (12, None, 0.0, 0)
    assert encoder.pos_embed.requires_grad
    assert encoder.global_pool == "token"


def test_a_classifier_without_a_card_has_no_class_names_and_sees_whole_images():
    classifier = Classifier(**TINY, num_classes=3)
    assert classifier.classes == ()
    assert classifier.crop_pct == 1.0


def test_what_stochastic_depth_drops_is_that_of_earlier_versions():
    """So that their runs can be resumed: per block and branch, which of six samples keep it."""
    scales = drop_path_scale(Encoder(**TINY).train().blocks, 0.5, 6, torch.arange(6))
    kept = [["".join(str(int(one > 0)) for one in branch.flatten()) for branch in scale] for scale in scales]
    assert kept == [["111111", "111111"], ["111011", "111011"], ["011001", "001011"]]


def test_streams_of_seeds_are_those_of_earlier_versions():
    """So that their runs can be resumed."""
    found = fork_seed(torch.arange(3), 2)
    assert found.tolist() == [-9041136659058703476, -4838594755968170389, -7745393825145746292]
