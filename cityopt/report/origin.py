"""Where the numbers come from, in the report: anchors, dataset, environment, and the command that repeats the study."""

import shlex
from collections.abc import Mapping, Sequence
from typing import Any

import yaml

from cityopt.config import DEFAULT_ANCHORS
from cityopt.data.roots import SYNTHETIC
from cityopt.data.subset_quality import RARE_OBJECTS, list_rare
from cityopt.errors import ConfigError
from cityopt.report.charts import draw_anchors
from cityopt.report.findings import Findings
from cityopt.report.markup import Markup, join, tag
from cityopt.study_file import load_study

_RECALLS = (
    ("mean_best_iou", "mean best IoU"),
    ("recall_50", "objects with IoU ≥ .5"),
    ("recall_70", "objects with IoU ≥ .7"),
)
_NAMES = {"kmeans": "k-means", "default": "torchvision’s defaults", "explicit": "as configured"}
_ENVIRONMENT = ("device", "cuda", "threads", "platform", "python", "torch", "torchvision", "numpy", "cityopt")


def write_anchors(findings: Findings) -> Markup | None:
    """Return the adopted anchors beside the defaults, with recall on held-out images; None for semantic models."""
    report = findings.facts.anchors
    if not report:
        return None
    adopted = str(report["adopted"])
    tables = [(_NAMES.get(adopted, adopted), _list_shapes(report["sizes"], report["ratios"]))]
    if adopted != "default":
        tables.append((_NAMES["default"], _list_shapes(DEFAULT_ANCHORS.sizes, DEFAULT_ANCHORS.ratios)))
    chart = draw_anchors(tables, title="Anchors by width and height")
    keys = [
        tag("li", tag("i", "", class_=f"key anchor{' filled' if place == 0 else ''}"), name)
        for place, (name, _) in enumerate(tables)
    ]
    said = f"Adopted: {_NAMES.get(adopted, adopted)}" + (f", for {report['reason']}." if report.get("reason") else ".")
    figure = tag("figure", chart, tag("ul", *keys, class_="legend"))
    return join([tag("p", said, class_="note"), tag("div", figure, _write_recalls(report), class_="side-by-side")])


def write_dataset(findings: Findings) -> Markup:
    """Return which images the study stands on."""
    facts, data = findings.facts, findings.config.data
    height, width = data.size
    rows = [
        ("images trained on", f"{facts.num_subset} (subset {facts.subset_hash})"),
        (
            "images validated on",
            f"{facts.num_holdout}, of cities that no trial trains on (holdout {facts.holdout_hash})",
        ),
        ("size", f"{height} × {width} px"),
        ("sampling", _describe_sampling(findings)),
        ("root", f"{data.root} ({facts.root})" if data.root == SYNTHETIC else facts.root),
        ("fingerprint", facts.fingerprint),
    ]
    return join([_write_facts(rows), _write_subset(facts.class_counts)])


def _write_subset(counts: Mapping[str, Sequence[int]]) -> Markup:
    """Return which classes the subset shows beside all training images; nothing in studies of old."""
    if not counts:
        return Markup("")
    total, whole = (sum(row[place] for row in counts.values()) for place in (0, 2))
    rows = []
    for name, (objects, images, all_objects, all_images) in counts.items():
        shares = (_share(objects, total), _share(all_objects, whole))
        texts = (str(objects), str(images), shares[0], shares[1], f"{all_objects} in {all_images}")
        rows.append(tag("tr", tag("th", name, scope="row"), *(tag("td", text) for text in texts)))
    headings = ("subset", "objects", "images", "share", "share in train", "objects in images of train")
    head = tag("tr", *(tag("th", heading, scope="col") for heading in headings))
    rare = list_rare(counts)
    said = (
        f"Rare in the subset, under {RARE_OBJECTS} objects: {', '.join(rare)}." if rare else "No class is rare in it."
    )
    table = tag("table", tag("thead", head), tag("tbody", *rows), class_="small-table scores")
    note = f"{said} By size: data/subset.csv among the artifacts of the study's run."
    return join([tag("div", table, class_="scroll"), tag("p", note, class_="note")])


def _share(part: int, total: int) -> str:
    return f"{100 * part / total:.1f} %" if total else "–"


def _describe_sampling(findings: Findings) -> str:
    threshold = findings.config.data.repeat_threshold
    if "data.repeat_threshold" in findings.config.search.space:
        return "searched: data.repeat_threshold"
    if threshold == 0:
        return "each image once an epoch"
    return f"images of classes that under {threshold:.0%} of them show are drawn more often (repeat factors)"


