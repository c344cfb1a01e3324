"""With ``sequential``, experts are pruned matrix by matrix as they run, each matrix of all of them at once."""

from collections.abc import Callable, Iterator, Sequence
from fractions import Fraction
from pathlib import Path

import pytest
import torch
from several import several
from spec import spec
from torch import Tensor, nn
from torch.nn import functional as F
from transformers_version import is_before

from ecoflap import Layer, Replay
from ecoflap.adapters.generic.causal_lm import CausalLMAdapter
from ecoflap.core.planning.plan import Plan, make_plan, pools_of
from ecoflap.core.pruning.masks import PackedMasks, read_masks, save_masks
from ecoflap.core.pruning.prune_blocks import BlockwisePruning
from ecoflap.core.ranks.ranks import ALONE, Ranks
from ecoflap.plugins.allocators.uniform import Uniform
from ecoflap.plugins.pruners.wanda import Wanda

EXPERTS, HIDDEN, INNER = 4, 32, 48


class Expert(nn.Module):
    """An expert whose matrices are made in alphabetical order, as Mixtral's are, of which the second runs last."""

    def __init__(self, gate: str, up: str, down: str) -> None:
        super().__init__()
        self.names = gate, up, down
        for name in sorted(self.names):
            sizes = (INNER, HIDDEN) if name == down else (HIDDEN, INNER)
            self.add_module(name, nn.Linear(*sizes, bias=False))

    def forward(self, hidden: Tensor) -> Tensor:
        gate, up, down = map(self.get_submodule, self.names)
        return down(F.silu(gate(hidden)) * up(hidden))  # type: ignore[no-any-return]


class Mixture(nn.Module):
    """Gives each token to two experts, each of which has modules of its own, as transformers had them before 5."""

    def __init__(self, names: Sequence[str]) -> None:
        super().__init__()
        self.gate = nn.Linear(HIDDEN, EXPERTS, bias=False)
        self.experts = nn.ModuleList(Expert(*names) for _ in range(EXPERTS))

    def forward(self, hidden: Tensor) -> Tensor:
        rows = hidden.reshape(-1, HIDDEN)
        weights, chosen = self.gate(rows).softmax(-1).topk(2)
        made = torch.zeros_like(rows)
        for number, expert in enumerate(self.experts):
            at, place = torch.where(chosen == number)
            made.index_add_(0, at, expert(rows[at]) * weights[at, place, None])
        return made.reshape(hidden.shape)


def mixing(*names: str) -> nn.Module:
    import pico_decoder
    from family import redraw

    model = pico_decoder.build(intermediate_size=INNER)
    for block in model.model.layers:  # type: ignore[union-attr]
        block.mlp = Mixture(names)
    return redraw(model)


def of_family(kind: str) -> nn.Module:
    from pico_causal import FAMILIES

    if kind == "dbrx" and is_before("5"):
        pytest.skip("before 5 its configuration has other keys")
    return FAMILIES[kind].build()


IS_5 = not is_before("5")
OWN_GATES = ["experts.*.gate_proj", "experts.*.up_proj", "experts.*.down_proj"]
OWN_NUMBERS = ["experts.*.w1", "experts.*.w3", "experts.*.w2"]
PACKED = ["experts.gate_up_proj", "experts.down_proj"]
MODELS: dict[str, tuple[Callable[[], nn.Module], Sequence[str]]] = {
    "numbers": (lambda: mixing("w1", "w3", "w2"), OWN_NUMBERS),
    "gates": (lambda: mixing("gate_proj", "up_proj", "down_proj"), OWN_GATES),
    "dbrx": (lambda: of_family("dbrx"), ["experts.mlp.w1", "experts.mlp.v1", "experts.mlp.w2"]),
    "mixtral": (lambda: of_family("mixtral"), PACKED if IS_5 else OWN_NUMBERS),
    "qwen2_moe": (lambda: of_family("qwen2_moe"), PACKED if IS_5 else OWN_GATES),
    "qwen3_moe": (lambda: of_family("qwen3_moe"), PACKED if IS_5 else OWN_GATES),
}


