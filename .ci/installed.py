"""Hold an installed ecoflap to what it is for, away from its sources: python .ci/installed.py kernels

It reads no test and no file of the checkout: a pico LLaMA is pruned by the command, with the text that ships, and its
packed weights multiply as its dense ones do. The word says what has to multiply: ``kernels``, the compiled library, or
``torch``, in whose stead there is none.
"""

import shutil
import subprocess
import sys
import sysconfig
from importlib.metadata import version
from pathlib import Path
from tempfile import TemporaryDirectory

RECIPE = """
version: 1
model: pico
calibration: {use: text, samples: 4, sequence_length: 32}
sparsity: 0.5
score: {use: zeroth_order, joint: true, samples: 4}
allocate: ecoflap
prune: wanda
evaluate: {use: perplexity, data: {use: text, samples: 2, sequence_length: 32}}
export: safetensors
"""
WORDS = ("<unk>", "<s>", "</s>", "the", "of", "and", "in", "to", "a", "is", "was", "as", "by", "for", "on", "with")


def main(expected: str, folder: Path) -> None:
    """Prune, load and multiply in this folder.

    :param expected: ``kernels`` or ``torch``.
    """
    save_pico_llama(folder / "pico")
    (folder / "recipe.yaml").write_text(RECIPE, "utf-8")
    said = ecoflap(folder, "doctor")
    path = next(line.split()[1] for line in said.splitlines() if line.split()[:1] == ["runs"])
    assert (path == "torch") == (expected == "torch"), said
    print(ecoflap(folder, "run", "recipe.yaml", "--folder", "run"))
    difference = packed_against_dense(folder / "run" / "exports" / "safetensors")
    versions = ", ".join(f"{name} {version(name)}" for name in ("ecoflap", "torch", "transformers"))
    print(f"Python {sys.version.split()[0]}, {versions}: {path} multiplies, at most {difference:.1e} from dense")


def save_pico_llama(folder: Path) -> None:
    """Save a LLaMA of two blocks and its tokenizer, as transformers saves them."""
    import torch
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(WORDS), hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, max_position_embeddings=64, bos_token_id=1, eos_token_id=2,
    )  # fmt: skip
    LlamaForCausalLM(config).save_pretrained(folder)
    words = Tokenizer(models.WordLevel({word: i for i, word in enumerate(WORDS)}, unk_token="<unk>"))
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    PreTrainedTokenizerFast(
        tokenizer_object=words, unk_token="<unk>", bos_token="<s>", eos_token="</s>"
    ).save_pretrained(folder)


def ecoflap(folder: Path, *arguments: str) -> str:
    """Run the command that was installed with this Python; give what it says."""
    command = shutil.which("ecoflap", path=sysconfig.get_path("scripts"))
    assert command is not None, "ecoflap is not installed here"
    done = subprocess.run([command, *arguments], cwd=folder, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def packed_against_dense(exported: Path) -> float:
    """Give the largest difference between the logits of packed and of dense weights, and refuse one that matters."""
    import torch

    from ecoflap import load_model

    dense, packed = (load_model(exported, weights=weights) for weights in ("dense", "packed"))
    assert packed.ecoflap_packing.packed, packed.ecoflap_packing
    tokens = torch.arange(len(WORDS))[None]
    with torch.no_grad():
        difference = (dense(tokens).logits - packed(tokens).logits).abs().max().item()
    assert difference < 1e-5, difference
    return difference


if __name__ == "__main__":
    with TemporaryDirectory() as place:
        main(sys.argv[1], Path(place))
