"""The paper's recipes: planned from the configurations that ship, and held to its settings and to counts by hand."""

import json
import re
import shlex
from importlib.util import find_spec
from pathlib import Path
from typing import NamedTuple

import pytest

import ecoflap
from ecoflap.core.cli.plan_report import prepared_tables
from ecoflap.core.errors import ModelError
from ecoflap.core.model.source import open_source
from ecoflap.core.preparing.prepare import DataNotReady, prepare
from ecoflap.core.recipe.load import load_recipe
from ecoflap.core.registry.adapter_for import adapter_for
from ecoflap.core.text.numbers import bytes_text

FOLDER = Path(__file__).parents[1] / "recipes" / "paper"
PAPER = {path.stem: path for path in sorted(FOLDER.glob("*.yaml"))}
README = (FOLDER / "README.md").read_text("utf-8")


class Setting(NamedTuple):
    """Of the authors' scripts.

    :param most: The most that a block may lose; None for a uniform sparsity.
    :param batch_size: None where nothing looks at data.
    :param forwards: By hand: two losses a matrix and batch, four for the batch of a backward that recomputes, or two
        runs of all blocks.
    """

    sparsity: float
    most: float | None
    batch_size: int | None
    samples: int | None
    forwards: int


T5 = 24 * (4 + 3) + 24 * (4 + 4 + 3)
BLIP2, RETRIEVAL, CLIP, EVA, LLAMA = 39 * 4 + T5, 39 * 4, 12 * 4 + 12 * 4, 40 * 4, 32 * 7
BLIP, ANSWERS = 12 * 4 + 12 * (4 + 4 + 2), 12 * 4 + 2 * 12 * (4 + 4 + 2)
PAIRS = 12 * 4 + 12 * (4 + 8 + 2) + 6  # a cross-attention for each image, which six blocks put together by a matrix
SETTINGS = {
    "blip-caption-zeroth-wanda": Setting(0.5, 0.6, 1, 32, 2 * BLIP * 32),
    "blip-caption-uniform-wanda": Setting(0.5, None, 1, None, 0),
    "blip-vqa-zeroth-wanda": Setting(0.5, 0.6, 16, 32, 2 * ANSWERS * 2),
    "blip-vqa-uniform-wanda": Setting(0.5, None, 16, None, 0),
    "blip-nlvr-zeroth-wanda": Setting(0.5, 0.6, 1, 32, 2 * PAIRS * 32),
    "blip-nlvr-uniform-wanda": Setting(0.5, None, 1, None, 0),
    "blip-retrieval-zeroth-wanda": Setting(0.5, 0.6, 16, 32, 2 * BLIP * 2),
    "blip-retrieval-uniform-wanda": Setting(0.5, None, 16, None, 0),
    "blip2-zeroth-wanda": Setting(0.5, 0.6, 8, 32, 2 * BLIP2 * 4),
    "blip2-first-wanda": Setting(0.5, 0.6, 1, 128, 4 * 128),
    "blip2-zeroth-sparsegpt": Setting(0.6, 0.7, 1, 32, 2 * BLIP2 * 32),
    "blip2-uniform-wanda": Setting(0.5, None, 1, None, 0),
    "blip2-global-magnitude": Setting(0.5, None, None, 128, 0),
    "blip2-global-gradient": Setting(0.5, None, 1, 128, 4 * 128),
    "blip2-local-wanda": Setting(0.5, 0.6, 1, 128, 2 * 128),
    "blip2-uniform-sparsegpt": Setting(0.5, None, 1, None, 0),
    "blip2-retrieval-zeroth-wanda": Setting(0.5, 0.6, 8, 32, 2 * RETRIEVAL * 4),
    "blip2-retrieval-first-wanda": Setting(0.5, 0.6, 8, 128, 4 * 16),
    "blip2-retrieval-uniform-wanda": Setting(0.5, None, 8, None, 0),
    "blip2-retrieval-uniform-sparsegpt": Setting(0.5, None, 8, None, 0),
    "clip-zeroth-wanda": Setting(0.4, 0.5, 16, 32, 2 * CLIP * 2),
    "clip-zeroth-sparsegpt": Setting(0.4, 0.5, 16, 32, 2 * CLIP * 2),
    "clip-uniform-wanda": Setting(0.4, None, 16, None, 0),
    "clip-uniform-sparsegpt": Setting(0.4, None, 16, None, 0),
    "eva-zeroth-wanda": Setting(0.5, 0.6, 8, 32, 2 * EVA * 4),
    "eva-first-wanda": Setting(0.5, 0.6, 8, 128, 4 * 16),
    "eva-uniform-wanda": Setting(0.5, None, 8, None, 0),
    "flan-t5-zeroth-wanda": Setting(0.5, 0.6, 8, 32, 2 * T5 * 4),
    "flan-t5-first-wanda": Setting(0.5, 0.6, 1, 128, 4 * 128),
    "flan-t5-uniform-wanda": Setting(0.5, None, 8, None, 0),
    "llama-zeroth-wanda": Setting(0.6, 0.7, 1, 32, 2 * LLAMA * 32),
    "llama-first-wanda": Setting(0.6, 0.7, 1, 128, 4 * 128),
    "llama-uniform-wanda": Setting(0.6, None, 1, None, 0),
}
PUBLISHED = {
    "Salesforce/blip2-flan-t5-xl": {
        "vision_model": 986e6, "qformer query_tokens language_projection": 107e6, "language_model": 2.85e9, "": 3.94e9,
    },
    "Salesforce/blip2-itm-vit-g-coco": {"vision_model": 986e6},
    "google/flan-t5-xl": {"": 2.85e9},
    "huggyllama/llama-7b": {"": 6_738_415_616},
    "open_clip:ViT-B-16-quickgelu/openai": {"": 149.62e6},
    "open_clip:EVA01-g-14/laion400m_s11b_b41k": {"": 1136.44e6},
}  # fmt: skip
"""Parameters as papers, model cards and open_clip's list of models have them, of a model and of parts of it."""
PRUNABLE = {
    "blip-caption": 12 * (3 + 1 + 8) * 768**2 + 12 * (4 + 4 + 8) * 768**2,
    "blip-vqa": 12 * (3 + 1 + 8) * 768**2 + 2 * 12 * (4 + 4 + 8) * 768**2,
    "blip-retrieval": 12 * (3 + 1 + 8) * 768**2 + 12 * (4 + 4 + 8) * 768**2,
    "blip2": 39 * (3 + 1 + 2 * 6144 / 1408) * 1408**2 + 24 * (4 + 3 * 2.5) * 2048**2 + 24 * (8 + 3 * 2.5) * 2048**2,
    "blip2-retrieval": 39 * (3 + 1 + 2 * 6144 / 1408) * 1408**2,
    "clip": 12 * (3 + 1 + 8) * (768**2 + 512**2),
    "eva": 40 * (3 + 1 + 2 * 6144 / 1408) * 1408**2,
    "flan-t5": 24 * (4 + 3 * 2.5) * 2048**2 + 24 * (8 + 3 * 2.5) * 2048**2,
    "llama": 32 * (4 * 4096**2 + 3 * 4096 * 11008),
}
"""Of all but ``blip-nlvr``, which LAVIS builds: ``tests/adapters/lavis_blip_nlvr`` plans it there."""


