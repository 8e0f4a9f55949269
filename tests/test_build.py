"""A model from scratch has the special tokens of the tokenizer that it gets."""

import jax
import pytest
from helpers import tiny_config
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

from jax_simcas.run import build
from jax_simcas.run.prepare import as_begun
from jax_simcas.run.processes import make_job

STACK = {
    "hidden_size": 16,
    "intermediate_size": 16,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "head_dim": 8,
}
SIZES = {
    "t5": {"t5.d_model": 16, "t5.num_heads": 2, "t5.d_kv": 8, "t5.num_layers": 1, "t5.num_decoder_layers": 1},
    "bart": {},
    "t5gemma": {f"t5gemma.{side}.{name}": size for side in ("encoder", "decoder") for name, size in STACK.items()},
}
ROLES = ("pad", "bos", "eos", "decoder_start", "forced_eos")


def tokens_of(shape):
    return {role: getattr(shape, f"{role}_token_id") for role in ROLES}


def new(cache, **changes):
    settings = tiny_config(**changes)
    with jax.set_mesh(mesh := make_job(settings.mesh, settings.data.batch_size).mesh):
        return build.new_model(settings, cache, mesh)


@pytest.fixture(scope="module")
def without_begin(tmp_path_factory):
    """A tokenizer that ends texts, as T5's: <pad>, </s>, and no begin token, but behind some words."""
    words = ["<unk>", *(f"w{number}" for number in range(60)), "</s>", "<pad>"]
    made = Tokenizer(models.WordLevel({word: number for number, word in enumerate(words)}, unk_token="<unk>"))
    made.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    made.post_processor = processors.TemplateProcessing("$A </s>", special_tokens=[("</s>", len(words) - 2)])
    folder = tmp_path_factory.mktemp("tokenizer")
    special = {"unk_token": "<unk>", "pad_token": "<pad>", "eos_token": "</s>"}
    PreTrainedTokenizerFast(tokenizer_object=made, **special).save_pretrained(folder)
    return folder


@pytest.mark.parametrize(
    ("family", "start", "forced"), [("bart", "eos", "eos"), ("t5", "pad", None), ("t5gemma", "bos", None)]
)
def test_tokens_are_those_of_the_projects_own_tokenizer(family, start, forced, cache):
    model = new(cache, backbone=family, **SIZES[family])
    tokenizer, tokens = model.tokenizer, tokens_of(model.settings.backbone_config)
    own = {role: getattr(tokenizer, f"{role}_token_id") for role in ("pad", "bos", "eos")}
    without = {"bos": None} if family == "t5" else {}
    assert tokens == own | without | {"decoder_start": own[start], "forced_eos": own[forced] if forced else None}
    assert model.notes == ()


@pytest.mark.parametrize("family", ["bart", "t5"])
def test_tokens_are_those_of_a_tokenizer_without_a_begin_token(family, without_begin, cache):
    model = new(cache, backbone=family, **{"data.tokenizer": str(without_begin)}, **SIZES[family])
    tokens = tokens_of(model.settings.backbone_config)
    assert (tokens["eos"], tokens["pad"]) == (61, 62)
    assert tokens["decoder_start"] == tokens["pad" if family == "t5" else "eos"]
    assert model.notes == ()


def test_ids_that_the_settings_give_stay_and_one_that_ends_nothing_is_told(without_begin, cache):
    given = {"bart.eos_token_id": 5, "bart.decoder_start_token_id": 7}
    model = new(cache, **{"data.tokenizer": str(without_begin)}, **given)
    tokens = tokens_of(model.settings.backbone_config)
    assert (tokens["eos"], tokens["decoder_start"], tokens["pad"]) == (5, 7, 62)
    (note,) = model.notes
    assert note.startswith("warning: config.bart: targets end in token 61, generation ends at 5")


def test_a_run_that_began_with_other_tokens_keeps_them(cache, tmp_path):
    model = new(cache, backbone="t5", **SIZES["t5"])
    earlier = model.settings.with_backbone_config(
        build.replaced(model.settings.backbone_config, eos_token_id=1, pad_token_id=0)
    )
    (tmp_path / "config.json").write_text(build.config_lib.to_json(earlier))
    assert as_begun(model, tmp_path).settings.backbone_config == earlier.backbone_config
    other = model._replace(
        settings=model.settings.with_backbone_config(build.replaced(model.settings.backbone_config, eos_token_id=5))
    )
    assert (
        as_begun(other, tmp_path).settings.backbone_config.eos_token_id == 5
    )  # so that the change is refused, not lost
