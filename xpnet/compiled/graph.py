"""Functions whose launches are recorded once for each shape of the inputs and then replayed as one.

A small network's training step is a hundred launches, each of which takes the host longer than the device. Replayed as one
CUDA graph, the step is one launch. A replay repeats exactly what was recorded, so everything that changes from call to call
must be on the device: the inputs (copied into fixed buffers), the learning rate, the counters of random layers and of the
optimizer, the sums of measurements.
"""

from __future__ import annotations

import functools
import os
import sys
import threading
import traceback
import warnings
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from types import FunctionType, ModuleType
from typing import Any, NamedTuple, Protocol
from weakref import WeakMethod, ref

from xpnet.backend import Array
from xpnet.compiled.dependencies import Surroundings
from xpnet.compiled.derived import Derived, HostNumberError, ModelChangedError, unchanging
from xpnet.compiled.host_draws import HostDraws
from xpnet.compiled.operands import OtherGradientError, Outside, noted
from xpnet.compiled.owners import MISSING, Before, Owner, Place, StaleValueError, hidden, is_kept, of_a_user
from xpnet.compiled.reach import Reached, reached
from xpnet.layers.execution import map_output
from xpnet.layers.modes import thread_state
from xpnet.layers.module import Module
from xpnet.layers.state import RepeatedNumbersError


class Graphs(Protocol):
    """Records and replays: xpnet.compiled.cuda_graph.CudaGraphs, or a wrapper that counts."""

    xp: Any

    def stream(self) -> AbstractContextManager[None]:
        """Run the block in order with replays."""

    def record(self, function: Callable[[], Any]) -> tuple[Callable[[], None], Any]:
        """Record `function`; return a function that replays it, and its result."""

    def made(self, array: Any) -> bool:
        """Return whether an array is in memory of the recording that goes on, or in none of a device."""


_LIBRARIES = ("xpnet", "cupy", "cupyx", "cupy_backends", "numpy", "array_api_compat", *sys.stdlib_module_names)


class HostDrawError(Exception):
    """A function drew random numbers on the host, which its replays do not."""


class UnseenError(Exception):
    """A function can use something whose changes nobody sees.

    Attributes:
        owner: the object that holds it.
        name: there.
        thing: what it is.
    """

    def __init__(self, owner: Any, name: str, thing: Any) -> None:
        super().__init__(f"{name} is a {type(thing).__name__}")
        self.owner = owner
        self.name = name
        self.thing = thing


class RecordAgainError(Exception):
    """A recording was refused, but another one, at the next call, may not be."""


class Recording(NamedTuple):
    """A function recorded for one form of its inputs."""

    inputs: tuple[Array, ...]
    replay: Callable[[], None]
    result: Any
    assigned: list[tuple[Owner, str, Any]]  # what the function left in attributes
    outside: Outside  # what it reads that it was not given


class Run(NamedTuple):
    """What is known of a function that has run as usual."""

    left: list[Place]  # the attributes that it assigned other things than numbers and names to
    again: bool  # whether it is run as usual once more, to see which of these it assigns every time


