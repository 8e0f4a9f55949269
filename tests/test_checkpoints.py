"""Checkpoints as people have them: a document of one chunk gives what transformers gives from the same folder."""

import json

import pytest

import jax_simcas

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers  # noqa: E402

TEXT = "The committee met on Tuesday. The chair asked for reports, and the members agreed to repair the roof first."
TEXTS = (TEXT, "Rents rise.", f"{TEXT} {TEXT} It was late.")
SIZES = {
    "d_model": 16,
    "encoder_layers": 1,
    "decoder_layers": 1,
    "encoder_attention_heads": 2,
    "decoder_attention_heads": 2,
    "encoder_ffn_dim": 32,
    "decoder_ffn_dim": 32,
    "max_position_embeddings": 260,
    "init_std": 0.7,
}
SHORT = {"max_length": 14, "num_beams": 2, "no_repeat_ngram_size": 2}


@pytest.fixture(autouse=True)
def _cache(cache):
    """Compiled programs are kept."""


def byte_level(folder, vocabulary=330):
    """BART's kind of vocabulary: `<mask>` is the last token."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    specials = ["<s>", "<pad>", "</s>", "<unk>"]
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary, special_tokens=specials, show_progress=False, initial_alphabet=sorted(alphabet)
    )
    tokenizer.train_from_iterator([TEXT] * 3, trainer)
    state = json.loads(tokenizer.to_str())["model"]
    vocab = {**state["vocab"], "<mask>": len(state["vocab"])}
    made = transformers.RobertaTokenizer(vocab=vocab, merges=[tuple(merge) for merge in state["merges"]])
    made.save_pretrained(folder)
    return made


def save_model(folder, kind, vocabulary, seed=0, generation=None, **changes):
    """A model of `kind` with random weights; `generation` are settings of generation_config.json."""
    torch.manual_seed(seed)
    config = getattr(transformers, f"{kind}Config")(vocab_size=vocabulary, **(SIZES | changes))
    model = getattr(transformers, f"{kind}ForConditionalGeneration")(config).eval()
    for name, value in (SHORT if generation is None else generation).items():
        setattr(model.generation_config, name, value)
    model.save_pretrained(folder)
    return model


def rewritten(path, change):
    """The JSON file with `change` made to its content."""
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content))


def unigram_pieces():
    tokenizer = Tokenizer(models.Unigram())
    tokenizer.pre_tokenizer, tokenizer.decoder = pre_tokenizers.Metaspace(), decoders.Metaspace()
    specials = ["<s>", "<pad>", "</s>", "<unk>"]
    trainer = trainers.UnigramTrainer(vocab_size=90, special_tokens=specials, unk_token="<unk>", show_progress=False)
    tokenizer.train_from_iterator([TEXT] * 3, trainer)
    return [(piece, score) for piece, score in json.loads(tokenizer.to_str())["model"]["vocab"]]


def languages(folder, name, src_lang, tgt_lang=None):
    """The tokenizer of mBART-25 or mBART-50 with its language codes."""
    module = {"MBart": "mbart.tokenization_mbart", "MBart50": "mbart50.tokenization_mbart50"}[name]
    codes = __import__(f"transformers.models.{module}", fromlist=["x"]).FAIRSEQ_LANGUAGE_CODES
    vocab = [*unigram_pieces(), *((code, 0.0) for code in codes), ("<mask>", 0.0)]
    tokenizer = getattr(transformers, f"{name}Tokenizer")(vocab=vocab, src_lang=src_lang, tgt_lang=tgt_lang)
    tokenizer.save_pretrained(folder)
    return tokenizer


def plain(folder, **generation):
    tokenizer = byte_level(folder)
    save_model(folder, "Bart", len(tokenizer), generation=SHORT | generation)


def without_a_row_for_mask(folder):
    tokenizer = byte_level(folder)
    save_model(folder, "Bart", len(tokenizer) - 1, generation={"max_length": 12, "forced_bos_token_id": 0})


def settings_of_transformers_4(folder):
    plain(folder)
    (folder / "generation_config.json").unlink()
    settings = {"num_beams": 3, "max_length": 18, "min_length": 12, "length_penalty": 0.5, "early_stopping": True}
    rewritten(folder / "config.json", lambda config: config.update(settings | {"no_repeat_ngram_size": 3}))


def no_settings(folder):
    plain(folder)
    (folder / "generation_config.json").unlink()
    rewritten(folder / "config.json", lambda config: config.pop("decoder_start_token_id"))


def more_settings(folder):
    plain(
        folder,
        max_new_tokens=15,
        min_new_tokens=5,
        repetition_penalty=1.7,
        encoder_no_repeat_ngram_size=2,
        bad_words_ids=[[300], [7, 8], [2]],
        suppress_tokens=[270, 271],
        begin_suppress_tokens=[280],
        exponential_decay_length_penalty=(6, 1.2),
        renormalize_logits=True,
    )


def penalised_without_beams(folder):
    plain(folder, num_beams=1, repetition_penalty=1.9, no_repeat_ngram_size=0)


def several_ends(folder):
    plain(folder, eos_token_id=[2, *range(260, 300)], forced_eos_token_id=None)


def mbart_25(folder):
    tokenizer = languages(folder, "MBart", "en_XX", "ro_RO")
    start = tokenizer.convert_tokens_to_ids("ro_RO")
    save_model(folder, "MBart", len(tokenizer), generation=SHORT | {"decoder_start_token_id": start})


def mbart_50(folder):
    tokenizer = languages(folder, "MBart50", "de_DE", "fr_XX")
    forced = {"decoder_start_token_id": 2, "forced_bos_token_id": tokenizer.convert_tokens_to_ids("fr_XX")}
    save_model(folder, "MBart", len(tokenizer), generation=SHORT | forced)


def plbart(folder):
    """PLBart's `... </s> __java__`, in a tokenizer without languages of its own."""
    tokenizer = Tokenizer(models.Unigram([*unigram_pieces(), ("__java__", 0.0), ("__en_XX__", 0.0)], unk_id=3))
    tokenizer.pre_tokenizer, tokenizer.decoder = pre_tokenizers.Metaspace(), decoders.Metaspace()
    size = tokenizer.get_vocab_size()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="$A </s> __java__", special_tokens=[("</s>", 2), ("__java__", size - 2)]
    )
    names = {"bos_token": "<s>", "eos_token": "</s>", "pad_token": "<pad>", "unk_token": "<unk>"}
    transformers.PreTrainedTokenizerFast(tokenizer_object=tokenizer, **names).save_pretrained(folder)
    save_model(folder, "PLBart", size, generation=SHORT | {"decoder_start_token_id": size - 1})


