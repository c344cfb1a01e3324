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
PRUNES, VISITS = "test_a_method_prunes_what_it_prunes_on_the_cpu", "test_a_model_visits_the_gpu_block_by_block"
FEW = [
    f"::{PRUNES}[zeroth order]",
    f"::{PRUNES}[wanda_plus_plus]",
    *(f"::{VISITS}[{how}]" for how in ("cpu-disk-first order", "disk-disk-in turn")),
    "::test_evaluators_that_see_the_dense_model_see_it_there",
    "::test_a_tensor_of_the_cpu_is_refused_there",
]
"""What goes other ways than the rest: all of them take minutes, for a pretended GPU looks at each call of torch."""


@pytest.mark.skipif(shutil.which("c++") is None, reason="no compiler, and what tells torch of a GPU is compiled")
@pytest.mark.skipif(torch.backends.cuda.is_built(), reason="this torch is built for CUDA, and takes no pretended one")
@pytest.mark.parametrize(("which", "count"), [(FEW, 6), pytest.param([""], 33, marks=pytest.mark.slow)])
def test_runs_on_a_gpu_give_what_the_cpu_gives(which, count):
    pytest.importorskip("transformers", minversion="5.0", reason="it leaves weights on the disk from version 5 on")
    paths = os.pathsep.join([str(PRETENDED), str(ROOT), os.environ.get("PYTHONPATH", "")])
    asked = ["-m", "pytest", "-q", "-p", "on_a_pretended_gpu", "-p", "no:cacheprovider", "-m", "gpu"]
    ended = subprocess.run(
        [sys.executable, *asked, *(f"{ON_A_GPU}{one}" for one in which)],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": paths},
        capture_output=True,
        text=True,
    )
    assert ended.returncode == 0, ended.stdout[-5000:]
    assert int(re.search(r"(\d+) passed", ended.stdout)[1]) == count
    assert "skipped" not in ended.stdout
