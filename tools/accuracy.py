"""Draw ``accuracy.png`` of finished comparisons again.

    python tools/accuracy.py results/cifar10

From the CSV files in their folders alone.
"""

import sys
from pathlib import Path

from mapet.api.report.comparison import accuracy_figure
from mapet.viz.figures import save

if __name__ == "__main__":
    for folder in map(Path, sys.argv[1:]):
        print(save(accuracy_figure(folder), folder / "accuracy.png"))
