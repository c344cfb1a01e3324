"""Which tokens count in statistics, against a plain forward whose inputs are weighted by hand in float64."""

import pytest
import torch
from table import GENERIC_ROWS, ROWS

from ecoflap import ColumnNorm, Gram, LossGradient, RegionalGradient, Replay
from ecoflap.adapters.llama import LlamaAdapter
from ecoflap.core.model.anatomy import Anatomy

MODELS = {**ROWS, **GENERIC_ROWS}


class Looking(LlamaAdapter):
    """Takes tokens below 30 for those of images."""

    def tokens(self, model, batch, tower, call=0):
        kinds = 1 + (batch["input_ids"] < 30).to(torch.int8)
        return kinds * batch["attention_mask"].to(torch.int8)


@pytest.fixture
def batches():
    generator = torch.Generator().manual_seed(5)
    mask = torch.tensor([[1] * 12, [1] * 7 + [0] * 5])
    return [{"input_ids": torch.randint(3, 60, (2, 12), generator=generator), "attention_mask": mask} for _ in range(3)]


def plain(model, batches, index):
    """By batch: kinds, the block's hidden states before and after, and each linear layer's inputs."""
    block, found = model.model.layers[index], []
    for batch in batches:
        inputs, states = {}, []
        handles = [
            module.register_forward_hook(lambda _, args, output, name=name, seen=inputs: seen.update({name: args[0]}))
            for name, module in block.named_modules()
            if isinstance(module, torch.nn.Linear)
        ]
        handles.append(
            block.register_forward_hook(
                lambda _, args, kwargs, output, seen=states: seen.extend(
                    [
                        args[0] if args else kwargs["hidden_states"],
                        output if isinstance(output, torch.Tensor) else output[0],
                    ]
                ),
                with_kwargs=True,
            )
        )
        with torch.no_grad():
            Looking().loss(model, batch)
        for handle in handles:
            handle.remove()
        found.append((Looking().tokens(model, batch, "language"), *states, inputs))
    return found


def weights_by_hand(choice, seen):
    """The weight of each position of each batch, by loops over samples and positions."""
    positions = [kind for kinds, *_ in seen for kind in kinds.flatten().tolist() if kind]
    text, images = positions.count(1), positions.count(2)
    drifts = [
        [[1 - float(torch.cosine_similarity(a.double(), b.double(), dim=0)) for a, b in zip(x, y, strict=True)]
         for x, y in zip(before, after, strict=True)]
        for _, before, after, _ in seen
    ]  # fmt: skip
    of_images = [
        drifts[n][s][p]
        for n, (kinds, *_) in enumerate(seen)
        for s, sample in enumerate(kinds.tolist())
        for p, kind in enumerate(sample)
        if kind == 2
    ]
    mean, weights = sum(of_images) / len(of_images), []
    for n, (kinds, *_) in enumerate(seen):
        rows = []
        for s, sample in enumerate(kinds.tolist()):
            here = [p for p, kind in enumerate(sample) if kind == 2]
            most = min(len(here), round(min(1, mean) * sample.count(1)))
            drifting = sorted(here, key=lambda p, n=n, s=s: drifts[n][s][p], reverse=True)[:most]
            row = []
            for p, kind in enumerate(sample):
                if choice == "all":
                    row.append(1.0)
                elif kind == 0 or (kind == 2 and (choice == "text" or (choice == "drifting" and p not in drifting))):
                    row.append(0.0)
                else:
                    row.append(len(positions) / 2 / (text if kind == 1 else images) if choice == "balanced" else 1.0)
            rows.append(row)
        weights.append(torch.tensor(rows, dtype=torch.float64))
    return weights


@pytest.mark.parametrize("choice", ["real", "text", "balanced", "drifting", "all"])
def test_tokens_count_as_by_hand(pico_llama, batches, choice):
    model = pico_llama()
    replay = Replay(model, Looking(), batches)
    for index in range(2):
        seen = plain(model, batches, index)
        weights = weights_by_hand(choice, seen)
        found = replay.run(index, (ColumnNorm, Gram), tokens=choice)
        for name, statistics in found.items():
            own = name.removeprefix(f"model.layers.{index}.").removesuffix(".weight")
            gram = sum(
                torch.einsum("btf,btg,bt->fg", inputs[own].double(), inputs[own].double(), weight)
                for (*_, inputs), weight in zip(seen, weights, strict=True)
            )
            torch.testing.assert_close(statistics[Gram].matrix.double(), gram, rtol=1e-4, atol=1e-4)
            torch.testing.assert_close(statistics[ColumnNorm].squared.double(), gram.diagonal(), rtol=1e-5, atol=1e-6)
        replay.advance(index)
    counted = sum(int((weight > 0).sum()) for weight in weights)
    assert statistics[Gram].tokens == counted
    if choice == "balanced":
        kinds = torch.cat([kinds.flatten() for kinds, *_ in seen])
        assert torch.cat([w.flatten() for w in weights])[kinds == 1].sum() == pytest.approx(
            float((kinds > 0).sum()) / 2
        )
    if choice == "drifting":
        assert counted > sum(int((kinds == 1).sum()) for kinds, *_ in seen)
        assert counted < sum(int((kinds > 0).sum()) for kinds, *_ in seen)


