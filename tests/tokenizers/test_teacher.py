import shutil
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from PIL import Image
from safetensors.torch import save_file
from torch import nn
from torch.nn import BatchNorm2d

from mapet.interop.timm import to_timm
from mapet.method.encoder import Encoder
from mapet.tokenizers.batch_norm import fold_batch_norms
from mapet.tokenizers.teacher import TOGETHER, Teacher, open_teacher
from mapet.tokenizers.timm_backbone import build, stages
from mapet.utils.errors import MapetError
from mapet.utils.view import CenterCropResize


def sample_images(teacher: Teacher, count: int = 2) -> torch.Tensor:
    return torch.rand(count, 3, *teacher.view.size, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize(
    ("name", "grid", "stage", "size", "width"),
    [
        ("efficientnet_lite0", (4, 4), None, (64, 64), 112),
        ("efficientnet_lite0", (2, 3), 4, (64, 96), 320),
        ("resnet10t", (2, 4), None, (64, 128), 512),
        ("resnet10t.c3_in1k", (4, 4), 3, (64, 64), 256),
        ("vit_tiny_patch16_224", (3, 2), None, (48, 32), 192),
        ("vit_tiny_patch16_224", (2, 2), 1, (32, 32), 192),
        ("convnext_atto", (2, 2), None, (64, 64), 320),
        ("vit_small_patch14_dinov2", (2, 3), None, (28, 42), 384),
        ("vit_small_patch14_reg4_dinov2.lvd142m", (2, 2), 5, (28, 28), 384),
        ("vit_small_patch16_dinov3", (2, 3), None, (32, 48), 384),
        ("vit_xsmall_patch16_clip_224.tinyclip_yfcc15m", (2, 2), None, (32, 32), 256),
    ],
)
def test_every_kind_of_tower_lands_on_the_grid(name: str, grid, stage, size, width: int) -> None:
    teacher = Teacher(name, grid, stage=stage, pretrained=False)
    features = teacher(sample_images(teacher))
    assert features.shape == (2, grid[0] * grid[1], width)
    assert (teacher.width, teacher.view) == (width, CenterCropResize(size, "bicubic"))
    assert not features.requires_grad
    assert not teacher.train().tower.training


def test_random_weights_are_the_same_each_time_and_draw_nothing():
    found = []
    for seed in (1, 2):
        torch.manual_seed(seed)
        state = torch.get_rng_state()
        found.append(Teacher("resnet10t", (1, 1), pretrained=False).state_dict())
        assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(one, found[1][name]) for name, one in found[0].items())


def test_the_offline_teacher_is_trained() -> None:
    teacher, random = Teacher("efficientnet_lite0", (4, 4)), Teacher("efficientnet_lite0", (4, 4), pretrained=False)
    assert (teacher.stage, teacher.width, teacher.origin) == (3, 112, "published")
    assert teacher.describe()["weights"] != random.describe()["weights"]
    norms = [module for module in build("efficientnet_lite0", None, True).modules() if isinstance(module, BatchNorm2d)]
    assert len(norms) > 20
    assert all(float(norm.running_var.std()) > 0 and float(norm.running_mean.std()) > 0 for norm in norms)


def test_batch_norms_are_folded_without_changing_the_features(monkeypatch: pytest.MonkeyPatch) -> None:
    """More than one part of ``TOGETHER`` images, whose features do not depend on the parts."""
    teacher = Teacher("efficientnet_lite0", (4, 4))
    monkeypatch.setattr("mapet.tokenizers.teacher.fold_batch_norms", lambda *given: None)
    plain = Teacher("efficientnet_lite0", (4, 4))
    count = [sum(isinstance(one, BatchNorm2d) for one in each.tower.modules()) for each in (teacher, plain)]
    assert count[0] == 0 < count[1]
    assert teacher.describe() == plain.describe()
    images = sample_images(plain, 2 * TOGETHER + 3)
    expected = torch.cat([plain._map(image[None]).flatten(2).transpose(1, 2) for image in images])
    assert torch.allclose(teacher(images), expected, rtol=1e-4, atol=1e-4 * float(expected.std()))


