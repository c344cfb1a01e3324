import math
from collections.abc import Callable
from pathlib import Path
from random import Random
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st

from ecoflap.adapters.llama import LlamaAdapter
from ecoflap.core.contracts.protocols import ignore
from ecoflap.core.errors import DataError
from ecoflap.plugins.datasets.shared import token_windows
from ecoflap.plugins.datasets.shared.token_windows import TokenWindows, begin_tokens, plain_tokens
from ecoflap.plugins.datasets.text import Text
from ecoflap.plugins.evaluators.perplexity import Perplexity

WORDS = {word: number for number, word in enumerate(["<unk>", "<s>", "</s>", "[gMASK]", *"abcdefghijkl"])}


def tokenizer(template: str = "$A", **special: str) -> Any:
    """A tokenizer of letters that puts around a text what the template says."""
    from tokenizers import Tokenizer, models, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    words = Tokenizer(models.WordLevel(WORDS, unk_token="<unk>"))
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    around = [(word, number) for word, number in WORDS.items() if word in template.split()]
    words.post_processor = processors.TemplateProcessing(single=template, special_tokens=around)
    return PreTrainedTokenizerFast(tokenizer_object=words, unk_token="<unk>", **special)


def reading(processor: Any) -> LlamaAdapter:
    adapter = LlamaAdapter()
    adapter.processor = processor
    return adapter


@pytest.mark.parametrize(
    ("template", "bos", "begin"),
    [
        ("<s> $A", "auto", (1,)),
        ("<s> $A </s>", "auto", (1,)),
        ("[gMASK] <s> $A", "auto", (3, 1)),
        ("$A </s>", "auto", ()),
        ("$A", "auto", ()),
        ("$A", True, (1,)),
        ("</s> $A", True, (2,)),  # OPT begins a text with what ends one, whatever it calls its begin token
        ("<s> $A", False, ()),
    ],
)
def test_begins_as_the_tokenizer_does(template: str, bos: Any, begin: tuple[int, ...]):
    assert begin_tokens(tokenizer(template, bos_token="<s>"), bos) == begin


def test_a_token_that_is_not_there_cannot_be_asked_for():
    with pytest.raises(DataError, match=r"bos is true, and this \w+ has no begin token\. Leave bos out"):
        begin_tokens(tokenizer("$A </s>", eos_token="</s>"), True)


def test_a_tokenizer_that_reads_a_text_in_two_ways_is_refused():
    def two_ways(text: str, add_special_tokens: bool = True, verbose: bool = True) -> dict[str, list[int]]:
        return {"input_ids": [1, 5] if add_special_tokens else [4]}

    with pytest.raises(DataError, match=r"what it begins a text with is not known\. Set bos: true .* or bos: false"):
        begin_tokens(two_ways, "auto")
    assert begin_tokens(two_ways, False) == ()


@pytest.mark.parametrize("order", ["random", "consecutive", "spread"])
def test_every_window_begins_and_goes_on_with_text(order: Any, tmp_path: Path, pico_llama: Callable[..., Any]):
    (tmp_path / "a.txt").write_text("a b c d e f g h i j k l", encoding="utf-8")
    reader, model = reading(tokenizer("<s> $A </s>", bos_token="<s>")), pico_llama(layers=1)
    text = Text(path=tmp_path / "a.txt", samples=3, sequence_length=5, order=order)
    windows = [sample.tokens.tolist() for sample in text(reader, model, ignore) if sample.tokens is not None]
    assert len(windows) == 3
    assert all(window[0] == 1 and len(window) == 5 for window in windows)
    assert all(window[1:] == list(range(window[1], window[1] + 4)) for window in windows)
    if order != "random":
        assert [window[1] for window in windows] == [4, 8, 12]


def test_too_short_for_what_begins_it(tmp_path: Path):
    reader = reading(tokenizer("[gMASK] <s> $A"))
    with pytest.raises(DataError, match=r"sequence_length is 2, and 2 of these tokens begin the text.*bos: false"):
        TokenWindows.of(reader, "auto", 2)
    assert TokenWindows.of(reader, "auto", 3).text_length == 1


