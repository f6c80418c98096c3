"""Ranks that srun starts: the variables are those of SLURM 22.05, as `srun env` prints them."""

import pytest

from vlm.distributed.launch import first_host, srun_ranks

TASK = {
    "SLURM_JOB_ID": "1234567",
    "SLURM_JOB_NODELIST": "login1,n[1-4]",
    "SLURM_STEP_ID": "0",
    "SLURM_STEP_NODELIST": "n[2-3]",
    "SLURM_STEP_NUM_TASKS": "4",
    "SLURM_NTASKS": "4",
    "SLURM_PROCID": "3",
    "SLURM_LOCALID": "1",
    "SLURM_NODEID": "1",
}


def test_a_task_of_srun_gets_what_torchrun_would_set() -> None:
    assert srun_ranks(TASK) == {
        "WORLD_SIZE": "4",
        "RANK": "3",
        "LOCAL_RANK": "1",
        "MASTER_ADDR": "n2",
        "MASTER_PORT": "27567",
    }


def test_what_is_set_already_is_kept() -> None:
    found = srun_ranks(TASK | {"MASTER_PORT": "12345", "MASTER_ADDR": "10.0.0.7"})
    assert found == {"WORLD_SIZE": "4", "RANK": "3", "LOCAL_RANK": "1"}


@pytest.mark.parametrize(
    "environment",
    [
        {},
        TASK | {"SLURM_STEP_NUM_TASKS": "1", "SLURM_PROCID": "0"},
        TASK | {"WORLD_SIZE": "16", "RANK": "9", "LOCAL_RANK": "1"},
        {"SLURM_JOB_ID": "7", "SLURM_NTASKS": "2", "SLURM_PROCID": "0", "SLURM_LOCALID": "0"},
    ],
    ids=["no SLURM", "one task", "torchrun under srun", "the shell of a batch script"],
)
def test_others_stay_as_they_are(environment: dict[str, str]) -> None:
    assert srun_ranks(environment) == {}


def test_jobs_on_one_node_have_ports_of_their_own() -> None:
    ports = {srun_ranks(TASK | {"SLURM_JOB_ID": str(job)})["MASTER_PORT"] for job in range(500, 700)}
    assert len(ports) == 200


@pytest.mark.parametrize(
    ("node_list", "host"),
    [
        ("n1", "n1"),
        ("n[1-2]", "n1"),
        ("gpu[003,005-007],login1", "gpu003"),
        ("a1,b[2-3]", "a1"),
        ("dgx-a[07]", "dgx-a07"),
        ("rack[1-2]n[01-16]-ib", "rack1n01-ib"),
        ("node-7-[10-12]", "node-7-10"),
    ],
)
def test_rank_0_is_on_the_first_host(node_list: str, host: str) -> None:
    assert first_host(node_list) == host
