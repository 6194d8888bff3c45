"""``xpnet evaluate`` and ``xpnet predict``: use a saved model."""

from __future__ import annotations

import argparse
import csv
import io
import math
import sys
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from xpnet import backend, data, ops
from xpnet.backend import is_floating
from xpnet.cli import user_data
from xpnet.cli.argument_types import UsageError
from xpnet.cli.array_files import read_arrays
from xpnet.cli.hints import check_settings, own_of_this_name
from xpnet.cli.image_folders import is_grey, to_grey
from xpnet.cli.model_argument import example_shape, in_run_folder, read_model
from xpnet.cli.places import STARTED_IN, check_output, locate
from xpnet.cli.readings import Known, Reading, own_dataset, quoted_list
from xpnet.cli.table_files import read_rows
from xpnet.data import DataError, Dataset, tables
from xpnet.data.dataset import NumpyArray
from xpnet.data.image_files import ENDINGS, describe_left_out, image_files
from xpnet.data.images import read_pixels
from xpnet.data.inputs import default_record
from xpnet.data.splits import TEST, TRAIN, VALIDATION, row_hashes
from xpnet.io import archive
from xpnet.io.model_file import SavedModel
from xpnet.layers.not_finite import first_not_finite
from xpnet.optim import SGD
from xpnet.runtime.files import is_stream
from xpnet.runtime.messages import counted, were
from xpnet.training import Trainer

MOST_NOTES = 10


def evaluate(args: argparse.Namespace) -> int:
    """Print the loss and the accuracy on the test part of a data set, or on all examples of data that are new to the model."""
    saved = _usable_model(args)
    name = args.dataset or saved.metadata.get("dataset")
    if not isinstance(name, str):
        raise UsageError(f"{args.model} does not say what it was trained on; give a data set: {', '.join(data.names())}")
    if args.dataset is None and name not in data.names():
        name = locate(name, saved.metadata.get(STARTED_IN), "the data")
    check_settings(name, args.data, args.size, args.target, args.skip_bad)
    known = known_inputs(saved, args.model)
    size, target = args.size, args.target
    if known is None:
        size, target = size or saved.metadata.get("size"), target or saved.metadata.get("target")
    reading = user_data.read_own(name, size, target, args.skip_bad, known)
    trainer = Trainer(saved.model, loss="softmax_cross_entropy", optimizer=SGD(0.0), metrics=["accuracy"])

    def measure(x: Any, y: Any) -> dict[str, float]:
        prepared = user_data.preprocess(x, saved.preprocessing)
        with np.errstate(over="ignore", invalid="ignore"):  # what comes of it is reported better here
            values = trainer.evaluate((prepared, y), batch_size=args.batch_size)
        if not math.isfinite(values["loss"]):
            raise UsageError(_not_finite(args.model, saved, name, prepared))
        return values

    if args.dataset is not None and (note := own_of_this_name(name, args.data)):
        print(f"  {note}")
    if reading is None or known is None:
        dataset = user_data.find_dataset(name, args.data) if reading is None else own_dataset(reading)
        _check_fit(args.model, saved, dataset)
        x, y = dataset.test
        if reading is None:
            check_units(args.model, saved, dataset)
            if count := _trained_on_own(saved, dataset):
                print(f"  {count:,} of these {len(y):,} examples {were(count)} trained on")
        values = measure(x, y)
        print(f"{name}: {accuracy_text(round(values['accuracy'] * len(y)), len(y))}, loss {values['loss']:.4g}")
        return 0
    rows, notes, fresh = _examples_to_measure(reading, known, _is_same(name, saved.metadata))
    for note in (*reading.notes, *notes):
        print(f"  {note}")
    values = measure(reading.x[rows], reading.y[rows])
    words = accuracy_text(round(values["accuracy"] * len(rows)), len(rows))
    print(f"{name}: {words if fresh is None else words.removeprefix('test ')}, loss {values['loss']:.4g}")
    if fresh is not None and len(fresh):
        values = measure(reading.x[fresh], reading.y[fresh])
        words = accuracy_text(round(values["accuracy"] * len(fresh)), len(fresh))
        print(f"{name}, without the examples that were trained on: {words}, loss {values['loss']:.4g}")
    return 0


