"""What `cityopt compare` prints and writes, on numbers that nobody measured."""

import math
from pathlib import Path

import pytest
from page_reader import PageReader
from rich.console import Console

from cityopt.errors import StoreError
from cityopt.evaluation.paired import PairedDifference
from cityopt.report.comparison_page import print_comparison, reach_verdict, write_comparison, write_comparison_page
from cityopt.training.model_comparison import Difference, ImagePair, ModelComparison

NAN = math.nan
AP = PairedDifference(0.04, 0.01, 0.07, 0.01, NAN, 50)
CAR = PairedDifference(-0.02, -0.05, 0.02, 0.3, NAN, 50)
WORSE = PairedDifference(-0.1, -0.2, -0.05, 0.002, NAN, 50)
NOTHING = PairedDifference(NAN, NAN, NAN, NAN, NAN, 50)


def make(ap=AP, prefix="val"):
    rows = (
        Difference("coco/segm/ap", 0.30, 0.30 + ap.difference, ap),
        Difference("coco/segm/ap/class/car", 0.5, 0.48, CAR),
        Difference("coco/segm/ap/class/train", NAN, NAN, NOTHING),
    )
    images = (ImagePair("lund_1", 0.9, 0.2), ImagePair("lund_2", 0.5, 0.5), ImagePair("lund_<3>", 0.1, 0.4))
    shown = (ImagePair("lund_1", 0.9, 0.2, (b"one", b"two")), ImagePair("lund_<3>", 0.1, 0.4, (b"three", b"four")))
    return ModelComparison(("models:/x@champion", "b.pt"), Path("/data"), prefix, "instance", rows, images, shown)


def test_page_shows_differences_wins_and_pictures():
    page = write_comparison_page(make())
    found = PageReader(page)
    rows = {row[0]: row[1:] for row in found.sections["scores"].rows}
    assert rows["val/coco/segm/ap"] == ["0.3000", "0.3400", "+0.0400", "+0.0100 … +0.0700", "0.010", "B is better"]
    assert rows["val/coco/segm/ap/class/car"][-1] == "undecided"
    assert rows["val/coco/segm/ap/class/train"] == ["–", "–", "–", "–", "–", "nothing to judge"]
    assert "B is better: COCO mask AP on val 0.3000 (A) and 0.3400 (B)" in found.sections["header"].text
    assert "A is better on 1 images, B on 1; 1 are even" in found.sections["header"].text
    assert [name for name, _ in found.elements].count("img") == 4
    assert "B wins lund_<3>" in found.sections["pictures"].text and "lund_&lt;3&gt;" in page


@pytest.mark.parametrize(
    ("paired", "words"),
    [(WORSE, "A is better"), (CAR, "do not tell A from B"), (NOTHING, "nothing to judge")],
)
def test_verdict_follows_the_interval(paired, words):
    assert words in reach_verdict(make(paired))


def test_table_warns_when_only_a_part_was_judged(tmp_path):
    console = Console(width=200, record=True)
    print_comparison(console, make(prefix="val_first_9"))
    text = console.export_text()
    assert "val_first_9/coco/segm/ap" in text and "B: b.pt" in text and "no number here is official" in text
    assert write_comparison(make(), tmp_path / "page.html").endswith("MB)") and (tmp_path / "page.html").is_file()
    with pytest.raises(StoreError, match="can be written"):
        write_comparison(make(), tmp_path / "page.html" / "below")
