"""A T5 of the size of configs/reading.py's BART that learns to read in the same way, from scratch.

python launch/tokenizer_without_begin.py DATA/reading --to DATA/reading/tokenizer_t5
python -m jax_simcas.train --config=configs/reading_t5.py --workdir=runs/reading_t5 \
  --config.data.data_dir=DATA/reading --config.data.tokenizer=DATA/reading/tokenizer_t5

DATA/reading as for configs/reading.py. By Adafactor, as T5s are: their embeddings are of size 1, and Adam, whose steps
are as large for all parameters, moves them slowly: to a training loss of 5.57 it took 1,400 steps in place of 500.
Run it from a checkout, where examples/ is.
"""

from jax_simcas.run.presets import reading_config


def get_config():
    config = reading_config()
    config.backbone = "t5"
    config.t5.d_model = 128
    config.t5.d_kv = 32
    config.t5.num_heads = 4
    config.t5.d_ff = 341  # a gated layer has three matrices: 3 x 341 is about 2 x 512
    config.t5.num_layers = config.t5.num_decoder_layers = 2
    config.t5.dropout_rate = 0.0
    config.t5.tie_word_embeddings = config.t5.scale_decoder_outputs = True
    config.optimizer.algorithm = "examples.optimizer_adafactor:adafactor"
    config.optimizer.max_lr = 0.4  # 0.02 of a parameter's size at the end of the warmup
    config.optimizer.warmup = 400
    return config
