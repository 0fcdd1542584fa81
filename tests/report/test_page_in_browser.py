"""The report in a real Chromium: it loads nothing, complains of nothing, fits a phone, and answers to the pointer."""

import pytest
from fake_studies import MIXED, Fate, add_promotion, make_study

from cityopt.report.findings import read_findings
from cityopt.report.page import write_page

pytestmark = pytest.mark.browser


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    """Write the page of a study with all kinds of trials, pictures and a promotion."""
    store = tmp_path_factory.mktemp("in browser")
    config = make_study(store, MIXED, pictures=True, trials=len(MIXED))
    add_promotion(store, config, trial=2, ap=0.35)
    file = store / "report.html"
    file.write_text(write_page(read_findings(store, config.name)), encoding="utf-8")
    return file


@pytest.fixture
def visit(browser, path):
    """Open the page in a window of some width; afterwards nothing may have been asked for or complained of."""
    opened, requests, complaints = [], [], []

    def visit(width=1280, **options):
        context = browser.new_context(viewport={"width": width, "height": 844}, **options)
        page = context.new_page()
        page.on("request", lambda request: requests.append(request.url))
        page.on("console", lambda message: complaints.append(message.text))
        page.on("pageerror", lambda error: complaints.append(str(error)))
        page.goto(path.as_uri())
        opened.append(context)
        return page

    yield visit
    for context in opened:
        context.close()
    assert complaints == []
    assert {url for url in requests if not url.startswith("data:")} == {path.as_uri()}


def test_page_loads_all_its_pictures_and_nothing_else(visit):
    page = visit()
    loaded = page.evaluate("[...document.images].map((image) => image.complete && image.naturalWidth > 0)")
    assert loaded == [True] * 6


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_page_fits_a_phone_and_its_text_can_be_read(visit, scheme):
    page = visit(390, color_scheme=scheme)
    assert page.evaluate("document.documentElement.scrollWidth") == 390
    wide = "[...document.querySelectorAll('main *')].filter((e) => e.getBoundingClientRect().right > 391).length"
    assert page.evaluate(wide) == 0
    ink, paper = page.evaluate(
        "[getComputedStyle(document.body).color, getComputedStyle(document.body).backgroundColor]"
    )
    levels = [sum(map(int, color.strip("rgb()").split(","))) / 3 for color in (ink, paper)]
    assert abs(levels[0] - levels[1]) > 180 and (levels[0] < levels[1]) == (scheme == "light")


def test_print_shows_every_trial_as_a_table_on_a_narrow_sheet(browser, tmp_path):
    """On a screen the first 25 are shown and a button for the rest; A4 is no wider than a phone rule allows."""
    count = 30
    config = make_study(tmp_path, [Fate([0.1 + number / 1000]) for number in range(count)], trials=count)
    (tmp_path / "report.html").write_text(write_page(read_findings(tmp_path, config.name)), encoding="utf-8")
    page = browser.new_page(viewport={"width": 690, "height": 980})
    page.goto((tmp_path / "report.html").as_uri())
    shown = "[...document.querySelectorAll('.leaderboard tbody tr')].map((row) => getComputedStyle(row).display)"
    assert page.evaluate(shown) == ["flex"] * 25 + ["none"] * 5
    page.emulate_media(media="print")
    assert page.evaluate(shown) == ["table-row"] * count
    page.close()


def test_pointing_at_a_row_lights_up_the_trial_in_all_charts(visit):
    page = visit()
    page.hover("tr[data-trial='5'] td.score")
    lit = page.evaluate("[...document.querySelectorAll('.lit')].map((part) => part.dataset.trial)")
    assert set(lit) == {"5"} and len(lit) == 1 + 3 + 3 * 2  # the row, three scatters, three curves in two widths
    page.hover(".mark[data-trial='3'] >> nth=0")
    assert page.inner_text("#tip").startswith("Trial 3, failed (nan)")


def test_leaderboard_sorts_by_number_both_ways_and_keeps_missing_scores_last(visit):
    page = visit()
    numbers = "[...document.querySelectorAll('.leaderboard tbody tr')].map((row) => Number(row.dataset.trial))"
    page.click("th.score button")
    assert page.evaluate(numbers) == [2, 5, 0, 4, 1, 7, 3, 6]
    page.click("th.score button")
    assert page.evaluate(numbers) == [7, 1, 4, 0, 5, 2, 3, 6]
    page.click("th.trial button")
    assert page.evaluate(numbers) == list(range(8))


def test_picture_enlarges_and_closes_and_tabs_change_the_curves(visit):
    page = visit()
    page.click(".zoom >> nth=0")
    assert page.is_visible("#lightbox img")
    page.click("#lightbox")
    assert not page.is_visible("#lightbox")
    page.click("label[for='curve-2']")
    assert page.is_visible(".panel-2 .wide svg") and not page.is_visible(".panel-0 .wide svg")
