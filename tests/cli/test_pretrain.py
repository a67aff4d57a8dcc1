"""Pre-training through the command line, on a folder of images: exact resume, processes, bad images, refusals."""

import csv
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from functools import partial
from pathlib import Path

import pytest
import torch
from PIL import Image

from mapet.cli import main
from mapet.engine.run import Run, load_checkpoint
from processes import Forked, crowd, finished, free_port, stopping, torchrun, wait_for_step

ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1"}
SMALL = [
    "--model",
    "custom",
    "--embed-dim",
    "16",
    "--depth",
    "2",
    "--num-heads",
    "2",
    "--image-size",
    "16",
    "--patch-size",
    "4",
    "--drop-path",
    "0.2",
    "--batch-size",
    "8",
    "--epochs",
    "5",
    "--warmup-epochs",
    "1",
    "--lr",
    "1e-3",
]
STREAMED = ["--cache-gib", "0"]


@pytest.fixture(scope="module")
def tokens(images, tmp_path_factory):
    folder = tmp_path_factory.mktemp("tokenized") / "tokens"
    options = ["--image-size", "16", "--patch-size", "4", "--vocab-size", "16", "--iterations", "3"]
    assert main(["tokenize", "--data", str(images), "--out", str(folder), *options]) == 0
    return folder


@pytest.fixture(scope="module")
def whole(images, tokens, tmp_path_factory):
    """An uninterrupted run of 30 steps."""
    folder = tmp_path_factory.mktemp("runs") / "whole"
    assert main(arguments(images, tokens, folder)) == 0
    return folder


def arguments(images, tokens, out, *more):
    return ["pretrain", "--data", str(images), "--tokens", str(tokens), "--out", str(out), *SMALL, *more]


def answered(process):
    said, complaints = process.communicate()
    return process.returncode, said, complaints


def rows(folder):
    path = Run(folder).metrics
    return list(csv.DictReader(path.open())) if path.is_file() else []


def assert_equal(one, other):
    (step, ours), (theirs_step, theirs) = load_checkpoint(Run(one).last), load_checkpoint(Run(other).last)
    assert step == theirs_step == 30
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(tensor, theirs[name]) for name, tensor in ours.items())
    assert Run(one).metrics.read_bytes() == Run(other).metrics.read_bytes()


def test_thirty_steps_leave_a_complete_folder(whole):
    assert len(rows(whole)) == 30
    assert {path.name for path in whole.iterdir()} >= {
        "recipe.yaml", "metrics.csv", "log.txt", "provenance.json", "checkpoints", "tensorboard"
    }  # fmt: skip
    losses = [float(row["loss"]) for row in rows(whole)]
    assert sum(losses[-5:]) < sum(losses[:5])


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("step", [3, 16])
def test_killed_and_resumed_is_uninterrupted(images, tokens, whole, tmp_path, workers, step):
    """SIGKILL at whatever moment, then --resume: bit-equal to the run that was left alone."""
    out = tmp_path / "killed"
    process = Forked(tmp_path, *arguments(images, tokens, out, *STREAMED, "--workers", str(workers)))
    wait_for_step(out, step, process)
    process.kill()
    process.wait()
    assert main(["pretrain", "--resume", str(out), *STREAMED, "--workers", str(workers)]) == 0
    assert_equal(whole, out)


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_stopped_politely_prints_how_to_go_on(images, tokens, whole, tmp_path, number, code):
    """The one by a true command, the other by a fork."""
    out = tmp_path / "stopped"
    command = arguments(images, tokens, out)
    if number == signal.SIGINT:
        true = [sys.executable, "-m", "mapet", *command]
        process = subprocess.Popen(true, env=ENVIRONMENT, stdout=-1, stderr=-1, text=True)
    else:
        process = Forked(tmp_path, *command)
    wait_for_step(out, 7, process)
    os.kill(process.pid, number)
    ended, said, complaints = process.wait() if isinstance(process, Forked) else answered(process)
    assert ended == code
    assert f"mapet pretrain --resume {out}" in said
    assert "Traceback" not in complaints
    step, _ = load_checkpoint(Run(out).last)
    assert len(rows(out)) == step >= 7
    assert main(["pretrain", "--resume", str(out)]) == 0
    assert_equal(whole, out)


