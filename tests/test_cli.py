import csv
import itertools
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

import xpnet as xn
from tests.command_line import say
from tests.optional import optional
from xpnet.cli import info, main
from xpnet.cli.training_recipes import RECIPES, warm_cosine

ROOT = Path(__file__).parents[1]
ENVIRONMENT = {**os.environ, "PYTHONPATH": str(ROOT)}
COMMAND = [sys.executable, "-c", "import sys, xpnet.cli; sys.exit(xpnet.cli.main())"]

NETS = """
import xpnet as xn

class Scaled(xn.Module):
    def __init__(self, factor, classes):
        self.factor, self.inner = factor, xn.Dense(classes)

    def forward(self, x):
        return self.inner(x) * self.factor

def plain(input_shape, classes):
    return xn.Sequential([xn.Flatten(), xn.Dense(classes)], input_shape=input_shape)

def own(classes, seed):
    return xn.Sequential([xn.Flatten(), Scaled(2.0, classes)], seed=seed)

def unsaved(input_shape, classes):
    return xn.Sequential([xn.Flatten(), lambda x: x * 2.0, xn.Dense(classes)], input_shape=input_shape)

def narrow():
    return xn.Sequential([xn.Flatten(), xn.Dense(2)])

def broken(input_shape):
    return undefined_name

def nothing():
    return 3

def greedy(input_shape, width, depth):
    return None
"""


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs") / "iris"
    assert main(["train", "iris", "--epochs", "20", "--out", str(folder)]) == 0
    return folder


@pytest.fixture
def nets(tmp_path):
    path = tmp_path / "nets.py"
    path.write_text(NETS)
    return path


def history(folder):
    return list(csv.DictReader((folder / "history.csv").read_text().splitlines()))


LEFT = {"model.xpnet", "history.csv", "config.toml", "run.json", "report.html", "checkpoints"}


def found_in(pattern: str, text: str) -> re.Match[str]:
    """Return the first match, which there must be."""
    match = re.search(pattern, text)
    assert match is not None, text
    return match


def test_a_run_leaves_everything(trained):
    rows = history(trained)
    assert [row["epoch"] for row in rows] == [str(i) for i in range(1, 21)]
    assert set(rows[0]) == {"epoch", "loss", "accuracy", "val_loss", "val_accuracy"}
    assert float(rows[-1]["loss"]) < float(rows[0]["loss"])
    model = xn.load(trained / "model.xpnet")
    assert model.predict(np.zeros((1, 4), np.float32)).shape == (1, 3)
    names = {p.name for p in trained.iterdir()}
    pictures = {"learning_curves.png", "confusion_matrix.png"}
    assert names - pictures == LEFT
    try:
        import matplotlib  # noqa: F401
    except ImportError:
        assert not names & pictures
    else:
        assert pictures <= names


def test_what_train_prints(tmp_path, capsys):
    code, out, err = say(capsys, "train", "iris", "--epochs", "3", "--seed", "4", "--out", tmp_path / "o")
    assert code == 0
    assert "120 examples to train on, 30 to test, 3 classes" in out
    assert re.search(r"Dense +32 +32 +160", out)
    assert "seed 4, on cpu" in out
    assert re.search(r"test accuracy \d+\.\d\d % \(\d+ of 30\)", out)
    assert [line.split()[1] for line in err.splitlines()] == ["1/3", "2/3", "3/3"]


def test_the_same_seed_gives_the_same_model(tmp_path, capsys):
    for name, seed in (("a", 3), ("b", 3), ("c", 5)):
        say(capsys, "train", "iris", "--epochs", "2", "--seed", seed, "--out", tmp_path / name)
    a, b, c = ((tmp_path / name / "model.xpnet").read_bytes() for name in "abc")
    assert a == b != c


