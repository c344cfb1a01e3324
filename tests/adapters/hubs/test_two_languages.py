"""Models that read one language and say another: each text is of the tokens of its own, or the model is refused."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from pico_translation import m2m_100, marian, pairs
from pico_words import tokenizer as plain_tokenizer
from table import GENERIC_ROWS
from transformers_version import is_before

import ecoflap
from ecoflap.adapters.generic.seq2seq_lm import Seq2SeqLMAdapter
from ecoflap.adapters.hubs.hugging_face import load_processor
from ecoflap.adapters.hubs.two_languages import has_two_languages, said_from, said_ids, set_languages
from ecoflap.core.contracts.abilities import Generation
from ecoflap.core.errors import DataError, EcoflapError, ModelError
from ecoflap.core.model.source import open_source
from ecoflap.core.preparing.prepare import prepare
from ecoflap.core.recipe.load import parse_recipe

pytest.importorskip("sentencepiece")
pytestmark = pytest.mark.filterwarnings("ignore:Recommended. pip install sacremoses")
SAMPLES = [ecoflap.Sample(question=read, answers=(said,)) for read, said in pairs(3)]
CODES = {"source_language": "en", "target_language": "de"}


def adapter_of(tokenizer: Any, **languages: str) -> Seq2SeqLMAdapter:
    adapter = Seq2SeqLMAdapter(**languages)
    adapter.processor = tokenizer
    return adapter


def recipe(folder: Path, data: dict[str, Any], **adapter: str) -> dict[str, Any]:
    named = {"adapter": {"use": "seq2seq_lm", **adapter}} if adapter else {}
    return {
        "version": 1,
        "model": {"source": str(folder), **named},
        "calibration": {"batch_size": 2, **data},
        "sparsity": 0.5,
        "score": {"use": "zeroth_order", "samples": 2, "joint": True},
        "prune": "wanda",
    }


@pytest.fixture
def written_pairs(tmp_path: Path) -> dict[str, Any]:
    rows = [json.dumps({"en": read, "de": said}) for read, said in pairs(6)]
    (tmp_path / "pairs.jsonl").write_text("\n".join(rows))
    columns = {"question": "en", "answers": "de"}
    return {"use": "text_pair", "path": str(tmp_path / "pairs.jsonl"), "columns": columns, "samples": 4}


def test_marian_reads_by_one_vocabulary_and_says_by_the_other(tmp_path: Path):
    """By the pieces themselves, looked up in either file."""
    import sentencepiece

    model, tokenizer = marian(tmp_path)
    batch = adapter_of(tokenizer).collate(model, SAMPLES)
    for name, given in (("source", batch["input_ids"]), ("target", batch["labels"])):
        own = sentencepiece.SentencePieceProcessor(model_file=str(tmp_path / f"{name}.spm"))
        numbers = json.loads((tmp_path / f"{name}.json").read_text())
        texts = [sample.question if name == "source" else sample.answers[0] for sample in SAMPLES]
        wanted = [[*(numbers[piece] for piece in own.encode(text, out_type=str)), 0] for text in texts]
        assert [row[: len(one)] for row, one in zip(given.tolist(), wanted, strict=True)] == wanted
        assert all(
            one <= {0, -100} for one in ({*row[len(w) :]} for row, w in zip(given.tolist(), wanted, strict=True))
        )
    said = tokenizer(text_target=SAMPLES[0].answers[0]).input_ids
    assert said != tokenizer(SAMPLES[0].answers[0]).input_ids


@pytest.mark.parametrize(("build", "languages"), [(marian, {}), (m2m_100, CODES)])
def test_the_loss_is_the_models_own_of_what_its_tokenizer_makes(
    build: Callable[..., Any], languages: dict[str, str], tmp_path: Path
):
    model, tokenizer = build(tmp_path)
    adapter = adapter_of(tokenizer, **languages)
    found = [adapter.loss(model, adapter.collate(model, [sample])) for sample in SAMPLES]
    if languages:
        tokenizer.src_lang, tokenizer.tgt_lang = languages.values()
    for sample, loss in zip(SAMPLES, found, strict=True):
        own = model(**tokenizer(sample.question, text_target=sample.answers[0], return_tensors="pt")).loss
        torch.testing.assert_close(loss.float(), own)
    ecoflap.check_adapter(adapter, model, SAMPLES)


@pytest.mark.parametrize(("build", "languages"), [(marian, {}), (m2m_100, CODES)])
def test_a_translation_is_that_of_transformers(build: Callable[..., Any], languages: dict[str, str], tmp_path: Path):
    model, tokenizer = build(tmp_path)
    adapter = adapter_of(tokenizer, **languages)
    made = adapter.generate(model, SAMPLES, Generation(max_new_tokens=5))
    begun = {"forced_bos_token_id": tokenizer.get_lang_id("de")} if languages else {}
    for sample, one in zip(SAMPLES, made, strict=True):
        own = model.generate(
            **tokenizer(sample.question, return_tensors="pt"), max_new_tokens=5 + len(begun), do_sample=False,
            min_new_tokens=1 + len(begun), num_beams=1, **begun,
        )[0].tolist()  # fmt: skip
        own = own[1 + len(begun) :]
        ends = model.config.eos_token_id
        assert list(one.tokens) == (own[: own.index(ends)] if ends in own else own)
    whole = tokenizer(text_target=SAMPLES[0].answers[0]).input_ids
    assert [*adapter.tokens_of(model, SAMPLES[0].answers[0])] == whole[len(begun) : -1]


@pytest.mark.parametrize(("build", "languages"), [(marian, {}), (m2m_100, CODES)])
def test_pairs_are_planned_and_run_from_a_folder(
    build: Callable[..., Any], languages: dict[str, str], tmp_path: Path, written_pairs: dict[str, Any]
):
    build(tmp_path)
    done = ecoflap.run(recipe(tmp_path / "model", written_pairs, **languages), folder=tmp_path / "run")
    assert done.plan.keep == done.plan.size // 2


@pytest.mark.parametrize("build", [marian, m2m_100])
def test_a_text_of_one_language_is_refused_by_the_plan(build: Callable[..., Any], tmp_path: Path):
    build(tmp_path)
    registry = ecoflap.load_registry()
    asked = recipe(tmp_path / "model", {"use": "text", "samples": 2, "sequence_length": 16})
    with pytest.raises(EcoflapError, match=r"says another language than it reads, and sample 0 .* \{use: text_pair, "):
        prepare(parse_recipe(asked, registry=registry), registry, planning=True)


@pytest.mark.parametrize("name", ["target.spm", "source.spm", "vocab.json"])
def test_a_file_that_its_tokenizer_is_made_of_is_missing(name: str, tmp_path: Path):
    marian(tmp_path)
    (tmp_path / "model" / name).unlink()
    with pytest.raises(ModelError) as error:
        load_processor("AutoTokenizer", open_source(str(tmp_path / "model"), Path()))
    assert f"cannot be read: {name} is missing in {tmp_path / 'model'}, where there is " in str(error.value)
    assert f"Put {name} there, from where the model came" in str(error.value)


def test_a_language_that_is_not_told_or_not_known(tmp_path: Path, written_pairs: dict[str, Any]):
    _, tokenizer = m2m_100(tmp_path)
    with pytest.raises(DataError, match=r"M2M100Tokenizer .* not told which .* source_language: en, .*Known: af, am"):
        adapter_of(tokenizer).collate(torch.nn.Identity(), SAMPLES)
    with pytest.raises(DataError) as refused:
        set_languages(tokenizer, "eng", "dee")
    assert [problem.partition(" Known")[0] for problem in refused.value.problems] == [
        "source_language: 'eng' is no language of this M2M100Tokenizer. Did you mean 'en'?",
        "target_language: 'dee' is no language of this M2M100Tokenizer. Did you mean 'de'?",
    ]
    registry, asked = ecoflap.load_registry(), recipe(tmp_path / "model", written_pairs)
    with pytest.raises(EcoflapError, match=r"calibration: this M2M100Tokenizer .* tgt_lang in tokenizer_config\.json"):
        prepare(parse_recipe(asked, registry=registry), registry, planning=True)


def test_languages_that_the_tokenizer_was_saved_with(tmp_path: Path):
    model, _ = m2m_100(tmp_path, src_lang="de", tgt_lang="en")
    adapter = adapter_of(transformers.M2M100Tokenizer.from_pretrained(tmp_path / "model"))
    batch = adapter.collate(model, SAMPLES[:1])
    codes = [adapter.processor.get_lang_id(code) for code in ("de", "en")]
    assert [int(batch["input_ids"][0, 0]), int(batch["labels"][0, 0])] == codes
    assert said_from(model, adapter.processor) == [2, codes[1]]


@pytest.mark.skipif(is_before("5"), reason="before 5 its tokenizer is read from files only")
def test_a_code_behind_a_text_is_what_the_decoder_begins_with():
    """mBART's decoder reads what is to be said with its last token, the code, put before it."""
    words = [(word, 0.0) for word in ("<s>", "<pad>", "</s>", "<unk>", "▁a", "▁b")]
    tokenizer = transformers.MBartTokenizer(vocab=words, src_lang="en_XX", tgt_lang="de_DE")
    code = tokenizer.convert_tokens_to_ids("de_DE")
    assert said_ids(tokenizer, "a b")[-2:] == [2, code]
    assert said_ids(tokenizer, "a b", plain=True) == said_ids(tokenizer, "a b")[:-2]
    model = GENERIC_ROWS["mbart"].build()
    model.config.pad_token_id = 1
    assert said_from(model, tokenizer) == [code]


