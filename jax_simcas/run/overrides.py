"""Flags that stand for a setting, such as --num-beams for config.generate.num_beams, and keywords that do in Python.

Imports nothing but Python: --help answers at once, and where nothing is installed.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from jax_simcas.common import cli
from jax_simcas.common.checks import LARGEST

# The tables hold them as words, so that --help needs no jax.
POLICIES = ("sample", "greedy", "threshold", "all", "topk", "random", "first", "spaced")
BUDGETED = ("topk", "random", "first", "spaced")
DTYPES = ("float32", "bfloat16")
policy = cli.one_of(POLICIES, or_own=True)


def tokenizer_name(text: str) -> str:
    """A flag's type: words that ROUGE counts."""
    from jax_simcas.evaluation import words

    try:
        words.check_name(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from None
    return text


def token(value: str) -> int | str:
    """A flag's type: a token by its text or its id; none is -1, which stands for no token."""
    if value.lower() == "none":
        return -1
    return int(value) if value.isdecimal() and int(value) <= LARGEST else cli.text(value)


def early_stopping(text: str) -> bool | str:
    """A flag's type: when a beam search ends."""
    values: dict[str, bool | str] = {"true": True, "false": False, "never": "never"}
    if text.lower() not in values:
        raise argparse.ArgumentTypeError(f"{text!r}: expected true, false or never")
    return values[text.lower()]


class Override(NamedTuple):
    """A flag that stands for a setting."""

    field: str
    kind: Callable[[str], Any]
    help: str


OVERRIDES: dict[str, Override] = {
    "--policy": Override("simcas.policy", policy, "what selects the states that the decoder sees"),
    "--budget": Override("simcas.budget", cli.positive, "candidates to keep, for policies that keep so many"),
    "--capacity": Override("simcas.capacity", cli.number(int, 2), "most states that the decoder sees"),
    "--max-input-len": Override("simcas.max_input_len", cli.number(int, 3), "tokens read of a document"),
    "--chunk-length": Override("simcas.chunk_length", cli.number(int, 3), "tokens of a chunk, special ones included"),
    "--src-lang": Override("data.src_lang", cli.text, "language code of documents, for mBART (en_XX), NLLB or PLBart"),
    "--tgt-lang": Override("data.tgt_lang", cli.text, "the same of the summaries"),
    "--dtype": Override("simcas.dtype", cli.one_of(DTYPES), "float32 or bfloat16"),
    "--num-beams": Override("generate.num_beams", cli.positive, "beams of the search"),
    "--max-length": Override(
        "generate.max_length", cli.number(int, 2), "most tokens of a summary, the start token included"
    ),
    "--min-length": Override(
        "generate.min_length", cli.natural, "fewest tokens of a summary, the start token included"
    ),
    "--length-penalty": Override("generate.length_penalty", cli.number(float), "above 0 prefers long summaries"),
    "--no-repeat-ngram-size": Override(
        "generate.no_repeat_ngram_size", cli.natural, "no sequence of so many tokens is repeated; 0: no limit"
    ),
    "--early-stopping": Override(
        "generate.early_stopping", early_stopping, "end at num-beams summaries: true, false or never"
    ),
    "--forced-bos-token": Override(
        "generate.forced_bos_token_id", token, "a summary's first token, by text or id; none: any"
    ),
    "--batch-size": Override("data.batch_size", cli.positive, "documents at a time"),
    "--rouge-tokenizer": Override(
        "data.rouge_tokenizer",
        tokenizer_name,
        "words that ROUGE counts: auto, rouge-score (a to z, 0 to 9), unicode, or unicode:LANGUAGE with stems",
    ),
    "--data-dir": Override("data.data_dir", cli.text, "the folder of the data"),
}
GENERATION = (
    *("--num-beams", "--max-length", "--min-length", "--length-penalty", "--no-repeat-ngram-size"),
    *("--early-stopping", "--forced-bos-token"),
)
READING = ("--max-input-len", "--chunk-length", "--src-lang", "--tgt-lang")
SUMMARIZING = ("--policy", "--budget", "--capacity", *READING, *GENERATION, "--dtype")


def add_overrides(made: cli.Parser, *flags: str) -> None:
    """Adds flags of `OVERRIDES`."""
    group = made.add_argument_group("in place of the model's own settings")
    for flag in flags:
        override = OVERRIDES[flag]
        group.add_argument(flag, dest=override.field, metavar=flag[2:].upper(), type=override.kind, help=override.help)
    made.rules += [_lengths_fit, _budget_is_used]


def _lengths_fit(arguments: Any) -> str:
    least, most = (getattr(arguments, f"generate.{name}_length", None) for name in ("min", "max"))
    return f"--min-length={least} exceeds --max-length={most}" if least and most and least > most else ""


def _budget_is_used(arguments: Any) -> str:
    """What is wrong with a budget beside a policy that has none; settings that are no flags are checked later."""
    given = dict(getattr(arguments, "changes", ()))
    budget = getattr(arguments, "simcas.budget", None) or given.get("simcas.budget", "None")
    chosen = getattr(arguments, "policy", None) or getattr(arguments, "simcas.policy", None)
    chosen = chosen or given.get("simcas.policy")
    if str(budget).lower() == "none" or chosen not in POLICIES or chosen in BUDGETED:
        return ""
    return unused_budget(arguments, budget, chosen)


def unused_budget(arguments: Any, budget: Any, policy: str) -> str:
    """The message for a budget that a flag gave to a policy without one."""
    flag = overrides_of(arguments).get("simcas.budget", ("--config.simcas.budget",))[0]
    return f"{flag}={budget}: the policy {policy!r} has no budget; those with one are {', '.join(BUDGETED)}"


class Keywords(argparse.Namespace):
    """Flags as they are given in Python: num_beams=2 for --num-beams=2. None is one that was not given.

    Raises:
      TypeError: a keyword that is none of `SUMMARIZING`.
    """

    def __init__(self, **given: Any) -> None:
        fields = {keyword(flag): OVERRIDES[flag].field for flag in SUMMARIZING}
        unknown = [name for name in given if name not in fields]
        if unknown:
            raise TypeError(f"there is no setting {unknown[0]!r}; there are {', '.join(fields)}")
        tokens = {name for name in given if OVERRIDES[_flag(name)].kind is token and isinstance(given[name], str)}
        read = given | {name: token(given[name]) for name in tokens}
        super().__init__(**{fields[name]: value for name, value in read.items()})


def keyword(flag: str) -> str:
    """num_beams of --num-beams."""
    return flag.removeprefix("--").replace("-", "_")


def _flag(keyword: str) -> str:
    """--num-beams of num_beams."""
    return "--" + keyword.replace("_", "-")


def given_flags(arguments: Any, *others: str) -> dict[str, str]:
    """The flags that change a result, as they were given: flags of `OVERRIDES`, `others` and --config.FIELD."""
    flags = {flag: value for flag, value in overrides_of(arguments).values() if flag != "--batch-size"}
    flags |= {flag: value for flag in others if (value := getattr(arguments, keyword(flag))) is not None}
    return {name: str(value) for name, value in flags.items()} | {
        f"--config.{field}": value for field, value in getattr(arguments, "changes", ())
    }


def shown_flags(flags: Mapping[str, str]) -> str:
    """--num-beams=2 --limit=20, as one types them."""
    return " ".join(f"{flag}={value}" for flag, value in flags.items())


def overrides_of(arguments: Any) -> dict[str, tuple[str, Any]]:
    """The flags of `OVERRIDES` that were given: field -> (flag, or keyword, and value)."""
    shown = keyword if isinstance(arguments, Keywords) else str
    flag_of = {override.field: shown(flag) for flag, override in OVERRIDES.items()}
    given = vars(arguments)
    return {name: (flag_of[name], given[name]) for name in flag_of if given.get(name) is not None}
