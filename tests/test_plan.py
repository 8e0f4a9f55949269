"""Fine-tuning one's own documents: what a run takes from its rows, keeps in its workdir, and says of it."""

import contextlib
import dataclasses
import io
import re
import shutil

import jax
import numpy as np
import pytest
from helpers import figures, read_config, tiny_config
from trained import pretrained_folder, write_split

from jax_simcas.checkpoints.run_state import load_params
from jax_simcas.common.errors import UserError
from jax_simcas.data.rows import ListSource, Row
from jax_simcas.data.tokenizer import load_tokenizer, word_level
from jax_simcas.run import config as config_lib
from jax_simcas.run import plan
from jax_simcas.run.config_file import override
from jax_simcas.run.config_file import read_config as read_config_file
from jax_simcas.run.loop import train

POSITIONS = 64  # of the pretrained model of these tests


@pytest.mark.parametrize(
    ("rows", "steps"),
    [
        (3, 15),  # 20 passes
        (100, 500),  # 20 passes as well
        (667, 501),  # 3 passes
        (600, 500),  # between: more passes than 3
        (40_000, 30_000),  # 3 passes
    ],
)
def test_steps_follow_from_the_rows(rows, steps):
    assert plan.steps_for(rows, per_step=4) == steps


def test_a_few_rows_are_told_that_they_are_few():
    settings = read_config("finetune")[0]
    (note,) = plan.on_few_rows(settings, 3)
    assert note.startswith("note: 3 rows to learn from: training ends after 20 passes over so few")
    longer = dataclasses.replace(settings, loop=dataclasses.replace(settings.loop, steps=200))
    assert plan.on_few_rows(settings, 100) == plan.on_few_rows(longer, 3) == []


def test_one_row_gives_a_run_of_at_least_one_step():
    assert plan.steps_for(1, per_step=64) == 1


@pytest.mark.parametrize("steps", [1, 7, 15, 500, 75_000])
def test_intervals_and_warmup_suit_the_length(steps):
    settings = plan.with_length(read_config("finetune")[0], steps)
    every, loop = plan.intervals_of(settings.loop, steps), settings.loop
    assert (loop.log_every, loop.eval_every, loop.checkpoint_every) == every and loop.steps == steps
    assert settings.optimizer.warmup <= max(1, steps / 10)
    assert every.log <= every.validate <= max(5, steps / 5)


def test_what_is_given_is_kept(tmp_path):
    settings = tiny_config()
    assert plan.with_length(settings, 4) == settings
    assert plan.as_recorded(settings, read_config("embedded")[0]) == settings
    word_level(("word",), tmp_path / "words")
    unread = ListSource([])
    assert plan.with_buckets(settings, unread, unread, load_tokenizer(tmp_path / "words")) == (settings, {})
    passes = dataclasses.replace(settings, loop=dataclasses.replace(settings.loop, steps=None, epochs=2))
    assert plan.steps_of(passes, rows=10) == 5 and plan.with_length(passes, 5).loop.steps is None


def highest(settings, steps):
    rate = settings.optimizer.learning_rate(steps)
    return float(max(rate(step) for step in range(steps)))


def finetune(*changes):
    return config_lib.from_config(override(read_config_file("finetune"), changes))


def test_the_highest_rate_is_the_field_that_is_called_so():
    assert highest(finetune(), 40) == pytest.approx(1e-4)
    assert highest(finetune(("optimizer.peak_lr", "3e-5")), 40) == pytest.approx(3e-5)
    assert highest(finetune(("optimizer.peak_lr", "3e-5"), ("optimizer.warmup", "17")), 40) == pytest.approx(3e-5)


def test_max_lr_is_the_factor_that_it_was():
    own = finetune(("optimizer.max_lr", "7e-4"), ("optimizer.warmup", "49"))
    assert highest(own, 100) == pytest.approx(1e-4)
    with pytest.raises(UserError, match=r"optimizer\.peak_lr=3e-05: counts only with max_lr=None, and max_lr=0.0007"):
        finetune(("optimizer.max_lr", "7e-4"), ("optimizer.peak_lr", "3e-5"))
    with pytest.raises(UserError, match=r"counts only with max_lr=None"):
        config_lib.from_config(override(read_config_file("embedded"), [("optimizer.peak_lr", "3e-5")]))


def test_a_schedule_of_ones_own_gets_the_highest_rate():
    own = ("optimizer.schedule", "examples.optimizer_adafactor:cosine")
    assert highest(finetune(own, ("optimizer.peak_lr", "3e-5")), 40) == pytest.approx(3e-5)


def test_buckets_can_be_given_as_flags_and_left_open_again():
    given = finetune(("data.chunk_buckets", "(2,4)"), ("data.target_buckets", "64"))
    assert given.data.chunk_buckets == (2, 4) and given.data.target_buckets == (64,)
    assert finetune(("data.chunk_buckets", "8"), ("data.chunk_buckets", "()")).data == finetune().data


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """Rows of one and of three chunks, and a pretrained model of `POSITIONS` without a selector."""
    folder = tmp_path_factory.mktemp("data")
    pretrained_folder(folder / "bart")
    write_rows(folder, [50, 170] * 6)
    return folder


def write_rows(folder, lengths):
    rows = [
        {"document": " ".join(f"word-{(i + j) % 30}" for j in range(length)), "summary": " ".join(["word-1"] * 10)}
        for i, length in enumerate(lengths)
    ]
    write_split(folder, "train", rows)
    write_split(folder, "validation", rows[:2])


def settings_for(data, **changes):
    """The preset as a user has it, in float32 and with fewer states."""
    config = read_config_file("finetune")
    fixed = {"pretrained": str(data / "bart"), "data.data_dir": str(data), "simcas.dtype": "float32"}
    config.update_from_flattened_dict(fixed | {"simcas.remat": "none", "optimizer.accumulate_step": 1} | changes)
    return config_lib.from_config(config)