def _usable_model(args: argparse.Namespace) -> SavedModel:
    """Read the saved model that MODEL names.

    Raises:
        UsageError: it holds NaN, or moments of its inputs that are not finite: it would predict nothing but NaN.
    """
    saved = read_model(args, args.device)
    weights = {name: array for name, array in saved.model.state().items() if is_floating(array)}
    bad = [name for name, array in weights.items() if np.isnan(backend.to_numpy(array)).any()]
    if saved.preprocessing is not None:  # of its arrays infinity is no value either
        moments = saved.preprocessing.state()["arrays"]
        bad += [f"{name} of the inputs" for name, array in moments.items() if not np.isfinite(array).all()]
    if bad:
        more = f" and {len(bad) - 1} more of its arrays" if len(bad) > 1 else ""
        raise UsageError(
            f"{args.model}: {bad[0]}{more} holds NaN or infinity, so that it cannot predict anything; train the model "
            f"again, or use an earlier copy of the file"
        )
    return saved


def _not_finite(path: str, saved: SavedModel, place: str, x: NumpyArray) -> str:
    """Return the message for outputs that are not finite, on some preprocessed examples."""
    with np.errstate(over="ignore", invalid="ignore"):
        finite = np.isfinite(backend.to_numpy(saved.model.predict(x))).reshape(len(x), -1).all(axis=1)
        first = x[int(finite.argmin()) :][:1]
        found = first_not_finite(saved.model, backend.to_device(first, saved.model.context.device))
    return f"{place}: {path} gives outputs that are not finite: {found}"


def _check_fit(path: str, saved: SavedModel, dataset: Dataset) -> None:
    """Raise a UsageError unless the examples and classes of a data set are those of a model."""
    expected, name = example_shape(saved, path), dataset.name
    if (expected, len(saved.class_names) or dataset.classes) != (dataset.input_shape, dataset.classes):
        raise UsageError(
            f"{path} takes examples of shape {expected} and knows {counted(len(saved.class_names), 'class', 'classes')}; "
            f"{name} has {dataset.input_shape} and {dataset.classes}"
        )
    if saved.class_names and saved.class_names != dataset.class_names:
        raise UsageError(
            f"{path} knows the classes {quoted_list(saved.class_names)}; {name} has {quoted_list(dataset.class_names)}"
        )


def check_units(path: str, saved: SavedModel, dataset: Dataset) -> None:
    """Raise a UsageError where a model learnt from data of the user's own, in units that may not be those of a published set.

    Pixels are parts of white in both; columns are the same where their titles and their scale are.
    """
    record = saved.inputs
    if record is None or saved.metadata.get("dataset") == dataset.name:
        return
    if record.kind == "images" and len(dataset.input_shape) == 3:
        same = not record.without_white()
    else:
        same = (record.scale, record.columns) == (dataset.scale, dataset.titles)
    if not same:
        raise UsageError(
            f"{path} was trained on data of your own, whose units may not be those of {dataset.name}: give the examples as a "
            f"file with the same columns and units"
        )


def _trained_on_own(saved: SavedModel, dataset: Dataset) -> int:
    """Return how many test examples of a published set are known to be among data of the user's own that a model saw."""
    if saved.inputs is None or saved.metadata.get("dataset") == dataset.name:
        return 0
    return int(saved.inputs.seen(row_hashes(dataset.test[0]))[0].sum())


def known_inputs(saved: SavedModel, path: str) -> Known | None:
    """Return how the inputs of a saved model were read; None where the file does not say."""
    return None if saved.inputs is None or not saved.class_names else Known(saved.inputs, saved.class_names, path)


def _is_same(name: str, metadata: dict[str, Any]) -> bool:
    """Return whether a path is that of the data a model was trained on."""
    trained_on, started_in = metadata.get("dataset"), metadata.get(STARTED_IN) or "."
    return isinstance(trained_on, str) and Path(name).resolve() == Path(started_in, trained_on).resolve()


