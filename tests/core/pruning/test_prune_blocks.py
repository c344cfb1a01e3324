"""The fine step on a pico model: order, resuming, and what a pruner from anywhere may not do."""

import shutil
from dataclasses import replace
from statistics import mean
from typing import ClassVar

import pytest
import torch
from spec import spec
from torch import nn

from ecoflap import Anatomy, ColumnNorm, EcoflapError, Gram, Layer, Pruned, Replay
from ecoflap.adapters.llama import LlamaAdapter
from ecoflap.core.budget.counts import Pattern
from ecoflap.core.contracts.events import LayerPruned, Refined, Warned
from ecoflap.core.contracts.records import LayerPlace, Mended
from ecoflap.core.errors import ModelError
from ecoflap.core.forward.observation import Observed
from ecoflap.core.planning.plan import make_plan, pools_of
from ecoflap.core.pruning.prune_blocks import BlockwisePruning, by_input, unfed_wholly
from ecoflap.plugins.allocators.uniform import Uniform
from ecoflap.plugins.metrics.magnitude_gradient import MagnitudeGradient
from ecoflap.plugins.pruners.by_metric import ByMetric
from ecoflap.plugins.pruners.magnitude import Magnitude
from ecoflap.plugins.pruners.wanda import Wanda


def place(name):
    """Where a layer of the pico LLaMA is."""
    block = name.split(".")[2]
    return LayerPlace(name, "language", f"model.layers.{block}", int(block), 0)


@pytest.fixture
def step(pico_llama, tmp_path):
    """``step(pruner, sparsity)``: a fine step over a pico model, and the events it emits."""
    adapter = LlamaAdapter()
    batch = {"input_ids": torch.arange(24).reshape(2, 12), "attention_mask": torch.ones(2, 12, dtype=torch.int64)}

    def step(pruner, sparsity="1/2", model=None, spare=0):
        from fractions import Fraction

        model = model or pico_llama()
        anatomy = Anatomy.of(adapter.towers(model), adapter.layers)
        wanted = Pattern.parse(sparsity) if ":" in sparsity else Fraction(sparsity)
        plan = make_plan(pools_of(anatomy, wanted, {}, []), Uniform(), "layer", None)
        events = []
        replay = Replay(model, adapter, [batch], spare=spare)
        pruners = {"language": spec("pruner", pruner)}
        return BlockwisePruning(replay, plan, pruners, tmp_path / "blocks", events.append), events

    return step


class Wrong(Magnitude):
    """Magnitude, spoilt afterwards."""

    def __init__(self, spoil):
        object.__setattr__(self, "spoil", spoil)

    def __call__(self, weight, seen, budget, layer):
        return self.spoil(super().__call__(weight, seen, budget, layer), weight)


def one_less(pruned, weight):
    mask = pruned.mask.clone()
    mask[tuple(mask.nonzero()[0])] = False
    return Pruned(mask, weight * mask)


@pytest.mark.parametrize(
    ("spoil", "told"),
    [
        (one_less, "the pruner Wrong kept 511 weights where the plan keeps 512"),
        (lambda pruned, weight: Pruned(pruned.mask, weight), "the pruner Wrong left a weight that its mask prunes"),
        (lambda pruned, weight: Pruned(pruned.mask, pruned.weight.half()), r"a weight of .*float16\) for one of"),
        (lambda pruned, weight: Pruned(pruned.mask.int(), pruned.weight), "returned a mask of torch.int32"),
        (lambda pruned, weight: Pruned(pruned.mask.to("meta"), pruned.weight), "a mask on meta; the layer is on cpu"),
        (lambda pruned, weight: Pruned(pruned.mask.to_sparse(), pruned.weight), "a mask that is sparse_coo; a de"),
        (lambda pruned, weight: Pruned(pruned.mask, pruned.weight.to_sparse()), "a weight that is sparse_coo"),
        (lambda pruned, weight: Pruned(pruned.mask, pruned), r"a weight that is Pruned\(.*; a tensor is wanted"),
        (lambda pruned, weight: Pruned(pruned.mask.T[:1], pruned.weight), r"torch\.bool \(1, 32\) for a weight"),
        (lambda pruned, weight: Pruned(pruned.mask, torch.where(pruned.mask, torch.inf, 0.0)), "NaN or infin"),
    ],
)  # fmt: skip
def test_a_pruner_that_breaks_the_plan_is_refused_by_layer(step, spoil, told):
    fine, _ = step(Wrong(spoil))
    with pytest.raises(ModelError, match=rf"^model\.layers\.0\.self_attn\.q_proj\.weight: .*{told}"):
        fine()
    assert not fine.folder.exists()


