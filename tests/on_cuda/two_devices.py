"""Models on a GPU that is not the current one, and two GPUs at a time. Run by test_other_devices.py."""

from __future__ import annotations

import copy
import threading

import numpy as np
import pytest

import xpnet as xn
from tests.on_cuda.networks import BYTES, IMAGES, LABELS, bits, fitted, network, trainer
from xpnet.backend import DeviceError, device, device_of
from xpnet.data import ByteImages

pytestmark = pytest.mark.cuda


@pytest.fixture(autouse=True)
def first_is_current():
    """Every test begins and ends with cuda:0 as the current device."""
    import cupy

    if cupy.cuda.runtime.getDeviceCount() < 2:
        pytest.skip("needs two GPUs")
    assert cupy.cuda.runtime.getDevice() == 0
    yield
    assert cupy.cuda.runtime.getDevice() == 0


@pytest.fixture(scope="module")
def on_first():
    return fitted("cuda")


def data(where, kind):
    if kind == "bytes":
        return ByteImages(BYTES, device=where), LABELS
    return xn.to_device(IMAGES, where), xn.to_device(LABELS, where)


@pytest.mark.parametrize("capture", [True, False])
@pytest.mark.parametrize("kind", ["arrays", "bytes"])
@pytest.mark.parametrize("where", ["cpu", "cuda", "cuda:1"])
def test_a_model_on_the_second_device_learns_as_on_the_first(where, kind, capture):
    expected = fitted("cuda", data("cuda", kind), capture=capture)
    run = fitted("cuda:1", data(where, kind), capture=capture)
    assert bits(run.model) == bits(expected.model)
    assert run.history == expected.history
    assert {str(device_of(array)) for array in run.model.state().values()} == {"cuda:1"}


def test_steps_evaluation_and_validation_run_there(on_first):
    import cupy

    x, y = data("cuda:1", "arrays")
    run = trainer(network("cuda:1"))
    run.fit((x, y), validation=(x, y), epochs=3, batch_size=16, verbose=False)
    assert bits(run.model) == bits(on_first.model)
    assert run.evaluate((x, y)) == run.evaluate((IMAGES, LABELS)) == on_first.evaluate((IMAGES, LABELS))
    loss = run.step(x[:16], y[:16])
    assert loss.device == cupy.cuda.Device(1)
    first = fitted("cuda")
    assert float(loss) == float(first.step(*(xn.to_device(a[:16], "cuda") for a in (IMAGES, LABELS))))
    assert bits(run.model) == bits(first.model)


@pytest.mark.parametrize("batch_size", [256, 16])
@pytest.mark.parametrize("where", ["cpu", "cuda", "cuda:1"])
def test_predictions_are_returned_where_the_examples_are(where, batch_size):
    expected = xn.to_numpy(network("cuda").predict(xn.to_device(IMAGES, "cuda"), batch_size))
    model, x = network("cuda:1"), xn.to_device(IMAGES, where)
    for _ in range(3):  # as usual, recorded, replayed
        found = model.predict(x, batch_size)
        assert str(device_of(found)) == where
        np.testing.assert_array_equal(xn.to_numpy(found), expected)


def test_arrays_on_the_wrong_device_are_named():
    model = network("cuda:1")
    x = xn.to_device(IMAGES, "cuda")
    with pytest.raises(DeviceError, match=r"the model is on cuda:1, but its input on cuda; .*to_device\(x, 'cuda:1'\)"):
        model(x)
    with pytest.raises(DeviceError, match="the model is on cuda:1, but its input on cpu"):
        trainer(model).step(IMAGES, LABELS)
    with pytest.raises(DeviceError, match=r'runs on cuda:0, the current device, .* `with xpnet.device\("cuda:1"\)`'):
        model(xn.to_device(IMAGES, "cuda:1"))


