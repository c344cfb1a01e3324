"""What a matrix of low rank gives back: the least error that any has, and the adapter that PEFT reads."""

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from exported import half_pruned
from offloaded import recipe_of
from plan_contexts import context
from safetensors.torch import load_file
from table import GENERIC_ROWS
from transformers_version import LEAVES_WEIGHTS, OFFLOADS

import ecoflap
import ecoflap.exporters.eora as eora
from ecoflap.adapters.llama import LlamaAdapter
from ecoflap.core.contracts.protocols import Exporter
from ecoflap.core.errors import EcoflapError, ModelError, RecipeError, RunError
from ecoflap.core.model.anatomy import Anatomy
from ecoflap.core.needs.disk import disk_needs
from ecoflap.core.needs.memory import Places, memory_needs
from ecoflap.core.preparing.prepare import prepare
from ecoflap.core.recipe.load import parse_recipe
from ecoflap.core.registry.registry import load_registry
from ecoflap.exporters.eora import CONFIG, WEIGHTS, Eora, correction, ecoflap_register_exporters

IDS = torch.tensor([[1, 5, 7, 9, 30, 2, 8], [3, 3, 60, 12, 9, 9, 40]])


def numbers(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize(("outputs", "inputs"), [(9, 14), (14, 9)])
def test_it_is_the_papers_matrix(outputs: int, inputs: int):
    """Theirs has an inverse of the eigenvalues: B' A' = U_r Σ_r V_rᵀ Λ^-½ Qᵀ."""
    lost, x = numbers(outputs, inputs), numbers(inputs, 40, seed=1)
    gram = x @ x.T
    scales, vectors = torch.linalg.eigh(gram)
    space = vectors @ scales.sqrt().diag()
    u, s, v = torch.linalg.svd(lost @ space, full_matrices=False)
    theirs = u[:, :3] @ s[:3].diag() @ v[:3] @ torch.linalg.inv(space)
    found = correction(lost, gram, 3)
    assert torch.allclose(found.b @ found.a, theirs, atol=1e-10)
    squared = ((lost - theirs) @ x).square().sum() / (lost @ x).square().sum()
    assert found.left == pytest.approx(float(squared), rel=1e-9)


@pytest.mark.parametrize("seed", range(3))
def test_no_matrix_of_its_rank_leaves_less(seed: int):
    """Held against one that is trained for it, and comes to no less."""
    lost, x = numbers(6, 8), numbers(8, 30, seed=1)
    best = correction(lost, x @ x.T, 2)
    b, a = numbers(6, 2, seed=seed).requires_grad_(), numbers(2, 8, seed=seed + 9).requires_grad_()
    optimiser = torch.optim.LBFGS([a, b], lr=1, max_iter=2000, line_search_fn="strong_wolfe", tolerance_change=1e-14)

    def error() -> torch.Tensor:
        optimiser.zero_grad()
        found = ((lost - b @ a) @ x).square().sum()
        found.backward()
        return found

    optimiser.step(error)  # type: ignore[arg-type]  # it is called for the number
    least = float(((lost - best.b @ best.a) @ x).square().sum())
    trained = float(error().detach())
    assert trained == pytest.approx(least, rel=1e-4)
    assert trained >= least * (1 - 1e-9)


def test_of_fewer_tokens_than_inputs_and_of_nothing_lost():
    lost, x = numbers(6, 8), numbers(8, 3, seed=1)
    found = correction(lost, x @ x.T, 3)
    assert found.left < 1e-12
    assert torch.allclose(found.b @ (found.a @ x), lost @ x, atol=1e-8)
    assert correction(lost * 0, x @ x.T, 3).left == 0


def test_it_is_an_exporter():
    assert isinstance(Eora(), Exporter)
    assert ecoflap_register_exporters() == {"eora": Eora}


@pytest.fixture
def recipe(pico_llama: Any, pico_tokenizer: Any, tmp_path: Path) -> dict[str, Any]:
    pico_llama().save_pretrained(tmp_path / "model", safe_serialization=True)
    pico_tokenizer.save_pretrained(tmp_path / "model")
    (tmp_path / "text.txt").write_text(" ".join(f"word{(7 * n) % 30}" for n in range(300)))
    text = {"use": "text", "path": str(tmp_path / "text.txt"), "sequence_length": 16, "samples": 4}
    return {
        "version": 1,
        "model": str(tmp_path / "model"),
        "calibration": text,
        "sparsity": "2:4",
        "prune": "wanda",
        "allocate": "uniform",
        "export": [{"use": "eora", "rank": 8}, "hugging_face"],
    }


@pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing. is deprecated:FutureWarning")  # peft asks it
def test_peft_puts_it_on_what_was_exported(recipe: dict[str, Any], tmp_path: Path):
    run = ecoflap.run(recipe, folder=tmp_path / "run")
    folder = run.folder / "exports" / "eora"
    assert {path.name for path in folder.iterdir()} >= {WEIGHTS, CONFIG}
    assert not any("tokens for" in note for note in run.report.exports["eora"].notes)
    found, pruned = load_file(folder / WEIGHTS), run.model.state_dict()
    dense = load_file(tmp_path / "model" / "model.safetensors")
    expected = {name: tensor.clone() for name, tensor in pruned.items()}
    before = after = 0.0
    for name in ecoflap.load_masks(run.folder):
        module = f"base_model.model.{name.removesuffix('.weight')}"
        expected[name] += found[f"{module}.lora_B.weight"] @ found[f"{module}.lora_A.weight"]
        before += float((dense[name] - pruned[name]).square().sum())
        after += float((dense[name] - expected[name]).square().sum())
    assert len(found) == 2 * len(ecoflap.load_masks(run.folder))
    assert after < before / 2  # 8 of 32 dimensions, of which few tokens need few
    run.model.load_state_dict(expected)
    with torch.no_grad():
        wanted = run.model(input_ids=IDS).logits
    peft = pytest.importorskip("peft")
    from transformers import AutoModelForCausalLM

    base = AutoModelForCausalLM.from_pretrained(run.folder / "exports" / "hugging_face").eval()
    corrected = peft.PeftModel.from_pretrained(base, folder).eval()
    with torch.no_grad():
        assert torch.allclose(corrected(input_ids=IDS).logits, wanted, atol=1e-5)


@pytest.mark.parametrize("offload", OFFLOADS)
def test_what_it_takes_is_predicted(recipe: dict[str, Any], tmp_path: Path, offload: str | None):
    asked = {**recipe, "model": {"source": recipe["model"], "offload": offload}, "export": {"use": "eora", "rank": 8}}
    registry = load_registry()
    prepared = prepare(parse_recipe(asked, registry=registry), registry, planning=True)
    found = memory_needs(prepared, Places.asked(prepared.recipe))
    run = ecoflap.run(asked, folder=tmp_path / "run")
    dense = sum(parameter.nbytes for parameter in run.model.parameters())
    file = 4 * sum(8 * sum(mask.shape) for mask in ecoflap.load_masks(run.folder).values())
    assert dict(disk_needs(prepared, Places.asked(prepared.recipe)).files)["eora"] == file
    assert file < (run.folder / "exports" / "eora" / WEIGHTS).stat().st_size < file + 10_000  # a header
    solved = 6 * 8 * 48 * (48 + 32)  # of down_proj
    assert found.exporting == {"eora": (0 if offload else dense) + file + solved}
    assert found.peak >= file + solved + found.weights


@LEAVES_WEIGHTS
def test_a_dense_model_that_stays_in_its_files_gives_the_same(
    recipe: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    found, mapped = {}, []
    monkeypatch.setattr(eora, "_loaded", lambda adapter, source: loaded(mapped, adapter, source))
    for offload in (None, "disk"):
        asked = {**recipe, "model": {"source": recipe["model"], "offload": offload}}
        run = ecoflap.run({**asked, "export": {"use": "eora", "rank": 8}}, folder=tmp_path / str(offload))
        found[offload] = (run.folder / "exports" / "eora" / WEIGHTS).read_bytes()
        assert {one.name for one in (run.folder / "exports" / "eora").iterdir()} == {
            WEIGHTS,
            CONFIG,
            "manifest.json",
            "SHA256SUMS",
        }
    assert found["disk"] == found[None]
    assert mapped == [False, True]


def loaded(mapped: list[bool], adapter: Any, source: Any) -> Any:
    """Load a model, and note whether its weights are in its files."""
    model = adapter.load(source, None, "cpu")
    files = {place.file.name for place in source.mapped.places.values()} if source.mapped else set()
    mapped.append(files == {"model.safetensors"})
    return model


@pytest.mark.parametrize("kind", ["mixtral", "gpt_oss"])
def test_experts_that_are_put_together_lie_on_the_disk_as_predicted(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """Those of a Mixtral lie beside the dense model's files; those of the other are in its files as they are."""
    pytest.importorskip("transformers", minversion="5", reason="experts are put together from transformers 5 on")
    keys = {"export": {"use": "eora", "rank": 2}, "score": None, "allocate": "uniform", "prune": "wanda"}
    asked = recipe_of(kind, tmp_path, **keys, evaluate=None)
    registry, found = load_registry(), []
    prepared = prepare(parse_recipe(asked, registry=registry), registry, planning=True)
    predicted = disk_needs(prepared, Places.asked(prepared.recipe)).exporting

    def measured(adapter: Any, source: Any) -> Any:
        model = adapter.load(source, None, "cpu")
        found.extend(path.stat().st_size for path in source.mapped.scratch.iterdir())
        return model

    monkeypatch.setattr(eora, "_loaded", measured)
    ecoflap.run(asked, folder=tmp_path / "run")
    assert (predicted > 0) == (kind == "mixtral")
    assert predicted <= sum(found) < predicted + 1000 * len(found) + 1  # each has a header


@LEAVES_WEIGHTS
def test_dense_weights_that_change_while_they_are_read_are_refused(
    recipe: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    def changed(adapter: Any, source: Any) -> Any:
        model = adapter.load(source, None, "cpu")
        (tmp_path / "model" / "model.safetensors").touch()
        return model

    asked = {**recipe, "model": {"source": recipe["model"], "offload": "disk"}}
    run = ecoflap.run(asked, folder=tmp_path / "run")
    monkeypatch.setattr(eora, "_loaded", changed)
    with pytest.raises(RunError, match=r"model\.safetensors changed while the model was read from there"):
        ecoflap.export_run(run.folder, {"use": "eora", "rank": 8}, overwrite=True)


def test_too_few_tokens_are_noted(recipe: dict[str, Any], tmp_path: Path):
    text = {**recipe["calibration"], "samples": 1}
    run = ecoflap.run({**recipe, "calibration": text, "export": {"use": "eora", "rank": 8}}, folder=tmp_path / "run")
    assert all(one.startswith("eora: ") for one in run.report.warnings)  # Wanda solves nothing
    assert (
        run.report.exports["eora"]
        .notes[-1]
        .startswith(
            "model.layers.0.self_attn.q_proj.weight: 16 tokens for 32 inputs, and those of 20 other layers are few: "
        )
    )


def test_it_is_written_again_of_a_finished_run_where_the_dense_model_is_there(recipe: dict[str, Any], tmp_path: Path):
    run = ecoflap.run(recipe, folder=tmp_path / "run")
    before = (run.folder / "exports" / "eora" / WEIGHTS).read_bytes()
    again = ecoflap.export_run(run.folder, {"use": "eora", "rank": 8}, overwrite=True)
    assert (again / WEIGHTS).read_bytes() == before
    file = tmp_path / "model" / "config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), "rms_norm_eps": 0.5}))
    with pytest.raises(ModelError, match=r"is not the model any more that was pruned: config\.json differs\. Put it"):
        ecoflap.export_run(run.folder, {"use": "eora", "rank": 8}, overwrite=True)
    assert (again / WEIGHTS).read_bytes() == before


@pytest.mark.parametrize(
    ("keys", "problem"),
    [
        ({"calibration": None, "prune": "magnitude"}, r"there is no calibration data\. Add calibration: to the recipe"),
        (
            {"export": {"use": "eora", "rank": 32}},
            r"of rank 32 takes no fewer numbers than .*: rank may be 10 at most",  # of 16 × 32
        ),
        ({"export": {"use": "eora", "rank": 0}}, "rank is 0"),
    ],
)
def test_what_the_plan_refuses(recipe: dict[str, Any], keys: dict[str, Any], problem: str, tmp_path: Path):
    asked = {key: value for key, value in {**recipe, **keys}.items() if value is not None}
    with pytest.raises(RecipeError, match=problem):
        ecoflap.run(asked, folder=tmp_path / "run")


def test_matrices_of_a_tower_that_is_kept_are_not_too_small(pico_llama: Any):
    model = pico_llama().to("meta")
    anatomy = Anatomy.of(LlamaAdapter().towers(model), LlamaAdapter().layers)

    def said(towers: dict[str, str]) -> list[str]:
        asked = SimpleNamespace(calibration=object(), towers=towers, included=frozenset())
        return list(Eora(rank=32).problems(context(asked, anatomy, model=model)))

    (problem,) = said({})
    assert "of rank 32 takes no fewer numbers than" in problem
    assert not said({"language": "keep"})


@pytest.mark.parametrize(("rank", "is_refused"), [(10, False), (11, True)])
def test_a_correction_takes_fewer_numbers_than_its_matrix(rank: int, is_refused: bool, pico_llama: Any):
    model = pico_llama().to("meta")
    anatomy = Anatomy.of(LlamaAdapter().towers(model), LlamaAdapter().layers)
    assert min(layer.size / sum(layer.shape) for _, layer in anatomy.layers()) == 16 * 32 / 48
    asked = SimpleNamespace(calibration=object(), towers={}, included=frozenset())
    assert bool([*Eora(rank=rank).problems(context(asked, anatomy, model=model))]) == is_refused


def test_a_model_without_linear_layers_is_refused_before_it_is_pruned():
    pytest.importorskip("transformers", minversion="5.0")
    row = GENERIC_ROWS["gpt2"]
    model, adapter = row.build().to("meta"), row.adapter()
    anatomy = Anatomy.of(adapter.towers(model), adapter.layers)
    asked = SimpleNamespace(calibration=object(), towers={}, included=frozenset())
    (problem,) = Eora(rank=4).problems(context(asked, anatomy, model=model))
    assert "corrects a torch.nn.Linear, and none of the matrices that are pruned is one" in problem


def test_a_model_in_memory_has_no_dense_weights_left(
    recipe: dict[str, Any], pico_llama: Any, pico_tokenizer: Any, tmp_path: Path
):
    asked = {key: value for key, value in recipe.items() if key != "model"}
    with pytest.raises(EcoflapError, match=r"a model in memory was pruned in place\. Give its folder instead"):
        ecoflap.run(asked, model=pico_llama(), processor=pico_tokenizer, folder=tmp_path / "run")


def test_nor_has_its_run_when_it_is_exported_later(
    recipe: dict[str, Any], pico_llama: Any, pico_tokenizer: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    asked = {key: value for key, value in recipe.items() if key not in ("model", "export")}
    done = ecoflap.run(asked, model=pico_llama(), processor=pico_tokenizer, folder=tmp_path / "run")
    (tmp_path / "memory").mkdir()  # which is not meant
    monkeypatch.chdir(tmp_path)
    with pytest.raises(EcoflapError, match=r"a model in memory was pruned in place\. Give its folder instead"):
        ecoflap.export_run(done.folder, "eora")


def test_without_a_run_or_data_it_says_so(tmp_path: Path):
    pruned = half_pruned("llama")
    with pytest.raises(ModelError, match="there is no calibration data"):
        Eora(rank=4)(pruned, tmp_path)
