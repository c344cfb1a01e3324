"""Whatever parts meet in a recipe, a run that was killed, streamed or shared has the bits of one that was not."""

import signal
import time
from collections.abc import Callable
from pathlib import Path
from random import Random
from typing import Any

import pytest
from drawn_recipe import drawn_keys
from killing import in_a_fork, killer_in
from offloaded import assert_alike, in_memory, recipe_of
from several import several

import ecoflap

pytest.importorskip("transformers", minversion="5.0", reason="it leaves weights on the disk from version 5 on")
pytest.importorskip("accelerate")
pytestmark = pytest.mark.slow

KINDS = ("llama", "gpt2", "gemma3_text", "qwen3_moe", "jamba", "deepseek_v3")


def drawn(seed: int, folder: Path) -> dict[str, Any]:
    random = Random(seed)
    return recipe_of(random.choice(KINDS), folder, **drawn_keys(random))


def killed_after(seconds: float, call: Callable[[], Any]) -> None:
    """Call it in a process that dies after so many seconds, wherever it is, if it has not ended before."""

    def timed() -> None:
        signal.setitimer(signal.ITIMER_REAL, seconds)  # whose signal ends a process where none waits for it, also in C
        call()

    in_a_fork({}, timed)


@pytest.mark.parametrize("seed", range(24))
def test_a_run_has_the_same_bits_however_it_comes_to_its_end(seed: int, tmp_path: Path) -> None:
    streamed, moments = drawn(seed, tmp_path), Random(seed)
    recipe, begun = in_memory(streamed), time.monotonic()
    whole, killed, on_disk, by_two, said = (tmp_path / name for name in ("whole", "killed", "disk", "two", "said"))
    assert in_a_fork({}, lambda: ecoflap.run(recipe, folder=whole)) == 0
    seconds = time.monotonic() - begun

    layer = killer_in(tmp_path)(f"event:LayerPruned:{moments.randint(1, len(ecoflap.load_masks(whole)))}")
    assert in_a_fork(layer, lambda: ecoflap.run(recipe, folder=killed)) == -signal.SIGKILL
    killed_after(moments.uniform(0.1, 0.9) * seconds, lambda: ecoflap.run(recipe, folder=killed))
    assert in_a_fork({}, lambda: ecoflap.run(recipe, folder=killed)) == 0
    assert_alike(whole, killed)

    assert in_a_fork({}, lambda: ecoflap.run(streamed, folder=on_disk)) == 0
    assert_alike(whole, on_disk)

    said.mkdir()
    ended = several(2, lambda ranks: ecoflap.run(recipe, folder=by_two, ranks=ranks), said)
    assert [one.code for one in ended] == [0, 0], ended
    assert_alike(whole, by_two)
