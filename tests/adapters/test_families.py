"""What must hold for every family, on pico models that are built from configurations."""

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from column_norms import column_norms
from family import Family
from idle import Idle
from pico_clip import tokenizer
from table import ALIKE, ALL_ROWS, DOUBLES, SHARING, THOROUGH, marked
from torch import Tensor, nn
from torch.nn import functional

import ecoflap
from ecoflap import Replay
from ecoflap.core.checking.against_model import UNCOMPARED
from ecoflap.core.contracts.abilities import ABILITIES
from ecoflap.core.contracts.adapter_options import AdapterOptions
from ecoflap.core.contracts.conformance import contract_problems, options_of
from ecoflap.core.contracts.protocols import Adapter, PrunedModel
from ecoflap.core.contracts.records import Batch, Sample
from ecoflap.core.errors import DataError, EcoflapError
from ecoflap.core.export.surroundings import save_surroundings
from ecoflap.core.forward.capture import watching, without_fast_path
from ecoflap.core.guards.left_as_given import left_as_given
from ecoflap.core.model.anatomy import Anatomy, Layer, Source
from ecoflap.core.model.never_pruned import why_left_out
from ecoflap.core.model.source import in_memory, open_source
from ecoflap.core.pruning.masks import read_masks
from ecoflap.core.refining.logits import seen_by_losses
from ecoflap.core.registry.adapter_for import adapter_for
from ecoflap.core.registry.parameters import parameters_of


@pytest.fixture(params=marked(sorted(ALL_ROWS)))
def name(request: pytest.FixtureRequest) -> str:
    return str(request.param)


thorough = pytest.mark.parametrize("name", marked(THOROUGH))
end_to_end = pytest.mark.parametrize("name", marked(THOROUGH, ALIKE | SHARING))


@dataclass
class Case:
    """A model with its adapter and batches, the last of them of samples of unequal length."""

    name: str
    row: Family
    model: nn.Module
    adapter: Adapter
    batches: list[Batch]

    @property
    def anatomy(self) -> Anatomy:
        """With every matrix outside the blocks taken in."""
        return Anatomy.of(self.adapter.towers(self.model), self.adapter.layers, self.row.outside)

    def replay(self, batches: list[Batch] | None = None, **keywords: Any) -> Replay:
        return Replay(
            self.model, self.adapter, self.batches if batches is None else batches, anatomy=self.anatomy, **keywords
        )

    def losses(self) -> Tensor:
        with torch.no_grad(), without_fast_path():
            return torch.stack([self.adapter.loss(self.model, batch).double() for batch in self.batches])


@pytest.fixture
def case(name: str) -> Case:
    return case_of(name)


def case_of(name: str) -> Case:
    row = ALL_ROWS[name]
    model, adapter = row.build(), row.adapter()
    samples = list(row.samples(2 * row.batch_size))
    halves = samples[: row.batch_size], samples[row.batch_size :]
    return Case(name, row, model, adapter, [adapter.collate(model, half) for half in halves])


