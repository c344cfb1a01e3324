"""Names of classes are put into sentences, for zero-shot classification.

Radford et al., Learning transferable visual models from natural language supervision (CLIP), ICML 2021. The sets of
ImageNet are those that open_clip carries.
"""

import re
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from ecoflap.core.errors import DataError
from ecoflap.plugins.datasets.shared.class_names import read_classes

TEMPLATES = {"openai_imagenet": "OPENAI_IMAGENET_TEMPLATES", "simple_imagenet": "SIMPLE_IMAGENET_TEMPLATES"}
"""Sets of sentences by the names that recipes have for them, as open_clip names them."""
CLASSES = {"openai_imagenet": "IMAGENET_CLASSNAMES"}
"""Lists of classes by the names that recipes have for them, as open_clip names them."""
BLANK = "{}"
"""Where a class goes in a sentence."""
WORDNET = re.compile(r"n\d{8}")
"""The number of a synset in WordNet, as ImageNet's folders are called."""


def templates_named(name: str) -> tuple[str, ...]:
    """Give one of open_clip's sets of sentences, each with ``{}`` where the class goes."""
    return tuple(template(BLANK) for template in _open_clips(TEMPLATES[name]))


def classes_named(name: str) -> tuple[str, ...]:
    """Give one of open_clip's lists of classes."""
    return tuple(_open_clips(CLASSES[name]))


def classes_in(file: Path) -> tuple[str, ...]:
    """Read a file of classes: a name a line, or what else the dataset ``image`` reads its ``names`` from.

    :raises DataError: Where the file is not there, or is no such text.
    """
    try:
        return read_classes(file).names
    except DataError as error:
        raise DataError(f"zero_shot: classes: {error} A name a line is expected.") from error


def checked(classes: Sequence[str]) -> tuple[str, ...]:
    """Give classes that a model can be asked for.

    :raises DataError: Where there are fewer than two, or they are numbers of WordNet, which no model has read.
    """
    if len(classes) < 2:
        raise DataError(f"zero_shot: there are {len(classes)} classes; at least two are needed.")
    if all(WORDNET.fullmatch(name) for name in classes):
        raise DataError(
            f"zero_shot: the names of the classes are numbers of WordNet ({classes[0]} …), which say nothing to a "
            "model. Give their names: classes: openai_imagenet for all thousand of ImageNet, or a file of names."
        )
    return tuple(classes)


def filled(templates: Sequence[str], name: str) -> list[str]:
    """Put a class into each sentence."""
    return [template.replace(BLANK, name) for template in templates]


def _open_clips(name: str) -> Sequence[Any]:
    """Give a list of open_clip's, of texts or of functions that make them."""
    if find_spec("open_clip") is None:
        raise DataError(f"zero_shot: {name} are open_clip's: pip install 'ecoflap[clip]', or write them out.")
    from open_clip import zero_shot_metadata

    found: Sequence[Any] = getattr(zero_shot_metadata, name)
    return found
