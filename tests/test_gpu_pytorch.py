"""The kernels that PyTorch launches for a training step are counted from its operators."""

from __future__ import annotations

import importlib.metadata

import pytest

from benchmarks import gpu_budget, nets
from benchmarks.gpu_model import H100
from benchmarks.gpu_nets import Counted, networks
from benchmarks.gpu_pytorch import COVERED, LAUNCH_SECONDS, UnknownOperatorError, budget, estimate, kernels_of, step_of

pytest.importorskip("torch")


def names(net, shape, batch=8):
    return sorted(kernel.name for kernel in step_of(Counted("", net, shape, batch), "float32"))


LOSS = ["_log_softmax", "_log_softmax_backward_data", "fill", "fused SGD", "nll_loss_backward", "nll_loss_forward", "ones_like"]


def test_a_dense_network_has_the_kernels_that_one_counts_by_hand():
    forward, backward = ["addmm", "addmm", "relu"], ["mm", "mm", "mm", "sum", "sum", "threshold_backward"]
    assert names(nets.mlp(16, 4), (5,)) == sorted([*forward, *backward, *LOSS])


def test_a_convolution_has_two_products_backward_and_the_bias_apart():
    net = [nets.conv(4, 3), nets.relu(), nets.conv(4, 3, bias=False), nets.flatten(), nets.dense(4)]
    found = names(net, (6, 6, 3))
    assert found.count("convolution") == 2
    assert found.count("convolution_backward") == 3  # nobody needs the gradient of the images
    assert found.count("bias") == 2


def test_products_count_two_operations_for_a_multiplication():
    kernels = step_of(Counted("", [nets.dense(4)], (5,), 8), "float32")
    assert sum(kernel.operations for kernel in kernels) == 2 * (2 * 8 * 5 * 4)


def test_an_operator_that_is_not_known_is_an_error():
    with pytest.raises(UnknownOperatorError, match="cholesky"):
        kernels_of("cholesky", (), None, "float32")


@pytest.mark.parametrize("counted", [c for c in networks() if c.name in COVERED], ids=lambda c: c.name)
def test_every_covered_network_is_counted(counted):
    found = estimate(H100, step_of(counted, "tf32"))
    assert found.kernels > 10
    assert found.bytes > 0
    assert found.eager >= found.graph > 0
    assert found.eager >= found.kernels * LAUNCH_SECONDS.value
    half = estimate(H100, step_of(counted, "bfloat16"))
    assert half.kernels == found.kernels
    assert half.bytes < found.bytes


def test_the_budget_holds_these_counts():
    written, found = gpu_budget.load()["PyTorch"], budget()
    assert written.keys() == found.keys()
    if {row["version"] for row in written.values()} != {importlib.metadata.version("torch").partition("+")[0]}:
        pytest.skip("the budget was made with another version of PyTorch")
    assert written == found, f"write the budget again: {gpu_budget.WRITE}"
