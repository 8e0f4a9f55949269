"""Eight virtual CPU devices, and shape annotations that are checked while tests run.

JAX_PLATFORMS=cuda,cpu runs the tests of the method on a GPU instead (launch/gpu_check.sh does).
"""

import atexit
import os
import shutil
import tempfile

import jaxlib.version

os.environ.setdefault("JAX_PLATFORMS", "cpu")
# XLA's threads, by default one a core. Virtual devices wait for each other in a collective with a thread each: where
# another task holds one of so few, the last device never comes, and the program aborts.
os.environ.setdefault("NPROC", "16")
# Most of the time goes to compiling, which takes half of it with few optimisations, and half of that without the newer
# emitters of fusions and in one piece, here and in the programs that tests start. Those that must compile as for users
# have `helpers.fully_optimised`. Lowering is faster without places in the source.
if os.environ["JAX_PLATFORMS"] == "cpu":
    os.environ.setdefault("JAX_DISABLE_MOST_OPTIMIZATIONS", "1")
    os.environ.setdefault("JAX_TRACEBACK_IN_LOCATIONS_LIMIT", "0")
    flags = ["--xla_cpu_parallel_codegen_split_count=1"]
    if jaxlib.version.__version_info__ < (0, 11):  # later ones lack the flag, and abort
        flags += ["--xla_cpu_use_fusion_emitters=false"]
    os.environ.setdefault("XLA_FLAGS", " ".join(flags))

# What one test has compiled is there for all of the session and for the programs that they start.
if "JAX_COMPILATION_CACHE_DIR" not in os.environ:
    os.environ["JAX_COMPILATION_CACHE_DIR"] = tempfile.mkdtemp(prefix="compiled-")
    atexit.register(shutil.rmtree, os.environ["JAX_COMPILATION_CACHE_DIR"], ignore_errors=True)
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0")

import gc
from pathlib import Path
from types import SimpleNamespace

import hypothesis
import jax
import pytest
from jaxtyping import install_import_hook
from launching import place as place

jax.config.update("jax_num_cpu_devices", 8)
# Tracing makes objects by the million that live on: looking for garbage among them takes a sixth of the time.
gc.freeze()
gc.set_threshold(200_000, 20, 100)
install_import_hook("jax_simcas", "shapes.checked")

# The same examples in every run of CI; other runs go on looking for new ones.
# How long one takes says how busy the machine is.
hypothesis.settings.register_profile("ours", deadline=None)
hypothesis.settings.register_profile("ci", deadline=None, derandomize=True)
hypothesis.settings.load_profile("ci" if os.environ.get("CI") else "ours")

pytest_plugins = ["trained"]


@pytest.fixture(autouse=True)
def no_curves(monkeypatch):
    """Drawing takes as long as the steps of a tiny training. Those that a fixture trains have curves."""
    monkeypatch.setattr("jax_simcas.run.loop.plots", SimpleNamespace(plot_training=lambda *_: None))


compiled_steps = {}


@pytest.fixture(scope="session", autouse=True)
def shared_steps():
    """Trainings of a process that take the same steps trace and compile them once."""
    from jax_simcas.run import loop  # under the hook

    with pytest.MonkeyPatch.context() as patch:
        compile_steps = loop.compile_steps

        def compiled_once(run, shardings):
            update = run.settings.optimizer
            length = None if update.schedule == "inverse_sqrt" else run.steps
            functions = (loop.transformer_step, loop.selector_step, loop.batch_loss)  # tests may replace them
            key = (run.settings.model(), update, length, run.job.mesh, functions, *jax.tree.leaves(shardings))
            if key not in compiled_steps:
                compiled_steps[key] = compile_steps(run, shardings)
            return compiled_steps[key]

        patch.setattr(loop, "compile_steps", compiled_once)
        yield


def forget_programs():
    """A compiled program holds some ten memory maps, of which a process may have 65,530: beyond, it crashes."""
    maps = Path("/proc/self/maps")
    if not maps.exists() or maps.read_bytes().count(b"\n") > 20_000:
        compiled_steps.clear()
        jax.clear_caches()
        gc.collect()


@pytest.fixture(scope="module", autouse=True)
def forgotten_after_a_module():
    yield
    forget_programs()


@pytest.fixture(autouse=True)
def forgotten_after_a_slow_test(request):
    yield
    if request.node.get_closest_marker("slow"):
        forget_programs()
