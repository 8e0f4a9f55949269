"""Uploading models with huggingface_hub's client, to a stand-in on this machine, and what others find there."""

import dataclasses
import json
import shutil
import subprocess
import sys

import jax
import numpy as np
import pytest
import yaml
from helpers import TINY, environment, one_line_error, tiny_config, tiny_params
from stand_in_hub import TOKEN
from stand_in_hub import hub as hub

import jax_simcas
from jax_simcas import convert, summarize
from jax_simcas.checkpoints.hub import load, save
from jax_simcas.data.synthetic import SyntheticSource
from jax_simcas.run import build, processes
from jax_simcas.run import config as settings_lib
from jax_simcas.run.build import load_model

NAME = "lab/minutes"
PUSH = f"--push={NAME}"


SCORES = {
    "documents": 4,
    "split": "validation",
    "step": 4,
    "policy": "greedy",
    "rouge_tokenizer": "rouge-score",
    "kept_share": 0.625,
    "scores": {
        "exact_match": {"mean": 25.0, "low": 0.0, "high": 75.0, "count": 4},
        "f1": {"mean": 40.04, "low": 12.5, "high": 78.125, "count": 4},
        "authors/f1": {"mean": 40.0, "low": 12.5, "high": 78.125, "count": 4},
    },
    "lead": {"f1": {"mean": 5.0, "low": 0.0, "high": 10.0, "count": 4}},
}


def write_scores(workdir, name, scores):
    folder = workdir / "evaluation" / name
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "scores.json").write_text(json.dumps(scores))


@pytest.fixture(scope="module")
def evaluated(trained, tmp_path_factory):
    """The tiny run in a folder of its own, with an evaluation."""
    workdir = tmp_path_factory.mktemp("home") / "anna" / "run"
    shutil.copytree(trained.workdir, workdir, ignore=shutil.ignore_patterns("evaluation"))
    write_scores(workdir, "validation", SCORES)
    return workdir


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    """A folder of weights without a selector, a tokenizer or settings of ours."""
    folder = tmp_path_factory.mktemp("weights")
    save(folder, TINY, {name: value for name, value in tiny_params().items() if name != "selector"})
    return folder


def pushed(*arguments):
    return convert.main([*map(str, arguments)])


def parts(card):
    """The fields and the text of a model card."""
    _, fields, text = card.split("---\n", 2)
    return yaml.safe_load(fields), text


def card_of(hub, name=NAME):
    return hub.files(name)["README.md"].decode()


def test_a_run_is_uploaded_in_one_commit_and_read_from_there(hub, evaluated, document, cache, capsys):
    assert pushed(evaluated, PUSH, "--private") == 0
    out = capsys.readouterr().out
    assert f"{evaluated} (with its selector) -> {hub.address}/{NAME}\n" in out and f'jax_simcas.load("{NAME}")' in out
    held = hub.repositories[NAME]
    assert held.private and held.messages[1:] == [f"Upload step 4 with jax_simcas {jax_simcas.__version__}"]
    ours = {"config.json", "generation_config.json", "jax_simcas.json", "model.safetensors", "README.md"}
    assert {*hub.files(NAME)} == {*ours, ".gitattributes", "tokenizer.json", "tokenizer_config.json"}

    text = document.read_text()
    here, there = (jax_simcas.load(source).summarize(text) for source in (evaluated, NAME))
    assert (here.summary, here.kept_spans) == (there.summary, there.kept_spans) and there.kept_spans
    capsys.readouterr()
    printed = []
    for source in (evaluated, NAME):
        assert summarize.main([f"--model={source}", "--policy=greedy", str(document)]) == 0
        printed.append(capsys.readouterr().out)
    assert printed[0] == printed[1] and printed[0].strip() == here.summary


def test_training_starts_from_an_upload(hub, evaluated, cache):
    assert pushed(evaluated, PUSH) == 0
    starts = []
    for source in (str(evaluated), NAME):
        settings = dataclasses.replace(tiny_config(), pretrained=source)
        mesh = processes.make_job(settings.mesh, settings.data.batch_size).mesh
        starts.append(build.new_model(settings, cache, mesh))
    here, there = starts
    assert jax.tree.all(jax.tree.map(np.array_equal, here.params, there.params)) and "selector" in there.params
    assert here.settings.generate == there.settings.generate and len(here.tokenizer) == len(there.tokenizer)


