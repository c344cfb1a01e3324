"""Starting a command several times: the environment, the codes and the signals are those that torchrun would have."""

import json
import os
import re
import signal
import subprocess
import sys
import time

import pytest

from ecoflap.core.cores import usable_cores
from ecoflap.core.ranks import launch as launching
from ecoflap.core.ranks.launch import are_several, is_first, launch, quieten


def python(code):
    return [sys.executable, "-c", f"import json, os, signal, sys, time\nrank = os.environ['RANK']\n{code}"]


def test_each_process_is_told_who_it_is(tmp_path, monkeypatch):
    for name in ("OMP_NUM_THREADS", "TORCH_CPP_LOG_LEVEL"):
        monkeypatch.delenv(name, raising=False)
    code = f"open({str(tmp_path)!r} + '/' + rank, 'w').write(json.dumps(dict(os.environ)))"
    assert launch(2, python(code)) == 0
    for rank in ("0", "1"):
        found = json.loads((tmp_path / rank).read_text())
        wanted = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2"}
        assert wanted.items() <= found.items()
        assert found["TORCH_CPP_LOG_LEVEL"] == "ERROR"
        assert found["OMP_NUM_THREADS"] == str(max(1, usable_cores() // 2))


@pytest.mark.parametrize(
    ("code", "ends_with"),
    [
        ("sys.exit(3 if rank == '1' else 0)", 3),
        ("os.kill(os.getpid(), signal.SIGKILL) if rank == '1' else time.sleep(60)", 128 + signal.SIGKILL),
        ("sys.exit(3) if rank == '0' else time.sleep(60)", 3),
    ],
)
def test_the_code_is_that_of_the_process_that_failed(code, ends_with, monkeypatch):
    monkeypatch.setattr(launching, "_PATIENCE", 0.2)
    assert launch(2, python(code)) == ends_with


@pytest.mark.parametrize(
    ("code", "said"),
    [
        ("os.kill(os.getpid(), signal.SIGBUS)", "SIGBUS ended it, as where a file is cut shorter that is being read"),
        ("os.kill(os.getpid(), signal.SIGKILL) if rank == '1' else time.sleep(60)", "SIGKILL ended it"),
        ("os.kill(os.getpid(), signal.SIGKILL) if rank == '1' else sys.exit(2)", ""),
        ("sys.exit(3) if rank == '1' else time.sleep(60)", ""),
    ],
)
def test_who_has_failed_is_named_where_nobody_is_left_to_do_it(code, said, monkeypatch, capfd):
    """One that ended with a code has said why; of one that a signal has ended the other says it, if it lives."""
    monkeypatch.setattr(launching, "_PATIENCE", 0.2)
    launch(2, python(code))
    err = capfd.readouterr().err
    assert re.match(f"ecoflap: rank . of 2 has ended this run: .*{said}", err) if said else not err


STOPS = """
from ecoflap.core.ranks import watch
from ecoflap.core.ranks.join import joined

watch.EVERY, watch.SILENT, watch._GRACE = 0.1, 2.0, 0.5
with joined() as ranks:
    if rank == "1":
        os.kill(os.getpid(), signal.SIGSTOP)
    ranks.gather(rank)
"""


@pytest.mark.slow
@pytest.mark.skipif(not os.path.isfile("/proc/self/stat"), reason="the system tells otherwise who is stopped")
def test_one_that_is_stopped_is_named_and_ends_with_all(monkeypatch, capfd):
    monkeypatch.setattr(launching, "_PATIENCE", 3.0)
    began = time.monotonic()
    assert launch(2, python(STOPS)) == 128 + signal.SIGKILL
    assert time.monotonic() - began < 60
    assert "rank 1 of 2 has ended this run: it is stopped, as SIGSTOP does it" in capfd.readouterr().err


STARTER = """
import signal, sys
from ecoflap.core.ranks.launch import launch
signal.signal(signal.SIGINT, signal.default_int_handler)  # which is ignored in what a shell starts in the background
sys.exit(launch(2, {command!r}))
"""


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_is_passed_on_and_told_by_the_code(number, tmp_path):
    code = f"""
signal.signal({int(number)}, lambda *_: sys.exit({128 + number}))
open({str(tmp_path)!r} + "/" + rank, "w").close()
time.sleep(60)
"""
    with subprocess.Popen([sys.executable, "-c", STARTER.format(command=python(code))]) as starter:
        while len(list(tmp_path.iterdir())) < 2:
            assert starter.poll() is None
            time.sleep(0.05)
        starter.send_signal(number)
        assert starter.wait(50) == 128 + number


JOINS = """
from ecoflap.core.ranks.join import joined

with joined():
    open({folder!r} + "/" + rank, "w").close()
    time.sleep(60)
"""


@pytest.mark.slow
def test_where_the_starter_is_killed_that_is_said_without_frames_of_torch(tmp_path):
    starter = [sys.executable, "-c", STARTER.format(command=python(JOINS.format(folder=str(tmp_path))))]
    with subprocess.Popen(starter, stderr=subprocess.PIPE, text=True) as killed:
        while len(list(tmp_path.iterdir())) < 2:
            assert killed.poll() is None
            time.sleep(0.05)
        killed.kill()
        said = killed.stderr.read()  # until the processes have ended, too
    assert "the process that started its ranks, or the machine of their rendezvous, does not answer any more" in said
    assert "TCPStore" not in said
    assert "frame #" not in said


def test_handlers_of_signals_are_put_back():
    before = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]
    assert launch(1, python("")) == 0
    assert [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)] == before


