"""Chunks of different lengths, for documents of the same length.

python -m jax_simcas.experiments configs/experiments/chunk_length.py

Longer chunks let more tokens attend to each other and take more time; the paper uses 512 tokens. Half,
once, twice and four times the base config's chunk length, as far as the model's positions reach. By default on the
synthetic task: 8 to 64 tokens, 4 variants, 3 seeds, 48 minutes on one CPU core (one seed took 16).

Other data: --base=configs/qmsum.py --config.data.data_dir=DATA (or sumpubmed.py, or a published config), --limit=60
for the first 60 documents.
"""

from jax_simcas.experiments.spec import Evaluation, Experiment, Variant
from jax_simcas.run.presets import embedded_config, held_out


def get_config():
    return embedded_config()


def get_experiment(config):
    def variant(length):
        # Every bucket keeps its number of tokens.
        before = config.data.chunk_buckets
        buckets = tuple(-(-chunks * (config.simcas.chunk_length - 2) // (length - 2)) for chunks in before)
        overrides = {"simcas.chunk_length": length, "data.chunk_buckets": buckets}
        return Variant(f"{length} tokens", overrides, line="SimCAS", x=length)

    lengths = [config.simcas.chunk_length * quarters // 2 for quarters in (1, 2, 4, 8)]
    return Experiment(
        variants=tuple(variant(length) for length in lengths if length <= config.bart.max_position_embeddings),
        evaluations=(Evaluation(split=held_out(config)),),
        axis="tokens of a chunk",
    )
