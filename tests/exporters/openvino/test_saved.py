"""Files of OpenVINO are the same whatever was written before them, and one that could not be written says why."""

import errno
import os
import resource

import numpy as np
import pytest

from ecoflap.exporters.openvino.saved import save

ov = pytest.importorskip("openvino")


def product(inputs=64):
    """A product with a matrix of 64 outputs, whose node is called ``mine``, and a sum."""
    from openvino import opset13 as op

    x = op.parameter([-1, inputs], np.float32, name="x")
    matrix = op.constant(np.arange(64 * inputs, dtype=np.float32).reshape(64, inputs))
    times = op.matmul(x, matrix, False, True)
    times.set_friendly_name("mine")
    added = op.add(times, op.constant(np.float32(1)))
    added.output(0).set_names({"y"})
    return ov.Model([added], [x], "model")


def test_what_was_converted_before_does_not_show(tmp_path):
    save(product(), tmp_path / "first.xml")
    for _ in range(3):
        product()
    save(product(), tmp_path / "later.xml")
    assert (tmp_path / "first.xml").read_bytes() == (tmp_path / "later.xml").read_bytes()
    assert (tmp_path / "first.bin").read_bytes() == (tmp_path / "later.bin").read_bytes()


def test_names_that_were_given_stay(tmp_path):
    model = product()
    save(model, tmp_path / "view.xml")
    names = [node.get_friendly_name() for node in ov.Core().read_model(tmp_path / "view.xml").get_ordered_ops()]
    assert {"x", "mine"} <= set(names)
    assert len(names) == len(set(names))
    x = np.ones((2, 64), np.float32)
    found = ov.compile_model(ov.Core().read_model(tmp_path / "view.xml"), "CPU", {"INFERENCE_PRECISION_HINT": "f32"})(
        x
    )[0]
    assert np.allclose(found, x @ np.arange(64 * 64, dtype=np.float32).reshape(64, 64).T + 1)


@pytest.fixture
def files_of_at_most_8_kb():
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 13, before[1]))
    yield
    resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_a_file_that_the_system_does_not_let_grow_is_told_with_the_systems_reason(tmp_path, files_of_at_most_8_kb):
    with pytest.raises(OSError, match=os.strerror(errno.EFBIG)):
        save(product(), tmp_path / "view.xml")
    assert list(tmp_path.iterdir()) == []


def test_what_is_no_matter_of_the_disk_stays_as_openvino_says_it(tmp_path, monkeypatch):
    def refuse(*model, **how):
        raise RuntimeError("an operation of an unknown type")

    monkeypatch.setattr(ov, "save_model", refuse)
    with pytest.raises(RuntimeError, match="unknown type"):
        save(product(), tmp_path / "view.xml")
    assert list(tmp_path.iterdir()) == []