def _examples_to_measure(reading: Reading, known: Known, same: bool) -> tuple[NumpyArray, list[str], NumpyArray | None]:
    """Choose the examples to evaluate a model on.

    Returns:
        their indices; what should be said; and where some of them were trained on the indices of the others, or else None.
    """
    record = known.inputs
    seen, sure = record.seen(reading.identities)
    least = "at least " if not sure.all() else ""
    if reading.parts is not None:
        rows = np.flatnonzero(reading.parts == TEST)
        examples = counted(len(rows), "example")
        notes = [f"measured on the {examples} of the test part"]
    elif same and seen.any():
        test = reading.divided() == TEST
        rows = np.flatnonzero(test & ~seen)
        examples = counted(len(rows), "example")
        # Whether the run held out a validation part: none of its examples was trained on then.
        held_out = not seen[reading.divided(validation=True) == VALIDATION].any()
        new = int(((reading.divided(validation=held_out) == TRAIN) & ~seen & sure).sum())
        notes = [f"measured on the {examples} of the test part, which {were(len(rows))} not trained on"]
        if new:
            notes.append(
                f"the data have changed since the model was trained: {least}{counted(new, 'example')} of the training part "
                f"{'is' if new == 1 else 'are'} new"
            )
        if passed := int((test & seen).sum()):
            are = "that is a copy of a training example" if passed == 1 else "that are copies of training examples"
            notes.append(f"left out {counted(passed, 'example')} of the test part {are}")
        copies = int(np.isin(reading.contents[rows], reading.contents[seen]).sum())
        if copies:  # rows of which few differ: repetitions are examples of their own
            are = "is a copy of a training example" if copies == 1 else "are copies of training examples"
            notes.append(f"{copies:,} of them {are}")
        if not len(rows):
            rows = np.flatnonzero(test)
            notes = [
                f"measured on the {counted(len(rows), 'example')} of the test part, all of them copies of training examples"
            ]
        return rows, notes, None
    else:
        rows = np.arange(len(reading.y))
        on = f"measured on {f'all {len(rows):,} examples' if len(rows) > 1 else 'the only example'}"
        if seen.any():
            notes = [on]
        elif not sure.any():
            notes = [f"{on}: the model file does not say which examples it was trained on"]
        elif same:
            notes = [f"{on}: none of them is one that the model was trained on"]
        else:
            notes = [f"{on}: these are not the data that the model was trained on"]
    trained = seen[rows]
    if record.kind == "images" and not record.by_pixels and sure.any() and not seen.any():
        notes.append(
            "the model file is of an earlier version, which knows images by the bytes of their files: whether it was trained "
            "on the same pictures in other files is not known"
        )
    if not trained.any():
        return rows, notes, None
    count = int(trained.sum())
    said = f"{least}{count:,} of these {len(rows):,} examples {were(count)} trained on"
    return rows, [*notes, said if len(rows) > 1 else "it was trained on"], rows[~trained]


def accuracy_text(correct: int, total: int) -> str:
    """Describe an accuracy on test data."""
    return f"test accuracy {correct / total:.2%} ({correct:,} of {total:,})".replace("%", " %")


def predict(args: argparse.Namespace) -> int:
    """Print the source, the class and its probability for every example, one a line or as a CSV table."""
    if args.target is not None and not any(map(tables.is_table, args.images)):
        raise UsageError(f"--target is for tables, and {args.images[0]} is none: omit it")
    files, notes = _files(args.images)
    if args.out != "-":
        check_output("--out", args.out, in_run_folder(args.model), args.code, *files, stream=True)
    saved = _usable_model(args)
    inputs = saved.inputs or default_record(example_shape(saved, args.model))
    known = Known(inputs, saved.class_names, args.model)
    # Read all files before the first line is printed: an error should not hide among results.
    predictions = []
    for path in files:
        try:
            x, said = read(path, known, args.target)
        except DataError as error:
            if not args.skip_bad:
                if len(files) == 1:
                    raise
                raise DataError(f"{error}; --skip-bad leaves such files out") from error
            warnings.warn(f"left out {error}", RuntimeWarning, stacklevel=2)
            continue
        notes += said
        predictions += _predictions(saved, args.model, path, x)
    for note in notes[:MOST_NOTES]:
        print(f"xpnet predict: {note}", file=sys.stderr)
    if len(notes) > MOST_NOTES:
        print(f"xpnet predict: and {len(notes) - MOST_NOTES:,} more of these", file=sys.stderr)
    if not predictions:
        raise UsageError("none of the files can be read")
    named = saved.class_names
    names = [named[k] if k < len(named) else str(k) for k in range(len(predictions[0][1]))]
    if args.out is not None:
        text = io.StringIO()
        table = csv.writer(text, lineterminator="\n")
        table.writerow(["example", "class", "probability", *names])
        for place, row in predictions:
            best = int(row.argmax())
            table.writerow([place, names[best], *(f"{float(p):.6g}" for p in (row[best], *row))])
        if args.out == "-":
            print(text.getvalue(), end="")
        else:
            written = text.getvalue().encode("utf-8", "surrogateescape")  # as files are named
            streamed = is_stream(args.out)
            if streamed:
                with open(args.out, "wb") as stream:
                    stream.write(written)
            else:
                archive.write_atomically(args.out, lambda file: file.write(written))
            # A stream may be standard output under another name.
            print(f"{counted(len(predictions), 'prediction')} in {args.out}", file=sys.stderr if streamed else sys.stdout)
        return 0
    for place, row in predictions:
        best = int(row.argmax())
        share = f"{float(row[best]):.1%}".replace("%", " %")
        print(f"{place}  {names[best]}  {share}")
    return 0


