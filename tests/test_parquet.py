"""Parquet files as people have them: shards that differ."""

import pytest
from stored_sets import rows

from jax_simcas.data.formats import open_rows
from jax_simcas.data.rows import Fields

datasets = pytest.importorskip("datasets", reason="the sources' libraries: pip install 'jax_simcas[data]'")


@pytest.mark.parametrize("by_library", [False, True])
def test_parquet_shards_may_differ_in_their_columns(tmp_path, caplog, by_library):
    shards = [
        [{"article": "one", "abstract": "1"}],
        [{"article": "two", "abstract": "2", "extra": 3}],
        [{"article": ["three", "parts"], "abstract": "3"}],
        [],
        [{"abstract": "4", "article": "four"}],
    ]
    for i, records in enumerate(shards):
        table = datasets.Dataset.from_list(records or shards[0]).select(range(len(records)))
        table.to_parquet(str(tmp_path / f"train-{i:05}-of-00005.parquet"))
    source, data_dir = (f"datasets:{tmp_path}", "") if by_library else ("parquet", str(tmp_path))
    found = rows(open_rows(source, data_dir, "train", Fields("article", "abstract"), tmp_path / "cache"))
    assert [(row.document, row.summary) for row in found] == [
        ("one", "1"),
        ("two", "2"),
        ("three\nparts", "3"),
        ("four", "4"),
    ]
    assert not caplog.records
