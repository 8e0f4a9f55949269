"""Draws the pictures of the documentation that are not made by a program.

python docs/make_pictures.py                                       images/method.svg
python docs/make_pictures.py --model=runs/long --small=runs/short  also page-long.png, page.png and kept.png
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Sequence
from itertools import pairwise
from pathlib import Path
from typing import NamedTuple

from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import FancyArrowPatch, FancyBboxPatch
from PIL import Image

from jax_simcas.data.plain_english import TOKEN
from jax_simcas.data.rows import Row
from jax_simcas.data.synthetic import WORDINGS, SyntheticSource
from jax_simcas.run.config import read_json

IMAGES = Path(__file__).with_name("images")
INK, FAINT, LINE = "#22272e", "#6b7480", "#aab4c0"
PLAIN, BOUNDARY, KEPT, STATE, REWARD = "#e9edf2", "#f2b56b", "#2f6db3", "#3a8f5c", "#b5483a"
CHUNKS, TOKENS = 3, 6
KEPT_TOKENS = {(0, 2), (1, 3), (1, 4), (2, 1)}  # (chunk, position)


def box(axes: Axes, x: float, y: float, width: float, height: float, text: str, fill: str, **style: object) -> None:
    """A rounded box with text in its middle."""
    shape = "round,pad=0,rounding_size=0.06"
    edge = {"edgecolor": LINE, "linewidth": 0.9} | style
    axes.add_patch(FancyBboxPatch((x, y), width, height, boxstyle=shape, facecolor=fill, **edge))  # type: ignore[arg-type]
    axes.text(x + width / 2, y + height / 2, text, ha="center", va="center", fontsize=9.5, color=INK)


def arrow(axes: Axes, start: tuple, end: tuple, color: str = FAINT, bend: float = 0.0, dashed: bool = False) -> None:
    """An arrow, straight or bent."""
    style = f"arc3,rad={bend}"
    line = (0, (4, 3)) if dashed else "solid"
    axes.add_patch(
        FancyArrowPatch(
            start, end, connectionstyle=style, arrowstyle="-|>", mutation_scale=10, color=color, linestyle=line, lw=1.2
        )
    )


def tokens(axes: Axes, x: float, y: float, chunk: int, last: bool) -> None:
    """One chunk's row of states: boundary states in their colour and, after the last layer, the kept ones in theirs."""
    for position in range(TOKENS):
        boundary = position in (0, TOKENS - 1)
        kept = last and (chunk, position) in KEPT_TOKENS
        fill = KEPT if kept else BOUNDARY if boundary else PLAIN
        axes.add_patch(
            FancyBboxPatch(
                (x + 0.23 * position, y),
                0.19,
                0.3,
                boxstyle="round,pad=0,rounding_size=0.04",
                facecolor=fill,
                edgecolor="white",
                linewidth=0.6,
            )
        )


def draw_encoder(axes: Axes, rows: list[float]) -> None:
    """Chunks, two columns of states, the alignment between them."""
    for chunk, y in enumerate(rows):
        box(axes, 1.55, y - 0.08, 1.55, 0.46, f"chunk {chunk}", "white")
        arrow(axes, (1.15, 1.78), (1.53, y + 0.15), bend=0.0)
        arrow(axes, (3.12, y + 0.15), (3.48, y + 0.15))
        tokens(axes, 3.5, y, chunk, last=False)
        arrow(axes, (4.9, y + 0.15), (5.68, y + 0.15))
        tokens(axes, 5.7, y, chunk, last=True)
    low, high = rows[-1] - 0.1, rows[0] + 0.4
    for x in (3.595, 3.5 + 0.23 * (TOKENS - 1) + 0.095):
        axes.plot([x, x], [low, high], color="#c9802a", linewidth=1.4, zorder=0)
    axes.text(4.18, high + 0.36, "align", ha="center", fontsize=11, color=INK, weight="bold")
    axes.text(4.18, high + 0.14, "averages over chunks, between layers", ha="center", fontsize=8.2, color=FAINT)
    axes.text(2.32, high + 0.36, "chunk", ha="center", fontsize=11, color=INK, weight="bold")
    axes.text(6.38, high + 0.36, "select", ha="center", fontsize=11, color=INK, weight="bold")
    axes.text(6.38, high + 0.14, "chunk by chunk", ha="center", fontsize=8.2, color=FAINT)


