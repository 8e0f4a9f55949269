"""Modules by their names before they moved: files and code that import them keep working, with a warning."""

from __future__ import annotations

import importlib
import importlib.abc
import importlib.util
import sys
import warnings
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any

# Old name -> new name, within jax_simcas.
MOVED = {
    **{name: f"method.{name}" for name in ("align", "chunk", "model", "ppo", "reward", "select")},
    **{name: f"common.{name}" for name in ("errors", "plots", "sharding")},
    **{name: f"evaluation.{name}" for name in ("bertscore", "metrics")},
    **{name: f"compile_check.{name}" for name in ("flops", "hlo", "topology")},
    **{name: f"run.{name}" for name in ("presets", "workdir")},
    "bart": "backbones.bart",
    **{f"bart.{name}": f"backbones.bart.{name}" for name in ("config", "decoder", "encoder", "layers")},
    "bart.product": "backbones.ops.matmul",
    "benchmark.peer": "benchmark.torch_peer",
    "benchmark.peer_ppo": "benchmark.torch_peer_ppo",
    "benchmark.peer_stages": "benchmark.torch_peer_stages",
    "checkpoint": "checkpoints.run_state",
    "data.catalogue": "data.formats",
    "data.embedded": "data.synthetic",
    "data.pipeline": "data.batches",
    "data.sources": "data.rows",
    "evaluation.side_by_side": "run.compare_runs",
    "generate": "method.beam_search",
    "grid": "experiments.spec",
    "inference": "evaluation.predict",
    "job": "run.processes",
    "paired": "evaluation.paired_bootstrap",
    "peers": "run.failures",
    "pretrained": "checkpoints.hub",
    "program": "common.cli",
    "report": "common.metric_log",
    "settings": "run.config",
    "update": "method.steps",
}
PACKAGE = "jax_simcas."


class Moved(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    """Finds an old name, and gives the module of the new one in its place."""

    def find_spec(self, fullname: str, path: Any = None, target: Any = None) -> ModuleSpec | None:
        old = fullname.startswith(PACKAGE) and fullname.removeprefix(PACKAGE) in MOVED
        return importlib.util.spec_from_loader(fullname, self) if old else None

    def create_module(self, spec: ModuleSpec) -> ModuleType:
        new = PACKAGE + MOVED[spec.name.removeprefix(PACKAGE)]
        warnings.warn(f"{spec.name} has moved: import {new}", DeprecationWarning, stacklevel=2)
        module = importlib.import_module(new)
        self._own_spec = module.__spec__  # the import system is about to put the old name's in its place
        return module

    def exec_module(self, module: ModuleType) -> None:
        module.__spec__ = self._own_spec


def register() -> None:
    """Lets old names be imported from now on."""
    if not any(isinstance(finder, Moved) for finder in sys.meta_path):
        sys.meta_path.insert(0, Moved())
