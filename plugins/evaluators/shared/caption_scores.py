"""Captions are scored by COCO's own scorers (``pycocoevalcap``): CIDEr-D, BLEU, ROUGE-L, SPICE, with standard errors.

Vedantam et al., CIDEr, CVPR 2015; Papineni et al., BLEU, ACL 2002; Lin, ROUGE, 2004; Anderson et al., SPICE, ECCV 2016.
"""

import math
from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from shutil import which
from typing import Any, Literal

import numpy as np
from filelock import FileLock

from ecoflap.core.contracts.records import Measure
from ecoflap.core.errors import DataError
from ecoflap.plugins.evaluators.shared.means import mean_over_images

CaptionMetric = Literal["cider", "bleu", "rouge", "spice"]
ORDERS = 4
"""BLEU counts n-grams of one word up to so many."""
TINY, SMALL = 1e-15, 1e-9  # the scorer adds them to counts, so that none is divided by 0
PARSER = ("stanford-corenlp-3.6.0.jar", "stanford-corenlp-3.6.0-models.jar")
"""The files of the parser that SPICE runs."""

Words = Sequence[str]
"""What was said of each image, its words with single blanks between them."""
References = Sequence[Sequence[str]]
"""The references of each image, written likewise."""
CaptionScorer = Callable[[Words, References, Sequence[Hashable]], Mapping[str, Measure]]
"""Scores captions against their references. The last argument tells which captions are of one image."""


def cider(said: Words, references: References, images: Sequence[Hashable]) -> Mapping[str, Measure]:
    """Score captions by CIDEr-D. The standard error takes the words' weights, which are the references' own, as known.

    :raises DataError: Where there is one image, so that no word is rarer than another.
    """
    if len(said) < 2:
        raise DataError("caption: CIDEr weighs words by how few images they are said of, and there is one image.")
    from pycocoevalcap.cider.cider import Cider

    _, each = Cider().compute_score(*_keyed(said, references))
    return {"cider": mean_over_images([float(one) for one in each], images, "captions")}


def rouge(said: Words, references: References, images: Sequence[Hashable]) -> Mapping[str, Measure]:
    """Score captions by ROUGE-L."""
    from pycocoevalcap.rouge.rouge import Rouge

    _, each = Rouge().compute_score(*_keyed(said, references))
    return {"rouge-l": mean_over_images([float(one) for one in each], images, "captions")}


def bleu(said: Words, references: References, images: Sequence[Hashable]) -> Mapping[str, Measure]:
    """Score all captions together by BLEU-1 to -4.

    The standard error is the jackknife's, which is computed from the scores without each image.
    """
    from pycocoevalcap.bleu.bleu_scorer import BleuScorer

    scorer = BleuScorer(n=ORDERS)
    for words, own in zip(said, references, strict=True):
        scorer += (words, [*own])
    values, _ = scorer.compute_score(option="closest", verbose=0)
    counts = _counts(scorer.ctest, images)
    without = [_bleu(counts.sum(0) - own) for own in counts]
    errors = [_jackknife([scores[order] for scores in without]) for order in range(ORDERS)]
    return {
        f"bleu-{order + 1}": Measure(float(values[order]), len(said), errors[order], "captions")
        for order in range(ORDERS)
    }


def spice(said: Words, references: References, images: Sequence[Hashable]) -> Mapping[str, Measure]:
    """Score captions by SPICE, which runs in Java: one process at a time, for its files lie in its package."""
    from pycocoevalcap.spice import spice as module

    own = Path(module.__file__).with_name("tmp")
    own.mkdir(exist_ok=True)
    with FileLock(own / ".lock"):
        _, each = module.Spice().compute_score(*_keyed(said, references))
    return {"spice": mean_over_images([float(one["All"]["f"]) for one in each], images, "captions")}


SCORERS: Mapping[CaptionMetric, CaptionScorer] = {"cider": cider, "bleu": bleu, "rouge": rouge, "spice": spice}


def missing_for(metrics: Sequence[CaptionMetric]) -> Iterator[str]:
    """Say what has to be installed first."""
    found = find_spec("pycocoevalcap")
    if found is None:
        yield "scoring captions needs pycocoevalcap: pip install 'ecoflap[caption]'."
    if "spice" not in metrics:
        return
    if which("java") is None:
        yield "SPICE runs in Java, and there is no java: install a Java 8 runtime, or take spice out of metrics."
    if found is not None and found.submodule_search_locations:
        folder = Path(found.submodule_search_locations[0]) / "spice" / "lib"
        absent = [name for name in PARSER if not (folder / name).is_file()]
        if absent:
            yield (
                f"SPICE needs {' and '.join(absent)} in {folder}. pycocoevalcap downloads them, 400 MB, by python -c "
                "'from pycocoevalcap.spice.spice import Spice; Spice()'. Or take spice out of metrics."
            )


def _keyed(said: Words, references: References) -> tuple[dict[int, list[str]], dict[int, list[str]]]:
    """Give references and captions as the scorers take them: by number."""
    return {at: [*own] for at, own in enumerate(references)}, {at: [words] for at, words in enumerate(said)}


def _counts(captions: Sequence[Mapping[str, Any]], images: Sequence[Hashable]) -> Any:
    """Count for each image its words, those of the nearest reference, its n-grams, and those of them that are right."""
    rows: dict[Hashable, Any] = {}
    for caption, image in zip(captions, images, strict=True):
        words = caption["testlen"]
        nearest = min((abs(length - words), length) for length in caption["reflen"])[1]
        own = np.array([words, nearest, *caption["guess"], *caption["correct"]], dtype=np.float64)
        rows[image] = rows.get(image, 0) + own
    return np.stack([*rows.values()])


def _bleu(counts: Any) -> list[float]:
    """Compute BLEU: the geometric mean of the shares of right n-grams, times the penalty for being too short."""
    words, nearest, guess, right = counts[0], counts[1], counts[2 : 2 + ORDERS], counts[2 + ORDERS :]
    ratio = (words + TINY) / (nearest + SMALL)
    penalty = min(1.0, math.exp(1 - 1 / ratio)) if ratio > SMALL else 0.0
    logs = np.log((right + TINY) / (guess + SMALL)).cumsum() / np.arange(1, ORDERS + 1)
    return [float(score) * penalty for score in np.exp(logs)]


def _jackknife(without: Sequence[float]) -> float:
    """Compute √((n − 1)/n·Σ(x − mean)²) over the values with one of n left out; Efron, 1982."""
    n = len(without)
    if n < 2:
        return math.inf
    centre = math.fsum(without) / n
    return math.sqrt((n - 1) / n * math.fsum((one - centre) ** 2 for one in without))
