"""Sensitivity curves against a model whose blocks are pruned one after the other by hand."""

from types import SimpleNamespace

import pytest
import torch
from plan_contexts import context

from ecoflap import ColumnNorm, EcoflapError, Keep, Pruned, Replay, select
from ecoflap.adapters.llama import LlamaAdapter
from ecoflap.core.budget.counts import keep_count
from ecoflap.core.contracts.blame import PartError
from ecoflap.core.errors import NotFiniteError
from ecoflap.plugins.pruners.magnitude import Magnitude
from ecoflap.plugins.pruners.refit import Refit
from ecoflap.plugins.pruners.wanda import Wanda
from ecoflap.plugins.scorers.sensitivity import Sensitivity

LEVELS = (0.3, 0.5, 0.8)


def all_layers(replay):
    return [layer for _, layer in replay.anatomy.layers()]


def norms_of(replay):
    """Each layer's Σx² over all batches, read with hooks on the dense model's plain forward."""
    norms: dict[str, torch.Tensor] = {}

    def hook(name):
        return lambda _, inputs, __: norms.__setitem__(name, norms.get(name, 0) + inputs[0].square().sum((0, 1)))

    handles = [layer.module.register_forward_hook(hook(layer.name)) for layer in all_layers(replay)]
    loss(replay)
    for handle in handles:
        handle.remove()
    return norms


def loss(replay):
    with torch.no_grad():
        losses = [replay.adapter.loss(replay.model, batch).double() for batch in replay.batches]
    return float(torch.stack(losses).mean())


def pruned_by_hand(weight, norms, level, *, by_row):
    """The smallest |W|·‖X‖ of each row, or of the whole matrix, set to zero by sorting."""
    keep = keep_count(weight.numel(), level)
    metric = weight.abs() * norms.sqrt() if norms is not None else weight.abs()
    out = weight.clone()
    if not by_row:
        out.flatten()[metric.flatten().argsort(stable=True)[: weight.numel() - keep]] = 0
        return out
    rows = len(weight)
    for i in range(rows):
        count = (i + 1) * keep // rows - i * keep // rows
        out[i, metric[i].argsort(stable=True)[: weight.shape[1] - count]] = 0
    return out


@pytest.mark.parametrize("joint", [True, False])
@pytest.mark.parametrize("pruner", [Wanda(), Magnitude()])
def test_each_rise_is_that_of_the_loss_with_this_part_alone_pruned(replay, joint, pruner):
    before = {name: tensor.clone() for name, tensor in replay.model.state_dict().items()}
    norms = norms_of(replay) if isinstance(pruner, Wanda) else {}
    dense = loss(replay)
    curves = dict(Sensitivity(levels=LEVELS, prune=pruner, joint=joint)(replay, all_layers(replay)))
    parts = {block.name: replay.anatomy.layers_of[block.name] for block in replay.blocks}
    if not joint:
        parts = {layer.name: [layer] for layer in all_layers(replay)}
    assert list(curves) == list(parts)
    for name, layers in parts.items():
        rises = []
        for level in LEVELS:
            for layer in layers:
                weight = before[layer.name]
                by_hand = pruned_by_hand(weight, norms.get(layer.name), level, by_row=isinstance(pruner, Wanda))
                layer.weight.data.copy_(by_hand)
            rises.append(loss(replay) - dense)
            for layer in layers:
                layer.weight.data.copy_(before[layer.name])
        assert curves[name].levels == LEVELS
        assert curves[name].rises == pytest.approx(rises, abs=2e-6)
    assert len({curve.rises for curve in curves.values()}) == len(parts)
    assert all(torch.equal(tensor, before[name]) for name, tensor in replay.model.state_dict().items())


def test_a_scorer_that_goes_on_finds_the_same_curves(replay):
    layers = all_layers(replay)
    whole = dict(Sensitivity(samples=4)(replay, layers))
    anew = Replay(replay.model, LlamaAdapter(), replay.batches)
    last = replay.anatomy.layers_of[replay.blocks[-1].name]
    name = replay.blocks[-1].name
    assert dict(Sensitivity(samples=4)(anew, last)) == {name: whole[name]}


def test_weights_come_back_where_the_pruner_fails_or_a_reader_stops(replay):
    class Fails:
        needs = (ColumnNorm,)

        def __call__(self, weight, seen, budget, layer):
            weight.zero_()
            raise EcoflapError("not today")

    class Breaks:
        def __call__(self, weight, seen, budget, layer):
            raise KeyError("norms")

    class Infinite:
        def __call__(self, weight, seen, budget, layer):
            assert isinstance(budget, Keep)
            return Pruned(torch.ones_like(weight, dtype=torch.bool), weight / 0)

    class NotFinite:
        def __call__(self, weight, seen, budget, layer):
            mask = torch.arange(weight.numel()).reshape(weight.shape) < budget.keep_of(weight.numel())
            return Pruned(mask, torch.where(mask, torch.inf, 0.0))

    before = {name: tensor.clone() for name, tensor in replay.model.state_dict().items()}
    first = all_layers(replay)[0].name
    with pytest.raises(EcoflapError, match=f"{first}: not today"):
        list(Sensitivity(prune=Fails())(replay, all_layers(replay)))
    with pytest.raises(
        PartError, match=rf"{first}: at a sparsity of 0\.4 the pruner Breaks raised KeyError: 'norms'\."
    ):
        list(Sensitivity(prune=Breaks())(replay, all_layers(replay)))
    with pytest.raises(EcoflapError, match=rf"{first}: at a sparsity of 0\.4 the pruner Infinite kept \d+ weights"):
        list(Sensitivity(prune=Infinite())(replay, all_layers(replay)))
    with pytest.raises(EcoflapError, match="the pruner NotFinite returned NaN or infinite weights"):
        list(Sensitivity(prune=NotFinite())(replay, all_layers(replay)))
    scores = Sensitivity()(replay, all_layers(replay))
    next(scores)
    scores.close()
    assert all(torch.equal(tensor, before[name]) for name, tensor in replay.model.state_dict().items())


