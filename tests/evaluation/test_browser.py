"""The report in a real browser: it opens, sorts, filters, plays and prints, without a network."""

from __future__ import annotations

import importlib.util
import os
import re
import shutil
import subprocess

import pytest

from tests.evaluation import stand_ins
from tests.evaluation.test_report import make_record, play, write_run
from tests.support import needs, read_required
from vla_gym.errors import DependencyNotInstalled
from vla_gym.evaluation.evaluate import evaluate
from vla_gym.evaluation.report import find_browser, write_leaderboard, write_pdf, write_report
from vla_gym.evaluation.store import load_records

pytestmark = needs("eval")


def find_lack():
    """Return why there is no browser to be driven, or None."""
    try:
        find_browser()
    except DependencyNotInstalled as error:
        return str(error)
    if importlib.util.find_spec("playwright") is None:
        return "the package playwright drives the browser: pip install 'vla-gym[dev]'"
    return None


@pytest.fixture(scope="module")
def browser():
    """A browser without a window. VLA_GYM_REQUIRE=browser makes its lack a failure."""
    if lack := find_lack():
        if "browser" in read_required():
            pytest.fail(f"{lack} (VLA_GYM_REQUIRE asks for browser)", pytrace=False)
        pytest.skip(lack)
    from playwright.sync_api import sync_playwright

    arguments = ["--no-sandbox"] if os.geteuid() == 0 else []
    with sync_playwright() as driver:
        found = driver.chromium.launch(executable_path=find_browser(), args=arguments)
        yield found
        found.close()


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A real evaluation of two tasks: with videos, failures and a crash on each."""
    path = tmp_path_factory.mktemp("browser")
    policies = {"expert": stand_ins.ReachBall, "odd": stand_ins.RaisesOnSeed2}
    evaluate(policies, ["Toy-*"], episodes=3, folder=path, failures=2)
    write_report([path])
    return path


@pytest.fixture(scope="module")
def table(tmp_path_factory):
    """Three tasks: a and b have different best tasks, and b has not played C."""
    path = tmp_path_factory.mktemp("table")
    records = []
    for name, one, other in (("B", [1, 0], [1, 1]), ("C", [0, 0], None), ("A", [1, 1], [1, 0])):
        task = {"env_id": f"VLA/Toy-{name}-v0", "instruction": f"do {name.lower()} now"}
        records += play("a", one, **task)
        records += play("b", other, **task) if other else []
    write_run(path, records)
    write_report([path])
    return path


@pytest.fixture
def visit(browser):
    """A function that opens a file; whatever the page complains of or fetches fails the test."""
    pages, faults = [], []

    def open_page(path, **options):
        page = browser.new_context(**options).new_page()
        page.on("console", lambda message: faults.append(message.text))
        page.on("pageerror", lambda error: faults.append(str(error)))
        page.on("request", lambda request: faults.append(request.url) if is_outside(request) else 0)
        page.goto(path.as_uri())
        pages.append(page)
        return page

    yield open_page
    for page in pages:
        page.context.close()
    assert faults == []


def is_outside(request):
    return not request.url.startswith(("file:", "data:"))


def read_tasks(page):
    """Return the names of the tasks in sight, from top to bottom."""
    names = page.locator("#rates tbody tr:visible th").all()
    return [name.get_attribute("data-value") for name in names]


def test_it_opens_without_a_complaint_and_shows_every_policy(visit, folder):
    page = visit(folder / "report.html")
    assert page.title() == "2 policies on 2 tasks"
    assert page.locator("#rates thead th").all_inner_texts()[1:] == ["expert", "odd"]
    assert page.get_by_text("2 crashed episodes.").is_visible()


def test_a_click_on_a_header_sorts_and_a_third_one_undoes_it(visit, table):
    page = visit(table / "report.html")
    first = ["Toy-B", "Toy-C", "Toy-A"]
    assert read_tasks(page) == first
    head = page.locator("#rates th[data-policy=a]")
    seen = []
    for _ in range(3):
        head.locator("button").click()
        seen.append((head.get_attribute("aria-sort"), read_tasks(page)))
    assert seen == [
        ("descending", ["Toy-A", "Toy-B", "Toy-C"]),
        ("ascending", ["Toy-C", "Toy-B", "Toy-A"]),
        ("none", first),
    ]


def test_the_keyboard_sorts_by_name(visit, table):
    page = visit(table / "report.html")
    head = page.locator("#rates th").first
    head.locator("button").focus()
    page.keyboard.press("Enter")
    assert head.get_attribute("aria-sort") == "ascending"
    assert read_tasks(page) == ["Toy-A", "Toy-B", "Toy-C"]
    page.keyboard.press("Enter")
    assert read_tasks(page) == ["Toy-C", "Toy-B", "Toy-A"]


def test_what_was_not_played_stays_last_whichever_way_it_is_sorted(visit, table):
    page = visit(table / "report.html")
    button = page.locator("#rates th[data-policy=b] button")
    button.click()
    assert read_tasks(page) == ["Toy-B", "Toy-A", "Toy-C"]
    button.click()
    assert read_tasks(page) == ["Toy-A", "Toy-B", "Toy-C"]


def test_typing_filters_tasks_by_name_and_instruction(visit, table):
    page = visit(table / "report.html")
    search, state = page.get_by_placeholder("Filter tasks"), page.locator(".filter output")
    assert state.inner_text() == "3 of 3 tasks"
    search.fill("toy-c")
    assert read_tasks(page) == ["Toy-C"] and state.inner_text() == "1 of 3 tasks"
    search.fill("NOW do b")
    assert read_tasks(page) == ["Toy-B"]
    search.fill("nothing like it")
    assert read_tasks(page) == [] and state.inner_text() == "0 of 3 tasks"
    search.fill("")
    assert len(read_tasks(page)) == 3


def test_a_switch_hides_a_policy_in_every_table(visit, table):
    page = visit(table / "report.html")
    assert page.locator("#rates td[data-policy=b]:visible").count() == 3
    page.get_by_role("checkbox", name="b", exact=True).uncheck()
    assert page.locator("[data-policy=b]:visible").count() == 0
    assert page.locator("#rates td[data-policy=a]:visible").count() == 3
    assert page.locator(".filter output").inner_text() == "3 of 3 tasks, 1 of 2 policies"
    page.get_by_role("checkbox", name="b", exact=True).check()
    assert page.locator("#rates td[data-policy=b]:visible").count() == 3


def test_a_switch_hides_a_suite(visit, tmp_path):
    other = make_record("a", "VLA/Other-D-v0", protocol={"suite": "Other"})
    write_report([write_run(tmp_path, [*play("a", [1]), other])])
    page = visit(tmp_path / "report.html")
    page.get_by_role("checkbox", name="Toy").uncheck()
    assert read_tasks(page) == ["Other-D"]


def test_a_video_plays_once_it_is_on_the_screen(visit, folder):
    page = visit(folder / "report.html")
    video = page.locator("video").first
    assert video.evaluate("v => v.readyState") == 0  # nothing is decoded before
    video.scroll_into_view_if_needed()
    page.wait_for_function("() => document.querySelector('video').currentTime > 0.2")
    assert video.evaluate("v => [v.videoWidth, v.videoHeight, v.error]") == [256, 256, None]


def test_further_failures_unfold_by_policy_and_task(visit, folder):
    page = visit(folder / "report.html")
    filmed = [r for r in load_records(folder) if r.video and r.outcome == "failure" and r.episode]
    reels = page.locator("details.reel")
    assert reels.count() == len({(r.policy, r.id) for r in filmed}) > 0
    assert page.locator("details.reel video").count() == len(filmed)
    reel = reels.first
    assert reel.locator("video").first.is_hidden()
    reel.locator("summary").click()
    assert reel.locator("video").first.is_visible()
    text = reel.inner_text()
    shown = [r for r in filmed if f"{r.policy} on Toy-{r.protocol['task']} " in text]
    assert shown and all(f"seed {r.seed}, {r.length} steps" in text for r in shown)


def test_a_reader_who_wants_no_motion_gets_none(visit, folder):
    page = visit(folder / "report.html", reduced_motion="reduce")
    video = page.locator("video").first
    video.scroll_into_view_if_needed()
    page.wait_for_timeout(500)
    assert video.evaluate("v => v.paused") is True


def test_without_scripts_everything_can_be_read(visit, folder):
    page = visit(folder / "report.html", java_script_enabled=False)
    assert page.locator(".filter").is_hidden()
    rows = page.locator("#rates tbody tr").all_inner_texts()
    assert len(rows) == 2 and all("3/3" in row or "0/3" in row or "0/2" in row for row in rows)


@pytest.mark.parametrize("width", [320, 420, 1200])
def test_the_page_itself_never_scrolls_sideways(visit, folder, table, width):
    for place in (folder, table):
        page = visit(place / "report.html", viewport={"width": width, "height": 900})
        assert page.evaluate("document.documentElement.scrollWidth") <= width


def test_a_dark_screen_gets_a_dark_page(visit, table):
    shades = []
    for scheme in ("light", "dark"):
        page = visit(table / "report.html", color_scheme=scheme)
        colour = page.evaluate("getComputedStyle(document.body).backgroundColor")
        shades.append(sum(map(int, re.findall(r"\d+", colour))))
    assert shades[0] > 700 and shades[1] < 100


def test_the_leaderboard_sorts_and_leads_to_the_reports(visit, tmp_path):
    for name, solved in (("one", [1] * 20), ("two", [0] * 20)):
        run = write_run(tmp_path / "runs of may" / name, play(f"policy-{name}", solved))
        write_report([run])
    page = visit(write_leaderboard(tmp_path / "runs of may", tmp_path / "board"))
    policies = page.locator("tbody tr td:nth-child(2)")
    assert policies.all_inner_texts() == ["policy-one", "policy-two"]
    score = page.get_by_role("button", name="Mean success")
    score.click()
    score.click()
    assert policies.all_inner_texts() == ["policy-two", "policy-one"]
    page.get_by_role("link", name="one").click()
    assert page.title() == "1 policy on 1 task"


def test_the_page_prints(browser, folder, tmp_path):
    pdf = write_pdf(folder / "report.html", tmp_path / "new" / "report.pdf")
    content = pdf.read_bytes()
    assert content.startswith(b"%PDF-") and content.rstrip().endswith(b"%%EOF")
    assert 2 <= len(re.findall(rb"/Type /Page\b", content)) <= 6
    assert [path.name for path in pdf.parent.iterdir()] == ["report.pdf"]


def test_the_print_has_what_the_screen_folds_away(browser, folder, tmp_path):
    if shutil.which("pdftotext") is None:
        pytest.skip("needs pdftotext (Debian: poppler-utils) to read a PDF")
    pdf = write_pdf(folder / "report.html", tmp_path / "report.pdf")
    text = subprocess.run(["pdftotext", "-layout", pdf, "-"], capture_output=True, text=True).stdout
    for words in ("2 policies on 2 tasks", "Toy-Reach", "the cat walked over the keyboard"):
        assert words in text
    assert "Filter tasks" not in text
    assert text.count("VLA/Toy-") >= 2  # ids stand only in tables that are closed on the screen


def test_paper_shows_pictures_in_the_place_of_videos(visit, folder):
    page = visit(folder / "report.html")
    page.emulate_media(media="print")
    assert page.locator("video:visible").count() == 0
    image = page.locator("figure img").first
    assert image.is_visible() and image.evaluate("i => i.naturalWidth") == 256