def test_the_card_tells_data_settings_scores_and_how_to_load(hub, evaluated, cache, capsys):
    assert pushed(evaluated, PUSH) == 0
    fields, text = parts(card_of(hub))
    assert (fields["library_name"], fields["pipeline_tag"]) == ("transformers", "question-answering")
    assert {"simcas", "jax"} <= {*fields["tags"]} and not {"license", "base_model", "datasets", "language"} & {*fields}
    (result,) = fields["model-index"][0]["results"]
    held = {metric["name"]: (metric["type"], metric["value"], metric["args"]) for metric in result["metrics"]}
    told = {"evaluation": "validation", "documents": 4, "interval": 0.95, "rouge_tokenizer": "rouge-score"}
    assert held == {
        "SQuAD exact match": ("exact_match", 25.0, told | {"low": 0.0, "high": 75.0}),
        "SQuAD F1": ("f1", 40.04, told | {"low": 12.5, "high": 78.125}),
    }
    assert result["dataset"]["split"] == "validation"
    for part in (
        *("# minutes\n", "synthetic task", "this checkpoint is of step 4", "`validation`: 4 documents", "rouge-score"),
        *("40.0 [12.5, 78.1]", "5.0 [0.0, 10.0]", "kept 62.5 % of the candidates"),
        f'model = jax_simcas.load("{NAME}")',
        f"python -m jax_simcas.summarize --model={NAME} article.txt",
        f'AutoModelForSeq2SeqLM.from_pretrained("{NAME}")',
        "**transformers reads it plainly, without chunks and without selection**",
    ):
        assert part in text
    rows = len(SyntheticSource("train", tiny_config().data.embedded))
    assert f"`train` ({rows:,} rows) to learn from" in text


def test_no_path_of_the_machine_leaves_it(hub, trained, evaluated, weights, tmp_path):
    """Data, pretrained weights, tokenizer and workdir of /.../anna."""
    run = tmp_path / "anna" / "run"
    shutil.copytree(evaluated, run)
    held = json.loads((run / "config.json").read_text())
    held |= {"pretrained": str(weights)}
    held["data"] |= {"source": f"datasets:{tmp_path}/anna", "data_dir": f"{tmp_path}/anna", "tokenizer": "anna/words"}
    (tmp_path / "anna" / "words").mkdir()
    (run / "config.json").write_text(json.dumps(held))
    tokenizer = run / "tokenizer" / "tokenizer_config.json"
    places = {"name_or_path": "anna/words", "special_tokens_map_file": "/home/anna/special_tokens_map.json"}
    tokenizer.write_text(json.dumps(json.loads(tokenizer.read_text()) | places))
    f1 = SCORES["scores"]["f1"]
    write_scores(run, "validation", SCORES | {"source": "X('/home/anna/x')", "scores": {f"bertscore/{run}@3": f1}})
    assert pushed(run, PUSH) == 0
    for name, content in hub.files(NAME).items():
        assert b"anna" not in content and str(tmp_path).encode() not in content, name
    settings = load_model(NAME).settings
    assert settings.simcas == settings_lib.read_json(evaluated / "config.json").simcas
    assert "local weights" in card_of(hub) and "bertscore/local@3" in card_of(hub)


