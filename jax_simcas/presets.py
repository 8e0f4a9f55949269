"""Configs that config files start from: the published settings, and a small model that two CPU cores can train."""

from ml_collections.config_dict import ConfigDict

from jax_simcas.settings import default_config


def small_config() -> ConfigDict:
    config = default_config()
    config.data.vocab_size = 8_192
    config.data.batch_size = 2

    config.bart.d_model = 128
    config.bart.encoder_layers = config.bart.decoder_layers = 2
    config.bart.encoder_attention_heads = config.bart.decoder_attention_heads = 4
    config.bart.encoder_ffn_dim = config.bart.decoder_ffn_dim = 512
    config.bart.max_position_embeddings = 512
    config.bart.dropout = 0.0
    config.bart.init_std = 0.06

    config.simcas.chunk_length = 256
    config.simcas.capacity = 2_048  # whoever finds no place earns nothing: this is what makes the selector choose

    config.optimizer.max_lr = 0.02  # 2e-3 at the end of the warmup
    config.optimizer.warmup = 100
    config.optimizer.accumulate_step = 1
    config.optimizer.clip_norm = 1.0
    config.optimizer.selector_lr = 3e-4

    config.generate.num_beams = 4
    config.generate.no_repeat_ngram_size = 3
    config.loop.selector_every = 2
    config.loop.eval_every = config.loop.checkpoint_every = 100
    config.loop.eval_documents = 40
    return config


def published_config() -> ConfigDict:
    """What all published settings share: BART-base, chunks of 512 tokens, 16,384 tokens in.

    Source: method.md "Published settings". Deviation: the selector learns in every 50th step, also where that step is
    evaluated; inference is greedy (`--config.simcas.policy=sample` draws, as the released code does); products are in
    bfloat16 and layers are recomputed (`--config.simcas.dtype=float32 --config.simcas.remat=none`).
    """
    config = default_config()
    config.pretrained = "facebook/bart-base"
    config.simcas.dtype = "bfloat16"
    config.simcas.remat = "layer"
    config.generate.num_beams = 4
    config.generate.no_repeat_ngram_size = 3
    config.generate.early_stopping = True
    config.loop.epochs = 100
    config.loop.selector_every = 50
    config.loop.eval_every = config.loop.checkpoint_every = 1_000
    return config
