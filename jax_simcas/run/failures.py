"""Failure propagation between processes: when one fails or dies, the others exit and print which one and why.

Messages go through the key-value store of JAX's coordination service, which lives in process 0. When process 0 is
killed, JAX usually aborts the others first ("the leader task was preempted/died", exit code 134).

    jax_simcas/name/INDEX    index and machine of this process
    jax_simcas/end/INDEX     this process ends the job: exit code and reason
    jax_simcas/call/INDEX    this process lost a connection and asks who is alive
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

EXIT_LOST = 134  # of the remaining processes when one died silently; jax's own abort gives the same
SECONDS_BETWEEN_POLLS = 1.0
SECONDS_TO_ANSWER = 5.0


def listen() -> None:
    """Starts the thread that answers the other processes and exits with them; call after joining."""
    _put("name", _name())
    leaving = threading.Event()
    atexit.register(leaving.set)  # before jax leaves the service: last registered runs first
    threading.Thread(target=_listen, args=(leaving,), daemon=True).start()
    # When jax aborts, print this thread's stack only, after jax's message; absl had asked for all threads.
    faulthandler.enable(all_threads=False)


def end_all(code: int, why: str) -> NoReturn:
    """Exits this process at once, and the others with the same code after they print its name and `why`.

    An ordinary exit would deadlock: it waits for the others, which wait for this process.
    """
    print(f"error: {_name()} failed, and the others end with it", file=sys.stderr)
    _end(code, f"{_name()} failed: {why}")


def end_if_one_is_lost() -> None:
    """Call after an error that another process's death may have caused: if so, prints which, and ends all others."""
    try:
        _poll()
        _put("call", "")
        time.sleep(SECONDS_TO_ANSWER)
        names, here = _all("name"), _all("here")
    except Exception:  # process 0 and its store are gone: `_listen` is about to report it
        time.sleep(SECONDS_TO_ANSWER)
        return
    lost = [name for index, name in sorted(names.items()) if index not in here and index != jax.process_index()]
    if lost:
        print(f"error: {_gone(*lost)}", file=sys.stderr)
        _end(EXIT_LOST, _gone(*lost))


def _listen(leaving: threading.Event) -> None:
    coordinator = _client().blocking_key_value_get("jax_simcas/name/0", 60_000)
    while not leaving.wait(SECONDS_BETWEEN_POLLS):
        try:
            _poll()
        except Exception:
            if not leaving.is_set():
                _exit(EXIT_LOST, _gone(coordinator))


def _poll() -> None:
    own = jax.process_index()
    for index, word in _all("end").items():
        if index != own:
            _exit(*json.loads(word))
    if any(index != own for index in _all("call")):
        _put("here", "")


def _end(code: int, why: str) -> NoReturn:
    with contextlib.suppress(Exception):  # process 0 may be gone
        _put("end", json.dumps([code, why]))
        if jax.process_index() == 0:  # the store ends with this process: let the others read it first
            time.sleep(3 * SECONDS_BETWEEN_POLLS)
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
    """What each process stored, by index."""
    return {int(key.rsplit("/", 1)[1]): value for key, value in _client().key_value_dir_get(f"jax_simcas/{kind}/")}
