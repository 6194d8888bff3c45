"""Recurrent layers: simple, LSTM and GRU, in one or both directions."""

from __future__ import annotations

import math
from typing import Any

from xpnet import initializers, ops
from xpnet.autograd.parameter import Parameter
from xpnet.autograd.tape import once
from xpnet.autograd.tensor import bare
from xpnet.backend import Array, dtype_name, is_asynchronous, kind_of, namespace, to_device
from xpnet.layers.context import Context, Shape, Spec
from xpnet.layers.dense import Initial
from xpnet.layers.module import Module
from xpnet.ops.activations import ACTIVATIONS_FROM_OUTPUT
from xpnet.ops.shapes import ShapeError, is_whole
from xpnet.runtime.messages import quoted
from xpnet.runtime.settings import check_numbers


class Recurrent(Module):
    """Base class of the recurrent layers: sequences (N, T, C) in, and a state that is passed from step to step.

    Args:
        units: H, the size of the state.
        return_sequences: return the state after every step (N, T, H), as another recurrent layer on top needs, and not only
            the last one (N, H).
        return_state: return (output, state) instead of the output alone, to be used as `state` of another call.
        reverse: read the sequence from its end; each output is at the position of its input.
        stateful: start each call with the final state of the last one, detached: called on consecutive pieces of long
            sequences this is truncated backpropagation through time. See reset_state. In `predict` row n goes on from row n
            of the last prediction, whatever the batch size. `Trainer.fit` goes on from batch to batch, which then are pieces
            of the same sequences; so does `Trainer.evaluate` and the validation, from 0 on, and leaves the state as it was.
        mask_value: a step whose C inputs all equal this number (or are all NaN, for mask_value=nan) is padding: it is
            skipped, and its output is 0. With mask_value=0.0 stacked layers skip the same steps.
        use_bias: whether biases are added.
        kernel_initializer, recurrent_initializer, bias_initializer: for each gate separately; by default Glorot's, orthogonal
            and 0.
        kernel_regularizer, recurrent_regularizer, bias_regularizer: penalties.
    """

    gates = 1
    operation: Any
    states = 1
    kernel: Parameter
    recurrent_kernel: Parameter
    bias: Parameter
    carried: tuple[Array, ...] | None

    def __init__(
        self,
        units: int,
        *,
        return_sequences: bool = False,
        return_state: bool = False,
        reverse: bool = False,
        stateful: bool = False,
        mask_value: float | None = None,
        use_bias: bool = True,
        kernel_initializer: Initial = "glorot_uniform",
        recurrent_initializer: Initial = "orthogonal",
        bias_initializer: Initial = "zeros",
        kernel_regularizer: Any = None,
        recurrent_regularizer: Any = None,
        bias_regularizer: Any = None,
    ) -> None:
        name = type(self).__name__
        if not is_whole(units) or units < 1:
            raise ValueError(f"{name}: units must be at least 1 and whole, got {quoted(units)}")
        self.units = int(units)
        self.return_sequences = return_sequences
        self.return_state = return_state
        self.reverse = reverse
        self.stateful = stateful
        self._read_forwards()
        self.mask_value = None if mask_value is None else float(mask_value)
        self.use_bias = use_bias
        self.kernel_initializer = self._of_each_gate("kernel_initializer", kernel_initializer)
        self.recurrent_initializer = self._of_each_gate("recurrent_initializer", recurrent_initializer)
        self.bias_initializer = bias_initializer
        self.kernel_regularizer = kernel_regularizer
        self.recurrent_regularizer = recurrent_regularizer
        self.bias_regularizer = bias_regularizer
        self.carried = None

    def _of_each_gate(self, name: str, initializer: Initial) -> Initial:
        found = initializers.get(initializer, f"{type(self).__name__}: {name}")
        if isinstance(found, initializers.Blocks) and found.count == self.gates:  # another layer's, or its own
            return found
        return initializers.Blocks(found, self.gates)

    def _read_forwards(self) -> None:
        if self.stateful and self.reverse:
            raise ValueError(
                f"{type(self).__name__}: a stateful layer reads forwards: what comes after a piece of a sequence is not known "
                f"yet"
            )

    @property
    def capturable(self) -> bool:  # type: ignore[override]
        """Whether a training step may be captured: not of a stateful layer, whose state is another array after every call."""
        return not self.stateful

    def parameter_specs(self, input_shape: Shape) -> dict[str, Spec]:
        """Return the specs of kernel (C, G*H), recurrent_kernel (H, G*H) and bias (G*H,), for G gates."""
        _, C = self._sequence_shape(input_shape)
        H, width = self.units, self.gates * self.units
        found = {
            "kernel": Spec((C, width), self.kernel_initializer, regularizer=self.kernel_regularizer),
            "recurrent_kernel": Spec((H, width), self.recurrent_initializer, regularizer=self.recurrent_regularizer),
        }
        if self.use_bias:
            found["bias"] = Spec((width,), self._bias_values(), decay=False, regularizer=self.bias_regularizer)
        return found

    def _bias_values(self) -> Any:
        return self.bias_initializer

    def _sequence_shape(self, input_shape: Shape) -> tuple[int, int]:
        if len(input_shape) != 2:
            raise ShapeError(
                f"{type(self).__name__} got examples of shape {tuple(input_shape)}, expected sequences (T, C); put "
                f"Reshape((T, C)) before it, or give the recurrent layer below return_sequences=True"
            )
        return input_shape[0], input_shape[1]

    def output_shape(self, input_shape: Shape) -> Shape:
        """Map (T, C) to (T, H) with return_sequences, else (H,)."""
        T, C = self._sequence_shape(input_shape)
        if self.built and self.kernel.shape[0] != C:
            raise ShapeError(f"{type(self).__name__} got {C} features a step, its kernel takes {self.kernel.shape[0]}")
        return (T, self.units) if self.return_sequences else (self.units,)

    def forward(self, x: Any, lengths: Any = None, *, mask: Any = None, state: Any = None) -> Any:
        """Run over the sequences.

        Args:
            x: (N, T, C).
            lengths: integers (N,) in 0..T: sequence n has its elements at the first lengths[n] places. None: all T.
            mask: booleans (N, T), False at padding, where it is not only at the end.
            state: the initial state: (N, H), or ((N, H), (N, H)) for an LSTM's h and c. None: 0, or in a stateful layer the
                last call's.

        Returns:
            (N, T, H) or (N, H); with return_state a pair of that and the last state.

        Raises:
            ShapeError: shapes that do not fit.
            TypeError: lengths that are not integers.
            ValueError: a length outside 0..T (on a GPU the sequence's output is NaN instead).
        """
        x = self.as_float(x)
        x, mask = self._masked(x, lengths, mask)
        states = self._first_states(x, state)
        bias = self.bias if self.use_bias else None
        outputs = self._run(x, bias, states, mask)
        if self.stateful:
            self._read_forwards()  # it may have been set later
            once(lambda: self._carry(outputs[1:]))
        y = outputs[0] if self.return_sequences else outputs[1]
        if not self.return_state:
            return y
        return y, outputs[1] if self.states == 1 else outputs[1:]

    def _carry(self, states: tuple[Any, ...]) -> None:
        self.carried = tuple(bare(s) for s in states)

    def _run(self, x: Any, bias: Any, states: tuple[Any, ...], mask: Any) -> Any:
        return type(self).operation(x, self.kernel, self.recurrent_kernel, bias, *states, mask, reverse=self.reverse)

    def _masked(self, x: Any, lengths: Any, mask: Any) -> tuple[Any, Any]:
        """Return x, and the mask (N, T) that `lengths`, `mask` and mask_value make together, or None."""
        array = bare(x)
        if array.ndim != 3:
            return x, mask  # the operation explains what is wrong
        xp = namespace(array)
        parts = []
        if mask is not None:
            given = xp.asarray(bare(mask))
            if tuple(given.shape) != tuple(array.shape[:2]):
                raise ShapeError(
                    f"{type(self).__name__}: mask has shape {tuple(given.shape)}, expected {tuple(array.shape[:2])}: a value "
                    f"for each step of the sequences {tuple(array.shape)}"
                )
            parts.append(xp.astype(given, xp.bool))
        value = self.mask_value
        if value is not None:
            there = ~xp.isnan(array) if math.isnan(value) else array != value
            parts.append(xp.any(there, axis=2))
        outside = None
        if lengths is not None:
            ends, outside = self._ends(xp, array, lengths)
            parts.append(xp.arange(array.shape[1], dtype=ends.dtype, device=array.device)[None, :] < ends[:, None])
        whole = None
        for part in parts:
            whole = part if whole is None else whole & part
        if outside is not None:
            whole = whole | outside[:, None]
            x = ops.where(outside[:, None, None], math.nan, x)
        return x, whole

    def _ends(self, xp: Any, x: Array, lengths: Any) -> tuple[Array, Array | None]:
        """Return the lengths as an array; on a GPU also which are outside 0..T, as an error would wait for the device."""
        name, (N, T, _) = type(self).__name__, x.shape
        ends = bare(lengths)
        ends = ends if hasattr(ends, "dtype") else to_device(ends, self.context.device)
        if tuple(ends.shape) != (N,):
            raise ShapeError(
                f"{name}: lengths has shape {tuple(ends.shape)}, expected ({N},): one length for each of the sequences "
                f"{tuple(x.shape)}"
            )
        if N == 0:
            return xp.zeros((0,), dtype=xp.int64, device=x.device), None
        if kind_of(ends.dtype) != "integer":
            raise TypeError(
                f"{name}: lengths has dtype {dtype_name(ends)}, expected integers: the number of steps of each sequence"
            )
        ends = xp.astype(ends, xp.int64, copy=False)  # T need not fit their dtype, which may be uint8
        if is_asynchronous(xp):
            return ends, (ends < 0) | (ends > T)
        low, high = int(xp.min(ends)), int(xp.max(ends))
        if low < 0 or high > T:
            raise ValueError(f"{name}: lengths run from {low} to {high}, expected 0..{T} for sequences of {T} steps")
        return ends, None

    def _first_states(self, x: Any, state: Any) -> tuple[Any, ...]:
        if state is None and self.stateful:
            state = once(lambda: self.carried)
            if state is not None and state[0].shape[0] != x.shape[0]:
                raise ShapeError(
                    f"{type(self).__name__} carries the state of {state[0].shape[0]} sequences and got {x.shape[0]}: pieces "
                    f"must come in batches of one size; call reset_state() where new sequences begin"
                )
        if state is None:
            return (None,) * self.states
        found = state if isinstance(state, (tuple, list)) else (state,)
        if len(found) != self.states:
            raise ShapeError(f"{type(self).__name__}: state has {len(found)} arrays, expected {self.states}")
        return tuple(found)

    def reset_state(self) -> None:
        """Reset the state that a stateful layer carries from call to call, before new sequences."""
        self.carried = None

    def _place(self, context: Context) -> None:
        super()._place(context)
        self.carried = None


