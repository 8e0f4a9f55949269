"""The kinds of odd input: of each, what is valid, how it is changed, and who reads it."""

from __future__ import annotations

import contextlib
import gzip
import importlib
import io
import json
import random
import shutil
import zipfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path
from typing import Any, NamedTuple

from jax_simcas.benchmark import odd_values
from jax_simcas.benchmark.odd_values import TEXTS, change_bytes, change_json, change_lines
from jax_simcas.common import cli
from jax_simcas.common.errors import UserError

Change = Callable[[bytes, random.Random], bytes]
ROWS: list[dict[str, Any]] = [
    {
        "id": "1",
        "article": "The roof leaks. Rents rise.",
        "abstract": "Both.",
        "query": "What leaks?",
        "evidence": [[4, 8]],
    },
    {"id": "2", "article": "It was late.\n" * 40, "abstract": "Late.", "query": "", "evidence": []},
    {"id": 3, "article": "caf\u00e9 \U0001f600 x", "abstract": "", "query": "x", "evidence": None},
]
HTML = b"<!doctype html><html><body><p>The roof leaks.</p><table><tr><td>1</table><script>1</script></body></html>"
PDF_OBJECTS = (
    "<</Type/Catalog/Pages 2 0 R>>",
    "<</Type/Pages/Kids[3 0 R]/Count 1>>",
    "<</Type/Page/Parent 2 0 R/MediaBox[0 0 99 99]/Contents 4 0 R/Resources<</Font<</F 5 0 R>>>>>>",
    "<</Length 41>>stream\nBT /F 9 Tf 9 9 Td (The roof leaks.) Tj ET\nendstream",
    "<</Type/Font/Subtype/Type1/BaseFont/Helvetica>>",
)


class Kind(NamedTuple):
    """Writes one odd input into an empty folder and gives what reads it; `share` of all inputs, relative to others."""

    share: float
    write: Callable[[Path, random.Random], Callable[[], Any]]


@dataclass(frozen=True)
class Program:
    """A program and its arguments; its exit code must be 0, or that of an error with one line."""

    main: Callable[[list[str]], Any]
    words: list[str]

    def __call__(self) -> None:
        """Raises UserError with the line."""
        out, err = io.StringIO(), io.StringIO()
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            try:
                code: Any = cli.guarded(partial(self.main, self.words))
            except SystemExit as error:
                code = error.code
        lines = [line for line in err.getvalue().splitlines() if line.startswith("error: ")]
        if code not in (0, 1, 2) or len(lines) != (code != 0):
            raise AssertionError(f"exit code {code} with {len(lines)} lines of an error: {err.getvalue()[-500:]}")
        if lines:
            raise UserError(lines[0])


def _document(
    name: str, content: Callable[[], bytes], change: Change, folder: Path, rng: random.Random
) -> Callable[[], Any]:
    from jax_simcas.run.summary_input import read_document

    path = folder / name
    path.write_bytes(change(content(), rng))
    return partial(read_document, str(path))


@cache
def pdf() -> bytes:
    """A page with one line."""
    content, places = "%PDF-1.4\n", []
    for number, body in enumerate(PDF_OBJECTS, 1):
        places.append(len(content))
        content += f"{number} 0 obj{body}endobj\n"
    table = "".join(f"{place:010d} 00000 n \n" for place in places)
    end = f"trailer<</Size 6/Root 1 0 R>>\nstartxref\n{len(content)}\n%%EOF\n"
    return f"{content}xref\n0 6\n0000000000 65535 f \n{table}{end}".encode()


@cache
def docx() -> bytes:
    """A Word file of two paragraphs."""
    import docx as library

    made, file = library.Document(), io.BytesIO()
    for text in ("The roof leaks.", "Rents rise."):
        made.add_paragraph(text)
    made.save(file)
    return file.getvalue()


