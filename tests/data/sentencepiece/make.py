"""Writes this folder's models, and what sentencepiece and transformers' slow tokenizers make of texts with them.

Needs the sentencepiece package, which neither this project nor its tests need. From the project's root:

    python tests/data/sentencepiece/make.py
"""

import io
import json
import random
import tempfile
import unicodedata
from pathlib import Path

import sentencepiece
from transformers import M2M100Tokenizer, MarianTokenizer, PLBartTokenizer

HERE = Path(__file__).parent
LETTERS, MARKS = "aeinouyAEO", "\u0300\u0301\u0302\u0303\u0308\u0323\u0327"
FULL_WIDTH = [chr(0xFEE0 + code) for code in range(0x21, 0x5F)]
SINGLE = [*FULL_WIDTH, *"\ufb01\ufb02\u2026\u00bd\u2460\u2122\uff76\uff80\uff9e"]
SPACES, NOTHING = "\t\n\r\u00a0\u2003\u3000\u2581", "\u200b\ufeff"
TEXT = """
    def return if self x y value getValue ( ) { } [ ] : = == += ; NEW_LINE INDENT DEDENT the of public int 0 12 2024
    3.14 # // === ------ aaaaaaa ... n't 's . , ! ? ' " java <s> </s> <pad> <unk> <mask> __java__ __go__ __en_XX__
    na\u00efve caf\u00e9 e\u0301 A\u0302\u0300 o\u0323\u0302 \u4e2d\u6587 \U0001f600 \ufb01 \u2026 \u00bd \u2122
    \uff12\uff10\uff12\uff14 \uff76\uff9e \u200b \u2581
"""
WORDS = TEXT.split()
GAPS = [" "] * 4 + ["", "  ", "\t", "\n", "\r\n", "\n    ", "\u00a0", "\u3000"]


def rules() -> str:
    """A part of what nmt_nfkc, the normalisation of the published models, does: as hexadecimal code points."""
    composed = {letter + mark: unicodedata.normalize("NFC", letter + mark) for letter in LETTERS for mark in MARKS}
    composed |= {both + mark: unicodedata.normalize("NFC", both + mark) for both in composed for mark in MARKS}
    table = {old: new for old, new in composed.items() if len(new) == 1}
    table |= {new + old[-1]: table[new + old[-1]] for old, new in composed.items() if new + old[-1] in table}
    table |= {old: unicodedata.normalize("NFKC", old) for old in [*SINGLE, "\uff76\uff9e", "\uff80\uff9e"]}
    table |= dict.fromkeys(SPACES, " ") | dict.fromkeys(NOTHING, "")
    return "".join(f"{spelled(old)}\t{spelled(new)}\n" for old, new in sorted(table.items()))


def spelled(text: str) -> str:
    return " ".join(f"{ord(character):X}" for character in text)


def train(name: str, texts: list[str], **options: object) -> None:
    """As the published model: sentencepiece's defaults but for what is named. One that is there stays."""
    if (HERE / name).exists():
        return
    written = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(texts), model_writer=written, character_coverage=1.0, minloglevel=2, **options
    )
    (HERE / name).write_bytes(written.getvalue())


def texts(count: int) -> list[str]:
    rng = random.Random(0)
    made = ["", " ", "\n\t ", " x", "x ", "\u2581x \u2581"]
    while len(made) < count:
        made.append("".join(rng.choice(WORDS) + rng.choice(GAPS) for _ in range(rng.randrange(1, 9))))
    return made


def expected(model: str, lines: list[str]) -> dict:
    """Ids and texts with both sets of language codes; the frames are of java for documents, of English for targets."""
    found: dict = {"lines": lines}
    rng = random.Random(1)
    for codes in ("base", "multi"):
        slow = PLBartTokenizer(str(HERE / model), language_codes=codes, src_lang="java", tgt_lang="en_XX")
        drawn = [[rng.randrange(len(slow)) for _ in range(rng.randrange(12))] for _ in range(40)]
        found[codes] = {
            "size": slow.vocab_size,
            "frames": [slow("").input_ids, slow(text_target="").input_ids],
            "ids": [slow(line, add_special_tokens=False).input_ids for line in lines],
            "drawn": drawn,
            "decoded": [[slow.decode(ids, skip_special_tokens=skip) for ids in drawn] for skip in (False, True)],
        }
    return found


