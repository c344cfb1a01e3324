"""``ecoflap doctor`` says which path runs, and why."""

import sys

import pytest

from ecoflap.core.cli import doctor
from ecoflap.core.cli.main import main
from ecoflap.core.kernel import route
from kernels import usable


def told(capsys, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["ecoflap", "doctor"])
    with pytest.raises(SystemExit) as stop:
        main()
    shown = capsys.readouterr()
    return stop.value.code or 0, shown.out, shown.err


@pytest.mark.skipif(not usable(), reason="there is no library of kernels here")
def test_it_names_the_path_and_all_others(capsys, monkeypatch, take_path):
    take_path()
    code, out, _ = told(capsys, monkeypatch)
    assert code == 0
    rows = [[cell.strip() for cell in line.split("  ") if cell.strip()] for line in out.splitlines()]
    assert ["runs", usable()[0]] in rows
    assert ["because", "it is the fastest that this CPU has"] in rows
    assert {row[0] for row in rows if len(row) == 3} >= {"amx", "avx512", "avx2", "neon", "portable"}
    assert ["portable", "nothing", "usable"] in rows
    adds = usable()[0] in {"amx", "avx512_wide", "avx512_bf16"}
    assert ["Gram sums", "the library's, in bfloat16" if adds else "torch's"] in rows


def test_it_says_why_nothing_is_fast(capsys, monkeypatch, take_path):
    take_path()
    for module in (route, doctor):
        monkeypatch.setattr(module, "opened", lambda: "the library is not there")
    _, out, _ = told(capsys, monkeypatch)
    assert "because the library is not there. Until then each panel of rows is decoded" in " ".join(out.split())
    assert ["library", "none"] in [line.split() for line in out.splitlines()]


def test_no_line_is_of_the_length_of_a_sentence(capsys, monkeypatch, take_path):
    """Where it is read through a pipe, no terminal breaks it; each word stands where it stood."""
    take_path()
    reason = f"a/long/path.so is not there{': ecoflap was built without a compiler' * 9}"
    for module in (route, doctor):
        monkeypatch.setattr(module, "opened", lambda: reason)
    monkeypatch.setattr(doctor, "slow_types", lambda: ["bfloat16", "float16"])
    _, out, _ = told(capsys, monkeypatch)
    assert max(map(len, out.splitlines())) <= 80
    said = " ".join(out.split())
    assert f"because {reason}. Until then each panel of rows is decoded and multiplied by" in said
    assert "torch multiplies bfloat16 and float16 several times as slowly as float32: this CPU lacks it" in said


@pytest.mark.parametrize(
    ("path", "saved"),
    [
        ("avx512", "memory and time"),
        ("avx2", "memory; time in float32 alone, and in int8 they cost time"),
        ("portable", "memory, but no time"),
        ("torch", "memory, but no time"),
    ],
)
def test_it_says_what_zeros_save_on_the_path_that_is_taken(capsys, monkeypatch, take_path, path, saved):
    if path not in (*usable(), "torch"):
        pytest.skip(f"this CPU lacks {path}")
    take_path(path)
    _, out, _ = told(capsys, monkeypatch)
    (row,) = [line for line in out.splitlines() if line.strip().startswith("zeros save")]
    assert saved in row


def test_a_path_that_is_not_known_is_named(capsys, monkeypatch, take_path):
    take_path("avx513")
    code, _, err = told(capsys, monkeypatch)
    assert code == 2
    assert "ecoflap: ECOFLAP_KERNEL=avx513: " in err


def test_threads_are_said_to_be_whose_they_are(monkeypatch, take_path):
    take_path()
    monkeypatch.setattr(doctor, "openmp", lambda: None)
    (rows, *_) = [section.rows for section in doctor.doctor_tables()]
    assert "its own: torch has no OpenMP here" in rows[-1][1]
