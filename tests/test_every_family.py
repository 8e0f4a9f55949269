"""Every program does its work on a tiny checkpoint of every family, as transformers writes it."""

import gc
import json
import subprocess
import sys
import time
from pathlib import Path

import jax
import numpy as np
import pytest
from helpers import ROOT, environment, figures, fully_optimised, page_data, page_kept

import jax_simcas
from jax_simcas import convert, evaluate, summarize, train
from jax_simcas.checkpoints.run_state import load_params
from jax_simcas.experiments import __main__ as experiments

pytest.importorskip("torch")
from tiny_models import TYPES, Folders

SENTENCE = "the council meets on monday to vote about a new roof for the old school near the river"
TEXT = " ".join([SENTENCE] * 2)  # of six chunks
SETTINGS = {
    "simcas.chunk_length": 32,
    "simcas.max_input_len": 182,
    "simcas.max_target_len": 24,
    "simcas.capacity": 64,
    "data.batch_size": 1,
    "optimizer.accumulate_step": 1,
    "loop.steps": 4,
    "loop.selector_every": 2,
    "loop.log_every": 1,
    "loop.eval_every": 2,
    "loop.checkpoint_every": 2,
    "loop.eval_documents": 2,
    "generate.max_length": 12,
    "generate.num_beams": 2,
}
FLOAT32 = {"simcas.dtype": "float32", "simcas.remat": "none", "loop.steps": 2, "data.batch_size": 2}