def method() -> Figure:
    """The picture of the method, from document to summary and back to the selector."""
    figure = Figure(figsize=(11.2, 3.9), facecolor="white")
    axes = figure.add_axes((0, 0, 1, 1))
    axes.set_xlim(0, 11.2)
    axes.set_ylim(-0.25, 3.65)
    axes.axis("off")
    rows = [2.4, 1.63, 0.86]
    box(axes, 0.15, 1.38, 1.0, 0.8, "document", "white")
    draw_encoder(axes, rows)
    box(axes, 7.7, 1.05, 0.62, 1.45, "", "white")
    axes.text(8.01, 2.82, "kept", ha="center", fontsize=11, color=INK, weight="bold")
    axes.text(8.01, 2.6, "capacity C", ha="center", fontsize=8.2, color=FAINT)
    for place in range(5):
        fill = STATE if place == 0 else KEPT
        shape = "round,pad=0,rounding_size=0.04"
        y = 2.22 - 0.26 * place
        axes.add_patch(FancyBboxPatch((7.86, y), 0.3, 0.19, boxstyle=shape, facecolor=fill, edgecolor="white"))
    for y in rows:
        arrow(axes, (7.1, y + 0.15), (7.68, 1.78))
    arrow(axes, (8.34, 1.78), (8.83, 1.78))
    box(axes, 8.85, 1.38, 1.0, 0.8, "decoder", "white")
    arrow(axes, (9.87, 1.78), (10.18, 1.78))
    box(axes, 10.2, 1.38, 0.85, 0.8, "summary", "white")
    arrow(axes, (9.35, 1.36), (6.38, 0.72), color=REWARD, bend=-0.32, dashed=True)
    axes.text(
        8.35,
        0.2,
        "reward: likelihood of the reference,\nshared by cross-attention (PPO)",
        ha="center",
        va="center",
        fontsize=8.6,
        color=REWARD,
    )
    legend = (
        (BOUNDARY, "boundary states"),
        (PLAIN, "other states"),
        (KEPT, "kept states"),
        (STATE, "document state g"),
    )
    for number, (fill, text) in enumerate(legend):
        x = 0.2 + 1.5 * number
        axes.add_patch(
            FancyBboxPatch(
                (x, 0.02), 0.17, 0.22, boxstyle="round,pad=0,rounding_size=0.04", facecolor=fill, edgecolor="white"
            )
        )
        axes.text(x + 0.25, 0.13, text, va="center", fontsize=8.6, color=FAINT)
    return figure


class Word(NamedTuple):
    """One token of a document of the synthetic task; `matters` marks the question and the facts."""

    text: str
    kept: bool
    matters: bool


def words_of(row: Row, punctuated: bool, kept_spans: list[list[int]]) -> list[Word]:
    """The tokens of a document, and which of them were kept."""
    pattern = TOKEN if punctuated else re.compile(r"\S+")
    question = [(0, row.document.index("?") + 1)] if punctuated else []

    def within(match: re.Match, spans: Iterable[Sequence[int]]) -> bool:
        return any(start < match.end() and match.start() < end for start, end in spans)

    return [
        Word(
            match[0],
            within(match, kept_spans),
            within(match, (*question, *(row.evidence or ()))) or match[0].startswith("ask-"),
        )
        for match in pattern.finditer(row.document)
    ]


def draw_word(axes: Axes, x: float, y: float, word: Word) -> None:
    """A word in its box: blue if it was kept, framed if it matters."""
    fill = "#bcd6f5" if word.kept else "#f4f6f8"
    style = {"facecolor": fill, "edgecolor": REWARD if word.matters else fill, "linewidth": 1.3}
    shape = "round,pad=0,rounding_size=0.08"
    axes.add_patch(FancyBboxPatch((x + 0.02, y - 0.4), 0.96, 0.8, boxstyle=shape, **style))
    color = INK if word.kept or word.matters else FAINT
    axes.text(x + 0.5, y, word.text, ha="center", va="center", fontsize=8, color=color)


