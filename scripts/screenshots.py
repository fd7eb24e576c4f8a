"""Make the pictures of the reading room in docs/assets, with the example book, as Markdown and typeset as a PDF.

    python scripts/screenshots.py [CHROMIUM]

Needs the extras `serve` and `browser`, and Chromium.
"""

from __future__ import annotations

import contextlib
import html
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

from playwright.sync_api import Browser, Page, sync_playwright

ROOT = Path(__file__).parents[1]
BOOK = ROOT / "examples" / "abs-guide.md"
OUT = ROOT / "docs" / "assets"
PAPER = """<style>
@page { size: A5; margin: 18mm 16mm }
body { font: 10pt/1.45 serif; text-align: justify; hyphens: auto }
h1 { font-size: 15pt; font-weight: normal; margin: 2em 0 .6em }
pre { font-size: 7.5pt; white-space: pre-wrap; text-align: left }
</style>"""


def chapters(first: str, after: str) -> str:
    """A part of the book as HTML, for Chromium to typeset."""
    text = BOOK.read_text(encoding="utf-8")
    part = text[text.index(first) : text.index(after)]
    made = []
    for number, piece in enumerate(re.split(r"^```$", part, flags=re.MULTILINE)):
        if number % 2:
            made.append(f"<pre>{html.escape(piece)}</pre>")
            continue
        for paragraph in piece.split("\n\n"):
            kind = "h1" if paragraph.lstrip().startswith("# ") else "p"
            made.append(f"<{kind}>{html.escape(paragraph.strip().removeprefix('# '))}</{kind}>")
    return f'<html lang="en">{PAPER}<body>{"".join(made)}</body></html>'


@contextlib.contextmanager
def server(shelf: str) -> Iterator[str]:
    """A server with an empty shelf. Gives its address."""
    command = [sys.executable, "-m", "mamba_ssm.cli.main", "serve", "--shelf", shelf, "--port", "0"]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True, cwd=ROOT) as process:
        assert process.stderr is not None
        try:
            for line in process.stderr:
                if "listening on" in line:
                    yield line.split()[-1]
                    break
        finally:
            process.terminate()


def room(browser: Browser, url: str, width: int, height: int, scheme: str = "light") -> Page:
    viewport = {"width": width, "height": height}
    page = browser.new_page(viewport=viewport, color_scheme=scheme, reduced_motion="reduce")
    page.goto(url)
    return page


def ask(page: Page, book: str, question: str) -> None:
    page.get_by_role("button", name=book).first.click()
    page.fill("#question", question)
    page.keyboard.press("Enter")
    page.wait_for_selector(".turn:last-child .band rect", state="attached", timeout=120_000)
    page.mouse.move(0, 0)
    page.wait_for_timeout(1500)


def shoot(page: Page, name: str) -> None:
    page.screenshot(path=OUT / f"{name}.png")
    page.close()


def main() -> None:
    chromium = sys.argv[1] if len(sys.argv) > 1 else shutil.which("chromium")
    OUT.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory() as folder, sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
        guide, part = Path(folder, "Advanced Bash-Scripting Guide.md"), Path(folder, "Bash, part 2. Basics.pdf")
        shutil.copy(BOOK, guide)
        typesetting = browser.new_page()
        typesetting.set_content(chapters("# Chapter 3. Special Characters", "# Chapter 8. Operations"))
        typesetting.pdf(path=part, prefer_css_page_size=True)
        typesetting.close()
        with server(str(Path(folder, "shelf"))) as url:
            page = room(browser, url, 1280, 800)
            page.set_input_files("#file", part)
            page.wait_for_function("name => document.getElementById('book-title').textContent === name", arg=part.stem)
            page.set_input_files("#file", guide)
            page.wait_for_function(
                "() => document.querySelector('.facts')?.textContent.includes('a second')", timeout=60_000
            )
            page.wait_for_timeout(2000)
            shoot(page, "reading-room-reading")
            page = room(browser, url, 1280, 800)
            page.get_by_role("button", name=guide.stem).first.wait_for(timeout=300_000)
            ask(page, guide.stem, "Which range of exit codes does the author propose for user-defined ones?")
            shoot(page, "reading-room")
            page = room(browser, url, 1280, 800, "dark")
            ask(page, part.stem, "What exit status does a successful command return?")
            shoot(page, "reading-room-pdf")
            page = room(browser, url, 390, 780)
            ask(page, guide.stem, "Which command keeps a program running after the user logs off?")
            shoot(page, "reading-room-narrow")
        browser.close()


if __name__ == "__main__":
    main()