def test_hub_ids_and_languages_are_fields_of_the_card(hub, evaluated):
    run = evaluated.parent / "other"
    shutil.copytree(evaluated, run)
    held = json.loads((run / "config.json").read_text()) | {"pretrained": "facebook/bart-base@main"}
    held["data"] |= {"source": "datasets:abisee/cnn_dailymail:3.0.0", "src_lang": "en_XX", "tgt_lang": "de_DE"}
    held["data"]["task"] = "summarization"
    held["optimizer"] |= {"max_lr": None, "warmup": None}  # as the configs for pretrained weights have it
    (run / "config.json").write_text(json.dumps(held))
    assert pushed(run, PUSH, "--to=flax") == 0
    fields, text = parts(card_of(hub))
    assert "peak_lr 0.0001, warmup a tenth of the run (at most 1,000), label smoothing" in text
    assert fields["base_model"] == "facebook/bart-base" and fields["datasets"] == ["abisee/cnn_dailymail"]
    assert fields["language"] == ["en", "de"] and fields["pipeline_tag"] == "summarization"
    assert fields["model-index"][0]["results"][0]["dataset"]["type"] == "abisee/cnn_dailymail"
    assert fields["library_name"] == "jax_simcas" and "transformers does not read this layout" in text
    held = json.loads(hub.files(NAME)["jax_simcas.json"])
    assert (held["pretrained"], held["data"]["source"]) == (
        "facebook/bart-base@main",
        "datasets:abisee/cnn_dailymail:3.0.0",
    )


def test_only_evaluations_of_the_uploaded_step_are_in_the_card(hub, evaluated, tmp_path, capsys):
    run = tmp_path / "run"
    shutil.copytree(evaluated, run)
    write_scores(run, "other", SCORES | {"step": 2})
    write_scores(run, "odd", [1])
    write_scores(run, "bare", {"scores": {}})
    write_scores(run, "old", {name: value for name, value in SCORES.items() if name != "step"})
    alone = {"mean": 50.0, "low": None, "high": None, "count": 1}
    one = {"scores": {"f1": alone, "rouge1": alone}, "lead": {}, "documents": 1, "rouge_tokenizer": "unicode"}
    write_scores(run, "one", SCORES | one)
    assert pushed(run, PUSH) == 0
    err = capsys.readouterr().err
    assert "other/scores.json: of step 2, not of 4; left out of the model card" in err
    assert "odd/scores.json: has no scores" in err and "bare/scores.json: has no scores" in err
    fields, text = parts(card_of(hub))
    told = [metric["args"]["evaluation"] for r in fields["model-index"][0]["results"] for metric in r["metrics"]]
    assert {*told} == {"validation", "old", "one"} and "`other`" not in text and "unicode tokenizer" in text
    assert pushed(run, "--push=lab/latest", "--step=latest") == 0
    assert "old/scores.json: of another step, not of 4" in capsys.readouterr().err


def test_weights_alone_are_uploaded_with_a_card(hub, weights, capsys):
    assert pushed(weights, f"{PUSH}@tiny/one", "--message=Try it") == 0
    assert "(which has no selector) -> " in capsys.readouterr().out
    assert {*hub.repositories[NAME].branches} == {"main", "tiny/one"}
    assert hub.repositories[NAME].messages[-1] == "Try it" and {*hub.files(NAME)} == {".gitattributes"}
    text = hub.files(NAME, "tiny/one")["README.md"].decode()
    assert f'from_pretrained("{NAME}", revision="tiny/one")' in text and "## Training" not in text
    held, expected = (x.params["model"]["shared"]["embedding"] for x in (load(f"{NAME}@tiny/one"), load(weights)))
    np.testing.assert_array_equal(held, expected)


def test_a_dry_run_writes_what_would_be_uploaded(hub, evaluated, tmp_path, capsys, monkeypatch):
    monkeypatch.delenv("HF_TOKEN")
    assert pushed(evaluated, tmp_path / "seen", PUSH, "--dry-run") == 0
    out = capsys.readouterr().out
    assert not hub.asked("GET", NAME) + hub.asked("POST", "")
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    assert pushed(evaluated, PUSH) == 0
    uploaded = {name: content for name, content in hub.files(NAME).items() if name != ".gitattributes"}
    assert uploaded == {path.name: path.read_bytes() for path in (tmp_path / "seen").iterdir()}
    assert "nothing was uploaded" in out and all(name in out for name in uploaded)


def test_uploading_again_changes_nothing(hub, evaluated, capsys):
    for _ in range(2):
        assert pushed(evaluated, PUSH) == 0
    assert "where it was already: nothing has changed" in capsys.readouterr().out
    assert len(hub.repositories[NAME].messages) == 2 and len(hub.asked("PUT", "/lfs/")) == 1