def test_too_little_text_counts_what_begins_it():
    windows = TokenWindows.of(reading(tokenizer("<s> $A")), "auto", 16)
    with pytest.raises(DataError, match=r"all of it is 3 tokens, and one window needs 15.*sequence_length: 4 or less"):
        list(windows.consecutive(["a b c"], None, spread=False))


def test_a_document_that_is_drawn_again_is_not_tokenised_again():
    """One long document took as many times as there are samples, which made minutes of seconds."""
    letters, asked = tokenizer(), list[str]()

    def listening(text: str, **how: Any) -> Any:
        asked.append(text)
        return letters(text, **how)

    documents = ["a b c d e f g h", "a b", "i j k l a b c d e"]
    cut = TokenWindows(listening, (), 4)
    windows = [window.tolist() for window in cut.random(documents, 40, seed=3, note=ignore)]
    assert sorted(asked) == sorted(documents)
    # as it was written before: each drawn document is tokenised when it is drawn
    random, candidates, expected = Random(3), [0, 1, 2], list[list[int]]()
    while len(expected) < 40:
        place = random.randrange(len(candidates))
        tokens = list(letters(documents[candidates[place]])["input_ids"])
        if len(tokens) < 4:
            del candidates[place]
            continue
        start = random.randrange(len(tokens) - 3)
        expected.append(tokens[start : start + 4])
    assert windows == expected


def running_text(letters: int) -> str:
    """Words of one to nine letters on a single line, always the same."""
    random = Random(1)
    made = "".join(random.choices("etaoinshrdlu", k=letters))
    return " ".join(made[at : at + random.randint(1, 9)] for at in range(0, letters, 5))


def trained(kind: str) -> Any:
    """A tokenizer that was trained on such text, and splits it in one way or not at all."""
    from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    pieces = Tokenizer(models.BPE())
    if kind == "bytes":
        pieces.pre_tokenizer, pieces.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    elif kind == "words":
        pieces.pre_tokenizer = pre_tokenizers.Metaspace()
    else:
        pieces.normalizer = normalizers.Replace(" ", "_")
    text = running_text(4000)
    sentences = [text[at : at + 50] for at in range(0, len(text), 50)]
    pieces.train_from_iterator(sentences, trainers.BpeTrainer(vocab_size=300, show_progress=False))
    return PreTrainedTokenizerFast(tokenizer_object=pieces)