def test_stopped_before_anything_is_there(images, tokens, tmp_path, monkeypatch, capsys):
    """The printed command works: it does not resume a run that was not begun."""

    def stopped(*_):
        raise KeyboardInterrupt

    for step, said in (
        ("validate", "the same command"),
        ("prepare_tokens", f"mapet pretrain --resume {tmp_path / 'out'}"),
    ):
        with monkeypatch.context() as patch:
            patch.setattr(f"mapet.api.pretrain.{step}", stopped)
            assert main(arguments(images, tokens, tmp_path / "out")) == 130
        assert f"resume with: {said}" in capsys.readouterr().out
        assert (tmp_path / "out").exists() == (step == "prepare_tokens")


def test_the_recipe_of_a_run_trains_the_same_again(whole, tmp_path):
    again = tmp_path / "again"
    assert main(["pretrain", "--recipe", str(whole / "recipe.yaml"), "--out", str(again)]) == 0
    assert_equal(whole, again)


def test_machine_settings_do_not_change_the_result(images, tokens, whole, tmp_path):
    out = tmp_path / "other-machine"
    assert main(arguments(images, tokens, out, *STREAMED, "--workers", "1", "--micro-batch-size", "3")) == 0
    ours, theirs = rows(whole), rows(out)
    for column in ("loss", "grad_norm"):
        a, b = (torch.tensor([float(row[column]) for row in table]) for table in (ours, theirs))
        torch.testing.assert_close(a, b, atol=1e-4, rtol=1e-4)


def losses(folder):
    return torch.tensor([float(row["loss"]) for row in rows(folder)])


def assert_same_losses(one, other):
    assert len(rows(other)) == 30
    torch.testing.assert_close(losses(one), losses(other), atol=1e-5, rtol=0)


def test_two_nodes_are_one_process(images, tokens, whole, tmp_path):
    """Two launchers on one machine, gloo between them: the same losses, stochastic depth and jitter included."""
    out, port = tmp_path / "two", free_port()
    options = [*arguments(images, tokens, out), "--num-nodes", "2", "--accelerator", "cpu"]
    nodes_at = ["--nnodes", "2", "--nproc-per-node", "1", "--master-addr", "127.0.0.1", "--master-port", port]
    nodes = [["--node-rank", str(rank), *nodes_at, "-m", "mapet", *options] for rank in range(2)]
    finished([Forked(tmp_path, work=partial(torchrun, *node), OMP_NUM_THREADS="1") for node in nodes])
    assert_same_losses(whole, out)
    assert "steps of 8 = 2 devices × 4, lr 1.00e-03" in Run(out).log.read_text()


def test_a_finished_run_that_is_resumed_says_so_first(whole, tmp_path, capsys):
    run = Run(shutil.copytree(whole, tmp_path / "run"))
    assert "finished" not in run.log.read_text()
    before = run.last.read_bytes()
    capsys.readouterr()
    assert main(["pretrain", "--resume", str(run.folder)]) == 0
    first = capsys.readouterr().out.splitlines()[0]
    assert re.fullmatch(r"finished  all \d+ steps were done before: nothing is left to train", first)
    assert run.last.read_bytes() == before


def test_sharded_over_two_nodes_stopped_and_gone_on_with_by_one_process(images, tokens, whole, tmp_path, capsys):
    """Four processes, weights spread over them; the checkpoint in parts serves every other verb."""
    out, runtime = (
        tmp_path / "four",
        ["--devices", "2", "--num-nodes", "2", "--strategy", "fsdp", "--micro-batch-size", "1"],
    )
    command = partial(main, [*arguments(images, tokens, out), *runtime, "--accelerator", "cpu"])
    processes = crowd(tmp_path / "said", 4, command, nodes=2)
    while len(rows(out)) < 3 and not any(process.ended() for process in processes):
        time.sleep(0.05)
    for process in processes:
        os.kill(process.pid, signal.SIGTERM)
    ends = [process.wait() for process in processes]
    assert {code for code, _, _ in ends} == {143}, ends
    assert all("--strategy fsdp --micro-batch-size 1" in said for _, said, _ in ends)
    assert "steps of 8 = 4 devices × 2 parts × 1, lr 1.00e-03" in Run(out).log.read_text()
    assert len(json.loads((Run(out).last / "index.json").read_text())["files"]) == 4
    assert main(["knn", "--run", str(out), "--data", str(images)]) == 0
    assert main(["export", str(out), "--to", "timm", "--out", str(tmp_path / "export")]) == 0
    assert json.loads((out / "scores.json").read_text())[0]["step"] == Run(out).completed < 30
    assert main(["pretrain", "--resume", str(out), "--micro-batch-size", "3"]) == 0
    assert "steps of 8 = 3 parts × at most 3, lr 1.00e-03" in Run(out).log.read_text()
    assert_same_losses(whole, out)


