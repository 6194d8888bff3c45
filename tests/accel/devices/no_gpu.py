"""With a driver and without a GPU: tests/accel/test_cupy_devices.py runs it on the software device."""

from __future__ import annotations

import numpy as np
import pytest

import xpnet as xn
from xpnet import backend


def test_the_driver_reports_no_gpu():
    for call in (
        lambda: backend.device("cuda"),
        lambda: backend.device("cuda:1"),
        lambda: xn.to_device(np.zeros(2), "cuda"),
        lambda: xn.Sequential([xn.Dense(2)], input_shape=(3,), device="cuda"),
    ):
        with pytest.raises(xn.DeviceError, match=r'the NVIDIA driver reports no GPU .*; use device="cpu"') as raised:
            call()
        assert "\n" not in str(raised.value)


def test_the_cpu_is_usable():
    model = xn.Sequential([xn.Dense(2)], input_shape=(3,))
    assert model.predict(np.zeros((4, 3), np.float32)).shape == (4, 2)
