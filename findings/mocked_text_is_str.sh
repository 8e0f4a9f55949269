#!/usr/bin/env bash
# tensorflow-datasets without TensorFlow: mocked text is str, prepared text is bytes.
#
# Expected: `tfds.testing.mock_data`, which stands in for a prepared data set in tests, gives values of the types that
# the data set has. Seen: through `as_data_source` a text that was prepared as array_record comes as bytes, a mocked
# one as str. A loader tested on mocks fails, or writes b'...', on the first real row.
. "$(dirname "${BASH_SOURCE[0]}")/packages.sh"
packages tensorflow-datasets==4.9.10 array-record==0.8.6 importlib_resources==7.1.0
check <<'PY'
import logging

import tensorflow_datasets as tfds

logging.disable(logging.CRITICAL)
tfds.disable_progress_bar()

class Notes(tfds.core.GeneratorBasedBuilder):
    VERSION = tfds.core.Version("1.0.0")

    def _info(self):
        return tfds.core.DatasetInfo(builder=self, features=tfds.features.FeaturesDict({"text": tfds.features.Text()}))

    def _split_generators(self, downloads):
        return {"train": self._generate_examples()}

    def _generate_examples(self):
        yield 0, {"text": "two words"}

builder = Notes(data_dir="prepared", file_format="array_record")
builder.download_and_prepare()
first = lambda builder: type(builder.as_data_source(split="train")[0]["text"]).__name__
prepared = first(builder)
with tfds.testing.mock_data(num_examples=1):
    mocked = first(Notes(data_dir="mocked", file_format="array_record"))
print(f"tensorflow-datasets {tfds.__version__}: prepared {prepared}, mocked: expected {prepared}, seen {mocked}")
assert (prepared, mocked) == ("bytes", "str")
PY
