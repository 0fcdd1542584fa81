"""The page of a transfer study: what it says, what it must not say, and that nothing outside gets into it."""

import json
from dataclasses import replace

import numpy as np
import pytest
from fake_transfers import make_transfer
from page_reader import PageReader
from rich.console import Console

from cityopt.errors import ConfigError, StoreError
from cityopt.evaluation.close_ups import choose_close_ups, draw_close_up
from cityopt.evaluation.coco_ap import annotate_raster
from cityopt.evaluation.paired import MIN_IMAGES
from cityopt.labels import THING_NAMES
from cityopt.report.document import POLICY
from cityopt.report.markup import escape
from cityopt.report.transfer_charts import draw_classes, name_marks
from cityopt.report.transfer_page import reach_verdict, write_transfer_page
from cityopt.report.transfer_table import describe_comparison, print_transfer
from cityopt.report.transfer_tables import Row, list_warnings
from cityopt.report.transfer_write import check_out, list_params, repeat, write_pictures
from cityopt.training.transfer_study import COCO, Ground

NAMES = ("scores", "classes", "drop", "boundaries", "pictures", "speed", "origin", "repeat")


def draw_street(number: int):
    """Return pixels and raster with a car, a person, a rider and a bicycle whose outlines are ellipses."""
    rng = np.random.default_rng(number)
    raster = np.full((240, 400), 7, np.uint16)
    y, x = np.ogrid[:240, :400]
    for place, label in enumerate((26, 24, 25, 33)):
        center, radii = (120 + rng.integers(-20, 20), 60 + 90 * place), (rng.integers(50, 90), rng.integers(28, 42))
        raster[((y - center[0]) / radii[0]) ** 2 + ((x - center[1]) / radii[1]) ** 2 <= 1] = label * 1000
    return rng.integers(0, 255, (240, 400, 3), dtype=np.uint8), raster


@pytest.fixture(scope="module")
def images():
    return {f"ulm_{number:06d}_000019": draw_street(number) for number in range(MIN_IMAGES)}


@pytest.fixture(scope="module")
def study(images, tmp_path_factory):
    return make_transfer(images, tmp_path_factory.mktemp("street<s>"))


@pytest.fixture(scope="module")
def page(study):
    return write_transfer_page(study, command="cityopt transfer --weights <a>.pt")


def test_page_answers_every_question_and_loads_nothing(page):
    read = PageReader(page)
    assert tuple(read.sections) == ("header", *NAMES)
    assert escape(POLICY) in page and "<a>.pt" not in page and "street<s>" not in page
    sources = [attributes.get("src", "") for tag, attributes in read.elements if tag == "img"]
    assert sources and all(source.startswith("data:image/jpeg;base64,") for source in sources)
    assert "CC BY-SA 3.0" in read.sections["origin"].text


def test_tables_hold_the_metrics_of_both_models(page, study):
    rows = {row[0]: row[1:] for row in PageReader(page).sections["scores"].rows}
    first, second = (subject.judged["cityscapes"].metrics for subject in study.subjects)
    for label, name in (
        ("Cityscapes AP, 8 classes", "cityscapes/ap"),
        ("Cityscapes AP, 7 without rider", "cityscapes/ap_without_rider"),
        ("Cityscapes AP, riders guessed (extra)", "riders_guessed/cityscapes/ap"),
    ):
        assert rows[label] == [f"{first[name]:.4f}", f"{second[name]:.4f}"]
    classes = PageReader(page).sections["classes"].rows
    assert ["rider", "0.0000", "0.0000"] in classes and ["bus", "–", "–"] in classes
    assert first["cityscapes/ap"] == pytest.approx(first["cityscapes/ap_without_rider"] * 3 / 4)


def test_drop_is_the_difference_of_one_protocol_on_the_shared_classes(page, study):
    rows = {row[0]: row[1:] for row in PageReader(page).sections["drop"].rows if len(row) == 4}
    coco, streets = (study.subjects[1].judged[key].metrics["shared/coco/segm/ap"] for key in ("coco", "cityscapes"))
    assert rows["all seven classes"] == [f"{coco:.4f}", f"{streets:.4f}", f"−{coco - streets:.4f}"]
    assert "rider" not in rows and "bicycle" in rows
    box = study.subjects[1].judged["coco"].metrics["shared/coco/bbox/ap_large"]
    assert rows["large objects, box"][0] == f"{box:.4f}"
    assert "a person found on a rider is neither right nor wrong" in PageReader(page).sections["drop"].text


