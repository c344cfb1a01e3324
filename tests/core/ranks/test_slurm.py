"""What docs/scale.md has SLURM start is what torchrun understands: a script that no test runs on a cluster."""

import re
import shutil
import subprocess
from pathlib import Path

import pytest
from torch.distributed.run import get_args_parser

PAGE = Path(__file__).parents[3] / "docs" / "scale.md"
STANDING_IN = """
scontrol() { [ "$1 $2 $3" = "show hostnames node[7-8]" ] && printf 'node7\\nnode8\\n'; }
srun() { printf '%s\\n' "$OMP_NUM_THREADS" "$@"; }
"""
"""Functions of a shell in place of SLURM's commands; srun says what it was to start."""
OF_SLURM = {
    "SLURM_JOB_ID": "1234567",
    "SLURM_JOB_NODELIST": "node[7-8]",
    "SLURM_NNODES": "2",
    "SLURM_CPUS_PER_TASK": "32",
    "HOME": "/home/me",
    "PATH": "/usr/bin:/bin",
}


@pytest.fixture(scope="module")
def script():
    (found,) = re.findall(r"```\n(#!/bin/bash\n#SBATCH.*?)```", PAGE.read_text("utf-8"), flags=re.DOTALL)
    return found


@pytest.fixture(scope="module")
def started(script):
    """The number of threads, and the words of the command that srun is given."""
    if shutil.which("bash") is None:
        pytest.skip("there is no bash here")
    ended = subprocess.run(
        ["bash", "-euc", STANDING_IN + script], env=OF_SLURM, capture_output=True, text=True, check=True
    )
    return ended.stdout.splitlines()


def test_torchrun_takes_the_options(started):
    threads, *words = started
    at = words.index("torchrun")
    assert words[:at] == ["--cpus-per-task", "32", "--kill-on-bad-exit=1"]
    found = get_args_parser().parse_args(words[at + 1 :])
    assert (found.nnodes, found.nproc_per_node, found.max_restarts) == ("2", "gpu", 0)
    assert (found.rdzv_id, found.rdzv_backend, found.rdzv_endpoint) == ("1234567", "c10d", "node7:24567")
    assert found.module
    assert found.training_script == "ecoflap"
    assert found.training_script_args == ["run", "recipe.yaml", "--folder", "/home/me/runs/prune"]
    assert threads == "8"


def test_there_is_one_task_a_machine_with_threads_for_each_of_its_gpus(script, started):
    asked = dict(re.findall(r"#SBATCH --([\w-]+)=(\S+)", script))
    assert asked["ntasks-per-node"] == "1"
    assert int(asked["cpus-per-task"]) == int(OF_SLURM["SLURM_CPUS_PER_TASK"]) == int(asked["gpus-per-node"]) * 8
    assert asked["signal"].startswith("TERM@")  # to the steps and not to the script's shell, which B: would mean
