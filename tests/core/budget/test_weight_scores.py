"""Numbers of single weights: what is written is what is mapped, and nothing else is."""

import pickle

import pytest
import torch
from safetensors.torch import load_file

from ecoflap import EcoflapError, WeightScores

NUMBERS = torch.rand(5, 7, generator=torch.Generator().manual_seed(3))


@pytest.fixture
def scores(tmp_path):
    return WeightScores.written(tmp_path / "scores" / "000.safetensors", "a.weight", NUMBERS)


def test_numbers_are_mapped_as_they_were_written(scores):
    assert torch.equal(scores.numbers(), NUMBERS)
    assert scores.total == pytest.approx(sum(map(float, NUMBERS.double().flatten())), rel=1e-15)
    assert torch.equal(load_file(scores.file)["a.weight"], NUMBERS)  # any library reads it
    assert pickle.loads(pickle.dumps(scores)) == scores  # to be sent to another process


def test_what_is_done_to_mapped_numbers_is_not_in_the_file(scores):
    mapped = scores.numbers()
    mapped.zero_()
    assert torch.equal(scores.numbers(), NUMBERS)


@pytest.mark.parametrize("place", ["first", "header", "last"])
def test_a_bit_that_turned_is_refused_with_the_file(scores, place):
    raw = bytearray(scores.file.read_bytes())
    at = {"first": 0, "header": raw.index(b"sha256") + 20, "last": len(raw) - 1}[place]
    raw[at] ^= 4
    scores.file.write_bytes(raw)
    with pytest.raises(EcoflapError, match=r"000\.safetensors.*Restore it, or delete it with the scores\.jsonl that"):
        scores.numbers()


def test_a_file_that_is_cut_off_gone_or_of_other_scores_is_refused(scores):
    raw = scores.file.read_bytes()
    scores.file.write_bytes(raw[:-8])
    with pytest.raises(EcoflapError, match=r"000\.safetensors is truncated, damaged or not a safetensors file"):
        scores.numbers()
    WeightScores.written(scores.file, "a.weight", NUMBERS * 2)
    with pytest.raises(EcoflapError, match=r"000\.safetensors holds other scores than were written\. Restore it"):
        scores.numbers()
    scores.file.unlink()
    with pytest.raises(EcoflapError, match=r"000\.safetensors: there is no such file"):
        scores.numbers()
