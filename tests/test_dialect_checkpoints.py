"""Checkpoints of BART's relatives with their own tokenizers: texts, languages and lengths as in transformers."""

import dataclasses
import json

import numpy as np
import pytest
import tokenizers
from safetensors.numpy import load_file
from test_checkpoints import SHORT, TEXT, byte_level, generated, of_transformers, unigram_pieces
from test_checkpoints import SIZES as SIZES_OF_ONE
from test_dialects import saved
from tokenizers import decoders, models, pre_tokenizers, processors, trainers
from trained import jsonl_settings, write_split

import jax_simcas
from jax_simcas import convert, summarize
from jax_simcas.common.errors import UserError
from jax_simcas.data.tokenizer import frame_of, load_tokenizer
from jax_simcas.method.generate_config import GenerateConfig
from jax_simcas.run import build
from jax_simcas.run import config as config_lib
from jax_simcas.run.loop import train

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")


def pegasus_tokenizer(folder):
    """PEGASUS' own, without a token that begins a text."""
    pieces = [
        ("<pad>", 0.0),
        ("</s>", 0.0),
        ("<mask_1>", 0.0),
        ("<mask_2>", 0.0),
        ("<unk>", 0.0),
        *unigram_pieces()[4:],
    ]
    tokenizer = transformers.PegasusTokenizer(vocab=pieces, offset=2)
    tokenizer.save_pretrained(folder)
    return tokenizer


def marian_tokenizer(folder):
    """A fast one of Marian's ids: EOS first, PAD last, no token that begins a text."""
    pieces = [("</s>", 0.0), ("<unk>", 0.0), *unigram_pieces()[4:], ("<pad>", 0.0)]
    tokenizer = tokenizers.Tokenizer(models.Unigram(pieces, unk_id=1))
    tokenizer.pre_tokenizer, tokenizer.decoder = pre_tokenizers.Metaspace(), decoders.Metaspace()
    tokenizer.post_processor = processors.TemplateProcessing(single="$A </s>", special_tokens=[("</s>", 0)])
    names = {"eos_token": "</s>", "unk_token": "<unk>", "pad_token": "<pad>"}
    made = transformers.PreTrainedTokenizerFast(tokenizer_object=tokenizer, **names)
    made.save_pretrained(folder)
    return made


