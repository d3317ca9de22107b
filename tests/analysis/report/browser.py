# SPDX-License-Identifier: MIT
"""A headless Chromium that is told what to do over a pair of pipes: Chrome's DevTools protocol.

`python -m tests.analysis.report.browser FILE.html OUT.png [WIDTH [HEIGHT]]` makes a picture.
"""

import base64
import itertools
import json
import os
import subprocess
import sys
import tempfile
from contextlib import ExitStack, contextmanager
from pathlib import Path
from select import select
from typing import Any

ANSWER_S = 120
"""After which something hangs."""
_OPTIONS = (
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--disable-dev-shm-usage",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--hide-scrollbars",
    "--remote-debugging-pipe",
)

# The protocol's descriptors are 3 and 4.
_EXECUTE = """
import os, sys
from fcntl import F_DUPFD, fcntl
high = [fcntl(int(each), F_DUPFD, 10) for each in sys.argv[1:3]]
os.dup2(high[0], 3)
os.dup2(high[1], 4)
os.execvp(sys.argv[3], sys.argv[3:])
"""


class Page:
    """One page, and what has gone wrong on it or been asked of the network since it was opened."""

    def __init__(self, to_browser: int, from_browser: int) -> None:
        self.errors: list[str] = []
        self.requests: list[str] = []
        self._to, self._from = to_browser, from_browser
        self._numbers = itertools.count(1)
        self._read = b""
        self._session: str | None = None
        self._seen: set[str] = set()
        target = self.call("Target.createTarget", url="about:blank")["targetId"]
        attached = self.call("Target.attachToTarget", targetId=target, flatten=True)
        self._session = attached["sessionId"]
        for domain in ("Page", "Runtime", "Log", "Network"):
            self.call(f"{domain}.enable")

    def open(self, url: str, width: int, height: int = 800, **media: str) -> None:
        """Show a page in a window of a size; media: features such as prefers_color_scheme."""
        self.errors.clear()
        self.requests.clear()
        self._seen.clear()
        self.call(
            "Emulation.setDeviceMetricsOverride",
            width=width,
            height=height,
            deviceScaleFactor=1,
            mobile=width < 600,
        )
        features = [{"name": name.replace("_", "-"), "value": media[name]} for name in media]
        self.call("Emulation.setEmulatedMedia", features=features)
        self.call("Page.navigate", url=url)
        while "Page.loadEventFired" not in self._seen:
            self._take(self._message())

    def value(self, expression: str) -> Any:
        """Return the value of an expression in JavaScript."""
        done = self.call("Runtime.evaluate", expression=expression, returnByValue=True)
        assert "exceptionDetails" not in done, done
        return done["result"].get("value")

    def screenshot(self, file: Path, height: int | None = None) -> None:
        """Write the whole page, or its upper part, as PNG."""
        size = self.call("Page.getLayoutMetrics")["cssContentSize"]
        clip = {"x": 0, "y": 0, "width": size["width"], "height": height or size["height"]}
        shot = self.call(
            "Page.captureScreenshot", clip={**clip, "scale": 1}, captureBeyondViewport=True
        )
        file.write_bytes(base64.b64decode(shot["data"]))

    def call(self, method: str, **parameters: object) -> Any:
        """Return a method's result."""
        message: dict[str, object] = {
            "id": (number := next(self._numbers)),
            "method": method,
            "params": parameters,
        }
        if self._session is not None:
            message["sessionId"] = self._session
        data = json.dumps(message).encode() + b"\0"
        while data:
            data = data[os.write(self._to, data) :]
        while (message := self._message()).get("id") != number:
            self._take(message)
        assert "error" not in message, message
        return message["result"]

    def _take(self, event: dict[str, Any]) -> None:
        name, said = event.get("method", ""), event.get("params", {})
        self._seen.add(name)
        if name in ("Runtime.exceptionThrown", "Runtime.consoleAPICalled", "Log.entryAdded"):
            self.errors.append(str(said))
        elif name == "Network.requestWillBeSent":
            self.requests.append(said["request"]["url"])

    def _message(self) -> dict[str, Any]:
        while b"\0" not in self._read:
            ready, _, _ = select([self._from], [], [], ANSWER_S)
            assert ready, f"the browser said nothing for {ANSWER_S} s"
            piece = os.read(self._from, 1 << 16)
            assert piece, "the browser has ended"
            self._read += piece
        message, _, self._read = self._read.partition(b"\0")
        return json.loads(message)


@contextmanager
def chromium():
    """Yield a page of a new browser with a profile of its own, which ends with the block."""
    with ExitStack() as stack:
        home = stack.enter_context(tempfile.TemporaryDirectory(ignore_cleanup_errors=True))
        commands, to_browser = os.pipe()
        from_browser, answers = os.pipe()
        stack.callback(os.close, from_browser)
        command = ["chromium", f"--user-data-dir={home}", *_OPTIONS]
        process = subprocess.Popen(
            [sys.executable, "-c", _EXECUTE, str(commands), str(answers), *command],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            env={**os.environ, "HOME": home},
            pass_fds=(commands, answers),
        )
        stack.callback(process.wait)
        stack.callback(process.kill)
        stack.callback(os.close, to_browser)
        os.close(commands)
        os.close(answers)
        yield Page(to_browser, from_browser)


if __name__ == "__main__":
    page_file, picture, *size = sys.argv[1:]
    with chromium() as browser_page:
        browser_page.open(Path(page_file).resolve().as_uri(), int(size[0]) if size else 1280)
        browser_page.screenshot(Path(picture), int(size[1]) if len(size) > 1 else None)
