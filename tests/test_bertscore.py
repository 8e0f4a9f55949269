"""BERTScore on tiny encoders with random weights: by hand, by definition, and what is said of what is missing."""

import sys
from types import SimpleNamespace

import numpy as np
import pytest
from helpers import BERT_POSITIONS, BERT_WORDS, tiny_bert

from jax_simcas.common.errors import UserError
from jax_simcas.data.tokenizer import byte_level_bpe, word_level
from jax_simcas.evaluation import bertscore


@pytest.fixture(scope="module")
def bert(tmp_path_factory):
    return tiny_bert(tmp_path_factory.mktemp("models") / "tiny-bert")


@pytest.fixture(scope="module")
def encoder(bert):
    return bertscore.load_encoder(f"{bert}@2")


def states(vectors, counts=None):
    vectors = np.array(vectors, np.float32)
    return bertscore.States(vectors, np.ones(len(vectors), bool) if counts is None else np.array(counts, bool))


def test_matching_of_hand_worked_vectors():
    # Cosines 1 and 0.6 of the first token, 0 and 0.8 of the second.
    got = bertscore.match(states([[1, 0], [0, 1]]), states([[1, 0], [0.6, 0.8]]))
    assert got == pytest.approx((0.9, 0.9, 0.9))
    got = bertscore.match(states([[1, 0]]), states([[1, 0], [0, 1]]))
    assert got == pytest.approx((1, 0.5, 2 / 3))


def test_special_tokens_are_matched_but_do_not_count():
    # The prediction's second token is special; the reference's second finds its only partner in it.
    got = bertscore.match(states([[1, 0], [0, 1]], [1, 0]), states([[1, 0], [0, 1]]))
    assert got == pytest.approx((1, 1, 1))
    got = bertscore.match(states([[1, 0], [0, 1]], [1, 0]), states([[0.6, 0.8]]))
    assert got == pytest.approx((0.6, 0.8, 0.96 / 1.4))
    assert bertscore.match(states([[1, 0]], [0]), states([[1, 0]])) == (0, 0, 0)
    assert bertscore.match(states([[1, 0]]), states([[-1, 0]])) == (-1, -1, 0)


def test_scores_are_the_papers_definition(encoder):
    """By loops over the hidden states that transformers gives for each text alone."""
    import torch

    def vectors(text):
        inputs = encoder.tokenizer(text, return_tensors="pt")
        with torch.no_grad():
            hidden = encoder.model(**inputs, output_hidden_states=True).hidden_states
        return hidden[2][0].double()

    def cosine(x, y):
        return float(x @ y / x.norm() / y.norm())

    prediction, reference = "w1 w2 w3", "w2 w4 w1 w9 w3"
    x, y = vectors(prediction), vectors(reference)
    precision = np.mean([max(cosine(a, b) for b in y) for a in x[1:-1]])
    recall = np.mean([max(cosine(a, b) for a in x) for b in y[1:-1]])
    (got,) = bertscore.bertscore(encoder, [prediction], [[reference]])
    assert got == pytest.approx((precision, recall, 2 * precision * recall / (precision + recall)), abs=1e-5)
    assert 0 < got.f1 < 1


def test_batches_and_order_change_nothing(encoder):
    rng = np.random.default_rng(0)
    texts = [" ".join(rng.choice(BERT_WORDS, size)) for size in rng.integers(1, 14, 150)]
    predictions, references = texts[:75], [[text] for text in texts[75:]]
    got = bertscore.bertscore(encoder, predictions, references)
    for i in (0, 40, 74):
        assert bertscore.bertscore(encoder, predictions[i : i + 1], references[i : i + 1])[0] == pytest.approx(
            got[i], abs=1e-5
        )
    swapped = bertscore.bertscore(encoder, texts[75:], [[text] for text in predictions])
    np.testing.assert_allclose([(m.recall, m.precision, m.f1) for m in swapped], got, atol=1e-5)
    same = bertscore.bertscore(encoder, predictions, [[text] for text in predictions])
    np.testing.assert_allclose(same, 1, atol=1e-5)


def test_the_best_of_several_references_counts(encoder):
    several, alone = bertscore.bertscore(encoder, ["w1 w2", "w1 w2"], [["w8", "w1 w2 w3", "w9"], ["w1 w2 w3"]])
    assert several == pytest.approx(alone, abs=1e-5)
    with pytest.raises(ValueError):
        bertscore.bertscore(encoder, ["w1"], [])


def test_nothing_matches_nothing(encoder):
    pairs = [("", "w1"), ("w1", " \n"), ("", "")]
    got = bertscore.bertscore(encoder, [p for p, _ in pairs], [[r] for _, r in pairs])
    assert got == [(0, 0, 0)] * 3