class Reused(nn.Module):
    """A convolution whose output two modules read."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(3, 4, 1), BatchNorm2d(4)
        nn.init.constant_(self.norm.running_mean, 2.0)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        found = self.conv(images)
        return self.norm(found) + found


def test_a_norm_is_not_folded_where_others_read_the_convolution_too() -> None:
    network, images = Reused().eval(), torch.rand(2, 3, 4, 4)
    before = network(images)
    fold_batch_norms(network, network, images)
    assert torch.equal(network(images), before)
    assert isinstance(network.norm, BatchNorm2d)


def test_features_are_timms_own_in_row_major_order() -> None:
    teacher = Teacher("resnet10t", (2, 3), pretrained=False)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        theirs = timm.create_model("resnet10t", pretrained=False).eval()
    images = sample_images(teacher)
    mean, std = (torch.tensor(theirs.pretrained_cfg[key]).view(3, 1, 1) for key in ("mean", "std"))
    with torch.no_grad():
        wanted = theirs.forward_features((images - mean) / std)
    found = teacher(images)
    for row in range(2):
        for column in range(3):
            torch.testing.assert_close(found[:, 3 * row + column], wanted[:, :, row, column], rtol=1e-4, atol=1e-4)


def test_a_clip_resnet_gives_its_last_stage_before_attention_pooling() -> None:
    teacher = Teacher("resnet50_clip", (2, 2), pretrained=False)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        theirs = timm.create_model("resnet50_clip", pretrained=False).eval()
    images = sample_images(teacher, 1)
    with torch.no_grad():
        wanted = theirs.stages(theirs.stem((images - teacher.mean) / teacher.std))
    torch.testing.assert_close(teacher(images), wanted.flatten(2).transpose(1, 2), rtol=1e-4, atol=1e-4)
    assert (wanted >= 0).all()  # after the rectifier, not normalised


def test_the_published_teacher_gives_196_features_of_4096_channels_for_any_picture() -> None:
    """RN50x64's outline alone, which computes shapes: what a teacher of it does, without 420 million weights."""
    pairs = stages("resnet50x64_clip.openai")
    assert pairs[-1] == (4096, 32)
    with torch.device("meta"):
        outline = timm.create_model("resnet50x64_clip.openai").eval()
    assert outline.pretrained_cfg["interpolation"] == "bicubic"
    assert outline.pretrained_cfg["mean"][0] == pytest.approx(0.4815, abs=1e-4)  # CLIP's own, not ImageNet's
    view = CenterCropResize((14 * pairs[-1][1],) * 2, "bicubic")
    assert view.size == (448, 448)
    for size in ((31, 1000), (448, 448), (900, 601)):
        assert view(Image.new("RGB", size)).size == (448, 448)
    (features,) = outline.forward_intermediates(
        torch.empty(2, 3, 448, 448, device="meta"), indices=[4], norm=False, intermediates_only=True
    )
    assert features.shape == (2, 4096, 14, 14)


@pytest.mark.parametrize("name", ["vit_xsmall_patch16_clip_224", "vit_tiny_patch16_224"])
@pytest.mark.parametrize("output", ["norm", "head"])
def test_final_norm_and_head_for_every_patch(name: str, output: str) -> None:
    """With CLIP these are the projected tokens that the published VQ-KD learns."""
    teacher, plain = (Teacher(name, (14, 14), output=one, pretrained=False) for one in (output, "stage"))
    with torch.random.fork_rng():
        torch.manual_seed(0)
        theirs: Any = timm.create_model(name).eval()
    images = sample_images(teacher, 1)
    with torch.no_grad():
        wanted = theirs.forward_features((images - teacher.mean) / teacher.std)[:, 1:]
        wanted = theirs.head(wanted) if output == "head" else wanted
    found = teacher(images)
    assert teacher.width == found.shape[2]
    torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-4)
    assert teacher.describe() == {**plain.describe(), "output": output, "width": teacher.width}


def test_outputs_that_a_tower_does_not_have_are_explained() -> None:
    for name, options, said in (
        ("resnet10t", {"output": "head"}, 'resnet10t has no output "head" at stage 4'),
        ("vit_tiny_patch16_224", {"output": "norm", "stage": 3}, 'has no output "norm" at stage 3'),
        ("vit_small_patch14_dinov2", {"output": "head"}, '"head" also a linear head'),
        ("vit_tiny_patch16_224", {"output": "haed"}, 'Did you mean "head"'),
    ):
        with pytest.raises(MapetError, match=said):
            Teacher(name, (2, 2), pretrained=False, **options)
    with pytest.raises(MapetError, match="remove these settings"):
        open_teacher("pixels", (2, 2), output="norm")


