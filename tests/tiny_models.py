"""A tiny checkpoint of each family, as transformers writes it: random weights, generation settings, a tokenizer."""

import pytest

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")
tokenizers = pytest.importorskip("tokenizers")

VOCABULARY = 300
BART = {
    "d_model": 32,
    "encoder_layers": 2,
    "decoder_layers": 2,
    "encoder_attention_heads": 4,
    "decoder_attention_heads": 2,
    "encoder_ffn_dim": 48,
    "decoder_ffn_dim": 40,
    "max_position_embeddings": 64,
    "init_std": 0.3,
}
BART_SHAPE = {name: value for name, value in BART.items() if name != "max_position_embeddings"}
T5 = {"d_model": 32, "d_kv": 12, "num_heads": 4, "d_ff": 48, "num_layers": 2, "num_decoder_layers": 3}
T5 |= {"decoder_start_token_id": 0}  # which transformers needs, and published files have
STACK = {
    "vocab_size": VOCABULARY,
    "hidden_size": 32,
    "intermediate_size": 40,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 12,
    "query_pre_attn_scalar": 10,
    "sliding_window": 16,
    "layer_types": ["sliding_attention", "full_attention"],
}
VISION = {"hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1, "num_attention_heads": 1}
VISION |= {"image_size": 16, "patch_size": 8}
IMAGE = {"eoi_token_index": 297, "boi_token_index": 298, "image_token_index": 299, "mm_tokens_per_image": 4}
# Settings of small models of transformers; a name is a model type where they have none.
TYPES = {
    "bart": BART,
    "mbart": BART | {"scale_embedding": True, "activation_function": "relu"},
    "pegasus": BART | {"scale_embedding": True, "activation_function": "relu"},
    "plbart": BART,
    "mvp": BART,
    "marian": BART | {"pad_token_id": VOCABULARY - 1, "decoder_start_token_id": VOCABULARY - 1, "eos_token_id": 0},
    "m2m_100": BART,
    "blenderbot": BART,
    "led": BART_SHAPE
    | {"attention_window": 128, "max_encoder_position_embeddings": 128, "max_decoder_position_embeddings": 64},
    "t5": T5,
    "flan-t5": T5 | {"model_type": "t5", "feed_forward_proj": "gated-gelu", "tie_word_embeddings": False},
    "mt5": T5 | {"feed_forward_proj": "gated-gelu", "tie_word_embeddings": False},
    "umt5": T5 | {"feed_forward_proj": "gated-gelu"},
    "t5gemma": {"encoder": STACK, "decoder": STACK},
    "t5gemma2": {
        "encoder": {"text_config": STACK, "vision_config": VISION, **IMAGE},
        "decoder": STACK,
        "image_token_index": IMAGE["image_token_index"],
    },
}
DEPTH = 12
DEEP_STACK = STACK | {"num_hidden_layers": DEPTH, "layer_types": ["sliding_attention", "full_attention"] * (DEPTH // 2)}
# As many layers as base models have: by name, the tenth comes before the second.
DEEP = {
    # Weights of 0.3 say the same at every place after twelve layers: beams of equal score, to the last digit.
    "deep bart": BART | {"model_type": "bart", "encoder_layers": DEPTH, "decoder_layers": DEPTH, "init_std": 0.1},
    "deep m2m_100": BART | {"model_type": "m2m_100", "encoder_layers": DEPTH, "decoder_layers": DEPTH},
    "deep t5": TYPES["flan-t5"] | {"num_layers": DEPTH, "num_decoder_layers": DEPTH},
    "deep umt5": TYPES["umt5"] | {"model_type": "umt5", "num_layers": DEPTH, "num_decoder_layers": DEPTH},
    "deep t5gemma": {"model_type": "t5gemma", "encoder": DEEP_STACK, "decoder": DEEP_STACK},
    "deep t5gemma2": TYPES["t5gemma2"]
    | {
        "model_type": "t5gemma2",
        "encoder": {"text_config": DEEP_STACK, "vision_config": VISION, **IMAGE},
        "decoder": DEEP_STACK,
    },
}


def save_tokenizer(folder, config):
    """Bytes as tokens, framed by the model's own special tokens: one before a text where it has a BOS, and EOS.

    T5Gemma's ends no text.
    """
    eos, pad, bos = (getattr(config, f"{name}_token_id", None) for name in ("eos", "pad", "bos"))
    names = {eos: "</s>", pad: "<pad>"} | ({} if bos is None or bos in (eos, pad) else {bos: "<s>"})
    free = [i for i in range(VOCABULARY) if i not in names]
    alphabet = sorted(tokenizers.pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {name: i for i, name in names.items()} | dict(zip(alphabet, free, strict=False))
    made = tokenizers.Tokenizer(tokenizers.models.BPE(vocabulary, []))
    made.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = tokenizers.decoders.ByteLevel()
    special = [(name, i) for i, name in names.items()]
    begin = "<s> " if "<s>" in vocabulary else ""
    end = "" if config.model_type.startswith("t5gemma") else " </s>"
    made.post_processor = tokenizers.processors.TemplateProcessing(single=f"{begin}$A{end}", special_tokens=special)
    tokens = {"eos_token": "</s>", "pad_token": "<pad>"} | ({"bos_token": "<s>"} if begin else {})
    transformers.PreTrainedTokenizerFast(tokenizer_object=made, **tokens).save_pretrained(folder)


def config_of(kind):
    """A small config of that type."""
    return transformers.AutoConfig.for_model(**{"model_type": kind, "vocab_size": VOCABULARY} | (TYPES | DEEP)[kind])


def save_config(kind, folder):
    """A folder with the config.json of a random model alone."""
    config_of(kind).save_pretrained(folder)
    return folder


def save_model(kind, folder):
    """A random model of that type with generation settings, and its tokenizer."""
    torch.manual_seed(0)
    config = config_of(kind)
    model = transformers.AutoModelForSeq2SeqLM.from_config(config)
    model.generation_config.update(max_length=20, min_length=6, num_beams=3, no_repeat_ngram_size=3, length_penalty=2.0)
    model.save_pretrained(folder)
    save_tokenizer(folder, config)
    return folder


class Folders(dict):
    """A model of each type, made when it is asked for."""

    def __init__(self, root):
        self.root = root

    def __missing__(self, kind):
        self[kind] = save_model(kind, self.root / kind)
        return self[kind]