def odd_docx(content: bytes, rng: random.Random) -> bytes:
    """A changed archive, or one of which a part is changed, and sealed again."""
    if not rng.randrange(3):
        return change_bytes(content, rng)
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        parts = {name: archive.read(name) for name in archive.namelist()}
    name = rng.choice(["word/document.xml", *parts])
    parts[name] = change_bytes(parts[name], rng)
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        for part, data in parts.items():
            archive.writestr(part, data)
    return file.getvalue()


def jsonl() -> bytes:
    return "".join(json.dumps(row) + "\n" for row in ROWS).encode()


def csv_rows() -> bytes:
    """Cells with quotes, line ends and commas."""
    return b'id,article,abstract,query\n1,"The ""roof"", it\nleaks.",Both.,\n2,Late,"a, b",x\n'


def parquet() -> bytes:
    """A table with texts."""
    import pyarrow
    import pyarrow.parquet

    columns = {name: [str(row[name]) for row in ROWS] for name in ("id", "article", "abstract", "query")}
    file = io.BytesIO()
    pyarrow.parquet.write_table(pyarrow.table(columns), file)
    return file.getvalue()


def _read_rows(source: str, folder: Path, query: bool) -> None:
    from jax_simcas.data.features import FeatureConfig, featurize
    from jax_simcas.data.formats import open_rows
    from jax_simcas.data.rows import Fields

    template = "{query}</s>{document}" if query else "{document}"
    fields = Fields(
        id="id", document="article", summary="abstract", query="query" if query else "", evidence="evidence"
    )
    rows = open_rows(source, str(folder), "train", fields, folder / "cache", max_bad_rows=2)
    for index in range(len(rows)):
        featurize(rows[index], _tokenizer(), FeatureConfig(16, 64, 16, input_template=template))


def _rows(
    name: str, source: str, content: Callable[[], bytes], change: Change, folder: Path, rng: random.Random
) -> Any:
    changed = change(content(), rng)
    if name.endswith(".gz"):
        changed = gzip.compress(changed)
        changed = change_bytes(changed, rng) if rng.randrange(2) else changed
    (folder / name).write_bytes(changed)
    return partial(_read_rows, source, folder, bool(rng.randrange(2)))


def _trained() -> Path:
    from jax_simcas.run.config_file import folder

    return folder().parent / "examples" / "quickstart_model"


@cache
def _tokenizer() -> Any:
    from jax_simcas.data.tokenizer import load_tokenizer

    return load_tokenizer(_trained())


def _module(name: str) -> Any:
    """By its name, as users start it: no package imports a program."""
    return importlib.import_module(f"jax_simcas.{name}")


def _overrides(folder: Path, rng: random.Random) -> Callable[[], Any]:
    """Settings of training on the command line, in an order of their own."""
    from jax_simcas.run.config import Settings
    from jax_simcas.run.config_file import settings_of
    from jax_simcas.run.fields import all_fields

    names = [name for name, _ in all_fields(Settings)]
    words = [f"--config.{rng.choice(names)}={_odd_text(rng)}" for _ in range(rng.randint(1, 3))]

    def read(given: list[str]) -> int:
        settings_of(_module("train").parser().parse_args(given))
        return 0

    return Program(read, ["--config=embedded", f"--workdir={folder}", *words])


def _odd_text(rng: random.Random) -> str:
    plain = ("1", "2", "512", "0.5", "none", "all", "greedy", "bfloat16", "(1,2)", "(8,16)", "x y", "True")
    return str(rng.choice(rng.choice((plain, TEXTS, odd_values.VALUES))))


def _settings(folder: Path, rng: random.Random) -> Callable[[], Any]:
    """A workdir's settings."""
    from jax_simcas.run import config
    from jax_simcas.run.config_file import read_config

    content = config.to_json(config.from_config(read_config("embedded"))).encode()
    (folder / "config.json").write_bytes(change_json(content, rng))
    return lambda: config.from_config(read_config(str(folder / "config.json")))


