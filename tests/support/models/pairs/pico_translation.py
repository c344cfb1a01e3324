"""Pico translation models as they lie in a folder: Marian with a vocabulary for each language, M2M-100 with codes."""

import json
from pathlib import Path
from random import Random
from typing import Any

from pico_composites import drawn

READ = ["the", "cat", "sits", "on", "mat", "dog", "runs", "fast", "house", "is", "green", "big"]
SAID = ["die", "katze", "sitzt", "auf", "matte", "hund", "rennt", "schnell", "haus", "ist", "gruen", "gross"]
SIZE = 48
"""Words of each vocabulary: transformers before 5 cannot build a Marian of two sizes."""
SETTINGS = {
    "d_model": 32, "encoder_ffn_dim": 48, "decoder_ffn_dim": 48, "encoder_attention_heads": 4,
    "decoder_attention_heads": 4, "encoder_layers": 2, "decoder_layers": 2, "max_position_embeddings": 64,
    "forced_eos_token_id": None,
}  # fmt: skip


def pairs(count: int) -> list[tuple[str, str]]:
    random = Random(4)
    return [
        (" ".join(random.choices(READ, k=2 + number % 4)), " ".join(random.choices(SAID, k=1 + number % 3)))
        for number in range(count)
    ]


def pieces(words: list[str], file: Path) -> Any:
    """Train a model of a few words, and leave it in a file."""
    import sentencepiece

    random = Random(0)
    lines = (" ".join(random.choices(words, k=6)) for _ in range(200))
    with file.open("wb") as written:
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=lines, model_writer=written, vocab_size=40, hard_vocab_limit=False, minloglevel=2
        )
    return sentencepiece.SentencePieceProcessor(model_file=str(file))


def numbered(model: Any, first: list[str]) -> dict[str, int]:
    """Number the pieces of a model after some of one's own, and fill up to the size."""
    own = [model.id_to_piece(number) for number in range(model.get_piece_size())]
    words = list(dict.fromkeys([*first, *own]))
    return {word: number for number, word in enumerate([*words, *(f"<{n}>" for n in range(SIZE - len(words)))])}


def marian(folder: Path) -> tuple[Any, Any]:
    """Save one, and give it with its tokenizer."""
    from transformers import MarianConfig, MarianMTModel, MarianTokenizer

    for name, words in (("source", READ), ("target", SAID)):
        vocabulary = numbered(pieces(words, folder / f"{name}.spm"), ["</s>", "<unk>", "<pad>"])
        (folder / f"{name}.json").write_text(json.dumps(vocabulary))
    files = [str(folder / name) for name in ("source.spm", "target.spm", "source.json", "target.json")]
    tokenizer = MarianTokenizer(*files, separate_vocabs=True, source_lang="en", target_lang="de", model_max_length=64)
    config = MarianConfig(
        vocab_size=SIZE, decoder_vocab_size=SIZE, share_encoder_decoder_embeddings=False, pad_token_id=2,
        eos_token_id=0, decoder_start_token_id=2, **SETTINGS,
    )  # fmt: skip
    return _saved(drawn(MarianMTModel(config)), tokenizer, folder / "model")


def m2m_100(folder: Path, **languages: str) -> tuple[Any, Any]:
    """Save one, and give it with its tokenizer."""
    from transformers import M2M100Config, M2M100ForConditionalGeneration, M2M100Tokenizer

    vocabulary = numbered(pieces(READ + SAID, folder / "pieces.spm"), ["<s>", "<pad>", "</s>", "<unk>"])
    (folder / "pieces.json").write_text(json.dumps(vocabulary))
    tokenizer = M2M100Tokenizer(str(folder / "pieces.json"), str(folder / "pieces.spm"), **languages)
    config = M2M100Config(
        vocab_size=SIZE + 108, pad_token_id=1, bos_token_id=0, eos_token_id=2, decoder_start_token_id=2, **SETTINGS
    )
    return _saved(drawn(M2M100ForConditionalGeneration(config)), tokenizer, folder / "model")


def _saved(model: Any, tokenizer: Any, folder: Path) -> tuple[Any, Any]:
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return model, tokenizer
