"""An adapter has its processor back, whatever happens meanwhile."""

import pytest

from ecoflap.adapters.llama import LlamaAdapter
from ecoflap.core.contracts.kept_processor import processor_kept


@pytest.mark.parametrize("given", [None, "its own"])
def test_an_adapter_has_the_processor_that_it_had(given):
    adapter = LlamaAdapter()
    adapter.processor = given
    with processor_kept(adapter):
        adapter.processor = "that of another model"
    assert adapter.processor == given


def test_also_where_loading_fails():
    adapter = LlamaAdapter()
    adapter.processor = "its own"

    def load():
        with processor_kept(adapter):
            adapter.processor = "that of another model"
            raise OSError("no such file")

    with pytest.raises(OSError, match="no such file"):
        load()
    assert adapter.processor == "its own"