@pytest.mark.parametrize("fails", [("PUT", "/lfs/"), ("POST", "/commit/"), ("POST", "/batch"), ("POST", "/validate")])
def test_what_was_interrupted_can_be_run_again(fails, hub, evaluated, capsys):
    hub.faults[fails] = (400, "the connection was interrupted")
    assert pushed(evaluated, PUSH) == 1
    error = one_line_error(capsys.readouterr().err)
    assert error.startswith(f"error: {PUSH}: nothing was uploaded (") and TOKEN not in error
    assert {*hub.files(NAME)} == {".gitattributes"}
    hub.faults.clear()
    assert pushed(evaluated, PUSH) == 0
    assert "model.safetensors" in hub.files(NAME)
    assert len({*hub.asked("PUT", "/lfs/")}) == 1 and len(hub.asked("PUT", "/lfs/")) == 1 + (fails[0] == "PUT")


def test_a_card_that_someone_changed_stays_and_fields_that_were_added_too(hub, weights, capsys):
    assert pushed(weights, PUSH) == 0
    held = hub.repositories[NAME]
    card = card_of(hub)
    held.commit("main", {"README.md": card.replace("tags:\n", "license: mit\ntags:\n- minutes\n").encode()})
    assert pushed(weights, PUSH) == 0
    fields, text = parts(card_of(hub))
    assert fields["license"] == "mit" and "minutes" in fields["tags"] and text == parts(card)[1]
    held.commit("main", {"README.md": b"---\nlicense: mit\n---\n"})
    assert pushed(weights, PUSH) == 0
    assert parts(card_of(hub))[0]["license"] == "mit" and parts(card_of(hub))[1] == text
    for changed in (card.replace("# minutes", "# Minutes"), "My own words", "---\n[}\n---\nno YAML"):
        held.commit("main", {"README.md": changed.encode()})
        capsys.readouterr()
        assert pushed(weights, PUSH) == 0
        assert card_of(hub) == changed and f"note: {NAME}: README.md stays as it is" in capsys.readouterr().err


def test_a_folder_keeps_its_own_card(hub, evaluated, tmp_path):
    """One that export wrote gets the new name; one that someone wrote is uploaded as it is."""
    assert pushed(evaluated, tmp_path / "exported") == 0
    card = tmp_path / "exported" / "README.md"
    assert '.load("FOLDER")' in card.read_text() and "# exported\n" in card.read_text()
    assert pushed(tmp_path / "exported", PUSH) == 0
    fields, text = parts(card_of(hub))
    assert fields["model-index"][0]["name"] == "minutes" and "## Scores" in text and "# minutes\n" in text
    assert f'.load("{NAME}")' in text and f"--model={NAME} " in text and "FOLDER" not in text
    assert pushed(tmp_path / "exported", tmp_path / "flax", "--to=flax") == 0
    told = parts((tmp_path / "flax" / "README.md").read_text())
    assert told[0]["library_name"] == "jax_simcas" and "does not read this layout" in told[1] and "## Scores" in told[1]
    assert pushed(tmp_path / "flax", tmp_path / "again") == 0
    assert parts((tmp_path / "again" / "README.md").read_text())[1].count("reads it plainly") == 1
    card.write_text(card.read_text().replace("# exported", "# Mine"))
    assert pushed(evaluated, tmp_path / "exported") == 0 and "# Mine" in card.read_text()
    assert pushed(tmp_path / "exported", "--push=lab/mine") == 0
    assert card_of(hub, "lab/mine") == card.read_text()


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["--push=other/minutes"], "not permitted: You do not have the rights to create a model there); log in"),
        (["--push=other/there"], "not permitted: You do not have the rights to write here); log in"),
        (["--push=lab/public", "--private"], "is public, and --private makes only a new repository private"),
        (["--push=lab/bin"], "holds pytorch_model.bin already, beside which model.safetensors would be another model"),
        (["--push=lab/public", "--to=flax"], "holds model.safetensors already, beside which flax_model.msgpack would"),
    ],
)
def test_what_the_hub_does_not_allow_is_one_line(arguments, told, hub, weights, capsys):
    for name in ("other/there", "lab/public"):
        hub.add(name, {"model.safetensors": b"x"})
    hub.add("lab/bin", {"pytorch_model.bin": b"x"})
    assert pushed(weights, *arguments) == 1
    error = one_line_error(capsys.readouterr().err)
    assert error.startswith(f"error: {arguments[0]}: ") and told in error and TOKEN not in error
    assert not hub.asked("POST", "/commit/")