def _program_flags(folder: Path, rng: random.Random) -> Callable[[], Any]:
    """Flags of a program, which is parsed and not run."""
    name = rng.choice(("train", "evaluate", "summarize", "compare", "convert", "check", "parity"))
    made = _module(name).parser()
    flags = [flag for action in made._actions for flag in action.option_strings if flag not in ("-h", "--help")]
    words = [
        rng.choice(("x", _odd_text(rng), f"{rng.choice(flags)}={_odd_text(rng)}", rng.choice(flags))) for _ in range(4)
    ]

    def read(given: list[str]) -> int:
        made.parse_args(given)
        return 0

    return Program(read, words[: rng.randint(0, 4)])


def _tokenizer_files(folder: Path, rng: random.Random) -> Callable[[], Any]:
    from jax_simcas.data.tokenizer import load_tokenizer, tokenize

    names = ("tokenizer.json", "tokenizer_config.json")
    for name in names:
        shutil.copy(_trained() / name, folder)
    path = folder / rng.choice(names)
    path.write_bytes(change_json(path.read_bytes(), rng))
    return lambda: tokenize(load_tokenizer(folder), "The roof leaks.")


def _shapes(folder: Path, rng: random.Random) -> Callable[[], Any]:
    """A config.json, and settings of generation."""
    from jax_simcas.checkpoints import hub
    from jax_simcas.run.generation import generation_of

    config = json.loads((_trained() / "config.json").read_text())
    base = rng.choice((config, *CONFIGS))
    (folder / "config.json").write_bytes(change_json(json.dumps(base).encode(), rng))
    generation = (_trained() / "generation_config.json").read_bytes()
    (folder / "generation_config.json").write_bytes(generation if rng.randrange(2) else change_json(generation, rng))

    def read() -> None:
        shape = hub.read_config(folder)
        held = hub.read_generation(folder)
        generation_of(hub.Pretrained(shape, {}, folder, {}, (), held or {}, held is not None), str(folder))

    return read


def odd_safetensors(content: bytes, rng: random.Random) -> bytes:
    """A changed header with its own length, or changed bytes."""
    size = int.from_bytes(content[:8], "little")
    if rng.randrange(3):
        header = change_json(content[8 : 8 + size], rng)
        return len(header).to_bytes(8, "little") + header + content[8 + size :]
    return (
        change_bytes(content[: 8 + size], rng) + content[8 + size :] if rng.randrange(2) else change_bytes(content, rng)
    )


def _weights(folder: Path, rng: random.Random) -> Callable[[], Any]:
    from jax_simcas.checkpoints import hub

    shutil.copytree(_trained(), folder, dirs_exist_ok=True)
    path = folder / "model.safetensors"
    path.write_bytes(odd_safetensors(path.read_bytes(), rng))
    return partial(hub.load, folder)


def _converted(folder: Path, rng: random.Random) -> Callable[[], Any]:
    """What `convert` makes of a changed model: all of its files, or none."""
    source, target = folder / "source", folder / "target"
    shutil.copytree(_trained(), source)
    path = source / rng.choice(["config.json", "generation_config.json", "jax_simcas.json", "tokenizer.json"])
    path.write_bytes(change_json(path.read_bytes(), rng))
    layout = rng.choice(("hf", "flax"))
    program = Program(_module("convert").main, [str(source), str(target), f"--to={layout}"])

    def run() -> None:
        try:
            program()
        except UserError:
            if (target / "config.json").exists():
                raise AssertionError("convert failed, and left a model behind") from None
            raise

    return run