def srun():
    """The variables of a step with two tasks, as srun sets them for the one of that rank."""
    step = {"STEP_NUM_TASKS": "2", "NTASKS": "2", "NTASKS_PER_NODE": "2", "NNODES": "1", "NODEID": "0"}
    step |= {"JOB_ID": "1234", "NODELIST": "127.0.0.1", "JOB_NAME": "bash"}
    return [{f"SLURM_{n}": v for n, v in {**step, "PROCID": rank, "LOCALID": rank}.items()} for rank in "01"]


def test_two_tasks_of_slurm_are_one_process(images, tokens, whole, tmp_path):
    out, port = tmp_path / "two", free_port()
    command = partial(main, [*arguments(images, tokens, out), "--devices", "2", "--accelerator", "cpu"])
    finished([Forked(tmp_path, work=command, MASTER_PORT=port, **task) for task in srun()])
    assert_same_losses(whole, out)


def test_other_settings_on_resume_are_refused(whole, capsys):
    assert main(["pretrain", "--resume", str(whole), "--seed", "6"]) == 2
    assert "seed = 0" in capsys.readouterr().err


@pytest.mark.parametrize("options", [["--out", "other"], ["--overwrite"]])
def test_options_of_a_new_run_on_resume_are_refused(whole, tmp_path, monkeypatch, capsys, options):
    monkeypatch.chdir(tmp_path)
    assert main(["pretrain", "--resume", str(whole), *options]) == 2
    message = capsys.readouterr().err
    assert f"{' '.join(options)} does not apply to --resume, which continues" in message
    assert message.count("\n") == 1
    assert not list(tmp_path.iterdir())
    assert main(["pretrain", "--resume", str(whole), "--out", str(whole)]) == 0


@pytest.mark.parametrize("verb", ["pretrain", "finetune random", "tokenizer train-vqkd", "tokenize", "pack"])
def test_results_among_the_images_are_refused(images, tmp_path, capsys, verb):
    data = shutil.copytree(images, tmp_path / "data")
    model = ["--model", "vit_tiny"] if verb.startswith("finetune") else []
    assert main([*verb.split(), "--data", str(data), "--out", str(data / "along" / "run"), *model]) == 2
    message = capsys.readouterr().err
    assert f"--out {data / 'along' / 'run'} is inside --data {data}" in message
    assert message.count("\n") == 1
    assert not (data / "along" / "run").exists()


def test_a_folder_in_use_is_refused(images, tokens, whole, capsys):
    before = Run(whole).metrics.read_bytes()
    assert main(arguments(images, tokens, whole)) == 2
    message = capsys.readouterr().err
    assert "--resume" in message
    assert "--overwrite" in message
    assert Run(whole).metrics.read_bytes() == before


def test_a_run_is_trained_by_one_command_at_a_time(images, tokens, whole, capsys):
    files = {path: path.read_bytes() for path in whole.rglob("*") if path.is_file()}
    with Run(whole).lock():
        for command in (["pretrain", "--resume", str(whole)], arguments(images, tokens, whole, "--overwrite")):
            assert main(command) == 2
            message = capsys.readouterr().err
            assert f"Another process is training in {whole}" in message
            assert message.count("\n") == 1
    assert {path: path.read_bytes() for path in whole.rglob("*") if path.is_file()} == files


def test_a_run_is_begun_by_one_command(images, tokens, tmp_path, capsys):
    out = tmp_path / "run"
    command = arguments(images, tokens, out, "--epochs", "1")
    process = Forked(tmp_path, work=stopping(Run, "create", 1, partial(main, command)))
    process.wait_for_stop()
    for more in ([], ["--overwrite"]):
        assert main([*command, *more]) == 2
        assert f"Another process is training in {out} (process {process.pid} on" in capsys.readouterr().err
    process.go_on()
    finished([process])
    assert len(rows(out)) == Run(out).completed > 0
    assert not (out / ".lock").exists()