def test_a_tokenizer_of_one_language_is_given_no_codes():
    tokenizer = plain_tokenizer()
    assert not has_two_languages(tokenizer)
    set_languages(tokenizer, None, None)
    with pytest.raises(
        DataError, match=r"^target_language is set, and this \w+ writes no codes of languages\. Leave it"
    ):
        adapter_of(tokenizer, target_language="de").collate(torch.nn.Identity(), SAMPLES)


def test_a_second_vocabulary_that_no_text_is_made_tokens_of():
    class Fsmt:
        tgt_vocab_size = 4

        def __call__(self, text: str) -> dict[str, list[int]]:
            return {"input_ids": [1]}

    with pytest.raises(
        DataError, match="this Fsmt has a vocabulary for what the model says, and no way to make a text"
    ):
        adapter_of(Fsmt()).collate(torch.nn.Identity(), SAMPLES)


def test_a_tokenizer_of_another_model():
    model = GENERIC_ROWS["bart"].build()
    adapter = adapter_of(plain_tokenizer())
    batch = adapter.collate(model, SAMPLES)
    for name in ("input_ids", "labels"):
        with pytest.raises(
            DataError, match=r"cannot read what its \w+ made: .*out of .*Is it the one that belongs to the"
        ):
            adapter.loss(model, {**batch, name: batch[name] + 500})
