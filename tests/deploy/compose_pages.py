"""The pages that people open, in a headless Chromium against the running stack: Flower, a report, Prometheus and Grafana.

Each is read as a person would read it, and kept as a picture in build/compose-pages, for whoever wants to look at it.
"""

from __future__ import annotations

import shutil
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from compose_stack import ROOT, Stack, StackError, say, until

from shared.keys import STAGES

if TYPE_CHECKING:
    from playwright.sync_api import Browser, BrowserContext, Page

BROWSERS = "chromium", "chromium-browser", "google-chrome"
PICTURES = ROOT / "build" / "compose-pages"
SETTLE_SECONDS = 120
"""Flower hears of tasks a quarter of a second late, Prometheus looks every fifteen; on a busy machine all of it takes longer."""
SCRAPED = {"vitrina-workers", "vitrina-keeper", "vitrina-flower"}
DASHBOARD = "/d/vitrina/vitrina"


def no_browser() -> str | None:
    """Say what is missing to open pages, or return None."""
    if find_spec("playwright") is None:
        return "Playwright is not installed: it comes with the dependency group `test`"
    if not any(map(shutil.which, BROWSERS)):
        return "no Chromium is installed: apt-get install chromium"
    return None


def look(stack: Stack, job: str, counts: dict[str, Any], report: Path) -> list[str]:
    """Open every page, check what it says of the job that just ended undisturbed, and return the names of the pictures. Raises `StackError`."""
    from playwright.sync_api import Error, sync_playwright  # noqa: PLC0415 - asked for by `no_browser`

    PICTURES.mkdir(parents=True, exist_ok=True)
    for old in PICTURES.glob("*.png"):
        old.unlink()
    # The browser is the system's: Playwright's own is another download.
    path = next(filter(None, map(shutil.which, BROWSERS)))
    try:
        with sync_playwright() as playwright, playwright.chromium.launch(executable_path=path) as browser:
            _flower(browser, stack, job, int(counts["items"]))
            _report(browser, counts, report)
            _prometheus(browser, stack)
            if stack.has_grafana:
                _grafana(browser, stack)
    except Error as error:
        raise StackError(f"a page does not show what it should: {error.message}") from None
    pictures = sorted(each.name for each in PICTURES.glob("*.png"))
    say(f"pages are in {PICTURES.relative_to(ROOT)}: {', '.join(pictures)}")
    return pictures


def _context(browser: Browser, login: str | None = None) -> BrowserContext:
    user, _, password = (login or "").partition(":")
    credentials: Any = {"username": user, "password": password} if login else None
    return browser.new_context(viewport={"width": 1600, "height": 1000}, http_credentials=credentials)


def _keep(page: Page, name: str) -> None:
    page.screenshot(path=PICTURES / f"{name}.png")


def _expect(right: bool, wrong: str) -> None:
    if not right:
        raise StackError(wrong)


def _flower(browser: Browser, stack: Stack, job: str, items: int) -> None:
    """Ask for the password at the bare address, then show a worker of each stage, each of the job's tasks as succeeded, and all queues."""
    stranger = _context(browser)
    for path in ("", "/flower/", "/flower/workers", "/flower/tasks", "/flower/broker", "/flower/api/workers"):
        answered = stranger.request.get(stack.url("flower", path)).status
        _expect(answered == 401, f"Flower answers {answered} at {path or '/'} to a caller without a password")
    page = _context(browser, stack.settings["VITRINA_FLOWER_AUTH"]).new_page()
    page.goto(stack.url("flower"))
    rows = page.locator("#workers-table tbody tr")
    rows.first.wait_for()

    def online() -> set[str]:
        # By text content: what is seen has places to break a line in.
        cells = [[cell.strip() for cell in row.locator("td").all_text_contents()] for row in rows.all()]
        return {row[0].partition("-")[0] for row in cells if "Online" in row}

    until(lambda: online() >= set(STAGES), "worker of each stage on Flower's page", seconds=SETTLE_SECONDS)
    done = page.locator("#workers-succeeded")
    until(
        lambda: int(done.inner_text().replace(",", "")) >= 3 * items,
        f"{3 * items} succeeded tasks on Flower's page",
        seconds=SETTLE_SECONDS,
    )
    _keep(page, "flower-workers")

    page.goto(stack.url("flower", "/flower/tasks"))
    page.locator("input[type=search]").fill(f"state:SUCCESS {job}")
    told = page.get_by_text(f" of {3 * items} tasks (filtered")
    told.wait_for(timeout=SETTLE_SECONDS * 1000)
    _keep(page, "flower-tasks")

    page.goto(stack.url("flower", "/flower/broker"))
    for stage in STAGES:
        for queue in (stage, f"{stage}.priority"):
            page.get_by_role("cell", name=queue, exact=True).wait_for()
    _keep(page, "flower-broker")


