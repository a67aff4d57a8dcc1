"""Which process this is, and its share of the work."""

import os

import pytest
import torch

from mapet.utils.process_group import Launched, ProcessGroup, first_process, launched, processes_here

VARIABLES = [
    ({}, Launched(1, 0, 0), 1),
    ({"WORLD_SIZE": "4", "RANK": "3", "LOCAL_RANK": "1", "LOCAL_WORLD_SIZE": "2"}, Launched(4, 3, 1), 2),
    ({"WORLD_SIZE": "4", "LOCAL_RANK": "1"}, Launched(4, 1, 1), 1),
    ({"WORLD_SIZE": "4"}, Launched(4, 0, 0), 1),
    ({"SLURM_NTASKS": "4", "SLURM_PROCID": "2", "SLURM_NTASKS_PER_NODE": "4"}, Launched(1, 0, 0), 1),
    ({"SLURM_STEP_NUM_TASKS": "1", "SLURM_PROCID": "2", "SLURM_NTASKS_PER_NODE": "4"}, Launched(1, 0, 0), 1),
    (
        {"SLURM_STEP_NUM_TASKS": "6", "SLURM_PROCID": "5", "SLURM_LOCALID": "2", "SLURM_NTASKS_PER_NODE": "3"},
        Launched(6, 5, 2),
        3,
    ),
    ({"SLURM_STEP_NUM_TASKS": "2", "SLURM_PROCID": "0", "SLURM_LOCALID": "0"}, Launched(2, 0, 0), 1),
    ({"WORLD_SIZE": "2", "RANK": "1", "SLURM_STEP_NUM_TASKS": "8", "SLURM_PROCID": "5"}, Launched(2, 1, 0), 1),
]


@pytest.mark.parametrize(("variables", "expected", "here"), VARIABLES)
def test_launchers_say_which_process_this_is(monkeypatch, variables, expected, here):
    for name in [name for name in os.environ if name.startswith("SLURM_") or name.endswith(("RANK", "WORLD_SIZE"))]:
        monkeypatch.delenv(name)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    assert (launched(), processes_here(), first_process()) == (expected, here, expected.rank == 0)


@pytest.mark.parametrize("count", [1, 2, 3, 7])
def test_shares_are_contiguous_and_of_equal_length_up_to_one(count):
    shares = [ProcessGroup(rank, count).share(torch.arange(11)) for rank in range(count)]
    assert torch.cat(shares).tolist() == list(range(11))
    assert max(map(len, shares)) - min(map(len, shares)) <= 1
    assert [ProcessGroup(rank, count).leads for rank in range(count)] == [True] + [False] * (count - 1)


def test_a_single_process_leads_and_has_all_of_it():
    alone = ProcessGroup()
    assert alone.leads
    assert alone.share(torch.arange(3)).tolist() == alone.sum(torch.arange(3)).tolist() == [0, 1, 2]
    alone.wait()