class Family:
    """A tiny checkpoint, rows to learn from, and a run that has learned from them."""

    def __init__(self, model: Path, folder: Path) -> None:
        self.model, self.folder, self.data = model, folder, folder / "data"
        self.data.mkdir(parents=True)
        self.text = folder / "text.txt"
        self.text.write_text(TEXT)
        words = np.array(SENTENCE.split())
        for seed, (split, count) in enumerate({"train": 8, "validation": 3}.items()):
            rng = np.random.default_rng(seed)
            texts = lambda length, rng=rng: " ".join(rng.choice(words, length))
            rows = [{"document": texts(rng.integers(30, 34)), "summary": texts(3)} for _ in range(count)]
            (self.data / f"{split}.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in rows))

    def flags(self, **changes):
        """Those of the settings, with `finetune` beneath: bfloat16, layers computed twice, a learning selector."""
        settings = SETTINGS | {"pretrained": self.model, "data.data_dir": self.data} | changes
        return [f"--config.{name}={value}" for name, value in settings.items()]

    def trained(self, name="run", **changes):
        """The workdir of a run, trained if it is not."""
        assert run(train, "--config=finetune", f"--workdir={self.folder / name}", *self.flags(**changes)) == 0
        return self.folder / name

    @property
    def run(self):
        return self.folder / "run" if (self.folder / "run").exists() else self.trained()


def run(program, *arguments):
    return program.main([str(argument) for argument in arguments])


class Families(dict):
    """By kind, each made when it is asked for; the programs of those before are forgotten.

    Of all families together they take more memory maps than a process may have (conftest.py).
    """

    def __init__(self, folder):
        self.folder, self.models = folder, Folders(folder / "models")

    def __missing__(self, kind):
        jax.clear_caches()
        gc.collect()
        self[kind] = Family(self.models[kind], self.folder / kind)
        return self[kind]


@pytest.fixture(scope="module")
def families(tmp_path_factory):
    return Families(tmp_path_factory.mktemp("families"))


def assert_same_run(one, other):
    assert figures(one) == figures(other)
    states = [load_params(workdir / "checkpoints", "latest")[0] for workdir in (one, other)]
    assert jax.tree.all(jax.tree.map(np.array_equal, *states))


def trains(family, capsys):
    """Both updates, in bfloat16."""
    rows = [row for row in figures(family.run) if row["split"] == "train"]
    assert [row["step"] for row in rows] == [1, 2, 3, 4]
    assert all(np.isfinite(row["loss"]) for row in rows) and "ppo/approx_kl" in rows[-1]
    before, after = (jax.tree.leaves(load_params(family.run / "checkpoints", step)[0]) for step in (2, 4))
    assert any((a != b).any() for a, b in zip(before, after, strict=True))


def evaluates(family, capsys):
    page = family.folder / "evaluation.html"
    assert run(evaluate, f"--workdir={family.run}", f"--html={page}") == 0
    assert "rouge" in capsys.readouterr().out.lower() and page.stat().st_size > 1000


def summarises(family, capsys):
    """Several chunks and one, by beams, with a page for each: without a selector."""
    short, pages = family.folder / "short.txt", family.folder / "pages.html"
    short.write_text("a new roof")
    arguments = ("--num-beams=3", "--json", f"--html={pages}", family.text, short)
    assert run(summarize, f"--model={family.model}", "--chunk-length=32", *arguments) == 0
    results = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [result["chunks"] for result in results] == [6, 1]
    shown = [page_data(path) for path in sorted(family.folder.glob("pages_files/*.html"))]
    assert [len(page_kept(data)) > 32 for data in shown] == [True, False] and pages.exists()


def converts(family, capsys):
    """Out and back in without a changed byte, the summary too; with a model card."""
    places = [family.folder / name for name in ("hf", "flax", "back")]
    for source, target, layout in zip([family.run, *places], places, ("hf", "flax", "hf"), strict=False):
        assert run(convert, source, target, f"--to={layout}") == 0
    for name in ("model.safetensors", "config.json", "generation_config.json"):
        assert (places[0] / name).read_bytes() == (places[2] / name).read_bytes()
    own = json.loads((family.model / "config.json").read_text())
    assert json.loads((places[0] / "config.json").read_text())["model_type"] == own["model_type"]
    card = (places[0] / "README.md").read_text()
    assert "AutoModelForSeq2SeqLM" in card and f"\n{own['model_type']}" not in card.partition("\n# ")[2]
    positions = own.get("max_encoder_position_embeddings") or own.get("max_position_embeddings")
    assert f"inputs of {f'up to {positions} tokens' if positions else 'any length'}" in card
    capsys.readouterr()
    summaries = []
    for model in (family.run, *places):
        assert run(summarize, f"--model={model}", family.text) == 0
        summaries.append(capsys.readouterr().out)
    assert len(set(summaries)) == 1
    assert run(convert, family.run, family.folder / "upload", "--push=me/model", "--dry-run") == 0


def resumes(family, capsys):
    """A run of two parts has the numbers of one."""
    family.trained("parts", **{"loop.steps": 2})
    capsys.readouterr()
    assert "resuming at step 2 of 4" in (family.trained("parts") and capsys.readouterr().err)
    assert_same_run(family.run, family.folder / "parts")


def survives(family, capsys):
    """A process that is killed between two checkpoints."""
    workdir = family.folder / "killed"
    command = [sys.executable, "-m", "jax_simcas.train", "--config=finetune", f"--workdir={workdir}", *family.flags()]
    one_device = environment(XLA_FLAGS="")
    child = subprocess.Popen(command, env=one_device, cwd=ROOT, stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL)
    metrics, end = workdir / "metrics.jsonl", time.monotonic() + 300
    while not (metrics.exists() and '"step": 3' in metrics.read_text()):
        assert child.poll() is None and time.monotonic() < end
        time.sleep(0.05)
    child.kill()
    child.wait()
    whole = [*command[:4], f"--workdir={family.folder / 'whole'}", *command[5:]]
    for each in (command, whole):
        assert subprocess.run(each, env=one_device, cwd=ROOT, capture_output=True, check=True).returncode == 0
    assert_same_run(workdir, family.folder / "whole")


def spreads(family, capsys):
    """Documents, parameters, chunks and heads over eight devices: the numbers of two, in float32."""
    one = family.trained("float32", **FLOAT32)
    many = family.trained("mesh", **FLOAT32, **{"mesh.fsdp": 2, "mesh.chunk": 2, "mesh.tensor": 2})
    for a, b in zip(figures(one), figures(many), strict=True):
        assert a.keys() == b.keys()
        for name, value in a.items():
            assert b[name] == (pytest.approx(value, rel=2e-3, abs=1e-4) if isinstance(value, float) else value), name


def loads(family, capsys):
    """In Python: a list gives what its texts give alone."""
    model, texts = jax_simcas.load(family.run), [TEXT, "a new roof", SENTENCE]
    assert [s.summary for s in model.summarize(texts)] == [model.summarize(text).summary for text in texts]


def selects(family, capsys):
    """By other policies than the one of training."""
    for policy in ("sample", "threshold", "all", "topk", "random"):
        flags = ["--config.simcas.budget=20"] if policy in ("topk", "random") else []
        output = f"--output={family.folder / policy}"
        assert run(evaluate, f"--workdir={family.run}", f"--policy={policy}", output, *flags) == 0


def caches(family, capsys):
    """Rows from the cache are the rows."""
    longer = {"data.batch_size": 2, "loop.steps": 6, "loop.eval_every": 6, "loop.checkpoint_every": 6}
    workdirs = [family.trained(f"cache-{on}", **longer, **{"data.cache": on}) for on in (True, False)]
    assert_same_run(*workdirs)


EXPERIMENT = """
from jax_simcas.experiments.spec import Evaluation, Experiment, Variant
from jax_simcas.run.presets import finetune_config as get_config


def get_experiment(config):
    return Experiment((Variant("own"),), (Evaluation("own"),), seeds=(0,))
"""


def compares(family, capsys):
    path = family.folder / "experiment.py"
    path.write_text(EXPERIMENT)
    workdir = family.folder / "experiment"
    assert run(experiments, path, f"--workdir={workdir}", *family.flags(**{"loop.steps": 2})) == 0
    assert (workdir / "table.csv").read_text().count("own") >= 1


def compiles(family, capsys):
    """For a slice of TPUs that is not there."""
    pytest.importorskip("libtpu")
    flags = ["--config=finetune", "--topology=v5e:2x2", "--documents=4", "--target=24", *family.flags()]
    env = fully_optimised(ALLOW_MULTIPLE_LIBTPU_LOAD=1)
    command = [sys.executable, "-m", "jax_simcas.compile_check", *flags]
    done = subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


FAST = {"flan-t5": (summarises,)}
PROGRAMS = (
    trains,
    evaluates,
    summarises,
    converts,
    loads,
    resumes,
    survives,
    spreads,
    selects,
    caches,
    compares,
    compiles,
)


def cases():
    for kind in TYPES:
        for program in PROGRAMS:
            marks = () if program in FAST.get(kind, ()) else pytest.mark.slow
            yield pytest.param(kind, program, id=f"{kind}-{program.__name__}", marks=marks)


@pytest.mark.filterwarnings("ignore")  # transformers' own
@pytest.mark.parametrize(("kind", "program"), list(cases()))
def test_programs_work_for_every_family(kind, program, families, monkeypatch, capsys):
    monkeypatch.setenv("JAX_SIMCAS_CACHE", str(families.folder / "cache"))
    program(families[kind], capsys)
