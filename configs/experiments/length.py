"""Length generalisation: trained on documents of at most 4,096 tokens, tested on up to 65,536.

python -m jax_simcas.experiments configs/experiments/length.py

The paper reads up to 350,000 tokens and shows time, not whether what was learned on short documents holds on longer
ones. By default on the embedded task with 32 chunks of 128 tokens, tested on up to 512 chunks, where each document
holds as few facts as before. 2 variants, 3 seeds: an estimated two hours on two CPU cores (a step of 32,768 tokens took
1.5 s beside other work). Whether 800 steps suffice is not known: 75 did not.

Other data: --base=configs/govreport.py --config.data.data_dir=DATA, or others with documents that long: they are cut to
each length.
"""

from jax_simcas.grid import Evaluation, Experiment, Variant
from jax_simcas.presets import embedded_config, held_out


def get_config():
    config = embedded_config()
    config.simcas.chunk_length = config.bart.max_position_embeddings = 128
    config.data.embedded.words_per_chunk = 126
    config.data.embedded.chunks = 32
    config.data.chunk_buckets = (32,)
    config.data.batch_size = 8
    return config


def get_experiment(config):
    def evaluation(tokens):
        overrides = {"simcas.max_input_len": tokens, "data.batch_size": 1}
        if config.data.source == "embedded":
            overrides["data.embedded.chunks"] = tokens // config.simcas.chunk_length
        return Evaluation(f"{tokens} tokens", split=held_out(config), limit=100, overrides=overrides, x=tokens)

    trained = {"simcas.max_input_len": 4_096}
    return Experiment(
        variants=(Variant("SimCAS", trained), Variant("without align", trained | {"simcas.align": "none"})),
        evaluations=tuple(evaluation(4_096 << doubled) for doubled in range(5)),
        axis="tokens of a document",
    )
