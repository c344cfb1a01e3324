"""The typed manifest: what it reads back, what it refuses, and what tables take of it."""

from typing import Any

import pytest
from sealed_by_hand import write_sealed

from ecoflap.core.contracts.records import Check, StoredTensor
from ecoflap.core.errors import FormatError
from ecoflap.core.record.manifest import Manifest, ManifestTensor, read_manifest


def written(**changed: Any) -> dict[str, Any]:
    forms = {"a": "2:4", "b": "coo", "c": "coo"}
    tensor = {"shape": [4, 4], "nonzeros": 8, "dense_bytes": 64, "stored_bytes": 34, "sparsity": 0.5}
    manifest = {
        "version": 1,
        "exporter": "onnx",
        "run": {"source": "a/b", "plan": "12", "masks": "34"},
        "files": {"decoder.onnx": {"bytes": 34, "sha256": "56"}},
        "bytes": {"model": 64, "deflated": 40, "dense": None, "stored": 34},
        "tensors": [{"name": name, "form": form, **tensor} for name, form in forms.items()],
        "checks": [
            {
                "file": "decoder.onnx",
                "view": "decoder",
                "runtime": "onnxruntime",
                "difference": 0.0,
                "tolerance": 1e-4,
                "is_rounded": True,
            }
        ],
        "notes": ["It needs a reader."],
        "versions": {"torch": "2.13"},
    }
    return {**manifest, **changed}


@pytest.fixture
def read(tmp_path):
    def read(content: Any) -> Manifest:
        write_sealed(tmp_path / "manifest.json", content)
        return read_manifest(tmp_path / "manifest.json")

    return read


def test_it_is_read_as_it_was_written(read):
    manifest = read(written())
    assert manifest.model_dump(mode="json") == written()
    assert manifest.checks == (Check("decoder.onnx", "decoder", "onnxruntime", 0.0, 1e-4, is_rounded=True),)
    assert read(written(run=None)).run is None


def test_one_of_before_checks_told_of_rounding_is_read(read):
    before = [{key: value for key, value in CHECK.items() if key != "is_rounded"}]
    assert read(written(checks=before)).checks == (Check("decoder.onnx", "decoder", "onnxruntime", 0.0, 1e-4),)


def test_what_tables_take_of_it(read):
    assert read(written()).sizes == [64, 40, None, 34]
    assert read(written()).forms == "2 coo, 1 2:4"
    assert read(written(tensors=[])).forms == ""


def test_a_tensor_knows_its_sparsity():
    assert ManifestTensor.of(StoredTensor("a", "coo", (4, 5), 5, 80, 30)).sparsity == 0.75
    assert ManifestTensor.of(StoredTensor("a", "dense", (0,), 0, 0, 0)).sparsity == 1


CHECK = written()["checks"][0]


@pytest.mark.parametrize(
    ("content", "told"),
    [
        ('{"a"\n}', "Invalid JSON"),
        ("[]", "Invalid JSON"),
        ({"version": 1}, "exporter: Field required"),
        (written(version=2), "version: Input should be 1"),
        (written(colour="red"), "colour: no such key is known here"),
        (written(bytes={**written()["bytes"], "zipped": 1}), "bytes.zipped: no such key is known here"),
        (written(checks=[{**CHECK, "seconds": 1}]), "checks.0.seconds: no such key is known here"),
        (
            written(files={"a": {"bytes": -1, "sha256": ""}}),
            "files.a.bytes: Input should be greater than or equal to 0",
        ),
    ],
)
def test_anything_else_is_refused_with_the_file_and_the_place(content, told, read, tmp_path):
    with pytest.raises(FormatError) as error:
        read(content)
    assert all(problem.startswith(f"{tmp_path / 'manifest.json'}: ") for problem in error.value.problems)
    assert any(told in problem for problem in error.value.problems)


def test_a_manifest_that_is_not_there_is_refused(tmp_path):
    with pytest.raises(FormatError, match=r"manifest\.json cannot be read: No such file"):
        read_manifest(tmp_path / "manifest.json")
