"""The sub-blocks of pico models of many families: which they are, and what they gave in the dense model."""

import copy
from fractions import Fraction
from typing import ClassVar

import pytest
import torch
from spec import spec
from table import ALL_ROWS
from transformers_version import is_before

from ecoflap import Anatomy, Replay
from ecoflap.core.contracts.events import Refined, Warned
from ecoflap.core.planning.plan import make_plan, pools_of
from ecoflap.core.pruning.prune_blocks import BlockwisePruning
from ecoflap.plugins.allocators.uniform import Uniform
from ecoflap.plugins.pruners.magnitude import Magnitude
from ecoflap.plugins.refiners.reconstruct import Reconstruct

LLAMA = ["self_attn", "mlp"]
NAMES = {
    "llama": {"model.layers.0": LLAMA},
    "t5": {"encoder.block.0": ["layer.0", "layer.1"], "decoder.block.0": ["layer.0", "layer.1", "layer.2"]},
    "blip2_t5": {
        "vision_model.encoder.layers.0": LLAMA,
        "language_model.encoder.block.0": ["layer.0", "layer.1"],
        "language_model.decoder.block.0": ["layer.0", "layer.1", "layer.2"],
    },
    "blip2_opt": {
        "vision_model.encoder.layers.0": LLAMA,
        "language_model.model.decoder.layers.0": ["self_attn", "fc1", "fc2"],
    },
    "blip_vqa": {"text_encoder.encoder.layer.0": ["attention", "crossattention", "intermediate", "output"]},
    "clip": {"vision_model.encoder.layers.0": LLAMA, "text_model.encoder.layers.0": LLAMA},
    "siglip": {"vision_model.encoder.layers.0": LLAMA, "text_model.encoder.layers.0": LLAMA},
    "open_clip": {
        "visual.transformer.resblocks.0": ["attn", "mlp"],
        "transformer.resblocks.0": ["attn", "mlp"],
    },
    "open_clip_eva": {"visual.trunk.blocks.0": ["attn", "mlp"], "text.transformer.resblocks.0": ["attn", "mlp"]},
    "timm_eva": {"blocks.0": ["attn", "mlp"]},
    "bert": {"bert.encoder.layer.0": ["attention", "intermediate", "output"]},
    "dinov2": {"encoder.layer.0": ["attention", "mlp"]},
    "gpt2": {"transformer.h.0": ["attn", "mlp"]},
    "bart": {"model.decoder.layers.0": ["self_attn", "encoder_attn", "fc1", "fc2"]},
    "mixtral": {"model.layers.0": LLAMA},
    "florence2": {"model.vision_tower.blocks.0.0": ["spatial_block", "channel_block"]},
}
"""Of some blocks of each, their sub-blocks as transformers 5 names them."""

VIT = {"layers.0": ["attention", "mlp"]}
if is_before("5"):
    VIT = {"encoder.layer.0": ["attention", "intermediate", "output"]}
NAMES["vit"] = VIT

RENAMED = {"block_sparse_moe": "mlp"}
"""What transformers before 5 calls others."""


class Looks:
    """A refiner of sub-blocks that changes nothing and keeps what it is shown."""

    each: ClassVar[str] = "subblock"
    seen: ClassVar[dict[str, list[list[torch.Tensor]]]] = {}

    def __call__(self, view):
        batches = range(1 + max(view.training + view.held_out))
        self.seen[view.name] = [[one.clone() for one in view.targets(number)] for number in batches]