class RNN(Recurrent):
    """The simple recurrent layer: h_t = activation(x_t @ kernel + h_{t-1} @ recurrent_kernel + bias).

    Args:
        units: as in Recurrent, which also lists the further arguments.
        activation: "tanh", "relu", "sigmoid" or None.

    Shapes:
        (N, T, C) -> (N, H), or (N, T, H) with return_sequences.
    """

    operation = staticmethod(ops.rnn)

    def __init__(self, units: int, activation: str | None = "tanh", **keywords: Any) -> None:
        super().__init__(units, **keywords)
        if activation is not None and (not isinstance(activation, str) or activation not in ACTIVATIONS_FROM_OUTPUT):
            names = ", ".join(ACTIVATIONS_FROM_OUTPUT)
            raise ValueError(f"RNN: activation must be None or one of {names}, got {quoted(activation)}")
        self.activation = activation

    def _run(self, x: Any, bias: Any, states: tuple[Any, ...], mask: Any) -> Any:
        return ops.rnn(
            x, self.kernel, self.recurrent_kernel, bias, *states, mask, activation=self.activation, reverse=self.reverse
        )


class LSTM(Recurrent):
    """Long short-term memory: a cell with input, forget and output gates; see xpnet.ops.lstm for the formulas.

    Args:
        units: as in Recurrent, which also lists the further arguments.
        forget_bias: added to the initial bias of the forget gate; with 1 gradients pass from the start.

    Shapes:
        (N, T, C) -> (N, H), or (N, T, H) with return_sequences. The columns of the kernels are in blocks of H: input, forget,
        cell, output.

    Source: Hochreiter and Schmidhuber, 1997; Jozefowicz et al., 2015 (the forget gate's bias).
    """

    gates = 4
    states = 2
    operation = staticmethod(ops.lstm)

    def __init__(self, units: int, *, forget_bias: float = 1.0, **keywords: Any) -> None:
        super().__init__(units, **keywords)
        check_numbers("LSTM", "(-inf, inf)", forget_bias=forget_bias)
        self.forget_bias = float(forget_bias)

    def _bias_values(self) -> Any:
        return initializers.Shifted(initializers.get(self.bias_initializer), self.units, 2 * self.units, self.forget_bias)


