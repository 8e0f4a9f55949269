"""FLOPs against hand-worked numbers and XLA's count; topologies; the program, with libtpu where it is installed."""

import dataclasses
import importlib.util
import json
import re
import subprocess
import sys

import jax
import jax.numpy as jnp
import pytest
from helpers import ROOT, TINY, fully_optimised, read_config, tiny_config
from jax.sharding import SingleDeviceSharding

from jax_simcas.backbones.bart.backbone import Bart
from jax_simcas.backbones.bart.config import BART_BASE, BART_LARGE, BartConfig
from jax_simcas.common.compiler import compiler_options
from jax_simcas.common.errors import UserError
from jax_simcas.common.sharding import make_mesh
from jax_simcas.compile_check import cost, estimate, flops, output, programs, topology
from jax_simcas.compile_check.loops import Loop
from jax_simcas.method.model import encode_chunks
from jax_simcas.method.select import GREEDY, init_selector, select

TWO_LAYERS = (
    *("--config.pretrained=", "--config.data.vocab_size=1024", "--config.bart.d_model=128"),
    *("--config.bart.encoder_layers=2", "--config.bart.decoder_layers=2", "--config.bart.encoder_attention_heads=2"),
    *("--config.bart.decoder_attention_heads=2", "--config.simcas.capacity=256", "--config.bart.dropout=0.0"),
)


def run(*flags):
    command = [sys.executable, "-m", "jax_simcas.compile_check", *flags]
    env = fully_optimised(ALLOW_MULTIPLE_LIBTPU_LOAD=1)
    return subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True, check=False)


# FLOPs

ONE = BartConfig(
    vocab_size=7,
    d_model=2,
    encoder_layers=1,
    decoder_layers=1,
    encoder_attention_heads=1,
    decoder_attention_heads=1,
    encoder_ffn_dim=3,
    decoder_ffn_dim=5,
)


def test_flops_by_hand():
    sizes = flops.DocumentShape(chunks=2, chunk_length=4, selected=6, target=3)
    encoder = 8 * (8 * 4 + 4 * 2 * 3 + 4 * 4 * 2)  # 8 tokens
    decoder = 3 * (12 * 4 + 4 * 2 * 5 + 4 * (3 + 6) * 2) + 4 * 6 * 4 + 2 * 3 * 2 * 7
    actor = 2 * (3 * (12 * 4 + 4 * 2 * 2) + 4 * 4) + 2 * 6 * 2
    critic = 2 * (3 * (12 * 4 + 4 * 2 * 1) + 4 * 4)
    assert flops.encoder(ONE, sizes) == encoder
    assert flops.decoder(ONE, sizes) == decoder
    assert flops.actor(ONE, sizes) == actor
    assert flops.critic(ONE, sizes) == critic
    assert flops.transformer_update(ONE, sizes) == 3 * (encoder + decoder) + actor
    learned = actor - 2 * 6 * 2 + critic
    assert flops.selector_update(ONE, sizes, epochs=5) == encoder + decoder + actor + critic + 15 * learned
    assert flops.ppo(ONE, sizes, epochs=5) == 15 * learned
    generated = 2 * 4 * (12 * 4 + 4 * 2 * 5 + 4 * 2 * (1.5 + 6)) + 4 * 6 * 4 + 2 * 2 * 4 * 2 * 7  # 2 steps, 4 beams
    assert flops.generation(ONE, sizes, beams=4) == encoder + actor + generated


# One layer, one chunk: nothing is scanned, so XLA counts everything. Wide heads: hardly any elementwise work.
WIDE = dataclasses.replace(
    TINY,
    vocab_size=512,
    d_model=256,
    encoder_layers=1,
    decoder_layers=1,
    encoder_attention_heads=1,
    decoder_attention_heads=1,
    encoder_ffn_dim=1024,
    decoder_ffn_dim=1024,
    max_position_embeddings=128,
)
WIDE_SIZES = flops.DocumentShape(chunks=1, chunk_length=128, selected=96, target=64)


def counted(function, *arguments):
    return jax.jit(function).lower(*arguments).cost_analysis()["flops"]


