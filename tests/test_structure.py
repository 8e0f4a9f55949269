"""What holds for the project as a whole: who imports whom, every config, the README's example."""

import ast
import dataclasses
import re
import tomllib
from pathlib import Path

import jax
import jax.numpy as jnp
import pytest
from helpers import CONFIGS, read_config

from jax_simcas.generate import generate
from jax_simcas.model import check_fits, init_params
from jax_simcas.update import init_state, selector_step, transformer_step

ROOT = Path(__file__).parent.parent
FLOORS = [
    {"errors"},
    {
        "sharding",
        "hlo",
        "topology",
        "chunk",
        "align",
        "select",
        "reward",
        "ppo",
        "checkpoint",
        "metrics",
        "report",
        "plots",
    },
    {"bart", "data"},
    {"model", "pretrained", "flops", "bertscore"},
    {
        "update",
        "generate",
        "inference",
        "settings",
        "presets",
        "grid",
        "workdir",
        "program",
        "peers",
        "job",
        "paired",
    },
    {"experiments", "train", "evaluate", "summarize", "compare", "parity", "convert", "benchmark", "compile_check"},
]


def floor(module):
    name = module.split(".")[1]
    found = [number for number, names in enumerate(FLOORS) if name in names]
    assert found, f"{module} has no floor: give it one here and in README"
    return found[0]


def imports(path):
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "jax_simcas":
            package = node.module
            yield from (
                [f"{package}.{alias.name}" for alias in node.names]
                if package in ("jax_simcas", "jax_simcas.data", "jax_simcas.bart", "jax_simcas.benchmark")
                else [package]
            )
        elif isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names if alias.name.startswith("jax_simcas."))


def test_nobody_imports_from_a_floor_above():
    seen = 0
    for path in (ROOT / "jax_simcas").rglob("*.py"):
        if path.name == "__init__.py":
            continue
        own = ".".join(path.relative_to(ROOT).with_suffix("").parts)
        for other in imports(path):
            seen += 1
            assert floor(other) <= floor(own), f"{own} imports {other}"
    assert seen > 50


def test_the_pure_floors_have_no_flags_files_or_printing():
    for path in (ROOT / "jax_simcas").rglob("*.py"):
        own = ".".join(path.relative_to(ROOT).with_suffix("").parts)
        pure = {"chunk", "align", "select", "reward", "ppo", "bart", "model", "update", "generate", "inference"}
        if path.name == "__init__.py" or own.split(".")[1] not in pure:
            continue
        for node in ast.walk(ast.parse(path.read_text())):
            assert not isinstance(node, ast.Global), own
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
                assert node.func.id not in ("open", "print"), own
            if isinstance(node, ast.Import | ast.ImportFrom):
                names = [getattr(node, "module", None) or "", *(alias.name for alias in node.names)]
                assert not {"absl", "ml_collections", "pathlib", "os"} & {name.split(".")[0] for name in names}, own


@pytest.mark.parametrize("name", sorted(path.stem for path in CONFIGS.glob("*.py")))
def test_every_config_is_built_and_traced(name):
    settings, doc = read_config(name)
    assert f"python -m jax_simcas.train --config=configs/{name}.py" in doc
    vocabulary = settings.data.vocab_size
    bart = dataclasses.replace(settings.bart, vocab_size=vocabulary)
    simcas, config, batch = settings.simcas, settings.optimizer, settings.data.batch_size
    check_fits(bart, simcas)
    chunks, target = max(settings.data.chunk_buckets or (4,)), max(settings.data.target_buckets or (16,))
    rows = {
        "input_ids": jax.ShapeDtypeStruct((batch, chunks, simcas.chunk_length), jnp.int32),
        "token_mask": jax.ShapeDtypeStruct((batch, chunks, simcas.chunk_length), bool),
        "chunk_mask": jax.ShapeDtypeStruct((batch, chunks), bool),
        "target_ids": jax.ShapeDtypeStruct((batch, target), jnp.int32),
        "target_mask": jax.ShapeDtypeStruct((batch, target), bool),
    }
    shapes = lambda tree: [(leaf.shape, leaf.dtype) for leaf in jax.tree.leaves(tree)]

    def trained_and_asked(key, rows):
        state = init_state(init_params(key, bart, simcas), config, key)
        for step in (transformer_step, selector_step):
            after, metrics = step(state, rows, bart=bart, simcas=simcas, config=config)
            assert shapes(after) == shapes(state)
            assert all(total.shape == count.shape == () for total, count in metrics.values())
        states = jnp.zeros((65, bart.d_model))
        return generate(state.params, bart, settings.generate, states, jnp.ones(65, bool)).sequence

    out = jax.eval_shape(trained_and_asked, jax.random.key(0), rows)
    assert out.shape == (settings.generate.max_length,)


def test_readmes_example_runs_as_printed(capsys):
    (example,) = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)
    exec(compile(example, "README.md", "exec"), {})
    printed = capsys.readouterr().out.strip()
    assert printed and f"print(jax.jit(jax.vmap(one))(ids, real).states.shape)  # {printed}" in example


def test_readmes_links_and_commands_exist():
    text = (ROOT / "README.md").read_text()
    for name in re.findall(r"python -m jax_simcas\.(\w+)", text):
        assert any((ROOT / "jax_simcas" / file).exists() for file in (f"{name}.py", f"{name}/__main__.py")), name
    for name in re.findall(r"\b(?:configs|launch|tests)/[\w/]+\.\w+", text):
        assert name.endswith("/NAME.py") or (ROOT / name).exists(), name


def test_the_tool_settings_are_readable():
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text())
    assert settings["tool"]["pytest"]["ini_options"]["filterwarnings"] == ["error"]
