"""Names of classes, and the sentences they are put in, for zero-shot classification.

Radford et al., CLIP, ICML 2021. The sets of ImageNet are those that open_clip carries.
"""

import re
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from ecoflap.core.errors import DataError

TEMPLATES = {"openai_imagenet": "OPENAI_IMAGENET_TEMPLATES", "simple_imagenet": "SIMPLE_IMAGENET_TEMPLATES"}
CLASSES = {"openai_imagenet": "IMAGENET_CLASSNAMES"}
BLANK = "{}"
WORDNET = re.compile(r"n\d{8}")


def templates_named(name: str) -> tuple[str, ...]:
    """A set of open_clip's, each with ``{}`` where the class goes."""
    return tuple(template(BLANK) for template in _open_clips(TEMPLATES[name]))


def classes_named(name: str) -> tuple[str, ...]:
    """A list of open_clip's."""
    return tuple(_open_clips(CLASSES[name]))


def classes_in(file: Path) -> tuple[str, ...]:
    """A name a line.

    :raises DataError: Where the file is not there, or no text.
    """
    try:
        lines = file.read_bytes().decode("utf-8-sig").split("\n")
    except (OSError, UnicodeDecodeError) as error:
        told = f"zero_shot: classes: {file} cannot be read as UTF-8 text: {error}. A name a line is expected."
        raise DataError(told) from error
    return tuple(line.strip() for line in lines if line.strip())


def checked(classes: Sequence[str]) -> tuple[str, ...]:
    """Those that a model can be asked for.

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
    """Each sentence with the name in it."""
    return [template.replace(BLANK, name) for template in templates]


def _open_clips(name: str) -> Sequence[Any]:
    """Of texts, or of functions that make them."""
    if find_spec("open_clip") is None:
        raise DataError(f"zero_shot: {name} are open_clip's: pip install 'ecoflap[clip]', or write them out.")
    from open_clip import zero_shot_metadata

    found: Sequence[Any] = getattr(zero_shot_metadata, name)
    return found
