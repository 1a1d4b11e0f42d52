from __future__ import annotations

import numpy as np
import pytest
from frames import trials

from distsparse.results import importance


def study(num_trials=150, noise=0.0):
    rng = np.random.default_rng(0)
    alpha, lr = rng.random(num_trials), rng.random(num_trials)
    name = rng.choice(["rigl", "set"], num_trials)
    accuracy = 3 * alpha + 1.0 * (name == "rigl") + noise * rng.normal(size=num_trials)
    rows = zip(alpha, lr, name, accuracy, strict=True)
    return trials(
        *({"method.alpha": a, "optimizer.lr": b, "method.name": n, "accuracy": y} for a, b, n, y in rows)
    )


def test_importances_are_shares_of_the_variance():
    table = importance(study(), num_trees=60, num_repeats=5)
    assert table["setting"].tolist() == ["method.alpha", "method.name", "optimizer.lr"]
    # Shuffling an additive term of variance v costs a perfect model 2 v: 9/12 and 1/4 of their sum 1.
    assert table["importance"].tolist() == pytest.approx([1.5, 0.5, 0.0], abs=0.2)
    assert table["explained"][0] > 0.95
    assert (table["sd"] >= 0).all()


def test_the_number_of_a_member_is_no_setting():
    frame = study(40).assign(**{"population.id": "abc", "population.member": range(40)})
    table = importance(frame, num_trees=20, num_repeats=1)
    assert set(table["setting"]) == {"method.alpha", "method.name", "optimizer.lr"}


def test_noise_explains_nothing():
    frame = study().assign(accuracy=np.random.default_rng(1).random(150))
    table = importance(frame, num_trees=40, num_repeats=2)
    assert table["explained"][0] < 0.2
    assert table["importance"].max() < 0.3


def test_too_little_to_weigh_is_refused():
    with pytest.raises(ValueError, match="19 completed trials with accuracy: importance needs 20 or more"):
        importance(study(19))
    with pytest.raises(ValueError, match="same settings"):
        importance(trials(*({"accuracy": 0.5, "seed": seed} for seed in range(20))))
    with pytest.raises(ValueError, match="unknown column 'acc'"):
        importance(study(20), "acc")


def test_null_is_a_value():
    rows = [
        {"method.name": "a", "method.x": None if i % 2 else 0.5, "accuracy": float(i % 2)} for i in range(40)
    ]
    table = importance(trials(*rows), num_trees=20, num_repeats=2)
    assert table["setting"].tolist() == ["method.x"]
    assert table["explained"][0] == pytest.approx(1)
