"""A check's figures as Markdown: its parts, the measurements, and ours beside the fastest of the PyTorch sides."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from statistics import median
from typing import Any

from jax_simcas.benchmark import gpu, growth
from jax_simcas.common import tables

BESIDE = ("stage", "size", "tokens", "remat", "jax, s", "fastest other side", "s", "times as fast", "memory", "of peak")


def beside_fastest(results: Sequence[dict[str, Any]], card: gpu.Card | None = None) -> list[dict[str, Any]]:
    """For each stage, size and length measured on our side and on another: ours beside the fastest other side.

    memory: our peak over that side's. of peak: our share of the card's bfloat16 products.
    """
    rows = []
    for ours in results:
        same = ("stage", "size", "length", "dtype")
        others = [r for r in results if r["side"] != "jax" and all(r[name] == ours[name] for name in same)]
        if ours["side"] != "jax" or not others:
            continue
        fastest = min(others, key=lambda result: median(result["seconds"]))
        seconds, least = median(ours["seconds"]), median(fastest["seconds"])
        rows.append(
            {
                **{"stage": ours["stage"], "size": ours["size"], "tokens": f"{ours['length']:,}"},
                "remat": ours["remat"],
                **{"jax, s": f"{seconds:.3g}", "fastest other side": fastest["side"], "s": f"{least:.3g}"},
                "times as fast": f"{least / seconds:.2f}",
                "memory": f"{ours['peak_bytes'] / fastest['peak_bytes']:.2f}",
                "of peak": growth.result_cells(ours, card)["of peak"],
            }
        )
    return rows


def results_of(parts: Iterable[dict[str, Any]]) -> list[dict[str, Any]]:
    """The measurements of all calls of the benchmark."""
    return [result for part in parts for result in part["figures"].get("results", ())]


def card_of(parts: Iterable[dict[str, Any]]) -> gpu.Card | None:
    """The card that the environment names."""
    found = next((part["figures"]["card"] for part in parts if part["figures"].get("card")), None)
    return gpu.Card(**found) if found else None


def _cell(figures: dict[str, Any]) -> str:
    """Figures in one cell; measurements and tracebacks have places of their own."""
    shown = {name: value for name, value in figures.items() if name not in ("results", "traceback")}
    return "; ".join(f"{name}: {_short(value)}" for name, value in shown.items() if value not in (None, [], {}))


def _short(value: Any) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{name} {inner}" for name, inner in value.items() if inner is not None)
    if isinstance(value, list):
        return f"{len(value)} ({', '.join(map(str, value[:3]))}{', ...' if len(value) > 3 else ''})"
    return str(value)


def markdown(content: dict[str, Any]) -> str:
    """The whole page."""
    parts = content["parts"]
    results, card = results_of(parts), card_of(parts)
    rows = [
        {
            "part": part["name"],
            "verdict": part["problem"] or "ok",
            "s": f"{part['seconds']:.0f}",
            "figures": _cell(part["figures"]),
        }
        for part in parts
    ]
    blocks = [f"Started {content['started']}.", tables.markdown_table(rows, ["part", "verdict", "s", "figures"])]
    if beside := beside_fastest(results, card):
        blocks.append(tables.markdown_table(beside, BESIDE))
    if results:
        cells = [growth.result_cells(result, card) for result in results]
        blocks.append(tables.markdown_table(cells, growth.columns(card)))
    return "\n\n".join(blocks) + "\n"
