"""The bench of quantised training, without its process."""

from __future__ import annotations

import pytest

from bench import quant
from bench.quant import CONFIG, EXACT, FORMS, FULL, QUICK, Learned, Learner
from distqat.config import load
from distqat.data.sources import open_source
from tests.support import run

EPOCHS = 0.05


@pytest.fixture(scope="module")
def learner() -> Learner:
    config = load(CONFIG, ["model.options={width: 4}"]).run_config()
    return Learner(config, open_source(config))


@pytest.mark.parametrize("form", FORMS)
def test_every_form_trains(learner: Learner, form: str) -> None:
    learned = run(learner.learn(form, 1, EPOCHS))
    assert 0 < learned.accuracy < 1
    assert learned.seconds > 0
    assert run(learner.learn(form, 1, EPOCHS)).accuracy == learned.accuracy


def test_what_is_lost_is_counted_in_points_of_the_same_seed() -> None:
    seconds = dict.fromkeys(FORMS, 2.0) | {EXACT: 1.0}
    accuracies = {form: [0.9, 0.95, 0.99] for form in FORMS} | {"lsq w8a8": [0.88, 0.95, 0.98]}
    found = {form: [Learned(value, seconds[form]) for value in values] for form, values in accuracies.items()}
    lines = {line.case.split(", ")[-1]: line for line in quant.lines(found, FULL)}
    assert lines["lsq w8a8: less than in fp32"].value == pytest.approx(1.0)
    assert not lines["lsq w8a8: less than in fp32"].ok
    assert lines["lsq w4a4: less than in fp32"].ok
    assert lines["lsq w4a4: CPU seconds"].ratio == 0.5
    assert all(line.goal is None for line in quant.lines(found, QUICK))
