"""A headless Chromium for tests, driven through its DevTools protocol over a pipe: no port, no further package."""

from __future__ import annotations

import base64
import fcntl
import json
import os
import select
import shutil
import subprocess
import sys
import time
from contextlib import contextmanager

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
"""The program, where this machine has one."""

KEYS = {"Tab": 9, "Enter": 13, "Escape": 27, "ArrowLeft": 37, "ArrowDown": 40, "ArrowUp": 38, "/": 191}
CONTROL = 2

CONTRAST = """(() => {
  const canvas = document.createElement("canvas").getContext("2d", { willReadFrequently: true });
  const rgb = (...layers) => {
    canvas.clearRect(0, 0, 1, 1);
    for (const color of layers) { canvas.fillStyle = color; canvas.fillRect(0, 0, 1, 1); }
    return Array.from(canvas.getImageData(0, 0, 1, 1).data).slice(0, 3);
  };
  const light = color => {
    const [r, g, b] = color.map(value => value / 255).map(v => v <= .04045 ? v / 12.92 : ((v + .055) / 1.055) ** 2.4);
    return .2126 * r + .7152 * g + .0722 * b;
  };
  const found = [];
  for (const node of document.querySelectorAll("body *")) {
    const own = Array.from(node.childNodes).some(child => child.nodeType === 3 && child.textContent.trim());
    if (!own || !node.checkVisibility() || node.closest("script, option, noscript")) continue;
    const behind = [];
    for (let at = node; at; at = at.parentElement) behind.unshift(getComputedStyle(at).backgroundColor);
    const style = getComputedStyle(node), within = node.closest("svg") !== null;
    const inside = within && style.textAnchor === "middle" ? [node.parentNode.querySelector("circle")] : [];
    const back = rgb(...behind, ...inside.map(circle => getComputedStyle(circle).fill));
    const front = rgb(within ? style.fill : style.color);
    const [low, high] = [light(back), light(front)].sort((one, other) => one - other);
    found.push([(high + .05) / (low + .05), node.outerHTML.slice(0, 120)]);
  }
  return found.sort((one, other) => one[0] - other[0]);
})()"""
"""Contrast of every visible text of a page with what is behind it, the least first, with the text's element."""

START = (
    "import os, sys; os.dup2(int(sys.argv[1]), 3); os.dup2(int(sys.argv[2]), 4); os.execv(sys.argv[3], sys.argv[3:])"
)
"""Starts what is named after two pipes with these as 3 and 4: a browser reads from the one and writes to the other."""


class Tab:
    """One page in a browser.

    Attributes:
        requests: addresses that the page asked for.
        complaints: errors and warnings of the console, and exceptions that nobody caught.
    """

    def __init__(self, pipe, session):
        self._pipe, self._session = pipe, session
        self.requests, self.complaints = [], []
        self._touching = 0
        for domain in ("Page", "Runtime", "Log", "Network"):
            self.send(f"{domain}.enable")

    def send(self, method, **parameters):
        return self._pipe.call(method, parameters, self._session, self._hear)

    def _hear(self, event):
        name, told = event["method"], event["params"]
        if name == "Network.requestWillBeSent":
            self.requests.append(told["request"]["url"])
        elif name == "Runtime.exceptionThrown":
            self.complaints.append(told["exceptionDetails"].get("exception", {}).get("description", "an exception"))
        elif name == "Log.entryAdded" and told["entry"]["level"] in ("error", "warning"):
            self.complaints.append(told["entry"]["text"])
        elif name == "Runtime.consoleAPICalled" and told["type"] in ("error", "warning"):
            self.complaints.append(str([argument.get("value") for argument in told["args"]]))

    def look(self, width, height, scheme="light"):
        """How wide the screen is, and which colours are preferred."""
        self.send(
            "Emulation.setDeviceMetricsOverride",
            width=width,
            height=height,
            deviceScaleFactor=1,
            mobile=width < 600,
        )
        self.send("Emulation.setTouchEmulationEnabled", enabled=width < 600)
        self.send("Emulation.setEmulatedMedia", features=[{"name": "prefers-color-scheme", "value": scheme}])

    def open(self, url):
        self.send("Page.navigate", url=url)
        self.until("document.readyState === 'complete'")

    def value(self, expression):
        """What an expression comes to in the page."""
        found = self.send("Runtime.evaluate", expression=expression, returnByValue=True, awaitPromise=True)
        assert "exceptionDetails" not in found, found
        return found["result"].get("value")

    def until(self, expression, seconds=20.0):
        """Wait until an expression is true in the page."""
        end = time.monotonic() + seconds
        while not self.value(f"Boolean({expression})"):
            assert time.monotonic() < end, f"it never came to be: {expression}; {self.complaints}"
            time.sleep(0.02)

    def text(self, selector):
        return self.value(f"document.querySelector({json.dumps(selector)}).innerText")

    def texts(self, selector):
        return self.value(f"Array.from(document.querySelectorAll({json.dumps(selector)}), node => node.textContent)")

    def click(self, selector):
        """Click in the middle of an element, as a hand would."""
        x, y = self.value(
            f"(() => {{ const node = document.querySelector({json.dumps(selector)}); node.scrollIntoView({{block: "
            "'center'}); const box = node.getBoundingClientRect(); "
            "return [box.x + box.width / 2, box.y + box.height / 2]; })()"
        )
        for kind in ("mousePressed", "mouseReleased"):
            self.send("Input.dispatchMouseEvent", type=kind, x=x, y=y, button="left", clickCount=1)

    def mouse(self, kind, x, y, **more):
        """Have the mouse do something: ``mouseMoved``, ``mousePressed``, ``mouseReleased``, ``mouseWheel``."""
        self.send("Input.dispatchMouseEvent", type=kind, x=x, y=y, **more)

    def touch(self, *points):
        """Put fingers down, one at each place, or move them there; none lifts them."""
        kind = "touchEnd" if not points else "touchMove" if self._touching == len(points) else "touchStart"
        self._touching = len(points)
        self.send("Input.dispatchTouchEvent", type=kind, touchPoints=[{"x": x, "y": y} for x, y in points])

    def press(self, key, modifiers=0):
        number = KEYS.get(key) or ord(key.upper())
        told = {"key": key, "code": key, "windowsVirtualKeyCode": number, "modifiers": modifiers}
        if key == "Enter" or len(key) == 1:
            told["text"] = "\r" if key == "Enter" else key
        self.send("Input.dispatchKeyEvent", type="keyDown" if "text" in told else "rawKeyDown", **told)
        self.send("Input.dispatchKeyEvent", type="keyUp", **told)

    def fill(self, selector, text):
        """Put a text in place of a field's, as pasting does."""
        self.value(f"document.querySelector({json.dumps(selector)}).focus()")
        self.value("document.activeElement.select()")
        self.send("Input.insertText", text=text)

    def put(self, selector, text):
        """As :meth:`fill`, but at once: lines that are inserted are laid out one by one, and many take seconds."""
        self.value(
            f"(() => {{ const node = document.querySelector({json.dumps(selector)}); node.value = {json.dumps(text)}; "
            "node.dispatchEvent(new InputEvent('input', { bubbles: true })); })()"
        )

    def picture(self, path, height=None):
        """The page as a PNG, from its top; None is all of it."""
        size = self.send("Page.getLayoutMetrics")["cssContentSize"]
        clip = {"x": 0, "y": 0, "width": size["width"], "height": height or size["height"], "scale": 1}
        shot = self.send("Page.captureScreenshot", format="png", captureBeyondViewport=True, clip=clip)
        with open(path, "wb") as file:
            file.write(base64.b64decode(shot["data"]))