@pytest.mark.parametrize("ready", ["tokens", "tokenizer"])
def test_settings_of_a_fit_beside_what_is_ready_are_refused(images, tokens, tmp_path, capsys, ready):
    folder = tokens if ready == "tokens" else tokens / "tokenizer"
    options = ["--data", str(images), f"--{ready}", str(folder), "--out", str(tmp_path / "run"), *SMALL]
    if ready == "tokens":
        assert main(["pretrain", *options, "--teacher-weights", "8.pth"]) == 2
        assert "--teacher-weights only applies when a codebook is fitted" in capsys.readouterr().err
    assert main(["pretrain", *options, "--fit-images", "8"]) == 2
    message = capsys.readouterr().err
    assert f"--fit-images only applies when a codebook is fitted; remove it, or remove --{ready}" in message
    assert message.count("\n") == 1
    assert not (tmp_path / "run").exists()


def test_tokens_of_another_grid_are_refused(images, tokens, tmp_path, capsys):
    assert main(arguments(images, tokens, tmp_path / "run", "--patch-size", "2")) == 2
    message = capsys.readouterr().err
    assert message.count("\n") == 1
    assert "(4, 4)" in message
    assert "(8, 8)" in message


def test_images_without_tokens_are_refused(images, tokens, tmp_path, capsys):
    more = shutil.copytree(images, tmp_path / "more")
    Image.new("RGB", (20, 20)).save(more / "along" / "new.png")
    assert main(arguments(more, tokens, tmp_path / "run")) == 2
    assert "along/new.png" in capsys.readouterr().err


def test_bad_images_are_left_out_counted_and_listed(images, tmp_path, capsys):
    mixed = shutil.copytree(images, tmp_path / "mixed")
    (mixed / "along" / "zero.png").write_bytes(b"")
    (mixed / "along" / "text.jpg").write_text("not an image")
    own = [*SMALL, "--epochs", "1", "--vocab-size", "8", "--iterations", "2"]
    options = ["pretrain", "--data", str(mixed), *own]
    assert main([*options, "--out", str(tmp_path / "refused")]) == 2
    assert "--max-bad-fraction" in capsys.readouterr().err
    assert main([*options, "--out", str(tmp_path / "run"), "--max-bad-fraction", "0.1"]) == 0
    listed = (tmp_path / "run" / "unreadable-images.txt").read_text()
    assert listed.count("\n") == 2
    assert "along/zero.png" in listed
    assert "48 images" in (tmp_path / "run" / "log.txt").read_text()


def test_too_few_images_for_a_batch(images, tokens, tmp_path, capsys):
    assert main(arguments(images, tokens, tmp_path / "run", "--batch-size", "64")) == 2
    message = capsys.readouterr().err
    assert "48" in message
    assert "--batch-size" in message


def test_probes_and_export_of_a_run(whole, images, tmp_path, capsys):
    import timm

    for options in (["knn"], ["linear"], ["linear", "--random"]):
        assert main([options[0], "--run", str(whole), "--data", str(images), *options[1:]]) == 0
    text = capsys.readouterr().out
    assert text.count("top1") == 3
    scores = json.loads((whole / "scores.json").read_text())
    assert [entry["step"] for entry in scores] == [30, 30, 0]
    assert "k-NN, k = 20" in text
    assert main(["export", str(whole), "--to", "timm", "--out", str(tmp_path / "export")]) == 0
    model = timm.create_model(f"local-dir:{tmp_path / 'export'}", pretrained=True).eval()
    from mapet.build.pretrain import load_run_encoder

    pixels = torch.randn(2, 3, 16, 16)
    torch.testing.assert_close(model.forward_features(pixels), load_run_encoder(whole)[0](pixels), atol=1e-5, rtol=0)


def test_unlabelled_images_cannot_be_probed(images, whole, tmp_path, capsys):
    flat = tmp_path / "flat"
    flat.mkdir()
    for number, path in enumerate(sorted(Path(images).rglob("*.png"))):
        shutil.copy(path, flat / f"{number}.png")
    assert main(["knn", "--run", str(whole), "--data", str(flat)]) == 2
    assert "no labels" in capsys.readouterr().err