def test_a_loop_of_ones_own_runs_inside_a_with_block():
    results = []
    for where in ("cuda", "cuda:1"):
        model, optimizer = network(where), xn.optim.Adam(0.01)
        with xn.device(where):
            for _ in range(3):
                loss = xn.losses.softmax_cross_entropy(model(xn.to_device(IMAGES, where)), xn.to_device(LABELS, where))
                loss.backward()
                optimizer.step(model)
        results.append(bits(model))
    assert results[0] == results[1]


def test_models_move_between_devices_with_every_bit(on_first, tmp_path):
    model = copy.deepcopy(on_first.model)
    expected = bits(model)
    for where in ("cuda:1", "cpu", "cuda:1", "cuda"):
        model.to(where)
        assert {str(device_of(array)) for array in model.state().values()} == {where}
        assert bits(model) == bits(copy.deepcopy(model)) == expected
        model.save(tmp_path / "model.xpnet")
        for other in ("cpu", "cuda", "cuda:1"):
            loaded = xn.load(tmp_path / "model.xpnet", other)
            assert bits(loaded) == expected
            assert {str(device_of(array)) for array in loaded.state().values()} == {other}
            fresh = network(other, seed=9)
            fresh.load_state(model.state())
            assert bits(fresh) == expected


@pytest.mark.parametrize(("source", "target"), [("cuda", "cuda:1"), ("cuda:1", "cuda")])
def test_a_copy_between_devices_waits_for_both(source, target):
    """The copy must see what is still being written, and be done before the memory is used again."""
    import cupy

    with device(source), cupy.cuda.Stream(non_blocking=True):
        x = cupy.zeros(1 << 16, cupy.float32)
        for _ in range(20):
            x += 1
        moved = xn.to_device(x, target)
        x.fill(-1)
        cupy.cuda.get_current_stream().synchronize()
    assert str(device_of(moved)) == target
    np.testing.assert_array_equal(cupy.asnumpy(moved), 20)


def test_moved_in_the_middle_of_training():
    expected = fitted("cuda", epochs=4)
    run = fitted("cuda", epochs=2)
    run.model.to("cuda:1")
    run.fit((IMAGES, LABELS), epochs=2, batch_size=16, verbose=False)
    assert bits(run.model) == bits(expected.model)


def test_inspection_runs_there():
    x, y = data("cuda:1", "arrays")
    run = fitted("cuda:1")
    before = bits(run.model)
    assert xn.inspect.diagnose(run.model, x, y) == xn.inspect.diagnose(run.model, x, y)
    assert xn.inspect.profile(run.model, x, y, steps=1).step > 0
    assert xn.inspect.activations(run.model, x)
    assert xn.inspect.saliency(run.model, x).shape[0] == len(x)
    assert xn.inspect.monte_carlo(run.model, x, 2).mean.shape == (40, 4)
    xn.inspect.layer_gradients(run.model, "softmax_cross_entropy", x, y)
    run.model.summary(batch_size=4, show=False)
    assert bits(run.model) == before


def test_two_threads_train_on_two_devices(on_first):
    found, barrier = {}, threading.Barrier(2)

    def work(where):
        barrier.wait()
        found[where] = fitted(where)

    threads = [threading.Thread(target=work, args=(where,)) for where in ("cuda", "cuda:1")]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for where in ("cuda", "cuda:1"):
        assert bits(found[where].model) == bits(on_first.model)
        assert found[where].history == on_first.history


def test_threads_have_current_devices_of_their_own():
    import cupy

    inside, leave, seen = threading.Event(), threading.Event(), []

    def work():
        with xn.device("cuda:1"):
            inside.set()
            leave.wait()
            seen.append(cupy.cuda.runtime.getDevice())
        seen.append(cupy.cuda.runtime.getDevice())

    thread = threading.Thread(target=work)
    with xn.device("cuda:1"), xn.device("cuda:0"):
        thread.start()
        inside.wait()
        assert cupy.cuda.runtime.getDevice() == 0
    with xn.device("cuda:1"):
        leave.set()
        thread.join()
        assert cupy.cuda.runtime.getDevice() == 1
    assert seen == [1, 0]
