"""Images into tensors, and the number that belongs to each."""

from typing import Any

import pytest
import torch
from pico_clip import image_processor, pictures, processor, tokenizer
from torch import nn

from ecoflap.adapters.shared.images import (
    as_large_as_wanted,
    image_seeds,
    image_tokens,
    labelled_images,
    pixels_of,
    text_to_say,
)
from ecoflap.core.contracts.records import Sample
from ecoflap.core.errors import DataError, ModelError


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_a_seed_belongs_to_the_image_whatever_batch_it_is_in(dtype: torch.dtype):
    samples = list(pictures(5))
    pixels = pixels_of(image_processor(), samples).to(dtype)
    seeds = image_seeds(pixels)
    assert len(set(seeds.tolist())) == 5
    assert all(0 <= int(seed) < 2**63 for seed in seeds)
    for order in ([3], [4, 3], [3, 0, 1, 2, 4]):
        again = labelled_images(image_processor(), [samples[number] for number in order])
        assert torch.equal(image_seeds(again["pixel_values"].to(dtype)), seeds[order])
    assert torch.equal(image_seeds(pixels[:, :, ::2].contiguous()), image_seeds(pixels[:, :, ::2]))


def test_labels_come_along_where_all_have_one():
    bare = list(pictures(2))
    labelled = [Sample(image=sample.image, label=3 + number) for number, sample in enumerate(bare)]
    assert labelled_images(processor(), labelled)["labels"].tolist() == [3, 4]
    assert "labels" not in labelled_images(processor(), bare)
    with pytest.raises(DataError, match="1 of 2 images have no label"):
        labelled_images(processor(), [labelled[0], bare[1]])


def test_says_what_is_missing():
    samples = list(pictures(2))
    with pytest.raises(DataError, match=r"has none: put preprocessor_config.json .* or give ecoflap.run a processor"):
        pixels_of(None, samples)
    with pytest.raises(DataError, match=r"has a \w*Token\w*, which reads no images"):
        pixels_of(tokenizer(), samples)
    with pytest.raises(DataError, match=r"1 of 3 samples have none\. Calibrate it on a dataset of images"):
        pixels_of(image_processor(), [*samples, Sample(text="a picture")])
    with pytest.raises(DataError, match="at least one sample"):
        pixels_of(image_processor(), [])
    with pytest.raises(DataError, match="in RGB, and some are L"):
        pixels_of(image_processor(), [samples[0], Sample(image=samples[1].image.convert("L"))])


def test_what_is_said_is_the_first_answer_that_is_not_blank():
    assert text_to_say(0, Sample(answers=("", " ", "yes", "no"), text="a text")) == "yes"
    assert text_to_say(0, Sample(answers=("", " "), text="a text")) == "a text"
    assert text_to_say(0, Sample(text="a text")) == "a text"
    with pytest.raises(DataError, match="sample 3 of a batch has neither a text nor an answer"):
        text_to_say(3, Sample(answers=("",)))


def test_images_that_stay_of_different_sizes_are_refused():
    as_they_are: Any = image_processor()
    as_they_are.do_resize = as_they_are.do_center_crop = False
    with pytest.raises(DataError, match=r"cannot read the images, of sizes \[\(30, 33\), \(33, 33\)\]"):
        pixels_of(as_they_are, pictures(2))


def test_tokens_need_a_patch_embedding():
    with pytest.raises(ModelError, match="a Linear has no convolution"):
        image_tokens(nn.Linear(2, 2), torch.zeros(1, 3, 8, 8))


def test_a_size_the_model_does_not_take_names_the_file_that_sets_it():
    with (
        pytest.raises(DataError, match=r"no images of 8×6, .*: not 28\. Its preprocessor_config"),
        as_large_as_wanted(torch.zeros(1, 3, 8, 6)),
    ):
        raise ValueError("not 28.")
