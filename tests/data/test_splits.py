"""Parts that stay when the data grow."""

from __future__ import annotations

import numpy as np
import pytest

from xpnet.data.splits import TEST, TRAIN, VALIDATION, divide, few_differ, hashes, row_hashes, spread_repetitions


def data(count, seed=0):
    rng = np.random.default_rng(seed)
    return rng.normal(size=(count, 3)).astype(np.float32), rng.integers(0, 4, count)


def test_hashes_are_the_same_everywhere():
    assert hashes([b"cat/1.png", b""]).tolist() == [904424096894533348, 13020603013274838756]
    assert row_hashes(np.array([[0.0, 1.5]], np.float64)).tolist() == row_hashes(np.array([[-0.0, 1.5]], np.float32)).tolist()
    assert row_hashes(np.zeros((2, 3, 4))).shape == (2,)


@pytest.mark.parametrize("seed", range(20))
def test_more_data_move_nothing_from_the_training_into_the_test_part(seed):
    rng = np.random.default_rng(seed)
    x, y = data(int(rng.integers(20, 400)), seed)
    found = row_hashes(x)
    first = int(rng.integers(16, len(x)))
    before = divide(found[:first], y[:first], test=0.2)
    kept = rng.permutation(len(x))  # the new rows are anywhere
    after = np.empty(len(x), np.int8)
    after[kept] = divide(found[kept], y[kept], test=0.2)
    several = np.array([len(np.unique(found[:first][y[:first] == label])) > 1 for label in y[:first]])
    assert not ((before == TRAIN) & (after[:first] == TEST) & several).any()


def test_the_parts_have_their_shares_and_no_class_is_left_out():
    x, y = data(4000)
    parts = divide(row_hashes(x), y, test=0.2, validation=0.1)
    assert np.mean(parts == TEST) == pytest.approx(0.2, abs=0.02)
    assert np.mean(parts == VALIDATION) == pytest.approx(0.08, abs=0.015)
    for count in range(2, 30):
        small = row_hashes(data(count, count)[0])
        parts = divide(small, np.zeros(count, int), test=0.2)
        assert {TRAIN, TEST} == set(parts.tolist())


def test_validation_is_taken_from_the_training_part_alone():
    x, y = data(500)
    found = row_hashes(x)
    plain, held = divide(found, y, test=0.2), divide(found, y, test=0.2, validation=0.1)
    np.testing.assert_array_equal(plain == TEST, held == TEST)


def test_copies_stay_together_unless_a_table_is_of_few_cases():
    x = np.repeat(data(60)[0], 3, axis=0)
    found = row_hashes(x)
    assert not few_differ(found)
    assert few_differ(found[:57])
    parts = divide(found, np.zeros(180, int), test=0.2).reshape(60, 3)
    assert (parts == parts[:, :1]).all()
    truth = np.tile(np.array([[0, 0], [0, 1], [1, 0], [1, 1]], np.float32), (100, 1))
    y = truth.astype(int).sum(axis=1) % 2
    parts = divide(spread_repetitions(row_hashes(truth)), y, test=0.2)
    assert np.mean(parts == TEST) == pytest.approx(0.2, abs=0.06)
    assert len(np.unique(truth[parts == TRAIN], axis=0)) == 4
    longer = divide(spread_repetitions(row_hashes(np.concatenate([truth, truth]))), np.tile(y, 2), test=0.2)
    np.testing.assert_array_equal(longer[:400], parts)


def test_a_class_of_one_example_is_trained_on():
    assert divide(np.array([1], np.uint64), np.array([0]), test=0.2).tolist() == [TRAIN]
