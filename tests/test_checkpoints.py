"""Checkpoints as people have them: a document of one chunk gives what transformers gives from the same folder."""

import dataclasses
import json
import shutil
import warnings

import jax
import numpy as np
import pytest
from helpers import one_line_error
from trained import jsonl_settings, write_split

import jax_simcas
from jax_simcas import convert, summarize
from jax_simcas.data.features import featurize
from jax_simcas.data.rows import Row
from jax_simcas.data.tokenizer import frame_of, load_tokenizer
from jax_simcas.method.generate_config import GenerateConfig
from jax_simcas.run import build
from jax_simcas.run.loop import train

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers  # noqa: E402

TEXT = "The committee met on Tuesday. The chair asked for reports, and the members agreed to repair the roof first."
TEXTS = (
    TEXT,
    "The roof </s> leaks, the <pad> chair said on Tuesday; rents rise. It was late, and the members met first.",
)
SIZES = {
    "d_model": 16,
    "encoder_layers": 1,
    "decoder_layers": 1,
    "encoder_attention_heads": 2,
    "decoder_attention_heads": 2,
    "encoder_ffn_dim": 32,
    "decoder_ffn_dim": 32,
    "max_position_embeddings": 130,
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
    model = getattr(transformers, "MarianMTModel" if kind == "Marian" else f"{kind}ForConditionalGeneration")(config)
    model.eval()
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


def first_name_of_a_forced_bos(folder):
    """As facebook/bart-large-cnn had it at first."""
    settings_of_transformers_4(folder)
    forced = {"force_bos_token_to_be_generated": True, "forced_bos_token_id": 300}
    rewritten(folder / "config.json", lambda config: config.update(forced))


def first_name_that_is_not_obeyed(folder):
    plain(folder)
    changes = {"force_bos_token_to_be_generated": True, "_from_model_config": False}
    rewritten(folder / "generation_config.json", lambda settings: settings.update(changes))


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


def ended_without_beams(folder):
    plain(folder, num_beams=1, exponential_decay_length_penalty=(1, 1.5), no_repeat_ngram_size=0, min_length=0)


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


def no_frame(folder):
    """A tokenizer that puts nothing around a text, as transformers 5 makes Blenderbot's of its two files."""
    tokenizer = byte_level(folder)
    tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing(single="$A", pair="$A $B")
    names = {f"{name}_token": getattr(tokenizer, f"{name}_token") for name in ("bos", "eos", "pad", "unk")}
    transformers.PreTrainedTokenizerFast(tokenizer_object=tokenizer.backend_tokenizer, **names).save_pretrained(folder)
    save_model(folder, "Bart", len(tokenizer))


def norms_that_transformers_does_not_read(folder):
    plain(folder)
    changes = {"normalize_before": True, "add_final_layer_norm": True, "normalize_embedding": True}
    rewritten(folder / "config.json", lambda config: config.update(changes))


FAST = (without_a_row_for_mask, settings_of_transformers_4, no_settings, more_settings, mbart_25, mbart_50, no_frame)
SLOW = (
    *(
        first_name_of_a_forced_bos,
        first_name_that_is_not_obeyed,
        plain,
        penalised_without_beams,
        ended_without_beams,
        several_ends,
        plbart,
        bert_vocabulary,
        added_tokens,
    ),
    norms_that_transformers_does_not_read,
)


def generated(model, batch, **options):
    """The ids that transformers generates; it warns of its own deprecations."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return model.generate(input_ids=batch.input_ids, attention_mask=batch.attention_mask, **options)[0]


def of_transformers(folder, text):
    """What transformers generates, with the folder's own settings."""
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    model = transformers.AutoModelForSeq2SeqLM.from_pretrained(folder).eval()
    batch = tokenizer(text, return_tensors="pt")
    out = generated(model, batch)
    return tokenizer.decode(out, skip_special_tokens=True).strip()


@pytest.mark.parametrize(
    "make", [*FAST, *(pytest.param(make, marks=pytest.mark.slow) for make in SLOW)], ids=lambda make: make.__name__
)
def test_a_document_of_one_chunk_gives_what_transformers_gives(make, tmp_path):
    make(tmp_path)
    model = jax_simcas.load(tmp_path)
    for text in TEXTS:
        assert model.summarize(text).summary == of_transformers(tmp_path, text)


def test_a_token_without_a_row_is_refused_where_it_occurs(tmp_path, capsys):
    without_a_row_for_mask(tmp_path)
    (tmp_path / "text.txt").write_text("The committee <mask> on Tuesday.")
    assert summarize.main([f"--model={tmp_path}", str(tmp_path / "text.txt")]) == 1
    error = one_line_error(capsys.readouterr().err)
    assert "the document has the token '<mask>' (id 323), which the weights (323 tokens) have not" in error


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"num_beams": "four"}, "num_beams='four'"),
        ({"max_new_tokens": 0}, "max_length=1"),
        ({"length_penalty": "x"}, "x"),
    ],
)
def test_settings_that_mean_nothing_are_one_line(settings, message, tmp_path, capsys):
    plain(tmp_path)
    rewritten(tmp_path / "generation_config.json", lambda held: held.update(settings))
    (tmp_path / "text.txt").write_text(TEXT)
    assert summarize.main([f"--model={tmp_path}", str(tmp_path / "text.txt")]) == 1
    line = one_line_error(capsys.readouterr().err)
    assert "generation_config.json" in line and message in line