@pytest.fixture(scope="module")
def registry():
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("ECOFLAP_REGISTRY", raising=False)
        return ecoflap.load_registry(installed=False)


@pytest.fixture(scope="module")
def weightless():
    """An adapter that has its model; a model without weights is built once for all tests of it."""
    built = {}

    def weightless(source, *rest):
        adapter = adapter_for(source, *rest)
        if source.name not in built:
            built[source.name] = adapter.load(source, None, "meta")
        adapter.load = lambda *_: built[source.name]
        return adapter

    return weightless


@pytest.fixture
def paper(registry, weightless, monkeypatch):
    """A recipe of the paper, taken apart for its plan."""
    monkeypatch.setattr("ecoflap.core.preparing.prepare.adapter_for", weightless)

    def paper(name, set_=()):
        path = PAPER[name]
        # the harness takes half a minute to list its tasks, and says nothing of the model
        unasked = ["evaluate=null"] if "lm_eval" in path.read_text() else []
        recipe = load_recipe(path, set_=[*unasked, *set_], registry=registry)
        try:
            return prepare(recipe, registry, planning=True)
        except DataNotReady as error:  # and nothing else is wrong
            return error.prepared

    return paper


def test_the_work_says_which_tokens_count_and_what_that_takes(paper):
    def pruning(*keys):
        prepared = paper("blip2-uniform-wanda", set_=keys)
        return dict(next(one.rows for one in prepared_tables(prepared) if one.title == "work"))["prune"]

    plain = pruning()
    assert "each block twice on 128 samples" in plain
    assert pruning("towers.encoder.tokens=text") == f"{plain}; tokens that count: text in encoder"
    assert pruning("towers.encoder.tokens=drifting") == (
        f"{plain}; each block of encoder once more to see which tokens drift; tokens that count: drifting in encoder"
    )
    told = pruning("sequential=true", "towers.encoder.tokens=drifting")
    assert "; each block of encoder once more for each group to see which tokens drift; tokens" in told


def test_every_line_of_the_page_that_sets_keys_is_planned(registry, paper):
    lines = re.findall(r"^ecoflap plan paper/(\S+) (--set .*?)  # \((\d)\)$", README, flags=re.MULTILINE)
    assert [int(number) for _, _, number in lines] == [1, 2, 3, 4, 5, 6, 7, 8, 9]
    for name, keys, _ in lines:
        assert paper(name, set_=[one for one in shlex.split(keys) if one != "--set"]).pools


def test_every_recipe_that_the_page_names_is_there():
    named = re.findall(
        r"`((?:blip|blip2|clip|eva|flan-t5|llama)-[\w-]+(?:wanda|sparsegpt|magnitude|gradient))`", README
    )
    assert {*named} == PAPER.keys()


def test_every_recipe_of_the_paper_has_its_settings():
    assert PAPER.keys() == SETTINGS.keys()