@pytest.mark.parametrize("token", ["", "hf_wrong", "hf_two\nlines"])
def test_a_token_that_is_missing_or_wrong_is_told_and_never_shown(token, hub, weights, capsys, monkeypatch):
    monkeypatch.setenv("HF_TOKEN", token)
    assert pushed(weights, PUSH) == 1
    error = one_line_error(capsys.readouterr().err)
    assert error.startswith(f"error: {PUSH}: ") and "HF_TOKEN" in error
    assert not token or not any(word in error for word in token.split())
    assert not hub.repositories


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["SRC", "--push=minutes"], "--push: 'minutes': expected OWNER/NAME or OWNER/NAME@BRANCH"),
        (["SRC", "--push=lab/mi..nutes"], "expected OWNER/NAME or OWNER/NAME@BRANCH"),
        (["SRC", "--push=lab/minutes.git"], "expected OWNER/NAME or OWNER/NAME@BRANCH"),
        (["SRC", "--push=https://huggingface.co/lab/minutes"], "expected OWNER/NAME or OWNER/NAME@BRANCH"),
        (["SRC"], "DST: give the folder to write, or --push=OWNER/NAME"),
        (["SRC", "DST", "--private"], "--private: only with --push=OWNER/NAME"),
        (["SRC", "DST", "--message=x"], "--message: only with --push=OWNER/NAME"),
        (["SRC", "--dry-run", "DST"], "--dry-run: only with --push=OWNER/NAME"),
        (["SRC", PUSH, "--dry-run"], "--dry-run: give DST"),
        (["SRC", "DST", "MORE"], "unrecognized arguments: MORE"),
    ],
)
def test_wrong_flags_are_one_line_and_exit_code_2(arguments, told, capsys):
    with pytest.raises(SystemExit) as exit:
        convert.main(arguments)
    assert exit.value.code == 2 and told in one_line_error(capsys.readouterr().err)


def test_flags_may_stand_between_the_folders(weights, tmp_path, capsys):
    assert pushed(weights, "-to", "flax", tmp_path / "out") == 0
    assert (tmp_path / "out" / "flax_model.msgpack").is_file()


PROGRAM = f"""
import sys
from jax_simcas import convert
assert convert.main([sys.argv[1], "{PUSH}"]) == 0
from transformers import AutoModelForSeq2SeqLM, AutoTokenizer
texts = []
for place in ("{NAME}", sys.argv[2]):
    tokenizer, model = AutoTokenizer.from_pretrained(place), AutoModelForSeq2SeqLM.from_pretrained(place)
    ids = tokenizer(sys.argv[3], return_tensors="pt", truncation=True, max_length=16)
    made = model.generate(ids["input_ids"], attention_mask=ids["attention_mask"])
    texts.append(tokenizer.decode(made[0], skip_special_tokens=True))
assert texts[0] == texts[1], texts
print("from transformers:", texts[0])
"""


@pytest.mark.slow
def test_the_environment_alone_directs_the_client_and_transformers_reads_the_upload(
    hub, evaluated, document, cache, tmp_path
):
    pytest.importorskip("torch")
    assert pushed(evaluated, tmp_path / "exported") == 0
    env = environment(
        HF_ENDPOINT=hub.address, HF_HOME=tmp_path / "hf", HF_TOKEN=TOKEN, HF_HUB_DISABLE_XET=1, JAX_SIMCAS_CACHE=cache
    )
    text = document.read_text()
    command = [sys.executable, "-c", PROGRAM, str(evaluated), str(tmp_path / "exported"), text]
    done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    assert "from transformers:" in done.stdout and TOKEN not in done.stdout + done.stderr