def test_a_weight_that_follows_gradients_is_one_like_any_other_and_whether_torch_does_is_put_back(step):
    def followed(pruned, weight):
        torch.set_grad_enabled(False)
        return Pruned(pruned.mask, pruned.weight.requires_grad_())

    fine, _ = step(Wrong(followed))
    fine()
    assert torch.is_grad_enabled()


def test_a_pruner_that_leaves_nothing_is_told(step):
    fine, events = step(Wrong(lambda pruned, weight: Pruned(pruned.mask, torch.zeros_like(weight))))
    fine()
    told = [event.message for event in events if isinstance(event, Warned)]
    assert "model.layers.0.self_attn.q_proj.weight: the pruner has set every weight that its mask keeps to 0" in told


def test_a_pattern_must_hold_and_not_only_its_count(step):
    def first_half(pruned, weight):
        mask = torch.zeros_like(pruned.mask)
        mask[:, : mask.shape[1] // 2] = True
        return Pruned(mask, weight * mask)

    fine, _ = step(Wrong(first_half), "2:4")
    with pytest.raises(ModelError, match=r"q_proj\.weight: the pruner Wrong did not keep 2 of every 4 inputs"):
        fine()


def test_an_error_of_the_pruner_gets_the_layers_name(step):
    class Refuses(Magnitude):
        def __call__(self, weight, seen, budget, layer):
            raise EcoflapError("not this one")

    fine, _ = step(Refuses())
    with pytest.raises(EcoflapError, match=r"^model\.layers\.0\.self_attn\.q_proj\.weight: not this one$"):
        fine()


def test_every_layer_is_told_with_what_was_kept(step):
    fine, events = step(Wanda())
    masks = fine()
    told = [event for event in events if isinstance(event, LayerPruned)]
    assert [event.name for event in told] == list(masks) == list(fine.plan.layers)
    assert all(event.kept == int(masks[event.name].sum()) and event.zeros == 0 for event in told)


def test_kept_weights_that_are_zero_are_counted(step, pico_llama):
    model = pico_llama()
    model.model.layers[0].mlp.up_proj.weight.data[:30] = 0
    fine, events = step(Magnitude(), "1/4", model)
    fine()
    zeros = {event.name: event.zeros for event in events if isinstance(event, LayerPruned)}
    name = "model.layers.0.mlp.up_proj.weight"
    nonzero = 18 * 32
    assert zeros.pop(name) == fine.plan.layers[name].keep - nonzero > 0
    assert set(zeros.values()) == {0}


def test_gradients_of_the_loss_are_the_dense_models_in_all_blocks_and_after_a_break(step, pico_llama):
    """By |W|·|g| of the dense model no mask depends on what was pruned before it."""
    whole, _ = step(ByMetric(MagnitudeGradient(), "layer"))
    model = whole.replay.model
    whole.replay.adapter.loss(model, whole.replay.batches[0]).backward()
    metric = {name: one.detach().abs() * one.grad.abs() for name, one in model.named_parameters()}
    model.zero_grad()
    expected = whole()
    for name, mask in expected.items():
        keep = whole.plan.layers[name].keep
        order = metric[name].flatten().argsort(stable=True, descending=True)
        assert mask.flatten()[order[: keep - 2]].all(), name
        assert not mask.flatten()[order[keep + 2 :]].any(), name
    (whole.folder / "001.safetensors").unlink()
    again, _ = step(ByMetric(MagnitudeGradient(), "layer"), model=pico_llama())
    masks = again()
    assert all(torch.equal(masks[name], mask) for name, mask in expected.items())
    assert sorted(path.name for path in whole.folder.iterdir()) == [f"00{at}.safetensors" for at in range(3)]


def test_later_blocks_see_the_pruned_ones_and_blocks_on_disk_are_taken_over(step, pico_llama):
    whole, _ = step(Wanda())
    expected = whole()
    weights = {layer.name: layer.weight.data.clone() for _, layer in whole.replay.anatomy.layers()}
    dense, _ = step(Wanda(), model=pico_llama())
    masks = {}
    for index, block in enumerate(dense.replay.blocks):  # each alone, before anything is pruned
        seen = dense.replay.run(index, Wanda.needs)
        for layer in dense.replay.anatomy.layers_of[block.name]:
            budget = dense.plan.layers[layer.name].budget
            masks[layer.name] = Wanda()(layer.weight.data, seen[layer.name], budget, place(layer.name)).mask
        dense.replay.advance(index)
    same = [torch.equal(masks[name], expected[name]) for name in masks]
    assert all(same[:7])
    assert not all(same[7:])

    (whole.folder / "002.safetensors").unlink()
    resumed, events = step(Wanda())
    again = resumed()
    assert all(torch.equal(again[name], expected[name]) for name in expected)
    assert all(torch.equal(layer.weight.data, weights[layer.name]) for _, layer in resumed.replay.anatomy.layers())
    assert {event.name[:14] for event in events if isinstance(event, LayerPruned)} == {"model.layers.2"}


def test_nothing_is_run_when_every_block_is_on_disk(step, monkeypatch):
    step(Wanda())[0]()
    resumed, events = step(Wanda())

    def refuse(*_):
        raise AssertionError("a forward")

    monkeypatch.setattr(Replay, "run", refuse)
    monkeypatch.setattr(Replay, "advance", refuse)
    resumed()
    assert not [event for event in events if isinstance(event, LayerPruned)]


def test_a_block_of_another_plan_is_refused(step):
    step(Wanda())[0]()
    other, _ = step(Wanda(), "1/4")
    with pytest.raises(EcoflapError, match=r"000\.safetensors: this is another block, or one of another plan\. Delete"):
        other()


def test_a_note_on_a_shared_statistic_is_told_once_a_block(step):
    class Notes(Magnitude):
        needs: ClassVar[tuple] = (Gram,)

        def __call__(self, weight, seen, budget, layer):
            return super().__call__(weight, seen, budget, layer)._replace(notes=(f"odd {id(seen[Gram])}",))

    fine, events = step(Notes())
    fine()
    told = [event.message for event in events if isinstance(event, Warned) and ": odd " in event.message]
    firsts = ("self_attn.q_proj", "self_attn.o_proj", "mlp.gate_proj", "mlp.down_proj")
    expected = [f"model.layers.{i}.{name}.weight" for i in range(3) for name in firsts]
    assert [text.partition(": ")[0] for text in told] == expected


def test_a_pruner_hears_which_layer_it_prunes(step):
    heard = []

    class Hears(Magnitude):
        def __call__(self, weight, seen, budget, layer):
            heard.append(layer)
            return super().__call__(weight, seen, budget, layer)

    fine, _ = step(Hears())
    fine()
    assert [one.name for one in heard] == list(fine.plan.layers)
    assert heard[0] == LayerPlace("model.layers.0.self_attn.q_proj.weight", "language", "model.layers.0", 0, 0)
    assert heard[-1] == LayerPlace("model.layers.2.mlp.down_proj.weight", "language", "model.layers.2", 2, 6)


def test_a_pruner_that_raises_is_named_with_its_layer_and_its_line(step):
    class Breaks(Magnitude):
        def __call__(self, weight, seen, budget, layer):
            return {}["weight"]

    fine, _ = step(Breaks())
    text = (
        r"^model\.layers\.0\.self_attn\.q_proj\.weight: the pruner Breaks raised KeyError: 'weight'\. "
        r"It happened in test_prune_blocks\.py:\d+, __call__\.$"
    )
    with pytest.raises(EcoflapError, match=text):
        fine()


@pytest.mark.parametrize("answer", [None, 3, (1, 2), "mask"])
def test_a_pruner_that_returns_nonsense_is_named_with_its_layer(step, answer):
    class Odd(Magnitude):
        def __call__(self, weight, seen, budget, layer):
            return answer

    fine, _ = step(Odd())
    with pytest.raises(EcoflapError, match=r"^model\.layers\.0\.self_attn\.q_proj\.weight: the pruner Odd "):
        fine()


class Mends(Magnitude):
    """Says of q that it was mended twice, of o that it was not, and nothing of the others."""

    TOLD: ClassVar = {"q": (("swap", 0.5, 0.4, True), ("refit", 0.4, 0.3, True)), "o": (("refit", 0.2, 0.9, False),)}

    def __call__(self, weight, seen, budget, layer):
        told = self.TOLD.get(layer.name.removesuffix("_proj.weight").rpartition(".")[2], ())
        return super().__call__(weight, seen, budget, layer)._replace(mended=tuple(Mended(*one) for one in told))


def test_what_was_mended_is_told_once_a_block_with_the_mean_over_its_layers(step):
    fine, events = step(Mends())
    fine()
    told = [replace(event, seconds=0.0) for event in events if isinstance(event, Refined)]
    assert told == [
        Refined(f"model.layers.{block}", by, {"training": before}, {"training": after}, True, 0.0, None)
        for block in range(3)
        for by, before, after in (("swap", 0.5, 0.4), ("refit", mean((0.4, 0.2)), mean((0.3, 0.2))))
    ]


@pytest.mark.parametrize("mended", [None, [], (3,), (Mended("a", 0.1, float("nan"), True),), (Mended(1, 0, 0, True),)])
def test_what_was_mended_is_a_tuple_of_it_with_finite_errors(step, mended):
    class Odd(Magnitude):
        def __call__(self, weight, seen, budget, layer):
            return super().__call__(weight, seen, budget, layer)._replace(mended=mended)

    fine, _ = step(Odd())
    with pytest.raises(
        ModelError, match=r"q_proj\.weight: the pruner Odd mended .*; what was mended is a tuple of Mended"
    ):
        fine()


@pytest.mark.parametrize("doubling", [False, True])
def test_a_finished_block_of_which_a_byte_changed_is_refused(step, tmp_path, doubling):
    """Of its masks; and of the weights that a pruner changed, which once were read as whatever they had become."""
    pruner = Wrong(lambda pruned, weight: Pruned(pruned.mask, 2 * pruned.weight)) if doubling else Magnitude()
    step(pruner)[0]()
    path = tmp_path / "blocks" / "001.safetensors"
    written = path.read_bytes()
    for at in (len(written) // 2, len(written) - 1, 40):
        path.write_bytes(written[:at] + bytes([written[at] ^ 1]) + written[at + 1 :])
        with pytest.raises(EcoflapError, match=r"001\.safetensors.*\. Delete it, and the run prunes that block again"):
            step(pruner)[0]()
    path.unlink()
    assert list(step(pruner)[0]())
    assert path.read_bytes() == written


class Counted(ColumnNorm):
    """Counts the calls whose inputs are summed."""

    calls = 0

    def add(self, inputs):
        super().add(inputs)
        Counted.calls += 1


class Looks(Magnitude):
    """Magnitude that asks for a statistic that counts."""

    needs = (Counted,)


def test_with_sequential_an_input_that_layers_share_is_summed_once(step, monkeypatch):
    """There is one batch, and each block has four inputs; what shares one is found without summing."""
    monkeypatch.setattr(Counted, "calls", 0)
    fine, _ = step(Looks())
    replace(fine, sequential=True)()
    assert Counted.calls == len(fine.replay.blocks) * 4


def test_with_sequential_masks_lie_in_the_order_of_layers_as_those_of_a_run_that_goes_on(step):
    """By name o stands among q, k and v, which share their input."""

    def masks():
        fine, _ = step(Wanda())
        anatomy = fine.replay.anatomy
        by_name = {block: sorted(layers, key=lambda layer: layer.name) for block, layers in anatomy.layers_of.items()}
        fine.replay.anatomy = replace(anatomy, layers_of={block: tuple(layers) for block, layers in by_name.items()})
        return replace(fine, sequential=True)()

    assert list(masks()) == list(masks())


def test_experts_are_grouped_by_what_the_adapter_says_of_them_and_never_by_their_names():
    """A number may tell one matrix of an expert from another as well as one expert from another."""
    packed, own = nn.Module(), [nn.Linear(4, 4, bias=False) for _ in range(6)]
    layers = [
        Layer(f"{name}[{part}]", packed, name, layout="routed", part=part) for name in ("w1", "w2") for part in (0, 1)
    ]
    layers += [
        Layer(f"experts.{at % 2}.w{at // 2}", one, layout="routed", of_experts=f"experts.*.w{at // 2}")
        for at, one in enumerate(own[:4])
    ]
    layers += [Layer(f"unsaid.{at}.weight", one, layout="routed") for at, one in enumerate(own[4:])]
    groups = [[layer.name for layer in group] for group in by_input(layers, Observed({}, {}))]
    assert groups == [
        ["w1[0]", "w1[1]"],
        ["w2[0]", "w2[1]"],
        ["experts.0.w0", "experts.1.w0"],
        ["experts.0.w1", "experts.1.w1"],
        ["unsaid.0.weight"],
        ["unsaid.1.weight"],
    ]


def test_parameters_of_which_no_expert_was_reached_are_told_from_those_of_which_some_were():
    packed = nn.Module()
    layers = [
        Layer(f"{name}[{part}]", packed, name, layout="routed", part=part) for name in ("w1", "w2") for part in (0, 1)
    ]
    layers.append(Layer("own.weight", nn.Linear(4, 4), layout="routed", of_experts="*.weight"))
    assert unfed_wholly(layers, ["w1[0]", "w1[1]", "w2[1]", "own.weight"]) == ["w1"]
    assert unfed_wholly(layers, ["w1[1]", "w2[1]"]) == []


@pytest.mark.parametrize("spare", [0, 1 << 30], ids=["a forward for each group", "forwards that wait"])
def test_with_sequential_a_layer_sees_what_pruned_ones_before_it_give(step, spare):
    """o is pruned by what attention gives with q, k and v pruned, down by what pruned gate and up give."""
    plain, _ = step(Wanda())
    expected = plain()
    one, _ = step(Wanda(), spare=spare)
    one = replace(one, sequential=True, folder=one.folder.parent / "sequential")
    masks = one()
    order = [["q_proj", "k_proj", "v_proj"], ["o_proj"], ["gate_proj", "up_proj"], ["down_proj"]]
    by_hand, _ = step(Wanda())
    layers = {layer.name.split(".")[-2]: layer for layer in by_hand.replay.anatomy.layers_of["model.layers.0"]}
    for group in order:
        seen = by_hand.replay.run(0, Wanda.needs)
        for name in group:
            layer = layers[name]
            budget = by_hand.plan.layers[layer.name].budget
            pruned = Wanda()(layer.weight.data, seen[layer.name], budget, place(layer.name))
            layer.weight.data.copy_(pruned.weight)
            assert torch.equal(masks[layer.name], pruned.mask)
    assert torch.equal(masks[layers["q_proj"].name], expected[layers["q_proj"].name])
    assert not torch.equal(masks[layers["down_proj"].name], expected[layers["down_proj"].name])


class Drawn:
    """Keeps what it draws."""

    def __call__(self, weight, seen, budget, layer):
        mask = torch.zeros(weight.numel(), dtype=torch.bool)
        mask[torch.randperm(weight.numel())[: budget.count]] = True
        mask = mask.reshape(weight.shape)
        return Pruned(mask, weight * mask)


def test_what_a_pruner_draws_follows_from_the_seed_and_the_layer(step, pico_llama, tmp_path):
    found = []
    for seed in (0, 1):
        model = pico_llama()
        torch.manual_seed(seed)  # whatever was drawn before
        fine, _ = step(Drawn(), model=model)
        fine()
        found.append([one.data for one in model.model.layers.parameters() if one.ndim == 2])
        shutil.rmtree(tmp_path / "blocks")
    assert all(torch.equal(*pair) for pair in zip(*found, strict=True))
    first, second = ((block.self_attn.q_proj.weight == 0) for block in model.model.layers[:2])
    assert not torch.equal(first, second)
