"""Data sets in the form that their authors publish, where that is not one record per row."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from jax_simcas.common.errors import UserError
from jax_simcas.data.rows import Fields
from jax_simcas.data.stored import Store

QMSUM_FIELDS = Fields(query="query")
QUERY_BITS = 12  # of a place: the query's number within its meeting


class Qmsum(Store):
    """QMSum: a record is a meeting, and each of its queries a row, with the turns that annotators marked as evidence.

    Source: github.com/Yale-LILY/QMSum, README: `meeting_transcripts` of `speaker` and `content`; `general_query_list`
    and `specific_query_list` of `query`, `answer` and, in the latter, `relevant_text_span`: the first and last turn.

    Args:
      meetings: the store of the meetings.
    """

    def __init__(self, meetings: Store) -> None:
        self._meetings = meetings
        self.name, self.unit, self.key = meetings.name, meetings.unit, f"queries of {meetings.key}"

    def places(self) -> Iterator[tuple[int, int, Any]]:
        for number, place, meeting in self._meetings.places():
            if isinstance(meeting, UserError):
                yield number, place << QUERY_BITS, meeting
                continue
            try:
                rows = self._rows(meeting, number)
            except UserError as error:
                yield number, place << QUERY_BITS, error
                continue
            for i, row in enumerate(rows):
                yield number, (place << QUERY_BITS) + i, row

    def read(self, number: int, place: int) -> Any:
        meeting = self._meetings.read(number, place >> QUERY_BITS)
        return self._rows(meeting, number)[place & (1 << QUERY_BITS) - 1]

    def where(self, number: int) -> str:
        return self._meetings.where(number)

    def _rows(self, meeting: dict[str, Any], number: int) -> list[dict[str, Any]]:
        try:
            turns = [f"{turn['speaker']}: {turn['content']}" for turn in meeting["meeting_transcripts"]]
            queries = [*meeting.get("general_query_list", ()), *meeting.get("specific_query_list", ())]
            name = meeting.get("id", number)
            return [row_of(query, turns, f"{name}-{i}") for i, query in enumerate(queries)]
        except (AttributeError, IndexError, KeyError, TypeError, ValueError) as error:
            raise UserError(f"{self.where(number)}: not a meeting as QMSum is published ({error!r})") from None


def row_of(query: dict[str, Any], turns: list[str], name: str) -> dict[str, Any]:
    """The record of one query about a meeting; the general ones have no evidence, as they are about all of it."""
    record = {"id": name, "document": turns, "query": query["query"], "summary": query["answer"]}
    starts = [0]
    for turn in turns:
        starts.append(starts[-1] + len(turn) + 1)  # the line break
    spans = [(int(first), min(int(last), len(turns) - 1)) for first, last in query.get("relevant_text_span", ())]
    marked = [[starts[first], starts[last + 1] - 1] for first, last in spans if 0 <= first <= last]
    return record | {"evidence": marked} if marked else record
