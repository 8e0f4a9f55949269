"""Configs that config files start from: the published settings, and two small ones that two CPU cores can train."""

from typing import Any

from ml_collections.config_dict import ConfigDict

from jax_simcas.run.config import TARGET, default_config


def embedded_config() -> ConfigDict:
    """The synthetic task, and a model that learns it in two minutes on two CPU cores."""
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


def quickstart_config() -> ConfigDict:
    """The synthetic task in plain English; the selector keeps about as many states as a sentence or two has.

    The transformer first learns to answer from all states. A selector that learns beside it from the start shuts out
    states before the decoder can tell what they are good for.
    """
    config = embedded_config()
    config.data.embedded.wording = "english"
    config.data.embedded.words_per_chunk = 20
    # With few places, one of each kind is what the model answers where it sees no other, and need not be kept.
    config.data.embedded.values_per_slot = 12
    config.simcas.chunk_length = 22
    config.simcas.hyper_length = 16  # states: where more are kept, keeping one must earn more than the mean does
    config.loop.steps = 600
    config.loop.selector_start = 450
    config.loop.selector_every = 1
    return config


def small_config() -> ConfigDict:
    """A small model for real articles, from scratch."""
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
    config.simcas.capacity = 2_048  # candidates beyond it get no reward, which is what makes the selector choose

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


def reading_config() -> ConfigDict:
    """A small model that learns to repeat some sentences of a window of one chunk, in place of a pretrained one."""
    config = small_config()
    config.update_from_flattened_dict(without_selection(config))
    config.simcas.max_input_len = 254
    config.simcas.max_target_len = 160
    config.simcas.capacity = 256
    config.data.batch_size = 8
    config.data.chunk_buckets = (1,)
    config.data.target_buckets = (160,)
    config.optimizer.label_smoothing = 0.0
    config.generate.max_length = 160
    config.loop.steps = 4_000
    config.loop.eval_every = config.loop.checkpoint_every = 200
    return config


def finetune_config() -> ConfigDict:
    """Pretrained BART-base on documents of one's own: defaults with which a short run learns.

    The learning rate peaks at 1e-4, as in the published settings, but after a tenth of the run instead of 10,000 steps.
    What is None, and the buckets, are set when the run starts, from its rows.
    """
    config = default_config()
    config.pretrained = "facebook/bart-base"
    config.data.fit_buckets = True

    config.simcas.max_input_len = 8_160  # at most: 16 chunks of 510 tokens
    config.simcas.max_target_len = config.generate.max_length = TARGET
    config.simcas.capacity = 2_048
    config.simcas.dtype = "bfloat16"
    config.simcas.remat = "layer"

    config.optimizer.max_lr = None  # peak_lr counts
    config.optimizer.peak_lr = 1e-4
    config.optimizer.warmup = None
    config.optimizer.accumulate_step = 4
    config.optimizer.clip_norm = 1.0
    config.optimizer.selector_lr = 3e-4

    config.generate.num_beams = 4
    config.generate.no_repeat_ngram_size = 3
    config.loop.steps = None
    config.loop.selector_every = 2
    config.loop.log_every = config.loop.eval_every = config.loop.checkpoint_every = None
    return config


def published_config() -> ConfigDict:
    """What all published settings share: BART-base, chunks of 512 tokens, 16,384 tokens in.

    Source: docs/method.md, "Published settings". Deviation: the selector learns in every 50th step (WCEP's in every
    100th), also where that step is evaluated; inference is greedy (`--config.simcas.policy=sample` draws, as the
    released code does); products are in bfloat16 and layers are recomputed (`--config.simcas.dtype=float32
    --config.simcas.remat=none`).
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


def held_out(config: ConfigDict) -> str:
    """The split to evaluate experiments on: new documents where they are generated, else the validation split ("")."""
    return "test" if config.data.source == "embedded" else ""


def without_selection(config: ConfigDict) -> dict[str, Any]:
    """What to change for the decoder to see all states, in training and after it."""
    changes = {"simcas.policy": "all", "simcas.train_policy": "all", "loop.selector_every": 0}
    return changes if config.simcas.capacity is None else changes | {"simcas.capacity": 1 << 20}
