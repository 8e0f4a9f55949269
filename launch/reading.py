"""Makes rows that teach a small model to read: a window of a document, and some of its sentences in order as summary.

  python launch/reading.py DATA/sumpubmed DATA/qmsum --to DATA/reading

Each folder has train.jsonl.gz and validation.jsonl.gz with the field document; so will the new one, with summary too.
configs/reading.py trains on them.
"""

import argparse
import gzip
import json
import random
from collections.abc import Iterator
from pathlib import Path

WINDOW, SUMMARY = 160, 90  # words; about 254 and 150 tokens
SHORTEST, LONGEST = 4, 100  # words of a sentence that is taken
HELD_OUT = 400  # rows of the validation split


def windows(document: str, limit: int) -> Iterator[list[str]]:
    """Sentences, as many as fit; cut at ". " only, which does for text that is read by machines."""
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


def chosen(window: list[str], rng: random.Random) -> list[str]:
    """Random sentences of it, as many as fit, in its order."""
    kept, words = set(), 0
    for index in rng.sample(range(len(window)), len(window)):
        count = len(window[index].split())
        if words + count <= SUMMARY:
            kept.add(index)
            words += count
    return [window[index] for index in sorted(kept)]


def main() -> None:
    form = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=form)
    parser.add_argument("folders", nargs="+", type=Path)
    parser.add_argument("--to", required=True, type=Path, help="the folder to make")
    parser.add_argument("--words", type=int, default=WINDOW, help="of a window (default: %(default)s)")
    arguments = parser.parse_args()
    rng = random.Random(0)
    arguments.to.mkdir(parents=True, exist_ok=True)
    for split in ("train", "validation"):
        rows = []
        for folder in arguments.folders:
            with gzip.open(folder / f"{split}.jsonl.gz", "rt", encoding="utf-8") as file:
                documents = dict.fromkeys(json.loads(line)["document"] for line in file)  # a meeting has several rows
            for window in (window for text in documents for window in windows(text, arguments.words)):
                summary = chosen(window, rng)
                rows.append({"document": ". ".join(window) + ".", "summary": ". ".join(summary) + "."})
        rng.shuffle(rows)
        rows = rows if split == "train" else rows[:HELD_OUT]
        with gzip.open(arguments.to / f"{split}.jsonl.gz", "wt", encoding="utf-8") as file:
            file.writelines(json.dumps(row) + "\n" for row in rows)
        print(f"{split}: {len(rows)} rows")


if __name__ == "__main__":
    main()
