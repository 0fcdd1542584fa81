"""Where the report goes: a file, and the study's run in a real MLflow with its description."""

import pytest
from fake_studies import MIXED, Fate, grow, make_study

from cityopt.errors import StoreError
from cityopt.report.publish import NAME, publish_report, write_report
from cityopt.tracking.mlflow_store import DESCRIPTION, MlflowStore


@pytest.fixture(scope="module")
def mlflow_store(tmp_path_factory):
    """Make MLflow's database once: it takes seconds."""
    store = MlflowStore(tmp_path_factory.mktemp("published"))
    store.open_experiment("another study")
    return store


def test_report_is_on_the_studys_run_with_a_description(mlflow_store, tmp_path):
    store, out = mlflow_store.store, tmp_path / "page.html"
    config = make_study(store, MIXED, name="published")
    parent = mlflow_store.open_parent(config.name)
    mlflow_store.finish_run(parent, "FINISHED")
    assert write_report(store, config.name, out) == f"{out} (0.1 MB)"
    artifact = mlflow_store.artifact_folder(parent) / NAME
    assert artifact.read_bytes() == out.read_bytes() and out.read_text().startswith("<!doctype html>")
    line = publish_report(store, config.name)  # a second time, as after a promotion
    assert line == f"Report: {store / 'runs' / parent / 'artifacts' / NAME}"
    run = mlflow_store.client.get_run(parent)
    assert "Best is trial 2" in run.data.tags[DESCRIPTION] and run.info.status == "FINISHED"
    assert [path.name for path in tmp_path.iterdir()] == ["page.html"]  # nothing half written is left


def test_report_is_written_with_a_warning_when_mlflow_has_no_such_run(mlflow_store, tmp_path):
    config = make_study(tmp_path, [Fate(grow(0.2))], name="alone")
    warning = write_report(tmp_path, config.name, tmp_path / "page.html")
    assert "no mlflow.db" in warning and (tmp_path / "page.html").is_file()
    assert not (tmp_path / "mlflow.db").exists()
    make_study(mlflow_store.store, [Fate(grow(0.2))], name="parentless")
    assert "no run of the study 'parentless'" in publish_report(mlflow_store.store, "parentless")


def test_flaw_of_the_page_does_not_hide_how_a_sweep_ended(tmp_path, monkeypatch):
    def break_down(*_):
        raise KeyError("a flaw")

    monkeypatch.setattr("cityopt.report.publish.read_findings", break_down)
    said = publish_report(tmp_path, "tiny")
    assert said == "The report could not be made (KeyError: 'a flaw'). See: cityopt report --study tiny"


def test_errors_end_with_what_to_do(tmp_path):
    with pytest.raises(StoreError, match="cityopt sweep --study streets --store"):
        write_report(tmp_path, "streets", tmp_path / "page.html")
    config = make_study(tmp_path, [Fate(grow(0.2))])
    for place in (tmp_path / "no folder" / "page.html", tmp_path):
        with pytest.raises(StoreError, match="--out FILE"):
            write_report(tmp_path, config.name, place)
    with pytest.raises(StoreError, match=r"no study 'other' \(studies: streets\)"):
        write_report(tmp_path, "other", tmp_path / "page.html")
