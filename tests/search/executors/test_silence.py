"""The limit of silence follows from what was measured."""

from cityopt.search.executors.silence import HangRule, SilenceMeter

RULE = HangRule(limit_s=120.0, factor=10.0)


def test_limit_is_generous_until_the_job_has_finished_an_epoch():
    meter = SilenceMeter(RULE)
    assert meter.find_limit(has_epoch=False) == 1200.0
    meter.learn(300.0)  # a step on a slow CPU
    assert meter.find_limit(has_epoch=False) == 3000.0


def test_limit_follows_the_longest_silence_when_an_epoch_is_done():
    meter = SilenceMeter(RULE)
    meter.learn(2.0)
    meter.learn(0.1)
    assert meter.find_limit(has_epoch=True) == 120.0
    meter.learn(30.0)
    meter.learn(1.0)
    assert meter.find_limit(has_epoch=True) == 300.0
    assert meter.find_limit(has_epoch=False) == 1200.0  # another job, which may have other images to decode
