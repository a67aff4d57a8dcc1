"""Training a VQ-KD through the command line, on a folder of images: exact resume, processes, refusals."""

import csv
import shutil

import pytest
import torch

from mapet.cli import main
from mapet.engine.run import Run, load_checkpoint
from mapet.tokenizers.tokenizer import load_tokenizer
from processes import under_torchrun

SIZES = {"vocab-size": 32, "code-dim": 8, "image-size": 16, "patch-size": 4, "embed-dim": 16, "depth": 1}
STEPS = {
    "num-heads": 2,
    "decoder-depth": 1,
    "batch-size": 8,
    "epochs": 3,
    "warmup-epochs": 1,
    "lr": 2e-3,
    "decay": 0.9,
    "restart": 0.3,
}
SMALL = [f"--{name}={value}" for name, value in {**SIZES, **STEPS, "accelerator": "cpu"}.items()]


def arguments(data, out, *more):
    return ["tokenizer", "train-vqkd", str(data), "--out", str(out), *SMALL, *more]


def rows(folder):
    return list(csv.DictReader(Run(folder).metrics.open()))


def column(folder, name):
    return torch.tensor([float(row[name]) for row in rows(folder)])


@pytest.fixture(scope="module")
def whole(images, tmp_path_factory):
    """An uninterrupted run of 18 steps."""
    folder = tmp_path_factory.mktemp("vqkd") / "whole"
    assert main(arguments(images, folder)) == 0
    return folder


def test_the_folder_is_a_run_and_a_tokenizer(whole):
    tokenizer = load_tokenizer(whole)
    assert (tokenizer.kind, tokenizer.vocabulary, tokenizer.grid, tokenizer.view.size) == ("vqkd", 32, (4, 4), (16, 16))
    tokens = tokenizer.encode(torch.rand(2, 3, 16, 16))
    assert (tokens.shape, tokens.dtype) == ((2, 16), torch.int64)
    _, checkpoint = load_checkpoint(Run(whole).last)
    assert torch.equal(tokenizer.codes, checkpoint["model/network.codes"])
    assert checkpoint["model/steps"] == 18
    found = tokenizer.provenance
    assert found["images"] == 48
    assert 16 < found["used"] <= 32
    assert found["perplexity"] <= found["used"]
    assert f"{found['used']} of 32 codes used" in (whole / "log.txt").read_text()


def test_the_loss_falls(whole):
    losses = column(whole, "loss")
    assert len(losses) == 18
    assert losses[-6:].mean() < 0.9 * losses[:6].mean()


def test_codes_are_restarted_on_the_way(whole):
    """Else the equalities below would say nothing of restarts: what is used after a dozen steps comes and goes."""
    assert len(column(whole, "used").unique()) > 2


def test_interrupted_and_resumed_is_uninterrupted(images, whole, tmp_path, monkeypatch, capsys):
    def once(self, *arguments, **options):
        save(self, *arguments, **options)
        raise KeyboardInterrupt

    save, out = Run.save, tmp_path / "stopped"
    with monkeypatch.context() as broken:
        broken.setattr(Run, "save", once)
        assert main(arguments(images, out)) == 130
    assert f"mapet tokenizer train-vqkd --resume {out} --accelerator cpu" in capsys.readouterr().out
    assert load_checkpoint(Run(out).last)[0] == 6
    assert not (out / "tokenizer.json").exists()
    assert main(["tokenizer", "train-vqkd", "--resume", str(out)]) == 0
    (step, ours), (_, theirs) = (load_checkpoint(Run(folder).last) for folder in (out, whole))
    assert step == 18
    assert all(torch.equal(tensor, theirs[name]) for name, tensor in ours.items())
    assert Run(out).metrics.read_bytes() == Run(whole).metrics.read_bytes()
    assert load_tokenizer(out).hash == load_tokenizer(whole).hash


def test_machine_settings_do_not_change_the_result(images, whole, tmp_path):
    out = tmp_path / "other-machine"
    assert main(arguments(images, out, "--micro-batch-size", "3", "--workers", "1")) == 0
    for name in ("loss", "grad_norm", "perplexity"):
        torch.testing.assert_close(column(out, name), column(whole, name), atol=1e-4, rtol=1e-4)