def _files(paths: Sequence[str]) -> tuple[list[str], list[str]]:
    """Replace folders by the images in them, at any depth, sorted by path; say which of their files were left out."""
    found: list[str] = []
    notes = []
    for path in paths:
        if Path(path).is_dir():
            inside, left_out = image_files(Path(path))
            if not inside:
                raise UsageError(f"{path}: a folder without images; expected some of {', '.join(ENDINGS)}")
            found += map(str, inside)
            if left_out:
                notes.append(f"{path}: {describe_left_out(left_out)}")
        else:
            found.append(path)
    return found, notes


def _predictions(saved: SavedModel, model: str, path: str, x: NumpyArray) -> list[tuple[str, NumpyArray]]:
    """Return (place, probabilities) of every example in a file.

    Raises:
        UsageError: they are not finite.
    """
    prepared = user_data.preprocess(x, saved.preprocessing)
    with np.errstate(over="ignore", invalid="ignore"):  # what comes of it is reported better here
        probabilities = backend.to_numpy(ops.softmax(saved.model.predict(prepared)))
    if not np.isfinite(probabilities).all():
        raise UsageError(_not_finite(model, saved, path, prepared))
    alone = len(x) == 1 and not tables.is_table(path)
    return [(path if alone else f"{path}[{i}]", row) for i, row in enumerate(probabilities)]


def read(path: str, known: Known, target: str | None = None) -> tuple[NumpyArray, list[str]]:
    """Read the examples in a file as those that a model was trained on: float32 (N, *shape), in its units.

    Returns:
        the examples, and what should be said about them.

    Raises:
        UsageError, DataError: the file is missing or unreadable, or does not fit the model.
    """
    place = Path(path)
    if tables.is_table(place):
        return read_rows(place, known, target)
    if place.suffix.lower() in (".npy", ".npz"):
        return read_arrays(place, known)
    return _image(path, known)


def _image(path: str, known: Known) -> tuple[NumpyArray, list[str]]:
    """Read an image as one example (1, H, W, C), resized to the model's size."""
    record, shape = known.inputs, known.inputs.shape
    if len(shape) != 3:
        takes = f"takes {counted(math.prod(shape), 'feature')}, not images"
        raise UsageError(f"{path}: the model {takes}; put them into a .csv, .npy or .npz file")
    if why := record.without_white():
        raise UsageError(f"{path}: {known.place} {why}; give .npy or .npz files with such values")
    try:
        # In colour, to tell whether it is, and made grey as the images of a folder are.
        channels = 3 if shape[2] == 1 else shape[2]
        read = read_pixels(path, channels=channels, size=(shape[0], shape[1]), background=record.background)
    except ImportError as error:
        raise UsageError(f"{path}: {error}") from error
    except ValueError as error:
        if isinstance(error, DataError):
            raise
        raise UsageError(f"{path}: images have 1, 3 or 4 channels; {known.place} takes {shape[2]}") from error
    coloured = shape[2] == 1 and not is_grey(read.values)
    values = to_grey(read.values) if coloured else read.values[..., : shape[2]]
    x = np.divide(values, np.float32(255), dtype=np.float32)[None]
    notes = [note] if (note := record.far(x, path, sure=True)) else []
    if read.size != shape[:2] and not record.resized:
        (H, W), (height, width) = shape[:2], read.size
        notes.append(f"{path}: {height} x {width} pixels, resized to {H} x {W}; the images of {known.place} had this size")
    if coloured:
        notes.append(f"{path}: a colour image, converted to grey, as {known.place} takes it")
    if record.in_colour and is_grey(read.values):
        notes.append(f"{path}: a grey image; those of {known.place} were all in colour")
    if read.transparent:
        notes.append(f"{path}: transparent pixels were composited on {record.background} (R, G, B)")
    if read.frames:
        notes.append(f"{path}: holds several images; the first one was read")
    return x, notes