class Captured:
    """A function of native arrays, recorded at the second call with inputs of a shape, replayed from the third on.

    The first call with a shape runs as usual: kernels are compiled, libraries create their handles. The results of a replay
    are arrays that the next replay overwrites; copy what you keep.

    Args:
        function: takes arrays and returns arrays, nested in tuples and dicts. What it does on the host happens only when it
            is run or recorded, not when it is replayed.
        graphs: records and replays.
        name: for the warning where it cannot be recorded; the function is then always run as usual.
        model: whose attributes the function must not assign, for it to be recorded.
        kind: "step", whose random layers have their counters on the device, or "prediction", whose replays draw none. Other
            functions draw what they drew when they were recorded.
        watched: returns a context in which the function is recorded; it may raise, and it is not recorded then. Whatever else
            refuses the recording raises within it, too.
        direct: called instead of `function` where it is run as usual.
        reached: returns what code of the user's in the function can reach. What it leaves in the attributes of owners, a replay
            leaves there, too, with the values of its own; but a function that uses what the call before has left is not
            recorded, nor is one that assigns other numbers or names, draws from a generator, or can reach what is unseen.

    Attributes:
        replayed: whether the last call was a replay only, which does nothing on the host.
        assigned: whether it assigned attributes.
    """

    def __init__(
        self,
        function: Callable[..., Any],
        graphs: Graphs,
        name: str = "the function",
        model: Module | None = None,
        *,
        kind: str = "function",
        watched: Callable[[], AbstractContextManager[Any]] = nullcontext,
        direct: Callable[..., Any] | None = None,
        reached: Callable[[], Reached] = lambda: Reached([], [], []),
    ) -> None:
        self.function = function
        self.direct = direct or function
        self.graphs = graphs
        self.name = name
        self.model = None if model is None else ref(model)  # which may hold this
        self.kind = kind
        self.watched = watched
        self.reached = reached
        self.failed = self.replayed = self.assigned = False
        self._runs: dict[Any, Run] = {}
        self._recordings: dict[Any, Recording] = {}

    def __call__(self, *inputs: Array, **fixed: Any) -> Any:
        """Return the function's result.

        Args:
            inputs: arrays.
            fixed: numbers and names, passed on; each value is recorded separately, as each shape is.
        """
        function = functools.partial(self.function, **fixed) if fixed else self.function
        if thread_state.recording:  # a part of what is being recorded
            return function(*inputs)
        direct = functools.partial(self.direct, **fixed) if fixed else self.direct
        key = (tuple((tuple(a.shape), str(a.dtype)) for a in inputs), tuple(fixed.items()))
        with self.graphs.stream():
            self.replayed = False
            if self.failed:
                return direct(*inputs)
            recording = self._recordings.get(key)
            if recording is not None and not recording.outside.in_place():
                del self._recordings[key], self._runs[key]
                recording = None
            if recording is not None:
                self.replayed = True
                for buffer, array in zip(recording.inputs, inputs):
                    buffer[...] = array
                recording.replay()
                self.assigned = False
                for owner, name, value in recording.assigned:
                    if owner.get(name) is not value:  # that of a recording for another shape
                        owner.write(name, value)
                        self.assigned = True
                return recording.result
            run = self._runs.get(key)
            if run is None or run.again:
                reached = self.reached()
                before, draws = Before(reached.owners), self._draws(reached)
                result = direct(*inputs)
                known = self._left().keys()
                self._runs[key] = run = _run(before, first=run is None)
                if not run.again and not self._left().keys() <= known:
                    self._recordings.clear()  # with inputs of other shapes: they may use what is left here
                if draws is not None and draws.moved():
                    self._refuse(HostDrawError())
                return result
            recording = self._record(function, inputs)
            if recording is not None:
                self._recordings[key] = recording
                recording.replay()  # recording executes nothing
                return recording.result
        with self.graphs.stream():  # which frees what the recording held
            return direct(*inputs)

    def forget(self) -> None:
        """Drop all recordings: the arrays that they use have been replaced."""
        self._runs.clear()
        self._recordings.clear()

    def _left(self) -> dict[tuple[int, Any], Place]:
        """Return the attributes that the last runs with inputs of any shape have left."""
        return {(id(owner.thing), name): (owner, name) for run in self._runs.values() for owner, name in run.left}

    def _record(self, function: Callable[..., Any], inputs: tuple[Array, ...]) -> Recording | None:
        model = None if self.model is None else self.model()
        buffers = tuple(self.graphs.xp.asarray(a, copy=True) for a in inputs)
        outside = Outside({id(p) for p in model.parameters().values()} if model else (), self.graphs.made)
        reached = self.reached()
        if reached.unseen:
            self._refuse(UnseenError(*reached.unseen[0]))
            return None
        before, draws = Before(reached.owners), self._draws(reached)

        def work() -> Any:
            recording, thread_state.recording = thread_state.recording, self.kind
            try:
                # The innermost puts back first what it has changed itself.
                whole = unchanging(model) if model else nullcontext()
                stale = hidden(self._left().values(), "which the call before has left")
                with self.watched(), counting_nothing(before), whole, noted(outside), stale:
                    return function(*buffers)
            finally:
                thread_state.recording = recording

        try:
            replay, result = self.graphs.record(work)
            if draws is not None and draws.moved():
                raise HostDrawError
        except Exception as error:  # each library refuses host access in its own way
            if draws is not None:
                draws.restore()  # the function runs once more
            if not isinstance(error, RecordAgainError):
                self._refuse(error)
            return None
        assigned = [(owner, name, now) for owner, name, _, now in before.changed()]
        return Recording(buffers, replay, result, assigned, outside)

    def _draws(self, reached: Reached) -> HostDraws | None:
        return None if self.kind == "function" else HostDraws(reached.generators)

    def _refuse(self, error: Exception) -> None:
        """Record the function never, with a warning that says why."""
        self.failed = True
        warnings.warn(self._explained(error), RuntimeWarning, stacklevel=5)

    def _explained(self, error: Exception) -> str:
        """Return the warning for an error while recording."""
        if isinstance(error, MemoryError):
            return (
                f"{self.name} runs launch by launch: the device has too little memory for a CUDA graph of it, whose arrays are "
                f"in memory of its own ({error})"
            )
        refused = f"{self.name} cannot be recorded as a CUDA graph and runs launch by launch"
        if isinstance(error, ModelChangedError):
            is_layer, name = isinstance(error.layer, Module), _attribute(error.layer, error.name)
            doing = f"{_called(error.layer)} assigns {name} in its {'forward pass' if is_layer else 'call'}"
            instead = f"change an array in place instead ({name}[...] = values)"
            if error.name.endswith("]"):
                instead = "collect values in a callback"
            without = "set capturable = False in the class" if is_layer else "use Trainer(capture=False)"
            return f"{refused}: {doing}, which a replay does not; {instead}, or {without}"
        if isinstance(error, RepeatedNumbersError):
            why = "in evaluation mode" if error.recorded == "prediction" else "and is not a part of the trained model"
            return f"{refused}: {_called(error.layer)} draws random numbers {why}, and every replay would draw the same"
        if isinstance(error, HostDrawError):
            return (
                f"{refused}: random numbers are drawn on the "
                f"host while it runs (random, numpy.random, a generator that a layer, loss or metric holds), and every replay "
                f"would use the same; draw with xn.ops.dropout or a layer of the package, or in the data's transform"
            )
        if isinstance(error, StaleValueError):
            owner, name = error.owner, error.name
            name = _attribute(owner, name if of_a_user(type(owner)) else name.lstrip("_"))
            return (
                f"{refused}: "
                f"{_called(owner)} uses {name}, {error.why}, "
                f"and a replay would use that of the recording; keep it in an array that is changed in place "
                f"(values[...] = new), or use Trainer(capture=False)"
            )
        if isinstance(error, UnseenError):
            return (
                f"{refused}: {_called(error.owner)} uses {_attribute(error.owner, error.name)} ({type(error.thing).__name__}), "
                f"whose changes cannot be seen; keep what changes in attributes of an object of your own"
            )
        if isinstance(error, OtherGradientError):
            if self.kind == "function":
                return f"{refused}: it leaves a gradient in {error.leaf!r}, and a replay does not; return gradients instead"
            return (
                f"{refused}: it leaves a gradient in "
                f"{error.leaf!r}, which is no parameter of the trained model, and a replay does not; if you do not want "
                f"the gradient, freeze it (freeze(), requires_grad = False) or use it under no_grad"
            )
        if isinstance(error, HostNumberError):
            return (
                f"{refused}: {error}, which a replay would "
                f"repeat; compute it from the prediction with xn.ops, or report it in a callback"
            )
        return (
            f"{refused}: {_culprit(error)} "
            f"did what is not possible while recording ({type(error).__name__}: {error}); it must not read values "
            f"from the device, nor use cuBLAS or random numbers through CuPy"
        )


