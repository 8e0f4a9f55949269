"""Summarising documents: each one's summary, what was kept of it, and how long each stage took."""

from __future__ import annotations

import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Literal, NamedTuple, overload

import jax
import numpy as np
from jaxtyping import Bool, Float, Int

from jax_simcas.common.errors import UserError, prefixed
from jax_simcas.common.tables import plural
from jax_simcas.data.features import Features, check_token_ids, featurize, shuffle_parts
from jax_simcas.data.records import encodable
from jax_simcas.data.rows import Row
from jax_simcas.data.tokenizer import TextTokenizer, count_unknown
from jax_simcas.evaluation.batched import Predicted, predict_in_batches
from jax_simcas.evaluation.predict import Predictor
from jax_simcas.evaluation.written import WrittenTokens, written_tokens

MOSTLY_UNKNOWN = 0.5  # of the tokens: a summary of the others says nothing of the text


class ReadTokens(NamedTuple):
    """The n tokens that were read of a document, in order; the special tokens around chunks are left out."""

    span: Int[np.ndarray, "n 2"]  # characters [start, end)
    chunk: Int[np.ndarray, " n"]
    keep_prob: Float[np.ndarray, " n"]
    kept: Bool[np.ndarray, " n"]


class Summary(NamedTuple):
    """A document's summary, and what the decoder saw of the document."""

    summary: str
    document: str  # as it was read: `kept_spans` and `read` count its characters
    score: float  # of the beam search: log-probability, nats, over length ** length_penalty
    tokens: int  # read, without special ones
    unknown_tokens: int
    cut_tokens: int  # beyond max_input_len, and so not read
    chunks: int
    candidates: int  # states that could be kept: those of the tokens, of a query, of the EOS of each chunk
    kept: int  # of the candidates, what the decoder saw
    kept_spans: list[list[int]]  # characters [start, end)
    read: ReadTokens
    # wall time of tokenize, encode_and_select, generate, the first time with compiling; of a batch, its share
    seconds: dict[str, float]
    written: WrittenTokens | None = None  # where the decoder looked, if that was asked for
    overflow: int = 0  # candidates that were selected beyond the capacity, and so not kept

    def record(self) -> dict[str, Any]:
        """What `summarize --json` prints."""
        left_out = ("document", "read", "written")
        return {name: value for name, value in self._asdict().items() if name not in left_out}


class Summarizer(NamedTuple):
    """A trained model that summarises text; `notes` tell what there is to know about it."""

    predictor: Predictor
    notes: tuple[str, ...] = ()

    @overload
    def summarize(
        self,
        text: str,
        query: str | None = None,
        seed: int = 0,
        attention: bool = False,
    ) -> Summary: ...

    @overload
    def summarize(
        self,
        text: list[str] | tuple[str, ...],
        query: str | Sequence[str | None] | None = None,
        seed: int = 0,
        attention: bool = False,
        *,
        batch_size: int | None = None,
        errors: Literal["raise"] = "raise",
    ) -> list[Summary]: ...

    @overload
    def summarize(
        self,
        text: list[str] | tuple[str, ...],
        query: str | Sequence[str | None] | None = None,
        seed: int = 0,
        attention: bool = False,
        *,
        batch_size: int | None = None,
        errors: Literal["return"],
    ) -> list[Summary | UserError]: ...

    def summarize(
        self,
        text: Any,  # what is no text in a list is an error in its place
        query: str | Sequence[str | None] | None = None,
        seed: int = 0,
        attention: bool = False,
        *,
        batch_size: int | None = None,
        errors: Literal["raise", "return"] = "raise",
    ) -> Any:
        """Summarises one document of any length, or several in batches: a list in the order given.

        Each document of a list gets what it gets alone.

        Args:
          query: for models trained with queries: one for all, or one per document.
          seed: for policies that draw.
          attention: also find where the decoder looked as it wrote each token, the result's `written`.
          batch_size: documents at a time; by default as many as their length permits, up to 8.
          errors: "return" puts a UserError in the place of a document of a list that cannot be summarised; with
            "raise" it is raised before any is.

        Raises:
          UserError: an empty text; no query where the model needs one; a text most of whose tokens are unknown.
          ValueError: another number of queries than of texts; a batch_size below 1.
        """
        if isinstance(text, str):
            if not (query is None or isinstance(query, str)):
                raise ValueError("a list of queries needs a list of texts")
            prepared = prepare(self.predictor, _row("text", text, query))
            [(_, summary)] = self.summaries([prepared], seed, attention)
            return summary
        if batch_size is not None and batch_size < 1:
            raise ValueError(f"batch_size={batch_size}: expected at least 1")
        if errors not in ("raise", "return"):
            raise ValueError(f"errors={errors!r}: expected 'raise' or 'return'")
        queries = [query] * len(text) if query is None or isinstance(query, str) else query
        out: dict[int, Summary | UserError] = {}
        prepared_of: dict[int, Prepared] = {}
        for number, (each, asked) in enumerate(zip(text, queries, strict=True)):
            try:
                with prefixed(f"document {number}: "):
                    if not isinstance(each, str):
                        raise UserError(f"is {type(each).__name__}, expected a text")
                    prepared_of[number] = prepare(self.predictor, _row(str(number), each, asked))
            except UserError as error:
                if errors == "raise":
                    raise
                out[number] = error
        numbers = list(prepared_of)
        for place, summary in self.summaries(list(prepared_of.values()), seed, attention, batch_size):
            out[numbers[place]] = summary
        return [out[number] for number in range(len(text))]

    def summaries(
        self,
        documents: Sequence[Prepared],
        seed: int = 0,
        attention: bool = False,
        batch_size: int | None = None,
        on_note: Callable[[str], None] = warnings.warn,
    ) -> Iterator[tuple[int, Summary]]:
        """(number, summary) of each document as batches end, the longest first; see `predict_in_batches`."""
        found = predict_in_batches(
            self.predictor,
            [document.features for document in documents],
            jax.random.key(seed),
            attention=attention,
            batch_size=batch_size,
            on_note=on_note,
        )
        for number, predicted in found:
            yield number, summary_of(self.predictor.tokenizer, documents[number], predicted)


