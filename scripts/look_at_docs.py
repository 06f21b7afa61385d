"""Opens every page of the documentation site in headless Chromium, wide and narrow, light and dark.

    make docs
    pip install playwright
    python scripts/look_at_docs.py --screenshots build/docs/screenshots

Exit status 1 for a broken image, a page that is wider than its window, an error in the console, a
file from another host, or a search without results. The browser is the one on PATH (Debian:
``apt install chromium``).
"""

from __future__ import annotations

import argparse
import shutil
import sys
from pathlib import Path

from playwright.sync_api import BrowserContext, ConsoleMessage, sync_playwright

SITE = Path("build/docs/html")
WIDTHS = (1400, 390)  # pixels: a desktop, a phone
BROKEN_IMAGES = "[...document.images].filter(x => !x.naturalWidth).map(x => x.src)"
OVERFLOW = "document.documentElement.scrollWidth - document.documentElement.clientWidth"


def look(context: BrowserContext, url: str, screenshot: Path | None) -> list[str]:
    """What is wrong with a page."""
    problems: list[str] = []
    messages: list[ConsoleMessage] = []
    requests: list[str] = []
    page = context.new_page()
    page.on("console", lambda message: messages.append(message))
    page.on("pageerror", lambda error: problems.append(f"script: {error}"))
    page.on("request", lambda request: requests.append(request.url))
    page.goto(url)
    problems += [f"broken image: {source}" for source in page.evaluate(BROKEN_IMAGES)]
    if (pixels := page.evaluate(OVERFLOW)) > 0:
        problems.append(f"{pixels} pixels wider than its window")
    problems += [f"console: {message.text}" for message in messages if message.type == "error"]
    problems += [f"loads {address}" for address in requests if address.startswith("http")]
    if screenshot is not None:
        page.screenshot(path=screenshot, full_page=True)
    page.close()
    return problems


def search_finds(context: BrowserContext, word: str) -> bool:
    page = context.new_page()
    page.goto(f"{(SITE / 'search.html').resolve().as_uri()}?q={word}")
    page.wait_for_selector("#search-results p.search-summary, #search-results li", timeout=10_000)
    page.wait_for_timeout(1000)
    found = page.locator("#search-results li").count()
    page.close()
    return found > 0


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--screenshots", type=Path, metavar="FOLDER", help="write a picture of each"
    )
    parser.add_argument("--browser", default=shutil.which("chromium"), help="default: %(default)s")
    arguments = parser.parse_args()
    pages = sorted(set(SITE.rglob("*.html")) - {SITE / "index.html"})  # which only redirects
    if not pages:
        parser.error(f"{SITE} has no pages: run make docs")
    failed = 0
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(
            executable_path=arguments.browser, args=["--no-sandbox", "--disable-gpu"]
        )
        for width in WIDTHS:
            for scheme in ("light", "dark"):
                context = browser.new_context(
                    viewport={"width": width, "height": 900}, color_scheme=scheme
                )
                for path in pages:
                    name = path.relative_to(SITE).with_suffix("")
                    picture = None
                    if arguments.screenshots:
                        file = f"{'-'.join(name.parts)}-{width}-{scheme}.png"
                        picture = arguments.screenshots / file
                    problems = look(context, path.resolve().as_uri(), picture)
                    for problem in problems:
                        print(f"{name}, {width} pixels, {scheme}: {problem}")
                    failed += bool(problems)
                context.close()
        if not search_finds(browser.new_context(), "weighted_mean"):
            print("the search finds no weighted_mean")
            failed += 1
        browser.close()
    print(f"{len(pages)} pages, {len(WIDTHS)} widths, 2 schemes: {failed} with problems")
    return int(failed > 0)


if __name__ == "__main__":
    sys.exit(main())