def test_pixels_are_the_patches_row_by_row() -> None:
    teacher = open_teacher("pixels", (2, 3), patch_size=4)
    assert (teacher.width, teacher.view, teacher.grid) == (48, CenterCropResize((8, 12)), (2, 3))
    images = torch.rand(2, 3, 8, 12, generator=torch.Generator().manual_seed(0))
    features = teacher(images)
    assert features.shape == (2, 6, 48)
    for row in range(2):
        for column in range(3):
            patch = images[:, :, 4 * row : 4 * row + 4, 4 * column : 4 * column + 4]
            assert torch.equal(features[:, 3 * row + column], patch.flatten(1))
    with pytest.raises(MapetError, match="has no stages, outputs or weights"):
        open_teacher("pixels", (2, 3), stage=0)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Encoder]:
    """What a run's folder holds after an export."""
    encoder = Encoder((16, 16), 4, embed_dim=16, depth=3, num_heads=2).eval()
    folder = tmp_path_factory.mktemp("run")
    (folder / "recipe.yaml").write_text("")
    to_timm(encoder, folder / "export" / "timm", mean=(0.5, 0.4, 0.3), std=(0.2, 0.3, 0.4))
    return folder, encoder


def test_a_run_of_our_own_teaches_by_its_last_block(run: tuple[Path, Encoder]) -> None:
    folder, encoder = run
    teacher = Teacher(str(folder), (4, 4))
    assert (teacher.width, teacher.view.size, teacher.stage, teacher.origin) == (16, (16, 16), 2, "published")
    assert teacher.source == str(folder / "export" / "timm")
    images = sample_images(teacher)
    encoder.norm = torch.nn.Identity()
    with torch.no_grad():
        mean, std = torch.tensor([0.5, 0.4, 0.3]).view(3, 1, 1), torch.tensor([0.2, 0.3, 0.4]).view(3, 1, 1)
        wanted = encoder((images - mean) / std)[:, 1:]
    torch.testing.assert_close(teacher(images), wanted, rtol=1e-4, atol=1e-5)
    same = Teacher(str(folder / "export" / "timm"), (4, 4))
    assert same.describe() == teacher.describe()
    assert Teacher(str(folder), (8, 8)).view.size == (32, 32)


def test_a_run_that_cannot_teach_is_explained(run: tuple[Path, Encoder], tmp_path: Path) -> None:
    (tmp_path / "recipe.yaml").write_text("")
    with pytest.raises(MapetError, match=f"mapet export {tmp_path} --to timm"):
        Teacher(str(tmp_path), (4, 4))
    broken = shutil.copytree(run[0] / "export" / "timm", tmp_path / "broken")
    (broken / "model.safetensors").write_bytes(b"{}")
    with pytest.raises(MapetError, match="is damaged: write it again with mapet export"):
        Teacher(str(broken), (4, 4))
    (broken / "config.json").write_text("{}")
    with pytest.raises(MapetError, match="There is no teacher"):
        Teacher(str(broken), (4, 4))


def test_random_weights_are_fixed_and_leave_the_global_state_alone() -> None:
    torch.manual_seed(5)
    wanted = torch.rand(3)
    torch.manual_seed(5)
    hashes = {Teacher("resnet10t", (g, g), pretrained=False).describe()["weights"] for g in (1, 2)}
    assert torch.equal(torch.rand(3), wanted)
    assert len(hashes) == 1


def test_the_hash_of_a_vit_does_not_depend_on_the_grid() -> None:
    one, other = (Teacher("vit_tiny_patch16_224", (g, g), pretrained=False).describe() for g in (2, 14))
    assert one["weights"] == other["weights"]
    assert one["grid"] != other["grid"]


@pytest.mark.parametrize("suffix", [".safetensors", ".pth"])
def test_local_weights_are_used(tmp_path: Path, suffix: str) -> None:
    tower, file = timm.create_model("resnet10t"), tmp_path / f"mine{suffix}"
    save_file(tower.state_dict(), file) if suffix == ".safetensors" else torch.save(tower.state_dict(), file)
    assert Teacher("resnet10t", (2, 2), weights=file).origin == file.name
    assert torch.equal(build("resnet10t", file, True).conv1[0].weight, tower.conv1[0].weight)