def nllb_tokenizer(folder, **changes):
    tokenizer = tokenizers.Tokenizer(models.BPE(unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    specials = ["<s>", "<pad>", "</s>", "<unk>"]
    trainer = trainers.BpeTrainer(vocab_size=90, special_tokens=specials, show_progress=False)
    tokenizer.train_from_iterator([TEXT] * 3, trainer)
    state = json.loads(tokenizer.to_str())["model"]
    merges = [tuple(merge) for merge in state["merges"]]
    made = transformers.NllbTokenizer(vocab=state["vocab"], merges=merges, src_lang="eng_Latn", **changes)
    made.save_pretrained(folder)
    return made


TOKENIZERS = {"pegasus": pegasus_tokenizer, "marian": marian_tokenizer, "m2m_100": nllb_tokenizer}


def checkpoint(folder, model_type, generation, **changes):
    """A folder as the hub would hold it: a model with random weights, its settings of generation, a tokenizer."""
    tokenizer = TOKENIZERS.get(model_type, byte_level)(folder)
    eos = tokenizer.eos_token_id
    tokens = {"pad_token_id": tokenizer.pad_token_id, "bos_token_id": tokenizer.bos_token_id, "eos_token_id": eos}
    start = {"pegasus": tokenizer.pad_token_id, "marian": tokenizer.pad_token_id}.get(model_type, eos)
    sizes = {name: value for name, value in SIZES_OF_ONE.items() if name != "max_position_embeddings"}
    lengths = {"max_position_embeddings": 130}
    if model_type == "led":
        lengths = {"max_encoder_position_embeddings": 512, "max_decoder_position_embeddings": 60}
        lengths["attention_window"] = 256
    config = sizes | lengths | tokens | {"vocab_size": len(tokenizer), "decoder_start_token_id": start} | changes
    torch.manual_seed(0)
    made = transformers.AutoConfig.for_model(model_type, **config, forced_eos_token_id=None)
    model = transformers.AutoModelForSeq2SeqLM.from_config(made).eval()
    for name, value in (SHORT | generation).items():
        setattr(model.generation_config, name, value)
    saved(model, folder)
    return tokenizer


@pytest.mark.parametrize(
    "model_type",
    ["pegasus", "marian", "m2m_100", "led", *(pytest.param(t, marks=pytest.mark.slow) for t in ("mvp", "blenderbot"))],
)
def test_a_document_of_one_chunk_gives_what_transformers_gives(model_type, tmp_path):
    checkpoint(tmp_path, model_type, {})
    model, summary = jax_simcas.load(tmp_path), of_transformers(tmp_path, TEXT)
    assert summary and model.summarize(TEXT).summary == summary


@pytest.mark.parametrize("legacy", [False, True])
def test_nllb_reads_and_writes_the_languages_that_flags_name(legacy, tmp_path, capsys):
    checkpoint(tmp_path, "m2m_100", {})
    tokenizer = nllb_tokenizer(tmp_path, legacy_behaviour=legacy)
    (tmp_path / "text.txt").write_text(TEXT)
    model = transformers.AutoModelForSeq2SeqLM.from_pretrained(tmp_path).eval()
    tokenizer.src_lang = "deu_Latn"
    code = tokenizer.convert_tokens_to_ids("fra_Latn")
    expected = generated(model, tokenizer(TEXT, return_tensors="pt"), forced_bos_token_id=code)
    assert expected[1] == code
    flags = [f"--model={tmp_path}", "--src-lang=deu_Latn", "--tgt-lang=fra_Latn", "--json", str(tmp_path / "text.txt")]
    assert summarize.main(flags) == 0
    assert (
        json.loads(capsys.readouterr().out)["summary"] == tokenizer.decode(expected, skip_special_tokens=True).strip()
    )


def test_a_language_that_nllb_has_not_is_one_line(tmp_path):
    nllb_tokenizer(tmp_path)
    with pytest.raises(UserError, match=r"src_lang='<mask>': the tokenizer has no such language code; there are ace_"):
        load_tokenizer(tmp_path, "<mask>")
    frame = frame_of(load_tokenizer(tmp_path, "deu_Latn", "fra_Latn"))
    ids = load_tokenizer(tmp_path).convert_tokens_to_ids(["deu_Latn", "fra_Latn", "</s>"])
    assert (*frame.prefix, *frame.target_prefix, *frame.suffix) == tuple(ids)


def test_chunks_of_led_are_no_longer_than_half_its_window(tmp_path):
    checkpoint(tmp_path, "led", {}, attention_window=64)
    model = build.load_model(str(tmp_path))
    assert (model.settings.simcas.chunk_length, model.settings.simcas.max_target_len) == (32, 60)
    longer = dataclasses.replace(model.settings, simcas=model.settings.simcas.replace(chunk_length=33))
    with pytest.raises(UserError, match=r"chunk_length=33 exceeds the model's 32 positions .half its attention_window"):
        config_lib.check(longer, sizes_known=True)


def test_targets_of_led_are_no_longer_than_its_decoders_positions(tmp_path, capsys):
    """A gather beyond the table would take its last row."""
    checkpoint(tmp_path, "led", {}, attention_window=64, max_encoder_position_embeddings=90)
    model = build.load_model(str(tmp_path))
    longer = dataclasses.replace(model.settings, simcas=model.settings.simcas.replace(max_target_len=61))
    with pytest.raises(UserError, match=r"max_target_len=61 exceeds the model's 60 positions .max_decoder_position"):
        config_lib.check(longer, sizes_known=True)
    with pytest.raises(ValueError, match="max_length=61 exceeds the model's 60 positions"):
        GenerateConfig(max_length=61).rules(model.settings.model().backbone)
    (tmp_path / "text.txt").write_text(TEXT)
    assert summarize.main([f"--model={tmp_path}", "--max-length=61", str(tmp_path / "text.txt")]) == 1
    assert "--max-length=61 exceeds the model's 60 positions" in capsys.readouterr().err


@pytest.mark.slow
@pytest.mark.parametrize("model_type", ["pegasus", "led"])
def test_training_changes_what_transformers_would_change_and_exports_it(model_type, cache, tmp_path):
    checkpoint(tmp_path / "start", model_type, {})
    rows = [{"document": f"{TEXT} {i}", "summary": f"The roof {i}."} for i in range(4)]
    for split in ("train", "validation"):
        write_split(tmp_path / "data", split, rows)
    settings = jsonl_settings(tmp_path / "data")
    simcas = settings.simcas.replace(chunk_length=100, max_input_len=250, max_target_len=40)
    settings = dataclasses.replace(settings, pretrained=str(tmp_path / "start"), simcas=simcas)
    train(settings, tmp_path / "run", cache, progress=False)
    assert convert.main([str(tmp_path / "run"), str(tmp_path / "hf"), "--to=hf"]) == 0
    before, after = (load_file(tmp_path / name / "model.safetensors") for name in ("start", "hf"))
    same = {name for name in before if np.array_equal(before[name], after[name])}
    fixed = {"pegasus": "embed_positions", "led": "_global"}[model_type]
    assert same == {name for name in before if fixed in name or name.endswith(("final_logits_bias", "k_proj.bias"))} | {
        name for name in before if name.endswith("self_attn.key.bias")
    }
    expected = of_transformers(tmp_path / "hf", TEXT)
    assert {jax_simcas.load(tmp_path / name).summarize(TEXT).summary for name in ("run", "hf")} == {expected}