@pytest.mark.parametrize("joint", [True, False])
def test_a_level_without_a_finite_loss_is_named(replay, joint):
    class Overflows:
        def __call__(self, weight, seen, budget, layer):
            mask = select(weight.abs(), budget, "row")
            fine = budget.keep_of(weight.numel()) > weight.numel() / 2
            return Pruned(mask, mask * (weight if fine else torch.full_like(weight, 3e37)))

    before = {name: tensor.clone() for name, tensor in replay.model.state_dict().items()}
    with pytest.raises(NotFiniteError) as raised:
        list(Sensitivity(levels=(0.4, 0.8), prune=Overflows(), joint=joint)(replay, all_layers(replay)))
    name = replay.blocks[0].name if joint else all_layers(replay)[0].name
    assert str(raised.value).startswith(f"{name}: pruned alone to a sparsity of 0.8 it has no finite loss")
    assert "Leave this level out of score.levels" in str(raised.value)
    assert all(torch.equal(tensor, before[name]) for name, tensor in replay.model.state_dict().items())


def test_what_the_pruner_notes_is_told_with_the_curve(pico_llama):
    ids = torch.randint(3, 60, (1, 12), generator=torch.Generator().manual_seed(0))
    replay, again = (
        Replay(pico_llama(), LlamaAdapter(), [{"input_ids": ids, "attention_mask": torch.ones_like(ids)}]) for _ in "ab"
    )
    curves = dict(Sensitivity(samples=1, prune=Refit())(replay, all_layers(replay)))
    by_wanda = dict(Sensitivity(samples=1)(again, all_layers(again)))
    assert curves == by_wanda  # Refit keeps what Wanda gave, and has to say so
    for name, curve in curves.items():
        (kept,) = curve.notes
        first, *_ = replay.anatomy.layers_of[name]
        assert kept == f"{first.name}: fewer tokens than inputs are too few to refit by, so the inner result is kept"
        assert by_wanda[name].notes == ()
    assert replay.few_tokens_seen.keys() == {layer.name for layer in all_layers(replay)}
    assert not again.few_tokens_seen  # Wanda asks for no Gram matrix


def test_levels_that_earlier_rounds_have_passed_are_refused_by_the_plan():
    def said(rounds, levels=(0.4, 0.6, 0.8), sparsity=0.6):
        recipe = SimpleNamespace(rounds=rounds, round_count=len(rounds) if rounds else 1, sparsity=sparsity)
        return list(Sensitivity(levels=levels).problems(context(recipe)))

    assert said(None) == said((0.2, 0.39, 0.6)) == said((0.3, 0.6), sparsity=None) == []
    (problem,) = said((0.2, 0.6, 0.7), sparsity=0.7)
    assert problem.startswith("levels 0.4, 0.6 are no more than the 0.6 that is gone before the last round, which asks")
    assert problem.endswith("such as [0.7, 0.8, 0.9]")


@pytest.mark.parametrize("joint", [True, False])
def test_of_a_part_that_has_passed_levels_already_they_are_named(replay, joint):
    second = replay.blocks[1].name
    layers = replay.anatomy.layers_of[second]
    for layer in layers:
        layer.weight.data.copy_(pruned_by_hand(layer.weight.data, None, 0.62, by_row=False))
    first, *others = layers
    scorer = Sensitivity(samples=4, prune=Magnitude(), joint=joint)
    told = {name: curve.notes for name, curve in scorer(replay, all_layers(replay)) if curve.notes}
    past = "little or nothing rises at 0.4, 0.6, and its curve says little"
    said = f"0.62 of it is zero already, so that {past}. Take higher levels"
    assert told == {name: (f"{name}: {said}",) for name in ([second] if joint else [layer.name for layer in layers])}
    first.weight.data.copy_(torch.ones_like(first.weight))
    again = dict(scorer(Replay(replay.model, LlamaAdapter(), replay.batches), layers))
    assert [name for name, curve in again.items() if curve.notes] == ([] if joint else [layer.name for layer in others])


@pytest.mark.parametrize("joint", [True, False])
def test_forwards_are_counted(replay, joint):
    assert len(all_layers(replay)) == 7 * len(replay.blocks)
    scorer = Sensitivity(levels=(0.4, 0.6), joint=joint)
    expected = 5 * (1 + (len(replay.blocks) if joint else len(all_layers(replay))) * 2)
    assert scorer.forwards(replay.anatomy, 5) == expected


@pytest.mark.parametrize("wrong", [{"levels": (0.4,)}, {"levels": (0.6, 0.4)}, {"samples": 0}])
def test_parameters_out_of_range_are_refused_by_name(wrong):
    with pytest.raises(EcoflapError, match=next(iter(wrong))):
        Sensitivity(**wrong)
