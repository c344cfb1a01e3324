"""A folder that lacks a tokenizer's words, or has a damaged file, is told with the file's name and the way out."""

import json
import shutil
from pathlib import Path

import pytest

from ecoflap.adapters.hubs.absent_tokenizer import why_unreadable
from ecoflap.adapters.hubs.hugging_face import load_processor
from ecoflap.core.errors import ModelError
from ecoflap.core.model.source import open_source

pytest.importorskip("transformers", minversion="5")
WAY_OUT = "ut tokenizer.json there, from where the model came, or by save_pretrained of its tokenizer."


def refused(folder: Path) -> str:
    with pytest.raises(ModelError) as error:
        load_processor("AutoTokenizer", open_source(str(folder), Path.cwd()))
    return str(error.value)


def test_the_words_of_a_tokenizer_are_missing(pico_llama_folder: Path):
    (pico_llama_folder / "tokenizer.json").unlink()
    said = refused(pico_llama_folder)
    assert f"tokenizer.json is missing in {pico_llama_folder}, where there is tokenizer_config.json. P{WAY_OUT}" in said
    assert "sentencepiece" not in said


def test_a_named_class_without_words_is_no_tokenizer(pico_llama_folder: Path):
    """Transformers 5 makes one of ``<unk>``, ``<s>`` and ``</s>``, to which every word is unknown."""
    (pico_llama_folder / "tokenizer.json").unlink()
    settings = pico_llama_folder / "tokenizer_config.json"
    settings.write_text(json.dumps({**json.loads(settings.read_text()), "tokenizer_class": "LlamaTokenizer"}))
    said = refused(pico_llama_folder)
    assert said.startswith(f"the tokenizer of {pico_llama_folder} has no words: tokenizer.json and tokenizer.model are")
    assert said.endswith(WAY_OUT)


def test_words_in_an_older_file_need_a_library(pico_llama_folder: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("ecoflap.adapters.hubs.absent_tokenizer.find_spec", lambda name: None)
    (pico_llama_folder / "tokenizer.json").rename(pico_llama_folder / "spiece.model")
    said = refused(pico_llama_folder)
    assert "where there is tokenizer_config.json, spiece.model. pip install sentencepiece, which reads it. " in said
    assert said.endswith(f"Or p{WAY_OUT}")


@pytest.mark.parametrize("name", ["tokenizer.json", "tokenizer_config.json"])
def test_a_damaged_file_is_named(pico_llama_folder: Path, name: str):
    (pico_llama_folder / name).write_text("{")
    assert f"{pico_llama_folder / name}: cannot be read: " in refused(pico_llama_folder)


def test_a_folder_without_any_of_its_files_has_none(pico_llama_folder: Path):
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (pico_llama_folder / name).unlink()
    assert load_processor("AutoTokenizer", open_source(str(pico_llama_folder), Path.cwd())) is None


def test_two_older_files_beside_a_list_of_words_need_a_library(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """As Marian has them, whose tokenizer has no other form."""
    monkeypatch.setattr("ecoflap.adapters.hubs.absent_tokenizer.find_spec", lambda name: None)
    for name in ("source.spm", "target.spm", "vocab.json", "tokenizer_config.json"):
        (tmp_path / name).write_text("{}")
    said = f"source.spm and target.spm in {tmp_path} can be read with sentencepiece: pip install sentencepiece."
    (tmp_path / "config.json").write_text('{"model_type": "marian"}')
    assert why_unreadable(open_source(str(tmp_path), Path.cwd())) == said


def test_a_chat_template_whose_name_leads_elsewhere_is_refused(pico_llama_folder: Path, pico_tokenizer, tmp_path: Path):
    """It would be written to a file of that name when the pruned model is saved."""
    folder = shutil.copytree(pico_llama_folder, tmp_path / "model")
    pico_tokenizer.save_pretrained(folder)
    file = folder / "tokenizer_config.json"
    templates = [{"name": name, "template": "{{ messages }}"} for name in ("default", "../../x")]
    file.write_text(json.dumps({**json.loads(file.read_text()), "chat_template": templates}))
    (folder / "chat_template.jinja").unlink(missing_ok=True)
    with pytest.raises(ModelError, match=r"names a chat template '\.\./\.\./x', which is no name of a file\. Write"):
        load_processor("AutoTokenizer", open_source(str(folder), Path.cwd()))
