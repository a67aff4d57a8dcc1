"""Who gets a record."""

import logging
from contextlib import suppress

import pytest

from mapet.utils.log import FABRIC, log, quiet, without_fabric


class Kept(logging.Handler):
    def __init__(self):
        super().__init__()
        self.texts = []

    def emit(self, record):
        self.texts.append(record.getMessage())


@pytest.fixture
def outside(monkeypatch):
    """Handlers of the logger and of the root."""
    ours, root = Kept(), Kept()
    monkeypatch.setattr(log, "handlers", [ours])
    monkeypatch.setattr(logging.getLogger(), "handlers", [root])
    monkeypatch.setattr(log, "level", logging.INFO)
    log.manager._clear_cache()
    return ours, root


def test_what_is_said_quietly_only_new_handlers_get(outside):
    inside = Kept()
    log.info("before")
    with suppress(KeyboardInterrupt), quiet():
        log.addHandler(inside)
        log.info("within")
        raise KeyboardInterrupt
    log.info("after")
    assert [handler.texts for handler in (*outside, inside)] == [["before", "after"]] * 2 + [["within"]]


@pytest.mark.parametrize(("variables", "texts"), [({}, ["said"]), ({"WORLD_SIZE": "2", "RANK": "1"}, [])])
def test_only_rank_0_is_heard(outside, monkeypatch, variables, texts):
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    log.info("said")
    assert [handler.texts for handler in outside] == [texts, texts]


def test_lightning_keeps_all_handlers_but_the_screen(monkeypatch):
    screen, file = logging.StreamHandler(), Kept()
    monkeypatch.setattr(logging.getLogger(FABRIC), "handlers", [screen, file])
    without_fabric()
    assert logging.getLogger(FABRIC).handlers == [file]
