import numpy as np
import pytest

import xpnet as xn


def test_weights_go_from_one_model_to_another(tmp_path):
    path = tmp_path / "w.safetensors"
    a, b = xn.models.cnn((8, 8, 1), 10, seed=0), xn.models.cnn((8, 8, 1), 10, seed=1)
    x = np.random.default_rng(0).random((4, 8, 8, 1), np.float32)
    assert not np.array_equal(a.predict(x), b.predict(x))
    a.save_weights(path)
    b.load_weights(path)
    np.testing.assert_array_equal(a.predict(x), b.predict(x))


def test_other_libraries_read_them(tmp_path):
    from safetensors.numpy import load_file

    model = xn.models.mlp((4,), 3)
    model.save_weights(tmp_path / "w")
    assert {name: a.shape for name, a in load_file(tmp_path / "w").items()} == {
        name: p.shape for name, p in model.parameters().items()
    }


def test_weights_that_do_not_fit_change_nothing(tmp_path):
    path = tmp_path / "w.safetensors"
    xn.models.mlp((5,), 3).save_weights(path)
    model = xn.models.mlp((4,), 3)
    before = {name: xn.to_numpy(a).copy() for name, a in model.state().items()}
    with pytest.raises(ValueError, match=r"w\.safetensors: .*0\.kernel: \(5, 32\), expected \(4, 32\)"):
        model.load_weights(path)
    for name, array in model.state().items():
        np.testing.assert_array_equal(array, before[name])
    xn.Sequential([xn.Dense(32)], input_shape=(4,)).save_weights(path)
    with pytest.raises(ValueError, match=r"missing 1\.bias"):
        model.load_weights(path)
    model.load_weights(path, strict=False)


def test_damaged_weights(tmp_path):
    path = tmp_path / "w.safetensors"
    model = xn.models.mlp((4,), 3)
    model.save_weights(path)
    content = path.read_bytes()
    for damaged in (b"", content[: len(content) // 2], b"\xff" * 8 + content[8:]):
        path.write_bytes(damaged)
        with pytest.raises(ValueError, match=r"w\.safetensors: truncated, damaged"):
            model.load_weights(path)
    with pytest.raises(FileNotFoundError):
        model.load_weights(tmp_path / "nothing")
    with pytest.raises(ValueError, match="input_shape"):
        xn.Sequential([xn.Dense(2)]).save_weights(path)
