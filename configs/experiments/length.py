"""Length generalisation: trained on documents of at most 4,096 tokens, tested on up to 65,536.

python -m jax_simcas.experiments configs/experiments/length.py

The paper reads up to 350,000 tokens and reports time, not whether what is learned on short documents carries over to
longer ones. By default on the synthetic task, with three facts per document of any length. Training from scratch on
4,096 tokens learns nothing within minutes: so the first variant trains on 128 tokens, and the others continue from it
with 4,096, one with a reward scaled by the number of candidates that share it, one with the same reward. 3 variants, 3
seeds, an hour and a half on one CPU core (one seed with --limit=50 took 20 minutes).

Other data: --base=configs/govreport.py --config.data.data_dir=DATA, or others with documents of that length, which are
cut to each length.
"""

from jax_simcas.experiments.spec import Evaluation, Experiment, Variant
from jax_simcas.run.presets import embedded_config, held_out


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
        # 32 times as many candidates share the reward of a document.
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