def test_verdict_is_that_of_the_paired_comparison(study):
    assert "point_rend_coco’s boundaries fit better than mask_rcnn_coco’s: +" in reach_verdict(study)[0]
    comparison = study.comparisons[0]
    doubtful = replace(comparison, found=replace(comparison.found, low=-0.1))
    assert "cannot be told apart" in reach_verdict(replace(study, comparisons=[doubtful]))[0]
    nothing = replace(comparison, found=replace(comparison.found, num_images=0))
    assert "no object in common" in reach_verdict(replace(study, comparisons=[nothing]))[0]


def test_verdict_says_that_images_are_too_few_and_names_every_later_model(study):
    comparison = study.comparisons[0]
    nan = float("nan")
    few = replace(comparison.found, low=nan, high=nan, p_bootstrap=nan, p_wilcoxon=nan, num_images=3)
    third = replace(comparison, second="third", found=few)
    headline, detail = reach_verdict(replace(study, comparisons=[comparison, third]))
    assert "fit better" in headline and "third’s boundaries cannot be told apart from mask_rcnn_coco’s" in detail
    assert "3 images are too few to decide anything (under 10)" in detail
    assert describe_comparison(third).endswith("on 3 images: too little to decide")


def test_part_of_the_images_is_named_as_such(page, study):
    assert "no number here is official" in page
    whole = [replace(ground, num_in_split=ground.num_images) for ground in study.grounds]
    assert (
        "official"
        not in PageReader(write_transfer_page(replace(study, grounds=whole), command="x")).sections["header"].text
    )


def test_single_model_on_streets_alone_has_a_page(images, tmp_path):
    study = make_transfer(images, tmp_path, on_coco=False)
    study.subjects, study.comparisons, study.close_ups = study.subjects[:1], [], []
    read = PageReader(write_transfer_page(study, command="x"))
    assert tuple(read.sections) == ("header", "scores", "classes", "speed", "origin", "repeat")
    charts = [attributes["aria-label"] for tag, attributes in read.elements if tag == "svg"]
    assert charts == [f"{x} by class" for x in ("Cityscapes AP", "Cityscapes AP50", "COCO mask AP", "Boundary mask AP")]


def test_chart_has_a_mark_for_every_model_and_class_that_has_a_score():
    rows = [Row("person", (0.5, 0.25, None)), Row("bus", (None, None, None)), Row("car", (0.1, 0.2, 0.4))]
    chart = PageReader(draw_classes(rows, ["a", "b", "c"], "AP"))
    marks = [attributes for tag, attributes in chart.elements if tag == "circle"]
    tips = [mark["data-tip"] for mark in marks]
    assert tips == ["person, a: 0.5000", "person, b: 0.2500", "car, a: 0.1000", "car, b: 0.2000", "car, c: 0.4000"]
    places = [float(mark["cx"]) for mark in marks]
    pixels_per_score = (places[0] - places[1]) / 0.25
    assert places[4] - places[3] == pytest.approx(0.2 * pixels_per_score, abs=0.2)
    assert [mark["class"] for mark in marks] == ["anchor", "anchor filled", "anchor", "anchor filled", "anchor filled"]
    assert [float(mark["opacity"]) for mark in marks[2:]] == [1, 0.5, 1]
    assert name_marks(["a"]) == "○ a" and name_marks(["a", "b", "c"]).startswith("○ a; ● b, c")


def test_other_size_and_other_images_are_warned_of(study):
    small = replace(study, conditions=replace(study.conditions, size=(256, 512)))
    assert not any("1024" in warning for warning in list_warnings(study))
    assert any("at 256 x 512, not at 1024 x 2048" in warning for warning in list_warnings(small))
    other = replace(study.grounds[1], num_images=3, num_in_split=3)
    warned = list_warnings(replace(study, grounds=[study.grounds[0], other]))
    assert warned == ["The root of COCO has 3 images, but val2017 has 5000: no number here is that of val2017."]
    header = PageReader(write_transfer_page(small, command="x")).sections["header"].text
    assert "not comparable with published ones" in header


@pytest.mark.parametrize(
    ("judged", "there", "prefix"),
    [
        (5000, 5000, "coco_val2017"),
        (7, 5000, "coco_val2017_first_7"),
        (3, 3, "coco_val2017_other_3"),
        (2, 3, "coco_val2017_other_2"),
    ],
)
def test_names_of_metrics_say_whether_images_are_the_splits_own(tmp_path, judged, there, prefix):
    ground = Ground(COCO, tmp_path, "val2017", judged, there, "800/1333", num_published=5000)
    assert ground.prefix == prefix


