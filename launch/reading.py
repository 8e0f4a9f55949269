"""Builds a sentence-extraction set from documents: a window of a document, and some of its sentences as the summary.

  python launch/reading.py DATA/sumpubmed DATA/qmsum --to DATA/reading

Reads train.jsonl.gz and validation.jsonl.gz of each folder (field `document`) and writes the same two files (fields
`document` and `summary`), on which configs/reading.py trains a small model to copy what it reads.
"""

import argparse
import gzip
import json
import random
import sys
import zlib
from collections.abc import Iterable, Iterator
from pathlib import Path

WINDOW, SUMMARY = 160, 90  # words; about 254 and 150 tokens
SHORTEST, LONGEST = 4, 100  # words per sentence; other sentences are dropped
HELD_OUT = 400  # rows of the validation split


def windows(document: str, limit: int) -> Iterator[list[str]]:
    """Runs of sentences of at most `limit` words; sentences are split at ". " only, which is enough here."""
    window, words = [], 0
    for sentence in document.replace("\n", " ").split(". "):
        count = len(sentence.split())
        if not SHORTEST <= count <= LONGEST:
            continue
        if words + count > limit and window:
            yield window
            window, words = [], 0
        window.append(sentence)
        words += count


def draw_sentences(window: list[str], rng: random.Random) -> list[str]:
    """Random sentences of a window of at most `SUMMARY` words in all, in the window's order."""
    kept, words = set(), 0
    for index in rng.sample(range(len(window)), len(window)):
        count = len(window[index].split())
        if words + count <= SUMMARY:
            kept.add(index)
            words += count
    return [window[index] for index in sorted(kept)]


def read_documents(path: Path) -> Iterable[str]:
    """The distinct documents of a file, in order: query-based sets repeat them."""
    try:
        with gzip.open(path, "rt", encoding="utf-8") as file:
            return dict.fromkeys(json.loads(line)["document"] for line in file)
    except (OSError, EOFError, zlib.error, ValueError, KeyError, TypeError) as error:
        sys.exit(f"error: {path}: cannot be read ({error!r}); expected JSON lines with the field document, gzipped")


def build_rows(folders: Iterable[Path], split: str, words: int, rng: random.Random) -> list[dict[str, str]]:
    """The rows of a split, shuffled."""
    rows = []
    for folder in folders:
        for document in read_documents(folder / f"{split}.jsonl.gz"):
            for window in windows(document, words):
                summary = draw_sentences(window, rng)
                if not summary:  # its sentences are all longer than a summary
                    continue
                rows.append({"document": ". ".join(window) + ".", "summary": ". ".join(summary) + "."})
    rng.shuffle(rows)
    return rows


def main() -> None:
    form = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=form)
    parser.add_argument("folders", nargs="+", type=Path)
    parser.add_argument("--to", required=True, type=Path, help="the folder to write")
    parser.add_argument("--words", type=int, default=WINDOW, help="per window (default: %(default)s)")
    arguments = parser.parse_args()
    rng = random.Random(0)
    splits = {split: build_rows(arguments.folders, split, arguments.words, rng) for split in ("train", "validation")}
    splits["validation"] = splits["validation"][:HELD_OUT]
    arguments.to.mkdir(parents=True, exist_ok=True)
    for split, rows in splits.items():
        with gzip.open(arguments.to / f"{split}.jsonl.gz", "wt", encoding="utf-8") as file:
            file.writelines(json.dumps(row) + "\n" for row in rows)
        print(f"{split}: {len(rows)} rows")


if __name__ == "__main__":
    main()
