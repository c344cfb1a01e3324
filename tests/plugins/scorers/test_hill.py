"""Hill exponents against numpy, and against a power law of a known exponent."""

import numpy as np
import pytest
import torch

from ecoflap.core.errors import ModelError
from ecoflap.plugins.scorers.hill import Hill, eigenvalues, exponent


def all_layers(replay):
    return [layer for _, layer in replay.anatomy.layers()]


def by_numpy(weight, tail):
    """1 + k / Σ ln(λ_i / λ_min), with λ_min the first of the fullest of 100 bins of ln λ, or the middle one."""
    spectrum = np.sort(np.linalg.eigvalsh(weight.astype(np.float64) @ weight.astype(np.float64).T))
    spectrum = spectrum[spectrum > spectrum[-1] * 1e-10]
    logs = np.log(spectrum)
    counts, edges = np.histogram(logs, bins=100)
    begin = len(logs) // 2 if tail == "half" else int(np.searchsorted(logs, edges[counts.argmax()]))
    return 1 + (len(logs) - begin) / (logs[begin:] - logs[begin]).sum()


@pytest.mark.parametrize("tail", ["peak", "half"])
def test_a_blocks_score_is_the_reciprocal_of_its_mean_exponent(replay, tail):
    scores = dict(Hill(tail)(replay, all_layers(replay)))
    assert list(scores) == [block.name for block in replay.blocks]
    for block in replay.blocks:
        weights = [layer.weight.detach().numpy() for layer in replay.anatomy.layers_of[block.name]]
        assert 1 / scores[block.name] == pytest.approx(np.mean([by_numpy(w, tail) for w in weights]), rel=1e-3)
    assert len({round(score, 6) for score in scores.values()}) > 1


def test_layers_that_are_not_asked_for_do_not_count(replay):
    first, *_, last = all_layers(replay)
    scores = dict(Hill("half")(replay, [first, last]))
    assert list(scores) == [replay.blocks[0].name, replay.blocks[-1].name]
    alpha = by_numpy(first.weight.detach().numpy(), "half")
    assert 1 / scores[replay.blocks[0].name] == pytest.approx(alpha, rel=1e-3)


def test_the_exponent_of_a_power_law():
    """λ drawn with density ∝ λ^−α above 1: of 20,000 Hill's estimate is within a few times (α − 1)/√k."""
    uniform = torch.rand(20_000, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    spectrum = (1 - uniform).pow(-1 / (3.5 - 1)).sort().values
    assert exponent(spectrum, "half") == pytest.approx(3.5, abs=4 * 2.5 / 100)


def test_eigenvalues_are_those_of_the_gram_matrix_without_its_kernel():
    weight = torch.randn(5, 3, generator=torch.Generator().manual_seed(1)) @ torch.ones(3, 7)
    weight += torch.randn(5, 7, generator=torch.Generator().manual_seed(2))[:, :1] @ torch.arange(7.0)[None]
    found = eigenvalues(weight)  # of rank 2
    assert len(found) == 2
    expected = np.linalg.eigvalsh((weight @ weight.T).double().numpy())[-2:]
    np.testing.assert_allclose(found.numpy(), expected, rtol=1e-4)


@pytest.mark.parametrize(
    ("weight", "said"),
    [
        (torch.eye(4), "its spectrum has no tail.*are all equal"),
        (torch.zeros(4, 4), "all its weights are 0, so it has no"),
    ],
)
def test_a_spectrum_without_a_tail_is_told_by_name(replay, weight, said):
    layer = all_layers(replay)[0]
    layer.weight.data.zero_()
    layer.weight.data[:4, :4] = weight
    with pytest.raises(ModelError, match=f"{layer.name}: {said}"):
        list(Hill()(replay, [layer]))
