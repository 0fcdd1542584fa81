"""HTML and SVG as text, escaped: the one place where the report turns a value into markup.

Text that comes from outside (a study's name, a setting's choice, the message of a failure) reaches the page through
`escape` or `tag` alone. `Markup` marks what is markup already, so that nothing is escaped twice or not at all.
"""

import html
import math
from collections.abc import Iterable


class Markup(str):
    """Text that is markup: it goes into the page as it is."""

    __slots__ = ()


def escape(value: object) -> Markup:
    """Return a value as markup: what is markup already as it is, all else as escaped text."""
    return value if isinstance(value, Markup) else Markup(html.escape(str(value), quote=True))


def join(parts: Iterable[object], separator: str = "") -> Markup:
    """Return parts side by side, each escaped unless it is markup."""
    return Markup(separator.join(escape(part) for part in parts))


def tag(name: str, /, *content: object, **attributes: object) -> Markup:
    """Return an element. `class_` stands for `class`, `_` in a name for `-`; attributes that are None are left out."""
    return Markup(f"<{name}{_write_attributes(attributes)}>{join(content)}</{name}>")


def void(name: str, /, **attributes: object) -> Markup:
    """Return an element that takes no content."""
    return Markup(f"<{name}{_write_attributes(attributes)}/>")


def number(value: float) -> str:
    """Return a coordinate in at most two decimals."""
    return f"{value:.2f}".rstrip("0").rstrip(".")


def signed(value: float) -> str:
    """Return a difference in four decimals with a true minus sign."""
    return f"{value:+.4f}".replace("-", "−")


def scalar(value: object) -> str:
    """Return a setting as people read it: numbers in three digits."""
    if isinstance(value, bool) or not isinstance(value, float):
        return str(value)
    return f"{value:.3g}" if math.isfinite(value) else str(value)


def last_part(key: str) -> str:
    """Return a setting's own name: `learning_rate` of `training.learning_rate`."""
    return key.rsplit(".", 1)[-1]


def _write_attributes(attributes: dict[str, object]) -> str:
    return "".join(
        f' {name.rstrip("_").replace("_", "-")}="{escape(str(value))}"'
        for name, value in attributes.items()
        if value is not None
    )
