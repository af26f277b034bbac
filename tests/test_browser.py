"""The published pages in a real browser, on a phone and on a desk: nothing breaks, nothing is fetched, tables sort, everyone can read them."""
import shutil
from pathlib import Path

import pytest

from thorough import THOROUGH

ROOT = Path(__file__).resolve().parent.parent
PAGES = sorted((ROOT/"reports"/"phantom").glob("*.html"))
RUN_PAGES = [p for p in PAGES if p.stem.startswith("run_")]
KINDS = [p for p in PAGES if p not in RUN_PAGES[1:]]  # pages of runs come from one notebook: the first stands for all where each takes long
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


@pytest.mark.parametrize("width", [390, 1440])
@pytest.mark.parametrize("page_file", PAGES, ids=lambda p: p.stem)
def test_page_opens_offline(browser, page_file, width):
    page = browser.new_page(viewport={"width": width, "height": 900})
    asked, said = [], []
    page.on("request", lambda r: asked.append(r.url))
    page.on("console", lambda m: said.append(m.text) if m.type in ("error", "warning") else None)
    page.on("pageerror", lambda e: said.append(str(e)))
    page.goto(page_file.as_uri())
    assert [u for u in asked if not u.startswith(("file:", "data:"))] == [] and said == []
    assert page.evaluate("document.documentElement.scrollWidth <= window.innerWidth + 1"), f"wider than {width} px"
    assert page.evaluate("[...document.images].every(i => i.complete && i.naturalWidth > 0 && i.alt)")
    assert page.evaluate("[...document.querySelectorAll('main svg')].every(s => s.getAttribute('role') == 'img' && s.getAttribute('aria-label'))")
    for link in page.eval_on_selector_all("a[href]", "as => as.map(a => a.getAttribute('href'))"):
        if link.startswith("#"): assert page.locator(f'[id="{link[1:]}"]').count() == 1, link
        else: assert (page_file.parent/link).is_file(), link
    page.close()


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("page_file", KINDS, ids=lambda p: p.stem)
def test_nothing_serious_bars_a_reader(browser, page_file, scheme):
    if scheme == "dark" and page_file.stem == "compare" and not THOROUGH: pytest.skip("half a minute; its colours are those of the other pages: make test THOROUGH=1")
    from axe_playwright_python.sync_playwright import Axe
    page = browser.new_page(viewport={"width": 1440, "height": 900}, color_scheme=scheme, bypass_csp=True)
    page.goto(page_file.as_uri())
    found = Axe().run(page).response["violations"]
    serious = [(v["id"], v["help"], v["nodes"][0]["html"][:200], v["nodes"][0].get("failureSummary", "")[:300]) for v in found if v["impact"] in ("serious", "critical")]
    assert serious == []
    page.close()


def test_every_table_sorts(browser):
    for file in KINDS:
        page = browser.new_page()
        page.goto(file.as_uri())
        for table in page.locator("table[data-table]").all():
            button = table.locator("thead th button").first
            rows = lambda: table.locator("tbody tr").evaluate_all("rs => rs.map(r => r.cells[0].textContent)")
            button.evaluate("b => b.click()"); up = rows()
            button.evaluate("b => b.click()"); down = rows()
            assert sorted(up) == sorted(down) and table.locator("thead th").first.get_attribute("aria-sort") == "descending", file.name
            assert len(set(up)) == 1 or up != down, file.name
        page.close()


def test_numbers_sort_as_numbers(browser):
    page = browser.new_page()
    page.goto((ROOT/"reports"/"phantom"/"compare.html").as_uri())
    table = page.locator('table[data-table="errors"]')
    table.locator("thead th button").nth(3).evaluate("b => b.click()")
    shown = [float(v) for v in table.locator("tbody tr td:nth-child(4)").evaluate_all("cs => cs.map(c => c.getAttribute('data-sort')).filter(v => v)")]
    assert len(shown) > 5 and shown == sorted(shown)
    page.close()


def test_a_long_table_can_be_filtered(browser):
    page = browser.new_page()
    page.goto((ROOT/"reports"/"phantom"/"compare.html").as_uri())
    field, rows = page.locator(".tools input").first, "t => [...t.tBodies[0].rows].filter(r => !r.hidden).length"
    table = field.locator("xpath=../following-sibling::div[1]/table")
    before = table.evaluate(rows)
    field.fill("bhcnet")
    assert 0 < table.evaluate(rows) < before
    page.close()


def test_csv_links_open_and_hold_what_the_page_shows(browser):
    page = browser.new_page()
    page.goto((ROOT/"reports"/"phantom"/"compare.html").as_uri())
    with page.expect_download() as download: page.locator(".tools a").first.click()
    text = Path(download.value.path()).read_text()
    assert text.splitlines()[0].startswith("model,recipe") and len(text.splitlines()) > 5
    page.close()
