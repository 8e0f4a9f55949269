"""What a user is told of a checkpoint, and settings that are given in its place."""

import warnings

import pytest

torch = pytest.importorskip("torch")

import transformers  # noqa: E402
from test_checkpoints import TEXT, languages, plain, rewritten  # noqa: E402

import jax_simcas  # noqa: E402
from jax_simcas import convert, summarize  # noqa: E402
from jax_simcas.checkpoints.hub import save  # noqa: E402
from jax_simcas.common.errors import UserError  # noqa: E402
from jax_simcas.data.tokenizer import frame_of, load_tokenizer  # noqa: E402
from jax_simcas.run import build  # noqa: E402


@pytest.fixture
def without_a_length(tmp_path):
    """A checkpoint that names no length of summaries, and asks for draws."""
    plain(tmp_path)

    def change(settings):
        settings.pop("max_length")
        settings["do_sample"] = True

    rewritten(tmp_path / "generation_config.json", change)
    return tmp_path


def test_python_users_are_warned_of_what_has_no_effect(without_a_length):
    with pytest.warns(UserWarning) as told:
        model = jax_simcas.load(without_a_length)
    (message,) = [str(each.message) for each in told]
    assert "asks for do_sample=True, which this package has not" in message
    for expected in ("no max_length: summaries of at most 21 tokens", "no selector in this checkpoint"):
        assert any(expected in note for note in model.notes)


def test_a_length_that_is_given_needs_no_note(without_a_length, capsys):
    (without_a_length / "text.txt").write_text(TEXT)
    files = [f"--model={without_a_length}", str(without_a_length / "text.txt")]
    assert summarize.main(files) == 0 and "no max_length" in capsys.readouterr().err
    assert summarize.main([*files, "--max-length=12"]) == 0 and "no max_length" not in capsys.readouterr().err
    with pytest.warns(UserWarning, match="do_sample"):
        model = jax_simcas.load(without_a_length, max_length=12)
    assert not any("no max_length" in note for note in model.notes)


def test_no_token_is_one_that_is_named_none(tmp_path):
    plain(tmp_path)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        model = jax_simcas.load(tmp_path, forced_bos_token="none")
    assert model.predictor.generate.forced_bos_token_id == -1


@pytest.mark.parametrize("name", ["MBart", "MBart50"])
def test_a_source_language_alone_is_that_of_targets_too(name, tmp_path):
    languages(tmp_path, name, "en_XX")
    ours = load_tokenizer(tmp_path, "de_DE", "")
    theirs = transformers.AutoTokenizer.from_pretrained(tmp_path, src_lang="de_DE")
    frame, content = frame_of(ours), ours("The roof.", add_special_tokens=False).input_ids
    assert [*frame.target_prefix, *content, *frame.target_suffix] == theirs(text_target="The roof.").input_ids
    assert [*frame.prefix, *content, *frame.suffix] == theirs("The roof.").input_ids


def test_weights_saved_as_parameters_are_read(tmp_path):
    plain(tmp_path)
    model = transformers.AutoModelForSeq2SeqLM.from_pretrained(tmp_path)
    before = build.load_model(str(tmp_path)).params
    (tmp_path / "model.safetensors").unlink()
    torch.save(dict(model.named_parameters()), tmp_path / "pytorch_model.bin")
    after = build.load_model(str(tmp_path)).params
    assert (before["model"]["shared"]["embedding"] == after["model"]["shared"]["embedding"]).all()


def test_older_weights_beside_those_of_transformers_are_told(tmp_path):
    plain(tmp_path)
    model = transformers.AutoModelForSeq2SeqLM.from_pretrained(tmp_path)
    (tmp_path / "model.safetensors").rename(tmp_path / "kept")
    torch.save(model.state_dict(), tmp_path / "pytorch_model.bin")
    loaded = build.load_model(str(tmp_path))
    assert not any("lies beside it" in note for note in loaded.notes)
    save(tmp_path / "flax", loaded.settings.bart, loaded.params, "flax")
    (tmp_path / "flax" / "flax_model.msgpack").rename(tmp_path / "flax_model.msgpack")
    (note,) = [note for note in build.load_model(str(tmp_path)).notes if "lies beside it" in note]
    assert note.startswith("warning: ") and "flax_model.msgpack is read; pytorch_model.bin lies beside it" in note


def test_an_adapter_beside_a_model_is_told(tmp_path):
    """transformers applies it, where peft is installed."""
    plain(tmp_path)
    (tmp_path / "adapter_config.json").write_text("{}")
    with pytest.warns(UserWarning, match="the adapter of peft beside the model is not applied; to apply it, merge it"):
        jax_simcas.load(tmp_path)


def test_an_adapter_is_no_model(tmp_path):
    (tmp_path / "adapter_config.json").write_text("{}")
    with pytest.raises(UserError, match="an adapter of peft, not a model: merge it into its base model"):
        build.load_model(str(tmp_path))


def test_an_export_samples_as_a_config_of_transformers_4_says(tmp_path):
    """Where there is no generation_config.json, transformers takes all of this from config.json."""
    plain(tmp_path / "old")
    (tmp_path / "old" / "generation_config.json").unlink()
    asked = {"do_sample": True, "temperature": 0.7, "top_p": 0.9, "top_k": 20}
    rewritten(tmp_path / "old" / "config.json", lambda settings: settings.update(asked))
    assert convert.main([str(tmp_path / "old"), str(tmp_path / "new")]) == 0
    read = [transformers.GenerationConfig.from_pretrained(tmp_path / "new").to_dict()]
    read.append(transformers.AutoModelForSeq2SeqLM.from_pretrained(tmp_path / "old").generation_config.to_dict())
    assert [{name: each[name] for name in asked} for each in read] == [asked, asked]


def test_what_a_checkpoint_asks_for_and_we_lack_is_told(tmp_path):
    plain(tmp_path, max_length=500, min_length=3)
    asked = {"do_sample": True, "top_k": 5, "num_beam_groups": 2, "num_return_sequences": 1, "use_cache": True}
    asked |= {"forced_eos_token_id": [2, 3]}
    rewritten(tmp_path / "generation_config.json", lambda settings: settings.update(asked))
    told = [note for note in build.load_model(str(tmp_path)).notes if note.startswith("warning: ")]
    assert "max_length=500 exceeds the model's 130 positions" in told[0]
    assert "asks for do_sample=True, num_beam_groups=2, forced_eos_token_id=[2, 3], which" in told[1] and len(told) == 2