def test_without_out_the_next_free_folder_is_used(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for _ in range(2):
        assert say(capsys, "train", "iris", "--epochs", "1")[0] == 0
    assert sorted(p.name for p in (tmp_path / "runs").iterdir()) == ["iris-mlp", "iris-mlp-2"]


def test_evaluate_agrees_with_training(trained, capsys):
    last = history(trained)[-1]
    code, out, _ = say(capsys, "evaluate", trained / "model.xpnet")
    assert code == 0
    assert f"test accuracy {float(last['val_accuracy']):.2%}".replace("%", " %") in out
    assert f"loss {float(last['val_loss']):.4g}" in out


def test_predict_features(trained, tmp_path, capsys):
    dataset = xn.data.load("iris")
    np.save(tmp_path / "one.npy", dataset.test[0][0])
    np.save(tmp_path / "many.npy", dataset.test[0].astype(np.float64))
    code, out, _ = say(capsys, "predict", trained / "model.xpnet", tmp_path / "one.npy", tmp_path / "many.npy")
    assert code == 0
    lines = out.splitlines()
    assert len(lines) == 31
    assert lines[0].split("one.npy")[1] == lines[1].split("[0]")[1]
    saved = xn.io.model_file.read(trained / "model.xpnet")
    assert saved.preprocessing is not None
    p = xn.ops.softmax(saved.model.predict(saved.preprocessing(dataset.test[0])))
    for line, row in zip(lines[1:], p):
        assert line.endswith(f"  {saved.class_names[row.argmax()]}  {100 * row.max():.1f} %")


def test_predict_images(tmp_path, capsys):
    image = optional("PIL.Image")
    assert say(capsys, "train", "digits", "--model", "mlp", "--epochs", "4", "--out", tmp_path)[0] == 0
    x, y = xn.data.load("digits").test
    pixels = np.round(x[:5, :, :, 0] * 255).astype(np.uint8)
    paths = [tmp_path / f"{i}.png" for i in range(5)]
    for path, p in zip(paths, pixels):
        image.fromarray(p).save(path)
    np.save(tmp_path / "bytes.npy", pixels)
    np.save(tmp_path / "floats.npy", pixels[..., None] / 255)
    code, out, _ = say(capsys, "predict", tmp_path / "model.xpnet", *paths, tmp_path / "bytes.npy", tmp_path / "floats.npy")
    assert code == 0
    said = [line.split("  ", 1)[1] for line in out.splitlines()]
    assert said[:5] == said[5:10] == said[10:]
    assert sum(s.split()[0] == str(label) for s, label in zip(said, y)) >= 4
    big = image.fromarray(pixels[0]).convert("RGB").resize((64, 48))
    big.save(tmp_path / "big.jpg")
    assert say(capsys, "predict", tmp_path / "model.xpnet", tmp_path / "big.jpg")[0] == 0


def test_summary(trained, capsys, nets):
    code, out, _ = say(capsys, "summary", "cnn", "--input", "28,28,1", "--batch-size", "128")
    assert code == 0
    assert "34,826" in out
    assert "memory for batches of 128" in out
    code, out, _ = say(capsys, "summary", trained / "model.xpnet")
    assert code == 0
    assert "dataset iris" in out
    assert "739" in out
    code, out, _ = say(capsys, "summary", f"{nets}:own", "--input", "4x4x1", "--classes", "3")
    assert code == 0
    assert re.search(r"1\.inner +Dense +3 +3 +51", out)


def test_info(capsys, monkeypatch):
    code, out, _ = say(capsys, "info")
    assert code == 0
    assert xn.__version__ in out
    assert re.search(r"accelerations for numpy: .*conv2d", out)
    assert re.search(r"^cuda +\S", out, re.M)
    with xn.ops.reference_only():
        assert "accelerations are off" in say(capsys, "info")[1]


def test_user_networks(nets, tmp_path, capsys):
    for function in ("plain", "own"):
        out = tmp_path / function
        assert say(capsys, "train", "iris", "--model", f"{nets}:{function}", "--epochs", "1", "--out", out)[0] == 0
    assert say(capsys, "evaluate", tmp_path / "plain" / "model.xpnet")[0] == 0
    code, _, err = say(capsys, "evaluate", tmp_path / "own" / "model.xpnet")
    assert code == 2
    assert "needs the class Scaled of your own: name the file that defines it with --code FILE.py" in err
    assert say(capsys, "evaluate", tmp_path / "own" / "model.xpnet", "--code", nets)[0] == 0
    assert "nets" not in sys.modules


WRONG = [
    ([], "required: COMMAND"),
    (["fly"], "invalid choice: 'fly'"),
    (["train"], "give a data set, such as: xpnet train digits"),
    (["train", "digitz"], 'did you mean "digits"?'),
    (["train", "iris", "--epochs", "0"], "--epochs: expected a whole number of at least 1, got '0'"),
    (["train", "iris", "--batch-size", "many"], "--batch-size: expected a whole number of at least 1, got 'many'"),
    (["train", "iris", "--learning-rate", "-1"], "--learning-rate: expected a number above 0, such as 0.001, got '-1'"),
    (["train", "iris", "--learning-rate", "nan"], "expected a number above 0"),
    (["train", "iris", "--seed", "x"], "--seed: expected a whole number of at least 0"),
    (["train", "iris", "--device", "tpu"], "--device: expected cpu, cuda or cuda:N, got 'tpu'"),
    (["train", "iris", "--model", "rnn"], "expected mlp, cnn or PATH.py:function"),
    (["train", "iris", "--model", "cnn"], "use the mlp"),
    (["train", "iris", "--model", "nets.py"], "add the function that builds the network, such as nets.py:make"),
    (["train", "iris", "--model", "missing.py:net"], "missing.py: no such file"),
    (["train", "iris", "--model", "{nets}:other"], "has no function 'other'; it has plain, own"),
    (["train", "iris", "--model", "{nets}:unsaved"], "a lambda cannot be written"),
    (["train", "iris", "--model", "{nets}:narrow"], "gives outputs of shape (2,), iris needs (3,)"),
    (["train", "iris", "--model", "{nets}:broken"], "line 24: NameError: name 'undefined_name' is not defined"),
    (["train", "iris", "--model", "{nets}:nothing"], "returned a int, expected an xpnet Module"),
    (["train", "iris", "--model", "{nets}:greedy"], "needs width, depth"),
    (["train", "iris", "--model", "{bad}:net"], "line 1: SyntaxError"),
    (["train", "mnist", "--data", "{folder}"], "train-images-idx3-ubyte"),
    (["train", "iris", "--out", "{bad}"], "is a file; expected a folder"),
    (["train", "iris", "--surprise"], "unrecognized arguments: --surprise"),
    (["evaluate", "missing.xpnet"], "missing.xpnet: No such file"),
    (["evaluate", "{bad}"], "not a file of xpnet"),
    (["evaluate", "{model}", "digits"], "digits has (8, 8, 1) and 10"),
    (["predict", "{model}"], "required: IMAGE"),
    (["predict", "{model}", "missing.npy"], "missing.npy: No such file"),
    (["predict", "{model}", "{bad}"], "takes 4 features, not images"),
    (["predict", "{model}", "{folder}/wrong.npy"], "holds an array of shape (5,), expected (4,) or (N, 4)"),
    (["predict", "{model}", "{folder}/text.npy"], "holds <U1, expected numbers"),
    (["predict", "{model}", "{folder}/foreign.npy"], "not a readable .npy file"),
    (["summary", "cnn"], "add --input, such as --input 28,28,1"),
    (["summary", "cnn", "--input", "28,28,one"], "expected sizes separated by commas"),
    (["summary", "resnet"], "no such file or network; expected a model file, mlp, cnn or PATH.py:function"),
    (["summary", "cnn", "--input", "2,2,1"], "layer '5' (MaxPool2D)"),
    (["examples", "unknown"], "unknown example 'unknown'"),
]


@pytest.mark.parametrize(("words", "says"), WRONG, ids=lambda value: " ".join(value) if isinstance(value, list) else "")
def test_wrong_arguments_are_one_line_and_exit_code_2(words, says, capsys, nets, trained, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "bad.py").write_text("def (\n")
    np.save(tmp_path / "wrong.npy", np.zeros(5))
    np.save(tmp_path / "text.npy", np.array(["a"]))
    (tmp_path / "foreign.npy").write_bytes(b"nonsense")
    monkeypatch.setenv("XPNET_CACHE", str(tmp_path / "cache"))
    places = {"nets": nets, "bad": tmp_path / "bad.py", "folder": tmp_path, "model": trained / "model.xpnet"}
    code, out, err = say(capsys, *[word.format(**places) for word in words])
    assert code == 2
    assert says in err
    assert err.count("\n") == 1
    assert "Traceback" not in err
    assert out == ""
    assert not (tmp_path / "runs").exists()


def test_a_diverging_run_says_so(tmp_path, capsys):
    code, _, err = say(capsys, "train", "iris", "--learning-rate", "1e30", "--out", tmp_path / "o")
    assert code == 1
    assert "the loss became" in err.splitlines()[-1]
    assert "Traceback" not in err


def test_no_gpu_is_one_line(tmp_path, capsys):
    if info._gpus().startswith("cuda:"):
        pytest.skip("there is a GPU")
    code, _, err = say(capsys, "train", "iris", "--device", "cuda", "--out", tmp_path / "o")
    assert code == 2
    assert 'device "cuda"' in err
    assert not (tmp_path / "o").exists()


def test_without_matplotlib_one_line_names_the_missing_pictures(tmp_path, capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    code, out, _ = say(capsys, "train", "iris", "--epochs", "1", "--out", tmp_path / "o")
    assert code == 0
    lines = [line for line in out.splitlines() if "without matplotlib" in line]
    assert len(lines) == 1
    assert all(part in lines[0] for part in ("learning_curves.png", "confusion_matrix.png", 'pip install "xpnet[plot]"'))
    assert {p.name for p in (tmp_path / "o").iterdir()} == LEFT


def test_ctrl_c_keeps_the_training(tmp_path):
    out = tmp_path / "o"
    words = ["train", "digits", "--model", "mlp", "--epochs", "100000", "--out", str(out)]
    process = subprocess.Popen(COMMAND + words, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=ENVIRONMENT)
    try:
        assert process.stderr is not None
        seen = [process.stderr.readline() for _ in range(3)]
        assert seen[2].startswith("epoch 3/100000")
        process.send_signal(signal.SIGINT)
        stdout, stderr = process.communicate(timeout=120)
    finally:
        process.kill()
    assert process.returncode == 130  # so that `xpnet train ... && next` does not go on
    assert "stopped by Ctrl-C" in stdout
    assert "Traceback" not in stderr
    rows = history(out)
    assert len(rows) >= 3
    assert xn.load(out / "model.xpnet").predict(np.zeros((1, 8, 8, 1), np.float32)).shape == (1, 10)


def test_a_closed_pipe_is_no_error():
    command = subprocess.Popen([*COMMAND, "info"], stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=ENVIRONMENT)
    assert command.stdout is not None
    assert command.stderr is not None
    command.stdout.close()
    assert b"Traceback" not in command.stderr.read()
    command.stderr.close()
    command.wait()


def test_help_is_quick_and_imports_little():
    code = (
        "import sys, xpnet.cli\n"
        "try: xpnet.cli.main(['train', '--help'])\n"
        "except SystemExit: pass\n"
        "print([m for m in ('cupy', 'matplotlib', 'scipy', 'PIL', 'safetensors') if m in sys.modules])\n"
    )
    out = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True, env=ENVIRONMENT).stdout
    assert "--learning-rate" in out
    assert out.splitlines()[-1] == "[]"


def test_the_learning_rate_rises_and_falls():
    rate = warm_cosine(0.1, 100)
    values = [rate(step) for step in range(100)]
    assert values[9] == max(values) == pytest.approx(0.1)
    assert values[0] == pytest.approx(0.01)
    assert values[-1] < 1e-4
    assert all(a < b for a, b in itertools.pairwise(values[:10]))
    assert all(a > b for a, b in itertools.pairwise(values[10:]))
    assert rate(1000) == 0
    assert warm_cosine(0.1, 1)(0) == pytest.approx(0.1)


def test_there_is_a_recipe_for_every_data_set():
    assert set(xn.data.names()) <= set(RECIPES)


def test_iris_is_learnt(tmp_path, capsys):
    right = []
    for seed in range(5):
        _, out, _ = say(capsys, "train", "iris", "--seed", seed, "--out", tmp_path)
        right.append(int(found_in(r"\((\d+) of 30\)", out)[1]))
    assert np.mean(right) / 30 >= 0.95


def test_digits_begin_to_be_learnt(tmp_path, capsys):
    began = time.perf_counter()
    code, out, _ = say(capsys, "train", "digits", "--epochs", "3", "--out", tmp_path)
    assert code == 0
    assert int(found_in(r"\((\d+) of 359\)", out)[1]) >= 0.93 * 359, f"{time.perf_counter() - began:.0f} s"


@pytest.mark.slow
def test_digits_are_learnt(tmp_path, capsys):
    right = []
    for seed in range(5):
        _, out, _ = say(capsys, "train", "digits", "--seed", seed, "--out", tmp_path)
        right.append(int(found_in(r"\((\d+) of 359\)", out)[1]))
    assert np.mean(right) / 359 >= 0.985
