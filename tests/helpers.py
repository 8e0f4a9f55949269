"""Tiny models and documents that many tests share."""

import base64
import importlib.util
import json
import os
import re
import resource
import shutil
import signal
import subprocess
from contextlib import contextmanager
from functools import cache
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jax_simcas.backbones.bart.backbone import Bart
from jax_simcas.backbones.bart.config import BartConfig
from jax_simcas.backbones.t5.config import T5Config
from jax_simcas.benchmark import fault_programs
from jax_simcas.checkpoints.hub import load
from jax_simcas.method.document import Document, Example, Target
from jax_simcas.method.model import init_params
from jax_simcas.run import config as config_lib
from jax_simcas.run.method_config import SimcasConfig

ROOT = Path(__file__).parent.parent
CONFIGS = ROOT / "configs"
PARITY = Path(__file__).parent / "data" / "parity"
MANIFEST = json.loads((PARITY / "manifest.json").read_text())

TINY = BartConfig(
    vocab_size=40,
    d_model=16,
    encoder_layers=2,
    decoder_layers=2,
    encoder_attention_heads=2,
    decoder_attention_heads=2,
    encoder_ffn_dim=32,
    decoder_ffn_dim=32,
    max_position_embeddings=32,
    dropout=0.0,
    init_std=0.3,
)

TINY_T5 = T5Config(
    vocab_size=40,
    d_model=16,
    d_kv=6,
    d_ff=32,
    num_layers=2,
    num_decoder_layers=2,
    num_heads=2,
    relative_attention_num_buckets=8,
    relative_attention_max_distance=16,
    dropout_rate=0.0,
)

BERT_WORDS = [f"w{i}" for i in range(30)]
BERT_POSITIONS = 16

# A run of the embedded task of a few seconds.
TINY_RUN = fault_programs.TINY | {"loop.steps": 4, "loop.eval_every": 2}


