"""A part sets what it likes in a tokenizer: the model is saved with its own."""

from types import SimpleNamespace

import pytest

from ecoflap.adapters.llama import LlamaAdapter
from ecoflap.core.guards.processor_lent import processor_lent
from ecoflap.plugins.evaluators.loss import Loss


class Mine:
    """A part that does not come with ecoflap."""


@pytest.fixture
def adapter():
    made = LlamaAdapter()
    made.processor = SimpleNamespace(padding_side="right", inner=SimpleNamespace(words=["a"]))
    return made


def test_what_it_sets_is_gone_afterwards(adapter):
    own = adapter.processor
    with processor_lent(adapter, Mine):
        adapter.processor.padding_side = "left"
        adapter.processor.inner.words.append("b")
        adapter.processor.inner.words.append("c")
        assert adapter.processor.inner.words == ["a", "b", "c"]
    assert adapter.processor is own
    assert (own.padding_side, own.inner.words) == ("right", ["a"])


def test_also_where_it_raises_or_puts_another_in_its_place(adapter):
    own = adapter.processor

    def replace_and_raise():
        adapter.processor = None
        raise KeyError

    with pytest.raises(KeyError), processor_lent(adapter, Mine):
        replace_and_raise()
    assert adapter.processor is own


def test_ours_are_lent_the_own_one(adapter):
    own = adapter.processor
    with processor_lent(adapter, Loss):
        assert adapter.processor is own


def test_one_that_cannot_be_copied_is_lent_itself(adapter):
    adapter.processor.lock = (one for one in ())  # as no generator can be
    own = adapter.processor
    with processor_lent(adapter, Mine):
        assert adapter.processor is own


def test_none_stays_none(adapter):
    adapter.processor = None
    with processor_lent(adapter, Mine):
        assert adapter.processor is None
