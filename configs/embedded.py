"""The embedded task: generated documents of 8 chunks, answers strewn over the last 7.

python -m jax_simcas.train --config=configs/embedded.py --workdir=runs/embedded
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
    config.data.embedded.fillers = 20
    config.data.embedded.topics = 1

    config.bart.d_model = 64
    config.bart.encoder_layers = config.bart.decoder_layers = 1
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

    config.optimizer.max_lr = 0.035  # 5e-3 at the end of the warmup
    config.optimizer.warmup = 50
    config.optimizer.accumulate_step = 1
    config.optimizer.label_smoothing = 0.0
    config.optimizer.selector_lr = 3e-4

    config.generate.num_beams = 2
    config.generate.max_length = 8
    config.loop.steps = 600
    config.loop.eval_every = config.loop.checkpoint_every = 100
    config.loop.eval_documents = 128
    return config
