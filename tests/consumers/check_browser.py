"""Open reports in a headless Chromium: plots are drawn, no request leaves the page, hostile text is inert.

    python tests/consumers/check_browser.py                      # a report of hostile texts
    python tests/consumers/check_browser.py RUN/report.html ...  # and those of runs

Needs Chromium or Chrome. What the browser asks for on its own behalf has no page as its origin, and is no
matter here.
"""

from __future__ import annotations

import html
import json
import re
import shutil
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent))
import reports

from tapioca_export.artifacts import Flip
from tapioca_export.reporting import render_html

BROWSERS = ("chromium", "chromium-browser", "google-chrome", "chrome")
OPTIONS = (
    "--headless=new", "--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-background-networking",
    "--enable-logging=stderr",
)  # fmt: skip
MOST_SECONDS, MOST_BYTES = 1.0, 3_000_000
WAIT = """
const all = document.querySelectorAll(".plot"), latest = performance.now() + 20000;
const drawn = () => [...all].filter(plot => plot.querySelector(".main-svg")).length;
while (drawn() < all.length && performance.now() < latest) await new Promise(next => setTimeout(next, 5));
const seconds = performance.now() / 1000;
const folded = () => [...document.querySelectorAll("details")].map(part => part.open);
const before = String(folded());
window.dispatchEvent(new Event("beforeprint"));
const unfolded = folded().every(Boolean);
window.dispatchEvent(new Event("afterprint"));
const entry = () => document.querySelector(".plot [role=switch]");
const name = entry() && entry().getAttribute("aria-label");
const press = async () => {
  entry().focus();
  document.activeElement.dispatchEvent(new KeyboardEvent("keydown", {key: "Enter", bubbles: true}));
  await new Promise(next => setTimeout(next, 300));
  return entry().getAttribute("aria-checked") + " " + (document.activeElement === entry());
};
const pressed = entry() ? [await press(), await press()].join() : "";
await new Promise(next => setTimeout(next, 300));  // what is asked for late is seen as well
const [painted] = performance.getEntriesByName("first-contentful-paint");
const found = {
  drawn: drawn(), plots: all.length, title: document.title,
  opened: (painted || {startTime: Infinity}).startTime / 1000, seconds,
  prints: unfolded && String(folded()) === before, keys: pressed === "false true,true true",
};
console.log("FOUND " + JSON.stringify(found) + " END");
"""
HOSTILE = (
    "<script>document.title='owned'</script>",
    "<img src=http://127.0.0.1:9/x onerror=\"document.title='owned'\">",
    "\u202eright to left \u05d0\u05d1\u05d2\u0627\u0628",
    "\x00\x1b[31m</script></td></table><h1>",
    "long " * 20_000,
)


@dataclass(frozen=True)
class Opened:
    """What a browser made of a page: plots drawn and wanted, its title, seconds until text, and plots.

    `prints` tells that all that can be unfolded is so on paper, and on the screen as it was afterwards;
    `keys` that the first series of a legend goes and comes back by the keyboard, which stays on it.
    """

    drawn: int
    plots: int
    title: str
    opened: float | None
    seconds: float
    prints: bool
    keys: bool
    errors: tuple[str, ...] = ()
    requests: tuple[str, ...] = ()


def open_page(file: Path) -> Opened:
    """Open a page, and close it once it has drawn all plots."""
    browser = next((found for name in BROWSERS if (found := shutil.which(name))), None)
    if browser is None:
        raise SystemExit(f"There is none of {', '.join(BROWSERS)}: install one.")
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        page, log = Path(folder) / "page.html", Path(folder) / "net.json"
        text = file.read_text(encoding="utf-8")
        page.write_text(f"{text}<script type=module>{WAIT}</script>", encoding="utf-8")
        command = [browser, *OPTIONS, f"--user-data-dir={folder}/profile", f"--log-net-log={log}"]
        with subprocess.Popen([*command, page.as_uri()], stderr=subprocess.PIPE, text=True) as process:
            assert process.stderr is not None
            said = []
            for line in process.stderr:  # the script ends its wait itself
                if "CONSOLE" in line:
                    said.append(line.strip())
                if "FOUND {" in line:
                    break
            process.terminate()
        requests = re.findall(r'"initiator":"(?!not an origin")[^"]*".*?"url":"([^"]*)"', log.read_text())
    found = json.loads(said[-1].split("FOUND ")[1].split(" END")[0])
    others = tuple(url for url in requests if not url.startswith("file:"))
    return Opened(**found, errors=tuple(said[:-1]), requests=others)


def check(file: Path) -> None:
    """Hold one report to what it promises."""
    opened, size = open_page(file), file.stat().st_size
    assert not opened.errors, opened.errors
    assert not opened.requests, opened.requests
    assert opened.drawn == opened.plots > 0, opened
    assert opened.prints, opened
    assert opened.keys, opened
    title = re.search("<title>(.*?)</title>", file.read_text(encoding="utf-8"))
    assert title is not None
    assert opened.title == html.unescape(title[1]), opened.title
    assert size < MOST_BYTES, size
    assert opened.opened is not None
    assert opened.opened < MOST_SECONDS, opened
    times = f"opened in {opened.opened:.2f} s, drawn in {opened.seconds:.2f} s"
    print(f"{file.name}: {opened.plots} plots, {size / 1e6:.1f} MB, {times}")


def hostile(folder: Path) -> Path:
    """Write a report whose rows try to be more than text."""
    flips = tuple(Flip(text[:40], text, 1.0, 0.0) for text in HOSTILE)
    measured = reports.benchmark(flips={"id": flips, "target": flips})
    file = folder / "report.html"
    file.write_text(render_html(reports.report(benchmark=measured)), encoding="utf-8")
    return file


def main(files: list[str]) -> None:
    """Check these reports and a hostile one; and that a bad page would be seen."""
    with tempfile.TemporaryDirectory() as folder:
        for file in (*map(Path, files), hostile(Path(folder))):
            check(file)
        bad = Path(folder) / "bad.html"
        bad.write_text('<body><img src="http://127.0.0.1:9/x.png"><script>nonsense()</script></body>')
        opened = open_page(bad)
        assert opened.requests == ("http://127.0.0.1:9/x.png",), opened.requests
        assert any("nonsense" in error for error in opened.errors), opened.errors
    print("Reports: as promised")


if __name__ == "__main__":
    main(sys.argv[1:])
