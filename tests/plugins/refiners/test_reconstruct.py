"""``reconstruct`` on a run of a pico LLaMA, held against the same training written out over two whole models."""

import copy
from fractions import Fraction
from math import cos, pi

import numpy as np
import pytest
import torch
from spec import spec

from ecoflap import Anatomy, Replay
from ecoflap.adapters.llama import LlamaAdapter
from ecoflap.core.errors import EcoflapError
from ecoflap.core.planning.plan import make_plan, pools_of
from ecoflap.core.pruning.prune_blocks import BlockwisePruning
from ecoflap.plugins.allocators.uniform import Uniform
from ecoflap.plugins.pruners.magnitude import Magnitude
from ecoflap.plugins.refiners.reconstruct import Reconstruct, ecoflap_register_refiners

ADAPTER = LlamaAdapter()


def batches():
    return [
        {"input_ids": torch.arange(3, 23).reshape(2, 10) + n, "attention_mask": torch.ones(2, 10).long()}
        for n in range(4)
    ]


def pruned_by_the_engine(model, folder, refiner):
    anatomy = Anatomy.of(ADAPTER.towers(model), ADAPTER.layers)
    plan = make_plan(pools_of(anatomy, Fraction(1, 2), {}, []), Uniform(), "layer", None)
    replays = [Replay(model, ADAPTER, batches(), anatomy=anatomy) for _ in range(2)]
    refiners = {"language": [spec("refiner", refiner)]}
    fine = BlockwisePruning(
        replays[0],
        plan,
        {"language": spec("pruner", Magnitude())},
        folder,
        lambda event: None,
        refiners_of=refiners,
        dense=replays[1],
    )
    return fine()


def trained_by_hand(dense, masks, refiner):
    """Block after block of a whole model: prune, then Adam on the squared difference of hidden states, by token.

    Of each block all is trained at once, or one part after another.
    """
    model = copy.deepcopy(dense)
    named = dict(model.named_parameters())
    *training, _ = batches()  # the last is held out
    parts = ["self_attn", "mlp"] if refiner.each == "subblock" else [""]
    for index in range(len(model.model.layers)):
        block = f"model.layers.{index}"
        source = copy.deepcopy(model) if refiner.target == "own" else copy.deepcopy(dense)
        for name in (name for name in masks if name.startswith(f"{block}.")):
            named[name].data.mul_(masks[name])
        for module in (f"{block}.{part}".removesuffix(".") for part in parts):
            mine = {name: named[name] for name in masks if name.startswith(f"{module}.")}
            assert mine
            train(model, source, module, mine, training, refiner, masks)
    return named


def returned(model, module, batch):
    """What a module of a whole model returns, by a plain hook."""
    seen = []
    handle = model.get_submodule(module).register_forward_hook(lambda _, args, output: seen.append(output))
    model(**batch, use_cache=False)
    handle.remove()
    return seen[0][0] if isinstance(seen[0], tuple) else seen[0]


def train(model, source, module, mine, training, refiner, masks):
    """Train these parameters of a module of a model towards what that module gives in another model."""
    targets = [returned(source, module, batch).detach() for batch in training]
    rates = [first_rate(parameter, refiner) for parameter in mine.values()]
    optimisers = [torch.optim.Adam([parameter], betas=(0.9, 0.95)) for parameter in mine.values()]
    for step in range(refiner.steps):
        for optimiser, rate in zip(optimisers, rates, strict=True):
            optimiser.param_groups[0]["lr"] = rate * (1 + cos(pi * step / refiner.steps)) / 2
            optimiser.zero_grad()
        for place in range(step * refiner.batches, (step + 1) * refiner.batches):
            number = place % len(training)
            output = returned(model, module, training[number])
            shares = (output - targets[number]).square().sum(-1) / targets[number].square().sum(-1)
            (shares.mean() / refiner.batches).backward()
        for name, parameter in mine.items():
            parameter.grad.mul_(masks[name])
        for optimiser in optimisers:
            optimiser.step()


def first_rate(parameter, refiner):
    """The rate that was asked for, or the share of the root mean square of what Magnitude kept."""
    kept = [w for w in parameter.detach().double().numpy().ravel() if w != 0]
    return refiner.learning_rate or refiner.relative_rate * np.sqrt(np.mean(np.square(kept)))


def test_is_offered():
    assert ecoflap_register_refiners() == {"reconstruct": Reconstruct}
    assert Reconstruct() == Reconstruct(
        steps=32, batches=2, relative_rate=4e-3, learning_rate=None, target="dense", each="block"
    )


@pytest.mark.parametrize("each", ["block", "subblock"])
@pytest.mark.parametrize("target", ["dense", "own"])
@pytest.mark.parametrize("rate", [{"learning_rate": 1e-3}, {"relative_rate": 1e-2}])
def test_is_the_training_written_out(pico_llama, tmp_path, rate, target, each):
    refiner = Reconstruct(steps=5, batches=2, target=target, each=each, **rate)
    model = pico_llama(layers=2)
    with torch.no_grad():  # matrices of lengths far apart
        model.model.layers[0].self_attn.o_proj.weight.mul_(4)
        model.model.layers[1].mlp.down_proj.weight.mul_(0.3)
    dense = copy.deepcopy(model)
    masks = pruned_by_the_engine(model, tmp_path / "blocks", refiner)
    expected = trained_by_hand(dense, dict(masks), refiner)
    moved = 0.0
    for name, parameter in model.named_parameters():
        torch.testing.assert_close(parameter.detach(), expected[name].detach(), rtol=1e-3, atol=2e-5)
        if name in masks:
            assert torch.equal(parameter != 0, masks[name])
            before = dict(dense.named_parameters())[name] * masks[name]
            moved = max(moved, float((parameter - before).detach().abs().max()))
    assert moved > 1e-3


@pytest.mark.parametrize("wrong", [{"steps": 0}, {"batches": -1}, {"relative_rate": -1e-3}, {"learning_rate": 0.0}])
def test_parameters_below_zero_are_refused(wrong):
    (name,) = wrong
    with pytest.raises(EcoflapError, match=f"{name} should be a finite number above 0"):
        Reconstruct(**wrong)
