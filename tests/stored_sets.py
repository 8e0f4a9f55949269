"""A small set of rows that tests of formats write and read."""

from jax_simcas.data.rows import Fields, Row

RECORDS = [{"article": f"Grüße {i} 😀", "abstract": f"s{i}", "lines": ["a", "b"]} for i in range(5)]
FIELDS = Fields(document="article", summary="abstract")
ROWS = [Row(str(i), f"Grüße {i} 😀", f"s{i}") for i in range(5)]


def rows(source):
    return [source[i] for i in range(len(source))]
