"""Failure propagation between processes: when one fails or dies, the others exit and print which one and why.

Messages go through the key-value store of JAX's coordination service, which lives in process 0. When process 0 is
killed, JAX usually aborts the others first ("the leader task was preempted/died", exit code 134).

    jax_simcas/name/INDEX    index and machine of this process
    jax_simcas/end/INDEX     this process ends the job: exit code and reason
    jax_simcas/call/INDEX    this process lost a connection and asks who is alive
    jax_simcas/here/INDEX    the answer
    jax_simcas/at/INDEX      how many batches this process has taken up

A process that hangs (a disk that never answers) still sends heartbeats, and the others wait for it. So once batches are
taken up, all processes end when none has taken up another for `hang_seconds`.
"""

from __future__ import annotations

import atexit
import contextlib
import faulthandler
import json
import math
import os
import socket
import sys
import threading
import time
from typing import Any, NoReturn

import jax
from jax._src import distributed  # has the service's client, for which jax.distributed has no name

from jax_simcas.common.errors import UserError

EXIT_LOST = 134  # of the remaining processes when one died silently; jax's own abort gives the same
SECONDS_BETWEEN_POLLS = 1.0
SECONDS_TO_ANSWER = 5.0
HANG_SECONDS = 3_600.0  # longer than a compilation, a validation step or a save takes
HANG_VARIABLE = "JAX_SIMCAS_HANG_SECONDS"  # in the environment: another number; 0: never


class Progress:
    """The batches that this process has taken up, and since when each process's number is what it is."""

    def __init__(self) -> None:
        self.batches = 0
        self._posted = -1
        self._seen: dict[int, tuple[int, float]] = {}

    def exchange(self) -> None:
        """Tells the others the number, and looks at theirs."""
        if self._posted != self.batches:
            self._posted = self.batches
            _put("at", str(self._posted))
        for index, batches in _all("at").items():
            if self._seen.get(index, (-1, 0.0))[0] != int(batches):
                self._seen[index] = int(batches), time.monotonic()

    def seconds_since_any(self) -> float:
        """Seconds in which no process has taken up a batch; 0 before the first."""
        begun = [since for batches, since in self._seen.values() if batches]
        return time.monotonic() - max(since for _, since in self._seen.values()) if begun else 0.0

    def last(self) -> list[int]:
        """The processes for which the others wait: those with the fewest batches."""
        fewest = min(batches for batches, _ in self._seen.values())
        return [index for index, (batches, _) in sorted(self._seen.items()) if batches == fewest]


_progress = Progress()
_ending = threading.Lock()  # held by the thread that ends this process, from when it has told why


def stand_aside() -> None:
    """Call after an error: where the job ends already, which closes connections, this process ends with it."""
    if _ending.locked():
        time.sleep(10 * SECONDS_TO_ANSWER)


def take_up_batch() -> None:
    """Call for each batch, before what processes do together."""
    _progress.batches += 1


def hang_seconds() -> float:
    """Seconds without a batch in any process, after which all end; 0: never.

    Raises:
      UserError: the environment has something else.
    """
    given = os.environ.get(HANG_VARIABLE, str(HANG_SECONDS))
    try:
        seconds = float(given)
    except ValueError:
        seconds = -1.0
    if not 0 <= seconds < math.inf:
        raise UserError(f"{HANG_VARIABLE}={given}: expected seconds, or 0 for no limit")
    return seconds


def listen() -> None:
    """Starts the thread that answers the other processes and exits with them; call after joining."""
    _put("name", _name())
    leaving = threading.Event()
    atexit.register(leaving.set)  # before jax leaves the service: last registered runs first
    threading.Thread(target=_listen, args=(leaving, hang_seconds()), daemon=True).start()
    # When jax aborts, print this thread's stack only, after jax's message; absl had asked for all threads.
    faulthandler.enable(all_threads=False)


def end_all(code: int, why: str) -> NoReturn:
    """Exits this process at once, and the others with the same code after they print its name and `why`.

    An ordinary exit would deadlock: it waits for the others, which wait for this process.
    """
    _say(f"{_name()} failed, and the others end with it")
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
        _say(_gone(*lost))
        _end(EXIT_LOST, _gone(*lost))


def _listen(leaving: threading.Event, hang: float) -> None:
    coordinator = _client().blocking_key_value_get("jax_simcas/name/0", 60_000)
    # Process 0 tells first, as its end may cut the others off; it may be what hangs.
    limit = hang + 3 * SECONDS_TO_ANSWER * (jax.process_index() > 0)
    while not leaving.wait(SECONDS_BETWEEN_POLLS):
        try:
            _poll()
            _progress.exchange()
            names = _all("name")
        except Exception:
            if not leaving.is_set():
                _exit(EXIT_LOST, _gone(coordinator))
        if hang and _progress.seconds_since_any() > limit and not leaving.is_set():
            why = _hangs([names[index] for index in _progress.last()], hang)
            _say(why)
            _end(EXIT_LOST, why)


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
        _say(why)
    with contextlib.suppress(OSError):
        sys.stdout.flush()
    os._exit(code)


def _say(why: str) -> None:
    """Prints the line that tells why this process ends; only the first one, as several may notice a death at once."""
    if not _ending.acquire(blocking=False):
        return
    with contextlib.suppress(OSError):  # standard error may be a pipe that nothing reads any more
        print(f"error: {why}", file=sys.stderr, flush=True)


def _name() -> str:
    return f"process {jax.process_index()} of {jax.process_count()} on {socket.gethostname()}"


def _gone(*names: str) -> str:
    return f"{', '.join(names)} does not answer: killed, or its machine is gone"


def _hangs(names: list[str], seconds: float) -> str:
    them = "hangs" if len(names) == 1 else "hang"
    return f"{', '.join(names)} {them}: no batch for {seconds:g} s, and the others wait; the same command resumes"


def _client() -> Any:
    return distributed.global_state.client


def _put(kind: str, value: str) -> None:
    _client().key_value_set(f"jax_simcas/{kind}/{jax.process_index()}", value, allow_overwrite=True)


def _all(kind: str) -> dict[int, str]:
    """What each process stored, by index."""
    return {int(key.rsplit("/", 1)[1]): value for key, value in _client().key_value_dir_get(f"jax_simcas/{kind}/")}