def bert_vocabulary(folder):
    words = sorted(set(TEXT.lower().replace(".", " .").replace(",", " ,").split()))
    vocabulary = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *words]
    (folder / "vocab.txt").write_text("\n".join(vocabulary) + "\n")
    (folder / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": "BertTokenizer"}))
    tokens = {"pad_token_id": 0, "bos_token_id": 2, "eos_token_id": 3, "decoder_start_token_id": 3}
    save_model(folder, "Bart", len(vocabulary), **tokens, forced_eos_token_id=3)


def added_tokens(folder):
    tokenizer = byte_level(folder)
    tokenizer.add_tokens(["committee", "<topic>"])
    tokenizer.save_pretrained(folder)
    model = save_model(folder, "Bart", len(tokenizer) - 2)
    model.resize_token_embeddings(len(tokenizer), pad_to_multiple_of=64)
    model.save_pretrained(folder)


def norms_that_transformers_does_not_read(folder):
    plain(folder)
    changes = {"normalize_before": True, "add_final_layer_norm": True, "normalize_embedding": True}
    rewritten(folder / "config.json", lambda config: config.update(changes))


FAST = (without_a_row_for_mask, settings_of_transformers_4, no_settings, more_settings, mbart_25, mbart_50)
SLOW = (
    *(plain, penalised_without_beams, several_ends, plbart, bert_vocabulary, added_tokens),
    norms_that_transformers_does_not_read,
)


def of_transformers(folder, text):
    """What transformers generates, with the folder's own settings."""
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    model = transformers.AutoModelForSeq2SeqLM.from_pretrained(folder).eval()
    batch = tokenizer(text, return_tensors="pt")
    out = model.generate(input_ids=batch.input_ids, attention_mask=batch.attention_mask)[0]
    return tokenizer.decode(out, skip_special_tokens=True).strip()


@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize(
    "make", [*FAST, *(pytest.param(make, marks=pytest.mark.slow) for make in SLOW)], ids=lambda make: make.__name__
)
def test_a_document_of_one_chunk_gives_what_transformers_gives(make, tmp_path):
    make(tmp_path)
    model = jax_simcas.load(tmp_path)
    for text in TEXTS:
        assert model.summarize(text).summary == of_transformers(tmp_path, text)