def encoded(params):
    ids, mask = jnp.zeros((1, 128), jnp.int32), jnp.ones((1, 128), bool)
    return encode_chunks(params, Bart(WIDE), ids, mask, lambda x, _: x)[0].sum()


def decoded(params):
    ids, real = jnp.zeros(64, jnp.int32), jnp.ones(64, bool)
    states = jnp.zeros((96, WIDE.d_model))
    return Bart(WIDE).decode(params, states, jnp.ones(96, bool), ids, real, with_weights=False)[0].sum()


def wide_model():
    return Bart(WIDE).init(jax.random.key(0))


def test_forward_flops_are_those_that_xla_counts():
    params = jax.eval_shape(wide_model)
    assert counted(encoded, params) == pytest.approx(flops.encoder(WIDE, WIDE_SIZES), rel=0.03)
    assert counted(decoded, params) == pytest.approx(flops.decoder(WIDE, WIDE_SIZES), rel=0.03)

    def selected(selector, hidden):
        return select(selector, hidden, jnp.ones((1, 127), bool), jnp.ones(1, bool), policy=GREEDY).log_prob

    selector = jax.eval_shape(lambda: init_selector(jax.random.key(0), WIDE.d_model))
    hidden = jax.ShapeDtypeStruct((1, 128, WIDE.d_model), jnp.float32)
    assert counted(selected, selector, hidden) == pytest.approx(flops.actor(WIDE, WIDE_SIZES), rel=0.03)


def test_training_takes_three_times_the_forward_pass():
    params = jax.eval_shape(wide_model)
    # A backward pass that computes the scores anew has 12 S^2 D for attention where the model has 8.
    again = 2 * 128**2 * WIDE.d_model
    expected = 3 * flops.encoder(WIDE, WIDE_SIZES) + again
    assert counted(jax.grad(encoded), params) == pytest.approx(expected, rel=0.03)


# Topologies and shapes


def test_topologies_are_parsed_and_unknown_ones_name_the_known():
    chip, sides = topology.parse_topology("v5e:4x16")
    assert (chip, sides) == (topology.CHIPS["v5e"], (4, 16))
    for name in ("v9:2x2", "v5e", "v5e-256", "v5e:", "tpu"):
        with pytest.raises(UserError, match=r"v4, v5e, v5p, v6e, tpu7x, h100 .*v5e:16x16"):
            topology.parse_topology(name)
    for name in ("v5p:4x4", "v5e:2x2x2", "v5e:0x4"):
        with pytest.raises(UserError, match=r"comes as .*N"):
            topology.parse_topology(name)


def test_the_assumed_clocks_fit_the_peaks():
    """Matrix units a device: 4 of 128 x 128 (v5e), 8 (v4, v5p); v6e and tpu7x do as much a cycle as 4 of 256 x 256."""
    a_cycle = {"v4": 8 * 2 * 128**2, "v5e": 4 * 2 * 128**2, "v5p": 8 * 2 * 128**2}
    for generation, chip in topology.CHIPS.items():
        if chip.gpu:
            continue
        implied = chip.peak / a_cycle.get(generation, 4 * 2 * 256**2)
        assert chip.clock == pytest.approx(implied, rel=0.01), generation


@pytest.mark.parametrize(("name", "extra"), [("v5e:2x2", "tpu"), ("h100:8", "cuda13")])
def test_without_the_compiler_the_error_says_what_to_install(monkeypatch, name, extra):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UserError, match=rf"pip install 'jax_simcas\[{extra}\]'"):
        topology.describe(name)


def test_a_gpu_is_described_as_the_compiler_reads_it():
    chip, sides = topology.parse_topology("h100:8")
    assert sides == (8,) and (chip.platform, topology.CHIPS["v5e"].platform) == ("cuda", "tpu")
    with pytest.raises(UserError, match="comes as h100:N,"):
        topology.parse_topology("h100:2x4")
    text = chip.gpu.description(cuda=13)
    assert text.startswith("gpu_device_info { threads_per_block_limit: 1024 ")
    assert 'cuda_compute_capability { major: 9 minor: 0 } } platform_name: "CUDA" ' in text
    assert text.endswith('runtime_version { major: 13 } device_description_str: "NVIDIA H100 80GB HBM3"')