class Prepared(NamedTuple):
    """A document that can be summarised."""

    document: str  # as it is read
    features: Features
    tokens: int
    unknown_tokens: int
    seconds: float  # of tokenizing


def prepare(predictor: Predictor, row: Row) -> Prepared:
    """Tokenises and checks a document.

    Raises:
      UserError: see `Summarizer.summarize`.
    """
    started = time.monotonic()
    features = featurize(row, predictor.tokenizer, predictor.reading)
    check_token_ids(features, predictor.tokenizer, predictor.reading.embedding_rows, "")
    unknown, tokens = count_unknown(predictor.tokenizer, features["input_ids"], features["token_mask"])
    document = shuffle_parts(row, predictor.reading).document
    if unknown > MOSTLY_UNKNOWN * tokens:
        words = ", ".join(map(repr, unknown_words(predictor.tokenizer, features, document)[:3]))
        known = (
            f"none of its {plural(tokens, 'token')} is"
            if unknown == tokens
            else f"{unknown} of its {tokens} tokens are not"
        )
        raise UserError(f"this model cannot read the text: {known} in the tokenizer's vocabulary (unknown: {words})")
    return Prepared(document, features, tokens, unknown, time.monotonic() - started)


def unknown_words(tokenizer: TextTokenizer, features: Features, document: str) -> list[str]:
    """The document's words that are unknown tokens, each once."""
    spans = features["token_offsets"][features["input_ids"] == getattr(tokenizer, "unk_token_id", None)]
    return list(dict.fromkeys(document[start:end] for start, end in spans if start >= 0))


def summary_of(tokenizer: TextTokenizer, prepared: Prepared, predicted: Predicted) -> Summary:
    """The summary in words, and what it was made of in characters."""
    features, offsets = prepared.features, prepared.features["token_offsets"]
    sequence, attended = predicted.sequence, predicted.attended
    summary = tokenizer.decode(sequence, skip_special_tokens=True).strip()
    return Summary(
        summary=summary,
        document=prepared.document,
        score=predicted.score,
        tokens=prepared.tokens,
        unknown_tokens=prepared.unknown_tokens,
        cut_tokens=int(features["cut_tokens"]),
        chunks=features["input_ids"].shape[0],
        candidates=predicted.candidates,
        kept=int(predicted.kept.sum()),
        kept_spans=kept_spans(predicted.kept, offsets),
        read=tokens_read(predicted.kept, predicted.keep_prob, offsets),
        written=attended and written_tokens(tokenizer, sequence, summary, attended, offsets),
        overflow=predicted.overflow,
        seconds={
            "tokenize": round(prepared.seconds, 4),
            "encode_and_select": round(predicted.select_seconds, 4),
            "generate": round(predicted.generate_seconds, 4),
        },
    )


def kept_spans(kept: Bool[np.ndarray, "K N"], offsets: Int[np.ndarray, "K S 2"]) -> list[list[int]]:
    """Character spans [start, end) of the document that kept tokens cover, each run of them as one span.

    What lies between the tokens of a run, such as the space between two words, belongs to its span; a token that was
    not kept ends it.

    Args:
      kept: positions 1..S-1 of every chunk.
      offsets: characters [start, end) of every token, -1 where it is not of the document.
    """
    own = offsets[..., 0] >= 0
    spans: list[list[int]] = []
    joins = False  # whether the token before was kept
    for (start, end), is_kept in zip(offsets[own].tolist(), _with_first(kept, True)[own].tolist(), strict=True):
        if is_kept and joins:
            spans[-1][1] = max(end, spans[-1][1])
        elif is_kept:
            spans.append([start, end])
        joins = is_kept
    return spans


def tokens_read(
    kept: Bool[np.ndarray, "K N"], keep_prob: Float[np.ndarray, "K N"], offsets: Int[np.ndarray, "K S 2"]
) -> ReadTokens:
    """The document's own tokens among all positions of its chunks."""
    own = offsets[..., 0] >= 0
    chunk = np.broadcast_to(np.arange(len(offsets))[:, None], own.shape)
    keep_prob = _with_first(keep_prob.astype(np.float64), 1.0)
    return ReadTokens(offsets[own], chunk[own], keep_prob[own], _with_first(kept, True)[own])


def _with_first(x: np.ndarray, fill: bool | float) -> np.ndarray:
    """Values of positions 1..S-1 -> those of all.

    The first position is of the document only where the tokenizer begins no text (T5's, PEGASUS') and there is one
    chunk. Its state is then the document state, which the decoder always sees.
    """
    return np.pad(x, ((0, 0), (1, 0)), constant_values=fill)


def _row(name: str, text: str, query: str | None) -> Row:
    """A text as a row; of the strings that Python can hold, some cannot be tokenised."""
    return Row(id=name, document=encodable(text), summary="", query=None if query is None else encodable(query))
