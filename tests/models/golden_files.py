"""What detectron2 itself says to the checkpoints of `detectron2_writer`: the stored arrays, and how to trim them.

The full files (6 MB) lie where CITYOPT_GOLDEN_DIR says; the trimmed one in `golden/` holds the third image and parts
of the rest. `python golden_files.py FULL_DIR` makes it. Names and shapes are those of the full files; where rows
were dropped, `<name>__rows` says which are left.
"""

import os
import sys
from functools import cache
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

TRIMMED = Path(__file__).parent / "golden" / "trimmed.npz"
KINDS = ("mask_rcnn", "point_rend")
FOLDER = os.environ.get("CITYOPT_GOLDEN_DIR")

_DROPPED = (
    "meta",
    "p2_stats",
    "p3_stats",
    "p4_stats",
    "p5_stats",
    "p6_stats",
    "iso_mask_probs224_u16",
    "iso_mask224_index",
)
_ROWS = {
    "mask_probs": 8,
    "mask_probs224_u16": 2,
    "coarse_logits": 10,
    "points": 10,
    "point_logits": 10,
    "grid28_logits": 5,
    "iso_pool7_sample": 10,
    "iso_pool14_sample": 4,
    "iso_mask_logits": 6,
    "iso_coarse_logits": 6,
    "iso_points": 6,
    "iso_point_logits": 6,
    "iso_grid28_logits": 6,
    "iso_fine_sample": 6,
    "iso_step1_indices": 6,
    "iso_step1_logits": 2,
}


class Golden:
    """The stored arrays of one kind of network. What both kinds have in common, the trimmed file keeps once."""

    def __init__(self, kind: str) -> None:
        if FOLDER:
            with np.load(Path(FOLDER) / f"golden_{kind}.npz") as full:
                self.arrays = dict(full)
        else:
            with np.load(TRIMMED) as trimmed:
                shared, own = ({k: trimmed[k] for k in trimmed if k.startswith(p)} for p in (KINDS[0], kind))
            self.arrays = {key.partition("/")[2]: array for part in (shared, own) for key, array in part.items()}

    def __getitem__(self, name: str) -> NDArray:
        return self.arrays[name]

    def rows(self, name: str) -> NDArray[np.int64]:
        """Return which rows of the full file an array holds."""
        return self.arrays.get(f"{name}__rows", np.arange(len(self.arrays[name])))

    @property
    def images(self) -> list[str]:
        """The images' prefixes, such as `im2`."""
        return sorted(
            name.removesuffix("_image") for name in self.arrays if name.startswith("im") and name.endswith("_image")
        )


@cache
def read_golden(kind: str) -> Golden:
    """Read the full files where there are some, else the trimmed ones."""
    return Golden(kind)


def trim(folder: Path) -> dict[str, NDArray]:
    """Return the arrays of the trimmed file."""
    kept: dict[str, NDArray] = {}
    for kind in KINDS:
        with np.load(folder / f"golden_{kind}.npz") as full:
            for name in full:
                short = name.removeprefix("im2_")
                if name.startswith(("im0", "im1")) or short in _DROPPED:
                    continue
                if kind != KINDS[0] and name in full and _is_same(kept.get(f"{KINDS[0]}/{name}"), full[name]):
                    continue
                count = _ROWS.get(short, len(full[name]) if full[name].ndim else 0)
                kept[f"{kind}/{name}"] = full[name][:count] if full[name].ndim else full[name]
                if full[name].ndim and count < len(full[name]):
                    kept[f"{kind}/{name}__rows"] = np.arange(count)
    return kept


def _is_same(a: NDArray | None, b: NDArray) -> bool:
    return a is not None and np.array_equal(a, b)


if __name__ == "__main__":
    TRIMMED.parent.mkdir(exist_ok=True)
    np.savez_compressed(TRIMMED, **trim(Path(sys.argv[1])))
    print(TRIMMED, TRIMMED.stat().st_size)
