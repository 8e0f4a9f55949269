"""Which class reads the tokenizer files of a folder or a hub id: one of transformers', or one of ours by its name."""

from __future__ import annotations

import os
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from jax_simcas.common import files
from jax_simcas.common.errors import UserError, first_line

# Classes of transformers' names in modules that import transformers, which takes seconds.
OWN = {
    "PLBartTokenizer": "jax_simcas.data.plbart",
    "M2M100Tokenizer": "jax_simcas.data.m2m100",
    "MarianTokenizer": "jax_simcas.data.marian",
}
# Which transformers tells only where the sentencepiece package is installed.
OF_MODEL_TYPE = {"plbart": "PLBartTokenizer", "m2m_100": "M2M100Tokenizer", "marian": "MarianTokenizer"}


def from_pretrained(name: str) -> Any:
    """What transformers makes of the files; those of which it makes slow tokenizers are read here, where they can be.

    Raises:
      UserError: one line of what is wrong with them, and what to do.
    """
    from transformers import AutoTokenizer  # takes seconds: imported only where needed

    for path in (*Path(name).glob("*.json"), *Path(name).glob("*.model"), *Path(name).glob("*.spm")):
        files.check_no_pointer(path)
    kind = _class_name(name)
    try:
        if kind in OWN:
            own = getattr(import_module(OWN[kind]), kind)
            return own.from_pretrained(name)
        return AutoTokenizer.from_pretrained(name, trust_remote_code=False, use_fast=True)
    except UserError as error:
        raise UserError(f"{name}: {error}") from None
    except Exception as error:  # the libraries raise anything for a damaged file, even a bare Exception
        if isinstance(error, ImportError) and "SentencePiece" in str(error):
            raise UserError(f"{name}: {slow(kind)}") from None
        # Without that package, transformers takes its files for tiktoken's, and says that tiktoken is missing.
        if "`tiktoken` is required" in str(error) and find_spec("sentencepiece") is None:
            raise UserError(
                f"{name}: its tokenizer is a model of SentencePiece, without tokenizer.json: pip install sentencepiece"
            ) from None
        _check_files(name)
        raise UserError(f"{name}: no tokenizer could be loaded ({first_line(error)}){listing(name)}") from None


def _check_files(name: str) -> None:
    """Tells of a fault in a file that transformers reads without naming it.

    Raises:
      UserError: one that is not JSON, or a config.json with a value that transformers refuses.
    """
    from huggingface_hub.errors import StrictDataclassError
    from transformers import AutoConfig

    for path in sorted(Path(name).glob("*.json")):
        files.read_json(path, "no such file")
    try:
        AutoConfig.from_pretrained(name, trust_remote_code=False)
    except StrictDataclassError as error:
        reason = " ".join(str(error).split()).split(" Errors: ")[0].rstrip(".")
        raise UserError(f"{Path(name, 'config.json')}: transformers refuses it ({reason})") from None
    except Exception:  # a folder without config.json may hold a tokenizer all the same
        return


def _class_name(name: str) -> str:
    """The class that the files name, in the order in which transformers reads them; "": none, or damaged files."""
    from transformers import PreTrainedConfig
    from transformers.models.auto.tokenization_auto import TOKENIZER_MAPPING_NAMES, get_tokenizer_config

    try:
        if named := get_tokenizer_config(name).get("tokenizer_class"):
            return str(named).removesuffix("Fast")
        config, _ = PreTrainedConfig.get_config_dict(name)
        model_type = config.get("model_type")
        only_fast = Path(name, "tokenizer.json").is_file() and not [
            *Path(name).glob("*.bpe.model"),
            *Path(name).glob("*.spm"),
        ]
        implied = TOKENIZER_MAPPING_NAMES | ({} if only_fast else OF_MODEL_TYPE)
        return str(config.get("tokenizer_class") or implied.get(str(model_type)) or "").removesuffix("Fast")
    except Exception:  # AutoTokenizer reads them again, and tells
        return ""


def slow(kind: str) -> str:
    """What to do about a slow tokenizer."""
    return (
        f"transformers has no fast {kind}, and a slow one does not tell where in the text a token is; add a "
        'tokenizer.json of the same ids, and "tokenizer_class": "PreTrainedTokenizerFast" to tokenizer_config.json'
    )


def listing(name: str) -> str:
    """What a folder holds, for the end of an error; "" for a hub id."""
    if not os.path.isdir(name):
        return ""
    found = ", ".join(sorted(os.listdir(name))[:10]) or "nothing"
    return f"; expected tokenizer.json (or vocab.json and merges.txt), there is {found}"