@pytest.mark.parametrize(
    "make",
    [settings_of_transformers_4, first_name_of_a_forced_bos, more_settings, mbart_50],
    ids=lambda make: make.__name__,
)
def test_settings_survive_every_layout(make, tmp_path, capsys):
    source = tmp_path / "source"
    source.mkdir()
    make(source)
    before = build.load_model(str(source)).settings
    for layout in ("flax", "released", "hf"):
        target = tmp_path / layout
        assert convert.main([str(source), str(target), "--to", layout]) == 0
        after = build.load_model(str(target)).settings
        assert (after.generate, after.bart) == (before.generate, before.bart)
        source = target
    assert of_transformers(tmp_path / "hf", TEXT) == of_transformers(tmp_path / "source", TEXT)
    assert "transformers reads it plainly, without chunks and without selection" in (target / "README.md").read_text()


def test_targets_end_where_the_tokenizer_puts_nothing_around_them(tmp_path):
    no_frame(tmp_path)
    ours = build.load_model(str(tmp_path))
    features = featurize(Row("1", TEXT, "The roof."), ours.tokenizer, build.pipeline_config(ours.settings))
    tokens = lambda text: ours.tokenizer(text).input_ids
    np.testing.assert_array_equal(features["input_ids"][features["token_mask"]], tokens(TEXT))
    np.testing.assert_array_equal(features["target_ids"], [2, *tokens("The roof."), 2])


@pytest.mark.parametrize("name", ["model.safetensors", "tokenizer.json"])
def test_a_pointer_of_git_lfs_is_told(name, tmp_path, capsys):
    plain(tmp_path)
    (tmp_path / name).write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n")
    (tmp_path / "text.txt").write_text("The committee met on Tuesday.")
    assert summarize.main([f"--model={tmp_path}", str(tmp_path / "text.txt")]) == 1
    assert f"{name}: a pointer of Git LFS" in one_line_error(capsys.readouterr().err)


def test_sharded_torch_weights(tmp_path):
    plain(tmp_path)
    before = build.load_weights(str(tmp_path)).params
    weights = transformers.AutoModelForSeq2SeqLM.from_pretrained(tmp_path).state_dict()
    (tmp_path / "model.safetensors").unlink()
    index = {name: f"pytorch_model-{i % 2 + 1:05}-of-00002.bin" for i, name in enumerate(weights)}
    for file in set(index.values()):
        torch.save({name: weights[name].clone() for name in index if index[name] == file}, tmp_path / file)
    (tmp_path / "pytorch_model.bin.index.json").write_text(json.dumps({"weight_map": index}))
    after = build.load_weights(str(tmp_path)).params
    jax.tree.map(np.testing.assert_array_equal, after, before)


@pytest.mark.parametrize("make", [plain, mbart_25, mbart_50, bert_vocabulary], ids=lambda make: make.__name__)
def test_training_reads_documents_and_targets_as_transformers_does(make, tmp_path):
    """What the encoder reads, what the decoder reads, and what it is to predict."""
    make(tmp_path)
    tokenizer = transformers.AutoTokenizer.from_pretrained(tmp_path)
    model = transformers.AutoModelForSeq2SeqLM.from_pretrained(tmp_path)
    labels = tokenizer(text_target="The roof.", return_tensors="pt").input_ids
    module = __import__(model.__module__, fromlist=["x"])
    start = () if "mbart" in model.config.model_type else (model.config.decoder_start_token_id,)
    reads = module.shift_tokens_right(labels, model.config.pad_token_id, *start)[0]
    ours = build.load_model(str(tmp_path))
    features = featurize(Row("1", TEXT, "The roof."), ours.tokenizer, build.pipeline_config(ours.settings))
    np.testing.assert_array_equal(features["input_ids"][features["token_mask"]], tokenizer(TEXT).input_ids)
    np.testing.assert_array_equal(features["target_ids"][:-1], reads)
    np.testing.assert_array_equal(features["target_ids"][1:], labels[0])


