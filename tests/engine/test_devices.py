"""A run goes on on another device, and a GPU that the installed torch does not support gets one line."""

import pytest
import torch
from lightning_fabric import Fabric
from torch._subclasses.fake_tensor import FakeTensor

from imitation import CUDA, Gpu, on_host
from mapet.engine import fit as loop
from mapet.engine import sharding
from mapet.engine.distributed import pick_device
from mapet.engine.fit import fit
from mapet.engine.run import Run, load_checkpoint
from mapet.utils.errors import MapetError
from toy import Numbers, Toy, optim


@pytest.fixture
def begun(tmp_path):
    """A run of five steps on the CPU, with an average."""
    toy, run = Toy(), Run.create(tmp_path / "run")
    fit(toy, Numbers(5), optim(toy, ema_decay=0.9), Fabric(accelerator="cpu", devices=1), run, seed=7)
    return run


def test_a_run_of_the_cpu_goes_on_on_a_gpu(begun, monkeypatch):
    """Everything that is restored is on the GPU with the dtypes of fused AdamW, whose step then mixes no devices."""
    checkpoint = begun.checkpoint
    monkeypatch.setattr(type(checkpoint), "read", on_host(type(checkpoint).read))
    toy = Toy()
    with Gpu(monkeypatch):
        toy.to(CUDA)
        optimizer = optim(toy).optimizer
        ema = {name: p.detach().clone() for name, p in toy.named_parameters()}
        assert loop._restore(toy, optimizer, ema, begun) == 5
        states = list(optimizer.state.values())
        assert len(states) == len(list(toy.parameters()))
        for parameter, state in optimizer.state.items():
            assert {name: (t.device.type, t.dtype, t.shape) for name, t in state.items()} == {
                "step": ("cuda", torch.float32, torch.Size()),
                "exp_avg": ("cuda", torch.float32, parameter.shape),
                "exp_avg_sq": ("cuda", torch.float32, parameter.shape),
            }
            parameter.grad = torch.zeros_like(parameter)
        assert all(group["fused"] for group in optimizer.param_groups)
        optimizer.step()
        assert all(isinstance(t, FakeTensor) and t.device.type == "cuda" for t in (*toy.parameters(), *ema.values()))


def test_what_a_gpu_saves_has_no_device(begun, monkeypatch):
    """The state of both devices has the same names, shapes and dtypes, so that a CPU reads a GPU's checkpoint."""
    toy = Toy()
    with Gpu(monkeypatch):
        toy.to(CUDA)
        optimizer = optim(toy).optimizer
        for parameter in toy.parameters():
            parameter.grad = torch.zeros_like(parameter)
        optimizer.step()
        state = loop._state(toy, optimizer, {name: p.detach() for name, p in toy.named_parameters()})
        found = {name: (tuple(t.shape), t.dtype) for name, t in state.items()}
    saved = load_checkpoint(begun.last)[1]
    assert found == {name: (tuple(t.shape), t.dtype) for name, t in saved.items()}
    assert sharding.full_tensor(saved["optimizer/0/step"]).item() == 5


def test_the_step_of_another_dtype_and_an_unfused_state_are_read(begun):
    """Versions of torch kept AdamW's step as another dtype; the fused one needs float32."""
    step, tensors = load_checkpoint(begun.last)
    changed = {n: t.double() if n.endswith("/step") else t for n, t in tensors.items()}
    begun.save(step, changed)
    toy = Toy()
    optimizer = optim(toy).optimizer
    loop._restore(toy, optimizer, {name: p.detach().clone() for name, p in toy.named_parameters()}, begun)
    assert {state["step"].dtype for state in optimizer.state.values()} == {torch.float32}
    assert {state["step"].item() for state in optimizer.state.values()} == {5}


@pytest.fixture
def gpu(monkeypatch):
    """A GPU of a capability, and a torch that is built for some."""

    def pretend(capability, *built):
        monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: capability)
        monkeypatch.setattr(torch.cuda, "get_device_name", lambda: "Tesla V100")
        monkeypatch.setattr(torch.cuda, "get_arch_list", lambda: list(built))

    return pretend


NEW = ("sm_75", "sm_80", "sm_86", "sm_90", "sm_100", "sm_120", "compute_120")


@pytest.mark.parametrize(
    ("capability", "built"),
    [((7, 5), NEW), ((8, 0), NEW), ((8, 9), NEW), ((9, 0), NEW), ((10, 3), NEW), ((12, 1), NEW), ((13, 0), NEW),
     ((7, 0), ("sm_70",)), ((9, 0), ("sm_90a",)), ((7, 0), ()), ((9, 0), ("gfx90a",))],
)  # fmt: skip
def test_gpus_with_kernels_are_used(gpu, capability, built):
    gpu(capability, *built)
    assert pick_device("auto").type == pick_device("cuda").type == "cuda"


@pytest.mark.parametrize("accelerator", ["auto", "cuda"])
@pytest.mark.parametrize("capability", [(7, 0), (6, 1), (11, 0)])
def test_a_gpu_without_kernels_is_one_line(gpu, accelerator, capability):
    gpu(capability, *[name for name in NEW if capability[0] < 11 or name.startswith("sm")])
    with pytest.raises(MapetError, match=r"^Tesla V100 \(compute capability .*\) is not supported .*sm_75") as error:
        pick_device(accelerator)
    assert "--accelerator cpu" in error.value.option_text
    assert pick_device("cpu").type == "cpu"
