"""What tells an evaluation from another: the files that its data reads, by what is in them."""

import json
import os
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from PIL import Image as Pictures
from torch import nn

from ecoflap.adapters.llama import LlamaAdapter
from ecoflap.core.contracts.protocols import Dataset, Note, ignore
from ecoflap.core.contracts.records import Measure
from ecoflap.core.errors import DataError, EcoflapError
from ecoflap.core.recipe.part_spec import PartSpec
from ecoflap.core.record.evaluations import Evaluation, _digest, digests
from ecoflap.plugins.datasets.image import Image
from ecoflap.plugins.datasets.image_text import ImageText
from ecoflap.plugins.datasets.text import Text
from ecoflap.plugins.evaluators.perplexity import Perplexity


@dataclass
class Counts:
    """An evaluator that is given a dataset, and a file of its own."""

    data: Dataset
    more: Path | None = None

    def __call__(self, model: Any, adapter: Any, note: Note) -> dict[str, Measure]:
        samples = list(self.data(adapter, model, note))
        return {"samples": Measure(float(len(samples)), len(samples), 0.0)}


def part(data: type, **parameters: Any) -> PartSpec:
    return PartSpec("evaluator", "counts", {"data": PartSpec("dataset", data.__name__, parameters, data)}, Counts)


@pytest.fixture
def captioned(tmp_path):
    """An index of five images, which are elsewhere."""
    for number in range(5):
        file = tmp_path / "images" / f"{number}.bmp"
        file.parent.mkdir(exist_ok=True)
        Pictures.new("RGB", (2, 2), (number, 0, 0)).save(file)
    rows = [json.dumps({"image": f"{number}.bmp", "text": f"{number}"}) for number in range(5)]
    (tmp_path / "index.jsonl").write_text("\n".join(rows))
    return part(
        ImageText, path=tmp_path / "index.jsonl", images=tmp_path / "images", samples=3, order="first", skip=False
    )


def change(file: Path) -> None:
    """One pixel, so that neither size nor time tells."""
    before, content = file.stat(), bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(content)
    os.utime(file, ns=(before.st_atime_ns, before.st_mtime_ns))


def test_an_image_that_an_index_names_is_changed(captioned, tmp_path):
    before = digests(captioned)
    assert list(before) == ["data.ImageText"]
    change(tmp_path / "images" / "2.bmp")
    assert digests(captioned) != before
    change(tmp_path / "images" / "2.bmp")
    assert digests(captioned) == before


def test_what_was_found_counts_until_an_image_is_changed(captioned, tmp_path):
    lines = tmp_path / "evaluations.jsonl"
    Evaluation(captioned).run(lines, "dense", nn.Identity(), LlamaAdapter(), ignore)
    line = Evaluation(captioned).line(lines, "dense")
    assert line is not None
    assert line["measures"]["samples"]["value"] == 3
    change(tmp_path / "images" / "0.bmp")
    assert Evaluation(captioned).line(lines, "dense") is None


def test_what_is_not_looked_at_is_no_part_of_it(captioned, tmp_path):
    before = digests(captioned)
    change(tmp_path / "images" / "4.bmp")
    (tmp_path / "images" / "other.png").touch()
    assert digests(captioned) == before


def test_a_copy_of_the_files_is_the_same(captioned, tmp_path):
    before = digests(captioned)
    for file in tmp_path.rglob("*.*"):
        content = file.read_bytes()
        file.unlink()
        file.write_bytes(content)
        os.utime(file, (0, 0))
    assert digests(captioned) == before


def test_images_that_are_passed_over_count_too(captioned, tmp_path):
    data = captioned.parameters["data"]
    passing = part(ImageText, **{**data.parameters, "skip": True})
    (tmp_path / "images" / "0.bmp").write_bytes(b"BM")
    before = digests(passing)
    change(tmp_path / "images" / "3.bmp")  # drawn in place of the first
    changed = digests(passing)
    assert changed != before
    Pictures.new("RGB", (2, 2)).save(tmp_path / "images" / "0.bmp")
    assert digests(passing) != changed


def test_a_class_more_in_a_folder(tmp_path):
    for name in ("cat", "dog"):
        (tmp_path / name).mkdir()
        Pictures.new("RGB", (2, 2)).save(tmp_path / name / "1.png")
    data = part(Image, path=tmp_path, samples=1, order="first")
    before = digests(data)
    (tmp_path / "eel").mkdir()  # of whose image none is looked at, and dog has another number
    Pictures.new("RGB", (2, 2)).save(tmp_path / "eel" / "1.png")
    assert digests(data) != before