def test_interrupted_tokenizing_goes_on_where_it_was(images, tokens, tmp_path, monkeypatch, capsys):
    from mapet.tokenizers.store import TokenStore

    def once(self, keys, found):
        append(self, keys, found)
        raise KeyboardInterrupt

    append, options = TokenStore.append, ["--image-size", "16", "--patch-size", "4", "--batch-size", "20"]
    command = ["tokenize", "--data", str(images), "--out", str(tmp_path), *options]
    command += ["--tokenizer", str(tokens / "tokenizer")]
    with monkeypatch.context() as broken:
        broken.setattr(TokenStore, "append", once)
        assert main(command) == 130
    assert len(TokenStore.open(tmp_path)) == 20
    assert main(command) == 0
    ours, theirs = TokenStore.open(tmp_path), TokenStore.open(tokens)
    keys = list(theirs.image_ids())
    assert sorted(keys) == sorted(ours.image_ids())
    assert torch.equal(ours.gather(keys), theirs.gather(keys))


def test_bfloat16_stays_near_float32(images, tokens, whole, tmp_path):
    assert main(arguments(images, tokens, tmp_path / "run", "--precision", "bfloat16")) == 0
    a, b = (torch.tensor([float(row["loss"]) for row in rows(folder)]) for folder in (whole, tmp_path / "run"))
    assert not torch.equal(a, b)
    torch.testing.assert_close(a, b, atol=0.02, rtol=0)


def test_a_moving_average_is_kept_and_probed(images, tokens, tmp_path):
    from mapet.build.pretrain import load_run_encoder

    assert main(arguments(images, tokens, tmp_path / "run", "--ema-decay", "0.9", "--epochs", "1")) == 0
    _, tensors = load_checkpoint(Run(tmp_path / "run").last)
    loaded = load_run_encoder(tmp_path / "run")[0].state_dict()
    for name, tensor in loaded.items():
        assert torch.equal(tensor, tensors[f"ema/encoder.{name}"])
    assert not torch.equal(loaded["pos_embed"], tensors["model/encoder.pos_embed"])


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        (["--teacher", "efficientnet_lite00"], "efficientnet_lite0"),
        (["--batch-size", "64"], "--batch-size"),
        (["--tokens", "/nowhere"], "token store"),
        (["--accelerator", "tpu"], "accelerator"),
        (["--devices", "2"], "mapet tokenize"),
    ],
)
def test_what_cannot_work_is_reported_before_anything_is_written(images, tmp_path, capsys, wrong, said):
    assert main(["pretrain", "--data", str(images), "--out", str(tmp_path / "run"), *SMALL, *wrong]) == 2
    assert said in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


def test_an_out_that_is_a_file_is_one_line(images, tokens, tmp_path, capsys):
    (tmp_path / "file").write_text("")
    assert main(arguments(images, tokens, tmp_path / "file" / "run")) == 2
    assert capsys.readouterr().err.count("\n") == 1


def test_other_images_on_resume_are_refused(images, tokens, tmp_path, capsys):
    mine, own = shutil.copytree(images, tmp_path / "mine"), shutil.copytree(tokens, tmp_path / "tokens")
    assert main(arguments(mine, own, tmp_path / "run", "--epochs", "1")) == 0
    (mine / "along" / "00.png").unlink()
    assert main(["pretrain", "--resume", str(tmp_path / "run")]) == 2
    assert "other images or tokens" in capsys.readouterr().err


def test_more_processes_than_devices_are_refused(images, tokens, tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert main(arguments(images, tokens, tmp_path / "run")) == 2
    assert "--devices" in capsys.readouterr().err


def test_settings_unlike_a_started_tokenization_are_refused(images, tokens, capsys):
    command = ["tokenize", "--data", str(images), "--out", str(tokens), "--image-size", "16", "--vocab-size", "16"]
    assert main([*command, "--patch-size", "8"]) == 2
    assert "grid" in capsys.readouterr().err
    assert main([*command, "--patch-size", "4", "--vocab-size", "8"]) == 2
    assert "vocab_size 16, not 8" in capsys.readouterr().err


def test_the_share_of_bad_images_is_of_those_asked_for(images, tmp_path, capsys):
    mixed = shutil.copytree(images, tmp_path / "mixed")
    for path in mixed.rglob("*.png"):
        path.write_bytes(b"")
    options = [
        "--image-size",
        "16",
        "--patch-size",
        "4",
        "--vocab-size",
        "8",
        "--max-images",
        "4",
        "--max-bad-fraction",
        "0.5",
    ]
    assert main(["tokenize", "--data", str(mixed), "--out", str(tmp_path / "tokens"), *options]) == 2
    assert "3 of 4 images" in capsys.readouterr().err