def test_the_programs_are_traced_with_the_configs_shapes():
    settings, _ = read_config("arxiv")
    settings = dataclasses.replace(settings, bart=programs.shape_of(settings))
    assert settings.bart == BART_BASE
    shapes = estimate.batch_shape(settings, documents=8, tokens=1_025, target=16, devices=8)
    assert shapes == programs.BatchShape(documents=8, tokens=1_025, target=16, chunks=3)
    sizes = programs.document_shape(settings, shapes)
    assert sizes == flops.DocumentShape(chunks=3, chunk_length=512, selected=1 + 3 * 511, target=16)
    settings = dataclasses.replace(settings, simcas=settings.simcas.replace(capacity=256))
    for stage in programs.STAGES:
        task = programs.STAGES[stage](settings, shapes)
        mesh = make_mesh(programs.mesh_sizes(settings, shapes, 8), jax.devices())
        model, batch = programs.on_mesh(task, mesh)
        assert batch.document.input_ids.shape == (8, 3, 512)
        assert batch.document.input_ids.sharding.shard_shape((8, 3, 512)) == (1, 3, 512)
        assert all(leaf.sharding.is_fully_replicated for leaf in jax.tree.leaves(model))
        assert task.flops > flops.encoder(settings.bart, programs.document_shape(settings, shapes))
    sequence = jax.eval_shape(task.function, task.model, task.batch).sequence
    assert sequence.shape == (8, 16)


@pytest.mark.parametrize(
    ("tokens", "changes", "mesh", "chunks"),
    [
        (16_322, {}, {}, 32),
        (16_384, {}, {}, 33),  # two special tokens in each
        (16_384, {}, {"chunk": 4}, 36),
        (16_384, {"chunking": "sentences"}, {}, 66),
        (100, {}, {}, 1),
    ],
)
def test_documents_have_as_many_chunks_as_in_training(tokens, changes, mesh, chunks):
    settings, _ = read_config("arxiv")
    settings = dataclasses.replace(
        settings, simcas=settings.simcas.replace(**changes), mesh=dataclasses.replace(settings.mesh, **mesh)
    )
    assert estimate.batch_shape(settings, 8, tokens, 16, devices=8).chunks == chunks
    buckets = dataclasses.replace(settings, data=dataclasses.replace(settings.data, chunk_buckets=(8, 40)))
    padded = next((size for size in (8, 40) if size >= chunks), chunks)
    assert estimate.batch_shape(buckets, 8, tokens, 16, devices=8).chunks == padded


def test_the_pretrained_name_or_the_config_gives_the_sizes():
    settings, _ = read_config("qmsum")
    bart = programs.shape_of(settings)
    assert (bart.d_model, bart.vocab_size) == (128, settings.data.vocab_size)
    large = dataclasses.replace(settings, pretrained="facebook/bart-large")
    assert programs.shape_of(large) == BART_LARGE


# Results


def result(**changes):
    fields = {"arguments": 3, "temporaries": 4, "memory": 7, "analysis": cost.Analysis((), (), (), (), ())}
    return programs.Result("train", **{**fields, **changes})


def test_what_fits_and_what_does_not():
    assert result().fits and not result(temporaries=5).fits
    # Where the peak is known it decides: temporaries need not all live at once.
    assert result(temporaries=5, peak=7).fits and not result(peak=8).fits
    assert (
        output.stage_cells(result(peak=2**30))["peak GiB"] == 1.0 and output.stage_cells(result())["peak GiB"] is None
    )
    refused = "RESOURCE_EXHAUSTED: XLA:TPU compile permanent error. Ran out of memory in memory space hbm. "
    problem = programs.problem_of(refused + "Used 20.05G of 15.75G hbm. Exceeded hbm capacity by 4.30G.")
    assert problem == "needs 20.05G of 15.75G memory"
    other = "memory required for HLO temporaries (1.00T) exceeds available HBM (30.75G)."
    assert programs.problem_of(other) == "needs 1.00T of 30.75G memory"
    assert programs.problem_of("INTERNAL:\n  no idea") == "INTERNAL: no idea"
    gone = programs.Result("train", problem=problem, memory=7)
    assert not gone.fits and output.stage_cells(gone)["fits"] == "NO"
    assert output.remarks(gone) == ["train: not compiled: needs 20.05G of 15.75G memory"]
    assert output.as_json(gone, 3)["fits"] is False


