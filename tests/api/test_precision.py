"""``--precision auto`` chooses by the device's instructions, says so, and is recorded; a resume keeps the choice."""

import pytest
import torch

import mapet
from mapet.config.recipe import load
from mapet.engine.precision import fastest_precision

TINY = {
    "objective": "mae", "model": "custom", "embed_dim": 16, "depth": 2, "num_heads": 2, "image_size": 16,
    "patch_size": 4, "epochs": 1, "batch_size": 16, "warmup_epochs": 0, "accelerator": "cpu",
}  # fmt: skip


@pytest.mark.parametrize(
    ("amx", "avx", "chosen"), [(False, False, "float32"), (True, False, "bfloat16"), (False, True, "bfloat16")]
)
def test_it_is_chosen_by_the_processor_and_kept(images, tmp_path, monkeypatch, caplog, amx, avx, chosen):
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: amx)
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: avx)
    with caplog.at_level("INFO", "mapet"):
        run = mapet.pretrain(data=images, out=tmp_path / "run", precision="auto", **TINY)
    assert f"precision {chosen}: this processor" in caplog.text
    assert load(run.recipe).precision == chosen
    for name in ("_is_amx_tile_supported", "_is_avx512_bf16_supported"):
        monkeypatch.setattr(torch.cpu, name, lambda: not (amx or avx))
    assert load(mapet.resume(run.folder, accelerator="cpu").recipe).precision == chosen
    again = mapet.pretrain(data=images, out=tmp_path / "plain", precision=chosen, **TINY)
    assert run.metrics.read_bytes() == again.metrics.read_bytes()


def test_other_devices_have_it_by_their_own_word(monkeypatch):
    assert fastest_precision(torch.device("mps"))[0] == "float32"
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda _: "a GPU")
    for fast, chosen in ((True, "bfloat16"), (False, "float32")):
        monkeypatch.setattr(
            torch.cuda, "is_bf16_supported", lambda including_emulation, fast=fast: fast or including_emulation
        )
        assert fastest_precision(torch.device("cuda"))[0] == chosen


def test_a_comparison_and_show_resolve_it(images, tmp_path, monkeypatch):
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: True)
    compared = mapet.compare(data=images, out=tmp_path / "c", precision="auto", objectives="mae", seeds=1,
                             evaluate="knn", **{k: v for k, v in TINY.items() if k != "objective"})  # fmt: skip
    assert compared.plan.recipe.precision == "bfloat16"
    assert mapet.show(precision="auto", **{k: v for k, v in TINY.items() if k != "accelerator"})