@pytest.mark.parametrize("kind", ["bytes", "words", "unsplit"])
@pytest.mark.parametrize("piece", [3000, 3001])
def test_tokens_of_pieces_are_those_of_the_whole_text(kind: str, piece: int, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(token_windows, "PIECE", piece)
    monkeypatch.setattr(token_windows, "OVERLAP", 900)
    reader, asked = trained(kind), list[int]()

    class Listening:
        is_fast = True

        def __call__(self, text: str, **how: Any) -> Any:
            asked.append(len(text))
            return reader(text, **how)

    text = running_text(20_000)
    for one in (text, text.replace(" ", "")):
        asked.clear()
        assert list(plain_tokens(Listening(), one)) == reader(one, add_special_tokens=False)["input_ids"]
        assert len(asked) > 5
        assert max(asked) == piece


def test_a_text_whose_pieces_never_agree_is_tokenised_whole(monkeypatch: pytest.MonkeyPatch):
    """In a row of one letter where a token begins depends on how many came before it."""
    from tokenizers import Tokenizer, models
    from transformers import PreTrainedTokenizerFast

    pairs = Tokenizer(models.BPE({"a": 0, "aa": 1, "aaa": 2}, [("a", "a"), ("aa", "a")]))
    reader = PreTrainedTokenizerFast(tokenizer_object=pairs)
    monkeypatch.setattr(token_windows, "PIECE", 1000)
    monkeypatch.setattr(token_windows, "OVERLAP", 301)
    for length in (2500, 3333):
        found = plain_tokens(reader, "a" * length)
        assert list(found) == reader("a" * length, add_special_tokens=False)["input_ids"]


def test_the_tokenizer_inside_a_processor_is_asked():
    inside = reading(SimpleNamespace(tokenizer=tokenizer("<s> $A")))
    (window,) = TokenWindows.of(inside, "auto", 3).consecutive(["a b"], 1, spread=False)
    assert window.tolist() == [1, 4, 5]


def test_perplexity_reads_the_begin_and_never_predicts_it(tmp_path: Path, pico_llama: Callable[..., Any]):
    (tmp_path / "a.txt").write_text("a b c d e f g h", encoding="utf-8")
    reader, model = reading(tokenizer("<s> $A", bos_token="<s>")), pico_llama(layers=1)
    text = Text(path=tmp_path / "a.txt", samples=None, sequence_length=5, order="consecutive")
    found = Perplexity(text)(model, reader, ignore)["perplexity"]
    terms = []
    for window in ([1, 4, 5, 6, 7], [1, 8, 9, 10, 11]):
        with torch.no_grad():
            logs = model(input_ids=torch.tensor([window])).logits[0].double().log_softmax(-1)
        terms += [-float(logs[place, token]) for place, token in enumerate(window[1:])]
    assert found.n == len(terms) == 8  # all eight letters, and no begin token
    assert found.value == pytest.approx(math.exp(sum(terms) / 8), rel=1e-6)


def test_a_text_that_fills_no_window_at_all_is_to_be_longer():
    windows = TokenWindows.of(reading(tokenizer("$A")), "auto", 16)
    with pytest.raises(DataError, match=r"all of it is 1 tokens, and one window needs 16\. Give more text\.$"):
        list(windows.consecutive(["a"], None, spread=False))


TEXTS = st.text(st.characters(exclude_categories=["Cs"]), max_size=40)


@settings(max_examples=300)
@given(TEXTS, st.sampled_from(["NFKC", "NFKD", "NFD", "BertNormalizer", None]), st.booleans())
@example("\ufdfa" * 3, "NFKD", False)
@example("\u0390", "NFD", True)
def test_no_text_has_more_tokens_than_is_taken_to_be_possible(text: str, name: str | None, begins: bool):
    """Byte by byte, after what a tokenizer writes in full, and with a sign put before it."""
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers

    letters = {letter: number for number, letter in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}
    byte_by_byte = Tokenizer(models.BPE(letters, []))
    steps = [
        normalizers.Replace(" ", "\u2581"),
        *([getattr(normalizers, name)()] if name else []),
        *([normalizers.Prepend("\u2581")] if begins else []),
    ]
    byte_by_byte.normalizer = normalizers.Sequence(steps)
    byte_by_byte.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=begins)
    assert len(byte_by_byte.encode(text, add_special_tokens=False).ids) <= token_windows._tokens_at_most(text)


def test_what_is_surely_too_short_is_not_tokenised():
    letters, asked = tokenizer(), list[str]()

    def listening(text: str, **keys: Any) -> Any:
        asked.append(text)
        return letters(text, **keys)

    documents = [*["a b c"] * 300, " ".join("abcdefghijkl" * 4)]
    cut, notes = TokenWindows(listening, (), 40), list[str]()
    assert len(list(cut.random(documents, 9, seed=1, note=notes.append))) == 9
    assert asked == documents[-1:]
    (said,) = notes
    assert said.startswith("text: all windows are of 1 of the documents, for ")
    assert said.endswith("than a window of 40 tokens. Lower sequence_length, or set order: spread, which joins them")
    assert len(list(cut.random(documents[:-1], 9, seed=1, note=notes.append))) == 9  # of all, joined
    assert len(notes) == 1


@pytest.mark.parametrize(("short", "said"), [(8, 0), (11, 1)])
def test_windows_of_few_documents_are_told_of(short: int, said: int):
    notes = list[str]()
    cut = TokenWindows(tokenizer(), (), 4)
    documents = [*["a b"] * short, "c d e f g h"]
    for seed in range(200):  # until it comes last
        drawn = cut.random(documents, 2, seed, notes.append)
        next(drawn)
        assert notes == []
        next(drawn)  # nobody has to ask for more
        if notes:
            break
    assert len(notes) == said
