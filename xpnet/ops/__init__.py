"""Operations on native arrays: forward and backward in pure Array API.

Called with NumPy, CuPy, PyTorch or JAX arrays they return arrays of the same library; called with a Tensor that needs a
gradient they are recorded for `backward`.

The result has the dtype of the floating inputs, the wider one where they differ; NumPy's scalars are numbers like Python's.
Integers and booleans are computed in float32 or in the dtype of the floating inputs, and stay what they are where elements are
only moved or compared; their sums are exact. Complex numbers are taken by linear operations (convolutions, `dense`, `matmul`,
`add`, `sum`, ..., and those that move elements), whose backward passes are the adjoints: <A x, y> = <x, A^H y>. A gradient has
the dtype of its Tensor.
"""

# fmt: off
# isort: off
from xpnet.backend import Array
from xpnet.ops.activations import (
    elu, gelu, hard_sigmoid, leaky_relu, relu, selu, sigmoid, silu, softplus, softsign, step, tanh,
)
from xpnet.ops.convolution import col2im, conv1d, conv2d, conv_transpose2d, im2col
from xpnet.ops.dropout import dropout
from xpnet.ops.elementwise import (
    abs, add, clip, divide, exp, log, maximum, minimum, multiply, negative, power, sqrt, square, subtract, where,
)
from xpnet.ops.embedding import embedding
from xpnet.ops.fused import conv2d_max_pool2d
from xpnet.ops.geometry import conv_output_size
from xpnet.ops.half import cast
from xpnet.ops.linear import dense, matmul
from xpnet.ops.logistic import sigmoid_cross_entropy
from xpnet.ops.normalization import (
    batch_norm, batch_norm_inference, batch_norm_training, batch_norm_with_statistics, group_norm, layer_norm,
    local_response_norm,
)
from xpnet.ops.pooling import average_pool2d, global_average_pool2d, lp_pool2d, max_pool2d, max_pool2d_with_switches
from xpnet.ops.recurrent import gru, lstm, rnn
from xpnet.ops.reductions import max, mean, min, std, sum, var
from xpnet.ops.regression import absolute_error, huber_error, squared_error
from xpnet.ops.registry import Op, op, reference_only, registry
from xpnet.ops.shapes import ShapeError
from xpnet.ops.shaping import broadcast_to, concat, flip, getitem, pad, reshape, scatter_rows, stack, transpose
from xpnet.ops.softmax import log_softmax, softmax, softmax_cross_entropy
# isort: on
# fmt: on

__all__ = [
    "Array", "Op", "ShapeError", "abs", "absolute_error", "add", "average_pool2d", "batch_norm", "batch_norm_inference",
    "batch_norm_training", "batch_norm_with_statistics", "broadcast_to", "cast", "clip", "col2im", "concat", "conv1d",
    "conv2d", "conv2d_max_pool2d", "conv_output_size", "conv_transpose2d", "dense", "divide", "dropout", "elu", "embedding",
    "exp", "flip", "gelu", "getitem", "global_average_pool2d", "group_norm", "gru", "hard_sigmoid", "huber_error", "im2col",
    "layer_norm", "leaky_relu", "local_response_norm", "log", "log_softmax", "lp_pool2d", "lstm", "matmul", "max",
    "max_pool2d", "max_pool2d_with_switches", "maximum", "mean", "min", "minimum", "multiply", "negative", "op", "pad",
    "power", "reference_only", "registry", "relu", "reshape", "rnn", "scatter_rows", "selu", "sigmoid",
    "sigmoid_cross_entropy", "silu", "softmax", "softmax_cross_entropy", "softplus", "softsign", "sqrt", "square",
    "squared_error", "stack", "std", "step", "subtract", "sum", "tanh", "transpose", "var", "where",
]  # fmt: skip
