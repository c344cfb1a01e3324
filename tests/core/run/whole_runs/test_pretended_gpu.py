"""Where there is no GPU, what needs one runs on a pretended one, in a process of its own: torch asks once."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).parents[4]
ON_A_GPU = Path(__file__).with_name("test_gpu.py")
PRETENDED = ROOT / "tests" / "support" / "gpu"


@pytest.mark.skipif(shutil.which("c++") is None, reason="no compiler, and what tells torch of a GPU is compiled")
@pytest.mark.skipif(torch.backends.cuda.is_built(), reason="this torch is built for CUDA, and takes no pretended one")
@pytest.mark.parametrize(("which", "least"), [("prunes", 18), ("not prunes", 15)])
def test_runs_on_a_gpu_give_what_the_cpu_gives(which, least):
    pytest.importorskip("transformers", minversion="5.0", reason="it leaves weights on the disk from version 5 on")
    paths = os.pathsep.join([str(PRETENDED), str(ROOT), os.environ.get("PYTHONPATH", "")])
    asked = ["-m", "pytest", "-q", "-p", "on_a_pretended_gpu", "-p", "no:cacheprovider", "-m", "gpu", "-k", which]
    ended = subprocess.run(
        [sys.executable, *asked, str(ON_A_GPU)],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": paths},
        capture_output=True,
        text=True,
    )
    assert ended.returncode == 0, ended.stdout[-5000:]
    assert int(re.search(r"(\d+) passed", ended.stdout)[1]) >= least
    assert "skipped" not in ended.stdout
