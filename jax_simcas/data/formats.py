"""From `config.data.source` to rows: files of a folder, the datasets library, tensorflow-datasets.

jsonl                   `{split}.jsonl` in `data_dir`, or `.json` or `.txt` with such lines, or `{split}/*.json`
csv                     `{split}.csv` or `{split}.tsv` in `data_dir`; the first line names the fields
text                    `{split}/*.txt` in `data_dir`, the summary of `NAME.txt` in `NAME.summary.txt`
qmsum                   `{split}.jsonl` or `{split}/*.json` in `data_dir`, meetings as QMSum publishes them
parquet                 `{split}.parquet` or `{split}-*.parquet` in `data_dir`
datasets:NAME[:CONFIG]  a folder (`save_to_disk`, or of data files) or an id on the hub
tfds:NAME[/CONFIG]      a set of tensorflow-datasets, prepared in `data_dir` as array_record
chunked                 JSONL or Parquet files in `data_dir` whose records are cut and tokenised: see `CHUNKED`
chunked:NAME[:CONFIG]   such records in a folder or an id on the hub

Text files may be gzipped (`.jsonl.gz`). Where there is no `{split}`, one file `*_{split}` will do (`fd_train.json`),
and for `validation` also `val`, `dev` or `valid`. Nothing here runs code that came with data, or needs TensorFlow.
"""

from __future__ import annotations

import contextlib
import dataclasses
import glob
import hashlib
import itertools
import json
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from jax_simcas.common.errors import UserError
from jax_simcas.common.files import read_json
from jax_simcas.data.folders import JsonFolder, TextFolder, files_ending
from jax_simcas.data.libraries import innermost_reason, library, one_line, silent
from jax_simcas.data.published import QMSUM_FIELDS, Qmsum
from jax_simcas.data.rows import Fields, RowSource
from jax_simcas.data.stored import Store, StoredRows, stat_key
from jax_simcas.data.text_files import (
    READ_BYTES,
    CsvSource,
    CsvStore,
    Joined,
    JsonlSource,
    JsonlStore,
    JsonValueStore,
    kind_of,
    unpacked,
)

OBJECTS = (".jsonl", ".ndjson", ".json")  # suffixes of files of JSON objects, without one of a compression
TABLES = (".csv", ".tsv")
LINES = (".jsonl", ".jsonl.gz")
FILES = {
    "jsonl": (*LINES, ".json", ".json.gz", "/*.json", ".txt", ".txt.gz"),  # arXiv and PubMed are published as .txt
    "csv": (".csv", ".csv.gz", ".tsv", ".tsv.gz"),
    "tsv": (".tsv", ".tsv.gz"),
    "text": ("/*.txt",),
    "qmsum": (*LINES, "/*.json"),
    "parquet": (".parquet", "-*.parquet"),
    "chunked": (*LINES, ".parquet", "-*.parquet"),
}
TITLES = {"jsonl": "JSON lines", "csv": "CSV", "parquet": "Parquet", "text": "a folder of texts"}
SPLITS = {"validation": ("validation", "val", "dev", "valid")}  # and what else data sets call it
# The authors' preprocessed sets: chunks of token ids, the text that they were cut from, one target or several answers.
CHUNKED = {"document": "input_texts", "summary": "output_texts", "chunks": "input_ids", "query": "", "context": ""}
TFDS_NAME = re.compile(r"\w+(/[\w.-]+)?(:\d+\.\d+\.\d+)?")  # no `namespace:` in front: those are code from elsewhere
COMPRESSED = (".bz2", ".xz", ".zst", ".lz4", ".zip")  # as the datasets library unpacks them
HUB_SECONDS = 10  # after which the hub counts as unreachable