@pytest.mark.parametrize(
    ("make", "field"),
    [(mbart_25, "decoder_start_token_id"), (mbart_50, "forced_bos_token_id")],
    ids=["mbart_25", "mbart_50"],
)
def test_languages_are_chosen_by_flags(make, field, tmp_path, capsys):
    make(tmp_path)
    (tmp_path / "text.txt").write_text(TEXT)
    command = [f"--model={tmp_path}", "--src-lang=de_DE", "--min-length=6", "--num-beams=1", str(tmp_path / "text.txt")]
    assert summarize.main([*command, "--tgt-lang=it_IT", "--json"]) == 0
    summary = json.loads(capsys.readouterr().out)["summary"]
    tokenizer = transformers.AutoTokenizer.from_pretrained(tmp_path, src_lang="de_DE")
    model = transformers.AutoModelForSeq2SeqLM.from_pretrained(tmp_path).eval()
    options = {field: tokenizer.convert_tokens_to_ids("it_IT"), "num_beams": 1, "min_length": 6}
    out = generated(model, tokenizer(TEXT, return_tensors="pt"), **options)
    assert summary == tokenizer.decode(out, skip_special_tokens=True).strip()
    assert summarize.main([*command, "--tgt-lang=xx_XX"]) == 1
    assert "--tgt-lang='xx_XX': the tokenizer has no such language code; there are a" in one_line_error(
        capsys.readouterr().err
    )


def test_flags_override_a_checkpoints_settings(tmp_path, capsys):
    settings_of_transformers_4(tmp_path)
    (tmp_path / "text.txt").write_text(TEXT)
    flags = ["--forced-bos-token=T", "--early-stopping=never", "--max-length=9", "--chunk-length=12", "--json"]
    assert summarize.main([f"--model={tmp_path}", *flags, str(tmp_path / "text.txt")]) == 0
    out = json.loads(capsys.readouterr().out)
    assert out["summary"].startswith("T") and out["chunks"] > 1
    for flag, message in (
        ("--forced-bos-token=nowhere", "--forced-bos-token='nowhere': the tokenizer has no such token"),
        ("--chunk-length=131", "--chunk-length=131 exceeds the model's 130 positions"),
        ("--max-length=131", "--max-length=131 exceeds the model's 130 positions"),
        ("--src-lang=en_XX", "knows no languages"),
    ):
        assert summarize.main([f"--model={tmp_path}", flag, str(tmp_path / "text.txt")]) == 1
        assert message in one_line_error(capsys.readouterr().err)


def test_a_checkpoint_without_a_selector_keeps_everything_or_an_even_spread(tmp_path, capsys):
    plain(tmp_path)
    (tmp_path / "text.txt").write_text(TEXT)
    command = [f"--model={tmp_path}", "--json", "--max-length=4", "--chunk-length=12", str(tmp_path / "text.txt")]
    assert summarize.main(command) == 0
    printed = capsys.readouterr()
    out = json.loads(printed.out)
    assert out["kept"] == out["candidates"] and out["chunks"] > 2 and "no selector in this checkpoint" in printed.err
    assert "until a selector is trained, policy=all keeps all states" in printed.err
    assert summarize.main([*command, "--capacity=21"]) == 0
    printed = capsys.readouterr()
    assert "policy=spaced keeps at most 20 evenly spread states" in printed.err
    out = json.loads(printed.out)
    middles = np.mean(out["kept_spans"], axis=1) / len(TEXT)
    assert out["kept"] == 20 and np.abs(np.histogram(middles, 4, (0, 1))[0] - len(middles) / 4).max() <= 2
    assert summarize.main([*command, "--policy=first", "--budget=6"]) == 0
    assert json.loads(capsys.readouterr().out)["kept"] == 6


@pytest.mark.slow
def test_training_starts_from_a_checkpoints_settings_and_exports_them(cache, tmp_path, capsys):
    for name in ("bart", "data"):
        (tmp_path / name).mkdir()
    mbart_50(tmp_path / "bart")
    rows = [{"document": f"{TEXT} {i}", "summary": f"The roof {i}."} for i in range(4)]
    for split in ("train", "validation"):
        write_split(tmp_path / "data", split, rows)
    settings = jsonl_settings(tmp_path / "data", src_lang="en_XX", tgt_lang="ro_RO")
    simcas = settings.simcas.replace(chunk_length=120, max_input_len=300, max_target_len=40)
    changes = {"pretrained": str(tmp_path / "bart"), "simcas": simcas, "generate": GenerateConfig(num_beams=3)}
    settings = dataclasses.replace(settings, **changes)
    train(settings, tmp_path / "run", cache, progress=False)
    held = json.loads((tmp_path / "run" / "generation_config.json").read_text())
    tokenizer = load_tokenizer(tmp_path / "run" / "tokenizer")
    code = tokenizer.convert_tokens_to_ids("ro_RO")
    assert held["forced_bos_token_id"] == code and held["num_beams"] == 3 and held["max_length"] == SHORT["max_length"]
    assert frame_of(tokenizer).target_prefix == (code,)
    assert convert.main([str(tmp_path / "run"), str(tmp_path / "hf"), "--to=hf"]) == 0
    shutil.rmtree(tmp_path / "bart")
    assert jax_simcas.load(tmp_path / "run").summarize(TEXT).summary == of_transformers(tmp_path / "hf", TEXT)
    assert jax_simcas.load(tmp_path / "hf").summarize(TEXT).summary == of_transformers(tmp_path / "hf", TEXT)
