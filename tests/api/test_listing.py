"""What ``mapet list`` shows has names and one sentence each."""

import pytest

from mapet.api.listing import listing
from mapet.utils.errors import MapetError


@pytest.mark.parametrize("what", ["models", "objectives", "recipes", "protocols"])
def test_every_name_has_one_sentence(what):
    found = listing(what)
    assert len(found) > 3
    for name, text in found.items():
        assert text, name
        assert "\n" not in text


def test_another_list_is_refused():
    with pytest.raises(MapetError, match='There is no list of "receipts"'):
        listing("receipts")
