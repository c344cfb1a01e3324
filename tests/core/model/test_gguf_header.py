"""Headers of GGUF files are held to the file's length, and broken ones are refused before a library reads them."""

import struct
from collections.abc import Iterator
from pathlib import Path
from random import Random

import pytest

from ecoflap.core.errors import ModelError
from ecoflap.core.model.gguf_header import check_gguf_header, forget_header, header_read_once
from ecoflap.core.model.source import open_source

gguf = pytest.importorskip("gguf", reason="pip install 'ecoflap[gguf]'")


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A LLaMA's header with values of every type, and a tensor, as llama.cpp's own package writes them."""
    import numpy as np

    file = tmp_path_factory.mktemp("gguf") / "pico.gguf"
    writer = gguf.GGUFWriter(str(file), "llama")
    writer.add_block_count(2)
    writer.add_context_length(128)
    writer.add_embedding_length(32)
    writer.add_feed_forward_length(48)
    writer.add_head_count(4)
    writer.add_head_count_kv(2)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_vocab_size(64)
    writer.add_string("general.name", "pico")
    writer.add_bool("general.flag", True)
    writer.add_uint64("general.large", 2**40)
    writer.add_array("general.tags", ["a", "bc"])
    writer.add_array("general.numbers", [1, 2, 3])
    writer.add_tensor("token_embd.weight", np.zeros((64, 32), dtype=np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return file


def test_what_the_format_s_own_library_writes_is_passed(whole):
    check_gguf_header(whole)
    config = open_source(str(whole), whole.parent).config
    assert (config["model_type"], config["num_hidden_layers"], config["hidden_size"]) == ("llama", 2, 32)


@pytest.fixture
def read(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[str]]:
    """The files that the library's reader was made for, one entry each time."""
    found: list[str] = []

    class Counted(gguf.gguf_reader.GGUFReader):
        def __init__(self, path: str) -> None:
            found.append(Path(path).name)
            super().__init__(path)

    monkeypatch.setattr(gguf.gguf_reader, "GGUFReader", Counted)
    forget_header()
    yield found
    forget_header()


def test_a_header_is_read_once_for_all_who_ask(whole, read, tmp_path):
    from transformers import AutoConfig

    usual, file = gguf.GGUFReader, tmp_path / "a.gguf"
    file.write_bytes(whole.read_bytes())
    asked = {"gguf_file": file.name, "local_files_only": True}
    with header_read_once():
        configs = [AutoConfig.from_pretrained(str(tmp_path), **asked).to_dict() for _ in range(2)]
    assert gguf.GGUFReader is usual
    with header_read_once():
        configs.append(AutoConfig.from_pretrained(str(tmp_path), **asked).to_dict())
    assert read == ["a.gguf"]
    assert configs[0] == configs[1] == configs[2]
    assert configs[0] == AutoConfig.from_pretrained(str(tmp_path), **asked).to_dict()  # by a reader of its own


def test_a_header_that_changed_is_read_again(whole, read, tmp_path):
    file = tmp_path / "a.gguf"
    file.write_bytes(whole.read_bytes())
    assert open_source(str(file), tmp_path).config["num_hidden_layers"] == 2
    with header_read_once():
        before = gguf.GGUFReader(file)
        assert gguf.GGUFReader(str(file)) is before
        file.write_bytes(whole.read_bytes() + bytes(32))
        assert gguf.GGUFReader(file) is not before
    assert read == ["a.gguf", "a.gguf"]


def test_what_cannot_be_read_is_not_kept(tmp_path, read):
    (tmp_path / "a.gguf").write_bytes(b"GGML" + bytes(40))
    with header_read_once():
        for _ in range(2):
            with pytest.raises(ValueError, match="magic"):
                gguf.GGUFReader(tmp_path / "a.gguf")
    assert read == ["a.gguf", "a.gguf"]


def head(tensors: int, values: int, rest: bytes = b"", order: str = "<") -> bytes:
    return b"GGUF" + struct.pack(f"{order}IQQ", 3, tensors, values) + rest


def key(kind: int, rest: bytes) -> bytes:
    return struct.pack("<Q", 1) + b"k" + struct.pack("<I", kind) + rest


@pytest.mark.parametrize(
    ("content", "told"),
    [
        (b"", "cannot mmap an empty file"),
        (b"GGML" + bytes(40), "it does not begin with GGUF"),
        (b"GGUF\3\0", "at byte 4 it announces 4 more, and ends at 6"),
        (head(0, 2**60), "announces 1,152,921,504,606,846,976 items, and ends at 24"),
        (head(2**60, 0), "announces 1,152,921,504,606,846,976 items, and ends at 24"),
        (head(0, 1, key(9, struct.pack("<IQ", 0, 2**60))), "announces 1,152,921,504,606,846,976 more, and ends at 49"),
        (head(0, 1, key(9, struct.pack("<IQ", 8, 2**60))), "announces 1,152,921,504,606,846,976 items, and ends at 49"),
        (head(0, 1, key(8, struct.pack("<Q", 2**63))), "announces 9,223,372,036,854,775,808 more"),
        (head(0, 1, key(9, struct.pack("<IQ", 9, 1) * 9)), "a value has the type 9, which is none"),
        (head(0, 1, key(77, bytes(20))), "a value has the type 77, which is none"),
        (head(1, 0, struct.pack("<Q", 1) + b"t" + struct.pack("<I", 2**31) + bytes(40)), "has 2,147,483,648 axes"),
    ],
)
def test_what_reaches_beyond_the_file_is_refused(content, told, tmp_path):
    file = tmp_path / "a.gguf"
    file.write_bytes(content)
    with pytest.raises(ModelError, match=rf"a\.gguf cannot be read as GGUF: .*{told}.*The file is damaged or cut off"):
        open_source(str(file), tmp_path)


def test_the_other_byte_order_is_read(tmp_path):
    text = struct.pack(">Q", 1) + b"k" + struct.pack(">I", 4) + struct.pack(">I", 7)
    (tmp_path / "a.gguf").write_bytes(head(0, 1, text, order=">"))
    check_gguf_header(tmp_path / "a.gguf")


def test_broken_headers_are_refused_or_read(whole, tmp_path):
    """Bits are turned and ends are cut where the header lies, and the library's own reader comes after ours."""
    raw, file = whole.read_bytes(), tmp_path / "b.gguf"
    length = raw.index(b"token_embd.weight") + 60
    refused = 0
    for seed in range(150):
        draw = Random(seed)
        broken = bytearray(raw[: draw.randrange(length)] if seed % 5 == 0 else raw)
        for _ in range(draw.choice([1, 1, 4])):
            if broken:
                broken[draw.randrange(min(len(broken), length))] ^= 1 << draw.randrange(8)
        file.write_bytes(bytes(broken))
        try:
            open_source(str(file), tmp_path)
        except ModelError as error:
            assert "b.gguf" in str(error), error  # noqa: PT017 (the others are read)
            refused += 1
    assert refused > 50
