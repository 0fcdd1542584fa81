"""What `cityopt promote` and `cityopt trust` print of finalists: seeds, means with intervals, winner, verdict."""

from typing import TYPE_CHECKING

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from cityopt.report.tables import format_seconds, format_settings, format_value
from cityopt.search.evidence import LEVEL

if TYPE_CHECKING:
    from cityopt.search.finalist_result import Finalists
    from cityopt.search.ranks import Coefficient


def print_finalists(console: Console, found: "Finalists") -> None:
    """Print who competed, who won and why."""
    console.print(build_finalist_table(found))
    for it in found.dropped:
        console.print(f"{it.name} is out: {it.failure}", highlight=False, soft_wrap=True, markup=False)
    console.print(found.reason, highlight=False, soft_wrap=True, markup=False)


def print_trust(console: Console, found: "Finalists") -> None:
    """Print the finalists and what they say about the subset's ranking."""
    print_finalists(console, found)
    for line in describe_ranks(found):
        console.print(line, highlight=False, soft_wrap=True, markup=False)
    console.print(found.trust.sentence, highlight=False, soft_wrap=True, markup=False, style="bold")


def build_finalist_table(found: "Finalists") -> Table:
    """Lay out a row per finalist, the best mean first; the winner is bold."""
    table = Table(title=f"{found.name}: {found.metric}, {found.note}", title_justify="left", title_style="bold")
    for heading in ("finalist", "subset", "mean", f"{LEVEL:.0%} interval", "seeds", "device time", "settings"):
        table.add_column(heading, justify="left" if heading in ("finalist", "settings") else "right", overflow="fold")
    sign = -1.0 if found.direction == "maximize" else 1.0
    for it in sorted(found.entrants, key=lambda it: sign * found.interval_of(it).mean):
        interval = found.interval_of(it)
        bounds = "–" if interval.low is None else f"{interval.low:.4f} … {format_value(interval.high)}"
        table.add_row(
            it.name,
            format_value(it.subset_score),
            format_value(interval.mean),
            bounds,
            "  ".join(map(format_value, it.scores)),
            format_seconds(it.cost.typical),
            escape("; ".join(it.rescaled) or format_settings(it.settings)),
            style="bold" if it == found.winner else "",
        )
    return table


def describe_ranks(found: "Finalists") -> list[str]:
    """Return lines with the numbers behind the verdict."""
    ranks, trust = found.trust.ranks, found.trust
    lines = []
    if ranks is not None:
        lines.append(
            f"{ranks.num_points} finalists, subset against more data: Spearman {format_coefficient(ranks.spearman)}, "
            f"Kendall {format_coefficient(ranks.kendall)}; p {ranks.p_value:.3f} (permutations)"
        )
    if trust.noise is not None and trust.spread is not None:
        lines.append(
            f"seed noise {trust.noise:.4f} (standard deviation of one training), spread of the means "
            f"{trust.spread:.4f}"
            + ("" if trust.spread_p is None else f", p {trust.spread_p:.3f} (analysis of variance)")
        )
    return lines


def format_coefficient(it: "Coefficient") -> str:
    """Return `.80 [.20, 1.00]`, the bootstrap's interval in brackets."""
    return f"{it.value:.2f}" if it.low is None or it.high is None else f"{it.value:.2f} [{it.low:.2f}, {it.high:.2f}]"
