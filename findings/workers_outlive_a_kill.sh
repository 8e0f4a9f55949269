#!/usr/bin/env bash
# grain: the worker processes of a program that is killed stay for ever.
#
# Expected: workers that nobody reads from end, as multiprocessing's own pools do once their queue is closed. Seen: after
# SIGKILL (`kill -9`, a machine out of memory) each waits for a place in its queue, with all that it holds in memory. A
# `worker_init_fn` that waits for `multiprocessing.parent_process()` in a thread and then exits is enough.
. "$(dirname "${BASH_SOURCE[0]}")/packages.sh"
packages grain==0.2.18
check <<'PY'
import multiprocessing, os, signal, subprocess, sys, time
import grain
from absl import flags

def wait():
    multiprocessing.parent_process().join()
    os._exit(1)

def watch(index, count):
    import threading
    threading.Thread(target=wait, daemon=True).start()

def read(how):
    flags.FLAGS.mark_as_parsed()
    options = grain.MultiprocessingOptions(num_workers=2)
    endless = grain.MapDataset.range(4).repeat().to_iter_dataset()
    numbers = iter(endless.mp_prefetch(options, watch if how == "watched" else None))
    next(numbers)
    time.sleep(2)
    print("read", flush=True)
    time.sleep(600)

def ends(how):
    """Whether the output, which the workers hold as well, is closed 10 seconds after the program was killed."""
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.DEVNULL}
    started = subprocess.Popen([sys.executable, __file__, how], **pipes, start_new_session=True)
    assert started.stdout.readline() == b"read\n"
    started.kill()
    try:
        started.communicate(timeout=10)
        return True
    except subprocess.TimeoutExpired:
        os.killpg(started.pid, signal.SIGKILL)
        return False

if __name__ == "__main__":
    if len(sys.argv) > 1:
        read(sys.argv[1])
    else:
        seen = {how: ends(how) for how in ("as it is", "watched")}
        print(f"expected workers to end with the program that was killed; seen {seen}")
        assert seen == {"as it is": False, "watched": True}
PY
