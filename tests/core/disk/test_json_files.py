"""JSON files are mappings, or are refused with their name."""

import pytest

from ecoflap.core.disk.json_files import read_json
from ecoflap.core.errors import RunError


def test_a_mapping_is_read(tmp_path):
    (tmp_path / "a.json").write_text('{"ä": [1]}', "utf-8")
    assert read_json(tmp_path / "a.json") == {"ä": [1]}


@pytest.mark.parametrize(
    ("content", "what"),
    [("[1]", "expected a mapping"), ("{", "cannot be read: Expecting"), (None, "cannot be read: .*No such file")],
)
def test_anything_else_is_refused_with_the_file(content, what, tmp_path):
    if content is not None:
        (tmp_path / "a.json").write_text(content)
    with pytest.raises(RunError, match=rf"a\.json: {what}"):
        read_json(tmp_path / "a.json")