@pytest.fixture(params=MODELS)
def case(request: pytest.FixtureRequest) -> tuple[Callable[[], nn.Module], Sequence[str]]:
    return MODELS[request.param]


def replay_of(model: nn.Module, ranks: Ranks = ALONE) -> tuple[Replay, Plan]:
    from pico_decoder import samples

    adapter = CausalLMAdapter()
    batches = [adapter.collate(model, [sample]) for sample in samples(4)]
    replay = Replay(model, adapter, batches, ranks=ranks)
    return replay, make_plan(pools_of(replay.anatomy, Fraction(1, 2), {}, []), Uniform(), "layer", None)


def pruned(model: nn.Module, folder: Path, ranks: Ranks = ALONE) -> PackedMasks:
    replay, plan = replay_of(model, ranks)
    pruners = {"language": spec("pruner", Wanda())}
    return BlockwisePruning(replay, plan, pruners, folder, lambda event: None, sequential=True)()


def of_matrix(layers: Sequence[Layer], matrix: str) -> Iterator[Layer]:
    """Give the layers of all experts that are one matrix of them, such as ``experts.*.w1``, by their names."""
    before, _, after = matrix.partition("*")
    for layer in layers:
        whole = layer.name.partition("[")[0].removesuffix(".weight")
        if layer.layout == "routed" and before in whole and whole.endswith(after or before):
            yield layer


def test_each_matrix_of_experts_sees_what_pruned_ones_before_it_give(case, tmp_path):
    """By hand: the statistics of the first block are taken anew before each matrix, in the order the model's code has.

    Attention is as the run left it; what experts read is after it.
    """
    build, order = case
    model, other = build(), build()
    masks = pruned(model, tmp_path)
    replay, plan = replay_of(other)
    name = replay.blocks[0].name
    routed = {layer.name for layer in replay.anatomy.layers_of[name] if layer.layout == "routed"}
    ours = {layer.name: layer for _, layer in replay.anatomy.layers(replay.blocks[:1])}
    for _, layer in replay_of(model)[0].anatomy.layers(replay.blocks[:1]):
        if layer.name not in routed:
            ours[layer.name].weight.data.copy_(layer.weight)
    unfed = replay.run(0, Wanda.needs)
    differs = False
    done: list[str] = []
    for matrix in order:
        seen = replay.run(0, Wanda.needs)
        for layer in of_matrix([*ours.values()], matrix):
            budget, place = plan.layers[layer.name].budget, replay.place(0, layer)
            before = Wanda()(layer.weight.data, unfed[layer.name], budget, place)
            found = Wanda()(layer.weight.data, seen[layer.name], budget, place)
            layer.weight.data.copy_(found.weight)
            assert torch.equal(layer.oriented(masks[layer.name]), found.mask), layer.name
            differs = differs or not torch.equal(found.mask, before.mask)
            done.append(layer.name)
    assert len(done) == len(routed) == EXPERTS * len(order)
    assert set(done) == routed
    assert differs, "what is pruned first changes nothing of what comes after, so this test tells nothing"


@pytest.mark.parametrize("kind", ["numbers", "dbrx"])
def test_two_processes_and_one_that_goes_on_come_to_the_same_bits(kind, tmp_path):
    build, _ = MODELS[kind]
    alone = pruned(build(), tmp_path / "alone")
    folder = tmp_path / "together"

    def together(ranks: Ranks) -> None:
        masks = pruned(build(), folder, ranks)
        save_masks(tmp_path / f"masks {ranks.rank}", masks)

    assert several(2, together, tmp_path) == [(0, "")] * 2
    (folder / "001.safetensors").unlink()
    again = build()
    found = [read_masks(tmp_path / f"masks {rank}") for rank in range(2)] + [pruned(again, folder)]
    for masks in found:
        assert list(masks) == list(alone)
        assert all(torch.equal(masks[name], alone[name]) for name in alone)
    for file in ("000.safetensors", "001.safetensors"):
        assert (folder / file).read_bytes() == (tmp_path / "alone" / file).read_bytes()
