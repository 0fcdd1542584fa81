"""MLflow's page as people browse it, in a real Chromium: experiment, runs with scores, curves, pictures, report."""

import subprocess
from urllib.parse import quote

import pytest
from command_line import COMMAND, ENVIRONMENT, STUDY

from cityopt.search.note import link_trials
from cityopt.search.status import read_status
from cityopt.tracking.mlflow_store import MlflowStore

pytestmark = [pytest.mark.slow, pytest.mark.browser]
METRIC = "train/loss/total"


@pytest.fixture(scope="module")
def finished_store(stories):
    """The store of a finished sweep."""
    return stories("calm").store


@pytest.fixture(scope="module")
def address(finished_store):
    """Serve the store by `cityopt ui` and give its address once it answers."""
    command = [*COMMAND, "ui", "--store", str(finished_store), "--port", "0"]
    with subprocess.Popen(command, env=ENVIRONMENT, stdout=subprocess.PIPE, text=True) as server:
        try:
            line = next(line for line in server.stdout if "http://" in line)
            yield next(word for word in line.split() if word.startswith("http://"))
        finally:
            server.terminate()


@pytest.fixture(scope="module")
def page(browser, address):
    """One window for the whole walk: MLflow's page takes seconds to load."""
    context = browser.new_context(viewport={"width": 1900, "height": 1000}, base_url=address)
    page = context.new_page()
    page.set_default_timeout(90_000)
    yield page
    context.close()


def test_experiment_and_runs_are_listed_with_their_scores(page, finished_store):
    status = read_status(finished_store, STUDY.stem)
    page.goto("/#/experiments")
    page.get_by_role("link", name=STUDY.stem, exact=True).first.wait_for()
    experiment = MlflowStore(finished_store).open_experiment(STUDY.stem)
    page.goto("/" + link_trials(status, experiment)[0])
    for trial in status.trials:
        page.get_by_role("link", name=f"trial-{trial.number:04d}").first.wait_for()
    page.get_by_role("button", name="Columns").click()
    page.keyboard.type(METRIC)
    page.get_by_text(METRIC, exact=True).first.click()
    page.keyboard.press("Escape")
    page.locator("[role=columnheader]", has_text=METRIC).first.wait_for()


def test_trials_stand_side_by_side_in_the_charts(page, finished_store):
    status = read_status(finished_store, STUDY.stem)
    experiment = MlflowStore(finished_store).open_experiment(STUDY.stem)
    page.goto("/" + link_trials(status, experiment)[1])
    page.locator(".js-plotly-plot").first.wait_for()
    for number in (0, 1):
        page.get_by_text(f"trial-{number:04d} (").first.wait_for()


def test_run_shows_curves_and_an_overlay(page, finished_store):
    store = MlflowStore(finished_store)
    run = store.find_run(STUDY.stem, "trial-0000")
    base = f"/#/experiments/{store.open_experiment(STUDY.stem)}/runs/{run}"
    page.goto(f"{base}/model-metrics")
    page.locator(".js-plotly-plot").first.wait_for()
    overlay = sorted((store.artifact_folder(run) / "overlays").glob("*.jpg"))[0].name
    page.goto(f"{base}/artifacts/overlays/{quote(overlay)}")
    page.wait_for_function("[...document.images].some((image) => image.naturalWidth > 400)")


def test_study_shows_its_leaderboard_and_its_report(page, finished_store):
    store = MlflowStore(finished_store)
    status = read_status(finished_store, STUDY.stem)
    base = f"/#/experiments/{store.open_experiment(STUDY.stem)}/runs/{store.find_parent(STUDY.stem)}"
    page.goto(base)
    page.get_by_text("Their curves side by side").wait_for()
    page.goto(f"{base}/artifacts/report.html")
    heading = page.frame_locator("iframe").locator("h1")
    heading.wait_for()
    assert f"rial {status.best.number} is best: training loss {status.best.value:.4f}" in heading.inner_text()