def kept(words: list[Word], result: dict, words_per_chunk: int) -> Figure:
    """A document of the synthetic task, one chunk per line; chunks of which nothing was kept or matters are counted."""
    chunks = [words[start : start + words_per_chunk] for start in range(0, len(words), words_per_chunk)]
    shown = [k for k, chunk in enumerate(chunks) if any(word.kept or word.matters for word in chunk)]
    gaps = [(a, b) for a, b in pairwise([-1, *shown, len(chunks)]) if b - a > 1]
    lines = len(shown) + 0.62 * len(gaps)
    figure = Figure(figsize=(11.2, 0.34 * lines + 0.75), facecolor="white")
    axes = figure.add_axes((0, 0, 1, 1))
    axes.set_xlim(-1.05, words_per_chunk + 0.1)
    axes.set_ylim(lines + 0.75, -0.9)
    axes.axis("off")
    y = 0.0
    for before, k in pairwise([-1, *shown, len(chunks)]):
        if k - before > 1:
            many = f"{k - before - 1} chunks" if k - before > 2 else "1 chunk"
            axes.text(0.02, y - 0.17, f"⋯  {many} of which nothing was kept", va="center", fontsize=8, color=FAINT)
            y += 0.62
        if k < len(chunks):
            axes.text(-0.08, y, f"chunk {k}", ha="right", va="center", fontsize=8, color=FAINT)
            for x, word in enumerate(chunks[k]):
                draw_word(axes, x, y, word)
            y += 1
    caption = f"summary: {result['summary']}      {result['kept']} of {len(words) + len(chunks)} candidates kept"
    axes.text(0.02, y + 0.1, caption, va="center", fontsize=9.5, color=INK)
    return figure


def draw_kept(workdir: str) -> None:
    """images/kept.png, from a trained model of the synthetic task and a document that it has not seen."""
    config = read_json(Path(workdir) / "config.json").data.embedded
    row = SyntheticSource("test", dataclasses.replace(config, seed=2_024))[0]
    command = [sys.executable, "-m", "jax_simcas.summarize", f"--model={workdir}", "--json"]
    done = subprocess.run(command, input=row.document, capture_output=True, text=True, check=True)
    result = json.loads(done.stdout)
    words = words_of(row, WORDINGS[config.wording].punctuated, result["kept_spans"])
    figure = kept(words, result, config.words_per_chunk)
    figure.savefig(IMAGES / "kept.png", dpi=150)


def draw_page(workdir: str, image: Path, script: str, width: int, height: int, dark: bool = False) -> None:
    """A screenshot of the page of a document that the model has not seen, after `script` has run in it."""
    sys.path.append(str(IMAGES.parents[1] / "tests"))  # what drives the browser there
    from browser import chromium

    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-m", "jax_simcas.evaluate", f"--workdir={workdir}", "--split=test", "--limit=1"]
        command += ["--config.data.embedded.seed=2024", "--batch-size=1", f"--output={folder}", "--html"]
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
        with chromium(Path(folder) / "profile") as tab:
            tab.open(Path(folder) / "html" / "0.html", width=width, height=height, dark=dark)
            tab.run(script)
            tab.settle()
            tab.screenshot(image)
    with Image.open(image) as drawn:
        drawn.convert("RGB").quantize(128, Image.Quantize.MAXCOVERAGE, dither=Image.Dither.NONE).save(
            image, optimize=True
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", help="a workdir of the synthetic task: also images/page-long.png")
    parser.add_argument(
        "--small", help="a workdir of the synthetic task with short documents: also images/page.png, kept.png"
    )
    arguments = parser.parse_args()
    IMAGES.mkdir(exist_ok=True)
    with rc_context({"svg.hashsalt": "method"}):  # the same file each time
        method().savefig(IMAGES / "method.svg", metadata={"Date": None})
    if arguments.model:
        to_first_place = "choose(0); document.querySelector('#places button').click()"
        draw_page(arguments.model, IMAGES / "page-long.png", to_first_place, 1340, 720, dark=True)
    if arguments.small:
        draw_kept(arguments.small)
        draw_page(arguments.small, IMAGES / "page.png", "choose(2)", 1340, 860)


if __name__ == "__main__":
    main()