def test_without_an_estimate_the_largest_arrays_are_told():
    array = cost.Scheduled("a", "fusion", "f32[256,1024]{1,0}", 1, None, 2**20, "step (x.py:1)", "forward", "")
    untimed = result(analysis=cost.Analysis((array,), (), (), (), (("fusion", 1),)), seconds=None, utilisation=None)
    table, *rest = output.printed_lines([untimed], 1, None)
    assert "| train |  yes |" in table and output.stage_cells(untimed)["estimate ms"] is None
    assert rest[0].strip() == "train: the largest arrays" and "step (x.py:1)" in rest[1] and len(rest) == 2


def test_remarks_name_what_the_estimate_excludes():
    three = (Loop("w", "search", 99, True), Loop("v", "", None, False), Loop("u", "layers", 12, False))
    moved = (cost.Collective("all-reduce", 2, 2**20, 4, "x"), cost.Collective("all-reduce", 1, 2**20, 4, "y"))
    found = cost.Analysis((), three, moved, (("flash", 12),), (("sort", 3),))
    lines = "\n".join(output.remarks(result(analysis=found)))
    for remark in ("12 flash", "3 sort", "3 all-reduce, 3.0 MiB", "all 99 trips", "unknown length: v"):
        assert remark in lines
    assert "layers" not in lines


@pytest.mark.parametrize(
    ("code", "flags", "message"),
    [
        (2, ("--topology=v5e:1x1",), "required: --config"),
        (2, ("--config=configs/arxiv.py",), "required: --topology"),
        (2, ("--config=configs/arxiv.py", "--topology=v9:2x2"), "--topology=v9:2x2: expected one of v4, v5e"),
        (2, ("--config=configs/arxiv.py", "--topology=v5e:1x1", "--stages=train,pop"), "expected some of train, ppo"),
        (1, ("--config=configs/nothing.py", "--topology=v5e:1x1"), "configs/nothing.py"),
    ],
)
def test_bad_flags_are_one_line(code, flags, message):
    done = run(*flags)
    assert done.returncode == code
    assert done.stderr.startswith("error: ") and done.stderr.count("\n") == 1
    assert message in done.stderr


needs_libtpu = pytest.mark.skipif(
    importlib.util.find_spec("libtpu") is None, reason="libtpu is not installed: pip install 'jax_simcas[tpu]'"
)


@needs_libtpu
@pytest.mark.slow
def test_a_small_model_is_compiled_for_four_chips(tmp_path):
    path = tmp_path / "check.json"
    done = run("--config=configs/arxiv.py", "--topology=v5e:2x2", "--tokens=4082", "--target=32", *TWO_LAYERS,
               "--slowest=3", f"--json={path}")  # fmt: skip
    assert done.returncode == 0, done.stderr
    content = json.loads(path.read_text())
    assert (content["devices"], content["documents"]) == (4, 4)
    train, ppo, generation = content["stages"]
    for stage in content["stages"]:
        assert stage["fits"] and 0 < stage["temporaries"] < stage["memory"]
        assert stage["arguments"] < stage["peak"] < stage["memory"]
        assert 0 < stage["utilisation"] < 1
        assert stage["kernels"] == {}
        assert all(loop["trips"] for loop in stage["loops"])
    # Layers forward and backward, and the selector's walk over 8 chunks: none of the loops that a CPU has. Within the
    # encoder's layers attention goes over 8 chunks in two halves.
    within = [loop["trips"] for loop in train["loops"] if "self_attn" in loop["op_name"]]
    assert within == [2, 2]
    others = [loop["trips"] for loop in train["loops"] if "self_attn" not in loop["op_name"]]
    assert sorted(others) == [2, 2, 2, 2, 8]
    assert any(loop["trips"] == 31 and loop["at_most"] for loop in generation["loops"])
    reduced = [c for c in train["collectives"] if c["kind"] == "all-reduce" and c["total_bytes"] > 100_000]
    assert reduced and all(c["group"] == 4 for c in reduced)
    assert sum(place["cycles"] for place in train["places"]) == train["cycles"]
    assert "where the estimated time goes" in done.stdout and "has no estimate for" in done.stdout
    assert ppo["flops"] > generation["flops"] > 0


