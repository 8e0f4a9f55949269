"""What makes the selector find the evidence that people marked in meetings: rewards, rates, budgets, a longer training.

python -m jax_simcas.experiments configs/experiments/evidence.py --base=configs/qmsum.py --config.data.data_dir=DATA \
  --config.pretrained=runs/reading_t5 --config.optimizer.label_smoothing=0.0

The selector is rewarded for what the decoder attends to while it writes the reference, not for evidence, which it never
sees. Each variant changes one thing, the strict one two. All are of 300 steps with configs/qmsum.py; the last one
continues the first for as many. Times as likely: how much more often an evidence token is kept than another one, 1 by
chance. Run it from a checkout, where examples/ is. 7 variants, 3 seeds.

Other data: --base=configs/NAME.py --config.data.data_dir=DATA, a config that sets loop.steps, and rows that have the
field evidence; --limit=60 for the first 60 documents. Without --base it runs on the synthetic task.
"""

from jax_simcas.experiments.spec import Evaluation, Experiment, Variant
from jax_simcas.run.presets import embedded_config, held_out


def get_config():
    return embedded_config()


def get_experiment(config):
    simcas, steps = config.simcas, config.loop.steps
    fewer = max(2, (simcas.capacity or simcas.hyper_length) // 4)
    strict = {"simcas.hyper_length": max(1, simcas.hyper_length // 8), "loop.selector_start": (steps or 0) // 2}
    return Experiment(
        variants=(
            Variant("SimCAS"),
            Variant("reward by ROUGE", {"simcas.reward": "examples.reward_rouge:SUMMARIES"}),
            Variant("reward 32 times as large", {"simcas.reward_scale": 32 * simcas.reward_scale}),
            Variant("selector rate 10 times as large", {"optimizer.selector_lr": 10 * config.optimizer.selector_lr}),
            Variant("capacity a quarter", {"simcas.capacity": fewer}),
            Variant("strict from half-way on", strict),
            Variant("twice as long", start="SimCAS"),
        ),
        evaluations=(Evaluation(split=held_out(config)),),
        measures=(
            *("nll", "kept %", "evidence recall %", "others kept %", "times as likely"),
            *("evidence precision %", "evidence attended %"),
        ),
    )