def check_source(source: str) -> None:
    """Raises ValueError for what `open_rows` cannot open."""
    kind, _, name = source.partition(":")
    if kind not in (("chunked", "datasets", "tfds") if name else FILES):
        raise ValueError(
            f"source={source!r}: expected one of {', '.join(FILES)}, datasets:NAME, chunked:NAME, tfds:NAME, embedded "
            "(the folder of files is data_dir)"
        )
    if kind == "tfds" and not TFDS_NAME.fullmatch(name):
        raise ValueError(f"source={source!r}: expected tfds:NAME[/CONFIG][:VERSION] of tensorflow-datasets' own sets")


def open_rows(source: str, data_dir: str, split: str, fields: Fields, cache: Path, **options: Any) -> RowSource:
    """The rows of a split, by random access.

    Args:
      options: `max_bad_rows` and `need_reference` of `StoredRows`.

    Raises:
      UserError: what is missing (a library, a folder, a split, the network) or wrong, and what to do about it.
    """
    kind, _, name = source.partition(":")
    if kind == "chunked":
        fields = dataclasses.replace(fields, **CHUNKED)
    if not name:
        return _open_files(kind, _find_files(kind, data_dir, split), fields, cache, options)
    table = _tfds(name, data_dir, split) if kind == "tfds" else _datasets(source, name, split, cache)
    return StoredRows(table, fields, cache, **options)


def _find_files(kind: str, data_dir: str, split: str) -> list[Path]:
    """The split's file in `data_dir`, its Parquet shards, or its folder."""
    folder = Path(data_dir)
    if not data_dir:
        raise UserError("config.data.data_dir is empty: pass --config.data.data_dir=FOLDER with the files")
    if not folder.is_dir():
        raise UserError(f"config.data.data_dir={data_dir}: no such folder")
    found = _files_of(kind, folder, split)
    if found:
        return found
    names = " or ".join(f"{split}{suffix}" for suffix in FILES[kind])
    there = ", ".join(sorted(path.name for path in folder.iterdir())[:10]) or "nothing"
    fitting = [other for other in TITLES if _files_of(other, folder, split)]
    hint = f" (config.data.source={fitting[0]} reads {TITLES[fitting[0]]})" if fitting else ""
    raise UserError(f"{folder}: no {names} for the split {split!r}; there is {there}{hint}")


def _files_of(kind: str, folder: Path, split: str) -> list[Path]:
    """The first of the names that the split may have, with the first of the kind's suffixes that is there."""
    for name in SPLITS.get(split, (split,)):
        for suffix in FILES[kind]:
            if suffix.startswith("/*"):
                if files_ending(folder / name, suffix[2:]):
                    return [folder / name]
            elif found := sorted(folder.glob(f"{glob.escape(name)}{suffix}")):
                return found
    for name in SPLITS.get(split, (split,)):
        for suffix in FILES[kind]:
            found = [] if "*" in suffix else list(folder.glob(f"*_{glob.escape(name)}{suffix}"))
            if len(found) == 1:
                return found
    return []


def _open_files(kind: str, paths: list[Path], fields: Fields, cache: Path, options: dict[str, Any]) -> RowSource:
    path = paths[0]
    if kind == "text":
        named = {role: role if getattr(fields, role) else "" for role in ("query", "context")}
        return StoredRows(
            TextFolder(path),
            dataclasses.replace(fields, document="document", summary="summary", **named),
            cache,
            **options,
        )
    if kind == "qmsum":
        meetings = JsonFolder(path) if path.is_dir() else JsonlStore(path, cache)
        return StoredRows(Qmsum(meetings), QMSUM_FIELDS, cache, **options)
    if path.is_dir():
        return StoredRows(JsonFolder(path), fields, cache, **options)
    if path.suffix != ".parquet":
        if is_json_value(path, cache):
            return StoredRows(JsonValueStore(path, cache), fields, cache, **options)
        source = CsvSource if kind_of(path).suffix in TABLES else JsonlSource
        return source(path, fields, cache, **options)
    return StoredRows(_parquet(paths, cache), fields, cache, **options)


