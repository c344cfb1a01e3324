"""Exit codes after a signal, and behind a pipe that nobody reads, of the command as a process of its own."""

import json
import os
import signal
import subprocess
import sys
import weakref
from pathlib import Path
from threading import Event
from time import sleep

import pytest

import ecoflap
from ecoflap.core.cli import main
from ecoflap.core.cli.stopping import stoppable

pytest.importorskip("transformers.models.llama", reason="a process of its own knows no LLaMA here")

CUT_SHORTER = "SIGBUS ended it, as where a file is cut shorter that is being read"
COMMAND = [sys.executable, "-m", "ecoflap"]
READS = """
import mmap, os

def read_what_is_cut(*_, **__):
    with open("mapped", "w+b") as file:
        file.write(bytes(2 * mmap.PAGESIZE))
        file.flush()
        mapped = mmap.mmap(file.fileno(), 0)
        os.truncate(file.fileno(), 0)
        return mapped[mmap.PAGESIZE]
"""
PARTS = (
    READS
    + """
import atexit
from ecoflap.plugins.pruners.magnitude import Magnitude

def stop():
    os.kill(os.getpid(), {number})

class Stops(Magnitude):
    def __call__(self, weight, seen, budget, layer):
        if layer.block_index == 1:
            stop()
        return super().__call__(weight, seen, budget, layer)

class StopsPlan(Magnitude):
    def problems(self, context):
        stop()
        return ()

class StopsAtTheEnd(Magnitude):
    def problems(self, context):
        atexit.register(stop)
        return ()

class ReadsWhatIsCut(Magnitude):
    def __call__(self, weight, seen, budget, layer):
        return read_what_is_cut()
"""
)


@pytest.fixture
def stopping(pico_llama_folder, tmp_path):
    """``stopping(part, number, *arguments)``: run the command, in which a pruner sends itself a signal."""

    def stopping(part, number, *arguments, **popen):
        (tmp_path / "stops.py").write_text(PARTS.format(number=int(number)))
        recipe = {"version": 1, "model": str(pico_llama_folder), "sparsity": 0.5, "prune": f"stops:{part}"}
        (tmp_path / "r.yaml").write_text(json.dumps(recipe))
        paths = f"{Path(ecoflap.__file__).parents[1]}{os.pathsep}{tmp_path}"
        environment = {**os.environ, "PYTHONPATH": paths}
        whole = [*COMMAND, arguments[0], "r.yaml", "--allow-code", *arguments[1:]]
        # A shell has what it runs in the background ignore Ctrl-C, these tests included.
        popen.setdefault("preexec_fn", lambda: signal.signal(signal.SIGINT, signal.SIG_DFL))
        return subprocess.run(
            whole, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False, timeout=240, **popen
        )

    return stopping


@pytest.mark.parametrize(
    ("number", "code"), [(signal.SIGINT, 130), pytest.param(signal.SIGTERM, 143, marks=pytest.mark.slow)]
)
def test_a_run_that_is_stopped_says_so_and_goes_on(stopping, number, code, tmp_path):
    ended = stopping("Stops", number, "run", "--folder", "run")
    assert ended.returncode == code, ended.stderr
    assert ended.stderr.endswith("ecoflap: stopped; the same command goes on from here\n")
    assert "Traceback" not in ended.stderr
    assert sorted(path.name for path in (tmp_path / "run" / "blocks").iterdir()) == ["000.safetensors"]


@pytest.mark.skipif(not hasattr(signal, "SIGBUS"), reason="the system has no such signal")
@pytest.mark.parametrize("offload", ["disk", pytest.param("cpu", marks=pytest.mark.slow)])
def test_sigbus_is_explained_where_the_model_is_streamed(stopping, offload):
    if offload == "disk":
        pytest.importorskip("transformers", minversion="5")
        pytest.importorskip("accelerate")
    ended = stopping("ReadsWhatIsCut", 0, "run", "--folder", "run", "--set", f"model.offload={offload}")
    assert ended.returncode == -signal.SIGBUS, ended.stderr
    said = f"\necoflap: this run has ended: {CUT_SHORTER}, such as a model's with model.offload: disk"
    assert ended.stderr.count(said) == (offload == "disk")
    assert ended.stderr.endswith("The same command goes on from where it was\n") == (offload == "disk")
    assert "Fatal Python error" not in ended.stderr


CUT = (
    READS
    + """
from ecoflap.core.cli.main import main
import {module} as module

module.{name} = read_what_is_cut
main()
"""
)


@pytest.mark.skipif(not hasattr(signal, "SIGBUS"), reason="the system has no such signal")
@pytest.mark.parametrize(
    ("module", "name", "command"),
    [
        ("ecoflap.core.export.export_again", "export_run", ("export", ".", "--to", "safetensors")),
        pytest.param("ecoflap.core.export.densify", "densify", ("densify", "a", "b"), marks=pytest.mark.slow),
        pytest.param("ecoflap.core.verifying.verify", "verify", ("verify", "."), marks=pytest.mark.slow),
    ],
)
def test_sigbus_is_explained_where_files_of_a_run_are_read(module, name, command, tmp_path):
    whole = [sys.executable, "-c", CUT.format(module=module, name=name), *command]
    environment = {**os.environ, "PYTHONPATH": str(Path(ecoflap.__file__).parents[1])}
    ended = subprocess.run(
        whole, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False, timeout=240
    )
    assert ended.returncode == -signal.SIGBUS, ended.stderr
    said = f"\necoflap: this command has ended: {CUT_SHORTER}, such as one of a model/ or a packed one of an export"
    assert ended.stderr.count(said) == 1
    assert ended.stderr.endswith("Put back what was there, and start it again\n")
    assert "Fatal Python error" not in ended.stderr


