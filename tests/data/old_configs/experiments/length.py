"""Length generalisation: trained on documents of at most 4,096 tokens, tested on up to 65,536.

python -m jax_simcas.experiments configs/experiments/length.py

The paper reads up to 350,000 tokens and shows time, not whether what was learned on short documents holds on longer
ones. By default on the embedded task, with three facts in each document however long it is. From scratch nothing is
learned of 4,096 tokens in the time of a few minutes: so the first variant learns on 128 tokens, and the others go on
from it with 4,096: with a reward that grows with the candidates that share it, and with the same one. 3 variants, 3
seeds: an hour and a half on one CPU core (one seed with --limit=50 took 20 minutes).

Other data: --base=configs/govreport.py --config.data.data_dir=DATA, or others with documents that long: they are cut to
each length.
"""

from jax_simcas.grid import Evaluation, Experiment, Variant
from jax_simcas.presets import embedded_config, held_out


def get_config():
    return embedded_config()


def get_experiment(config):
    def evaluation(tokens):
        overrides = {"simcas.max_input_len": tokens, "data.batch_size": 1}
        if config.data.source == "embedded":
            overrides["data.embedded.chunks"] = tokens // config.simcas.chunk_length
        return Evaluation(f"{tokens} tokens", split=held_out(config), limit=100, overrides=overrides, x=tokens)

    trained = {"simcas.max_input_len": 4_096}
    variants = (Variant("SimCAS", trained), Variant("without align", trained | {"simcas.align": "none"}))
    if config.data.source == "embedded":
        longer = trained | {
            "data.embedded.chunks": 256,
            "data.chunk_buckets": (256,),
            "data.batch_size": 8,
            "loop.steps": 100,
            "loop.eval_documents": 32,
        }
        # A document's reward is shared by 32 times as many candidates.
        larger = {"simcas.reward_scale": 32 * config.simcas.reward_scale}
        short = "trained at 128"
        variants = (
            Variant(short),
            Variant("then at 4096", longer | larger, start=short),
            Variant("then at 4096 (same reward)", longer, start=short),
        )
    return Experiment(
        variants=variants,
        evaluations=tuple(evaluation(4_096 << doubled) for doubled in range(5)),
        axis="tokens of a document",
    )
