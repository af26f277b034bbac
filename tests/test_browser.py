"""The pages in a real browser: no console error, no network request, readable on a phone."""
import shutil
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
PAGES = sorted((ROOT/"reports"/"phantom").glob("*.html"))
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
pytestmark = [pytest.mark.skipif(not CHROMIUM, reason="no Chromium on this machine"), pytest.mark.xdist_group("browser")]


@pytest.fixture(scope="module")
def browser():
    from playwright.sync_api import sync_playwright
    with sync_playwright() as p:
        browser = p.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-background-networking",
                                                                    "--disable-component-update", "--disable-sync"])
        yield browser
        browser.close()


@pytest.mark.parametrize("page_file", PAGES, ids=lambda p: p.stem)
def test_page_opens_offline(browser, page_file):
    page = browser.new_page(viewport={"width": 390, "height": 844})
    asked, said = [], []
    page.on("request", lambda r: asked.append(r.url))
    page.on("console", lambda m: said.append(m.text) if m.type in ("error", "warning") else None)
    page.on("pageerror", lambda e: said.append(str(e)))
    page.goto(page_file.as_uri())
    assert [u for u in asked if not u.startswith(("file:", "data:"))] == [] and said == []
    assert page.evaluate("document.documentElement.scrollWidth <= window.innerWidth + 1"), "wider than a phone"
    assert page.evaluate("[...document.images].every(i => i.complete && i.naturalWidth > 0 && i.alt)")
    for link in page.eval_on_selector_all("a[href$='.html']", "as => as.map(a => a.getAttribute('href'))"):
        assert (page_file.parent/link).is_file(), link
    page.close()


def test_tables_sort(browser):
    page = browser.new_page()
    page.goto((ROOT/"reports"/"phantom"/"index.html").as_uri())
    head = page.locator("table thead th").first
    first = lambda: page.locator("table").first.locator("tbody tr").first.inner_text()
    head.click(); up = first()
    head.click(); down = first()
    assert up != down and head.get_attribute("aria-sort") == "descending"
    page.close()
