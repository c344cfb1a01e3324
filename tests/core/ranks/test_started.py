"""What torchrun starts, and ``--processes``, comes to the plan, the masks and the weights of one process."""

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest

import ecoflap

pytest.importorskip("transformers.models.llama", reason="a process of its own knows no LLaMA here")


@pytest.fixture(scope="module")
def started(plain, pico, tmp_path_factory):
    """``started(folder, *command)``: have a pico model pruned by a command, each process in one thread."""
    place = tmp_path_factory.mktemp("started")
    text = {"use": "text", "path": str(pico / "text.jsonl"), "sequence_length": 16, "samples": 5, "batch_size": 1}
    recipe = plain(calibration=text, score={"use": "zeroth_order", "samples": 5}, prune="sparsegpt")
    (place / "recipe.yaml").write_text(json.dumps(recipe))
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    environment = {
        **os.environ,
        "OMP_NUM_THREADS": "1",
        "PET_MASTER_PORT": str(port),  # torchrun's, which is the same for all of a machine unless it is said
        "PYTHONPATH": str(Path(ecoflap.__file__).parents[1]),
    }

    def started(folder, *command):
        whole = [sys.executable, "-m", *command, "--folder", folder]
        ended = subprocess.run(
            whole, cwd=place, env=environment, capture_output=True, text=True, check=False, timeout=240
        )
        assert ended.returncode == 0, ended.stderr
        assert ended.stdout.count("report: ") == 1  # one process alone says what it came to
        return place / folder

    return started


RUN = ("ecoflap", "run", "recipe.yaml")
TORCHRUN = ("torch.distributed.run", "--nproc-per-node", "2", "-m")


@pytest.fixture(scope="module")
def alone(started):
    return started("alone", *RUN)


@pytest.mark.slow
@pytest.mark.parametrize("command", [(*TORCHRUN, *RUN), (*RUN, "--processes", "2")], ids=["torchrun", "processes"])
def test_two_processes_come_to_the_bits_of_one(started, command, alone, lasting, request):
    found = lasting(alone)
    assert {"plan.json", "scores.jsonl", "masks.safetensors"} <= found.keys()
    assert lasting(started(request.node.callspec.id, *command)) == found