def _config_module(name):
    spec = importlib.util.spec_from_file_location(name, CONFIGS / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def read_config(name):
    """(settings, docstring) of configs/NAME.py."""
    module = _config_module(name)
    return config_lib.from_config(module.get_config()), module.__doc__


def tiny_config(**changes):
    """Settings of TINY_RUN."""
    config = _config_module("embedded").get_config()
    config.update_from_flattened_dict(TINY_RUN | changes)
    return config_lib.from_config(config)


def as_flags(changes):
    """TINY_RUN for a program in a process of its own."""
    return [f"--config.{name}={value}" for name, value in (TINY_RUN | changes).items()]


def environment(**more):
    """For a program of this checkout in a process of its own."""
    return os.environ | {"JAX_PLATFORMS": "cpu", "PYTHONPATH": str(ROOT)} | {k: str(v) for k, v in more.items()}


def fully_optimised(**more):
    """The same for a program that is to compile as it does for users, not as conftest has it."""
    return environment(**({"JAX_DISABLE_MOST_OPTIMIZATIONS": 0, "XLA_FLAGS": ""} | more))


def several_devices(count):
    """So many devices; skips the test where there are fewer, as on a machine with one GPU."""
    found = jax.devices()
    if len(found) < count:
        pytest.skip(f"needs {count} devices")
    return np.array(found[:count])


def figures(folder):
    """The lines of metrics.jsonl that are the same in every run: without times."""
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    times = ("tokens_per_second", "time")
    return [{k: v for k, v in row.items() if k not in times} for row in rows if row["split"] != "checkpoint"]


def slow_but(values, *fast):
    """The values of a test's parameter; it is slow but for those in `fast`."""
    several = lambda value: value if isinstance(value, tuple) else (value,)
    return [value if value in fast else pytest.param(*several(value), marks=pytest.mark.slow) for value in values]


@contextmanager
def largest_file(size: int):
    """Writing beyond so many bytes is an OSError, as on a full disk."""
    ignored = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        signal.signal(signal.SIGXFSZ, ignored)


def with_disk(folder, megabytes):
    """What to put before a command to give it a disk of its own at `folder`; skips the test where that is barred."""
    if shutil.which("unshare") is None or subprocess.run(["unshare", "-rm", "true"], capture_output=True).returncode:
        pytest.skip("needs unshare with user and mount namespaces")
    mount = f'mount -t tmpfs -o size={megabytes}m none "$0" && exec "$@"'
    return ["unshare", "-rm", "sh", "-c", mount, str(folder)]


def docs_program(name):
    """A program of docs/ as a module."""
    spec = importlib.util.spec_from_file_location(name, ROOT / "docs" / f"{name}.py")
    made = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(made)
    return made


def complaints(err):
    """Standard error without what jaxlib 0.8 logs when it loads a program from its cache, on some CPUs."""
    if jax.__version_info__ >= (0, 10):
        return err
    return "".join(line for line in err.splitlines(keepends=True) if "cpu_aot_loader" not in line)


def one_line_error(out):
    """The error's text; there must be no traceback beside it."""
    lines = [line for line in out.strip().splitlines() if line.startswith("error: ")]
    assert len(lines) == 1 and "Traceback" not in out, out
    return lines[0]


def page_data(path):
    """What the script of a page of what was kept reads."""
    return json.loads(re.search(r'id="data">([^<]*)<', path.read_text(encoding="utf-8"))[1])


def page_kept(data):
    """Whether each token was kept."""
    bits = np.frombuffer(base64.b64decode(data["tokens"]["kept"]), np.uint8)
    count = len(base64.b64decode(data["tokens"]["keep"])) // 2
    return np.unpackbits(bits, bitorder="little")[:count].tolist()


@cache
def parity_model():
    """(config, params) of the small BART that the parity arrays were computed with."""
    loaded = load(PARITY)
    return loaded.config, jax.tree.map(jnp.asarray, loaded.params)


def model_of(bart=TINY, **choices):
    """A SimCAS around a BART, of the names that a config gives."""
    return SimcasConfig(**choices).model(Bart(bart))


@cache
def tiny_params(bart=TINY, seed=0):
    return init_params(jax.random.key(seed), model_of(bart))


def tiny_bert(folder):
    """Makes `folder`: transformers' BERT of three layers with random weights, whose words are BERT_WORDS."""
    torch = pytest.importorskip("torch")
    from tokenizers import Tokenizer, models, pre_tokenizers, processors
    from transformers import BertConfig, BertModel, PreTrainedTokenizerFast

    vocabulary = {token: i for i, token in enumerate(["[PAD]", "[UNK]", "[CLS]", "[SEP]", *BERT_WORDS])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    special = {"unk_token": "[UNK]", "pad_token": "[PAD]", "cls_token": "[CLS]", "sep_token": "[SEP]"}
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, **special).save_pretrained(folder)
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=len(vocabulary),
        hidden_size=16,
        num_hidden_layers=3,
        num_attention_heads=2,
        intermediate_size=32,
        max_position_embeddings=BERT_POSITIONS,
        initializer_range=0.5,
    )
    BertModel(config).save_pretrained(folder)
    return folder


def document(seed, chunks=3, chunk_length=8, tail=2, target=6, vocabulary=40, padding_chunks=0, target_padding=0):
    """One random example with `tail` PAD in its last chunk, plus chunks and targets of pure padding."""
    rng = np.random.default_rng(seed)
    total = chunks + padding_chunks
    ids = np.full((total, chunk_length), 1, np.int32)
    mask = np.zeros((total, chunk_length), bool)
    ids[:chunks] = rng.integers(4, vocabulary, (chunks, chunk_length))
    ids[:chunks, 0], ids[:chunks, -1], mask[:chunks] = 0, 2, True
    if tail:
        ids[chunks - 1, -1 - tail : -1] = 1
        mask[chunks - 1, -1 - tail : -1] = False
    targets = np.full(target + target_padding, 1, np.int32)
    targets[:target] = [2, 0, *rng.integers(4, vocabulary, target - 3), 2]
    return Example(
        Document(jnp.asarray(ids), jnp.asarray(mask), jnp.asarray(mask.any(axis=1))),
        Target(jnp.asarray(targets), jnp.asarray(targets != 1)),
    )


def stack(*documents):
    return jax.tree.map(lambda *x: jnp.stack(x), *documents)