@pytest.mark.parametrize(
    ("stage", "parts"),
    [
        ("train", {"encode", "select", "compact", "decode", "loss", "update"}),
        ("ppo", {"encode", "select", "compact", "decode", "values", "reward", "ppo"}),
        ("generate", {"encode", "select", "compact", "generate"}),
    ],
)
def test_operations_name_the_part_of_the_method_that_they_belong_to(stage, parts):
    settings = tiny_config()
    program = programs.STAGES[stage](settings, programs.BatchShape(documents=1, tokens=30, target=8, chunks=2))
    text = jax.jit(program.function).lower(program.model, program.batch).as_text(debug_info=True)
    assert {cost.scope(name) for name in re.findall(r'loc\("([^"]*)"', text)} - {""} == parts <= {*cost.SCOPES}


def test_options_are_those_of_a_kind_of_device():
    assert compiler_options(jax.local_devices()[0].device_kind) == {}
    assert compiler_options("TPU v5 lite") == {"xla_tpu_scoped_vmem_limit_kib": "32768"}


@needs_libtpu
@pytest.mark.slow
def test_the_compiler_knows_the_kind_of_a_v5e_and_its_options():
    topology.prepare_environment()
    device = topology.describe("v5e:1x1").devices[0]
    options = compiler_options(device.device_kind)
    function = jax.jit(jnp.sin, compiler_options=options)
    place = SingleDeviceSharding(device)
    traced = function.trace(jax.ShapeDtypeStruct((8, 128), jnp.float32, sharding=place))
    assert options and traced.lower(lowering_platforms=("tpu",)).compile().as_text()


@needs_libtpu
@pytest.mark.slow
def test_layers_without_a_loop_are_compiled(tmp_path):
    path, flags = tmp_path / "check.json", ("--stages=train", "--config.simcas.unroll", "--config.simcas.remat=none")
    done = run("--config=configs/arxiv.py", "--topology=v5e:2x2", "--tokens=4082", "--target=32", *TWO_LAYERS, *flags,
               f"--json={path}")  # fmt: skip
    assert done.returncode == 0, done.stderr
    loops = json.loads(path.read_text())["stages"][0]["loops"]
    within = ["self_attn" in loop["op_name"] for loop in loops]
    assert sum(within) == 4  # two layers, forward and backward
    # The decoder's layers, forward and backward, and the selector's walk: no loop over the encoder's layers.
    assert sorted(loop["trips"] for loop, inner in zip(loops, within, strict=True) if not inner) == [2, 2, 8]


@needs_libtpu
@pytest.mark.slow
def test_what_does_not_fit_exits_with_1():
    done = run("--config=configs/arxiv.py", "--topology=v5e:1x1", "--stages=train", "--tokens=8388608", *TWO_LAYERS)
    assert done.returncode == 1
    assert "NO" in done.stdout and "of 15.75G memory" in done.stdout


needs_cuda = pytest.mark.skipif(
    not any(map(importlib.util.find_spec, topology.CUDA_PLUGINS)),
    reason="jax's plugin for CUDA is not installed: pip install 'jax_simcas[cuda13]'",
)


@needs_cuda
@pytest.mark.slow
@pytest.mark.parametrize(("attention", "squares"), [("xla", True), ("cudnn", False)])
def test_cudnns_attention_leaves_no_array_of_all_pairs_on_a_gpu(tmp_path, attention, squares):
    path = tmp_path / "check.json"
    flags = ("--config.simcas.dtype=bfloat16", f"--config.simcas.attention={attention}", f"--json={path}")
    done = run("--config=configs/arxiv.py", "--topology=h100:2", "--stages=train", "--tokens=2042", "--target=32",
               *TWO_LAYERS, *flags)  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "no estimate of time" in done.stderr and "excludes" not in done.stdout
    (train,) = json.loads(path.read_text())["stages"]
    assert train["fits"] and train["seconds"] is None and 0 < train["temporaries"] < train["memory"]
    assert any(collective["group"] == 2 for collective in train["collectives"])
    assert any("512,512]" in array["shape"] for array in train["largest"]) == squares
