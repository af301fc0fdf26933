"""Built pages in a real browser: Chromium without a window, over its DevTools protocol. Nothing leaves the machine."""

from __future__ import annotations

import itertools
import json
import shutil
import subprocess
import tempfile
import threading
import time
from base64 import b64decode
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.request import Request, urlopen

from websocket import create_connection

PROGRAM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
FLAGS = (
    "--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--remote-debugging-port=0",
    "--disable-background-networking", "--no-first-run", "--hide-scrollbars", "--force-color-profile=srgb",
    "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1",
)  # fmt: skip
PATIENCE = 30.0  # seconds for one step


class _Quiet(SimpleHTTPRequestHandler):
    def log_message(self, *_: Any) -> None:
        pass


class Browser:
    """One tab that shows the pages below a folder. `troubles`: of the page that is open, console errors and requests
    that failed or went to another host.
    """

    def __init__(self, html: Path) -> None:
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), partial(_Quiet, directory=str(html)))
        threading.Thread(target=self._server.serve_forever, daemon=True).start()
        self.address = f"http://127.0.0.1:{self._server.server_port}"
        self._profile = tempfile.TemporaryDirectory(ignore_cleanup_errors=True)
        assert PROGRAM is not None
        command = [PROGRAM, *FLAGS, f"--user-data-dir={self._profile.name}", "about:blank"]
        self._process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        port = self._port()
        request = Request(f"http://127.0.0.1:{port}/json/new?about:blank", method="PUT")
        with urlopen(request, timeout=PATIENCE) as answer:
            tab = json.load(answer)
        self._tab = create_connection(tab["webSocketDebuggerUrl"], timeout=PATIENCE, suppress_origin=True)
        self._numbers = itertools.count(1)
        self.troubles: list[str] = []
        self._loaded = False
        for domain in ("Page", "Runtime", "Log", "Network"):
            self.command(f"{domain}.enable")

    def _port(self) -> int:
        file, end = Path(self._profile.name) / "DevToolsActivePort", time.monotonic() + PATIENCE
        while time.monotonic() < end:
            if file.is_file() and (lines := file.read_text().split()):
                return int(lines[0])
            time.sleep(0.05)
        raise TimeoutError(f"{PROGRAM} did not start within {PATIENCE:g} s")

    def close(self) -> None:
        self._tab.close()
        self._process.terminate()
        self._process.wait()
        self._server.shutdown()
        self._server.server_close()
        self._profile.cleanup()

    def command(self, method: str, **parameters: Any) -> dict[str, Any]:
        number = next(self._numbers)
        self._tab.send(json.dumps({"id": number, "method": method, "params": parameters}))
        while True:
            message = json.loads(self._tab.recv())
            if message.get("id") == number:
                assert "error" not in message, message["error"]
                return message["result"]
            self._hear(message)

    def _hear(self, message: dict[str, Any]) -> None:
        """One event of the browser."""
        event, given = message.get("method"), message.get("params", {})
        if event == "Page.loadEventFired":
            self._loaded = True
        elif event == "Runtime.exceptionThrown":
            details = given["exceptionDetails"]
            self.troubles.append(f"exception: {details.get('exception', details).get('description', details['text'])}")
        elif event == "Runtime.consoleAPICalled" and given["type"] in ("error", "assert"):
            self.troubles.append(f"console: {[each.get('value', each.get('description')) for each in given['args']]}")
        elif event == "Log.entryAdded" and given["entry"]["level"] == "error":
            self.troubles.append(f"log: {given['entry']['text']} {given['entry'].get('url', '')}")
        elif event == "Network.requestWillBeSent":
            url = given["request"]["url"]
            if not url.startswith((f"{self.address}/", "data:", "blob:")):
                self.troubles.append(f"foreign request: {url}")

    def open(self, page: str, width: int, height: int = 900, dark: bool = False) -> None:
        """Loads a page (relative, query and all) at this width in CSS pixels, and waits until it has loaded."""
        self.resize(width, height)
        scheme = [{"name": "prefers-color-scheme", "value": "dark" if dark else "light"}]
        self.command("Emulation.setEmulatedMedia", features=scheme)
        self.troubles.clear()
        self._loaded = False
        self.command("Page.navigate", url=f"{self.address}/{page}")
        while not self._loaded:
            self._hear(json.loads(self._tab.recv()))

    def resize(self, width: int, height: int = 900) -> None:
        metrics = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": False}
        self.command("Emulation.setDeviceMetricsOverride", **metrics)

    def run(self, script: str) -> Any:
        """The value of a script's last expression, awaited where it is a promise."""
        answer = self.command("Runtime.evaluate", expression=script, awaitPromise=True, returnByValue=True)
        assert "exceptionDetails" not in answer, answer["exceptionDetails"]
        return answer["result"].get("value")

    def wait(self, script: str) -> Any:
        """The first true value of a script; TimeoutError where it stays false."""
        end = time.monotonic() + PATIENCE
        while time.monotonic() < end:
            if value := self.run(script):
                return value
            time.sleep(0.05)
        raise TimeoutError(f"never true: {script}")

    def picture(self, file: Path, whole: bool = False) -> None:
        """A screenshot as PNG, of the whole page or of what is in the window."""
        shot = self.command("Page.captureScreenshot", format="png", captureBeyondViewport=whole)
        file.write_bytes(b64decode(shot["data"]))
