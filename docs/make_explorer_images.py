"""The images in docs/explorer.md: python docs/make_explorer_images.py BUNDLE DATA (chromium and playwright needed).

Those in the repository show `vaelib train --preset article --data mnist --image-size 32 --epochs 3`, with
`vaelib export --evaluate`.
"""

import re
import shutil
import subprocess
import sys
from pathlib import Path

from PIL import Image
from playwright.sync_api import Page, sync_playwright

IMAGES = Path(__file__).parent / "images"
WIDE = {"viewport": {"width": 1080, "height": 800}}
PHONE = {"viewport": {"width": 390, "height": 844}, "device_scale_factor": 1.5, "has_touch": True, "is_mobile": True}


def drag(page: Page, selector: str, *points: tuple[float, float]) -> None:
    """Draw a line through points in fractions of the element."""
    box = page.locator(selector).bounding_box()
    places = [(box["x"] + x * box["width"], box["y"] + y * box["height"]) for x, y in points]
    page.mouse.move(*places[0])
    page.mouse.down()
    for place in places[1:]:
        page.mouse.move(*place, steps=12)
    page.mouse.up()


def explore(page: Page, x: float, y: float) -> None:
    """Go somewhere on the map, the last step by keyboard, which keeps the image beside the place."""
    drag(page, "#map-canvas", (0.5, 0.5), (x, y))
    page.focus("#map-canvas")
    page.keyboard.press("ArrowRight")


def draw_a_three(page: Page) -> None:
    """On the pad."""
    page.click("#tab-own")
    bows = [(0.34, 0.24), (0.55, 0.2), (0.64, 0.32), (0.5, 0.46), (0.66, 0.6), (0.56, 0.76), (0.32, 0.72)]
    drag(page, "#own-pad", *bows)


def traverse(page: Page) -> None:
    """Film strips through the centre."""
    page.click("#point-centre")
    page.click("#tab-traverse")


def images(address: str) -> None:
    """Four screenshots; with few colours, to be small."""
    shots = {
        "map": (WIDE, "light", lambda page: explore(page, 0.78, 0.5)),
        "own": (WIDE, "light", draw_a_three),
        "traverse": (WIDE, "dark", traverse),
        "phone": (PHONE, "light", lambda page: explore(page, 0.16, 0.75)),
    }
    IMAGES.mkdir(exist_ok=True)
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=shutil.which("chromium"), args=["--no-sandbox"])
        for name, (options, scheme, play) in shots.items():
            page = browser.new_page(color_scheme=scheme, **options)
            page.goto(address)
            page.wait_for_selector("html[data-ready]")
            play(page)
            page.wait_for_timeout(1500)
            path = IMAGES / f"explorer-{name}.png"
            page.screenshot(path=path)
            with Image.open(path) as shot:
                few = shot.convert("RGB").quantize(256, Image.Quantize.MAXCOVERAGE, kmeans=3, dither=Image.Dither.NONE)
            few.save(path, optimize=True)
            print(f"{path.name}: {path.stat().st_size / 1000:.0f} kB")
            page.close()
        browser.close()


if __name__ == "__main__":
    bundle, data = sys.argv[1:]
    command = ["vaelib", "explore", bundle, "--data", data, "--port", "0", "--no-browser"]
    with subprocess.Popen([sys.executable, "-u", "-m", *command], stdout=subprocess.PIPE, text=True) as server:
        try:
            images(re.match(r"http://\S+", server.stdout.readline())[0])
        finally:
            server.terminate()