def test_a_class_whose_folders_name_is_not_utf8(tmp_path):
    """Such names are on disks from before UTF-8, and on those of other systems."""
    data = part(Image, path=tmp_path, samples=1, order="first")
    found = []
    for name in (b"/caf\xe9", b"/caf\xe8"):
        folder = Path(os.fsdecode(os.fsencode(tmp_path) + name))
        folder.mkdir()
        Pictures.new("RGB", (2, 2)).save(folder / "1.png")
        found.append(digests(data))
    assert found[0] != found[1]


def test_what_is_missing_is_left_to_the_evaluation(tmp_path):
    assert len(digests(part(ImageText, path=tmp_path / "gone.jsonl"))) == 1
    assert len(digests(part(ImageText))) == 1


def test_text(tmp_path):
    (tmp_path / "a.txt").write_text("a")
    (tmp_path / "unread.png").write_text("b")
    data = part(Text, path=tmp_path)
    before = digests(data)
    change(tmp_path / "unread.png")
    assert digests(data) == before
    change(tmp_path / "a.txt")
    assert digests(data) != before
    assert digests(part(Text))["data.Text"]  # of the articles that ship


def test_files_and_folders_that_a_part_is_given(tmp_path):
    (tmp_path / "folder" / "inside").mkdir(parents=True)
    (tmp_path / "folder" / "inside" / "a").write_text("a")
    given = PartSpec("evaluator", "counts", {"data": None, "more": tmp_path / "folder"}, Counts)
    before = digests(given)
    assert list(before) == [str(tmp_path / "folder")]
    change(tmp_path / "folder" / "inside" / "a")
    assert digests(given) != before


def test_several_datasets_of_one_part(tmp_path):
    two = [PartSpec("dataset", "text", {"path": tmp_path / name}, Text) for name in ("a", "b")]
    assert list(digests(PartSpec("evaluator", "counts", {"data": two}, Counts))) == ["data.text", "data.1.text"]


def test_no_image_is_decoded_for_it(captioned, monkeypatch):
    """Which would take longer than an evaluation that need not be repeated."""

    def decoded(*_):
        raise AssertionError

    monkeypatch.setattr(Pictures, "open", decoded)
    assert digests(captioned)


def test_an_evaluator_that_gives_nothing_is_named(tmp_path):
    class Forgets:
        def __call__(self, model, adapter, note):
            pass

    evaluation = Evaluation(PartSpec("evaluator", "forgets", {}, Forgets))
    with pytest.raises(EcoflapError, match=r"the evaluator forgets answered with None; it gives a Measure by each"):
        evaluation.run(tmp_path / "lines", "dense", nn.Identity(), LlamaAdapter(), ignore)


def answering(answer):
    """An evaluation by a part of one's own that calls this."""

    class Mine:
        def __call__(self, model, adapter, note):
            return answer(adapter)

    return Evaluation(PartSpec("evaluator", "mine", {}, Mine))


def test_one_that_measures_nothing_is_refused(tmp_path):
    with pytest.raises(EcoflapError, match="the evaluator mine gave no measure; it gives one at least"):
        answering(lambda adapter: {}).run(tmp_path / "lines", "dense", nn.Identity(), LlamaAdapter(), ignore)


def test_numbers_of_numpy_are_numbers(tmp_path):
    odd = Measure(0.5, 3, 0.25)
    vars(odd).update(value=np.float32(0.5), n=np.int64(3), standard_error=np.float64(0.25))  # types are checked here
    evaluation = answering(lambda adapter: {"odd": odd})
    evaluation.run(tmp_path / "lines", "dense", nn.Identity(), LlamaAdapter(), ignore)
    measure = evaluation.line(tmp_path / "lines", "dense")["measures"]["odd"]
    assert (measure["value"], measure["n"], measure["standard_error"]) == (0.5, 3, 0.25)


def test_what_it_refuses_for_a_user_names_it_once(tmp_path):
    def refuse(said):
        raise DataError(said)

    for said, told in (
        ("install foo", "the evaluator mine: install foo"),
        ("the evaluator mine: so", "the evaluator mine: so"),
    ):
        with pytest.raises(EcoflapError) as refused:
            answering(lambda adapter, said=said: refuse(said)).run(
                tmp_path / "lines", "dense", nn.Identity(), LlamaAdapter(), ignore
            )
        assert list(refused.value.problems) == [told]


