#!/usr/bin/env python3
"""Draws documents and takes docs/checking_page.png of the page for checking them.

python tools/checking_page.py build/checking [--dark]
"""

import argparse
import io
import shutil
from pathlib import Path

from PIL import Image

from browser import Browser
from mail import write_mail
from nemotron_vl.main import main

PICTURE = Path(__file__).parents[1] / "docs" / "checking_page.png"


def take(folder: Path, dark: bool = False) -> Image.Image:
    """A picture of the page, with a total that a person has corrected.

    Args:
        folder: Is written anew.
        dark: Whether in dark colours.
    """
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    records, out = write_mail(folder), folder / "out"
    if main(["export", str(records), "--to", "html", "--out", str(out)]):
        raise RuntimeError("The export failed.")
    with Browser((1440, 860), dark=dark) as browser:
        browser.open((out / "index.html").absolute().as_uri())
        browser.run("[...panel.querySelectorAll('label')][4].control.focus()")
        browser.type("1388.02")
        browser.press("Escape")
        browser.wait(lambda: browser.run("paper.firstChild.complete"), "the image")
        return Image.open(io.BytesIO(browser.screenshot())).convert("RGB")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.partition("\n\n")[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--dark", action="store_true", help="into the folder only")
    args = parser.parse_args()
    image = take(args.folder, args.dark)
    place = args.folder / "dark.png" if args.dark else PICTURE
    image.save(place, optimize=True)