def _parquet(paths: list[Path], cache: Path) -> Store:
    """The rows of all files, which may differ in columns; those that follow one another and do not are one table."""
    datasets, parquet = (library(name, "Parquet") for name in ("datasets", "pyarrow.parquet"))
    filled: list[tuple[Path, Any]] = []  # and their columns
    for path in paths:
        with one_line(str(path), "is it a whole Parquet file?"):
            metadata = parquet.read_metadata(path)
            if metadata.num_rows:  # the library refuses an empty file
                filled.append((path, metadata.schema.to_arrow_schema()))
    alike = itertools.groupby(filled, key=lambda file: file[1])
    stores = [_parquet_table(datasets, [path for path, _ in group], cache) for _, group in alike]
    if len(stores) == 1:
        return stores[0]
    return Joined(_shards(paths), stores) if stores else Table(str(paths[0]), (), stat_key(paths))


def _parquet_table(datasets: Any, paths: list[Path], cache: Path) -> Store:
    """The rows of files of the same columns; row groups are unpacked once, into Arrow files mapped into memory."""
    with one_line(_shards(paths), "write it anew, with columns of texts or lists of texts"), silent("datasets"):
        table = datasets.Dataset.from_parquet([str(path) for path in paths], cache_dir=str(cache / "parquet"))
    return Table(_shards(paths), table, stat_key(paths))


def _shards(paths: list[Path]) -> str:
    return str(paths[0]) if len(paths) == 1 else f"{paths[0]} and {len(paths) - 1} more"


def is_json_value(path: Path, cache: Path) -> bool:
    """Whether a .json or .json.gz file is one list, or one object over several lines, and not an object per line."""
    return kind_of(path).suffix == ".json" and _is_value(path, cache)


def _is_value(path: Path, cache: Path) -> bool:
    with (unpacked(path, cache) if kind_of(path).gzipped else path).open("rb") as file:
        begin = file.read(READ_BYTES).lstrip(b"\xef\xbb\xbf \t\r\n")
    return begin.startswith(b"[") or begin.partition(b"\n")[0].strip() == b"{"


class Table(Store):
    """The records of anything with random access, numbered from 0."""

    unit = "row"

    def __init__(self, name: str, records: Any, key: str) -> None:
        self.name, self.key, self._records = name, key, records

    def places(self) -> Iterator[tuple[int, int, Any]]:
        for number in range(len(self._records)):
            try:
                yield number, number, self.read(number, number)
            except UserError as error:
                yield number, number, error

    def read(self, number: int, place: int) -> Any:
        with one_line(self.where(number), "the stored row cannot be read"):
            return _plain(self._records[place], self.where(number))

    def where(self, number: int) -> str:
        return f"{self.name} row {number}"


def _plain(value: Any, where: str) -> Any:
    """The value with JSON's types: tensorflow-datasets gives bytes and arrays."""
    if isinstance(value, dict):
        return {name: _plain(inner, where) for name, inner in value.items()}
    if isinstance(value, np.ndarray | np.generic):
        return _plain(value.tolist(), where)
    if isinstance(value, list) and not (value and type(value[0]) is int):
        return [_plain(inner, where) for inner in value]
    if isinstance(value, bytes):
        try:
            return value.decode("utf-8")
        except UnicodeDecodeError as error:
            raise UserError(f"{where}: not UTF-8 (byte {error.start} of a text)") from None
    return value


def _datasets(source: str, name: str, split: str, cache: Path) -> Store:
    """A folder's or the hub's split through the datasets library, mapped into memory.

    It finds the files of a folder, but those of JSON and CSV are read here: the library turns texts into dates and
    numbers.
    """
    datasets = library("datasets", f"config.data.source={source}")
    folder = Path(name).expanduser()
    if folder.is_dir():
        saved = [file for file in ("dataset_dict.json", "state.json") if (folder / file).is_file()]
        remedy = "check config.data.source and the split's name"
        with one_line(f"{folder} split {split!r}", remedy), silent("datasets"):
            if saved:
                table = datasets.load_from_disk(str(folder), keep_in_memory=False)  # its files tell it from others
                table = table if saved == ["state.json"] else _named_split(table, split)
            else:
                options = {"cache_dir": str(cache / "datasets")}
                builder = datasets.load_dataset_builder(str(folder), **options)
                if stores := _text_stores(datasets, builder, split, cache):
                    return Joined(f"{source} {split}", stores)
                table = _prepared(datasets, builder, split, cache)
    elif os.path.isabs(folder) or name.startswith((".", "~")) or name.count("/") > 1:
        raise UserError(f"config.data.source={source}: no such folder")
    else:
        table = _hub(datasets, source, name, split, cache)
    if isinstance(table, Store):
        return table
    files = [Path(file["filename"]) for file in table.cache_files]
    return Table(f"{source} {split}", table, _key(split, str(len(table)), stat_key(files)))


