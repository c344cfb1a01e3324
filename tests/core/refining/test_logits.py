"""Logits that a loss sees, and KL in the loss's place, held against both written out."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from ecoflap.adapters.shared.losses import info_nce, mean_nll, mean_nll_of_hidden
from ecoflap.core.errors import ModelError
from ecoflap.core.refining.logits import DenseLogits, kl_of_rows, seen_by_losses


def drawn(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def kl(dense, logits):
    """Σ p log(p / q), in float64."""
    p, q = dense.double().softmax(-1), logits.double().softmax(-1)
    return (p * (p / q).log()).sum(-1)


def test_kl_stands_in_the_place_of_the_loss_at_real_labels():
    dense, logits = drawn(2, 5, 7), drawn(2, 5, 7, seed=1)
    labels = torch.tensor([[1, 2, -100, 3, 4], [0, -100, -100, 6, 5]])
    kept = DenseLogits()
    with kept.recorded():
        nll = mean_nll(dense, labels)
    assert float(nll) == pytest.approx(float(F.cross_entropy(dense.reshape(-1, 7), labels.reshape(-1))), rel=1e-6)
    with kept.compared(kl_of_rows):
        found = mean_nll(logits, labels)
    assert float(found) == pytest.approx(float(kl(dense, logits)[labels >= 0].mean()), rel=1e-5)
    assert float(mean_nll(logits, labels)) != pytest.approx(float(found))


@pytest.mark.parametrize(
    "divergence",
    [
        lambda dense, logits: (dense - logits).square().mean(),
        lambda dense, logits: (dense - logits).square().sum(-1)[:1],
        lambda dense, logits: (dense - logits).square(),
    ],
)
def test_a_divergence_that_gives_no_number_a_row_is_refused(divergence):
    """The loss takes a mean over rows, and would take another of a mean, or of fewer."""
    dense, logits, labels = drawn(2, 5, 7), drawn(2, 5, 7, seed=1), torch.tensor([[1, 2, 0, 3, 4], [0, 1, 2, 6, 5]])
    kept = DenseLogits()
    with kept.recorded():
        mean_nll(dense, labels)
    told = r"the divergence that held_against_dense is given returned a tensor of .*; it gives a number for"
    with kept.compared(divergence), pytest.raises(ModelError, match=told):
        mean_nll(logits, labels)


def test_options_of_a_cross_entropy_may_be_given_by_their_place():
    logits, targets, weight = drawn(4, 7), torch.tensor([1, 2, 3, 6]), drawn(7, seed=2).abs()
    plain = F.cross_entropy(logits, targets, weight)
    by_place, by_name = [], []
    with seen_by_losses(lambda rows, given: by_place.append((rows, given))):
        assert torch.equal(F.cross_entropy(logits, targets, weight), plain)  # one number of all rows is passed on
        assert not by_place
        found = F.cross_entropy(logits, targets, weight, None, -100, None, "none")
    with seen_by_losses(lambda rows, given: by_name.append((rows, given))):
        F.cross_entropy(input=logits, target=targets, reduction="none", weight=weight)
    assert torch.equal(found, F.cross_entropy(logits, targets, weight, reduction="none"))
    for ((rows, given),) in (by_place, by_name):
        assert torch.equal(rows, logits)
        assert torch.equal(given, targets)


def test_chunks_that_are_made_anew_in_the_backward_meet_their_own(monkeypatch):
    monkeypatch.setattr("ecoflap.adapters.shared.losses.LOGITS_BYTES", 4 * 11 * 3)  # three rows a chunk
    hidden, targets = drawn(10, 8), torch.arange(10) % 11
    dense, head = nn.Linear(8, 11), nn.Linear(8, 11)
    kept = DenseLogits()
    with kept.recorded(), torch.no_grad():
        mean_nll_of_hidden(dense, hidden, targets, 11)
    with kept.compared(kl_of_rows):
        loss = mean_nll_of_hidden(head, hidden, targets.clone(), 11)
        loss.backward()
    found = head.weight.grad.clone()
    head.weight.grad = None
    expected = kl(dense(hidden).detach(), head(hidden)).mean()
    expected.backward()
    assert float(loss.detach()) == pytest.approx(float(expected.detach()), rel=1e-5)
    torch.testing.assert_close(found, head.weight.grad, rtol=1e-4, atol=1e-7)


def test_of_two_entropies_over_the_same_targets_each_has_its_own():
    dense, other = drawn(4, 4), drawn(4, 4, seed=1)
    kept = DenseLogits()
    with kept.recorded():
        info_nce(dense)
    for _ in range(2):
        with kept.compared(kl_of_rows):
            found = float(info_nce(other))
        assert found == pytest.approx(float((kl(dense, other).mean() + kl(dense.T, other.T).mean()) / 2), rel=1e-5)


def centred(dense, logits):
    return kl_of_rows(dense.sub_(dense.mean(-1, keepdim=True)), logits)


class Centred:
    def __call__(self, dense, logits):
        return centred(dense, logits)


@pytest.mark.parametrize(("divergence", "name"), [(centred, "centred"), (Centred(), "Centred")])
def test_a_divergence_that_writes_into_the_dense_logits_is_refused(divergence, name):
    kept, labels = DenseLogits(), torch.tensor([[1, 2, 3]])
    with kept.recorded():
        mean_nll(drawn(1, 3, 4), labels)
    with (
        kept.compared(divergence),
        pytest.raises(
            ModelError, match=rf"the divergence {name} wrote into the dense model's logits, .*dense\.softmax"
        ),
    ):
        mean_nll(drawn(1, 3, 4, seed=1), labels)


def test_a_divergence_may_write_into_what_it_has_made_itself():
    """Of the pruned logits too, whose gradient follows."""
    kept, labels, logits = DenseLogits(), torch.tensor([[1, 2, 3]]), drawn(1, 3, 4, seed=1)
    with kept.recorded():
        mean_nll(drawn(1, 3, 4), labels)
    with kept.compared(lambda dense, logits: kl_of_rows(dense.clone().add_(1), logits * 1)):
        found = mean_nll(logits, labels)
    assert float(found) == pytest.approx(float(kl(drawn(1, 3, 4), logits).mean()), rel=1e-5)


def test_other_targets_are_refused():
    kept = DenseLogits()
    with kept.recorded():
        mean_nll(drawn(1, 3, 4), torch.tensor([[1, 2, 3]]))
    with kept.compared(kl_of_rows), pytest.raises(ModelError, match="other targets"):
        mean_nll(drawn(1, 2, 4), torch.tensor([[1, 2]]))


def test_a_mean_that_somebody_else_computes_is_left_alone():
    kept = DenseLogits()
    logits, labels = drawn(3, 4), torch.tensor([0, 1, 2])
    with kept.recorded():
        value = F.cross_entropy(logits, labels)
    assert kept.is_empty
    assert torch.equal(value, F.cross_entropy(logits, labels))