def _predictions(folder: Path, rng: random.Random) -> Callable[[], Any]:
    """Two evaluations that are compared, of which one is changed."""
    rows = [EVALUATED | {"index": i, "id": f"{i}", "nll": 2.0 + i} for i in range(3)]
    score = {"mean": 0.5, "low": 0.4, "high": 0.6, "count": 3}
    scores: dict[str, Any] = {name: dict.fromkeys(SCORES, score) for name in ("scores", "lead")}
    scores |= {"documents": 3, "nll": score, "kept_share": 0.5, "evidence": {"recall": score}, "split": "test"}
    for name in ("a", "b"):
        (folder / name).mkdir()
        (folder / name / "predictions.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        (folder / name / "scores.json").write_text(json.dumps(scores))
    path = folder / "b" / rng.choice(("predictions.jsonl", "scores.json"))
    path.write_bytes((change_lines if path.suffix == ".jsonl" else change_json)(path.read_bytes(), rng))
    if rng.randrange(2):
        return Program(_module("compare").main, [f"a={folder / 'a'}", f"b={folder / 'b'}"])
    return Program(_module("evaluate").main, ["--compare", str(folder / "a"), str(folder / "b")])


SCORES = {"rouge1": 0.5, "rouge2": 0.25, "rougeL": 0.4}
EVALUATED: dict[str, Any] = {
    "prediction": "The roof.",
    "reference": "The roof leaks.",
    "references": ["The roof leaks."],
}
EVALUATED |= {"answers": [], "rouge_tokenizer": "rouge-score", "scores": SCORES, "lead": SCORES, "kept": 4, "tokens": 8}
EVALUATED |= {"candidates": 8, "overflow": 0, "cut_tokens": 0, "unknown_tokens": 0, "evidence": None}
T5 = {"model_type": "t5", "vocab_size": 64, "d_model": 8, "d_kv": 4, "num_heads": 2, "d_ff": 8, "num_layers": 1}
STACK: dict[str, Any] = {"vocab_size": 64, "hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 2}
STACK |= {"num_attention_heads": 2, "num_key_value_heads": 1, "head_dim": 4, "sliding_window": 16}
STACK |= {"layer_types": ["sliding_attention", "full_attention"], "query_pre_attn_scalar": 4, "rope_theta": 10_000.0}
PEGASUS = {"model_type": "pegasus", "d_model": 8, "encoder_layers": 1, "decoder_layers": 1, "vocab_size": 64}
PEGASUS |= {"encoder_attention_heads": 2, "decoder_attention_heads": 2, "encoder_ffn_dim": 8, "decoder_ffn_dim": 8}
CONFIGS: tuple[Mapping[str, Any], ...] = (
    T5 | {"feed_forward_proj": "gated-gelu", "decoder_start_token_id": 0},
    {"model_type": "t5gemma", "encoder": STACK, "decoder": STACK},
    PEGASUS | {"max_position_embeddings": 64},
    PEGASUS | {"model_type": "led", "attention_window": [16], "max_encoder_position_embeddings": 64},
)
KINDS: dict[str, Kind] = {
    "text": Kind(2, partial(_document, "x.txt", lambda: ROWS[1]["article"].encode(), change_bytes)),
    "html": Kind(2, partial(_document, "x.html", lambda: HTML, change_bytes)),
    "pdf": Kind(2, partial(_document, "x.pdf", pdf, change_bytes)),
    "docx": Kind(2, partial(_document, "x.docx", docx, odd_docx)),
    "jsonl": Kind(4, partial(_rows, "train.jsonl", "jsonl", jsonl, change_lines)),
    "jsonl.gz": Kind(1, partial(_rows, "train.jsonl.gz", "jsonl", jsonl, change_lines)),
    "csv": Kind(3, partial(_rows, "train.csv", "csv", csv_rows, change_bytes)),
    "parquet": Kind(3, partial(_rows, "train.parquet", "parquet", parquet, change_bytes)),
    "overrides": Kind(4, _overrides),
    "settings": Kind(3, _settings),
    "flags": Kind(4, _program_flags),
    "tokenizer": Kind(3, _tokenizer_files),
    "config": Kind(4, _shapes),
    "safetensors": Kind(3, _weights),
    "convert": Kind(0.5, _converted),
    "predictions": Kind(3, _predictions),
}
