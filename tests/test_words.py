"""The words that scores count, in any script: what a word is, which words a data set gets, what is said of zeros."""

import json

import pytest
from helpers import one_line_error
from hypothesis import given, settings
from hypothesis import strategies as st

from jax_simcas import compare, evaluate
from jax_simcas.evaluation import metrics, words
from jax_simcas.run.config import DataConfig

UNICODE = words.named("unicode")
# A text, and its words.
SCRIPTS = {
    "Chinese": ("我喜欢猫。3月", "我 喜 欢 猫 3 月"),
    "Japanese": ("ネコが好き、々ー", "ネ コ が 好 き 々 ー"),
    "Korean": ("고양이를 좋아해요.", "고양이를 좋아해요"),
    "Thai": ("ดีครับ hello", "ดี ค รั บ hello"),
    "Hindi": ("मुझे बिल्ली पसंद है।", "मुझे बिल्ली पसंद है"),
    "Arabic": ("هل تحب القطط؟", "هل تحب القطط"),
    "Persian": ("نمی\u200cخواهم", "نمیخواهم"),
    "Russian": ("Я люблю кошек!", "я люблю кошек"),
    "Greek": ("Σ'αγαπώ ΟΔΟΣ", "σ αγαπώ οδοσ"),
    "French": ("L’été, déjà", "l été déjà"),
    "German": ("STRAẞE Straße", "strasse strasse"),
    "English": ("Don't cross-check x² 1999", "don t cross check x2 1999"),
}
REFERENCES = {
    "Chinese": "委员会通过了预算。",
    "Hindi": "समिति ने बजट पारित किया।",
    "Russian": "Комитет принял бюджет.",
    "Thai": "คณะกรรมการอนุมัติงบประมาณ",
    "French": "Le comité a approuvé le budget, déjà très réduit.",
    "Korean": "위원회는 예산을 통과시켰다.",
}
ENGLISH = ["The committee approved the budget.", "Expression of β-catenin fell, as in " + "many other cases " * 20]


@pytest.mark.parametrize("language", SCRIPTS)
def test_words_of_a_script(language):
    text, expected = SCRIPTS[language]
    assert words.unicode_words(text) == expected.split()


def test_texts_that_look_alike_have_the_same_words():
    found = words.unicode_words("cafe\u0301 ﬁn １２ ﾈｺ soft\u00adware")
    assert found == words.unicode_words("café fin 12 ネコ software")


@pytest.mark.parametrize("language", REFERENCES)
def test_the_same_text_scores_100_and_another_one_less(language):
    text = REFERENCES[language]
    other = "猫。" + " ".join(REFERENCES[name] for name in REFERENCES if name != language)
    for found in (metrics.rouge(text, text, UNICODE), metrics.answer_scores(text, text, UNICODE)):
        assert set(found.values()) == {100.0}
    assert metrics.rouge(other, text, UNICODE)["rouge2"] < 50 and metrics.exact_match(other, text, UNICODE) == 0


def test_scores_of_hand_worked_texts():
    # 5 characters of 5 and 6 are shared, and 3 pairs of 4 and 5.
    got = metrics.rouge("我喜欢黑猫", "我不喜欢黑猫", UNICODE)
    assert got["rouge1"] == pytest.approx(200 * 5 / 11) and got["rouge2"] == pytest.approx(200 * 3 / 9)
    got = metrics.rouge("一。二三。", "二三。一。", UNICODE)  # the same sentences in another order
    assert got["rougeLsum"] == 100 > got["rougeL"]
    assert metrics.token_f1("在北京。", "北京", UNICODE) == pytest.approx(80)
    assert metrics.exact_match("北京。", "北京", UNICODE) == 100
    assert metrics.token_f1("在北京", "北京") == 0  # one word to SQuAD


