"""Settings of the machine: how something runs, not what comes out."""

from typing import Annotated, Literal

from pydantic import BeforeValidator, Field

from mapet.config.setting import Count, Option, PathText, Rate, Share, require, settings

OrNone = BeforeValidator(lambda value: value or "none")  # "" stood for none
Accelerator = Literal["auto", "cpu", "cuda", "mps"]


@settings
class Runtime:
    """Settings that must not change a result, beyond rounding."""

    workers: Annotated[int | None, Field(ge=0), Option(common=True)] = None
    """Processes per device that decode images; None: up to 8 with a GPU (4 with mps), none on a CPU."""
    accelerator: Annotated[Accelerator, Option(common=True)] = "auto"
    """Device type; auto: the best available."""
    devices: Annotated[Count, Option(common=True)] = 1
    """Devices per node; under torchrun, processes per node."""
    num_nodes: Count = 1
    """Number of nodes."""
    strategy: Literal["ddp", "fsdp"] = "ddp"
    """Strategy for several devices: ddp, or fsdp, which shards weights, gradients and optimizer state."""
    micro_batch_size: Annotated[Count | None, Option(old=("micro_batch",), common=True)] = None
    """Largest number of images that a device processes at once, to save memory; None: its share of the batch, or the
    half, quarter … of it that is predicted to fit into memory."""
    compile: bool = False
    """Compile the objective with torch.compile."""
    grad_checkpointing: bool = False
    """Recompute activations in the backward pass, to save memory."""
    save_every: Annotated[int, Field(ge=0)] = 0
    """Keep a checkpoint every so many steps, in addition to the last; 0: only the last."""
    cache_gib: Annotated[Rate, Option(old=("memory",))] = 2.0
    """Keep decoded images in memory if they fit into this many GiB."""
    logger: Annotated[Literal["none", "trackio", "wandb"], OrNone] = "none"
    """Log metrics to trackio or wandb too, which must be installed; metrics.csv and TensorBoard are always written."""
    timeout: Annotated[float, Field(gt=0)] = 30.0
    """Minutes after which several processes no longer wait for one that does not answer."""
    max_bad_fraction: Annotated[Share, Option(old=("max_bad",))] = 0.01
    """Largest fraction of images that may be unreadable."""

    @property
    def processes(self) -> int:
        """Devices on all nodes."""
        return self.devices * self.num_nodes

    def parts(self, batch_size: int) -> int:
        """Micro-batches of each device per step, equal in size up to one image."""
        share = max(1, batch_size // self.processes)
        return -(-share // (self.micro_batch_size or share))


@settings
class PretrainRuntime(Runtime):
    """Settings of a pre-training that must not change its result: also what is measured on the way."""

    probe_every: Annotated[Rate, Option(common=True)] = 0.0
    """Measure what is learned after every so many epochs (fractions allowed) and at the end; 0: not at all."""
    probe_data: Annotated[PathText, Option(common=True)] = ""
    """Labelled images for k-NN at these times; without them --data, if it has a split into train and test."""
    probe_images: Annotated[int, Field(ge=2)] = 2000
    """At most so many images for each measurement: of --data, and of the labelled training and test images."""
    panel_every: Annotated[Rate, Option(common=True)] = 0.0
    """Draw what is predicted of hidden patches after every so many epochs and at the end, in panels/; 0: not at all."""
    keep_best: Annotated[Literal["none", "knn", "rank"], OrNone] = "none"
    """Keep the checkpoint with the best k-NN accuracy or effective rank as checkpoints/best.safetensors."""

    @classmethod
    def of(cls, runtime: Runtime | None) -> "PretrainRuntime":
        """The settings of a runtime of any kind; None: the defaults."""
        return runtime if isinstance(runtime, cls) else cls(**vars(runtime or Runtime()))

    def __post_init__(self) -> None:
        require(
            (self.keep_best == "none" or self.probe_every > 0, "--keep-best needs --probe-every."),
            (not self.probe_data or self.probe_every > 0, "--probe-data needs --probe-every."),
            (self.keep_best == "none" or self.strategy == "ddp", "--keep-best needs --strategy ddp, got fsdp."),
        )
