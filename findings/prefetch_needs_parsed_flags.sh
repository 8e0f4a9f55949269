#!/usr/bin/env bash
# grain: worker processes need command-line flags to have been parsed by absl, in programs that have none.
#
# Expected: `mp_prefetch` is a method of a data set and works wherever the library does. Seen: outside `absl.app.run` it
# raises UnparsedFlagAccessError about a flag of grain's own that the program never heard of;
# `absl.flags.FLAGS.mark_as_parsed()` before it is enough.
. "$(dirname "${BASH_SOURCE[0]}")/packages.sh"
packages grain==0.2.18
check <<'PY'
import grain
from absl import flags

def numbers():
    options = grain.MultiprocessingOptions(num_workers=1)
    return sorted(grain.MapDataset.range(4).to_iter_dataset().mp_prefetch(options))

if __name__ == "__main__":
    try:
        seen = str(numbers())
    except flags.UnparsedFlagAccessError as error:
        seen = f"UnparsedFlagAccessError: {error}"
    flags.FLAGS.mark_as_parsed()
    print(f"expected [0, 1, 2, 3]; seen {seen}\nwith flags marked as parsed: {numbers()}")
    assert seen.startswith("UnparsedFlagAccessError")
PY
