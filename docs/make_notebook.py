"""Runs examples/quickstart.ipynb from its first cell to its last, and writes it with its outputs.

  python docs/make_notebook.py                            # in place, after its cells were changed
  python docs/make_notebook.py short.ipynb --steps=4      # elsewhere, with a short training

Needs `pip install -e '.[notebook]'`. It runs in a copy of examples/, so that a training before does not count.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import re
import shutil
import tempfile
from pathlib import Path

import nbformat
from nbclient import NotebookClient

ROOT = Path(__file__).resolve().parent.parent
NOTEBOOK = ROOT / "examples" / "quickstart.ipynb"
STEPS = re.compile(r"^STEPS = \d+$", re.MULTILINE)
SECONDS = 600  # that one cell may take


def sources_hash(sources: list[str]) -> str:
    """Of the sources of all cells; the notebook's metadata keep that of the sources that were run."""
    return hashlib.sha256("\0".join(sources).encode()).hexdigest()


def shorten(notebook: nbformat.NotebookNode, steps: int) -> None:
    """Replaces the number of steps to train."""
    for cell in notebook.cells:
        cell.source = STEPS.sub(f"STEPS = {steps}", cell.source)


def run(notebook: nbformat.NotebookNode) -> None:
    """Replaces the outputs of all cells.

    Raises:
      nbclient.exceptions.CellExecutionError: an error in a cell.
    """
    os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, (str(ROOT), os.environ.get("PYTHONPATH"))))
    with tempfile.TemporaryDirectory() as folder:
        shutil.copytree(ROOT / "examples", Path(folder) / "examples")
        NotebookClient(
            notebook,
            timeout=SECONDS,
            kernel_name="python3",
            coalesce_streams=True,
            record_timing=False,
            resources={"metadata": {"path": f"{folder}/examples"}},
        ).execute()
    notebook.metadata = {
        "kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"},
        "language_info": {"name": "python"},
        "jax_simcas": {"sources": sources_hash([cell.source for cell in notebook.cells])},
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("target", nargs="?", type=Path, default=NOTEBOOK, help="default: the notebook itself")
    parser.add_argument("--steps", type=int, help="of training, in place of the notebook's own number")
    arguments = parser.parse_args()
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    if arguments.steps is not None:
        shorten(notebook, arguments.steps)
    run(notebook)
    nbformat.write(notebook, arguments.target)
    print(f"{arguments.target}: {arguments.target.stat().st_size / 1000:.0f} kB")


if __name__ == "__main__":
    main()