def _prepared(datasets: Any, builder: Any, split: str, cache: Path) -> Any:
    """The library's table of a split, or the rows of Parquet files that it does not put into one: they differ."""
    try:
        builder.download_and_prepare()
    except datasets.exceptions.DatasetGenerationError:
        urls = list((builder.config.data_files or {}).get(split, ())) if _is_built_by(builder, "Parquet") else []
        if not urls:
            raise
        files = datasets.DownloadManager(base_path=builder.base_path).download(urls)
        return _parquet([Path(file) for file in files], cache)
    return builder.as_dataset(split=split)


def _is_built_by(builder: Any, *names: str) -> bool:
    """Whether the library reads files by one of its classes of these names."""
    return any(base.__name__ in names for base in type(builder).__mro__)


def _text_stores(datasets: Any, builder: Any, split: str, cache: Path) -> list[Store]:
    """A store per file of a split; none unless all are JSON or CSV that the library would read by its defaults."""
    if not _is_built_by(builder, "Csv", "Json"):
        return []
    given, default = vars(builder.config), vars(type(builder.config)())
    named = {"name", "version", "data_dir", "data_files", "description", "features", "sep"}
    if any(given[option] != default[option] for option in default if option not in named):
        return []
    urls = list((builder.config.data_files or {}).get(split, ()))
    manager = datasets.DownloadManager(base_path=builder.base_path)
    files = [
        inside
        for url, file in zip(urls, manager.download(urls), strict=True)
        for inside in _plain_files(manager, url, file)
    ]
    stores = [_text_store(kind, file, given.get("sep"), cache) for kind, file in files]
    return [] if None in stores else [store for store in stores if store]


def _plain_files(manager: Any, url: str, file: str) -> list[tuple[str, Path]]:
    """(kind, place) of a file, or of what a compressed one holds; gzip stays, which is read as it is."""
    name = Path(url)
    if name.suffix not in COMPRESSED:
        return [(kind_of(name).suffix, Path(file))]
    inside = [Path(path) for path in manager.iter_files(manager.extract(file))]
    return [(path.suffix if name.suffix == ".zip" else Path(name.stem).suffix, path) for path in inside]


def _text_store(kind: str, file: Path, separator: str | None, cache: Path) -> Store | None:
    """The records of a file whose values would not stay texts in the library; None for a form that is not read here.

    Args:
      kind: the suffix of its name without one of a compression.
    """
    if kind in TABLES:
        return CsvStore(file, cache) if separator == ("\t" if kind == ".tsv" else ",") else None
    if kind == ".json" and _is_value(file, cache):
        return JsonValueStore(file, cache)
    return JsonlStore(file, cache) if kind in OBJECTS else None


def _named_split(table: Any, split: str) -> Any:
    if split not in table:
        raise ValueError(f"no such split; it has {', '.join(map(repr, table))}")
    return table[split]


