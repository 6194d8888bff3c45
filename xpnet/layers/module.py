"""Module: something with parameters and a forward pass.

Subclass it, assign layers and Parameters in ``__init__``, and write ``forward(self, x)``. Modules form a tree; the one
that is called first is its root and gives every Module below it a path ("1.kernel"), a seed, a device and a dtype.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Self

from xpnet import backend, initializers, ops, random
from xpnet.autograd.checkpointing import recompute
from xpnet.autograd.flat_parameters import FlatParameters
from xpnet.autograd.tape import mode, no_grad, once
from xpnet.autograd.tensor import Parameter, Tensor
from xpnet.backend import Array, Device, DeviceError
from xpnet.layers import mixed
from xpnet.layers.context import Context, Shape, Spec, float_name, in_meta_init, meta_array, placed
from xpnet.layers.running import Evaluation, here, load_state, predict, received
from xpnet.ops.shapes import ShapeError
from xpnet.runtime import threads
from xpnet.runtime.late import late

_INTERNAL = frozenset({"context", "path", "built", "built_for", "counter", "ticks", "segments"})


class Structure:
    """Counts every change of any tree of Modules: a cheap way to know that the flat parameters still hold all of them, or that
    a prediction that was planned is still the model's.
    """

    version = 0  # Parameters and Modules
    settings = 0  # everything else that a Module was given


class Module:
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

    path: str | None
    built: bool
    built_for: Shape | None  # the input's shape that the parameters were made for
    context: Context
    ticks: Any  # the counter on the device, while steps are captured there (xpnet.training.captured.Ticks)
    shares_work: bool = False  # whether on a CPU its work is shared out over xpnet's threads rather than those of BLAS
    capturable: bool = True  # whether a training step through this Module may be recorded once and replayed
    segments: tuple[range, ...]  # set while its parts are recomputed: of a Sequential's layers; none is all of a Module
    counter: int  # how often a random layer has drawn: the step of its stream
    _children: dict[str, Module]
    _parameters: dict[str, Parameter]
    _buffers: dict[str, Array]
    _arguments: tuple[tuple[Any, ...], dict[str, Any]]
    _flat: FlatParameters | None
    _flat_version: int
    _known_modules: tuple[int, tuple[Module, ...]]

    def __new__(cls, *args: Any, **keywords: Any) -> Self:
        """Set up the tables here, so that a subclass need not call super().__init__()."""
        self = super().__new__(cls)
        table = self.__dict__
        table.update(training=True, path=None, built=False, built_for=None, context=Context(), counter=0, ticks=None)
        table["_half"] = False  # whether it computes with 16-bit floats
        table.update(_children={}, _parameters={}, _buffers={}, _flat=None, _flat_version=-1, _known_modules=(-1, ()))
        table["_arguments"] = (args, keywords)  # what the model file writes down
        return self

    def __init__(self, *, device: str = "cpu", dtype: str = "float32", seed: int = 0) -> None:
        self.context = Context(int(seed), backend.device(device), float_name(dtype, type(self).__name__))

    def __getstate__(self) -> dict[str, Any]:
        """What copy.deepcopy copies: a copy has flat storage of its own, made when it is first needed."""
        return {
            **self.__dict__,
            "_flat": None,
            "_flat_version": -1,
            "_captured": None,
            "_plans": {},
            "_steps": {},
            "_known_modules": (-1, ()),
        }

    # -- the tree --

    def __setattr__(self, name: str, value: Any) -> None:
        if name in _INTERNAL:
            self.__dict__[name] = value
            return
        if name == "training":
            self._set_mode(value)
            return
        for prefix in [c for c in self._children if c == name or c.startswith(name + ".")]:
            del self._children[prefix]
            Structure.version += 1
        if isinstance(value, (Parameter, Module, list, tuple)) or name in self._parameters:
            Structure.version += 1
        self._parameters.pop(name, None)
        if isinstance(value, Parameter):
            self._parameters[name] = value
        elif isinstance(value, Module):
            self._children[name] = value
        elif isinstance(value, (list, tuple)) and any(isinstance(v, Module) for v in value):
            # A tuple, so that no layer can be appended unseen; functions between the layers have nothing to learn.
            value = tuple(value)
            self._children.update({f"{name}.{i}": v for i, v in enumerate(value) if isinstance(v, Module)})
        elif name in self._buffers:
            self._buffers[name] = value
        else:
            Structure.settings += 1
        self.__dict__[name] = value
        if isinstance(value, (Module, tuple)):
            self._attach_new({path: c for path, c in self._children.items() if path == name or path.startswith(name + ".")})

    def _attach_new(self, children: dict[str, Module]) -> None:
        """Tell Modules that came after the tree was first run where they are; before, the first run does."""
        if self.path is not None:
            for name, child in children.items():
                child._attach(f"{self.path}.{name}" if self.path else name, self.context)

    def named_modules(self) -> Iterator[tuple[str, Module]]:
        """(path, module) for this Module and all below it; one that appears twice comes once."""
        seen: set[int] = set()

        def walk(path: str, module: Module) -> Iterator[tuple[str, Module]]:
            if id(module) in seen:
                return
            seen.add(id(module))
            yield path, module
            for name, child in module._children.items():
                yield from walk(f"{path}.{name}" if path else name, child)

        return walk("", self)

    def modules(self) -> tuple[Module, ...]:
        """This Module and all below it."""
        version, known = self._known_modules
        if version != Structure.version:
            known = tuple(module for _, module in self.named_modules())
            shares = any(module.shares_work for module in known)
            self.__dict__.update(_known_modules=(Structure.version, known), _shares=shares)
        return known

    def parameters(self) -> dict[str, Parameter]:
        """All Parameters by path, {"0.kernel": ..., "0.bias": ...}; a shared one has the first of its paths."""
        found: dict[str, Parameter] = {}
        seen: set[int] = set()
        for path, module in self.named_modules():
            for name, parameter in module._parameters.items():
                if id(parameter) not in seen:
                    seen.add(id(parameter))
                    found[f"{path}.{name}" if path else name] = parameter
        return found

    def buffers(self) -> dict[str, Array]:
        """Arrays that belong to the model but are not learnt by gradient (running statistics), by path."""
        return {
            f"{path}.{name}" if path else name: array
            for path, module in self.named_modules()
            for name, array in module._buffers.items()
        }

    def count_parameters(self) -> int:
        """The number of learnable values.

        Raises:
            ValueError: some layer has not seen the shape of its input yet.
        """
        self._require_built("count_parameters")
        return sum(p.size for p in self.parameters().values())

    def _require_built(self, what: str) -> None:
        waiting = [path or type(m).__name__ for path, m in self.named_modules() if not m.built and m._waits()]
        if waiting:
            raise ValueError(
                f"{what}: the layers {', '.join(waiting)} do not know the shape of their input yet; give the model an "
                f"input_shape, or call it once on a batch"
            )

    def _waits(self) -> bool:
        """Whether this Module itself makes parameters when it sees its input."""
        return type(self).specs is not Module.specs or type(self).build is not Module.build

    def _attach(self, path: str, context: Context) -> None:
        """Tell the tree below `path` where it is and what its root decided."""
        self._require_seen(path)
        moved = context.device != self.context.device or context.dtype != self.context.dtype
        self.__dict__.update(path=path, context=context, _half=context.dtype in backend.HALF_NAMES)
        if moved:
            self._place(context)
        for name, parameter in self._parameters.items():
            parameter.path = f"{path}.{name}" if path else name
        for name, child in self._children.items():
            child._attach(f"{path}.{name}" if path else name, context)

    def _require_seen(self, path: str) -> None:
        """Raise a TypeError where a list or dict holds a layer that assigning it did not show: it would never be trained."""
        for name, value in self.__dict__.items():
            if name[0] == "_" or not isinstance(value, (list, dict)):
                continue
            parts = value.values() if isinstance(value, dict) else value
            if any(isinstance(part, (Module, Parameter)) for part in parts):
                where = f"layer {path!r} ({type(self).__name__})" if path else type(self).__name__
                raise TypeError(
                    f"{where}: the {type(value).__name__} in self.{name} holds layers or Parameters that were put in unseen, "
                    f"and they would not be trained; assign a finished list of layers (self.{name} = [...]), or each to an "
                    f"attribute (setattr(self, name, layer))"
                )

    def _place(self, context: Context) -> None:
        """Bring this Module's own arrays to the context's device and dtype."""
        for parameter in self._parameters.values():
            parameter.array = placed(parameter.array, context)
            parameter.grad = parameter.buffer = None
        for name, array in self._buffers.items():
            setattr(self, name, placed(array, context))

    # -- parameters --

    def specs(self, input_shape: Shape) -> dict[str, Spec]:
        """The parameters that this layer needs for inputs of `input_shape` (without the batch axis)."""
        return {}

    def build(self, input_shape: Shape) -> None:
        """Make the parameters; called once, before the first forward."""
        for name, spec in self.specs(input_shape).items():
            self.add_parameter(name, spec)

    def add_parameter(self, name: str, spec: Spec) -> Parameter:
        """Make a Parameter as `spec` says and assign it to attribute `name`; its random key is the seed and its path."""
        path = f"{self.path}.{name}" if self.path else name
        if in_meta_init():
            array = meta_array(spec.shape, self.context.storage, self.context)
        else:
            array = self._first_values(path, spec)
        parameter = Parameter(array, decay=spec.decay)
        parameter.path, parameter.regularizer, parameter.constraint = path, spec.regularizer, spec.constraint
        setattr(self, name, parameter)
        return parameter

    def _first_values(self, path: str, spec: Spec) -> Array:
        values = initializers.get(spec.initializer)(spec.shape, random.key(self.context.seed, path))
        if tuple(values.shape) != tuple(spec.shape):
            raise ShapeError(f"the initializer of {path} made shape {tuple(values.shape)}, expected {spec.shape}")
        return placed(values, self.context)

    def add_buffer(self, name: str, values: Any) -> None:
        """Keep an array that is not learnt but saved and moved with the model."""
        self._buffers[name] = None
        if in_meta_init():
            host = backend.to_numpy(values)
            kind = self.context.storage if host.dtype.kind == "f" else host.dtype.name
            setattr(self, name, meta_array(host.shape, kind, self.context))
        else:
            setattr(self, name, placed(values, self.context))

    def output_shape(self, input_shape: Shape) -> Shape:
        """The output's shape for an input's shape, both without the batch axis.

        A layer computes it; any other Module runs its forward pass on one example of zeros.
        """
        with self.context.device, no_grad(), Evaluation(self):
            example = self.context.device.xp.zeros((1, *input_shape), dtype=self._dtype())
            y = self(example)
            # Of several outputs the first is what a next layer would take.
            while isinstance(y, (tuple, list, dict)):
                y = next(iter(y.values())) if isinstance(y, dict) else y[0]
            return tuple(y.shape[1:])

    def materialize(self, input_shape: Shape) -> Shape:
        """Make all parameters below for this input shape, and return the output's shape."""
        try:
            if self._waits() and not self.built:
                self.build(input_shape)
                self.built, self.built_for = True, tuple(input_shape)
            return self.output_shape(input_shape)
        except ShapeError as error:
            raise self._located(error) from None

    def _dtype(self) -> Any:
        return backend.dtype_named(self.context.device.xp, self.context.dtype)

    @property
    def flat_parameters(self) -> FlatParameters:
        """The flat storage of all trainable parameters; made when first asked for, and again when they have changed."""
        flat = self._flat
        if flat is not None and self._flat_version == Structure.version and flat.intact():
            return flat
        self._require_built("flat_parameters")
        parameters = self.parameters().values()
        trainable = [p for p in parameters if p.requires_grad]
        if flat is None or not flat.holds(trainable):
            flat = FlatParameters(trainable)
        frozen = len(trainable) < len(parameters)
        # A frozen parameter may be set free at any time: then the flat parameters are checked again on every use.
        self.__dict__.update(_flat=flat, _flat_version=-1 if frozen else Structure.version)
        return flat

    def zero_grad(self) -> None:
        """Forget all gradients."""
        for parameter in self.parameters().values():
            parameter.grad = None

    # -- running --

    def forward(self, x: Any) -> Any:
        """Compute the output; written by every subclass."""
        raise TypeError(f"{type(self).__name__} has no forward(self, x)")

    def __call__(self, *inputs: Any, **keywords: Any) -> Any:
        """Run the forward pass on native arrays or Tensors that live on the model's device."""
        table = self.__dict__
        if table["path"] is None:
            self._attach("", self.context)
        if not table["built"]:
            self._build_for(inputs)
        # Where it is asked for, the forward pass is done again in the backward pass.
        forward = recompute(self.forward) if "segments" in table and not table["segments"] else self.forward
        try:
            if table["path"] == "":
                self.modules()
                threads.prefer_own_threads(table["_shares"])
                if table["_half"]:
                    return mixed.call(self, forward, inputs, keywords)
                inputs = tuple([x if isinstance(x, Tensor) else received(x, self.context) for x in inputs])
            elif table["_half"] and mode.half_copies is None:  # a part that is called on its own
                return mixed.call(self, forward, inputs, keywords)
            return forward(*inputs, **keywords)
        except (ShapeError, DeviceError) as error:
            raise self._located(error) from None

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

    def as_float(self, x: Any) -> Any:
        """`x` in the model's dtype if it holds integers or booleans (bytes of an image)."""
        if isinstance(x, Tensor) or backend.dtype_name(x) == self.context.dtype:
            return x
        if backend.is_floating(x):
            return x
        context, xp = self.context, backend.namespace(x)
        wide = xp.astype(x, getattr(xp, context.storage))
        return wide if context.storage == context.dtype else ops.cast(wide, context.dtype)

    def _located(self, error: Exception) -> Exception:
        """The same error with this layer's path in front, once."""
        if getattr(error, "located", False):
            return error
        kind = type(self).__name__
        where = f"layer {self.path!r} ({kind})" if self.path else kind
        located = type(error)(f"{where}: {error}")
        located.located = True  # type: ignore[attr-defined]
        return located

    @property
    def training(self) -> bool:
        """Whether this Module behaves as in training: its own mode, or that of an Evaluation in this thread."""
        modes = here.modes
        mode: bool = modes[self] if modes and self in modes else self.__dict__["training"]
        return mode

    @training.setter
    def training(self, mode: bool) -> None:
        self._set_mode(mode)

    def _set_mode(self, mode: bool) -> None:
        if self in here.modes:
            here.modes[self] = mode
        else:
            self.__dict__["training"] = mode

    def train(self, mode: bool = True) -> Self:
        """Behave as in training from now on (dropout drops, batch normalisation uses the batch); returns self."""
        for module in self.modules():
            module.training = mode
        return self

    def eval(self) -> Self:
        """Behave as in evaluation from now on; returns self."""
        return self.train(False)

    def to(self, device: str | Device) -> Self:
        """Move all parameters and buffers to "cpu", "cuda" or "cuda:N"; returns self."""
        context = Context(self.context.seed, backend.device(device), self.context.dtype)
        if self.path is None:
            self._attach("", self.context)
        self._attach(self.path or "", context)
        self.__dict__["_flat"] = None
        return self

    def predict(self, x: Array, batch_size: int = 256) -> Array:
        """The outputs for all of `x`, in evaluation mode, with nothing recorded.

        Args:
            x: (N, ...), a native array of any device; it is moved to the model's a batch at a time. A tuple of them for a
                model of several inputs.
            batch_size: examples at once.

        Returns:
            (N, ...), a native array where x was; a tuple of them for a model of several outputs.
        """
        return predict(self, x, batch_size)

    # -- saving --

    def state(self) -> dict[str, Array]:
        """All parameters and buffers by path: native arrays, not copied."""
        return {**{path: p.array for path, p in self.parameters().items()}, **self.buffers()}

    def draw(self) -> Any:
        """The step of this layer's random stream for one use, counted up: a number, or an array where it is on the device."""
        return once(self._next_step)

    def _next_step(self) -> Any:
        if self.ticks is not None:
            return self.ticks.take()
        step = self.counter
        self.counter = step + 1
        return step

    def counters(self) -> dict[str, int]:
        """How often each layer that draws random numbers has drawn, by path."""
        found = {path: module.counter if module.ticks is None else module.ticks.value for path, module in self.named_modules()}
        return {path: count for path, count in found.items() if count}

    def load_counters(self, counters: dict[str, int]) -> None:
        """Take up counters from :meth:`counters`."""
        for path, module in self.named_modules():
            module.counter = int(counters.get(path, 0))
            if module.ticks is not None:
                module.ticks.value = module.counter

    def load_state(self, state: dict[str, Array], strict: bool = True) -> None:
        """Copy arrays from any device into the parameters and buffers of the same path.

        Args:
            state: as from :meth:`state`.
            strict: raise where names are missing or left over; otherwise those are passed over.

        Raises:
            ValueError: missing, left-over or mis-shaped names, all of them listed; nothing was changed then.
        """
        load_state(self, state, strict)

    def save(self, path: Any, **extra: Any) -> None:
        """Write the model (architecture, weights) to one file; see :func:`xpnet.io.model_file.save` and :func:`xpnet.load`."""
        late("save")(self, path, **extra)

    def save_weights(self, path: Any) -> None:
        """Write parameters and buffers alone to a safetensors file; see :func:`xpnet.io.weights.save_weights`."""
        late("save_weights")(self, path)

    def load_weights(self, path: Any, strict: bool = True) -> None:
        """Read parameters and buffers from a safetensors file; see :func:`xpnet.io.weights.load_weights`."""
        late("load_weights")(self, path, strict)

    def summary(self, input_shape: Any = None, *, batch_size: int = 1, show: bool = True, **settings: Any) -> Any:
        """A table of the layers: output shapes, parameters, and the memory of a training step at its peak; `settings`
        (optimizer, loss, recompute, device) are those of :func:`xpnet.inspect.summary.summarize`.

        Prints it unless `show` is False; returns it.
        """
        table = late("summarize")(self, input_shape, batch_size=batch_size, **settings)
        if show:
            print(table)
        return table

    def __repr__(self) -> str:
        inner = (
            ", ".join(repr(v) if name.isdigit() else f"{name}={v!r}" for name, v in self._children.items()) or self._describe()
        )
        return f"{type(self).__name__}({inner})"

    def _describe(self) -> str:
        """The constructor's arguments, for repr."""
        args, keywords = self._arguments
        return ", ".join([repr(a) for a in args] + [f"{k}={v!r}" for k, v in keywords.items()])
