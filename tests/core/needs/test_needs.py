"""What a run takes is predicted in bytes, held against the pico model's shapes and against what a run writes."""

import pytest
from safetensors.torch import load_file
from transformers_version import is_before

from ecoflap.adapters.llama import LlamaAdapter
from ecoflap.core.needs.disk import disk_needs
from ecoflap.core.needs.memory import LIBRARIES, Places, device_needs, memory_needs, other_places
from ecoflap.core.preparing.prepare import prepare
from ecoflap.core.recipe.load import parse_recipe
from ecoflap.core.registry.registry import load_registry
from ecoflap.core.run.pipeline import run

HIDDEN, SAMPLES, LENGTH = 32, 3, 16
RECORD = SAMPLES * LENGTH * HIDDEN * 4
OWN = {"use": "reconstruct", "target": "own"}


@pytest.fixture
def recipe(pico_llama_folder, tmp_path):
    (tmp_path / "text.txt").write_text("word1 word2 the of and in " * 40)
    text = {"use": "text", "path": str(tmp_path / "text.txt"), "sequence_length": LENGTH, "samples": SAMPLES}

    def make(model=None, calibration=None, **keys):
        return {
            "version": 1,
            "model": {"source": str(pico_llama_folder), **(model or {})},
            "calibration": {**text, **(calibration or {})},
            "sparsity": 0.5,
            "allocate": "uniform",
            "prune": "wanda",
            **keys,
        }

    return make


@pytest.fixture
def prepared(recipe):
    def make(**keys):
        registry = load_registry()
        return prepare(parse_recipe(recipe(**keys), registry=registry), registry)

    return make


def asked_disk(prepared):
    return disk_needs(prepared, Places.asked(prepared.recipe))