def vocabulary(models: list[str], before: list[str], behind: list[str]) -> list[str]:
    """Tokens of a vocab.json: not all pieces of the models, in another order, and some that no model has."""
    rng = random.Random(2)
    processors = [sentencepiece.SentencePieceProcessor(str(HERE / f"{model}.model")) for model in models]
    pieces = [model.id_to_piece(i) for model in processors for i in range(3, model.get_piece_size())]
    kept = [piece for piece in dict.fromkeys(pieces) if rng.random() < 0.8]
    rng.shuffle(kept)
    return [*dict.fromkeys([*before, *kept, "\u2603", "\u2603\u2603", "\u2581snow", *behind])]


def with_vocabulary(kind: type, files: dict[str, str], tokens: list[str], languages: dict[str, str]) -> dict:
    """Of a tokenizer with a vocab.json: `files` are its sentencepiece models by the argument that names them."""
    lines = ["", ">>de<<", ">>de<< x", ">>fr<<x", ">> x", ">>a b<<  c", "\u2603", "e\u0301 \u2603\u2603\u2604 x"]
    lines += [f"{start}{line}" for line, start in zip(texts(52), [">>de<< ", "", "\u2603 ", ""] * 13, strict=True)]
    with tempfile.TemporaryDirectory() as folder:
        vocab = Path(folder, "vocab.json")
        vocab.write_text(json.dumps({token: i for i, token in enumerate(tokens)}))
        given = {argument: str(HERE / f"{model}.model") for argument, model in files.items()}
        given["vocab" if kind is MarianTokenizer else "vocab_file"] = str(vocab)
        slow = kind(**given, **languages)
        size = 1 + max([*slow.get_vocab().values(), *getattr(slow, "lang_code_to_id", {}).values()])
        rng = random.Random(1)
        drawn = [[rng.randrange(size) for _ in range(rng.randrange(12))] for _ in range(40)]
        few = [*slow.all_special_ids[:4], *slow.convert_tokens_to_ids(["\u2581", "\u2581snow", "\u2603", "\u2581x"])]
        drawn += [[rng.choice(few) for _ in range(6)] for _ in range(40)]
        return {
            "files": files,
            "vocabulary": tokens,
            "size": size,
            "frames": [slow("").input_ids, slow(text_target="").input_ids],
            "lines": lines,
            "ids": [slow(line, add_special_tokens=False).input_ids for line in lines],
            "targets": [slow(text_target=line, add_special_tokens=False).input_ids for line in lines],
            "drawn": drawn,
            "decoded": [[slow.decode(ids, skip_special_tokens=skip) for ids in drawn] for skip in (False, True)],
        }


def write(name: str, found: dict) -> None:
    lines = (f"{json.dumps(key)}:{json.dumps(value, separators=(',', ':'))}" for key, value in found.items())
    (HERE / name).write_text("{" + ",\n".join(lines) + "}\n")


def main() -> None:
    root = HERE.parents[2]
    code = [line.strip() for path in sorted((root / "jax_simcas/method").glob("*.py")) for line in path.open()]
    code = [line for line in code if line]
    with tempfile.NamedTemporaryFile("w", suffix=".tsv") as file:
        file.write(rules())
        file.flush()
        train("bpe.model", code, model_type="bpe", vocab_size=500, normalization_rule_tsv=file.name)
    with tempfile.NamedTemporaryFile("w", suffix=".tsv") as file:
        file.write("1\t\n7F\t\n")
        file.flush()
        train("controls.model", code, model_type="bpe", vocab_size=120, normalization_rule_tsv=file.name)
    plain = {"normalization_rule_name": "identity", "remove_extra_whitespaces": False}
    train("unigram.model", code, model_type="unigram", vocab_size=300, **plain)
    for model, count in (("bpe", 200), ("unigram", 60)):
        write(f"{model}.json", expected(f"{model}.model", texts(count)))
    fairseq = vocabulary(["bpe"], ["<s>", "<pad>", "</s>", "<unk>"], [])
    languages = {"src_lang": "en", "tgt_lang": "de"}
    write("m2m100.json", with_vocabulary(M2M100Tokenizer, {"spm_file": "bpe"}, fairseq, languages))
    both = {"source_spm": "unigram", "target_spm": "bpe"}
    marian = vocabulary(["unigram", "bpe"], ["</s>", "<unk>"], [">>de<<", "<pad>"])
    write("marian.json", with_vocabulary(MarianTokenizer, both, marian, {"source_lang": "en", "target_lang": "de"}))


if __name__ == "__main__":
    main()
