"""Word among the processes of a job: when one fails or dies the others end too, and say which it was and why.

It goes through the store of JAX's coordination service, which lives in process 0. When that one is killed JAX mostly
is faster, and aborts the others ("the leader task was preempted/died", exit code 134).

    jax_simcas/name/INDEX    which process this is, on which machine
    jax_simcas/end/INDEX     this process ends the job: with which exit code, and why
    jax_simcas/call/INDEX    this process lost a connection: who is still there?
    jax_simcas/here/INDEX    the answer
"""

from __future__ import annotations

import atexit
import contextlib
import faulthandler
import json
import os
import socket
import sys
import threading
import time
from typing import Any, NoReturn

import jax
from jax._src import distributed  # has the service's client, for which jax.distributed has no name

EXIT_LOST = 134  # of those left when one died without a word; also what jax ends them with
SECONDS_BETWEEN_LOOKS = 1.0
SECONDS_TO_ANSWER = 5.0


def listen() -> None:
    """From now on this process answers the others and ends with them; call once they are joined."""
    _put("name", _name())
    leaving = threading.Event()
    atexit.register(leaving.set)  # runs before jax leaves the service: what was registered last runs first
    threading.Thread(target=_listen, args=(leaving,), daemon=True).start()
    # When jax aborts, its message is the last but this thread's stack: absl had asked for those of all.
    faulthandler.enable(all_threads=False)


def end_all(code: int, why: str) -> NoReturn:
    """Ends this process at once, and the others with the same code once they have printed its name and `why`.

    Leaving in the ordinary way would wait for the others, who wait for this one.
    """
    print(f"error: {_name()} failed, and the others end with it", file=sys.stderr)
    _end(code, f"{_name()} failed: {why}")


def end_if_one_is_lost() -> None:
    """Call after an error that another process's end may have caused: if so, says who and ends all that are left."""
    try:
        _look()
        _put("call", "")
        time.sleep(SECONDS_TO_ANSWER)
        names, here = _all("name"), _all("here")
    except Exception:  # process 0 is gone, and with it the store: `_listen` is about to say so
        time.sleep(SECONDS_TO_ANSWER)
        return
    lost = [name for index, name in sorted(names.items()) if index not in here and index != jax.process_index()]
    if lost:
        print(f"error: {_gone(*lost)}", file=sys.stderr)
        _end(EXIT_LOST, _gone(*lost))


def _listen(leaving: threading.Event) -> None:
    coordinator = _client().blocking_key_value_get("jax_simcas/name/0", 60_000)
    while not leaving.wait(SECONDS_BETWEEN_LOOKS):
        try:
            _look()
        except Exception:
            if not leaving.is_set():
                _exit(EXIT_LOST, _gone(coordinator))


def _look() -> None:
    own = jax.process_index()
    for index, word in _all("end").items():
        if index != own:
            _exit(*json.loads(word))
    if any(index != own for index in _all("call")):
        _put("here", "")


def _end(code: int, why: str) -> NoReturn:
    with contextlib.suppress(Exception):  # process 0 may be gone
        _put("end", json.dumps([code, why]))
        if jax.process_index() == 0:  # with this process the store goes: let the others read it first
            time.sleep(3 * SECONDS_BETWEEN_LOOKS)
    _exit(code)


def _exit(code: int, why: str = "") -> NoReturn:
    if why:
        print(f"error: {why}", file=sys.stderr)
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


def _name() -> str:
    return f"process {jax.process_index()} of {jax.process_count()} on {socket.gethostname()}"


def _gone(*names: str) -> str:
    return f"{', '.join(names)} does not answer: killed, or its machine is gone"


def _client() -> Any:
    return distributed.global_state.client


def _put(kind: str, value: str) -> None:
    _client().key_value_set(f"jax_simcas/{kind}/{jax.process_index()}", value, allow_overwrite=True)


def _all(kind: str) -> dict[int, str]:
    """What every process put, by its index."""
    return {int(key.rsplit("/", 1)[1]): value for key, value in _client().key_value_dir_get(f"jax_simcas/{kind}/")}