def test_stems_are_those_of_the_language_asked_for():
    german, russian = words.named("unicode:german"), words.named("unicode:russian")
    assert german.of_text("Häuser Hauses") == ["haus", "haus"] != UNICODE.of_text("Häuser Hauses")
    assert (
        metrics.rouge("кошками", "кошка", russian)["rouge1"]
        == 100
        > metrics.rouge("кошками", "кошка", UNICODE)["rouge1"]
    )
    for name in ("unicode:klingon", "unicode:", "ascii", ""):
        with pytest.raises(
            ValueError, match=r"expected auto, rouge-score, unicode or unicode:LANGUAGE with one of arabic"
        ):
            words.named(name)
        with pytest.raises(ValueError, match=rf"rouge_tokenizer='{name}': expected auto"):
            DataConfig(rouge_tokenizer=name)


@given(st.text(alphabet=st.characters(max_codepoint=127), max_size=60))
@settings(deadline=None)
def test_of_ascii_text_unicodes_words_are_the_standard_ones(text):
    from rouge_score import tokenize

    text = text.replace("\x1c", " ").replace("\x1d", " ").replace("\x1e", " ").replace("\x1f", " ")
    assert words.unicode_words(text) == tokenize.tokenize(text, None)
    assert words.unicode_answer(text) == metrics.normalize_answer(text).split()


# Which words a data set gets


@pytest.mark.parametrize("language", REFERENCES)
def test_auto_takes_unicodes_words_where_rouge_score_cannot_read(language):
    assert words.choose("auto", [REFERENCES[language]] * 3, "summarization").name == "unicode"
    assert words.choose("rouge-score", [REFERENCES[language]], "summarization").name == "rouge-score"
    spaced = language not in ("Chinese", "Thai")
    assert words.choose("auto", [REFERENCES[language]], "answers").name == ("rouge-score" if spaced else "unicode")


def test_auto_keeps_rouge_scores_own_numbers_for_texts_that_it_reads():
    for task in ("summarization", "answers"):
        assert words.choose("auto", ENGLISH, task).name == words.choose("auto", [], task).name == "rouge-score"
    assert (
        words.choose("auto", [*ENGLISH, REFERENCES["Chinese"] * 9], "summarization").name == "unicode"
    )  # of the whole set


def test_zeros_that_say_nothing_are_told():
    given = [[REFERENCES["Hindi"]], ["!?", "…"], [REFERENCES["French"], "x"]]
    lost, empty = words.warnings(given, words.named("rouge-score"), "summarization")
    assert "words are lost, cut or taken for one; --rouge-tokenizer=unicode counts them" in lost
    assert empty.startswith("2 of 3 documents have no reference with a word that the rouge-score tokenizer counts")
    (empty,) = words.warnings(given, UNICODE, "summarization")
    assert empty.startswith("1 of 3 documents has no reference")
    assert list(words.warnings([[text] for text in ENGLISH], words.named("rouge-score"), "summarization")) == []


# The lead baseline


def test_the_lead_baseline_counts_the_same_words():
    assert metrics.average_words(["我喜欢猫。", "猫"], UNICODE) == 2  # of 4 and 1
    assert metrics.lead("「我喜欢」 猫。", 2, UNICODE) == "我喜"
    assert metrics.lead("Ах, да! Нет.", 2, UNICODE) == "Ах, да"
    assert (
        metrics.lead("猫", 5, UNICODE) == "猫"
        and metrics.lead("。", 5, UNICODE) == metrics.lead("猫", 0, UNICODE) == ""
    )


# In the programs