@pytest.mark.parametrize(("batch_size", "batches"), [(1, SAMPLES), (2, -(-SAMPLES // 2))])
def test_what_blocks_hand_on_is_counted_for_each_batch(prepared, monkeypatch, batch_size, batches):
    monkeypatch.setattr(LlamaAdapter, "handed_on", lambda self, model, tower, tokens: 10 * tokens, raising=False)
    there = prepared(calibration={"batch_size": batch_size, "keep": "disk"})
    assert asked_disk(there).spilled == RECORD + batches * 10 * LENGTH * 4


@pytest.mark.parametrize(
    ("refine", "records"),
    [([], 1), (["reconstruct"], 2), ([OWN], 2), (["distill"], 2), (["reconstruct", OWN], 3), ([OWN, "distill"], 3)],
)
def test_what_is_held_against_is_a_record_of_each_target_wherever_records_are(prepared, refine, records):
    there = prepared(calibration={"keep": "disk"}, refine=refine)
    assert asked_disk(there).spilled == records * RECORD
    assert memory_needs(there, Places.asked(there.recipe)).recorded == 0
    held = memory_needs(there, Places(offloaded=False, spilled=False))
    without = memory_needs(there, Places(offloaded=False, spilled=True))
    assert held.recorded == RECORD
    assert held.refining - without.refining == (records - 1) * RECORD
    assert asked_disk(prepared(refine=refine)).spilled == 0


def test_a_narrow_model_computed_in_float32_takes_what_is_widened(prepared, pico_llama_folder, monkeypatch):
    state = load_file(pico_llama_folder / "model.safetensors")
    prunable = {name: one.numel() for name, one in state.items() if "_proj" in name}
    first = sum(size for name, size in prunable.items() if ".layers.0." in name)
    outside = sum(one.numel() for one in state.values()) - sum(prunable.values())

    def held(compute, free):
        monkeypatch.setattr("ecoflap.core.needs.memory.spare_memory", lambda prepared: free)
        there = prepared(model={"dtype": "bfloat16", "compute": compute}, refine=[OWN])
        return memory_needs(there, Places.asked(there.recipe))

    own, tight, roomy = held("model", 0), held("float32", 0), held("float32", 1 << 40)
    assert own.recorded == RECORD // 2
    assert tight.recorded == roomy.recorded == RECORD  # hidden states in float32
    assert own.weights == tight.weights  # which stay as narrow as they are
    assert (own.wide.pruning, own.wide.evaluating, own.wide.scoring) == (0, 0, 0)
    assert tight.wide.pruning == roomy.wide.pruning == tight.wide.evaluating == 4 * (outside + first)
    assert roomy.wide.evaluating == 4 * (outside + sum(prunable.values()))
    assert tight.peak - own.peak == tight.wide.pruning + 2 * (RECORD - RECORD // 2)  # what is recorded, and a target


def test_what_a_run_leaves_is_as_large_as_predicted(prepared, recipe, tmp_path):
    files = dict(asked_disk(prepared(export="safetensors")).files)
    done = run(recipe(export="safetensors"), folder=tmp_path / "run").folder
    assert files["model/"] == pytest.approx((done / "model" / "model.safetensors").stat().st_size, rel=0.05)
    assert files["masks"] == in_tensors(done / "masks.safetensors")
    packed = in_tensors(done / "exports" / "safetensors" / "model.packed.safetensors")
    assert files["safetensors"] == pytest.approx(packed, rel=0.02)


def in_tensors(path):
    """Give the bytes of a file's tensors, without its header, which is most of a pico model's."""
    return sum(one.nbytes for one in load_file(path).values())


def test_a_model_that_stays_in_files_has_no_second_copy_of_its_blocks(prepared):
    if is_before("5"):
        pytest.skip("transformers leaves weights on the disk from version 5 on")
    offloaded, in_memory = asked_disk(prepared(model={"offload": "disk"})), asked_disk(prepared())
    masks = dict(offloaded.files)["masks"]
    assert offloaded.blocks == in_memory.blocks == masks
    assert asked_disk(prepared(model={"offload": "disk"}, prune="sparsegpt")).blocks == masks
    assert asked_disk(prepared(prune="sparsegpt")).blocks == masks + prepared().size * 4


class LooksAtDense:
    """A pruner that is never asked here."""

    dense_weights = True

    def __call__(self, weight, seen, budget, layer):
        raise AssertionError


TWO = {"use": "best_of", "of": ["uniform", {"use": "atp", "beta": 0.1}]}


def in_blocks(model, *, norms):
    """Give the bytes of weights in blocks: of matrices, and of norms beside them."""
    of_blocks = model.model.layers.parameters()
    return 4 * sum(one.numel() for one in of_blocks if norms or one.dim() == 2)


@pytest.mark.parametrize("rounds", [1, 2, 3])
def test_blocks_of_all_rounds_are_counted_and_on_the_disk_those_of_the_round_before(prepared, pico_llama, rounds):
    model = pico_llama()
    masks = in_blocks(model, norms=False) // 32
    in_memory = asked_disk(prepared(rounds=rounds))
    assert in_memory.blocks == rounds * masks
    assert asked_disk(prepared(rounds=rounds, prune={"use": "swap", "inner": "wanda"})).blocks == rounds * masks
    assert asked_disk(prepared(rounds=rounds, prune="sparsegpt")).blocks == rounds * (33 * masks)
    assert asked_disk(prepared(rounds=rounds, refine=OWN)).blocks == rounds * masks + 32 * masks  # of the last
    with_head = asked_disk(prepared(rounds=rounds, refine=OWN, include=["lm_head"])).blocks
    assert with_head == rounds * (masks + model.lm_head.weight.numel() // 8) + 32 * masks  # which no refiner trains
    left = dict(in_memory.files)
    assert left["masks"] == masks
    assert left.get("rounds/", 0) == (rounds - 1) * masks
    if is_before("5"):
        pytest.skip("transformers leaves weights on the disk from version 5 on")
    offloaded = asked_disk(prepared(model={"offload": "disk"}, rounds=rounds))
    before = in_blocks(model, norms=True) if rounds > 1 else 0
    assert offloaded.blocks == min(rounds, 2) * masks + before
    assert offloaded.beside == offloaded.trying == 0


@pytest.mark.parametrize(
    ("keys", "beside", "trying"),
    [
        ({}, "outside", ""),
        ({"rounds": 2}, "outside", ""),
        ({"refine": OWN}, "outside", ""),
        ({"rounds": 2, "refine": OWN}, "all", ""),
        ({"allocate": TWO}, "outside", "blocks"),
        ({"rounds": 2, "allocate": TWO}, "outside", "blocks"),
    ],
    ids=str,
)
def test_weights_in_another_type_lie_beside_those_of_the_files(prepared, pico_llama, keys, beside, trying):
    """All of them until blocks are finished, which are as large; what is in no block stays, and what is looked at."""
    if is_before("5"):
        pytest.skip("transformers leaves weights on the disk from version 5 on")
    model = pico_llama()
    every = 2 * sum(one.numel() for one in model.parameters())
    sizes = {"": 0, "all": every, "blocks": in_blocks(model, norms=True) // 2}
    sizes["outside"] = every - sizes["blocks"]
    found = asked_disk(prepared(model={"offload": "disk", "dtype": "bfloat16"}, **keys))
    assert found.beside == sizes[beside]
    masks = in_blocks(model, norms=False) // 32 * keys.get("rounds", 1)
    assert found.trying == (masks + sizes[trying] if trying else 0)
    there = found.blocks + found.beside
    assert found.meanwhile == max(there, found.trying)
    assert asked_disk(prepared(model={"offload": "disk"}, **keys)).beside == 0


def test_a_trial_and_refiners_after_rounds_hold_the_weights_once_more_in_memory_alone(prepared, pico_llama):
    pruned = in_blocks(pico_llama(), norms=False)
    for places in (Places(offloaded=True, spilled=True), Places(offloaded=False, spilled=True)):
        once = 0 if places.offloaded else pruned
        for keys, before, tried in (
            ({}, 0, 0),
            ({"rounds": 2}, 0, 0),
            ({"refine": OWN}, 0, 0),
            ({"rounds": 2, "refine": OWN}, once, 0),
            ({"rounds": 2, "prune": LooksAtDense}, once, 0),
            ({"prune": LooksAtDense}, 0, 0),
            ({"allocate": TWO}, 0, once),
            ({"rounds": 2, "allocate": TWO, "refine": OWN}, once, once),
            ({"allocate": TWO | {"refine": True}, "refine": OWN}, 0, once),
            ({"allocate": TWO | {"refine": True}, "refine": [OWN, "distill"]}, 0, once),
        ):
            held = memory_needs(prepared(**keys), places)
            assert (held.before, held.tried) == (before, tried)
            is_refined = keys.get("allocate", TWO).get("refine", False)  # by OWN, and not by what refines the model
            assert held.refining_tried == (memory_needs(prepared(refine=OWN), places).refining if is_refined else 0)
            trying = max(held.statistics, held.solving, held.refining_tried) + held.tried
            larger = max(held.refining, trying)  # statistics are those of a span, while they are summed
            assert held.peak == LIBRARIES + held.weights + held.before + held.statistics + held.masks + larger


def test_sums_of_gradients_of_blocks_are_counted(prepared, pico_llama):
    """Each layer has its own, a number a weight, and of spans they are there twice."""
    block = pico_llama().model.layers[0]
    weights = sum(one.numel() for one in block.parameters() if one.ndim == 2)
    found = memory_needs(prepared(prune={"use": "by_metric", "metric": "wanda_plus_plus"}), Places(True, True))
    inputs = memory_needs(prepared(), Places(True, True))
    assert found.statistics - inputs.statistics == 4 * weights


def test_what_a_check_widens_is_counted_of_a_narrow_model(prepared, pico_llama):
    held = memory_needs(prepared(model={"dtype": "bfloat16", "compute": "model"}), Places(True, True))
    model = pico_llama()
    outside = sum(one.numel() for one in model.parameters()) - sum(
        one.numel() for block in model.model.layers for one in block.parameters() if one.ndim == 2
    )
    largest = max(sum(one.numel() for one in block.parameters() if one.ndim == 2) for block in model.model.layers)
    assert held.wide.checking == 4 * (outside + largest)
    assert held.peak >= LIBRARIES + held.weights + held.wide.checking
    assert memory_needs(prepared(), Places(True, True)).wide.checking == 0


def test_a_device_that_has_one_block_at_a_time_holds_that_and_a_batch(prepared):
    assert device_needs(prepared()) is None
    held = device_needs(prepared(model={"offload": "cpu"}))
    assert held is not None
    layers = prepared().anatomy.layers_of["model.layers.0"]
    assert held.block == 4 * sum(layer.size for layer in layers)
    assert held.activations == 2 * RECORD // SAMPLES
    assert held.peak == held.block + held.statistics + held.activations


def test_other_places_are_all_but_those_that_are_asked_for(prepared):
    if is_before("5"):
        pytest.skip("transformers leaves weights on the disk from version 5 on")
    here = prepared(calibration={"keep": "disk"})
    found = list(other_places(here))
    assert len(found) == 3
    assert Places.asked(here.recipe) not in found
    assert sorted(map(str, found)) == [
        "all in memory",
        "model.offload: disk",
        "model.offload: disk and calibration.keep: disk",
    ]
