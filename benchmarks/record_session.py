"""Records what an agent sees while it uses a browser.

Writes the screen after each action as OUT/000-action.png and so on, and after each key
of a word that is being typed as OUT/001-key.png and so on.

Debian's Chromium runs without a window. It shows the Debian Developer's Reference:
real pages, unpacked from Debian's package and served on loopback. The script opens
pages, searches, follows links, selects words and scrolls. The package also contains
the document as a PDF, which is copied to OUT/reference.pdf.

Needs Debian and ``apt-get install chromium``.
"""

import argparse
import base64
import contextlib
import functools
import http.server
import itertools
import json
import shutil
import subprocess
import tempfile
import threading
import time
from pathlib import Path

from websockets.sync.client import connect

PACKAGES = ("developers-reference", "libjs-sphinxdoc")
WIDTH, HEIGHT = 1024, 768  # a common screen size for agents
CHROMIUM = (
    "chromium",
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--no-first-run",
    "--hide-scrollbars",
    f"--window-size={WIDTH},{HEIGHT}",
    "--remote-debugging-port=0",
)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("out", type=Path, help="folder; is replaced")
    args = parser.parse_args()
    print(f"{record(args.out)} screenshots in {args.out}")


def record(out: Path) -> int:
    """Write the screenshots and the PDF; return the number of screenshots."""
    if shutil.which("chromium") is None:
        raise SystemExit("Chromium is missing: apt-get install chromium")
    shutil.rmtree(out, ignore_errors=True)
    out.mkdir(parents=True)
    with tempfile.TemporaryDirectory() as folder:
        unpack(Path(folder))
        pages = Path(folder) / "usr/share/developers-reference"
        shutil.copy(pages / "developers-reference.pdf", out / "reference.pdf")
        handler = functools.partial(QuietHandler, directory=folder)
        with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
            threading.Thread(target=server.serve_forever, daemon=True).start()
            home = f"http://127.0.0.1:{server.server_port}/usr/share/{pages.name}"
            shots = browse(home, Path(folder) / "profile")
            server.shutdown()
    for number, (kind, shot) in enumerate(shots):
        (out / f"{number:03}-{kind}.png").write_bytes(shot)
    return len(shots)


class QuietHandler(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *args: object) -> None:
        pass


def unpack(folder: Path) -> None:
    subprocess.run(["apt-get", "download", "-qq", *PACKAGES], cwd=folder, check=True)
    for package in folder.glob("*.deb"):
        subprocess.run(["dpkg-deb", "-x", package, folder], check=True)


class Browser:
    """A page of Chromium, controlled through the DevTools protocol."""

    def __init__(self, profile: Path) -> None:
        self.process = subprocess.Popen(
            [*CHROMIUM, f"--user-data-dir={profile}", "about:blank"],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        port_file = profile / "DevToolsActivePort"
        deadline = time.monotonic() + 60
        while not port_file.exists() or port_file.read_text().count("\n") < 1:
            if time.monotonic() > deadline or self.process.poll() is not None:
                raise RuntimeError("Chromium did not start.")
            time.sleep(0.1)
        port, path = port_file.read_text().split()
        url = f"ws://127.0.0.1:{port}{path}"
        self.closing = contextlib.ExitStack()
        self.socket = self.closing.enter_context(
            connect(url, max_size=None, proxy=None)
        )
        self.numbers = itertools.count(1)
        self.session: dict = {}
        target = self.call("Target.createTarget", url="about:blank")["targetId"]
        attached = self.call("Target.attachToTarget", targetId=target, flatten=True)
        self.session = {"sessionId": attached["sessionId"]}
        self.call("Page.enable")
        metrics = dict(width=WIDTH, height=HEIGHT, deviceScaleFactor=1, mobile=False)
        self.call("Emulation.setDeviceMetricsOverride", **metrics)
        self.shots: list[tuple[str, bytes]] = []

    def close(self) -> None:
        self.closing.close()
        self.process.terminate()
        self.process.wait(30)

    def call(self, method: str, **params: object) -> dict:
        number = next(self.numbers)
        message = {"id": number, "method": method, "params": params, **self.session}
        self.socket.send(json.dumps(message))
        while True:
            answer = json.loads(self.socket.recv(timeout=60))
            if answer.get("id") == number:
                if "error" in answer:
                    raise RuntimeError(f"{method}: {answer['error']['message']}")
                return answer["result"]

    def run(self, script: str) -> object:
        result = self.call("Runtime.evaluate", expression=script, returnByValue=True)
        return result["result"].get("value")

    def look(self, kind: str = "action") -> None:
        """Take a screenshot once the page has loaded."""
        time.sleep(0.4 if kind == "action" else 0.05)
        while self.run("document.readyState") != "complete":
            time.sleep(0.1)
        shot = self.call("Page.captureScreenshot", format="png")["data"]
        self.shots.append((kind, base64.b64decode(shot)))

    def open(self, url: str) -> None:
        self.call("Page.navigate", url=url)
        self.look()

    def click(self, selector: str, times: int = 1) -> None:
        """Click the first element that matches a CSS selector."""
        found = f"document.querySelector({selector!r})"
        self.run(f"{found}.scrollIntoViewIfNeeded()")
        box = json.loads(
            str(self.run(f"JSON.stringify({found}.getBoundingClientRect())"))
        )
        place = dict(x=box["x"] + min(40, box["width"] / 2), y=box["y"] + 8)
        self.call("Input.dispatchMouseEvent", type="mouseMoved", **place)
        for count in range(1, times + 1):
            for kind in ("mousePressed", "mouseReleased"):
                self.call(
                    "Input.dispatchMouseEvent",
                    type=kind,
                    button="left",
                    clickCount=count,
                    **place,
                )
        self.look()

    def type(self, text: str) -> None:
        for character in text:
            self.call("Input.insertText", text=character)
            self.look("key")
        _, shot = self.shots.pop()
        self.shots.append(("action", shot))

    def press_enter(self) -> None:
        key = dict(key="Enter", code="Enter", windowsVirtualKeyCode=13, text="\r")
        self.call("Input.dispatchKeyEvent", type="keyDown", **key)
        self.call("Input.dispatchKeyEvent", type="keyUp", key="Enter", code="Enter")
        time.sleep(1)  # the page adds the results one by one
        self.look()

    def scroll(self, pixels: int) -> None:
        self.call(
            "Input.dispatchMouseEvent",
            type="mouseWheel",
            x=WIDTH // 2,
            y=HEIGHT // 2,
            deltaX=0,
            deltaY=pixels,
        )
        self.look()


def browse(home: str, profile: Path) -> list[tuple[str, bytes]]:
    """Look up two topics, read about them, and type a third search."""
    browser = Browser(profile)
    try:
        browser.open(f"{home}/index.html")
        for words in (("upload", " queue", " delayed"), ("maintainer", " script")):
            browser.click("input[name=q]")
            for word in words:
                browser.type(word)
            browser.press_enter()
            browser.click("ul.search li a")
            for paragraph in ("h1", "p", "p + p"):
                browser.click(f"div.body {paragraph}", times=2)
            browser.scroll(300)
            browser.scroll(-300)
        browser.open(f"{home}/search.html")
        browser.click("div.body input[name=q]")
        for word in ("security", " update", " of", " a", " package"):
            browser.type(word)
        browser.press_enter()
        return browser.shots
    finally:
        browser.close()


if __name__ == "__main__":
    main()
