"""What holds for the project as a whole: who imports whom, and every config."""

import ast
import dataclasses
from graphlib import TopologicalSorter
from pathlib import Path

import jax
import jax.numpy as jnp
import pytest
from helpers import CONFIGS, read_config, slow_but

from jax_simcas.method.beam_search import generate
from jax_simcas.method.document import Document, Example, Target
from jax_simcas.method.model import init_params
from jax_simcas.method.select import Compacted
from jax_simcas.method.steps import init_state, selector_step, transformer_step
from jax_simcas.run.config import check

ROOT = Path(__file__).parent.parent
PACKAGES = ROOT / "jax_simcas"
# Each package imports only itself and what stands before it; the programs at the root import any of them.
ORDER = (
    "common",
    "backbones",
    "method",
    "data",
    "checkpoints",
    "evaluation",
    "run",
    "experiments",
    "compile_check",
    "benchmark",
)
PROGRAMS = {"__main__", "train", "evaluate", "summarize", "compare", "convert", "check", "parity"}


def module_name(path):
    return ".".join(path.relative_to(PACKAGES).with_suffix("").parts).removesuffix(".__init__")


MODULES = {module_name(path): path for path in PACKAGES.rglob("*.py") if path != PACKAGES / "__init__.py"}


def imports(path):
    """The modules of this project that a file imports, wherever in it."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "jax_simcas":
            package = node.module.removeprefix("jax_simcas").removeprefix(".")
            for alias in node.names:
                inner = f"{package}.{alias.name}".removeprefix(".")
                yield inner if inner in MODULES else package
        elif isinstance(node, ast.Import):
            yield from (a.name.removeprefix("jax_simcas.") for a in node.names if a.name.startswith("jax_simcas."))


IMPORTS = {name: set(imports(path)) - {name} for name, path in MODULES.items()}


def test_the_tree_is_the_packages_and_the_programs():
    assert {name.split(".")[0] for name in MODULES} == {*ORDER, *PROGRAMS}


def test_no_package_imports_one_that_stands_after_it():
    rank = {name: number for number, name in enumerate(ORDER)} | dict.fromkeys(PROGRAMS, len(ORDER))
    upward = [
        f"{own} imports {other}"
        for own, others in IMPORTS.items()
        for other in others
        if rank[other.split(".")[0]] > rank[own.split(".")[0]]
    ]
    assert not upward
    assert sum(map(len, IMPORTS.values())) > 100


def test_there_is_no_circle_of_imports():
    TopologicalSorter(IMPORTS).prepare()  # CycleError names the modules


def test_the_method_knows_no_backbone():
    known = [(own, other) for own in IMPORTS if own.startswith("method") for other in IMPORTS[own]]
    allowed = ("backbones.protocol", "backbones.ops")
    assert not [pair for pair in known if pair[1].startswith("backbones") and not pair[1].startswith(allowed)]


def test_the_pure_packages_have_no_flags_files_or_printing():
    for name, path in MODULES.items():
        if name.split(".")[0] not in ("backbones", "method"):
            continue
        for node in ast.walk(ast.parse(path.read_text())):
            assert not isinstance(node, ast.Global), name
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
                assert node.func.id not in ("open", "print"), name
            if isinstance(node, ast.Import | ast.ImportFrom):
                names = [getattr(node, "module", None) or "", *(alias.name for alias in node.names)]
                assert not {"absl", "ml_collections", "pathlib", "os"} & {name.split(".")[0] for name in names}, name


def test_no_function_is_long():
    for path in PACKAGES.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.FunctionDef):
                assert node.end_lineno - node.lineno < 60, f"{path.name}: {node.name}"


# The data sets' configs differ in few numbers, and each takes as long as a training step of its size to trace.
NAMES = slow_but(sorted(path.stem for path in CONFIGS.glob("*.py")), "embedded", "t5gemma2_270m")


@pytest.mark.parametrize("name", NAMES)
def test_every_config_is_built_and_traced(name):
    settings, doc = read_config(name)
    assert f"python -m jax_simcas.train --config=configs/{name}.py" in doc
    vocabulary = settings.data.vocab_size
    settings = settings.with_backbone_config(dataclasses.replace(settings.backbone_config, vocab_size=vocabulary))
    model = check(settings, sizes_known=True).model()
    update, batch = settings.optimizer, settings.data.batch_size
    optimizers = update.transformer(settings.loop.steps), update.selector()
    chunks, target = max(settings.data.chunk_buckets or (4,)), max(settings.data.target_buckets or (16,))
    shape, tokens = jax.ShapeDtypeStruct, (batch, chunks, settings.simcas.chunk_length)
    rows = Example(
        Document(shape(tokens, jnp.int32), shape(tokens, bool), shape((batch, chunks), bool)),
        Target(shape((batch, target), jnp.int32), shape((batch, target), bool)),
    )
    shapes = lambda tree: [(leaf.shape, leaf.dtype) for leaf in jax.tree.leaves(tree)]

    def trained_and_asked(key, rows):
        state = init_state(init_params(key, model), *optimizers, key)
        for after, metrics in (
            transformer_step(state, rows, model=model, optimizer=optimizers[0]),
            selector_step(state, rows, model=model, optimizer=optimizers[1], ppo=update.ppo),
        ):
            assert shapes(after) == shapes(state)
            assert all(total.shape == count.shape == () for total, count in metrics.values())
        states = Compacted(jnp.zeros((65, model.backbone.width)), jnp.ones(65, bool), jnp.arange(64), jnp.array(0))
        return generate(state.params, model, settings.generate, states).sequence

    out = jax.eval_shape(trained_and_asked, jax.random.key(0), rows)
    assert out.shape == (settings.generate.max_length,)
