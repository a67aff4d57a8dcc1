"""Draw the figures of finished comparisons again.

    python tools/figures.py results/cifar10

From the CSV files in their folders alone.
"""

import sys
from pathlib import Path

from mapet.api.report.comparison import accuracy_figure, curves_figure
from mapet.viz.figures import save

if __name__ == "__main__":
    for folder in map(Path, sys.argv[1:]):
        print(save(accuracy_figure(folder), folder / "accuracy.png"))
        if while_training := curves_figure(folder):
            print(save(while_training, folder / "knn-while-training.png"))