@pytest.mark.parametrize(
    ("said", "told"), [("a prompt is long", "perplexity: a prompt is long"), ("perplexity: so", "perplexity: so")]
)
def test_what_a_model_or_its_data_refuse_names_the_evaluator_that_asked(tmp_path, said, told):
    def refuse(adapter, model, note):
        raise DataError(said)
        yield

    spec = PartSpec("evaluator", "perplexity", {"data": refuse}, Perplexity)
    with pytest.raises(EcoflapError) as refused:
        Evaluation(spec).run(tmp_path / "lines", "dense", nn.Identity(), LlamaAdapter(), ignore)
    assert list(refused.value.problems) == [told]


def test_what_it_sets_in_the_tokenizer_is_its_own(tmp_path):
    adapter = LlamaAdapter()
    adapter.processor = own = SimpleNamespace(padding_side="right")

    def set_left(adapter):
        adapter.processor.padding_side = "left"
        return {"one": Measure(1.0, 1, 0.0)}

    answering(set_left).run(tmp_path / "lines", "dense", nn.Identity(), adapter, ignore)
    assert adapter.processor is own
    assert own.padding_side == "right"


def test_a_measure_that_is_read_another_way_than_the_dense_models_is_told(tmp_path):
    told: list[str] = []
    for stage, larger in (("dense", True), ("pruned", False)):
        one = Measure(1.0, 3, 0.0, "pages", larger)
        answering(lambda adapter, one=one: {"read": one}).run(
            tmp_path / "lines", stage, nn.Identity(), LlamaAdapter(), told.append
        )
    assert told == ["read has another unit or way to be read than for the dense model, and no table can compare them"]


@pytest.mark.parametrize(("n", "value"), [(3.5, 1.0), (3, "high"), (-1, 1.0)])
def test_a_measure_of_another_type_is_refused_at_once(n, value, tmp_path):
    class Odd:
        def __call__(self, model, adapter, note):
            measure = Measure(1.0, 3, 0.0)
            vars(measure).update(value=value, n=n)
            return {"odd": measure}

    evaluation = Evaluation(PartSpec("evaluator", "odd", {}, Odd))
    with pytest.raises(EcoflapError, match=r"the evaluator odd gave the measure odd: (n|value): "):
        evaluation.run(tmp_path / "lines", "dense", nn.Identity(), LlamaAdapter(), ignore)
    assert not (tmp_path / "lines").exists()


@pytest.mark.parametrize("error", [-0.5, -1])
def test_a_standard_error_below_zero_is_refused(error, tmp_path):
    class Odd:
        def __call__(self, model, adapter, note):
            return {"odd": Measure(1.0, 3, float(error))}

    evaluation = Evaluation(PartSpec("evaluator", "odd", {}, Odd))
    with pytest.raises(EcoflapError, match=r"odd: the standard error of the odd is -\d\.\d, which is below 0"):
        evaluation.run(tmp_path / "lines", "dense", nn.Identity(), LlamaAdapter(), ignore)


@pytest.mark.parametrize(("counts", "said"), [((3, 3), []), ((4, 3), ["3 pages, and over 4 for the dense model"])])
def test_a_measure_over_other_data_than_the_dense_models_is_told(counts, said, tmp_path):
    class Counted:
        def __call__(self, model, adapter, note):
            return {"read": Measure(1.0, len(model), 0.0, "pages")}

    told: list[str] = []
    for stage, count in zip(("dense", "pruned"), counts, strict=True):
        evaluation, model = Evaluation(PartSpec("evaluator", "counted", {}, Counted)), nn.Sequential()
        model.extend(nn.Identity() for _ in range(count))
        evaluation.run(tmp_path / "lines", stage, model, LlamaAdapter(), told.append)
    assert told == [f"read is over {one}: the two are of other data, and say little of what was lost" for one in said]


def test_where_the_files_lie_does_not_matter(tmp_path):
    """A finished sweep is one for whoever has the same files elsewhere, as another installation has its text."""
    for folder, content in (("here", "a"), ("there", "a"), ("otherwise", "b")):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "text.txt").write_text(content)
    here, there, otherwise = (_digest([tmp_path / name / "text.txt"]) for name in ("here", "there", "otherwise"))
    assert here == there != otherwise
