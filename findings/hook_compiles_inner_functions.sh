#!/usr/bin/env bash
# jaxtyping: under its import hook each call of a function compiles checks of the functions that are defined in it.
#
# Expected: the hook costs at import, and calls cost what checking their arguments costs; an inner function without
# annotations, such as the body of a scan, costs nothing until it is called. Seen: a call of the outer function decorates
# the inner one anew, which builds and compiles code: hundreds of microseconds in place of less than one, annotations
# or not. A lambda is left alone.
. "$(dirname "${BASH_SOURCE[0]}")/packages.sh"
packages jaxtyping==0.3.11 beartype==0.23.1 numpy==2.4.1
check <<'PY'
import importlib
import time
from pathlib import Path

from jaxtyping import install_import_hook

SOURCE = """
def outer(x):
    def inner(y):
        return y
    return x

def with_lambda(x):
    inner = lambda y: y
    return x
"""


def microseconds(call):
    call(1)
    times = []
    for _ in range(5):
        begun = time.perf_counter()
        for _ in range(100):
            call(1)
        times.append((time.perf_counter() - begun) * 1e4)
    return min(times)


for name in ("without", "hooked"):
    Path(f"{name}.py").write_text(SOURCE)
without = importlib.import_module("without")
with install_import_hook("hooked", "beartype.beartype"):
    hooked = importlib.import_module("hooked")
for name in ("outer", "with_lambda"):
    print(f"{name}: {microseconds(getattr(without, name)):.1f} us a call, {microseconds(getattr(hooked, name)):.1f} with the hook")
assert microseconds(hooked.outer) > 50 * microseconds(without.outer)
assert microseconds(hooked.outer) > 20 * microseconds(hooked.with_lambda)
PY
