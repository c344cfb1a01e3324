"""What a harness asks, as an adapter is asked it."""

from typing import Any

import pytest
from PIL import Image
from speaking import Parrot
from torch import nn

from ecoflap.core.contracts.abilities import Generation
from ecoflap.core.errors import DataError
from ecoflap.plugins.evaluators.harness.texts import Asked, texts_of

PICTURE = Image.new("L", (4, 5))


def test_a_request_is_a_question_on_an_image_in_rgb():
    sample = Asked("<image> what is this?\n", [PICTURE], {}).sample()
    assert (sample.question, sample.image.mode, sample.image.size) == ("what is this?", "RGB", (4, 5))
    assert Asked("go on", [], {}).sample().image is None


@pytest.mark.parametrize(
    ("settings", "generation"),
    [
        ({}, Generation(99, 0)),
        ({"max_gen_toks": 7, "temperature": 0.0, "until": ["\n"]}, Generation(7, 0)),
        ({"max_new_tokens": 8, "num_beams": 3, "do_sample": False}, Generation(8, 0, 3)),
        ({"max_new_tokens": 8, "num_beams": 3, "length_penalty": -1}, Generation(8, 0, 3, -1.0)),
        ({"max_new_tokens": 8, "num_beams": 2, "length_penalty": 0.0}, Generation(8, 0, 2, 0.0)),
        ({"num_beams": None, "length_penalty": None}, Generation(99, 0)),
    ],
)
def test_settings_are_those_of_a_generation(settings: dict[str, Any], generation: Generation):
    assert Asked("a", [], settings).generation(99) == generation


@pytest.mark.parametrize(
    ("settings", "told"),
    [({"do_sample": True}, "wants its texts drawn at random"), ({"min_p": 0.1}, "sets min_p for its texts")],
)
def test_settings_that_an_adapter_does_not_know_are_refused(settings: dict[str, Any], told: str):
    with pytest.raises(DataError, match=told):
        Asked("a", [], settings).generation(9)


def test_several_images_are_refused():
    with pytest.raises(DataError, match="shows 2 images at once, and an adapter is asked about one"):
        Asked("a", [PICTURE, PICTURE], {}).sample()


@pytest.mark.parametrize(("until", "text"), [((), "a\nb. c"), ("\n", "a"), ([". ", "\n"], "a"), (["", "d"], "a\nb. c")])
def test_an_answer_ends_before_what_ends_it(until: Any, text: str):
    assert Asked("a", [], {"until": until}).cut("a\nb. c") == text


def test_texts_made_alike_are_made_together_and_come_in_their_order():
    parrot = Parrot({"a": "w1", "b": "w2 w3", "c": "w4", "d": "w5"})
    asked = [Asked(text, [], {"max_new_tokens": 3 + number % 2}) for number, text in enumerate("abcd")]
    assert texts_of(nn.Identity(), parrot, asked, 8, 9) == ["w1", "w2 w3", "w4", "w5"]
    assert parrot.asked == [["a", "c"], ["b", "d"]]
    parrot.asked.clear()
    texts_of(nn.Identity(), parrot, asked[::2], 1, 9)
    assert parrot.asked == [["a"], ["c"]]