@pytest.fixture
def chinese(tmp_path):
    """A folder of data whose references are how the documents begin."""
    rows = [{"document": f"第{i}次会议。委员会通过了预算。", "summary": [f"第{i}次", f"第{i}次会议"]} for i in range(3)]
    (tmp_path / "test.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return ["--split=test", "--config.data.source=jsonl", f"--data-dir={tmp_path}", "--config.data.task=summarization"]


def test_programs_name_the_words_and_count_them_alike(workdir, chinese, cache, tmp_path, capsys):
    a, b = tmp_path / "a", tmp_path / "b"
    assert evaluate.main([f"--workdir={workdir}", *chinese, f"--output={a}"]) == 0
    out = capsys.readouterr().out
    assert "| rouge1: ROUGE-1 F1, not stemmed, unicode tokenizer" in out and "counts them" not in out
    scores = json.loads((a / "scores.json").read_text())
    assert scores["rouge_tokenizer"] == "unicode" and scores["lead_words"] == 4  # of 3 and 5
    assert scores["lead"]["rouge1"]["mean"] == pytest.approx(200 * 4 / 9)  # the better of 200 * 3 / 7 and this
    assert evaluate.main([f"--workdir={workdir}", *chinese, f"--output={b}", "--rouge-tokenizer=rouge-score"]) == 0
    out = capsys.readouterr().out
    assert "ROUGE-1 F1, stemmed, rouge-score tokenizer" in out and "--rouge-tokenizer=unicode counts them" in out
    lines = (b / "predictions.jsonl").read_text().splitlines()
    copies = [json.dumps(row | {"prediction": row["references"][0]}) + "\n" for row in map(json.loads, lines)]
    (b / "predictions.jsonl").write_text("".join(copies))
    for flags, name in (([], "unicode"), (["--rouge-tokenizer=rouge-score"], "rouge-score")):
        assert evaluate.main(["--compare", str(a), str(b), "--measures=rouge1", *flags]) == 0
        out = capsys.readouterr().out
        assert f"{name} tokenizer" in out and ("100.00" in out) == (name == "unicode")
        assert ("counts them" in out) == (name == "rouge-score")
        assert compare.main([f"A={a}", f"B={b}", "--measures=rouge1", *flags]) == 0
        out = capsys.readouterr().out
        assert f"{name} tokenizer" in out and ("| B   | 100.0 [" in out) == (name == "unicode")
        assert ("counts them" in out) == (name == "rouge-score")
    for program, arguments in ((evaluate, ["--compare", str(a), str(b)]), (compare, [f"A={a}", f"B={b}"])):
        with pytest.raises(SystemExit) as exit:
            program.main([*arguments, "--rouge-tokenizer=latin"])
        assert exit.value.code == 2
        assert "--rouge-tokenizer: 'latin': expected auto, rouge-score" in one_line_error(capsys.readouterr().err)


def test_zeros_of_evaluations_of_earlier_versions_are_told_too(tmp_path, capsys):
    rows = [
        {"id": str(i), "prediction": "猫", "reference": "猫", "answers": [], "scores": {"rouge1": 0.0}} for i in (0, 1)
    ]
    scores = {
        "scores": {"rouge1": {"mean": 0.0, "low": 0.0, "high": 0.0, "count": 2}},
        "kept_share": 1.0,
        "evidence": {},
    }
    (tmp_path / "scores.json").write_text(json.dumps(scores))
    (tmp_path / "predictions.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    for program, arguments in ((compare, [f"A={tmp_path}"]), (evaluate, ["--compare", str(tmp_path), str(tmp_path)])):
        assert program.main(arguments) == 0
        out = capsys.readouterr().out
        assert "rouge-score tokenizer" in out and "--rouge-tokenizer=unicode counts them" in out
        assert program.main([*arguments, "--rouge-tokenizer=auto"]) == 0
        out = capsys.readouterr().out
        assert "unicode tokenizer" in out and "100.0" in out and "warning" not in out


def test_several_references_count_alike_in_all_programs(workdir, chinese, cache, tmp_path, capsys):
    """Each score is the best over a document's references."""
    rows = [{"id": str(i), "prediction": "The cat sat.", "references": ["A dog.", "The cat sat."]} for i in range(3)]
    (tmp_path / "p.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert evaluate.main(["--compare", str(tmp_path / "p.jsonl"), str(tmp_path / "p.jsonl"), "--measures=rouge1"]) == 0
    assert "100.00" in capsys.readouterr().out
    assert evaluate.main([f"--workdir={workdir}", *chinese, f"--output={tmp_path / 'out'}"]) == 0
    for line in (tmp_path / "out" / "predictions.jsonl").read_text().splitlines():
        row = json.loads(line)
        each = [metrics.summary_scores(row["prediction"], reference, UNICODE) for reference in row["references"]]
        assert row["scores"] == {name: max(of[name] for of in each) for name in metrics.SUMMARY_SCORES}