@pytest.mark.parametrize("name", PAPER)
def test_the_settings_are_the_papers(name, registry):
    recipe, wanted = load_recipe(PAPER[name], registry=registry), SETTINGS[name]
    score = recipe.score.scorer.parameters if recipe.score else {}
    most = recipe.allocate.parameters.get("max_sparsity")
    keys = recipe.calibration
    assert (recipe.sparsity, most, keys and keys.batch_size, score.get("samples")) == wanted[:4]
    assert keys is None or keys.data.parameters["samples"] == 128
    assert score.get("noises", 1) == 1
    assert score.get("eps", 1e-3) == 1e-3
    assert recipe.score is None or recipe.score.granularity == ("layer" if "global" in name else "block")
    pruner = name.rpartition("-")[2]
    if pruner == "gradient":
        assert recipe.prune.plain() == {"use": "by_metric", "metric": {"use": "magnitude_gradient"}, "compare": "layer"}
        assert recipe.rounds == tuple(round(0.5 ** (3 / number), 6) for number in (1, 2, 3))
    else:
        assert recipe.prune.use == pruner
        assert recipe.rounds is None


@pytest.mark.skipif(find_spec("lavis") is not None, reason="LAVIS's environment builds it")
@pytest.mark.parametrize("name", [name for name in PAPER if name.startswith("blip-nlvr-")])
def test_a_recipe_of_lavis_says_what_a_plan_of_it_needs(name, registry):
    with pytest.raises(ModelError, match=r"is read with salesforce-lavis, .*pip install 'ecoflap\[lavis\]'"):
        prepare(load_recipe(PAPER[name], registry=registry), registry, planning=True)


@pytest.mark.parametrize("family", PRUNABLE)
def test_the_papers_recipes_are_planned_from_what_ships(family, paper):
    """Without a network, a weight or data; prunable weights and forwards are those by hand."""
    names = [name for name in PAPER if re.fullmatch(rf"{family}-(zeroth|first|uniform|global|local)-\w+", name)]
    assert len(names) >= 2
    for name in names:
        prepared = paper(name)
        assert all(parameter.is_meta for parameter in prepared.model.parameters())
        assert prepared.size == round(PRUNABLE[family])
        tables = {section.title: section.rows for section in prepared_tables(prepared)}
        score = dict(tables["work"])["score"]
        assert (f"{SETTINGS[name].forwards:,} forwards" in score) == bool(SETTINGS[name].forwards), name


def test_the_memory_for_blip2_is_that_by_hand(paper, monkeypatch):
    """Two bytes a weight; in float32 what lies outside the blocks, a block of the decoder, the largest one, and of its
    widest matrix the direction that it is moved along and the step."""
    monkeypatch.setattr("ecoflap.core.preparing.prepared.is_slow", lambda dtype: False)  # nor is pruning in float32
    needs = {row[0]: row[1] for row in prepared_tables(paper("blip2-zeroth-wanda"))[-1].rows}
    total, decoder_block = 3_942_446_592, (8 + 3 * 2.5) * 2048**2
    qformer = 12 * (4 + 8) * 768**2 + 6 * 2 * (768 + 1408) * 768
    outside = total - round(PRUNABLE["blip2"]) - qformer
    moved = 2 * 2.5 * 2048**2
    expected = bytes_text(round(5e8 + 2 * total + 4 * (outside + decoder_block + moved)))
    assert needs["peak memory"] == f"at least {expected}"  # what is recorded of images shows when they are read


@pytest.mark.parametrize("source", PUBLISHED)
def test_the_configurations_have_the_published_parameters(source, registry, weightless):
    config = FOLDER / "configs" / source.rpartition("/")[2]
    opened = open_source(source, Path.cwd(), config if config.exists() else None)
    model = weightless(opened, registry).load()
    for parts, published in PUBLISHED[source].items():
        within = tuple(parts.split())
        there = [w for name, w in model.named_parameters() if not within or name.split(".")[0] in within]
        assert sum(parameter.numel() for parameter in there) == pytest.approx(published, rel=3e-3)


def test_the_captions_of_classes_are_made_as_the_readme_says(tmp_path, monkeypatch):
    open_clip = pytest.importorskip("open_clip")
    code = re.search(r"```python\n(import json.*?)```", README, flags=re.DOTALL)[1]
    for number in (2, 0, 1):
        folder = tmp_path / "data" / "imagenet" / "train" / f"n0{number}"
        folder.mkdir(parents=True)
        for image in range(64):
            (folder / f"{image}.jpg").touch()
    monkeypatch.chdir(tmp_path)
    exec(compile(code, "README.md", "exec"), {})
    rows = [json.loads(line) for line in Path("data/imagenet/train.jsonl").read_text().splitlines()]
    assert len({row["image"] for row in rows}) == 128
    for row in rows:
        number = int(re.fullmatch(r"train/n0(\d)/\d+\.jpg", row["image"])[1])
        assert row["text"] == f"a photo of a {open_clip.IMAGENET_CLASSNAMES[number]}."
