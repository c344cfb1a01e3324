"""COCO's scorers by hand, and the standard errors of what they give."""

import math
from importlib.machinery import ModuleSpec
from importlib.util import find_spec
from pathlib import Path
from statistics import stdev
from typing import Any

import pytest

from ecoflap.core.errors import DataError
from ecoflap.core.record.open_run import is_held
from ecoflap.plugins.evaluators.shared import caption_scores
from ecoflap.plugins.evaluators.shared.caption_scores import bleu, cider, missing_for, rouge

pytest.importorskip("pycocoevalcap", reason="pip install 'ecoflap[caption]'")

SAID = ["a red cat", "a dog runs", "two small birds fly"]
REFERENCES = [["a red cat sleeps", "the cat sat down there"], ["a dog runs"], ["birds fly", "two birds fly away now"]]


def grams(text: str, n: int) -> dict[tuple[str, ...], int]:
    split = text.split()
    every = [tuple(split[at : at + n]) for at in range(len(split) - n + 1)]
    return {gram: every.count(gram) for gram in every}


def cider_by_hand(said: str, references: list[str], everything: list[list[str]]) -> float:
    """CIDEr-D of one image: 10 · the mean over n of the mean over references of a clipped, damped cosine."""

    def weights(text: str, n: int) -> dict[tuple[str, ...], float]:
        count = {g: sum(any(g in grams(one, n) for one in own) for own in everything) for g in grams(text, n)}
        return {g: tf * math.log(len(everything) / max(1, count[g])) for g, tf in grams(text, n).items()}

    total = 0.0
    for n in (1, 2, 3, 4):
        for reference in references:
            ours, theirs = weights(said, n), weights(reference, n)
            product = sum(min(w, theirs.get(g, 0)) * theirs.get(g, 0) for g, w in ours.items())
            norms = math.sqrt(sum(w * w for w in ours.values()) * sum(w * w for w in theirs.values()))
            damped = math.exp(-((len(said.split()) - len(reference.split())) ** 2) / (2 * 6**2))
            total += damped * product / norms / 4 / len(references) if norms else 0
    return 10 * total


def test_cider_by_hand():
    each = [cider_by_hand(said, own, REFERENCES) for said, own in zip(SAID, REFERENCES, strict=True)]
    measure = cider(SAID, REFERENCES, [1, 2, 3])["cider"]
    assert each[1] == pytest.approx(7.5)  # all of its n-grams, of which there are none of four words
    assert measure.value == pytest.approx(sum(each) / 3)
    assert measure.standard_error == pytest.approx(stdev(each) / math.sqrt(3))
    assert (measure.n, measure.unit, measure.larger_is_better) == (3, "captions", True)


def test_cider_needs_a_second_image():
    with pytest.raises(DataError, match="CIDEr weighs words by how few images they are said of, and there is one"):
        cider(SAID[:1], REFERENCES[:1], [1])


def test_rouge_by_hand():
    """F with β = 1.2 of the longest common subsequence, from the best precision and the best recall."""
    pairs = [(3 / 3, 3 / 4), (1, 1), (3 / 4, 2 / 2)]  # "birds fly" is all of one reference, "two birds fly" of another
    each = [(1 + 1.44) * p * r / (r + 1.44 * p) for p, r in pairs]
    measure = rouge(SAID, REFERENCES, [1, 2, 3])["rouge-l"]
    assert measure.value == pytest.approx(sum(each) / 3)
    assert measure.standard_error == pytest.approx(stdev(each) / math.sqrt(3))


def test_bleu_by_hand():
    """Right n-grams: 3 + 3 + 3 of 10, 2 + 2 + 1 of 7, 1 + 1 + 0 of 4. The nearest references have 4 + 3 + 5 words."""
    found = bleu(SAID, REFERENCES, [1, 2, 3])
    penalty = math.exp(1 - 12 / 10)
    shares = 9 / 10, 5 / 7, 2 / 4
    for order in (1, 2, 3):
        wanted = penalty * math.prod(shares[:order]) ** (1 / order)
        assert found[f"bleu-{order}"].value == pytest.approx(wanted, rel=1e-6)
    assert found["bleu-4"].value == pytest.approx(0, abs=1e-3)


