"""First-order scores against plain autograd on the whole model."""

import pytest
import torch

from ecoflap import EcoflapError, Replay
from ecoflap.adapters.llama import LlamaAdapter
from ecoflap.plugins.scorers.first_order import FirstOrder, reduced


@pytest.fixture
def batches():
    generator = torch.Generator().manual_seed(4)
    ids = [torch.randint(3, 60, (2, 16), generator=generator) for _ in range(3)]
    return [{"input_ids": rows, "attention_mask": torch.ones_like(rows)} for rows in ids]


MEASURES = {
    "gradient": lambda w, g: g.abs().sum(),
    "magnitude_gradient": lambda w, g: (w.abs() * g.abs()).sum(),
    "magnitude_gradient_squared": lambda w, g: (w.square() * g.square()).sum(),
}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("measure", MEASURES)
def test_scores_are_autograds(pico_llama, batches, measure, dtype):
    model = pico_llama(dtype=dtype)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    replay = Replay(model, LlamaAdapter(), batches, dtype=torch.float32)
    layers = [layer for _, layer in replay.anatomy.layers()]
    with replay:
        scores = dict(FirstOrder(measure=measure)(replay, layers))
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    whole = pico_llama(dtype=dtype).float()
    terms: dict[str, list[float]] = {}
    for batch in batches:
        whole.zero_grad()
        LlamaAdapter().loss(whole, batch).backward()
        for name, parameter in whole.named_parameters():
            terms.setdefault(name, []).append(
                float(MEASURES[measure](parameter.data.double(), parameter.grad.double()))
            )
    for name, score in scores.items():
        assert score.terms == pytest.approx(terms[name], rel=1e-4), name


def test_only_the_layers_asked_for_are_scored(pico_llama, batches):
    replay = Replay(pico_llama(), LlamaAdapter(), batches)
    layers = [layer for _, layer in replay.anatomy.layers()][3:5]
    assert list(dict(FirstOrder()(replay, layers))) == [layer.name for layer in layers]


def test_a_layer_the_loss_does_not_depend_on_is_named(pico_llama, batches):
    model = pico_llama()

    class Frozen(LlamaAdapter):
        def loss(self, model, batch):
            return (
                super().loss(model, batch)
                if batch is not batches[1]
                else model.model.layers[0].mlp.up_proj.weight.sum()
            )

    replay = Replay(model, Frozen(), batches)
    layers = [layer for _, layer in replay.anatomy.layers()]
    with pytest.raises(EcoflapError, match=r"model.layers.0.self_attn.q_proj.weight: the loss does not depend on it"):
        list(FirstOrder()(replay, layers))


@pytest.mark.parametrize("measure", ["gradient", "magnitude_gradient", "magnitude_gradient_squared"])
def test_terms_of_a_large_layer_are_those_of_float64(measure):
    """A norm in float32 loses 0.3 to 3.5 % of so many."""
    drawn = torch.Generator().manual_seed(0)
    weight, gradient = (torch.randn(4096, 4096, generator=drawn) for _ in range(2))
    exact = gradient.double() if measure == "gradient" else gradient.double().mul_(weight)
    exact = exact.square_() if measure.endswith("squared") else exact.abs_()
    assert reduced(weight, gradient, measure) == pytest.approx(float(exact.sum()), rel=1e-5)
