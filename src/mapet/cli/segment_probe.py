"""``mapet segment-probe``: mIoU of a frozen encoder by linear and k-NN classification of its patches."""

from dataclasses import dataclass, field

from mapet.api.segment_probe import SEGMENT_PROTOCOLS, segment_probe
from mapet.cli.options import require
from mapet.cli.output import made
from mapet.cli.probe import parse_from, print_scores, require_from
from mapet.config.segmentation import SegmentProbeSettings


@dataclass(frozen=True)
class Options:
    """Options of ``mapet segment-probe``."""

    run: str = ""
    """FROM: a run or export folder, an official-format checkpoint, or a timm model; the same as FROM."""
    data: str = ""
    """Segmentation set: a folder in ADE20K's layout, or a YAML file that names folders of images and masks."""
    protocols: str = ",".join(SEGMENT_PROTOCOLS)
    """segment-linear, segment-knn, or both, separated by commas."""
    out: str | None = None
    """JSON file to which the scores are added; None: a run's scores.json, and otherwise no file."""
    settings: SegmentProbeSettings = field(default_factory=SegmentProbeSettings)


def command(arguments: list[str]) -> int:
    """Parse, evaluate, print."""
    o = parse_from(Options(), arguments, "segment-probe", "mIoU of a frozen encoder: its patches are classified.")
    require_from(o.run, "segment-probe")
    require("segment-probe", data=o.data)
    found = made(segment_probe(o.run, o.data, o.protocols, out=o.out, settings=o.settings))
    for name, protocol in SEGMENT_PROTOCOLS.items():
        if name in found:
            print_scores(protocol.describe(o.settings), found[name])
    return 0