def _run(before: Before, first: bool) -> Run:
    """Return what is known after a run as usual.

    What was not there before, such as a table that is made at first use, may be there for good.
    """
    left, again = [], False
    for owner, name, was, now in before.changed():
        if is_kept(now):
            left.append((owner, name))
            again = again or not is_kept(was)
    return Run(left, again and first)


@contextmanager
def counting_nothing(before: Before) -> Iterator[None]:
    """Raise a ModelChangedError after a block that gave an attribute another number or name, or deleted one.

    All attributes get their values back then, and where the block raised.
    """
    try:
        yield
    except BaseException:
        before.restore()
        raise
    for owner, name, was, now in before.changed():
        if not is_kept(now) or (owner.entries and was is MISSING):  # an entry that was added would be added once
            before.restore()
            raise ModelChangedError(*owner.called(name))


def called(method: WeakMethod[Callable[..., Any]]) -> Callable[..., Any]:
    """Return a function that calls a method of an object which it does not keep alive."""

    def call(*inputs: Any, **fixed: Any) -> Any:
        bound = method()
        if bound is None:
            raise ReferenceError("the object of a captured method was deleted")
        return bound(*inputs, **fixed)

    return call


def _called(owner: Any) -> str:
    """Return path and class of a Module, or the class of another object."""
    if isinstance(owner, (type, FunctionType, ModuleType)):
        return owner.__name__
    path, kind = getattr(owner, "path", None), type(owner).__name__
    return f"layer {path!r} ({kind})" if path and isinstance(owner, Module) else kind