def _hub(datasets: Any, source: str, name: str, split: str, cache: Path) -> Any:
    """From the hub, or from the library's cache where the hub cannot be reached, without minutes of retries."""
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HfHubHTTPError
    from huggingface_hub.utils import validate_repo_id

    name, _, config = name.partition(":")
    unreached = ""
    with one_line(f"config.data.source={source}", "expected a folder or an id of the hub"):
        validate_repo_id(name)
    try:
        HfApi().dataset_info(name, timeout=HUB_SECONDS)
    except HfHubHTTPError as error:
        raise UserError(
            f"config.data.source={source}: no folder here, and the hub refuses {name} ({innermost_reason(error)}); "
            "check the id, or log in with `hf auth login` if it is gated"
        ) from None
    except Exception as error:  # no network, a proxy that refuses, HF_HUB_OFFLINE
        unreached = innermost_reason(error)
    remedy = "check the configuration's and the split's name"
    if unreached:
        remedy = (
            f"the hub cannot be reached ({unreached}): run once where there is a network, "
            "or copy the data and give config.data.source=datasets:FOLDER"
        )
    offline = datasets.config.HF_HUB_OFFLINE
    try:
        datasets.config.HF_HUB_OFFLINE = offline or bool(unreached)  # look in the cache alone
        with one_line(f"config.data.source={source} split {split!r}", remedy), silent("datasets"):
            builder = datasets.load_dataset_builder(name, config or None)
            if stores := _text_stores(datasets, builder, split, cache):
                return Joined(f"{source} {split}", stores)
            return _prepared(datasets, builder, split, cache)
    finally:
        datasets.config.HF_HUB_OFFLINE = offline


def _tfds(name: str, data_dir: str, split: str) -> Table:
    """A prepared set of tensorflow-datasets; its array_record files are read at random places."""
    tfds = library("tensorflow_datasets", f"config.data.source=tfds:{name}")
    where = {"data_dir": str(Path(data_dir).expanduser())} if data_dir else {}
    shown = "".join(f", {key}={value!r}" for key, value in where.items())
    prepare = (
        'prepare it, once and where there is a network: python -c "import tensorflow_datasets as tfds; '
        f"tfds.builder('{name}'{shown}, file_format='array_record').download_and_prepare()\""
    )
    remedy = (
        "check the name and config.data.data_dir; a set in another file format is prepared again, into another folder, "
        "with file_format='array_record'"
    )
    with one_line(f"config.data.source=tfds:{name}", remedy):
        for place in tfds.core.utils.file_utils.list_data_dirs(given_data_dir=where.get("data_dir")):
            for path in sorted((Path(place) / re.split("[/:]", name)[0]).rglob("features.json")):
                _check_features(path)
        builder = tfds.builder(name, file_format="array_record", **where)
    folder = Path(builder.data_path)
    if not builder.is_prepared():
        raise UserError(f"config.data.source=tfds:{name}: not prepared in {folder}; {prepare}")
    with one_line(f"config.data.source=tfds:{name} split {split!r}", prepare):
        records = builder.as_data_source(split)
        key = _key(split, stat_key(sorted(path for path in folder.iterdir() if path.is_file())))
    return Table(f"tfds:{name} {split}", records, key)


CLASS_KEYS = ("pythonClassName", "python_class_name", "type", "proto_cls")  # under which features.json names classes


def _check_features(path: Path) -> None:
    """Raises UserError for a features.json that names a class of another library: tensorflow-datasets would import it.

    It is a set's description, which comes with its data.
    """
    described = read_json(path, "not found")
    for named in _classes_in(described):
        if not named.startswith("tensorflow_datasets."):
            raise UserError(
                f"{path}: names the class {named!r}, which is none of tensorflow-datasets': a data set's code is never "
                "run; prepare the set again with features of tensorflow-datasets"
            )


def _classes_in(value: Any) -> Iterator[str]:
    """The dotted names of classes anywhere in a features.json, and in JSON within its texts."""
    if isinstance(value, dict):
        named = (value.get(key) for key in CLASS_KEYS)
        yield from (name for name in named if isinstance(name, str) and "." in name)
    for inner in value.values() if isinstance(value, dict) else value if isinstance(value, list) else ():
        if isinstance(inner, str):
            with contextlib.suppress(ValueError, RecursionError):
                yield from _classes_in(json.loads(inner))
        else:
            yield from _classes_in(inner)


def _key(*parts: str) -> str:
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()[:20]