def test_the_error_of_bleu_is_that_of_leaving_one_image_out():
    """Each time by the scorer itself; the first image has two captions."""
    said, references, images = [*SAID, "a cat"], [*REFERENCES, ["the red cat", "a cat sat"]], [1, 2, 3, 1]
    without = []
    for image in (1, 2, 3):
        kept = [at for at in range(4) if images[at] != image]
        without.append(bleu([said[at] for at in kept], [references[at] for at in kept], kept))
    for name, measure in bleu(said, references, images).items():
        values = [one[name].value for one in without]
        mean = sum(values) / 3
        wanted = math.sqrt(2 / 3 * sum((value - mean) ** 2 for value in values))
        assert measure.standard_error == pytest.approx(wanted, rel=1e-6, abs=1e-12)
        assert measure.n == 4


def test_the_error_of_bleu_is_unknown_for_one_image():
    assert bleu(SAID[:1], REFERENCES[:1], [1])["bleu-1"].standard_error == math.inf


def test_nothing_said_scores_nothing():
    silent = ["", "a dog runs", ""]
    assert bleu(["", ""], REFERENCES[:2], [1, 2])["bleu-1"].value == pytest.approx(0, abs=1e-6)
    assert rouge(silent, REFERENCES, [1, 2, 3])["rouge-l"].value == pytest.approx(1 / 3)
    assert cider(silent, REFERENCES, [1, 2, 3])["cider"].value == pytest.approx(7.5 / 3)


def test_spice_is_the_mean_of_its_f_and_runs_once_at_a_time(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    """The scorer itself takes Java and a parser of 400 MB."""
    from pycocoevalcap.spice import spice as module

    class Scorer:
        def compute_score(self, references: Any, said: Any) -> Any:
            assert said == {0: ["a red cat"], 1: ["a dog runs"], 2: ["two small birds fly"]}
            assert references[2] == REFERENCES[2]
            assert is_held(tmp_path / "tmp" / ".lock")
            return 0.0, [{"All": {"f": value}} for value in (0.1, 0.2, 0.6)]

    monkeypatch.setattr(module, "Spice", Scorer)
    monkeypatch.setattr(module, "__file__", str(tmp_path / "spice.py"))
    measure = caption_scores.spice(SAID, REFERENCES, [1, 2, 3])["spice"]
    assert not is_held(tmp_path / "tmp" / ".lock")
    assert measure.value == pytest.approx(0.3)
    assert measure.standard_error == pytest.approx(stdev([0.1, 0.2, 0.6]) / math.sqrt(3))


def test_what_is_missing(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    assert list(missing_for(["cider", "bleu", "rouge"])) == []
    found = ModuleSpec("pycocoevalcap", None, is_package=True)
    found.submodule_search_locations = [str(tmp_path)]
    monkeypatch.setattr(caption_scores, "find_spec", lambda name: found)
    monkeypatch.setattr(caption_scores, "which", lambda name: None)
    told = list(missing_for(["spice"]))
    assert ["there is no java" in told[0], "SPICE needs stanford-corenlp-3.6.0.jar and" in told[1]] == [True, True]
    for name in caption_scores.PARSER:
        (tmp_path / "spice" / "lib").mkdir(parents=True, exist_ok=True)
        (tmp_path / "spice" / "lib" / name).touch()
    monkeypatch.setattr(caption_scores, "which", lambda name: f"/usr/bin/{name}")
    assert list(missing_for(["spice"])) == []
    monkeypatch.setattr(caption_scores, "find_spec", lambda name: None)
    assert list(missing_for(["bleu"])) == ["scoring captions needs pycocoevalcap: pip install 'ecoflap[caption]'."]


def test_the_parser_goes_where_pycocoevalcap_looks_for_it():
    spec = find_spec("pycocoevalcap.spice")
    assert spec is not None
    assert spec.submodule_search_locations
    source = (Path(spec.submodule_search_locations[0]) / "get_stanford_models.py").read_text()
    assert all(word in source for word in ("SPICELIB = 'lib'", "JAR = 'stanford-corenlp-3.6.0'", "{}-models.jar"))
