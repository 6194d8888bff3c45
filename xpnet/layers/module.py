"""Module: the base class of layers and networks, with parameters and a forward pass.

Subclass it, assign layers and Parameters in ``__init__``, and write ``forward(self, x)``. Modules form a tree; the one
that is called first is the root and gives every Module below it a path ("1.kernel"), a seed, a device and a dtype.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from os import PathLike
from typing import TYPE_CHECKING, Any, Self

from xpnet import backend, ops
from xpnet.autograd.flat_parameters import FlatParameters
from xpnet.autograd.parameter import Parameter
from xpnet.autograd.tape import once
from xpnet.autograd.tensor import Tensor
from xpnet.backend import Array, Device, DeviceError
from xpnet.layers import attributes, mixed
from xpnet.layers import state as states
from xpnet.layers.context import Context, Shape, Spec, float_name, new_buffer
from xpnet.layers.execution import Executor, output_shape_by_running, predict, prepare_input, require_arrays
from xpnet.layers.holding import is_not_built, named, refuse_lost
from xpnet.layers.modes import thread_state
from xpnet.layers.tree import ModuleTree
from xpnet.ops.shapes import ShapeError
from xpnet.runtime.deprecation import adopt_renamed_methods, renamed_attribute
from xpnet.runtime.late import late
from xpnet.runtime.peers import missing_attribute
from xpnet.runtime.settings import ConstructorSignature, checked, whole
from xpnet.runtime.threads import preference

if TYPE_CHECKING:
    from xpnet.optim.optimizer import Optimizer

_RENAMED = {
    "specs": "parameter_specs", "arena": "flat_parameters", "draw": "next_random_step", "counters": "rng_counters",
    "load_counters": "load_rng_counters",
}  # fmt: skip


class Module(ModuleTree):
    """Base class of layers and networks.

    Args (all optional; only the root's count):
        device: "cpu", "cuda" or "cuda:N".
        dtype: "float32", "float64", or "float16" and "bfloat16", which compute in 16 bits with float32 parameters (see
            xpnet.layers.mixed).
        seed: of initial weights, dropout masks and everything random in the model.

    Attributes:
        training: whether layers that differ (dropout, batch normalisation) behave as in training; see train and eval.
        path: the place in the tree: "" for the root, "2.body.0" and the like below it.
    """

    built: bool
    built_for: Shape | None  # the input's shape that the parameters were made for
    counter: int  # the next step of a random layer's stream
    device_counter: Any  # the counter while steps are captured (xpnet.compiled.captured_steps.DeviceCounter)
    capturable: bool = True  # whether a training step through this Module may be captured as a CUDA graph
    plannable: bool = False
    """Whether `forward` in evaluation mode does nothing but call operations, so that a prediction may be planned (see
    xpnet.compiled.numpy_predict). A subclass inherits it unless it overrides something that computing an output may call;
    then it has to say so itself."""
    _functions: tuple[str, ...] = ()  # the attributes that hold functions (not Modules) which forward applies
    _forward_hooks: tuple[Callable[..., Any], ...]  # see xpnet.layers.hooks
    _flat_storage: FlatParameters | None
    _flat_storage_version: int  # of the tree's structure
    _model_executor: Executor | None  # see executor_of

    __signature__ = ConstructorSignature()

    def __new__(cls, *args: Any, **keywords: Any) -> Self:
        """Set up the tables here, so that a subclass need not call super().__init__()."""
        self = super().__new__(cls, *args, **keywords)
        self.__dict__.update(training=True, _kept_in_eval=False, built=False, built_for=None, counter=0, device_counter=None)
        self.__dict__.update(_forward_hooks=(), _flat_storage=None, _flat_storage_version=-1, _model_executor=None)
        return self

    def __init_subclass__(cls, **keywords: Any) -> None:
        super().__init_subclass__(**keywords)
        adopt_renamed_methods(cls, _RENAMED)

    if not TYPE_CHECKING:  # a type checker would take every attribute for known

        def __getattr__(self, name: str) -> Any:
            """Raise the error for an attribute that is not there: a Parameter not made yet, or a name of another library."""
            if is_not_built(self, name):
                raise AttributeError(
                    f"{named(self)} has no {name} yet: its Parameters are made by the first call, or by input_shape=(...) of "
                    f"the Sequential that it is in"
                )
            return missing_attribute(self, name)

    def __init__(self, *, device: str | Device = "cpu", dtype: Any = "float32", seed: int = 0) -> None:
        who = type(self).__name__
        self.context = Context(whole(who, "seed", seed), backend.device(device), float_name(dtype, who))

    def count_parameters(self) -> int:
        """Return the number of values in all parameters, frozen ones among them.

        Raises:
            ValueError: some layer has not seen the shape of its input yet.
        """
        self._require_built("count_parameters")
        return sum(p.size for p in self.parameters().values())

    def _require_built(self, what: str) -> None:
        waiting = [path or type(m).__name__ for path, m in self.named_modules() if not m.built and m._waits()]
        if waiting:
            known = f"{what}: the layers {', '.join(waiting)} do not know the shape of their input yet"
            if self.built and self.path == "" and not self._waits():  # it was called
                raise ValueError(
                    f"{known}, because forward has not used them; use them, remove them, or say it: "
                    f"layer.materialize(shape of one example)"
                )
            raise ValueError(f"{known}; give the model an input_shape, or call it once on a batch")

    def _is_built(self) -> bool:
        """Return whether this Module and all below it have their parameters."""
        return all(m.built or not m._waits() for m in self.modules())

    def _waits(self) -> bool:
        """Return whether this Module itself creates parameters at its first input."""
        return type(self).parameter_specs is not Module.parameter_specs or type(self).build is not Module.build

    def __getstate__(self) -> dict[str, Any]:
        """Return what copy.deepcopy copies; a copy has its random counter on the host."""
        return {**super().__getstate__(), "counter": states.counter_of(self), "device_counter": None}

    def _counter_to_host(self) -> None:
        """Give the random counter back to the host, where training steps have it on the device."""
        self.counter, self.device_counter = states.counter_of(self), None

    def _place(self, context: Context) -> None:
        self._counter_to_host()
        super()._place(context)
        self.__dict__["_model_executor"] = None

    # -- parameters --

    def parameter_specs(self, input_shape: Shape) -> dict[str, Spec]:
        """Return the specs of the parameters that this layer needs for inputs of `input_shape` (without the batch axis)."""
        return {}

    def build(self, input_shape: Shape) -> None:
        """Create the parameters; called once, before the first forward pass."""
        for name, spec in self.parameter_specs(input_shape).items():
            self.add_parameter(name, spec)

    def add_parameter(self, name: str, spec: Spec) -> Parameter:
        """Create a Parameter and assign it to attribute `name`; its random key is the seed and its path.

        Raises:
            ValueError: something was assigned to that attribute before, and would be lost.
        """
        refuse_lost(self, name)
        parameter = spec.make(f"{self.path}.{name}" if self.path else name, self.context)
        setattr(self, name, parameter)
        self._note_made(name)
        return parameter

    def add_buffer(self, name: str, values: Any) -> None:
        """Register an array that is not trained, but saved and moved with the model.

        Raises:
            ValueError: something was assigned to that attribute before, and would be lost.
        """
        refuse_lost(self, name)
        self._buffers[name] = None
        self._tree_version.changed()
        setattr(self, name, new_buffer(values, self.context))
        self._note_made(name)

    def _note_made(self, name: str) -> None:
        """Note an array that `build` has created: where it is called by hand, the first batch creates it again."""
        if not self.__dict__.get("built", True):
            self.__dict__.setdefault("_made", {})[name] = self.__dict__[name]

    def output_shape(self, input_shape: Shape) -> Shape:
        """Return the output's shape for an input's shape, both without the batch axis.

        A layer computes it; any other Module runs its forward pass on one example of zeros.
        """
        return output_shape_by_running(self, input_shape)

    def materialize(self, input_shape: Shape) -> Shape:
        """Create all parameters below for this input shape, and return the output's shape."""
        try:
            if self._waits() and not self.built:
                self.build(input_shape)
                self.built, self.built_for = True, tuple(input_shape)
                self.__dict__.pop("_made", None)
            return self.output_shape(input_shape)
        except ShapeError as error:
            raise self._located(error) from None

    def _dtype(self) -> Any:
        return backend.dtype_named(self.context.device.xp, self.context.dtype)

    @property
    def flat_parameters(self) -> FlatParameters:
        """The flat storage of all trainable parameters; created on first use, and again when they have changed."""
        flat = self._flat_storage
        if flat is not None and self._flat_storage_version == self._tree_version.structure and flat.intact():
            return flat
        self._require_built("flat_parameters")
        parameters = self.parameters().values()
        trainable = [p for p in parameters if p.requires_grad]
        if flat is None or not flat.holds(trainable):
            flat = FlatParameters(trainable)
        frozen = len(trainable) < len(parameters)
        # A frozen parameter may be unfrozen at any time: check again on every use.
        self.__dict__.update(_flat_storage=flat, _flat_storage_version=-1 if frozen else self._tree_version.structure)
        return flat

    def zero_grad(self) -> None:
        """Drop all gradients."""
        for parameter in self.parameters().values():
            parameter.grad = None

    # -- running --

    def forward(self, *inputs: Any, **keywords: Any) -> Any:
        """Compute the output; every subclass defines it."""
        raise TypeError(f"{type(self).__name__} has no forward(self, x)")

    def __call__(self, *inputs: Any, **keywords: Any) -> Any:
        """Run the forward pass on native arrays or Tensors that live on the model's device."""
        table = self.__dict__
        path = table["path"]
        if path is None:
            self._attach("", self.context)
            path = ""
        if not table["built"]:
            self._build_for(inputs)
        forward = self.forward
        if table["_forward_hooks"]:
            for hook in table["_forward_hooks"]:
                forward = partial(_call_hook, hook, self, forward)
        try:
            if path:
                if table["_half"] and not mixed.computing_half():  # a part that is called on its own
                    return mixed.call(self, forward, inputs, keywords)
                return forward(*inputs, **keywords)
            if table["_known_version"] != table["_tree_version"].structure:
                self.modules()
            preference.own = table["_own_threads"]
            if table["_half"]:
                return mixed.call(self, forward, inputs, keywords)
            context = table["context"]
            ready = context.ready_dtype
            inputs = tuple(
                [x if isinstance(x, Tensor) or getattr(x, "dtype", 0) is ready else prepare_input(x, context) for x in inputs]
            )
            return forward(*inputs, **keywords)
        except (ShapeError, DeviceError) as error:
            raise self._located(error) from None
        except (AttributeError, TypeError) as error:
            if not path:  # of an input that has no dtype or shape
                require_arrays(self, inputs)
            if inputs and inputs[0] is None and not getattr(error, "located", False):
                text = "its input is None; does the layer or function before it end in `return`?"
                raise self._located(TypeError(text)) from error
            raise

    def _build_for(self, inputs: tuple[Any, ...]) -> None:
        self.built = True
        if inputs and hasattr(inputs[0], "shape") and self._waits():
            self.built = False
            shape = tuple(inputs[0].shape[1:])
            try:
                self.build(shape)
            except ShapeError as error:
                raise self._located(error) from None
            self.built, self.built_for = True, shape
        self.__dict__.pop("_made", None)

    def as_float(self, x: Any) -> Any:
        """Return `x` in the model's dtype if it holds integers or booleans (bytes of an image), else as it is."""
        context = self.context
        if isinstance(x, Tensor) or x.dtype is context.ready_dtype:
            return x
        if backend.kind_of(x.dtype) not in ("integer", "boolean"):
            return x
        xp = backend.namespace(x)
        wide = xp.astype(x, getattr(xp, context.storage))
        return wide if context.storage == context.dtype else ops.cast(wide, context.dtype)

    def _located(self, error: Exception) -> Exception:
        """Return the error with this layer's path in front, added once."""
        if getattr(error, "located", False):
            return error
        kind = type(self).__name__
        where = f"layer {self.path!r} ({kind})" if self.path else kind
        located = type(error)(f"{where}: {error}")
        located.located = True  # type: ignore[attr-defined]
        return located

    @property
    def trainable(self) -> bool:
        """Whether any of its parameters is trained.

        Setting it to False freezes all parameters of this Module and below it, also those that are not made yet, and True
        unfreezes them; a layer that is assigned afterwards is trained. `parameter.requires_grad` is the same for one Parameter.
        A frozen BatchNorm normalises with its running statistics and leaves them as they are, also in training mode.
        """
        return attributes.trainable(self)

    @trainable.setter
    def trainable(self, value: bool) -> None:
        attributes.set_trainable(self, value)

    def freeze(self, where: str | None = None) -> Self:
        """Freeze this Module, or the layers and Parameters below it whose path fits a pattern; returns self.

        Args:
            where: such as "0", "body.*" or "*.bias" (as in fnmatch; a layer stands for all below it). None: everything.

        Raises:
            ValueError: no path fits.
        """
        attributes.select(self, where, False)
        return self

    def unfreeze(self, where: str | None = None) -> Self:
        """Train parameters again: the opposite of :meth:`freeze`, with the same arguments."""
        attributes.select(self, where, True)
        return self

    @property
    def training(self) -> bool:
        """Whether this Module behaves as in training: its own mode, or that of an eval_mode block in this thread."""
        modes = thread_state.modes
        mode: bool = modes[self] if modes and self in modes else self.__dict__["training"]
        return mode

    @training.setter
    def training(self, mode: bool) -> None:
        self._set_mode(mode)
        self.__dict__["_kept_in_eval"] = not mode and bool(self.path)

    def _set_mode(self, mode: bool) -> None:
        if self in thread_state.modes:
            thread_state.modes[self] = mode
        else:
            self.__dict__["training"] = mode

    def train(self, mode: bool = True) -> Self:
        """Behave as in training from now on (dropout drops, batch normalisation uses the batch); returns self.

        `Trainer.fit` puts the model into training mode, but not layers whose own `eval` was called after the model's.
        """
        below, kept = self.modules(), not mode and bool(self.path)
        for module in below:
            module.training = mode
            module.__dict__["_kept_in_eval"] = kept
        return self

    def _train_again(self) -> None:
        """Behave as in training from now on, but for layers that were put into evaluation mode by themselves."""
        for module in self.modules():
            if not module.__dict__["_kept_in_eval"]:
                module._set_mode(True)

    def eval(self) -> Self:
        """Behave as in evaluation from now on; returns self."""
        return self.train(False)

    def to(self, device: str | Device) -> Self:
        """Move all parameters and buffers to "cpu", "cuda" or "cuda:N"; returns self."""
        context = Context(self.context.seed, backend.device(device), self.context.dtype)
        if self.path is None:
            self._attach("", self.context)
        self._attach(self.path or "", context)
        self.__dict__["_flat_storage"] = None
        return self

    def predict(self, x: Any, batch_size: int = 256) -> Any:
        """Return the outputs for all of `x`, in evaluation mode, with nothing recorded.

        Args:
            x: (N, ...), a native array of any device; it is moved to the model's a batch at a time. A tuple or dict of them for
                a model of several inputs.
            batch_size: examples in a batch.

        Returns:
            (N, ...), a native array where x was; a tuple of them for a model of several outputs. For x of another library than
            NumPy and CuPy it is one of the model's device.
        """
        return predict(self, x, batch_size)

    # -- saving --

    def state(self) -> dict[str, Array]:
        """Return all parameters and buffers by path: native arrays, not copied."""
        return {**{path: p.array for path, p in self.parameters().items()}, **self.buffers()}

    def load_state(self, state: Mapping[str, Array], strict: bool = True) -> None:
        """Copy arrays from any device into the parameters and buffers of the same path.

        Args:
            state: as from :meth:`state`.
            strict: raise where names are missing or left over; otherwise those are ignored.

        Raises:
            ValueError: missing, left-over or mis-shaped names, all of them listed; nothing was changed then.
        """
        states.load_state(self, state, strict)

    def next_random_step(self) -> Any:
        """Return the next step of this layer's random stream: a number, or an array where the counter is on the device."""
        return once(partial(states.next_step, self))

    def rng_counters(self) -> dict[str, int]:
        """Return the counters of the random layers, by path: how many steps of its stream each has used."""
        return states.rng_counters(self)

    def load_rng_counters(self, counters: dict[str, int]) -> None:
        """Restore counters from :meth:`rng_counters`."""
        states.load_rng_counters(self, counters)

    @checked
    def save(
        self,
        path: str | PathLike[str],
        *,
        class_names: Sequence[str] = (),
        preprocessing: Any = None,
        metadata: Mapping[str, Any] | None = None,
        inputs: Any = None,
    ) -> None:
        """Write the model (architecture, weights) to one file, atomically; :func:`xpnet.load` reads it.

        Args:
            path: by convention it ends in ".xpnet".
            class_names: names of the outputs.
            preprocessing: a fitted transform of xpnet.data.preprocessing for the inputs.
            metadata: anything that JSON can represent, and numbers of NumPy, by name.
            inputs: how the inputs were read from files, an :class:`xpnet.data.inputs.InputRecord`.

        Raises:
            ValueError: a layer is not built, or the model cannot be written; see :func:`xpnet.io.model_file.save`.
            OSError: the file cannot be written; what was there before is untouched.
        """
        late("save")(self, path, class_names=class_names, preprocessing=preprocessing, metadata=metadata, inputs=inputs)

    def save_weights(self, path: Any) -> None:
        """Write parameters and buffers alone to a safetensors file; see :func:`xpnet.io.weights.save_weights`."""
        late("save_weights")(self, path)

    def load_weights(self, path: Any, strict: bool = True) -> None:
        """Read parameters and buffers from a safetensors file; see :func:`xpnet.io.weights.load_weights`."""
        late("load_weights")(self, path, strict)

    @checked
    def summary(
        self,
        input_shape: Sequence[int] | Sequence[Sequence[int]] | None = None,
        *,
        batch_size: int = 1,
        optimizer: Optimizer | None = None,
        loss: Any = None,
        recompute: Any = False,
        device: Any = None,
        show: bool = True,
    ) -> Any:
        """Return a table of the layers: output shapes, parameters, and the peak memory of a training step.

        Args:
            input_shape: of one example; None takes the model's own.
            batch_size, optimizer, loss, recompute, device: of the training step, as for
                :func:`xpnet.inspect.summary.summarize`.
            show: whether the table is printed.
        """
        table = late("summarize")(
            self, input_shape, batch_size=batch_size, optimizer=optimizer, loss=loss, recompute=recompute, device=device
        )
        if show:
            print(table)
        return table

    # -- names until 0.2 --

    specs = renamed_attribute("parameter_specs")
    draw = renamed_attribute("next_random_step")
    counters = renamed_attribute("rng_counters")
    load_counters = renamed_attribute("load_rng_counters")
    arena = renamed_attribute("flat_parameters")

    def __repr__(self) -> str:
        inner = (
            ", ".join(repr(v) if name.isdigit() else f"{name}={v!r}" for name, v in self._children.items()) or self._describe()
        )
        return f"{type(self).__name__}({inner})"

    def _describe(self) -> str:
        """Return the constructor's arguments, for repr."""
        args, keywords = self._arguments
        return ", ".join([repr(a) for a in args] + [f"{k}={v!r}" for k, v in keywords.items()])


def _call_hook(hook: Any, layer: Module, forward: Callable[..., Any], /, *inputs: Any, **keywords: Any) -> Any:
    return hook(layer, forward, inputs, keywords)