def write_environment(findings: Findings) -> Markup:
    """Return the machine, the versions and the code of the latest trial."""
    found = findings.environment
    rows = [(name, str(found[f"environment.{name}"])) for name in _ENVIRONMENT if found.get(f"environment.{name}")]
    commit = str(found.get("environment.git_commit") or "")
    if commit:
        dirty = (
            " with uncommitted changes (git.diff of each run)" if found.get("environment.git_dirty") == "true" else ""
        )
        rows.append(("commit", commit + dirty))
    rows.append(("seed", str(findings.config.seed)))
    if len(rows) == 1:
        return tag("p", "No trial has written down its environment yet.", class_="empty")
    return _write_facts(rows)


def write_command(findings: Findings) -> Markup:
    """Return the command that repeats the study, and all its settings."""
    settings = write_settings(findings)
    shipped = is_shipped(findings)
    name = findings.config.name
    text = f"Save the settings below as {name}.yaml, then run:" if not shipped else "In a new store:"
    return join(
        [
            tag("p", text, class_="note"),
            tag("pre", tag("code", build_command(findings)), class_="command"),
            tag(
                "p",
                "A sweep of this study in its own store goes on instead: the same settings, seed and images.",
                class_="note",
            ),
            tag("details", tag("summary", "All settings of the study"), tag("pre", tag("code", settings))),
        ]
    )


def build_command(findings: Findings) -> str:
    """Return a shell command that runs the study anew, from its YAML in `sweeps/` or from the page's settings."""
    config = findings.config
    words = ["cityopt", "sweep", "--study", config.name if is_shipped(findings) else f"./{config.name}.yaml"]
    words += ["--trials", str(findings.num_asked)]
    if config.data.root != SYNTHETIC:
        words += ["--data", findings.facts.root]
    if config.threads is None:  # scores on a CPU depend on them
        words += ["--set", f"threads={findings.facts.threads}"]
    return shlex.join([*words, "--store", f"{config.name}-again"])


def write_settings(findings: Findings) -> str:
    """Return the study's settings as a YAML that `--study` takes."""
    return yaml.safe_dump(findings.config.model_dump(mode="json"), sort_keys=False, allow_unicode=True)


def is_shipped(findings: Findings) -> bool:
    """Say whether a study of this name in `sweeps/` has these very settings."""
    try:
        shipped = load_study(findings.config.name)
    except ConfigError:
        return False
    return _without_trials(shipped.model_dump(mode="json")) == _without_trials(findings.config.model_dump(mode="json"))


def _without_trials(tree: dict[str, Any]) -> dict[str, Any]:
    """Return settings without those that the command gives itself."""
    return {**tree, "search": {**tree["search"], "trials": 0}, "data": {**tree["data"], "root": None}}


def _list_shapes(sizes: Sequence[Sequence[float]], ratios: Sequence[Sequence[float]]) -> list[tuple[float, float]]:
    """Return the (width, height) of all anchors, in pixels; a ratio is height / width."""
    return [
        (size / ratio**0.5, size * ratio**0.5)
        for size_row, ratio_row in zip(sizes, ratios, strict=True)
        for size, ratio in zip(size_row, ratio_row, strict=True)
    ]


def _write_recalls(report: dict[str, Any]) -> Markup:
    names = [name for name in _NAMES if report.get(name)]
    if not names:
        return tag("p", "Recall was not measured.", class_="empty")
    rows = []
    for key, label in _RECALLS:
        rows.append(tag("tr", tag("th", label, scope="row"), *(_write_recall(report[name].get(key)) for name in names)))
        for size in ("small", "medium", "large"):
            bins = [(report[name].get("bins") or {}).get(size, {}).get(key) for name in names]
            if any(value is not None for value in bins):
                rows.append(tag("tr", tag("th", size, scope="row"), *map(_write_recall, bins), class_="minor"))
    head = tag("tr", tag("th", "on held-out images", scope="col"), *(tag("th", _NAMES[n], scope="col") for n in names))
    return tag("table", tag("thead", head), tag("tbody", *rows), class_="small-table")


def _write_recall(value: float | None) -> Markup:
    return tag("td", "–" if value is None else f"{value:.3f}")


def _write_facts(rows: Sequence[tuple[str, str]]) -> Markup:
    return tag("dl", *(tag("div", tag("dt", name), tag("dd", value)) for name, value in rows), class_="facts")
