"""A headless Chromium, told what to do over WebDriver (W3C's: JSON over HTTP) by Debian's chromium-driver."""

from __future__ import annotations

import base64
import json
import re
import shutil
import subprocess
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.request import Request, urlopen

import pytest

PROGRAMS = "chromium", "chromedriver"
MISSING = [name for name in PROGRAMS if shutil.which(name) is None]
needs_browser = pytest.mark.skipif(bool(MISSING), reason=f"needs Debian's chromium and chromium-driver: no {MISSING}")
PATIENCE_S = 120.0
_OPTIONS = "--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--window-size=1200,1000"


class Browser:
    def __init__(self, driver: str) -> None:
        self._driver = driver
        options = {"binary": shutil.which("chromium"), "args": _OPTIONS}
        wanted = {"browserName": "chrome", "goog:chromeOptions": options, "goog:loggingPrefs": {"browser": "ALL"}}
        self._session = ""
        self._session = self._do("", {"capabilities": {"alwaysMatch": wanted}})["sessionId"]

    def open(self, url: str) -> None:
        """What the page before has put into the log is forgotten: its server may have gone meanwhile."""
        self._do("/url", {"url": "about:blank"})
        self.log()
        self._do("/url", {"url": url})

    def run(self, script: str, *arguments: object) -> Any:
        """What the body of a function returns."""
        return self._do("/execute/sync", {"script": script, "args": list(arguments)})

    def wait_for(self, expression: str) -> Any:
        """Until it is true; fails when it does not get so within PATIENCE_S."""
        end = time.monotonic() + PATIENCE_S
        while not (value := self.run(f"return {expression}")):
            assert time.monotonic() < end, f"waited in vain for {expression}; the log: {self.log()}"
            time.sleep(0.05)
        return value

    def wear(self, scheme: str) -> None:
        """What the person in front of it prefers, light or dark."""
        features = [{"name": "prefers-color-scheme", "value": scheme}]
        command = {"cmd": "Emulation.setEmulatedMedia", "params": {"features": features}}
        self._do("/goog/cdp/execute", command)

    def narrow(self, width: int) -> None:
        """A screen of so many pixels; 0: the window's own."""
        command = {"width": width, "height": 0, "deviceScaleFactor": 0, "mobile": False}
        self._do("/goog/cdp/execute", {"cmd": "Emulation.setDeviceMetricsOverride", "params": command})

    def log(self) -> list[str]:
        """What the console has got since the last call."""
        return [entry["message"] for entry in self._do("/se/log", {"type": "browser"})]

    def screenshot(self, file: Path, height: int = 1000) -> None:
        self._do("/window/rect", {"width": 1200, "height": height})
        with urlopen(f"{self._driver}/session/{self._session}/screenshot", timeout=PATIENCE_S) as answer:
            file.write_bytes(base64.b64decode(json.load(answer)["value"]))

    def _do(self, what: str, how: Mapping[str, Any]) -> Any:
        url = f"{self._driver}/session" + (f"/{self._session}{what}" if self._session else "")
        request = Request(url, json.dumps(how).encode(), {"Content-Type": "application/json"})
        with urlopen(request, timeout=PATIENCE_S) as answer:
            return json.load(answer)["value"]

    def close(self) -> None:
        urlopen(Request(f"{self._driver}/session/{self._session}", method="DELETE"), timeout=PATIENCE_S).close()


@contextmanager
def open_browser() -> Iterator[Browser]:
    """Ends with its driver."""
    with subprocess.Popen(["chromedriver", "--port=0"], stdout=subprocess.PIPE, text=True) as driver:
        try:
            browser = Browser(f"http://127.0.0.1:{_port(driver)}")
            try:
                yield browser
            finally:
                browser.close()
        finally:
            driver.terminate()


def _port(driver: subprocess.Popen[str]) -> str:
    """On which it listens, as it says."""
    assert driver.stdout is not None
    said = []
    for line in driver.stdout:
        if found := re.search(r"started successfully on port (\d+)", line):
            return found[1]
        said.append(line)
    raise AssertionError(f"chromedriver did not start: {said}")