def test_times_come_with_hardware_versions_and_date(page, study):
    text = PageReader(page).sections["speed"].text
    for said in ("a card", "torch 2.9", "2026-11-26 10:00:00 UTC", "CPU threads"):
        assert said in text
    params = list_params(study, study.subjects[0])
    assert params["environment.device"] == "a card" and params["environment.torch"] == "2.9"
    assert params["environment.threads"] == study.subjects[0].config.threads
    assert (params["size"], params["device"], params["limit"]) == ("1024x2048", "cpu", 2)
    written = study.to_json()
    assert written["conditions"]["environment"]["device"] == "a card" and written["conditions"]["limit"] == 2


def test_terminal_says_what_the_page_says(study, capsys):
    print_transfer(Console(width=120), study, ["here it is"])
    out = capsys.readouterr().out
    assert "point_rend_coco − mask_rcnn_coco = +" in out and out.endswith("here it is\n")
    json.dumps(study.to_json(), allow_nan=False)


def test_close_ups_show_objects_of_every_kind_by_their_boundaries_alone(study, images):
    found = [subject.judged["cityscapes"].found for subject in study.subjects]
    chosen = choose_close_ups(*found, count=1)
    assert [close_up.kind for close_up in chosen] == ["gain", "middle", "loss"]
    both = [
        (second[name][number].boundary_iou - objects[number].boundary_iou)
        for first, second in [found]
        for name, objects in first.items()
        for number in objects
        if number in second[name]
    ]
    assert chosen[0].gain == pytest.approx(max(both)) and chosen[2].gain == pytest.approx(min(both))
    pixels, raster = images[chosen[0].image]
    truth = list(annotate_raster(raster))[chosen[0].number]
    assert THING_NAMES[truth["category_id"] - 1] != "rider"
    sheet = np.asarray(draw_close_up(pixels, truth["segmentation"], chosen[0], ["a", "b"]))
    panels = [sheet[24:, column : column + 400] for column in (0, 406, 812)]
    assert not np.array_equal(panels[1], panels[2]) and not np.array_equal(panels[0], panels[1])


def test_command_repeats_the_study(study, tmp_path):
    words = repeat(study, tmp_path / "out")
    assert words.startswith("cityopt transfer --weights mask_rcnn_coco.pt --weights point_rend_coco.pt --coco ")
    assert "--limit 2" in words and "--size" not in words


def test_command_names_store_device_and_scenes_that_were_made(study, tmp_path):
    made = replace(study.grounds[0], root=tmp_path / "cache", given="synthetic")
    conditions = replace(study.conditions, limit=None, size=(64, 128), device="cuda:1", store=tmp_path / "store")
    words = repeat(replace(study, grounds=[made], conditions=conditions), tmp_path / "out")
    assert f"--data synthetic --size 64x128 --device cuda:1 --store {tmp_path / 'store'} --out" in words
    assert "--coco" not in words and "--limit" not in words and "cache" not in words


def test_pictures_of_an_earlier_study_go_and_others_stay(study, tmp_path):
    for name in ("09_gain_old.jpg", "holiday.jpg"):
        (tmp_path / name).touch()
    write_pictures(study, tmp_path)
    names = {path.name for path in tmp_path.iterdir()}
    assert "holiday.jpg" in names and "09_gain_old.jpg" not in names and len(names) == len(study.close_ups) + 1


def test_folder_that_cannot_be_written_is_refused_before_any_work(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(StoreError, match="must be writable"):
        check_out(tmp_path / "file" / "out")
    check_out(tmp_path / "new" / "out")
    assert (tmp_path / "new" / "out").is_dir() and not list((tmp_path / "new" / "out").iterdir())


def test_folder_that_holds_something_else_is_refused(tmp_path):
    check_out(tmp_path)
    (tmp_path / "notes.txt").touch()
    with pytest.raises(ConfigError, match=r"new folder.*'notes\.txt'"):
        check_out(tmp_path)
    with pytest.raises(ConfigError, match="is a file"):
        check_out(tmp_path / "notes.txt")
    (tmp_path / "transfer.json").touch()
    check_out(tmp_path)


@pytest.mark.browser
def test_page_fits_a_phone_shows_its_pictures_and_asks_for_nothing(browser, page, tmp_path):
    path, requests = tmp_path / "report.html", []
    path.write_text(page, encoding="utf-8")
    context = browser.new_context(viewport={"width": 390, "height": 844}, color_scheme="dark")
    opened = context.new_page()
    opened.on("request", lambda request: requests.append(request.url))
    opened.goto(path.as_uri())
    loaded = opened.evaluate("[...document.images].map((image) => image.complete && image.naturalWidth > 0)")
    assert loaded and all(loaded)
    assert opened.evaluate("document.documentElement.scrollWidth") == 390
    assert [url for url in requests if not url.startswith("data:")] == [path.as_uri()]
    context.close()
