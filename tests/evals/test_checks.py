"""What the checks of an evaluation's data name."""

import pytest
import torch

from mapet.evals.checks import check, check_batch
from mapet.utils.errors import MapetError


@pytest.mark.parametrize(("missing", "named"), [(5, r"\(1, 2, 3, 4, 5\)"), (6, r"\(1, 2, 3, 4, 5 …\)")])
def test_five_missing_classes_are_named(missing, named):
    classes = 2 + missing
    data = torch.eye(4), torch.tensor([0, 0, classes - 1, classes - 1])
    with pytest.raises(MapetError, match=f"{missing} of {classes} classes have no training image {named}"):
        check(data, data, classes)


def test_batch_norm_needs_two_images():
    check_batch(None)
    check_batch(2)
    with pytest.raises(MapetError, match="batch_size must be >= 2, as batch norm needs statistics, got 1"):
        check_batch(1)