class GRU(Recurrent):
    """The gated recurrent unit; see xpnet.ops.gru for the formulas.

    Args:
        units: as in Recurrent, which also lists the further arguments.

    Shapes:
        (N, T, C) -> (N, H), or (N, T, H) with return_sequences. The columns of the kernels are in blocks of H: reset, update,
        new. Parameters besides kernel, recurrent_kernel and bias: recurrent_bias (3H,), added to the state's product.

    Source: Cho et al., 2014.
    """

    gates = 3
    operation = staticmethod(ops.gru)
    recurrent_bias: Parameter

    def parameter_specs(self, input_shape: Shape) -> dict[str, Spec]:
        """Return the specs as in Recurrent, and that of recurrent_bias."""
        found = super().parameter_specs(input_shape)
        return {**found, "recurrent_bias": found["bias"]} if self.use_bias else found

    def _run(self, x: Any, bias: Any, states: tuple[Any, ...], mask: Any) -> Any:
        second = self.recurrent_bias if self.use_bias else None
        return ops.gru(x, self.kernel, self.recurrent_kernel, bias, second, *states, mask, reverse=self.reverse)


SETTABLE = ("return_sequences", "mask_value", "activation")
MERGES = ("concat", "sum", "mean", "multiply")


class Bidirectional(Module):
    """A recurrent layer that reads forwards and another one that reads backwards.

    Args:
        layer: an RNN, LSTM or GRU; the second one is created with the same arguments and has its own weights.
        merge: how the two outputs are combined: "concat" (on the last axis), "sum", "mean" or "multiply".

    Shapes:
        (N, T, C) -> (N, 2H), or (N, T, 2H) with return_sequences; H instead of 2H unless the outputs are concatenated.

    Source: Schuster and Paliwal, 1997.
    """

    def __init__(self, layer: Recurrent, merge: str = "concat") -> None:
        if not isinstance(layer, Recurrent):
            raise TypeError(f"Bidirectional takes an RNN, LSTM or GRU, got {type(layer).__name__}")
        if layer.stateful or layer.return_state or layer.reverse:
            raise ValueError("Bidirectional: the layer must not be stateful, return its state, or be reversed already")
        args, keywords = layer._arguments
        self.merge = merge
        self.forwards = layer
        self.backwards: Recurrent = type(layer)(*args, **{**keywords, "reverse": True})
        for name in SETTABLE:  # they may have been set since
            if hasattr(layer, name):
                setattr(self.backwards, name, getattr(layer, name))

    def output_shape(self, input_shape: Shape) -> Shape:
        """Map (T, C) to (..., 2H) or (..., H)."""
        return self._merged(self.forwards.output_shape(input_shape))

    def materialize(self, input_shape: Shape) -> Shape:
        """Create the parameters of both layers."""
        self.backwards.materialize(input_shape)
        return self._merged(self.forwards.materialize(input_shape))

    def __setattr__(self, name: str, value: Any) -> None:
        if name == "merge" and value not in MERGES:
            raise ValueError(f"Bidirectional: merge must be one of {', '.join(MERGES)}, got {value!r}")
        super().__setattr__(name, value)

    def _merged(self, shape: Shape) -> Shape:
        return (*shape[:-1], 2 * shape[-1]) if self.merge == "concat" else shape

    def forward(self, x: Any, lengths: Any = None, *, mask: Any = None) -> Any:
        """Run both and merge their outputs; arguments as in Recurrent.forward."""
        a = self.forwards(x, lengths, mask=mask)
        b = self.backwards(x, lengths, mask=mask)
        if a.shape != b.shape:
            raise ShapeError(
                f"Bidirectional: the outputs have shapes {tuple(a.shape)} and {tuple(b.shape)}; set the same return_sequences "
                f"in both layers, forwards and backwards"
            )
        if self.merge == "concat":
            return ops.concat([a, b], axis=-1)
        if self.merge == "multiply":
            return ops.multiply(a, b)
        total = ops.add(a, b)
        return ops.multiply(total, 0.5) if self.merge == "mean" else total


def reset_states(model: Module) -> None:
    """Reset the states that the stateful layers of a model carry from call to call, before new sequences."""
    for module in model.modules():
        if isinstance(module, Recurrent):
            module.reset_state()
