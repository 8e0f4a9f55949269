"""The embedded task: generated documents of 8 chunks; the first asks, three facts lie strewn over the others.

python -m jax_simcas.train --config=configs/embedded.py --workdir=runs/embedded

About two minutes on two CPU cores; exact match on new documents near 100 %. With
--config.data.embedded.topics=2 every second fact is a distractor; it takes about twice as many steps.
"""

from jax_simcas.settings import default_config


def get_config():
    config = default_config()
    config.data.source = "embedded"
    config.data.task = "answers"
    config.data.batch_size = 32
    config.data.chunk_buckets = (1, 8)
    config.data.target_buckets = (8,)
    config.data.embedded.words_per_chunk = 14
    config.data.embedded.topics = 1
    config.data.embedded.slots = 3
    config.data.embedded.values_per_slot = 4
    config.data.embedded.fillers = 10

    config.bart.d_model = 64
    config.bart.encoder_layers = 2
    config.bart.decoder_layers = 1
    config.bart.encoder_attention_heads = config.bart.decoder_attention_heads = 4
    config.bart.encoder_ffn_dim = config.bart.decoder_ffn_dim = 128
    config.bart.max_position_embeddings = 64
    config.bart.dropout = 0.0
    config.bart.init_std = 0.125  # 1 / sqrt(d_model): small models need it to attend to anything at first

    config.simcas.chunk_length = 16
    config.simcas.max_target_len = 8
    config.simcas.empty_chunk = "none"
    config.simcas.reward_scale = 100.0  # documents have 120 candidates, not 16,000
    config.simcas.hyper_length = 64

    config.optimizer.max_lr = 0.021  # 3e-3 at the end of the warmup
    config.optimizer.warmup = 50
    config.optimizer.accumulate_step = 1
    config.optimizer.label_smoothing = 0.0
    config.optimizer.selector_lr = 3e-4

    config.generate.num_beams = 2
    config.generate.max_length = 8
    config.loop.steps = 800
    config.loop.selector_every = 2
    config.loop.eval_every = config.loop.checkpoint_every = 100
    config.loop.eval_documents = 128
    return config