@contextmanager
def linears(ids: set[int]) -> Iterator[list[tuple[int, Tensor, Tensor]]]:
    """Every use of these weights: identity, input and output, with the output's gradient kept."""
    uses: list[tuple[int, Tensor, Tensor]] = []
    original = functional.linear

    def linear(input: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
        output = original(input, weight, bias)
        if id(weight) in ids:
            if output.requires_grad:
                output.retain_grad()
            uses.append((id(weight), input.detach(), output))
        return output

    functional.linear = linear
    try:
        yield uses
    finally:
        functional.linear = original


def test_towers_are_those_of_the_table(case: Case):
    towers = case.adapter.towers(case.model)
    assert tuple(tower.name for tower in towers if not tower.outside) == case.row.towers
    assert tuple(tower.name for tower in towers if not tower.outside and not tower.prunable) == case.row.kept
    assert tuple(tower.name for tower in towers if tower.outside) == case.row.outside
    names = set(case.model.state_dict())
    assert all(layer.name.partition("[")[0] in names for _, layer in case.anatomy.layers())


def test_the_adapter_claims_the_model_before_any_other(case: Case):
    registry = ecoflap.load_registry()
    assert type(adapter_for(in_memory(case.model), registry)) is type(case.adapter)


def test_the_adapter_has_what_an_adapter_has_and_no_misspelt_member(case: Case):
    parameters, _ = parameters_of(type(case.adapter))
    assert list(contract_problems("adapter", case.adapter, parameters)) == []


def test_a_loss_is_of_logits_unless_its_adapter_says_why_not(case: Case):
    seen: list[Tensor] = []
    with torch.no_grad(), seen_by_losses(lambda logits, targets: seen.append(logits)):
        case.adapter.loss(case.model, case.batches[0])
    why_not = options_of(AdapterOptions, case.adapter).why_no_logits(case.model)
    assert bool(seen) is (why_not is None)


def test_what_looks_at_a_model_first_leaves_it_as_it_was_given(case: Case):
    """An export or an evaluation of a model that was read anew, which nobody has asked for a loss yet."""
    adapter: Any = case.adapter
    with torch.no_grad(), left_as_given("an exporter", case.model, "", is_on_disk=False):
        if hasattr(adapter, "export_views"):
            with suppress(EcoflapError):  # of a model that has no view
                adapter.export_views(case.model)
        adapter.loss(case.model, case.batches[0])


@thorough
def test_nothing_is_remembered_of_another_model(case: Case, tmp_path: Path):
    """An adapter that has seen another model in between does with this one what a fresh adapter does."""
    other, samples, processor = case.row.build_other(), case.row.samples(case.row.batch_size), case.adapter.processor
    expected = all_that_is_said(case.row.adapter(), case.model, samples)
    for model in (case.model, other):
        if case.row.named is None:  # a named architecture is of one model only
            case.adapter.load(Source("mine", model=model), None, "cpu")
        found = all_that_is_said(case.adapter, model, samples)
        assert (found == expected) is (model is case.model)
    case.adapter.processor = processor  # which may be the other model's by now
    assert all_that_is_said(case.adapter, case.model, samples) == expected
    beside = (files_beside(case.model, adapter, tmp_path) for adapter in (case.adapter, case.row.adapter()))
    assert next(beside) == next(beside)


@thorough
def test_the_processor_is_that_of_the_model_that_was_loaded_last(case: Case, tmp_path: Path):
    if not case.row.is_whole_on_disk:
        pytest.skip("what is saved of it is read into a model at hand")
    sources = [open_source(str(folder), Path.cwd()) for folder in saved_in_two_sizes(case.row, tmp_path)]
    expected = []
    for source in sources:
        fresh = case.row.adapter()
        fresh.load(source, None, "cpu")
        expected.append(size_of(fresh.processor))
    assert expected[0] != expected[1]
    assert [size_of(loaded(case.adapter, source)) for source in (*sources, *sources)] == [*expected, *expected]


def loaded(adapter: Adapter, source: Source) -> Any:
    """The processor of an adapter that has loaded a model."""
    adapter.load(source, None, "cpu")
    return adapter.processor


def saved_in_two_sizes(row: Family, folder: Path) -> Iterator[Path]:
    """Two folders of saved models: the row's own, and one with a processor for larger images and longer texts."""
    adapter = row.adapter()
    adapter.processor = adapter.processor or tokenizer()
    adapter.save(row.build(), folder / "small")
    yield folder / "small"
    if row.larger is None:
        grow(adapter.processor)
    larger, model = row.larger() if row.larger is not None else (adapter, row.build_other())
    larger.save(model, folder / "large")
    yield folder / "large"


def grow(processor: Any) -> None:
    """Have a processor of transformers make larger images, and longer texts."""
    images, texts = (getattr(processor, name, processor) for name in ("image_processor", "tokenizer"))
    if hasattr(images, "size"):
        images.size = {side: 2 * length for side, length in dict(images.size).items()}
    if hasattr(texts, "model_max_length"):
        texts.model_max_length = 2 * min(texts.model_max_length, 1000)


def size_of(processor: Any) -> str:
    """All that a processor says of itself, sizes included; open_clip's tokenizer says nothing."""
    return repr(getattr(processor, "transform", processor))


def all_that_is_said(adapter: Any, model: nn.Module, samples: Sequence[Sample]) -> dict[str, Any]:
    """What an adapter says of a model and makes of it, as plain values."""
    towers, batch = adapter.towers(model), adapter.collate(model, samples)
    layers = [
        (layer.name, layer.shape, layer.reads, layer.layout)
        for tower in towers
        for block in tower.blocks
        for layer in adapter.layers(block)
    ]
    with torch.no_grad(), without_fast_path():
        loss = float(adapter.loss(model, batch))
    return {
        "towers": [(tower.name, tower.prunable, tower.outside, len(tower.blocks)) for tower in towers],
        "layers": layers,
        "length": adapter.max_length(model),
        "batch": {name: value.tolist() if isinstance(value, Tensor) else value for name, value in batch.items()},
        "loss": loss,
        "tokens": {t.name: adapter.tokens(model, batch, t.name).tolist() for t in towers if not t.outside},
        "views": [(view.name, view.outputs) for view in options_of(AdapterOptions, adapter).export_views(model)],
        "abilities": [adapter.refuses(model, one) for one in ABILITIES if hasattr(adapter, "refuses")],
    }


def files_beside(model: nn.Module, adapter: Adapter, folder: Path) -> dict[str, bytes]:
    save_surroundings(PrunedModel(model, adapter, {}), folder)
    return {file.name: file.read_bytes() for file in folder.iterdir()}


@pytest.mark.parametrize("name", marked(sorted(ALL_ROWS), DOUBLES))
def test_the_adapter_passes_its_check(case: Case):
    """Its loss is the model's own, and all that runs is in a tower; where a loss is made up, the check says so."""
    samples = case.row.samples(2 * case.row.batch_size)
    found = ecoflap.check_adapter(case.adapter, case.model, samples, case.row.own_loss)
    assert {tower.name for tower in found.towers if tower.outside} == set(case.row.outside)
    assert (found.own_loss is not None) == case.row.is_compared
    assert (UNCOMPARED in found.notes) == (not case.row.is_compared)


def test_no_matrix_of_a_block_is_missed(case: Case):
    listed = {id(layer.parameter) for _, layer in case.anatomy.layers()}
    known = options_of(AdapterOptions, case.adapter).left_out(case.model)
    for block in case.anatomy.blocks:
        for name, module in block.module.named_modules():
            if isinstance(module, nn.Embedding):
                continue
            for own, parameter in module.named_parameters(recurse=False):
                whole = ".".join(filter(None, (block.name, name, own)))
                assert parameter.ndim != 2 or id(parameter) in listed or why_left_out(whole, known), whole


def test_what_is_captured_explains_the_gradient(case: Case):
    """dL/dW = Σ over uses of (dL/dy)ᵀ x: a use that was missed, or another input than was used, would not add up."""
    if case.row.multiplies:
        pytest.skip(f"its matrices are multiplied by {case.row.multiplies}")
    layers = [layer for _, layer in case.anatomy.layers() if layer.weight is layer.parameter]
    seen: dict[str, list[Tensor]] = {layer.name: [] for layer in layers}
    case.model.requires_grad_(True)
    with (
        without_fast_path(),
        linears({id(layer.weight) for layer in layers}) as uses,
        watching(layers, lambda layer, inputs, _: seen[layer.name].append(inputs.detach())),
    ):
        case.adapter.loss(case.model, case.batches[0]).backward()
    tied = {id(parameter) for parameter in embeddings(case.model)}
    for layer in layers:
        mine = [(inputs, output) for identity, inputs, output in uses if identity == id(layer.weight)]
        assert mine, layer.name
        assert len(mine) >= len(seen[layer.name]) >= 1, layer.name  # a checkpointed head is applied again
        for inputs, (used, _) in zip(seen[layer.name], mine, strict=False):
            assert torch.equal(inputs, used), layer.name
        if id(layer.weight) not in tied:
            terms = [(flat(o.grad).double().T @ flat(x).double()) for x, o in mine if o.grad is not None]
            close(sum(terms), layer.weight.grad, layer.name)


def embeddings(model: nn.Module) -> Iterator[nn.Parameter]:
    for module in model.modules():
        if isinstance(module, nn.Embedding):
            yield module.weight


def close(found: Any, expected: Tensor | None, name: str) -> None:
    """To 1e-4 of the largest entry: an entry that is next to nothing is a difference of large ones."""
    assert expected is not None, name
    largest = float(expected.abs().max())
    torch.testing.assert_close(found.to(expected), expected, rtol=0, atol=1e-4 * largest + 1e-12, msg=name)


def flat(tensor: Tensor | None) -> Tensor:
    assert tensor is not None
    return tensor.reshape(-1, tensor.shape[-1])


def test_loss_from_any_block_is_the_full_forwards_bit_for_bit(case: Case):
    replay, expected = case.replay(), case.losses()
    for index, block in enumerate(replay.blocks):
        assert torch.equal(replay.loss(index), expected), block.name
        replay.advance(index)


def test_and_again_after_the_blocks_before_it_were_pruned(case: Case):
    replay = case.replay()
    for index, block in enumerate(replay.blocks):
        for layer in replay.anatomy.layers_of[block.name]:
            weight = layer.matrix_of(layer.parameter.data)
            weight[weight.abs() < weight.abs().median()] = 0
        # An embedding that is tied to a pruned head has changed before the first block too, which is recorded.
        if block.tower not in case.row.outside:
            assert torch.equal(replay.loss(index), case.losses()), block.name
        replay.advance(index)


def all_column_norms(case: Case, batches: list[Batch]) -> Mapping[str, Tensor]:
    replay, found = case.replay(batches), {}
    for index in range(len(replay.blocks)):
        found |= {name: statistic.squared.double() for name, statistic in column_norms(replay, index).items()}
        replay.advance(index)
    return found


def test_statistics_are_those_of_the_plain_forward_without_padding(case: Case):
    """From batches of one sample, which have no padding at all, seen in the model's ordinary forward."""
    samples = case.row.samples(2 * case.row.batch_size)
    layers = [layer for _, layer in case.anatomy.layers()]
    expected: dict[str, Tensor] = {layer.name: torch.zeros(layer.shape[1], dtype=torch.float64) for layer in layers}

    tower_of = {layer.name: block.tower for block, layer in case.anatomy.layers()}
    is_real = {"text": case.row.real_text, "vision": case.row.real_patches}

    def see(layer: Layer, inputs: Tensor, _: object) -> None:
        rows = flat(inputs).double()
        real = is_real.get(layer.reads or tower_of[layer.name])
        if real is not None:
            rows = rows[real(alone).reshape(-1)]
        expected[layer.name] += rows.square().sum(0)

    with torch.no_grad(), without_fast_path(), watching(layers, see):
        for sample in samples:
            alone = case.adapter.collate(case.model, [sample])
            with suppress(DataError):  # a contrastive loss of one pair is refused, when all layers have run
                case.adapter.loss(case.model, alone)
    found = all_column_norms(case, case.batches)
    for name, norm in expected.items():
        torch.testing.assert_close(found[name], norm, rtol=1e-5, atol=1e-9, msg=name)


def test_a_poisoned_padding_row_changes_nothing(case: Case):
    if case.row.poisoned is None:
        pytest.skip("this model reads no text")
    before = all_column_norms(case, case.batches[1:])
    poisoned = case.row.poisoned(case.model, case.batches[1])
    after = all_column_norms(case, [poisoned])
    for name, norm in before.items():
        torch.testing.assert_close(after[name], norm, rtol=1e-5, atol=1e-9, msg=name)


def test_streamed_gradients_are_autograds(case: Case):
    replay, streamed = case.replay(dtype=torch.float32), {}

    def visit(layer: Layer, gradient: Tensor) -> None:
        streamed.setdefault(layer.name, []).append(gradient.clone())

    replay.gradients(visit)
    case.model.requires_grad_(True)
    for number, batch in enumerate(case.batches):
        case.model.zero_grad()
        with without_fast_path():
            case.adapter.loss(case.model, batch).backward()
        for _, layer in replay.anatomy.layers():
            assert layer.parameter.grad is not None, layer.name
            close(streamed[layer.name][number], layer.matrix_of(layer.parameter.grad), layer.name)


def run(case: Case, folder: Path, model: dict[str, Any] | None = None, **keys: Any) -> ecoflap.Run:
    count, size = 2 * case.row.batch_size, case.row.batch_size
    recipe = {
        "version": 1,
        "model": {"adapter": case.row.named, **(model or {})} if case.row.named else model,
        "calibration": {"use": "table:Samples", "row": case.name, "samples": count, "batch_size": size},
        "sparsity": 0.5,
        **keys,
    }
    recipe = {key: value for key, value in recipe.items() if value is not None}
    return ecoflap.run(recipe, model=case.model, processor=case.adapter.processor, folder=folder, allow_code=True)


@end_to_end
def test_idle_blocks_may_be_anywhere(case: Case):
    """With every block's weights NaN while it does not run, all comes out the same, one block at a time."""
    anatomy = Anatomy.of(case.adapter.towers(case.model), case.adapter.layers)
    usual = everything(Replay(case.model, case.adapter, case.batches, anatomy=anatomy, dtype=torch.float32))
    replay = Replay(case.model, case.adapter, case.batches, anatomy=anatomy, dtype=torch.float32, device="cpu:0")
    replay.placement = idle = Idle(torch.float32, torch.device("cpu:0"))
    idle.put_aside(replay.blocks)
    for (name, found), (_, expected) in zip(everything(replay), usual, strict=True):
        if name.startswith("gradient"):  # summed over the blocks that read an encoder, in another order
            close(found, expected, name)
        else:
            assert torch.equal(found, expected), name
    assert idle.visits[::2] == [visit.replace(" out", " in") for visit in idle.visits[1::2]]
    assert {visit.split()[0] for visit in idle.visits} == {block.name for block in replay.blocks}
    idle.put_back(replay.blocks)
    assert all(bool(parameter.isfinite().all()) for parameter in case.model.parameters())


def everything(replay: Replay) -> list[tuple[str, Tensor]]:
    """Losses, statistics and gradients, each with its name."""
    found: list[tuple[str, Tensor]] = []
    replay.gradients(lambda layer, gradient: found.append((f"gradient of {layer.name}", gradient.clone())))
    for index, block in enumerate(replay.blocks):
        found.append((block.name, replay.loss(index)))
        found += [(name, norm.squared) for name, norm in column_norms(replay, index).items()]
        replay.advance(index)
    return found


METHODS = {
    "zeroth order and Wanda": {"score": {"use": "zeroth_order", "samples": 2}, "prune": "wanda"},
    "first order and SparseGPT": {"score": {"use": "first_order", "samples": 4}, "prune": "sparsegpt"},
}


@thorough
def test_one_budget_is_met_exactly_and_nothing_else_changes(case: Case, tmp_path: Path):
    check_run(case, "zeroth order and Wanda", tmp_path)


@end_to_end
def test_and_with_another_method(case: Case, tmp_path: Path):
    check_run(case, "first order and SparseGPT", tmp_path)


REFINERS = {
    "reconstruct": [{"use": "reconstruct", "steps": 2, "batches": 1, "learning_rate": 1e-5}],
    "distill": [{"use": "distill", "steps": 2, "learning_rate": 1e-5}],
}
NO_LOGITS = {
    "clip_vision", "dinov2", "dinov3", "lavis EVA-ViT", "open_clip_siglip", "siglip", "timm_eva", "timm_eva02", "vit",
}  # fmt: skip
"""Families whose loss is no cross entropy: a sigmoid of pairs, or a projection where images have no label."""


@pytest.mark.parametrize("name", sorted({"blip2_t5", "clip", "llama", "llava", "vit"} & set(THOROUGH)))
@pytest.mark.parametrize("refiner", REFINERS)
def test_kept_weights_are_refined_and_no_other(case: Case, refiner: str, tmp_path: Path):
    check_refined(case, refiner, tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("refiner", REFINERS)
def test_and_those_of_every_other_family(case: Case, refiner: str, tmp_path: Path):
    check_refined(case, refiner, tmp_path)


def check_refined(case: Case, refiner: str, tmp_path: Path) -> None:
    if refiner == "distill" and case.name in NO_LOGITS:
        with pytest.raises(EcoflapError, match="no cross entropy of logits here"):  # by its adapter, or on a batch
            run(case, tmp_path / "run", prune="magnitude", refine=REFINERS[refiner])
        return
    before = bytes_of(case.model)
    done = run(case, tmp_path / "run", prune="magnitude", refine=REFINERS[refiner])
    # Two batches, of which one is trained on, say nothing of the other; on its own a small step goes down.
    # Where the pruned model says what the dense one says to six digits, as a BERT of this size does, nothing is left.
    assert any(
        one.after["training"] < one.before["training"] or one.before["training"] < 1e-5 for one in done.report.refined
    )
    masks = read_masks(tmp_path / "run" / "masks.safetensors")
    changed = {name for name, raw in bytes_of(case.model).items() if raw != before[name]}
    assert changed <= parameters_of_layers(case)
    layers = {layer.name: layer for _, layer in case.anatomy.layers()}
    assert not any(layers[name].weight[~layers[name].oriented(mask)].any() for name, mask in masks.items())


def check_run(case: Case, method: str, tmp_path: Path) -> None:
    before = bytes_of(case.model)
    ties = tied(case.model)
    done = run(case, tmp_path / "run", **METHODS[method])
    pruned = {
        layer.name: layer
        for tower in case.adapter.towers(case.model)
        if tower.prunable
        for block in tower.blocks
        for layer in case.adapter.layers(block)
    }
    size = sum(layer.size for layer in pruned.values())
    assert set(done.plan.layers) == set(pruned)
    assert (done.plan.size, done.plan.keep) == (size, size // 2)
    masks = read_masks(tmp_path / "run" / "masks.safetensors")
    assert sum(int(mask.count_nonzero()) for mask in masks.values()) == size // 2
    for name, mask in masks.items():
        assert not pruned[name].weight[~pruned[name].oriented(mask)].any(), name
    assert {name for name, raw in bytes_of(case.model).items() if raw != before[name]} <= parameters_of_layers(case)
    assert tied(case.model) == ties
    check_reloaded(case, tmp_path / "run" / "model")


def check_reloaded(case: Case, folder: Path) -> None:
    again = case.row.reload(folder)
    with torch.no_grad():
        ours, theirs = (case.row.outputs(model, case.batches[1]) for model in (case.model, again))
    torch.testing.assert_close(theirs, ours, rtol=0, atol=0)


def parameters_of_layers(case: Case) -> set[str]:
    """The names of the parameters that layers are, or are parts of."""
    mine = {id(layer.parameter) for _, layer in case.anatomy.layers()}
    return {name for name, one in case.model.named_parameters(remove_duplicate=False) if id(one) in mine}


def bytes_of(model: nn.Module) -> dict[str, bytes]:
    return {
        name: tensor.detach().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()
        for name, tensor in model.state_dict().items()
    }


def tied(model: nn.Module) -> list[list[str]]:
    names: dict[int, list[str]] = {}
    for name, parameter in model.named_parameters(remove_duplicate=False):
        names.setdefault(id(parameter), []).append(name)
    return [group for group in names.values() if len(group) > 1]


@end_to_end
def test_two_of_four_in_every_layer(case: Case, tmp_path: Path):
    uneven = [layer.name for _, layer in case.anatomy.layers() if layer.shape[1] % 4]
    if uneven:
        pytest.skip(f"inputs that four does not divide: {uneven[0]}")
    done = run(case, tmp_path / "run", sparsity="2:4", prune="wanda")
    weights = {layer.name: layer.weight for _, layer in case.anatomy.layers()}
    for name in done.plan.layers:
        assert bool((weights[name].reshape(-1, 4).ne(0).sum(1) <= 2).all()), name
    assert done.plan.keep * 2 == done.plan.size


@end_to_end
def test_a_tower_with_a_budget_of_its_own_and_all_that_can_be_included(case: Case, tmp_path: Path):
    first = case.row.towers[0]
    included = [*case.row.kept, *case.row.outside]
    done = run(
        case, tmp_path / "run", towers={first: {"sparsity": 0.25}}, include=included or None,
        score={"use": "zeroth_order", "samples": 2, "joint": True}, prune="wanda",
    )  # fmt: skip
    own = [layer for layer in done.plan.layers.values() if layer.tower == first]
    rest = [layer for layer in done.plan.layers.values() if layer.tower != first]
    assert {layer.tower for layer in rest} == {*case.row.towers, *case.row.outside} - {first}
    for layers, (kept, of) in ((own, (3, 4)), (rest, (1, 2))):
        size = sum(layer.size for layer in layers)
        assert sum(layer.keep for layer in layers) == size * kept // of
    check_reloaded(case, tmp_path / "run" / "model")


@end_to_end
@pytest.mark.parametrize("dtype", [torch.bfloat16, pytest.param(torch.float16, marks=pytest.mark.slow)], ids=str)
def test_a_16_bit_model_comes_out_as_it_came_in(case: Case, dtype: torch.dtype, tmp_path: Path):
    if dtype in case.row.cannot:
        pytest.skip(case.row.cannot[dtype])
    case.adapter.save(case.model, tmp_path / "saved")
    case.model = in_16_bit(case, tmp_path / "saved", dtype)
    dtypes = {name: parameter.dtype for name, parameter in case.model.named_parameters()}
    before = bytes_of(case.model)
    done = run(case, tmp_path / "run", score={"use": "zeroth_order", "samples": 2, "joint": True}, prune="wanda")
    assert dtypes == {name: parameter.dtype for name, parameter in case.model.named_parameters()}
    assert dtype in {layer.weight.dtype for _, layer in case.anatomy.layers() if layer.name in done.plan.layers}
    assert {name for name, raw in bytes_of(case.model).items() if raw != before[name]} <= parameters_of_layers(case)
    check_reloaded(case, tmp_path / "run" / "model")


def in_16_bit(case: Case, folder: Path, dtype: torch.dtype) -> nn.Module:
    """Read as its library reads it in this type, which may leave some weights wider; else converted."""
    if not case.row.is_whole_on_disk:
        return case.model.to(dtype)
    return case.row.adapter().load(open_source(str(folder), Path.cwd()), dtype, "cpu")


def test_a_saved_model_is_taken_apart_without_weights(case: Case, tmp_path: Path):
    case.adapter.save(case.model, tmp_path)
    if not case.row.is_whole_on_disk:
        with pytest.raises(ecoflap.EcoflapError, match=r"no model in|build the model"):
            case.adapter.load(open_source(str(tmp_path), Path.cwd()), None, "meta")
        return
    source = open_source(str(tmp_path), Path.cwd())
    assert case.adapter.matches(source)
    weightless = case.adapter.load(source, None, "meta")
    anatomy = Anatomy.of(case.adapter.towers(weightless), case.adapter.layers, case.row.outside)
    assert all(parameter.is_meta for parameter in weightless.parameters())
    told = {layer.name: layer.shape for _, layer in anatomy.layers()}
    assert told == {layer.name: layer.shape for _, layer in case.anatomy.layers()}
    assert sorted(weightless.state_dict()) == sorted(case.model.state_dict())


@thorough
@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("offload", [None, "cpu"])
@pytest.mark.parametrize("method", METHODS)
def test_cuda_gives_what_the_cpu_gives(name: str, method: str, offload: str | None, tmp_path: Path):
    usual = run(case_of(name), tmp_path / "cpu", {"device": "cpu"}, **METHODS[method])
    there = run(case_of(name), tmp_path / "cuda", {"device": "cuda", "offload": offload}, **METHODS[method])
    expected, found = (scores(done.folder) for done in (usual, there))
    # A score is a difference of losses, so that rounding takes as much of a small one as of the largest.
    assert found == pytest.approx(expected, rel=1e-2, abs=1e-2 * max(expected.values()))
    masks = [read_masks(done.folder / "masks.safetensors") for done in (usual, there)]
    alike = sum(int((mask == masks[1][layer]).sum()) for layer, mask in masks[0].items())
    assert alike >= 0.98 * usual.plan.size


def scores(folder: Path) -> dict[str, float]:
    lines = map(json.loads, (folder / "scores.jsonl").read_text().splitlines())
    return {line["name"]: line["score"] for line in lines if "name" in line}