def said_by(settings, folder, cache):
    with contextlib.redirect_stderr(io.StringIO()) as err:
        train(settings, folder, cache)
    return err.getvalue()


@pytest.fixture(scope="module")
def tuned(data, trained, tmp_path_factory):
    """(what it printed, workdir) of a run of 8 steps."""
    folder = tmp_path_factory.mktemp("tuned")
    return said_by(settings_for(data, **{"loop.steps": 8}), folder, trained.cache), folder


def test_the_workdir_keeps_what_was_open_and_lengths_fit_the_positions(tuned):
    _, folder = tuned
    settings = config_lib.read_json(folder / "config.json")
    assert settings.data.chunk_buckets == (1, 3) and settings.data.target_buckets == (16,)
    assert settings.optimizer.warmup == 1 and settings.loop.eval_every == settings.loop.checkpoint_every == 5
    assert settings.simcas.chunk_length == settings.simcas.max_target_len == settings.generate.max_length == POSITIONS
    still_open = [
        name for section, names in plan.OPEN.items() for name in names if vars(getattr(settings, section))[name] is None
    ]
    assert still_open == ["max_lr"]  # peak_lr counts


def test_training_says_what_it_will_do_what_it_compiles_and_what_it_costs(tuned):
    err, _ = tuned
    assert re.search(
        r"padded to 1 or 3 chunks of 64 tokens and 16 target tokens, which fit 12 rows: \d+ % of a batch is pad", err
    )
    assert "config.simcas.capacity=2048 holds all of the longest document (176 tokens)" in err
    assert "8 steps to train, 1 batch of 1 document each; 12 rows to learn from (0.667 passes in all)" in err
    assert "validation on 2 documents every 5 steps, a checkpoint every 5 steps" in err
    assert "the learning rate is highest at step 1, 0.0001, and ends at 3.5e-05" in err
    compiled = re.findall(r"compiling the (.*) for .*\ncompiled in [\d.]+ s; it takes [\d.]+ [MG]iB of memory", err)
    assert len(compiled) <= 6 and set(compiled) == {"transformer's step", "selector's step", "validation"}
    assert len(re.findall(r"^a step takes [\d.e-]+ s \(.* tokens/s\); 6 more steps, 2 validations", err, re.M)) == 1
    assert not re.search(r"\b21 tokens", err)  # the checkpoint's own length of summaries does not count


def test_a_resumed_run_has_the_buckets_and_numbers_of_an_undisturbed_one(data, tuned, cache, tmp_path):
    folder = shutil.copytree(tuned[1], tmp_path / "run")
    shutil.rmtree(folder / "checkpoints" / "8")
    again = said_by(settings_for(data), folder, cache)
    assert "resuming at step 5 of 8" in again and "padded to" not in again
    assert config_lib.read_json(folder / "config.json") == config_lib.read_json(tuned[1] / "config.json")
    ours, theirs = (load_params(path / "checkpoints", "latest")[0] for path in (folder, tuned[1]))
    for a, b in zip(jax.tree.leaves(ours), jax.tree.leaves(theirs), strict=True):
        np.testing.assert_array_equal(a, b)
    assert figures(folder) == figures(tuned[1])


def test_rows_that_were_added_change_no_buckets_and_no_length_of_a_run(data, tuned, cache, tmp_path):
    folder = shutil.copytree(tuned[1], tmp_path / "run")
    (tmp_path / "bart").symlink_to(data / "bart")
    write_rows(tmp_path, [50, 110, 170] * 40)  # of two chunks too, and enough for 500 steps
    settings = dataclasses.replace(settings_for(data), data=settings_for(tmp_path).data)
    assert "step 8 of 8 is done" in said_by(settings, folder, cache)
    longer = dataclasses.replace(settings, loop=dataclasses.replace(settings.loop, steps=9))
    assert "resuming at step 8 of 9" in said_by(longer, folder, cache)
    kept = config_lib.read_json(folder / "config.json")
    assert kept.data.chunk_buckets == (1, 3) and kept.loop.eval_every == 5


def test_a_run_of_the_earlier_preset_resumes_with_its_own_numbers():
    numbers = {
        "data.chunk_buckets": "(4,8,16)",
        "data.target_buckets": "512",
        "optimizer.max_lr": "7e-4",
        "optimizer.warmup": "50",
        "loop.steps": "500",
        "loop.log_every": "10",
        "loop.eval_every": "100",
        "loop.checkpoint_every": "100",
    }
    earlier = finetune(*numbers.items())
    assert config_lib.differences(earlier, plan.as_recorded(finetune(), earlier)) == []


def test_what_the_limits_cut_is_told_before_the_first_step(tmp_path):
    word_level(("a",), tmp_path / "words")
    settings = finetune(("simcas.chunk_length", "8"), ("simcas.max_input_len", "20"), ("simcas.max_target_len", "10"))
    rows = ListSource(Row(str(i), "a " * count, "a " * count) for i, count in enumerate((4, 4, 4, 100)))
    found, notes = plan.with_buckets(settings, rows, rows, load_tokenizer(tmp_path / "words"))
    assert found.data.chunk_buckets == (1, 3) and found.data.target_buckets == (10,)
    assert (
        "longest document has about 106 tokens, of which config.simcas.max_input_len=20 are" in notes["data/cut_tokens"]
    )
    assert "config.simcas.max_target_len=10 are read; 25 % of the targets" in notes["data/cut_target"]
    with pytest.raises(UserError, match="no rows in it"):
        plan.with_buckets(settings, ListSource([]), rows, load_tokenizer(tmp_path / "words"))