def test_who_is_one_of_several_knows_it(monkeypatch):
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    assert (are_several(), is_first()) == (False, True)
    for rank, first in (("0", True), ("1", False)):
        monkeypatch.setenv("WORLD_SIZE", "2")
        monkeypatch.setenv("RANK", rank)
        assert (are_several(), is_first()) == (True, first)


@pytest.mark.parametrize(("size", "before", "wanted"), [("1", None, None), ("2", None, "ERROR"), ("2", "INFO", "INFO")])
def test_torch_is_quiet_in_one_of_several_unless_its_user_says_otherwise(size, before, wanted, monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", size)
    monkeypatch.setenv("RANK", "0")
    monkeypatch.setenv("TORCH_CPP_LOG_LEVEL", "")  # what is set here is taken back
    monkeypatch.delenv("TORCH_CPP_LOG_LEVEL") if before is None else monkeypatch.setenv("TORCH_CPP_LOG_LEVEL", before)
    quieten()
    assert os.environ.get("TORCH_CPP_LOG_LEVEL") == wanted


IMPORTS = """
import sys
from ecoflap.core.cli.main import app

def say(event, told):
    if event == "import" and told[0] == "torch":
        print(os.environ["TORCH_CPP_LOG_LEVEL"], flush=True)
        os._exit(0)

sys.addaudithook(say)
app(["run", "any.yaml"])
"""


def test_the_command_has_torch_quiet_before_it_is_imported(monkeypatch):
    monkeypatch.delenv("TORCH_CPP_LOG_LEVEL", raising=False)
    environment = {**os.environ, "RANK": "0", "WORLD_SIZE": "2"}
    ended = subprocess.run(python(IMPORTS), env=environment, capture_output=True, text=True, check=False, timeout=100)
    assert (ended.returncode, ended.stdout) == (0, "ERROR\n"), ended.stderr


def test_the_command_starts_itself_in_several_processes(ecoflap_command, monkeypatch):
    asked = []
    monkeypatch.setattr("ecoflap.core.cli.main.launch", lambda *arguments: asked.append(arguments) or 7)
    monkeypatch.setattr(sys, "argv", ["ecoflap", "run", "any.yaml", "--processes", "2"])
    code, _, _ = ecoflap_command("run", "any.yaml", "--processes", "2")
    assert code == 7
    assert asked == [(2, [sys.executable, "-P", "-m", "ecoflap", "run", "any.yaml", "--processes", "2"])]


def test_processes_are_not_started_by_what_says_that_it_is_one_of_several(ecoflap_command, monkeypatch):
    """Nobody has started it: the variables are left over in a shell, and it would wait for others."""
    monkeypatch.setattr("ecoflap.core.cli.main.launch", lambda *arguments: pytest.fail("started"))
    monkeypatch.setenv("RANK", "0")
    monkeypatch.setenv("WORLD_SIZE", "2")
    code, _, err = ecoflap_command("run", "any.yaml", "--processes", "2")
    assert code == 2
    assert "--processes 2 starts processes, and RANK=0 and WORLD_SIZE=2 say that this is one of several already" in err


OF_ONE = [("sweep", "any"), ("export", "any", "--to", "onnx"), ("densify", "a", "b"), ("compare", "a")]


@pytest.mark.parametrize("asked", OF_ONE)
def test_only_a_run_is_shared_and_the_first_of_several_says_so(asked, ecoflap_command, monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("RANK", "0")
    code, out, err = ecoflap_command(*asked)
    assert (code, out) == (2, "")
    assert f"ecoflap {asked[0]} is for one process, and WORLD_SIZE is 2" in err
    assert ("ecoflap sweep … --processes 2" in err) == (asked[0] == "sweep")
    monkeypatch.setenv("RANK", "1")
    assert ecoflap_command(*asked)[0] == 2  # the variables are left over, and nothing was done
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "none")
    assert ecoflap_command(*asked) == (0, "", "")  # nothing may fail before the first has spoken
