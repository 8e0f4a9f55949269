"""Debian's headless Chromium for tests of pages, driven through its own debugging pipe: no driver, no network."""

import base64
import json
import os
import shutil
import subprocess
from contextlib import contextmanager
from itertools import count

import pytest

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")


class Tab:
    """One tab, by the DevTools protocol: JSON messages that end in a zero byte."""

    def __init__(self, to, answers):
        self._to, self._answers, self._numbers = to, answers, count(1)
        self._rest, self._session = b"", None
        self.events = []  # what the browser told unasked
        target = self.call("Target.createTarget", url="about:blank")["targetId"]
        self._session = self.call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        for domain in ("Page", "Runtime", "Network", "Log"):
            self.call(f"{domain}.enable")

    def call(self, method, **params):
        number = next(self._numbers)
        message = {"id": number, "method": method, "params": params}
        if self._session:
            message["sessionId"] = self._session
        os.write(self._to, json.dumps(message).encode() + b"\0")
        while True:
            answer = self._next()
            if answer.get("id") == number:
                assert "error" not in answer, (method, answer["error"])
                return answer["result"]
            self.events.append(answer)

    def _next(self):
        while b"\0" not in self._rest:
            piece = os.read(self._answers, 1 << 20)
            assert piece, "the browser ended"
            self._rest += piece
        message, _, self._rest = self._rest.partition(b"\0")
        return json.loads(message)

    def open(self, path, width=1300, height=900, dark=False):
        """Opens a page and waits until its script has run."""
        self.call("Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=False)
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        self.call("Emulation.setEmulatedMedia", features=[scheme])
        self.events.clear()
        self.call("Page.navigate", url=path.as_uri())
        while not any(event.get("method") == "Page.loadEventFired" for event in self.events):
            self.events.append(self._next())
        self.settle()

    def settle(self):
        """Until what scripts and scrolling asked for has been drawn."""
        frame = "new Promise(done => requestAnimationFrame(() => requestAnimationFrame(done)))"
        for _ in range(3):
            self.run(f"{frame}.then(() => 0)")

    def run(self, script):
        """The value of a JavaScript expression, awaited if it is a promise."""
        answer = self.call("Runtime.evaluate", expression=script, awaitPromise=True, returnByValue=True)
        assert "exceptionDetails" not in answer, answer["exceptionDetails"]
        return answer["result"].get("value")

    def key(self, key, shift=False):
        """Presses a key where the focus is."""
        codes = {"Enter": 13, "Tab": 9, "ArrowRight": 39, "ArrowLeft": 37, "Home": 36, "End": 35, " ": 32}
        text = {"Enter": "\r"}.get(key, key if len(key) == 1 else None)
        code = {"windowsVirtualKeyCode": codes.get(key, 0), "modifiers": 8 * shift}
        self.call("Input.dispatchKeyEvent", type="keyDown", key=key, **code, **({"text": text} if text else {}))
        self.call("Input.dispatchKeyEvent", type="keyUp", key=key, **code)
        self.settle()

    def point_at(self, selector, click=False):
        """Moves the pointer over an element, and clicks there."""
        box = f"document.querySelector({json.dumps(selector)}).getClientRects()[0]"
        x, y = self.run(f"(box => [box.x + box.width / 2, box.y + box.height / 2])({box})")
        self.call("Input.dispatchMouseEvent", type="mouseMoved", x=x, y=y)
        for kind in ("mousePressed", "mouseReleased") if click else ():
            self.call("Input.dispatchMouseEvent", type=kind, x=x, y=y, button="left", clickCount=1)
        self.settle()

    def screenshot(self, path):
        path.write_bytes(base64.b64decode(self.call("Page.captureScreenshot")["data"]))

    def told(self, *methods):
        """The parameters of events of these kinds since the page was opened."""
        return [event["params"] for event in self.events if event.get("method") in methods]


@contextmanager
def chromium(folder):
    """A tab of a browser of its own; skips the test where there is no Chromium."""
    if CHROMIUM is None:
        pytest.skip("needs Chromium: apt-get install chromium")
    commands, answers = os.pipe(), os.pipe()

    def as_3_and_4():
        ends = [os.dup(commands[0]), os.dup(answers[1])]  # beyond 4, so that neither is overwritten
        for number, end in zip((3, 4), ends, strict=True):
            os.dup2(end, number)

    flags = ["--headless", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--no-first-run"]
    flags += ["--remote-debugging-pipe", f"--user-data-dir={folder}"]
    options = {"preexec_fn": as_3_and_4, "close_fds": False}
    process = subprocess.Popen([CHROMIUM, *flags], stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL, **options)
    os.close(commands[0])
    os.close(answers[1])
    try:
        yield Tab(commands[1], answers[0])
    finally:
        process.terminate()
        process.wait(timeout=30)
        os.close(commands[1])
        os.close(answers[0])