def test_two_processes_are_one(images, whole, tmp_path):
    code, _, complaint = under_torchrun(tmp_path, *arguments(images, tmp_path / "two", "--devices", "2"))
    assert code == 0, complaint[-3000:]
    for name in ("loss", "perplexity", "used"):
        torch.testing.assert_close(column(tmp_path / "two", name), column(whole, name), atol=1e-4, rtol=1e-4)
    ours, theirs = (load_tokenizer(folder).codes for folder in (tmp_path / "two", whole))
    torch.testing.assert_close(ours, theirs, atol=1e-4, rtol=0)


def test_teacher_and_tokenizer_see_the_same_part_of_a_image(images):
    """A teacher that says the mean colour of each patch: the tokenizer's own pixels give nearly the same."""
    from lightning_fabric import Fabric

    from mapet.build.vqkd import DistillBatches
    from mapet.data.crop import Crops
    from mapet.data.dataset import open_dataset
    from mapet.data.loader import Shuffled
    from mapet.data.unreadable import UnreadableImages
    from mapet.utils.view import CenterCropResize

    class MeanColour(torch.nn.Module):
        def forward(self, images):
            return torch.nn.functional.avg_pool2d(images, images.shape[-1] // 4).flatten(2).transpose(1, 2)

    source, crops = open_dataset(str(images)), Crops(0, (0.3, 1.0), hflip=0.5)
    common = {"batch_size": 8, "epochs": 1, "seed": 0, "bad": UnreadableImages(len(source)), "crops": crops}
    shuffled = Shuffled(source, CenterCropResize((16, 16)), second=CenterCropResize((64, 64)), **common)
    step = next(DistillBatches(shuffled, MeanColour(), Fabric(accelerator="cpu", devices=1))(0))
    large, seen = next(shuffled()).second, MeanColour()(step["images"])
    assert large.shape == (8, 3, 64, 64)
    assert torch.equal(step["target"], MeanColour()(large / 255))
    assert (step["target"] - seen).abs().mean() < 0.02
    assert (step["target"].roll(1, 0) - seen).abs().mean() > 0.1


def test_pixels_can_teach(images, tmp_path):
    options = ["--teacher", "pixels", "--epochs", "1", "--scale", "None", "--hflip", "0"]
    assert main(arguments(images, tmp_path / "run", *options)) == 0
    assert load_tokenizer(tmp_path / "run").provenance["teacher"]["name"] == "pixels"


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        (["--teacher", "efficientnet_lite00"], "efficientnet_lite0"),
        (["--teacher-stage", "9"], "no stage 9"),
        (["--teacher-output", "head"], 'has no output "head" at stage 3'),
        (["--batch-size", "64"], "--batch-size"),
        (["--lr", "nan"], "--lr must be a finite number, got nan."),
        (["--weight-decay", "inf"], "--weight-decay must be a finite number, got inf."),
        (["--strategy", "fsdp"], "--strategy fsdp"),
        (["--vocab-size", "1000"], "--vocab-size"),
        (["--patch-size", "5"], "--image-size 16"),
        (["--num-heads", "3"], "--embed-dim 16"),
        (["--decay", "1"], "--decay"),
        (["--restart", "0.7"], "--restart"),
        (["--precision", "float16"], "bfloat16"),
        (["--accelerator", "tpu"], "accelerator"),
        (["--data", "/elsewhere"], "DATA and --data are the same"),
    ],
)
def test_what_cannot_work_is_reported_before_anything_is_written(images, tmp_path, capsys, wrong, said):
    assert main(arguments(images, tmp_path / "run", *wrong)) == 2
    message = capsys.readouterr().err
    assert said in message
    assert message.count("\n") == 1
    assert not (tmp_path / "run").exists()


def test_a_folder_in_use_and_other_settings_are_refused(images, whole, capsys):
    before = Run(whole).metrics.read_bytes()
    assert main(arguments(images, whole)) == 2
    assert "--overwrite" in capsys.readouterr().err
    assert main(["tokenizer", "train-vqkd", "--resume", str(whole), "--vocab-size", "16"]) == 2
    assert "vocab_size = 32" in capsys.readouterr().err
    with Run(whole).lock():
        assert main(["tokenizer", "train-vqkd", "--resume", str(whole)]) == 2
    assert "Another process is training in" in capsys.readouterr().err
    assert Run(whole).metrics.read_bytes() == before


def test_other_images_on_resume_are_refused(images, tmp_path, capsys):
    mine, out = shutil.copytree(images, tmp_path / "mine"), tmp_path / "run"
    assert main(arguments(mine, out, "--epochs", "1")) == 0
    (mine / "along" / "00.png").unlink()
    assert main(["tokenizer", "train-vqkd", "--resume", str(out)]) == 2
    assert "other images" in capsys.readouterr().err