def test_nothing_matches_nothing_with_bytes_either(tmp_path):
    """Vocabularies of bytes have a token for the space before a word."""
    torch = pytest.importorskip("torch")
    from transformers import RobertaConfig, RobertaModel

    byte_level_bpe(["some text and more"], 270, tmp_path / "roberta")
    torch.manual_seed(0)
    sizes = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 16}
    RobertaModel(RobertaConfig(vocab_size=270, max_position_embeddings=40, **sizes)).save_pretrained(
        tmp_path / "roberta"
    )
    encoder = bertscore.load_encoder(f"{tmp_path}/roberta@2")
    got = bertscore.bertscore(encoder, ["", "some text", " ", "text"], [["some text"], [""], [" "], ["text"]])
    assert got[:3] == [(0, 0, 0)] * 3 and got[3].f1 == pytest.approx(1, abs=1e-5)


def test_long_texts_are_cut(encoder):
    assert encoder.limit == BERT_POSITIONS
    long, cut = " ".join(BERT_WORDS), " ".join(BERT_WORDS[: BERT_POSITIONS - 2])
    (got,) = bertscore.bertscore(encoder, [long], [[cut]])
    assert got.f1 == pytest.approx(1, abs=1e-5)


@pytest.mark.parametrize(
    ("kind", "positions", "knows", "limit"),
    [("bert", 512, 10**30, 512), ("roberta", 514, 10**30, 512), ("roberta", 514, 256, 256), ("t5", None, 99, 99)],
)
def test_the_limit_is_what_the_positions_allow(kind, positions, knows, limit):
    config = SimpleNamespace(model_type=kind, pad_token_id=1)
    if positions:
        config.max_position_embeddings = positions
    assert bertscore._limit(SimpleNamespace(model_max_length=knows), config) == limit


def test_the_encoder_of_an_encoder_decoder_serves(tmp_path):
    torch = pytest.importorskip("torch")
    from transformers import BartConfig, BartModel

    word_level(BERT_WORDS, tmp_path / "bart-base")  # named after one whose best layer is known
    torch.manual_seed(0)
    sizes = {"d_model": 16, "encoder_layers": 6, "decoder_layers": 1, "encoder_ffn_dim": 16, "decoder_ffn_dim": 16}
    heads = {"encoder_attention_heads": 2, "decoder_attention_heads": 2, "max_position_embeddings": 20}
    BartModel(BartConfig(vocab_size=35, **sizes, **heads)).save_pretrained(tmp_path / "bart-base")
    encoder = bertscore.load_encoder(str(tmp_path / "bart-base"))
    assert encoder.score_name == "bertscore/bart-base@6"
    same, other = bertscore.bertscore(encoder, ["w1 w2", "w1 w2"], [["w1 w2"], ["w3"]])
    assert same.f1 == pytest.approx(1, abs=1e-5) and other.f1 < 1


def test_the_score_is_named_after_model_and_layer(encoder):
    assert encoder.score_name == "bertscore/tiny-bert@2"


@pytest.mark.parametrize(
    ("choice", "message"),
    [
        ("", "expected MODEL or MODEL@LAYER"),
        ("@3", "expected MODEL or MODEL@LAYER"),
        ("{}", "no layer is known to be best for it; give {}@LAYER, 1 to 3"),
        ("{}@4", "it has 3 layers; give {}@LAYER, 1 to 3"),
        ("{}@0", "it has 3 layers"),
        ("{}/nowhere@2", "cannot be loaded ("),
    ],
)
def test_a_choice_that_cannot_be_used_is_told(choice, message, bert):
    with pytest.raises(UserError) as error:
        bertscore.load_encoder(choice.format(bert))
    assert message.format(bert) in str(error.value) and "\n" not in str(error.value)


def test_missing_weights_are_not_made_up(bert, tmp_path):
    import shutil

    from safetensors.numpy import load_file, save_file

    folder = shutil.copytree(bert, tmp_path / "damaged")
    weights = load_file(folder / "model.safetensors")
    del weights["encoder.layer.1.attention.self.query.weight"], weights["pooler.dense.bias"]
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(
        UserError, match=r"1 weights are missing, the first is encoder\.layer\.1\.attention\.self\.query"
    ):
        bertscore.load_encoder(f"{folder}@2")


def test_without_pytorch_the_extra_is_named(bert, monkeypatch):
    monkeypatch.setitem(sys.modules, "torch", None)
    with pytest.raises(UserError, match=r"needs PyTorch; pip install 'jax_simcas\[bertscore\]'"):
        bertscore.load_encoder(f"{bert}@2")
