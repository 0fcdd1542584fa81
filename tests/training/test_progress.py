import subprocess
import sys

from cityopt.training.progress import Progress, ProgressMeter


def test_progress_needs_no_torch_when_imported() -> None:
    code = "import sys, cityopt.training.progress; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_show_passes_on_few_reports_but_always_the_last_when_steps_are_quick() -> None:
    seen: list[Progress] = []
    meter = ProgressMeter(seen.append, epochs=5)
    meter.begin("train", 2, 1000, best=0.25)
    for step in range(1, 1001):
        meter.show(step, 1000, loss=1 / step)
    assert seen[0] == Progress("train", epochs=5, epoch=2, steps=1000, best=0.25)
    assert (seen[-1].step, seen[-1].loss) == (1000, 0.001)
    assert len(seen) < 10


def test_show_keeps_what_is_not_given() -> None:
    seen: list[Progress] = []
    meter = ProgressMeter(seen.append, epochs=1)
    meter.show(1, 1, loss=0.5, images_per_s=7.0)
    meter.show(2, 2)
    assert (seen[-1].loss, seen[-1].images_per_s) == (0.5, 7.0)


def test_show_does_nothing_when_nobody_watches() -> None:
    ProgressMeter(None, epochs=1).show(1, 1)
