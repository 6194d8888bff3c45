"""Threads that train and predict on one device at the same time."""

from __future__ import annotations

import threading

import numpy as np
import pytest

import xpnet as xn
from tests.on_cuda.networks import IMAGES, LABELS, bits, bytes_in_use, fitted, network

pytestmark = pytest.mark.cuda


def in_threads(*works):
    """Run functions in threads of their own, from one moment on; return their results or raise their first error."""
    barrier, results, errors = threading.Barrier(len(works)), [None] * len(works), []

    def run(i, work):
        try:
            barrier.wait()
            results[i] = work()
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=run, args=item) for item in enumerate(works)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if errors:
        raise errors[0]
    return results


@pytest.mark.parametrize("capture", [True, False])
def test_two_models_are_trained_at_the_same_time(capture):
    data = [(IMAGES, LABELS), (IMAGES[::-1].copy(), LABELS[::-1].copy())]
    expected = [fitted(data=d, capture=capture) for d in data]
    found = in_threads(*(lambda d=d: fitted(data=d, capture=capture) for d in data))
    for one, other in zip(found, expected):
        assert bits(one.model) == bits(other.model)
        assert one.history == other.history


@pytest.mark.parametrize("where", ["cpu", "cuda"])
def test_threads_predict_with_one_model(where):
    import cupy

    model = network()
    inputs = [xn.to_device(IMAGES * (1 + i), where) for i in range(4)]
    expected = [xn.to_numpy(network().predict(x)) for x in inputs]

    def work(i):
        with cupy.cuda.Stream(non_blocking=True) if i % 2 else cupy.cuda.Stream.null:
            return [xn.to_numpy(model.predict(inputs[i])) for _ in range(12)]

    cupy.cuda.Device().synchronize()
    for found, right in zip(in_threads(*(lambda i=i: work(i) for i in range(4))), expected):
        for y in found:
            np.testing.assert_array_equal(y, right)


def test_one_thread_trains_and_another_predicts():
    model, x = network(seed=5), xn.to_device(IMAGES, "cuda")
    expected, right = fitted(), xn.to_numpy(model.predict(x))
    run, found = in_threads(fitted, lambda: [xn.to_numpy(model.predict(x)) for _ in range(20)])
    assert bits(run.model) == bits(expected.model)
    for y in found:
        np.testing.assert_array_equal(y, right)


def test_a_thread_that_has_ended_keeps_no_memory():
    model, x = network(), xn.to_device(IMAGES, "cuda")

    def work():
        model(x)  # on the stream that all threads share by default
        model.predict(x)

    for _ in range(3):  # as usual, recorded, replayed
        in_threads(work)
    before = bytes_in_use()
    for _ in range(3):
        in_threads(work, work)
    assert bytes_in_use() == before
