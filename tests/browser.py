"""A headless Chromium that opens pages at any width, driven by its pipe of the DevTools protocol."""

import base64
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from select import select
from tempfile import TemporaryDirectory

import pytest

START = """import os, sys
from fcntl import F_DUPFD, fcntl
for wanted, high in [(3 + i, fcntl(int(sys.argv[1 + i]), F_DUPFD, 100)) for i in range(2)]:
    os.dup2(high, wanted)
os.execv(sys.argv[3], sys.argv[3:])"""
SECONDS = 120  # for one answer, on a busy machine
LOOK = """(() => { const images = [...document.images], lost = one => one.complete && !one.naturalWidth;
return {wider: document.documentElement.scrollWidth - innerWidth, images: images.length,
        broken: images.filter(lost).map(one => one.src)};
})()"""
AXE = """axe.run(document, {resultTypes: ["violations"]}).then(found => found.violations
.filter(one => ["serious", "critical"].includes(one.impact))
.map(one => `${one.id}: ${one.nodes.slice(0, 3).map(node => node.html.slice(0, 200)).join(" | ")}`))"""


class Browser:
    """One tab; ``errors`` collects what the console and the network of the open page complain of."""

    def __init__(self, read: int, write: int) -> None:
        self._read, self._write, self._buffer, self._number = read, write, b"", 0
        self.errors: list[str] = []
        target = self._send("Target.createTarget", url="about:blank")["targetId"]
        self._session = self._send("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        for domain in ("Page", "Runtime", "Log", "Network"):
            self._send(f"{domain}.enable")

    def open(self, path: Path | str, width: int, dark: bool = False) -> None:
        """Load a file or an address in a window of this width."""
        address = path.as_uri() if isinstance(path, Path) else path
        self._send("Emulation.setDeviceMetricsOverride", width=width, height=900, deviceScaleFactor=1, mobile=False)
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        self._send("Emulation.setEmulatedMedia", features=[scheme])
        self.errors = []
        self._loaded = False
        if reason := self._send("Page.navigate", url=address).get("errorText"):
            raise AssertionError(f"{address}: {reason}")
        while not self._loaded:
            self._receive()

    def run(self, code: str):
        """The value of JavaScript, of a promise too."""
        done = self._send("Runtime.evaluate", expression=code, awaitPromise=True, returnByValue=True)
        assert "exceptionDetails" not in done, done
        return done["result"].get("value")

    def faults(self) -> list[str]:
        """What is wrong with the open page: errors, broken images, and a width above that of the window."""
        seen = self.run(LOOK)
        wide = [f"{seen['wider']} px wider than the window"] if seen["wider"] > 0 else []
        return [*self.errors, *wide, *(f"broken: {one}" for one in seen["broken"])]

    def serious(self) -> list[str]:
        """Serious and critical findings of axe-core on the open page."""
        self.run(axe())
        return self.run(AXE)

    def shot(self, path: Path) -> None:
        """Write the whole page as PNG."""
        size = self._send("Page.getLayoutMetrics")["cssContentSize"]
        clip = {"x": 0, "y": 0, "width": size["width"], "height": min(size["height"], 8000), "scale": 1}
        done = self._send("Page.captureScreenshot", captureBeyondViewport=True, clip=clip)
        path.write_bytes(base64.b64decode(done["data"]))

    def _send(self, method: str, **params):
        self._number += 1
        number, message = self._number, {"id": self._number, "method": method, "params": params}
        if hasattr(self, "_session"):
            message["sessionId"] = self._session
        os.write(self._write, json.dumps(message).encode() + b"\0")
        while True:
            answer = self._receive()
            if answer.get("id") == number:
                assert "error" not in answer, answer
                return answer["result"]

    def _receive(self) -> dict:
        while b"\0" not in self._buffer:
            assert select([self._read], [], [], SECONDS)[0], "the browser does not answer"
            part = os.read(self._read, 1 << 20)
            assert part, "the browser has ended"
            self._buffer += part
        text, _, self._buffer = self._buffer.partition(b"\0")
        message = json.loads(text)
        self._note(message.get("method", ""), message.get("params", {}))
        return message

    def _note(self, event: str, what: dict) -> None:
        if event == "Page.loadEventFired":
            self._loaded = True
        elif event == "Runtime.exceptionThrown":
            self.errors.append(str(what["exceptionDetails"].get("exception", what)))
        elif event == "Runtime.consoleAPICalled" and what["type"] in ("error", "assert"):
            self.errors.append(str(what["args"]))
        elif event == "Log.entryAdded" and what["entry"]["level"] == "error":
            self.errors.append(f"{what['entry']['text']} {what['entry'].get('url', '')}")


@contextmanager
def chromium() -> Iterator[Browser]:
    """Start the browser; skip the test where there is none."""
    program = shutil.which("chromium") or shutil.which("chromium-browser")
    if program is None:
        pytest.skip("needs Chromium (apt-get install chromium)")
    ours, theirs = os.pipe(), os.pipe()  # we write to the first, and read from the second
    with TemporaryDirectory(ignore_cleanup_errors=True) as profile:
        words = [program, "--headless", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage",
                 "--allow-file-access-from-files", "--hide-scrollbars", "--disable-background-networking",
                 f"--user-data-dir={profile}", "--remote-debugging-pipe"]  # fmt: skip
        start = [sys.executable, "-c", START, str(ours[0]), str(theirs[1]), *words]
        process = subprocess.Popen(start, pass_fds=(ours[0], theirs[1]), stderr=subprocess.DEVNULL)
        os.close(ours[0])
        os.close(theirs[1])
        try:
            yield Browser(theirs[0], ours[1])
        finally:
            process.terminate()
            process.wait(SECONDS)
            os.close(ours[1])
            os.close(theirs[0])


def axe() -> str:
    """The code of axe-core; skip the test where it is not installed."""
    package = pytest.importorskip("axe_core_python", reason="needs axe-core (pip install axe-core-python)")
    return (Path(package.__file__).parent / "axe.min.js").read_text(encoding="utf-8")
