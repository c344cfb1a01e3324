"""What tells calibration data apart, whatever an adapter makes batches of."""

import numpy as np
import pytest
import torch
from spec import spec
from torch import nn

from ecoflap.adapters.llama import LlamaAdapter
from ecoflap.core.contracts.blame import PartError
from ecoflap.core.contracts.records import Sample
from ecoflap.core.errors import DataError
from ecoflap.core.pruning.calibration import Calibration, read_samples


class Given(LlamaAdapter):
    """An adapter whose batches hold one value beside a number for each sample."""

    def __init__(self, value):
        super().__init__()
        self.value = value

    def collate(self, model, samples):
        return {"own": self.value, "tokens": torch.arange(len(samples))}


def fingerprint(value):
    return Calibration([Sample()], 1, Given(value)).fingerprint(nn.Identity())


def long(changed=0):
    """Two thousand numbers, of which ``repr`` shows six."""
    numbers = torch.arange(2000)
    numbers[1000] += changed
    return numbers


MAKERS = {
    "tensor": lambda numbers: numbers,
    "bfloat16": lambda numbers: numbers.to(torch.bfloat16),
    "bool": lambda numbers: numbers % 2 == 0,
    "list": lambda numbers: [numbers],
    "tuple": lambda numbers: (1, numbers),
    "dict": lambda numbers: {"inside": {"again": numbers}},
    "array": lambda numbers: numbers.numpy(),
    "view": lambda numbers: numbers.reshape(40, 50).T,
    "plain": lambda numbers: tuple(numbers.tolist()),
}


@pytest.mark.parametrize("name", MAKERS)
def test_one_number_of_many_makes_another_fingerprint(name):
    make = MAKERS[name]
    assert fingerprint(make(long())) == fingerprint(make(long()))
    assert fingerprint(make(long())) != fingerprint(make(long(5)))


def test_types_shapes_and_names_count():
    values = [
        torch.zeros(4), torch.zeros(2, 2), torch.zeros(4, dtype=torch.float16), torch.zeros(4, dtype=torch.bfloat16),
        np.zeros((1, 4), np.float32), [torch.zeros(4)], {"a": torch.zeros(4)}, {"b": torch.zeros(4)}, None, "zeros",
    ]  # fmt: skip
    assert len({fingerprint(value) for value in values}) == len(values)


class Torn:
    """A dataset that ends with an error behind two samples."""

    def __call__(self, adapter, model, note):
        yield from (Sample(text="one"), Sample(text="two"))
        raise KeyError("three")


def test_a_dataset_that_raises_is_named_with_how_many_samples_it_has_given():
    said = r"^the dataset Torn, behind sample 2, raised KeyError: 'three'\. It happened in test_calibration\.py:\d+, "
    with pytest.raises(PartError, match=said):
        read_samples(spec("dataset", Torn()), LlamaAdapter(), nn.Identity(), print)


def test_a_dataset_that_returns_nothing_is_named():
    with pytest.raises(DataError, match=r"^the dataset function returned None; it yields a Sample each time"):
        read_samples(spec("dataset", lambda adapter, model, note: None), LlamaAdapter(), nn.Identity(), print)


@pytest.mark.parametrize("tokens", [[3, 17, 5], torch.tensor([[3, 17, 5]]), torch.tensor(3), torch.rand(3)])
def test_tokens_that_are_no_row_of_numbers_are_the_datasets(tokens):
    """They were blamed on the adapter, which cannot put them together."""
    sample = Sample()
    vars(sample)["tokens"] = tokens
    with pytest.raises(DataError, match=r"^the dataset function gave a Sample whose tokens are .*one dimension"):
        read_samples(spec("dataset", lambda adapter, model, note: [sample]), LlamaAdapter(), nn.Identity(), print)


class Promises:
    """A dataset that says how many samples it gives at most, and gives as many as it likes."""

    def __init__(self, samples, given):
        self.samples, self.given = samples, given

    def __call__(self, adapter, model, note):
        return (Sample(text=f"text {number}") for number in range(self.given))


def test_a_dataset_gives_no_more_samples_than_it_promises():
    def read(samples, given, most=None):
        return len(read_samples(spec("dataset", Promises(samples, given)), LlamaAdapter(), nn.Identity(), print, most))

    assert (read(3, 3), read(3, 2), read(None, 9), read(3, 2**62, most=2), read(None, 9, most=4)) == (3, 2, 9, 2, 4)
    for most in (None, 5):
        with pytest.raises(DataError, match=r"the dataset Promises yields more samples than the 3 that its member sam"):
            read(3, 2**62, most)


class OfPlaces(torch.utils.data.Dataset):
    """What torch calls a map-style dataset, which Python iterates over by its numbers."""

    def __getitem__(self, number):
        if number == 2:
            raise IndexError
        return Sample(text=f"text {number}")


def test_a_dataset_that_is_read_by_numbers_is_read():
    read = read_samples(spec("dataset", lambda adapter, model, note: OfPlaces()), LlamaAdapter(), nn.Identity(), print)
    assert [sample.text for sample in read] == ["text 0", "text 1"]


def test_a_dataset_that_takes_too_little_is_told_without_a_place_of_ours():
    with pytest.raises(PartError, match=r"^the dataset function raised TypeError: .* takes 2 positional .* given\.$"):
        read_samples(spec("dataset", lambda adapter, model: []), LlamaAdapter(), nn.Identity(), print)


class OfOneTensor:
    """Fills one tensor again and again."""

    def __call__(self, adapter, model, note):
        tokens = torch.zeros(3, dtype=torch.int64)
        for number in range(4):
            yield Sample(tokens=tokens.fill_(number))


def test_a_tensor_that_is_filled_again_is_another_sample():
    read = read_samples(spec("dataset", OfOneTensor()), LlamaAdapter(), nn.Identity(), print)
    assert [sample.tokens.tolist() for sample in read] == [[number] * 3 for number in range(4)]


@pytest.mark.parametrize(
    ("member", "value", "told"),
    [
        ("answers", "yes", r"answers are 'yes'; they are a tuple of texts"),
        ("texts", (3,), r"texts are \(3,\); they are a tuple of texts"),
        ("text", 3, r"text is 3; it is a text, or None"),
        ("question", b"who", r"question is b'who'; it is a text, or None"),
        ("label", "cat", r"label is 'cat'; it is the number of a class, or None"),
    ],
)
def test_a_member_of_another_kind_is_the_datasets(member, value, told):
    """An answer ``"yes"`` is three answers to Python."""
    sample = Sample()
    vars(sample)[member] = value
    with pytest.raises(DataError, match=f"^the dataset function gave a Sample whose {told}"):
        read_samples(spec("dataset", lambda adapter, model, note: [sample]), LlamaAdapter(), nn.Identity(), print)


@pytest.mark.parametrize(("label", "number"), [(np.int64(3), 3), (True, 1), (None, None)])
def test_a_label_may_be_any_whole_number(label, number):
    sample = Sample()
    vars(sample)["label"] = label
    (read,) = read_samples(spec("dataset", lambda *given: [sample]), LlamaAdapter(), nn.Identity(), print)
    assert read.label == number
    assert type(read.label) is type(number)