def _report(browser: Browser, counts: dict[str, Any], report: Path) -> None:
    """Open the report as the file that it is: its numbers are the job's, every card has its pictures, and nothing is refused or broken."""
    page = _context(browser).new_page()
    faults: list[str] = []
    page.on("pageerror", lambda error: faults.append(str(error)))
    page.on("console", lambda message: faults.append(message.text) if message.type == "error" else None)
    page.goto(report.as_uri())
    page.locator("article.card").first.wait_for()
    terms, values = (page.locator(f"section.summary {name}").all_inner_texts() for name in ("dt", "dd"))
    shown = dict(zip((term.capitalize() for term in terms), values, strict=True))
    ready = int(shown["Done"]) + int(shown["Needs review"])
    told = {"items": int(shown["Items"]), "done": ready, "failed": int(shown["Failed"])}
    _expect(told == {name: counts[name] for name in told}, f"the report says {told}, the job {counts}")
    _expect(page.locator("article.card").count() == counts["items"], "the report has not a card per item")
    broken = page.evaluate("""async () => {
      const pictures = [...document.querySelectorAll("article.card img")];
      for (const each of pictures) { each.loading = "eager"; await each.decode().catch(() => {}); }
      return pictures.filter((each) => !each.naturalWidth).length;
    }""")
    _expect(not broken and not faults, f"the report has {broken} broken pictures, and the browser says {faults}")
    _keep(page, "report")


def _prometheus(browser: Browser, stack: Stack) -> None:
    """Find every worker, the keeper and Flower up, and the rules loaded."""
    page = _context(browser).new_page()

    def all_up() -> bool:
        targets = page.request.get(stack.url("prometheus", "/api/v1/targets")).json()["data"]["activeTargets"]
        known = {each["labels"]["job"] for each in targets if each["health"] == "up"}
        return known == SCRAPED and all(each["health"] == "up" for each in targets)

    until(all_up, "target of each kind that is up in Prometheus", seconds=SETTLE_SECONDS)
    for name, words in (("targets", SCRAPED), ("alerts", {"VitrinaBrokerDown", "VitrinaWorkerGone"})):
        answered = page.goto(stack.url("prometheus", f"/{name}"))
        if answered and answered.status == 404:
            page.goto(stack.url("prometheus", f"/classic/{name}"))  # Debian's has no other pages
        for word in words:
            page.get_by_text(word).first.wait_for()
        _keep(page, f"prometheus-{name}")


def _grafana(browser: Browser, stack: Stack) -> None:
    """Ask for the password, then show the provisioned dashboard."""
    answered = _context(browser).request.get(stack.url("grafana", "/api/search")).status
    _expect(answered == 401, f"Grafana answers {answered} to a caller without a password")
    page = _context(browser).new_page()
    page.goto(stack.url("grafana", "/login"))
    page.locator("input[name=user]").fill("admin")
    page.locator("input[name=password]").fill(stack.settings["GRAFANA_PASSWORD"])
    page.locator("button[type=submit]").click()
    page.wait_for_url(lambda url: "/login" not in url)
    page.goto(stack.url("grafana", DASHBOARD))
    page.get_by_text("Waiting").first.wait_for()
    _keep(page, "grafana")
