"""Say which file a folder's tokenizer or processor lacks, or which is damaged: transformers names other things then.

Where a class of tokenizer is named and no file with its words is there, transformers 5 makes one of no words at all.
"""

from collections.abc import Sequence
from importlib.util import find_spec
from typing import Any

from ecoflap.core.disk.json_files import read_json
from ecoflap.core.errors import RunError
from ecoflap.core.model.anatomy import Source

WHOLE = "tokenizer.json"
"""The file that is all of a tokenizer; it needs no library beside transformers."""
LIBRARIES = {
    "tokenizer.model": "sentencepiece", "spiece.model": "sentencepiece", "sentencepiece.bpe.model": "sentencepiece",
    "spm.model": "sentencepiece", "source.spm": "sentencepiece", "target.spm": "sentencepiece",
}  # fmt: skip
"""Older files that a tokenizer is made of, and what reads them."""
OTHERS = ("vocab.json", "vocab.txt", "tekken.json")
"""Those that transformers reads by itself, or says by which library."""
MAY_BE_MISSING = ("target_vocab.json",)
"""What a class of tokenizer names that some of its tokenizers are without: most of Marian's share one list of words."""
SETTINGS = (
    WHOLE, "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json", "processor_config.json",
    "preprocessor_config.json",
)  # fmt: skip


def why_unreadable(source: Source) -> str | None:
    """Say what of a tokenizer or processor that could not be read is damaged or missing, and how to get it.

    None where nothing is, and of what lies on the hub or in a GGUF file.
    """
    if source.path is None or not source.path.is_dir():
        return None
    for name in (name for name in SETTINGS if name in source.files):
        try:
            read_json(source.path / name)
        except RunError as error:
            return f"{str(error).rstrip('.')}. Get the file anew from where the model came."
    if WHOLE in source.files:
        return None
    older = {name: library for name, library in LIBRARIES.items() if name in source.files}
    absent = sorted({library for library in older.values() if find_spec(library) is None})
    is_known = any(name in source.files for name in OTHERS)
    if absent and is_known:  # of such a pair, as Marian has it, no tokenizer.json is made
        wanted = " ".join(absent)
        return f"{' and '.join(older)} in {source.path} can be read with {wanted}: pip install {wanted}."
    if lacking := _lacking_of_its_kind(source):
        return _missing(source, lacking, "Put", lacking)
    if is_known or (older and not absent):
        return None
    return _missing(source, [WHOLE], f"pip install {' '.join(absent)}, which reads it. Or put" if older else "Put")


def why_without_words(source: Source, tokenizer: Any) -> str | None:
    """Say that a folder has no file with the words of the tokenizer that was read of it; None where it has one.

    :param tokenizer: Whatever was read; what names no files, such as an image processor, is made of none.
    """
    names = [*dict.fromkeys((getattr(tokenizer, "vocab_files_names", None) or {}).values())]
    if source.path is None or not source.path.is_dir() or not names or any(name in source.files for name in names):
        return None
    return _missing(source, sorted(names, key=WHOLE.__ne__), "Put")


def _lacking_of_its_kind(source: Source) -> list[str]:
    """Name what is missing of the files that a tokenizer is made of, where its class makes it of no tokenizer.json."""
    import transformers

    settings = "tokenizer_config.json"
    kind = (
        read_json(source.path / settings).get("tokenizer_class") if source.path and settings in source.files else None
    )
    named = getattr(getattr(transformers, str(kind), None), "vocab_files_names", None) or {}
    if WHOLE in named.values():
        return []
    return [name for name in named.values() if name not in (*source.files, *MAY_BE_MISSING)]


def _missing(source: Source, names: list[str], begin: str, wanted: Sequence[str] = (WHOLE,)) -> str:
    """Say which files are missing where, what there is of a tokenizer, and how to get them.

    :param wanted: Those that are to be put there.
    """
    known = (*SETTINGS, *LIBRARIES, *OTHERS, "merges.txt", "chat_template.jinja")
    found = ", ".join(name for name in known if name in source.files) or "nothing"
    verb, put = "are" if len(names) > 1 else "is", " and ".join(wanted)
    return (
        f"{' and '.join(names)} {verb} missing in {source.path}, where there is {found}. {begin} {put} there, from "
        f"where the model came, or by save_pretrained of its tokenizer."
    )
