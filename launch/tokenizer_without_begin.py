"""The byte-level BPE that a training makes, framed as a T5 frames a text: `... </s>`, no begin token, `<extra_id_0>`.

  python launch/tokenizer_without_begin.py DATA/reading --to DATA/reading/tokenizer_t5

Its 8,192 tokens, and so a text's tokens, are those of the tokenizer that configs/reading.py has trained for BART on
DATA/reading/train.jsonl.gz: losses per token can be compared.
"""

import argparse
from pathlib import Path

from tokenizers import Tokenizer
from tokenizers.processors import TemplateProcessing
from transformers import PreTrainedTokenizerFast

from jax_simcas.common.cli import cache_dir
from jax_simcas.data.rows import Fields
from jax_simcas.data.text_files import JsonlSource
from jax_simcas.data.tokenizer import save_tokenizer, train_on_rows
from jax_simcas.run.presets import reading_config


def framed_as_t5(tokenizer: Tokenizer) -> PreTrainedTokenizerFast:
    """A tokenizer of the same tokens, and the sentinel, that puts `</s>` behind a text and nothing before it."""
    end = ("</s>", tokenizer.token_to_id("</s>"))
    tokenizer.post_processor = TemplateProcessing(single="$A </s>", special_tokens=[end])
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        **{"pad_token": "<pad>", "eos_token": "</s>", "unk_token": "<unk>"},
        additional_special_tokens=["<extra_id_0>"],
        clean_up_tokenization_spaces=False,
    )


def main() -> None:
    form = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=form)
    parser.add_argument("folder", type=Path, help="rows that launch/reading.py has written")
    parser.add_argument("--to", required=True, type=Path, help="the folder to write")
    arguments = parser.parse_args()
    rows = JsonlSource(arguments.folder / "train.jsonl.gz", Fields(), cache_dir())
    vocab_size = reading_config().data.vocab_size
    tokenizer = framed_as_t5(train_on_rows(rows, vocab_size, cache_dir()).backend_tokenizer)
    save_tokenizer(tokenizer, arguments.to)
    print(f"{arguments.to}: {len(tokenizer)} tokens")


if __name__ == "__main__":
    main()