class Case:
    def __init__(self, name):
        row = ALL_ROWS[name]
        self.model, self.adapter = row.build(), row.adapter()
        samples, size = list(row.samples(3 * row.batch_size)), row.batch_size
        self.batches = [self.adapter.collate(self.model, samples[at : at + size]) for at in range(0, 3 * size, size)]
        self.dense = copy.deepcopy(self.model)

    def refined_by(self, refiner, folder):
        anatomy = Anatomy.of(self.adapter.towers(self.model), self.adapter.layers)
        plan = make_plan(pools_of(anatomy, Fraction(1, 2), {}, []), Uniform(), "layer", None)
        replays = [Replay(self.model, self.adapter, self.batches, anatomy=anatomy) for _ in range(2)]
        towers, events = [tower.name for tower in anatomy.towers], []
        pruners = {tower: spec("pruner", Magnitude()) for tower in towers}
        refiners = {tower: [spec("refiner", refiner)] for tower in towers}
        masks = BlockwisePruning(
            replays[0], plan, pruners, folder, events.append, refiners_of=refiners, dense=replays[1]
        )()
        return dict(masks), events

    @torch.no_grad()
    def given_by_the_dense_model(self, names):
        """By name, what plain forward hooks see of each batch, call by call."""
        seen = {name: [] for name in names}
        handles = []
        for name in names:

            def keep(module, args, output, name=name):
                seen[name][-1].append((output if isinstance(output, torch.Tensor) else output[0]).clone())

            handles.append(self.dense.get_submodule(name).register_forward_hook(keep))
        for batch in self.batches:
            for batches in seen.values():
                batches.append([])
            self.adapter.loss(self.dense, batch)
        for handle in handles:
            handle.remove()
        return seen


@pytest.fixture
def case():
    def case(name):
        if name not in ALL_ROWS:
            pytest.skip(f"this environment has no {name}")
        return Case(name)

    return case


@pytest.mark.parametrize("name", sorted(NAMES))
def test_they_are_found_and_their_targets_are_what_hooks_see_of_the_dense_model(case, name, tmp_path, monkeypatch):
    monkeypatch.setattr(Looks, "seen", {})
    one = case(name)
    one.refined_by(Looks(), tmp_path)
    for block, expected in NAMES[name].items():
        found = [seen.removeprefix(f"{block}.") for seen in Looks.seen if seen.startswith(f"{block}.")]
        assert [RENAMED.get(each, each) for each in found] == expected
    given = one.given_by_the_dense_model(list(Looks.seen))
    for subblock, batches in Looks.seen.items():
        for targets, expected in zip(batches, given[subblock], strict=True):
            assert len(targets) == len(expected) >= 1
            for target, one_call in zip(targets, expected, strict=True):
                torch.testing.assert_close(target, one_call, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", ["t5", "blip2_t5", "clip", "open_clip", "timm_eva", "bert", "mixtral"])
def test_training_lowers_the_error_of_each_and_masks_stay(case, name, tmp_path):
    one = case(name)
    masks, events = one.refined_by(Reconstruct(each="subblock", steps=8, target="own"), tmp_path)
    done = [event for event in events if isinstance(event, Refined)]
    assert not [event for event in events if isinstance(event, Warned) and "as a whole" in event.message]
    better = [event for event in done if event.is_kept]
    assert better
    assert len(better) >= 0.8 * len(done)
    assert all(event.after["held_out"] < event.before["held_out"] for event in better)
    weights, before, moved = dict(one.model.named_parameters()), dict(one.dense.named_parameters()), 0
    for parameter, mask in masks.items():
        if parameter in weights and weights[parameter].shape == mask.shape:
            assert torch.equal(weights[parameter] != 0, mask)
            moved += not torch.equal(weights[parameter], before[parameter] * mask)
    assert moved


@pytest.mark.parametrize("name", ["mamba2", "gemma3n_text"])
def test_a_block_that_has_none_is_trained_as_a_whole_and_that_is_said(case, name, tmp_path):
    """The one has a single module inside; the other calls methods of one that are not its forward."""
    one = case(name)
    _, events = one.refined_by(Reconstruct(each="subblock", steps=2), tmp_path)
    blocks = [block.name for tower in one.adapter.towers(one.model) if not tower.outside for block in tower.blocks]
    assert [event.name for event in events if isinstance(event, Refined)] == blocks
    warnings = [event.message for event in events if isinstance(event, Warned)]
    assert [
        each.split(":")[0] for each in warnings if "trains it as a whole: it has no two sub-blocks" in each
    ] == blocks