def test_a_plan_that_is_stopped_has_nothing_to_go_on_from(stopping):
    ended = stopping("StopsPlan", signal.SIGTERM, "plan")
    assert (ended.returncode, ended.stderr) == (143, "\necoflap: stopped\n")


def test_a_signal_after_the_report_ends_it_as_a_signal_does(stopping, tmp_path):
    ended = stopping("StopsAtTheEnd", signal.SIGTERM, "run", "--folder", "run")
    assert (ended.returncode, "Traceback" in ended.stderr) == (143, False), ended.stderr
    assert (tmp_path / "run" / "report.json").is_file()


def test_a_signal_that_is_ignored_stays_so(stopping, tmp_path):
    def as_behind_nohup():
        signal.signal(signal.SIGINT, signal.SIG_IGN)

    ended = stopping("Stops", signal.SIGINT, "run", "--folder", "run", preexec_fn=as_behind_nohup)
    assert ended.returncode == 0, ended.stderr
    assert (tmp_path / "run" / "report.json").is_file()


@pytest.mark.parametrize("buffered", [pytest.param(True, marks=pytest.mark.slow), False])
def test_a_pipe_that_nobody_reads_ends_the_command_as_sigpipe_does(buffered):
    read, write = os.pipe()
    os.close(read)  # as head has once it has its lines
    environment = {**os.environ, "PYTHONUNBUFFERED": "" if buffered else "1"}
    try:
        ended = subprocess.run(
            [*COMMAND, "list", "pruner"],
            env=environment,
            stdout=write,
            stderr=subprocess.PIPE,
            check=False,
            timeout=240,
        )
    finally:
        os.close(write)
    assert (ended.returncode, ended.stderr) == (141, b"")


TIED = """
from time import sleep
from ecoflap.core.cli.stopping import end_with_starter

end_with_starter()
print("begun", flush=True)
sleep(60)
"""


def test_a_process_ends_with_its_starter_which_holds_its_stdin():
    environment = {**os.environ, "PYTHONPATH": str(Path(ecoflap.__file__).parents[1])}
    with subprocess.Popen(
        [sys.executable, "-c", TIED], env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as tied:
        assert tied.stdout.readline() == b"begun\n"
        tied.stdin.write(b"a word that nobody means\n")
        tied.stdin.flush()
        with pytest.raises(subprocess.TimeoutExpired):
            tied.wait(0.3)
        tied.stdin.close()
        assert tied.wait(30) == 143


def test_a_signal_that_is_ignored_stays_so_when_another_stops_the_command():
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        with pytest.raises(SystemExit) as stop, stoppable():
            signal.raise_signal(signal.SIGTERM)
        assert stop.value.code == 143
        assert signal.getsignal(signal.SIGINT) == signal.SIG_IGN
        assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL
    finally:
        signal.signal(signal.SIGINT, before)


class Ends:
    def __del__(self):
        signal.raise_signal(signal.SIGTERM)


def end_what_is_watched():
    weakref.finalize(Event(), signal.raise_signal, signal.SIGTERM)


def go_on_behind(lose):
    lose()
    for _ in range(1000):
        sleep(0.01)


@pytest.mark.parametrize("lose", [Ends, end_what_is_watched])
def test_a_signal_stops_a_command_though_python_drops_what_it_raises(lose, capsys):
    hook = sys.unraisablehook
    with pytest.raises(SystemExit) as stop, stoppable():
        go_on_behind(lose)
    assert stop.value.code == 143
    assert capsys.readouterr().err == "\necoflap: stopped; the same command goes on from here\n"
    assert sys.unraisablehook == hook


def test_what_else_python_drops_is_told_as_before(monkeypatch):
    told = []
    monkeypatch.setattr(sys, "unraisablehook", told.append)

    class Fails:
        def __del__(self):
            raise ValueError("told")

    with stoppable():
        Fails()
    assert [str(one.exc_value) for one in told] == ["told"]


def test_where_nothing_can_be_printed_the_code_says_what_was_done(tmp_path):
    """Closed from the first; and a disk that is full, where the way out is told."""
    closed = subprocess.run(f"{' '.join(COMMAND)} --version >&-", shell=True, capture_output=True, text=True)
    assert (closed.returncode, closed.stderr) == (0, "")
    full = subprocess.run(f"{' '.join(COMMAND)} list > /dev/full", shell=True, capture_output=True, text=True)
    assert full.returncode
    assert "Traceback" not in full.stderr
    assert "could not be written: No space left on device" in full.stderr


def test_what_a_library_says_of_the_system_is_not_taken_for_the_output(monkeypatch):
    def fail(**_):
        raise OSError("Can't load the model for 'x'")

    monkeypatch.setattr(main, "app", fail)
    with pytest.raises(OSError, match="Can't load the model"):
        main.main()