@pytest.mark.parametrize("choice", ["text", "balanced", "drifting"])
def test_a_tower_with_one_kind_has_all_its_tokens_count_alike(pico_llama, batches, choice):
    replay = Replay(pico_llama(), LlamaAdapter(), batches)
    chosen, real = (replay.run(0, (Gram,), tokens=tokens) for tokens in (choice, "real"))
    assert all(torch.equal(chosen[name][Gram].matrix, real[name][Gram].matrix) for name in real)


def test_padding_counts_with_all_in_a_tower_with_one_kind_too(pico_llama, batches):
    replay = Replay(pico_llama(), LlamaAdapter(), batches)
    everything, real = (replay.run(0, (ColumnNorm,), tokens=tokens) for tokens in ("all", "real"))
    for name, statistics in everything.items():
        assert (statistics[ColumnNorm].tokens, real[name][ColumnNorm].tokens) == (3 * 24, 3 * 19)


def test_gradients_do_not_depend_on_it(pico_llama, batches):
    needs = (RegionalGradient, LossGradient)
    text, real = (Replay(pico_llama(), Looking(), batches).run(0, needs, tokens=tokens) for tokens in ("text", "real"))
    for name in real:
        assert all(torch.equal(text[name][need].magnitude, real[name][need].magnitude) for need in needs)


@pytest.mark.parametrize("name", [name for name in ("llava", "blip2_t5", "t5") if name in MODELS])
def test_towers_of_families_count_what_their_adapters_call_text_and_images(name):
    family = MODELS[name]
    model, adapter = family.build(), family.adapter()
    batches, both = [adapter.collate(model, family.samples(2)) for _ in range(2)], set()
    for choice in ("text", "balanced", "drifting", "all"):
        replay = Replay(model, adapter, batches)
        for index, block in enumerate(replay.blocks):
            layer = replay.anatomy.layers_of[block.name][0]
            if layer.reads or layer.layout == "selected":
                replay.advance(index)
                continue
            kinds = torch.cat([replay.tokens(number, block.tower).flatten() for number in range(2)])
            text, images = int((kinds == 1).sum()), int((kinds == 2).sum())
            both.update([block.tower] if text and images else [])
            found = replay.run(index, (Gram,), tokens=choice)[layer.name][Gram]
            if choice == "all":
                assert found.tokens == len(kinds), block.name
            elif not text or not images or choice == "balanced":
                assert found.tokens == text + images, (block.name, choice)
            elif choice == "text":
                assert found.tokens == text, block.name
            else:
                assert text <= found.tokens <= 2 * text, block.name
            replay.advance(index)
    assert both == {"llava": {"language"}, "blip2_t5": {"encoder"}, "t5": set()}[name]


@pytest.mark.parametrize("name", [name for name in ("blip2", "llama") if name in MODELS])
def test_nothing_drifts_in_a_single_matrix_outside_the_blocks(name):
    """A projection gives another space, or another number of positions: what it turns is not defined."""
    row = MODELS[name]
    adapter, model = row.adapter(), row.build()
    batches = [adapter.collate(model, row.samples(2))]
    anatomy = Anatomy.of(adapter.towers(model), adapter.layers, include=row.outside)
    replay = Replay(model, adapter, batches, anatomy=anatomy)
    outside = {tower.name for tower in anatomy.towers if tower.outside}
    assert outside == set(row.outside)
    for index, block in enumerate(replay.blocks):
        if block.tower in outside:
            seen, real = (replay.observed(index, (ColumnNorm,), tokens=choice).seen for choice in ("drifting", "real"))
            for layer, statistics in seen.items():
                assert torch.equal(statistics[ColumnNorm].squared, real[layer][ColumnNorm].squared)
        replay.advance(index)