class _Pipe:
    def __init__(self, reading, writing):
        self._reading, self._writing = reading, writing
        self._number, self._left = 0, b""

    def call(self, method, parameters, session=None, hear=lambda event: None):
        self._number += 1
        message = {"id": self._number, "method": method, "params": parameters}
        if session:
            message["sessionId"] = session
        waiting = json.dumps(message).encode() + b"\0"
        while waiting:
            waiting = waiting[os.write(self._writing, waiting) :]
        while True:
            answer = self._receive()
            if answer.get("id") == self._number:
                assert "error" not in answer, f"{method}: {answer['error']}"
                return answer["result"]
            if "method" in answer and answer.get("sessionId") == session:
                hear(answer)

    def _receive(self, seconds=60):
        while b"\0" not in self._left:
            ready, _, _ = select.select([self._reading], [], [], seconds)
            assert ready, f"the browser said nothing for {seconds} s"
            part = os.read(self._reading, 1 << 20)
            assert part, "the browser has ended"
            self._left += part
        message, _, self._left = self._left.partition(b"\0")
        return json.loads(message)


@contextmanager
def browsing(profile):
    """A browser with a profile in a folder; what opens a new tab in it."""
    theirs_in, ours_out = os.pipe()
    ours_in, theirs_out = os.pipe()
    # Out of the way of the places where the browser looks for them.
    high = [fcntl.fcntl(end, fcntl.F_DUPFD_CLOEXEC, 10) for end in (theirs_in, theirs_out)]
    command = [
        sys.executable, "-S", "-c", START, *map(str, high), CHROMIUM,
        "--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--no-first-run",
        "--disable-background-networking", "--disable-component-update", "--disable-extensions",
        "--force-color-profile=srgb", f"--user-data-dir={profile}", "--remote-debugging-pipe", "about:blank",
    ]  # fmt: skip
    quiet = subprocess.DEVNULL
    process = subprocess.Popen(command, stdin=quiet, stdout=quiet, stderr=quiet, pass_fds=high, start_new_session=True)
    for end in (theirs_in, theirs_out, *high):
        os.close(end)
    pipe = _Pipe(ours_in, ours_out)

    def tab():
        target = pipe.call("Target.createTarget", {"url": "about:blank"})["targetId"]
        session = pipe.call("Target.attachToTarget", {"targetId": target, "flatten": True})["sessionId"]
        return Tab(pipe, session)

    try:
        yield tab
    finally:
        try:
            pipe.call("Browser.close", {})
            process.wait(20)
        except (AssertionError, OSError, subprocess.TimeoutExpired):
            process.kill()
            process.wait(20)
        os.close(ours_in)
        os.close(ours_out)
