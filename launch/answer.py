"""Draws a new document of the synthetic task, lets a model that learned it answer, and prints what it found where.

  python launch/answer.py runs/quickstart/simcas runs/quickstart/document.txt

The document is written into the second file. Words in [brackets] are those whose states the decoder could read.
"""

import argparse
import dataclasses
import sys
import textwrap
from collections.abc import Iterator
from pathlib import Path

import jax_simcas
from jax_simcas.common.cli import prepare_jax
from jax_simcas.common.errors import UserError
from jax_simcas.data.plain_english import TOKEN
from jax_simcas.data.rows import Row
from jax_simcas.data.synthetic import SyntheticConfig, SyntheticSource
from jax_simcas.evaluation.summarizer import Summary
from jax_simcas.run.build import read_settings

SEED = 2_024  # of the document; the models are trained and evaluated on seed 0
WIDTH = 110


def spread_document(config: SyntheticConfig) -> Row:
    """The first document whose facts lie in different chunks."""
    for row in SyntheticSource("test", config):
        starts = [start for start, _ in row.evidence or ()]
        tokens = [sum(1 for _ in TOKEN.finditer(row.document, 0, start)) for start in starts]
        if len({token // config.words_per_chunk for token in tokens}) == config.slots:
            return row
    raise UserError(f"none of {config.held_out_rows} documents has its facts in different chunks")


def marked_chunks(summary: Summary) -> Iterator[str]:
    """The text of each chunk, with what was kept in brackets."""
    read, text = summary.read, summary.document
    for chunk in range(summary.chunks):
        own = [i for i, k in enumerate(read.chunk) if k == chunk]
        end = int(read.span[own[0]][0])
        parts = []
        for i in own:
            start, stop = map(int, read.span[i])
            word = text[start:stop]
            parts += [text[end:start], f"[{word}]" if read.kept[i] else word]
            end = stop
        yield "".join(parts)


def chunk_of(summary: Summary, character: int) -> int:
    """The number of the chunk, from 1, that the character was read in."""
    return next(
        int(chunk) + 1
        for (start, end), chunk in zip(summary.read.span, summary.read.chunk, strict=True)
        if start <= character < end
    )


def found(summary: Summary, row: Row) -> Iterator[str]:
    """For each part of the answer, where the decoder looked most as it wrote it."""
    assert summary.written is not None
    for (start, end), chunks, places, weights in zip(
        summary.written.span, summary.written.chunk, summary.written.place, summary.written.weight, strict=True
    ):
        word = summary.summary[start:end].strip(" ,")
        if not word:
            continue
        at, to = map(int, places[0])
        where = f"chunk {chunks[0] + 1}"
        looked = f"a chunk's end in {where}" if at < 0 else f"{sentence_at(row.document, at, to)}  ({where})"
        yield f"  {word:10} {100 * weights[0]:3.0f} % of its attention: {looked}"


def sentence_at(text: str, start: int, end: int, mark_them: bool = True) -> str:
    """The sentence around some characters, with these in brackets if `mark_them`."""
    before = max(text.rfind(mark, 0, start) for mark in ".?") + 1
    after = min((at for at in (text.find(mark, end - 1) for mark in ".?") if at >= 0), default=len(text) - 1) + 1
    word = f"[{text[start:end]}]" if mark_them else text[start:end]
    return f"{text[before:start]}{word}{text[end:after]}".strip()


def facts(summary: Summary, row: Row) -> Iterator[str]:
    """The facts of the document that answer its question, and whether they were kept."""
    for start, end in row.evidence or ():
        kept = any(a < end and start < b for a, b in summary.kept_spans)
        fact = sentence_at(row.document, start, end, mark_them=False)
        yield f"  chunk {chunk_of(summary, start)}: {fact:32} {'kept' if kept else 'not kept'}"


def report(summary: Summary, row: Row) -> str:
    lines = []
    for number, text in enumerate(marked_chunks(summary), 1):
        lines += textwrap.wrap(text, WIDTH, initial_indent=f"  {number}  ", subsequent_indent="     ")
    question = row.document[: row.document.index("?") + 1]
    right = "right" if summary.summary == row.summary else "wrong"
    share = 100 * summary.kept / summary.candidates
    return "\n".join(
        [
            f"The document, chunk by chunk; [kept]: the {summary.kept} of {summary.candidates} states ({share:.0f} %) "
            "that the decoder could read:",
            *lines,
            "",
            "The facts that answer the question:",
            *facts(summary, row),
            "",
            f"question:            {question}",
            f"expected answer:     {row.summary}",
            f"the model's answer:  {summary.summary}  ({right})",
            "",
            "Where the model looked as it wrote each word:",
            *found(summary, row),
        ]
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "model", type=Path, help="workdir or folder of weights of a model that learned the synthetic task in English"
    )
    parser.add_argument("document", type=Path, help="file that the new document is written into")
    arguments = parser.parse_args()
    prepare_jax()
    try:
        model = jax_simcas.load(str(arguments.model))
        config = read_settings(str(arguments.model)).data.embedded
        if config.wording != "english":
            raise UserError(
                f"{arguments.model}: did not learn the synthetic task in English; see configs/quickstart.py"
            )
        row = spread_document(dataclasses.replace(config, seed=SEED))
        arguments.document.write_text(f"{row.document}\n", encoding="utf-8")
        summary = model.summarize(row.document, attention=True)
    except (UserError, OSError) as error:
        sys.exit(f"error: {error}")
    print(report(summary, row))


if __name__ == "__main__":
    main()