def test_files_that_are_not_the_weights_are_explained(tmp_path: Path) -> None:
    def refusal(file: Path, content: Any = None) -> str:
        if isinstance(content, bytes):
            file.write_bytes(content)
        elif content is not None:
            torch.save(content, file)
        with pytest.raises(MapetError) as caught:
            Teacher("resnet10t", (2, 2), weights=file)
        assert "\n" not in str(caught.value)
        return str(caught.value)

    assert "There is no weights file" in refusal(tmp_path / "none.pth")
    assert "it is empty" in refusal(tmp_path / "empty.pth", b"")
    assert "starts with" in refusal(tmp_path / "image.pth", b"\x89PNG\r\n\x1a\n123")
    assert "starts with" in refusal(tmp_path / "image.safetensors", b"\x89PNG\r\n\x1a\n123")
    assert "more than tensors" in refusal(tmp_path / "object.pth", {"view": CenterCropResize((1, 1))})
    assert "does not hold a state dict" in refusal(tmp_path / "number.pth", {"epoch": 3})
    other = timm.create_model("vit_tiny_patch16_224", depth=1).state_dict()
    assert f'resnet10t ({tmp_path / "other.pth"}): they lack "conv1.0.weight"' in refusal(tmp_path / "other.pth", other)
    own = timm.create_model("resnet10t").state_dict()
    part = {name: tensor for name, tensor in own.items() if name != "layer2.0.conv1.weight"}
    assert 'they lack "layer2.0.conv1.weight"' in refusal(tmp_path / "part.pth", part)
    other = own | {"layer2.0.conv1.weight": torch.zeros(3, 4)}
    assert '"layer2.0.conv1.weight" is (3, 4), not (128, 64, 3, 3)' in refusal(tmp_path / "shape.pth", other)


@pytest.mark.parametrize("classes", [0, 10])
@pytest.mark.parametrize("name", ["resnet10t", "vit_tiny_patch16_224"])
def test_no_head_or_another_one_does_not_matter(tmp_path: Path, name: str, classes: int) -> None:
    tower = timm.create_model(name, num_classes=classes).eval()
    save_file(tower.state_dict(), tmp_path / "mine.safetensors")
    teacher = Teacher(name, (14, 14) if "vit" in name else (7, 7), weights=tmp_path / "mine.safetensors")
    images = sample_images(teacher, 1)
    with torch.no_grad():
        inside = (images - teacher.mean) / teacher.std
        (wanted,) = tower.forward_intermediates(inside, indices=[teacher.stage], norm=False, intermediates_only=True)
    torch.testing.assert_close(teacher(images), wanted.flatten(2).transpose(1, 2), rtol=1e-4, atol=1e-4)


def test_weights_beside_a_run_are_refused_not_ignored(run: tuple[Path, Encoder], tmp_path: Path) -> None:
    save_file(run[1].state_dict(), tmp_path / "other.safetensors")
    for folder in (run[0], run[0] / "export" / "timm"):
        with pytest.raises(MapetError, match="has its own weights: remove teacher_weights"):
            Teacher(str(folder), (4, 4), weights=tmp_path / "other.safetensors")


def test_weights_of_ones_own_go_before_those_of_a_hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tower = timm.create_model("resnet10t")
    save_file(tower.state_dict(), tmp_path / "mine.safetensors")
    found = {**tower.pretrained_cfg, "hf_hub_id": "someone/tower", "source": "hf-hub"}
    monkeypatch.setattr("timm.models._factory.load_model_config_from_hf", lambda *_, **__: (found, "resnet10t", {}))
    teacher = Teacher("hf-hub:someone/tower", (2, 2), weights=tmp_path / "mine.safetensors")
    images = sample_images(teacher)
    expected = tower.eval().forward_intermediates((images - teacher.mean) / teacher.std, intermediates_only=True)[-1]
    assert torch.allclose(teacher(images).flatten(), expected.movedim(1, -1).flatten(), rtol=1e-3, atol=1e-4)


def test_what_does_not_exist_or_fit_is_explained(monkeypatch: pytest.MonkeyPatch) -> None:
    def refusal(*arguments: Any, **options: Any) -> str:
        with pytest.raises(MapetError) as caught:
            Teacher(*arguments, **options)
        assert "\n" not in str(caught.value)
        return str(caught.value)

    assert 'Did you mean "resnet' in refusal("resnet5O_clip", (2, 2))
    assert 'Did you mean "efficientnet_lite0"' in refusal("efficientnetlite0", (2, 2))
    assert "Known: efficientnet_lite0" in refusal("??", (2, 2))
    assert "no stage 9" in refusal("resnet10t", (2, 2), stage=9)
    assert "stage 4: stride 32, grid 7x7" in refusal("resnet10t", (2, 2), stage=9)
    assert "stages 0 to 11: stride 16, grid 14x14" in refusal("vit_tiny_patch16_224", (2, 2), stage=12)
    mixer = refusal("mixer_s32_224", (2, 2), pretrained=False)
    assert "cannot give a grid of 2x2" in mixer
    assert "grid 7x7" in mixer

    build = timm.create_model

    def offline(name: str, pretrained: bool = False, **options: Any) -> Any:
        if pretrained:
            raise OSError("no route")
        return build(name, **options)

    monkeypatch.setattr(timm, "create_model", offline)
    text = refusal("resnet10t", (2, 2))
    assert "cannot be downloaded" in text
    assert "give model.safetensors of timm/resnet10t" in text
    assert "teacher_weights FILE" in text
