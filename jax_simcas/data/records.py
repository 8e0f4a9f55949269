"""One record of a file or library -> one row: its fields by the names that `Fields` gives them, checked."""

from __future__ import annotations

import json
import math
import re
from dataclasses import dataclass
from typing import Any

from jax_simcas.common.errors import UserError
from jax_simcas.data.rows import Fields, Row

SENTENCE_TAG = re.compile(r"^\s*<S>\s*|\s*</S>\s*$")  # around each sentence of the published arXiv and PubMed abstracts
SPOKEN = ("content", "text", "utterance")  # keys of what a `speaker` says
FIELDS_LISTED = 20  # of a record that lacks one
SURROGATE = re.compile("[\ud800-\udfff]")


def is_several(mapping: dict[str, Any], fields: Fields) -> bool:
    """Whether a record has more than one text under `summary`."""
    value = Record(mapping, fields, "").optional("summary")
    return isinstance(value, list) and sum(not _is_null(item) for item in value) > 1


def read_row(mapping: dict[str, Any], fields: Fields, where: str, number: int, need_reference: bool = True) -> Row:
    """The row that `fields` select of a record; null is an empty text.

    Args:
      where: names the record in errors.
      number: its id if it has none.
      need_reference: whether a record without the field of the summary is wrong.

    Raises:
      UserError: a field that is missing or of the wrong type.
    """
    record = Record(mapping, fields, where)
    try:
        document = record.document()
        summary, answers = record.references(need_reference)
        given_id = record.optional("id")
        return Row(
            id=encodable(str(number if given_id is None else given_id)),
            document=document,
            summary=summary,
            answers=answers,
            query=record.text("query") if fields.query else None,
            context=record.text("context") if fields.context else None,
            evidence=None if fields.chunks else record.evidence(len(document)),
            chunks=record.chunks() if fields.chunks else None,
        )
    except RecursionError:
        raise UserError(f"{where}: nested too deeply") from None


@dataclass(frozen=True)
class Record:
    """A record's fields under the names that `Fields` gives them: `text("document")` reads `fields.document`.

    Every method raises UserError for a field that is missing or of the wrong type, named by `where` and field.
    """

    mapping: dict[str, Any]
    fields: Fields
    where: str

    def optional(self, role: str) -> Any:
        """The value; None if the record lacks it, or no field has this role."""
        if not getattr(self.fields, role):
            return None
        holder, key = self._find(role)
        return holder.get(key)

    def required(self, role: str) -> Any:
        """The value, of any type."""
        holder, key = self._find(role)
        if key not in holder:
            names = [repr(name) for name in holder]
            listed = ", ".join(names[:FIELDS_LISTED]) + (", ..." if len(names) > FIELDS_LISTED else "")
            raise UserError(
                f"{self.where}: no field {getattr(self.fields, role)!r}; its fields are {listed or 'none'} "
                f"(set config.data.fields.{role})"
            )
        return holder[key]

    def text(self, role: str) -> str:
        """A text; "" for a null document or summary, which are then left out as empty."""
        value = self.required(role)
        if role in ("document", "summary") and _is_null(value):
            return ""
        if not isinstance(value, str):
            raise self.wrong(role, f"is {type(value).__name__}, expected text")
        return encodable(value)

    def texts(self, role: str) -> tuple[str, ...]:
        """A list of texts, of objects with a `text`, or of those with a `speaker` and what is said; without nulls."""
        texts = [_text_of(item) for item in self.required(role) if not _is_null(item)]
        if not all(isinstance(text, str) for text in texts):
            strange = next(text for text in texts if not isinstance(text, str))
            held = f"an object with {', '.join(strange) or 'nothing'}" if isinstance(strange, dict) else repr(strange)
            expected = "texts, objects with a text, or with speaker and content"
            raise self.wrong(role, f"is a list with {held[:60]} in it, expected {expected}")
        return tuple(map(encodable, texts))

    def document(self) -> str:
        """The document's text or joined lines; "" where ready-made chunks replace it."""
        if self.fields.chunks and not self.fields.document:
            return ""
        if isinstance(self.optional("document"), list):
            return "\n".join(self.texts("document"))
        return self.text("document")

    def references(self, needed: bool = True) -> tuple[str, tuple[str, ...]]:
        """(summary, answers): the answers are the non-empty texts of a list, the summary its first; or their join."""
        value = self.optional("summary")
        if value is None and not needed:
            return "", ()
        if not isinstance(value, list):
            return self.text("summary"), ()
        texts = tuple(filter(str.strip, self.texts("summary")))
        if self.fields.summary_list == "sentences":
            return "\n".join(SENTENCE_TAG.sub("", text) for text in texts), ()
        return next(iter(texts), ""), texts

    def evidence(self, length: int) -> tuple[tuple[int, int], ...] | None:
        """Spans of a document of `length` characters; None if the record has no such field."""
        spans = self.optional("evidence")
        if spans is None:
            return None
        if not isinstance(spans, list):
            raise self.wrong("evidence", f"is {type(spans).__name__}, expected [[start, end], ...] in characters")
        for span in spans:
            pair = isinstance(span, list) and len(span) == 2 and all(type(x) is int for x in span)
            if not pair or not 0 <= span[0] <= span[1] <= length:
                expected = f"expected [start, end] in the document's {length} characters"
                raise self.wrong("evidence", f"has {json.dumps(span, default=repr)[:60]}, {expected}")
        return tuple((start, end) for start, end in spans)

    def chunks(self) -> tuple[tuple[int, ...], ...]:
        """Ready-made chunks: a list of lists of token ids."""
        value = self.required("chunks")
        given = type(value).__name__
        if isinstance(value, list):
            wrong = [c for c in value if not isinstance(c, list) or not all(type(token) is int for token in c)]
            if not wrong:
                return tuple(map(tuple, value))
            given = f"a list with {repr(wrong[0])[:40]} in it"
        raise self.wrong("chunks", f"is {given}, expected a list of chunks, each a list of token ids")

    def wrong(self, role: str, problem: str) -> UserError:
        """The error about a field."""
        name = getattr(self.fields, role)
        return UserError(f"{self.where}: field {name!r} {problem} (config.data.fields.{role})")

    def _find(self, role: str) -> tuple[dict[str, Any], str]:
        """The object that holds the field, and its key there; a name with dots is first tried as it is."""
        names = getattr(self.fields, role)
        found = [self._place(name) for name in (names, *(names.split("|") if "|" in names else ()))]
        return next((place for place in found if place[1] in place[0]), found[-1])

    def _place(self, name: str) -> tuple[dict[str, Any], str]:
        holder = self.mapping
        while name not in holder:
            first, _, rest = name.partition(".")
            if not rest or not isinstance(holder.get(first), dict):
                break
            holder, name = holder[first], rest
        return holder, name


def _is_null(value: Any) -> bool:
    """JSON's null, or the NaN that tables have for a missing text."""
    return value is None or (isinstance(value, float) and math.isnan(value))


def _text_of(item: Any) -> Any:
    """The text of a list's item: of an object with a `text`, or `speaker: content` of one that tells who speaks."""
    if not isinstance(item, dict):
        return item
    said = next((item[key] for key in SPOKEN if key in item), item)
    speaker = item.get("speaker")
    return f"{speaker}: {said}" if isinstance(speaker, str) and isinstance(said, str) else said


def encodable(text: str) -> str:
    """JSON may escape half of a surrogate pair, which UTF-8 cannot hold: U+FFFD replaces it, offsets stay."""
    return SURROGATE.sub("\ufffd", text)
