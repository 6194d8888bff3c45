"""Random numbers: NumPy's Philox bits, streams by key and step, masks lane by lane."""

from __future__ import annotations

import hashlib

import numpy as np
import pytest

import xpnet as xn
from xpnet import random

MULTIPLIERS = (0xD2E7470EE14C6C93, 0xCA5A826395121157)
WEYL = (0x9E3779B97F4A7C15, 0xBB67AE8584CAA73B)
WORD = 2**64


def philox_4x64(counter, key):
    """Philox4x64-10 as the paper defines it (Salmon et al., 2011), on Python's integers."""
    c, k = list(counter), list(key)
    for _ in range(10):
        high0, low0 = divmod(MULTIPLIERS[0] * c[0], WORD)
        high1, low1 = divmod(MULTIPLIERS[1] * c[2], WORD)
        c = [high1 ^ c[1] ^ k[0], low1, high0 ^ c[3] ^ k[1], low0]
        k = [(k[0] + WEYL[0]) % WORD, (k[1] + WEYL[1]) % WORD]
    return c


@pytest.mark.parametrize("seed", [0, 1, -1, 2**64 - 1, 2**70 + 5])
@pytest.mark.parametrize("step", [0, 1, 2**32, 2**63])
def test_the_stream_is_the_papers(seed, step):
    key = random.key(seed, "layer", "dropout")
    expected = [word for block in range(1, 4) for word in philox_4x64([block, 0, step, 0], key)]
    assert [int(w) for w in random.philox(key, step).random_raw(12)] == expected


def test_a_key_is_the_seed_and_a_hash_of_the_path():
    assert random.key(7, "a", 1).low == 7
    assert random.key(-1).low == 2**64 - 1
    digest = hashlib.blake2b(b"a\x001", digest_size=8).digest()
    assert random.key(7, "a", 1).high == int.from_bytes(digest, "little")
    keys = {random.key(0), random.key(1), random.key(0, "a"), random.key(0, "b"), random.key(0, "a", "b"), random.key(0, "ab")}
    assert len(keys) == 6


@pytest.mark.parametrize("count", [0, 1, 3, 4, 5, 17])
@pytest.mark.parametrize("rate", [0.0, 0.25, 0.5, 1 / 3, 1.0])
def test_keep_mask_looks_at_one_lane_an_element(count, rate):
    key = random.key(3, "x")
    words = [word for block in range(1, 3) for word in philox_4x64([block, 0, 9, 0], key)]
    lanes = [(word >> shift) & 0xFFFF for word in words for shift in (0, 16, 32, 48)][:count]
    expected = [lane >= round(rate * 65536) for lane in lanes]
    mask = random.keep_mask(np, key, 9, (count,), rate)
    assert mask.dtype == bool
    assert xn.to_numpy(mask).tolist() == expected


def test_keep_mask_of_a_shape_is_the_row_of_its_elements():
    key = random.key(0)
    np.testing.assert_array_equal(
        xn.to_numpy(random.keep_mask(np, key, 1, (2, 3, 5), 0.4)).reshape(-1), random.keep_mask(np, key, 1, (30,), 0.4)
    )
    assert random.keep_mask(np, key, 1, (), 0.4).shape == ()
    assert xn.to_numpy(random.keep_mask(np, key, 0, (1000,), 0.0)).all()
    assert not xn.to_numpy(random.keep_mask(np, key, 0, (1000,), 1.0)).any()


def test_keep_mask_is_the_same_in_all_libraries(library):
    mask = random.keep_mask(library.xp, random.key(1), 2, (3, 7), 0.5, device=library.asarray(np.zeros(1)).device)
    np.testing.assert_array_equal(library.to_numpy(mask), random.keep_mask(np, random.key(1), 2, (3, 7), 0.5))


def test_permutation_is_a_function_of_seed_and_epoch():
    first = random.permutation(0, 0, 100)
    assert sorted(first) == list(range(100))
    np.testing.assert_array_equal(first, random.permutation(0, 0, 100))
    for other in (random.permutation(0, 1, 100), random.permutation(1, 0, 100)):
        assert (other != first).any()


def test_streams_do_not_overlap_and_look_independent():
    """Neighbouring steps and paths: no common word, and correlations of the size of chance."""
    streams = [random.generator(random.key(0, path), step).random(4096) for path in ("a", "b") for step in range(4)]
    assert len(np.unique(np.concatenate(streams))) == 8 * 4096
    correlations = np.corrcoef(streams) - np.eye(8)
    assert np.abs(correlations).max() < 5 / np.sqrt(4096)


def weights(layers, seed=0):
    model = xn.Sequential(layers, input_shape=(6, 6, 1), seed=seed)
    return {path: xn.to_numpy(p.array).copy() for path, p in model.parameters().items()}


def test_initial_weights_do_not_change_when_a_layer_is_appended():
    short = weights([xn.Conv2D(3, 3), xn.Flatten(), xn.Dense(5)])
    long = weights([xn.Conv2D(3, 3), xn.Flatten(), xn.Dense(5), xn.Dropout(0.5), xn.Dense(2)])
    assert set(short) < set(long)
    for path, values in short.items():
        np.testing.assert_array_equal(values, long[path])


def test_initial_weights_are_a_function_of_the_seed():
    one, two, other = (weights([xn.Conv2D(3, 3), xn.Flatten(), xn.Dense(5)], seed) for seed in (1, 1, 2))
    for path in one:
        np.testing.assert_array_equal(one[path], two[path])
        if path.endswith("kernel"):
            assert (one[path] != other[path]).all()


def test_two_layers_of_one_shape_begin_differently():
    model = xn.Sequential([xn.Dense(4), xn.Dense(4)], input_shape=(4,))
    assert (model.layers[0].kernel.array != model.layers[1].kernel.array).all()


def test_weights_of_float32_are_those_of_float64_rounded():
    """Made on the host in float64, so that every device and dtype begins alike."""
    wide = xn.Sequential([xn.Dense(4)], input_shape=(4,), dtype="float64").layers[0].kernel.array
    narrow = xn.Sequential([xn.Dense(4)], input_shape=(4,)).layers[0].kernel.array
    np.testing.assert_array_equal(narrow, wide.astype(np.float32))


def test_masks_differ_from_call_to_call_and_from_layer_to_layer():
    model = xn.Sequential([xn.Dropout(0.5), xn.Dropout(0.5)], input_shape=(200,))
    x = np.ones((1, 200), np.float32)
    first = model.layers[0](x)
    assert (first != model.layers[0](x)).any()
    assert (first != model.layers[1](x)).any()
    again = xn.Sequential([xn.Dropout(0.5), xn.Dropout(0.5)], input_shape=(200,))
    np.testing.assert_array_equal(first, again.layers[0](x))
    other = xn.Sequential([xn.Dropout(0.5)], input_shape=(200,), seed=1)
    assert (first != other.layers[0](x)).any()
