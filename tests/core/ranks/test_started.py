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


KILLED_ONCE = """
import os, runpy, signal, sys, time
from pathlib import Path
from threading import Thread

def kill():
    while not any(Path(sys.argv[-1], "blocks").glob("*.safetensors")):
        time.sleep(0.01)
    Path(sys.argv[-1] + " was killed").touch()
    os.kill(os.getpid(), signal.SIGKILL)

if os.environ["RANK"] == "{rank}" and os.environ["TORCHELASTIC_RESTART_COUNT"] == "0":
    Thread(target=kill, daemon=True).start()
runpy.run_module("ecoflap", run_name="__main__")
"""
"""The command, in a process that is killed behind its first block, unless it was started anew."""
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


@pytest.mark.slow
@pytest.mark.parametrize("rank", [0, 1])
def test_what_torchrun_starts_anew_goes_on(started, alone, lasting, rank, tmp_path):
    """It keeps its store, where the addresses of processes that are gone lie."""
    script = tmp_path / "killed_once.py"
    script.write_text(KILLED_ONCE.replace("{rank}", str(rank)))
    torchrun = (*TORCHRUN[:-1], "--max-restarts", "1", str(script), "run", "recipe.yaml")
    folder = started(f"killed {rank}", *torchrun)
    assert folder.with_name(f"killed {rank} was killed").exists()
    assert lasting(folder) == lasting(alone)
