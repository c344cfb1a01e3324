"""Whatever comes in may be broken, and is refused by name or does its work; nothing ends in a traceback.

A slice of each is tried here, and thousands by ``make test-slow``. All follow from seeds: an attempt that fails names
its seed, and is tried again by it.
"""

import re

import pytest

SLICES = ("recipes:0:40", "arguments:0:99:8", "some_configs:0:2", "files:0:4", "folders:0:2", "parts:0:2400:331")
ALL = (
    "recipes:0:2000", "runs:0:600", "arguments:0:99", "configs:0:25", "files:0:500", "drawn_folders:0:300",
    "parts:0:2400",
)  # fmt: skip
TOLD = {
    "scorer: __call__ scores huge": r"model\.layers\.0\.self_attn\.q_proj\.weight: the scorer \S*Broken gave 1000",
    "scorer: __call__ scores number": r"the scorer \S*Broken gave \(3, 1\.0\); it yields pairs of a name and a",
    "scorer: __call__ raises SystemExit": r"the scorer \S*Broken raised SystemExit: 0\. It happened in nonsense",
    "scorer: forwards gives text": r"the scorer Broken, asked for its forwards, answered 'text', and is to answer",
    "allocator: __call__ floats": r"the allocator Broken answered \[3840\.0, .*a list of Python's whole numbers",
    "pruner: __call__ notes": r"q_proj\.weight: the pruner \S*Broken noted 7; notes are a tuple of sentences",
    "pruner: __call__ flat mask": r"q_proj\.weight: the pruner \S*Broken returned a mask of torch\.bool \(1024,\)",
    "dataset: __call__ gives texts": r"the dataset \S*Broken gave 'a'; a dataset yields a Sample each time",
    "evaluator: __call__ measures float": r"the evaluator \S*Broken answered with 1\.0; it gives a Measure by each",
    "evaluator: wants is class": r"its member wants should be an ability of .*, not int",
    "evaluator: loss_batch_size is -1": r"its member loss_batch_size should be how many there are, or None, not -1",
    "exporter: __call__ exports outside": r"the exporter \S*Broken names '.*x', which is no file of the folder",
    "exporter: __call__ exports notes": r"the exporter \S*Broken returned notes with None: notes is a tuple of",
    "exporter: predicted_bytes gives huge": r"the exporter Broken, asked for its predicted_bytes, answered 1000",
}
"""Of parts, by what is wrong with them: the part is named, with what it answered and what was wanted."""

KEYS = "model|calibration|score|towers|include|allocate|prune|evaluate|export|reuse|pattern|sparsity"
SAYS_WHERE = re.compile(rf"m\.yaml:\d+:\d+|m\.yaml|^(ecoflap: )?({KEYS})\b|problems$")


def traces(found):
    return {f"{what}: {name}": trace for what, tried in found.items() for name, (_, _, trace) in tried.items() if trace}


def test_a_slice_of_each(tried):
    found = tried(*SLICES, *(f"told:{name}" for name in TOLD))
    assert traces(found) == {}
    assert all(found[one.partition(":")[0]] for one in SLICES)
    refusals = [said.splitlines()[0] for code, said, _ in found["recipes"].values() if code == 2]
    assert len(refusals) > 20
    assert [one for one in refusals if not SAYS_WHERE.search(one)] == []
    assert {name: said for name, (_, said, _) in found["told"].items() if not re.search(TOLD[name], said)} == {}


@pytest.mark.slow
@pytest.mark.parametrize("asked", ALL)
def test_all_of_them(asked, tried):
    found = tried(asked)
    assert traces(found) == {}
    assert found[asked.partition(":")[0]]
