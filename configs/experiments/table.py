"""A task that needs alignment by construction: what matters in a chunk depends on another chunk.

python -m jax_simcas.experiments configs/experiments/table.py

Every chunk but the first holds a row of a table; the first one asks for a column, and the answer is that column of all
eight rows. The decoder sees g and two more states, which hold two rows at most. g is the mean of a state of every
chunk: it has room for one column, not for the whole table. Only if a chunk knows which column is asked for can it put
the right word into its part of g, and it knows that from alignment alone. The last variant has no alignment, but a
decoder that sees all states. 4 variants, 3 seeds, two hours on one CPU core.

Other data: --base=configs/qmsum.py --config.data.data_dir=DATA (or sumpubmed.py, or a published config), --limit=60
for the first 60 documents.
"""

from jax_simcas.experiments.spec import Evaluation, Experiment, Variant
from jax_simcas.run.presets import embedded_config, held_out, without_selection


def get_config():
    config = embedded_config()
    rows, columns = 8, 6
    config.data.embedded.wording = "table"
    config.data.embedded.slots = rows
    config.data.embedded.chunks = rows + 1
    config.data.embedded.topics = config.data.embedded.words_per_chunk = columns
    config.data.embedded.values_per_slot = 8
    config.data.chunk_buckets = (rows + 1,)
    config.data.target_buckets = (rows + 3,)
    config.simcas.max_target_len = config.generate.max_length = rows + 3
    config.simcas.chunk_length = columns + 2
    config.simcas.capacity = 3  # g and two of 63 states
    config.bart.d_model = 128
    config.bart.encoder_layers = 3
    config.bart.encoder_ffn_dim = config.bart.decoder_ffn_dim = 256
    config.optimizer.warmup = 200
    config.optimizer.max_lr = 0.021  # 1.5e-3 at the end of the warmup
    config.loop.steps = 2_500
    config.loop.eval_every = config.loop.checkpoint_every = 500
    return config


def get_experiment(config):
    return Experiment(
        variants=(
            *(Variant(mode, {"simcas.align": mode}) for mode in ("mean", "shift", "none")),
            Variant("none and all states", {"simcas.align": "none", **without_selection(config)}),
        ),
        evaluations=(Evaluation(split=held_out(config)),),
    )