def _attribute(owner: Any, name: str) -> str:
    """Return how code writes an attribute of an object or a class, or a variable of a function."""
    if isinstance(owner, FunctionType):
        return name
    return f"{owner.__name__ if isinstance(owner, (type, ModuleType)) else 'self'}.{name}"


def _culprit(error: BaseException) -> str:
    """Return what raised an error, for a message: the innermost Module, or else the innermost function of the user's."""
    layer = function = None
    for frame, line in traceback.walk_tb(error.__traceback__):
        owner, code = frame.f_locals.get("self"), frame.f_code
        if isinstance(owner, Module) and owner.path:
            layer = f"layer {owner.path!r} ({type(owner).__name__})"
        package = frame.f_globals.get("__name__", "").partition(".")[0]
        if package not in _LIBRARIES:
            function = f"{code.co_name} ({os.path.basename(code.co_filename)}, line {line})"
    return layer or function or "it"


class CapturedModel(Derived):
    """A model's forward pass on native arrays, replayed; its outputs are copies that belong to the caller.

    It is recorded again when the model has changed (an attribute of a layer, a hook, the place of a weight or buffer), what its
    layers hold, or a setting of the package. A model that draws random numbers runs launch by launch.

    Args:
        model: on the device of the graphs; called in evaluation mode and under no_grad.
        graphs: records and replays.
    """

    def __init__(self, model: Module, graphs: Graphs) -> None:
        # Weakly: the model's executor holds this, and a dropped model is not to wait for the garbage collector.
        self.model = ref(model)
        self.graphs = graphs
        self.around: Surroundings | None = None  # as of the time when the model was remembered
        forward, reached = called(WeakMethod(self._forward)), called(WeakMethod(self._reached))
        self._captured = Captured(forward, graphs, "prediction", model, kind="prediction", reached=reached)
        self._lock = threading.RLock()  # threads that predict share the recordings and their buffers

    def _forward(self, x: Array) -> Any:
        return map_output(lambda array: array, self._model()(x))

    def _reached(self) -> Reached:
        return reached((), inside=self._model().modules())

    def _model(self) -> Module:
        model = self.model()
        if model is None:
            raise ReferenceError("the model was deleted")
        return model

    def __call__(self, x: Array) -> Any:
        """Return the output for a batch; threads take turns."""
        with self._lock:
            return self._predict(x)

    def _predict(self, x: Array) -> Any:
        if self.around is None or not self.holds() or not self.around.hold():
            self._captured.forget()
            self.around = None
        y = self._captured(x)
        if self.around is None or not self._captured.replayed:  # the first run may have created the parameters
            model = self._model()
            self.remember(model)
            self.around = Surroundings(self._reached().owners, model)
        return map_output(lambda array: self.graphs.xp.asarray(array, copy=True), y)
