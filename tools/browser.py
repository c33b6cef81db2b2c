"""A headless Chromium that a script drives, over its DevTools protocol."""

import base64
import json
import shutil
import subprocess
import tempfile
import time
from pathlib import Path
from typing import Any

from websockets.sync.client import connect

CHROMIUM = shutil.which("chromium")
_SECONDS = 30.0
_KEYS = {"Escape": 27, "ArrowDown": 40, "ArrowUp": 38}


class Browser:
    """A window of a new profile.

    Args:
        size: Width and height of the page in CSS pixels.
        downloads: Folder of downloads.
        dark: Whether it asks for dark colours.
        scale: Device pixels of a CSS pixel.
    """

    def __init__(
        self,
        size: tuple[int, int] = (1440, 900),
        downloads: Path | None = None,
        dark: bool = False,
        scale: float = 1,
    ) -> None:
        self._profile = tempfile.TemporaryDirectory(ignore_cleanup_errors=True)
        self.requested: list[str] = []
        self.messages: list[str] = []
        self._count = 0
        options = ["--headless=new", "--no-sandbox", "--disable-gpu", "--no-first-run"]
        options += ["--remote-debugging-port=0", "--hide-scrollbars"]
        options += ["--disable-background-networking", "--disable-dev-shm-usage"]
        self._process = subprocess.Popen(
            [str(CHROMIUM), *options, f"--user-data-dir={self._profile.name}"],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        try:
            self._open(size, downloads, dark, scale)
        except BaseException:
            self.close()
            raise

    def _open(
        self, size: tuple[int, int], downloads: Path | None, dark: bool, scale: float
    ) -> None:
        port = Path(self._profile.name, "DevToolsActivePort")
        self.wait(lambda: port.exists() and port.read_text().count("\n"), "a port")
        number, place = port.read_text().split()
        self._socket = connect(f"ws://127.0.0.1:{number}{place}", max_size=None)
        self._session: dict[str, str] = {}
        page = self.call("Target.createTarget", url="about:blank")
        attached = self.call(
            "Target.attachToTarget", targetId=page["targetId"], flatten=True
        )
        self._session = {"sessionId": attached["sessionId"]}
        for domain in ("Page", "Runtime", "Network", "Log"):
            self.call(f"{domain}.enable")
        self.call(
            "Emulation.setDeviceMetricsOverride",
            width=size[0],
            height=size[1],
            deviceScaleFactor=scale,
            mobile=False,
        )
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        self.call("Emulation.setEmulatedMedia", features=[scheme])
        if downloads:
            self.call(
                "Browser.setDownloadBehavior",
                behavior="allow",
                downloadPath=str(downloads),
            )

    def __enter__(self) -> "Browser":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        self._process.kill()
        self._process.wait()
        self._profile.cleanup()

    def call(self, method: str, **parameters: Any) -> dict[str, Any]:
        """The result of a method of the protocol."""
        self._count += 1
        call = {"id": self._count, "method": method, "params": parameters}
        self._socket.send(json.dumps(call | self._session))
        while True:
            answer = json.loads(self._socket.recv(timeout=_SECONDS))
            if answer.get("id") == self._count:
                if "error" in answer:
                    raise RuntimeError(f"{method}: {answer['error']}")
                return answer["result"]
            self._note(answer)

    def _note(self, event: dict[str, Any]) -> None:
        """Keep what the page asks for, and its errors."""
        method, data = event.get("method"), event.get("params", {})
        if method == "Network.requestWillBeSent":
            self.requested.append(data["request"]["url"])
        elif method == "Runtime.exceptionThrown":
            details = data["exceptionDetails"]
            self.messages.append(details.get("exception", details)["description"])
        elif method == "Log.entryAdded":
            self.messages.append(data["entry"]["text"])
        elif method == "Page.javascriptDialogOpening":
            self.messages.append(f"dialog: {data['message']}")

    def open(self, url: str) -> None:
        """Load a page with all its images."""
        self.call("Page.navigate", url=url)
        self.wait(
            lambda: self.run(
                f"document.URL.startsWith({json.dumps(url)})"
                " && document.readyState === 'complete'"
                " && [...document.images].every((image) => image.complete)"
            ),
            url,
        )

    def run(self, code: str) -> Any:
        """The value of an expression of JavaScript, as data.

        Raises:
            RuntimeError: It throws an exception.
        """
        options = {"returnByValue": True, "awaitPromise": True, "userGesture": True}
        done = self.call("Runtime.evaluate", expression=code, **options)
        if details := done.get("exceptionDetails"):
            raise RuntimeError(details.get("exception", details)["description"])
        return done["result"].get("value")

    def wait(self, condition: Any, what: str) -> None:
        end = time.monotonic() + _SECONDS
        while not condition():
            if time.monotonic() > end:
                raise TimeoutError(f"Chromium has not shown {what}.")
            time.sleep(0.02)

    def press(self, *keys: str, control: bool = False) -> None:
        """Press keys one after another, by their names in JavaScript."""
        for key in keys:
            parameters: dict[str, Any] = {"key": key, "modifiers": 2 * control}
            parameters["windowsVirtualKeyCode"] = _KEYS.get(key, ord(key[0].upper()))
            text = {"text": key} if len(key) == 1 and not control else {}
            self.call("Input.dispatchKeyEvent", type="keyDown", **parameters, **text)
            self.call("Input.dispatchKeyEvent", type="keyUp", **parameters)

    def type(self, text: str) -> None:
        """Replace the text of the field that has the focus."""
        self.run("document.activeElement.select()")
        self.call("Input.insertText", text=text)

    def click(self, selector: str) -> None:
        """Click the middle of an element."""
        x, y = self.run(
            f"(() => {{ const element = document.querySelector({json.dumps(selector)});"
            "element.scrollIntoView({block: 'nearest'});"
            "const {x, y, width, height} = element.getBoundingClientRect();"
            "return [x + width / 2, y + height / 2]; })()"
        )
        for kind in ("mousePressed", "mouseReleased"):
            place = {"x": x, "y": y, "button": "left", "clickCount": 1}
            self.call("Input.dispatchMouseEvent", type=kind, **place)

    def screenshot(self) -> bytes:
        """A PNG of what is seen."""
        data = self.call("Page.captureScreenshot", format="png")["data"]
        return base64.b64decode(data)
