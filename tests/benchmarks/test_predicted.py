"""The table of docs/scale.md is what the plan predicts."""

from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]

pytest.importorskip("transformers", minversion="5.0", reason="it leaves weights on the disk from version 5 on")


@pytest.mark.slow
def test_the_table_of_what_is_computed_is_what_the_plan_predicts(monkeypatch):
    monkeypatch.syspath_prepend(ROOT / "benchmarks")
    from predicted import table

    *rows, _, joint = table()
    page = (ROOT / "docs" / "scale.md").read_text("utf-8")
    assert "\n".join(rows) in page
    *others, last = (size.removesuffix(" GB") for size in joint.split(", "))
    assert f"{', '.join(others)} and {last} GB" in page
