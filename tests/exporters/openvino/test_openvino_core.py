"""What OpenVINO leaves behind: a process that compiled two models handles its signals as before."""

import os
import signal
import subprocess
import sys

import pytest

pytest.importorskip("openvino")

COMPILES = """
import gc, os, signal, sys
import numpy as np
import openvino as ov
from openvino import opset13 as op
from ecoflap.exporters.openvino.openvino_core import openvino_core

def compiled(make):
    x = op.parameter([-1, 8], np.float32, name="x")
    product = op.matmul(x, op.constant(np.ones((8, 8), np.float32)), False, True)
    return make().compile_model(ov.Model([op.result(product)], [x], "v"), "CPU")

def stopped(*_):
    os._exit(7)

make = {"one": openvino_core, "two": ov.Core}[sys.argv[1]]
first, second = compiled(make), compiled(make)
del first
gc.collect()
del second
gc.collect()
signal.signal(signal.SIGTERM, stopped)
os.kill(os.getpid(), signal.SIGTERM)
"""


def ended(which):
    return subprocess.run([sys.executable, "-c", COMPILES, which], check=False).returncode


@pytest.mark.skipif(os.name != "posix", reason="signals are handled on a stack of their own on POSIX")
def test_a_signal_is_handled_after_two_models():
    assert ended("one") == 7


@pytest.mark.slow
@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="seen on Linux")
def test_why_there_is_one():
    """Where this fails, OpenVINO has mended it, and each may have a Core of its own again."""
    assert ended("two") == -signal.SIGSEGV
