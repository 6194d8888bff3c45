"""Accelerated operations for NumPy arrays. The registry imports this package when it meets the first such array."""

from xpnet.accel.numpy import average_pooling as average_pooling
from xpnet.accel.numpy import convolution as convolution
from xpnet.accel.numpy import elementwise as elementwise
from xpnet.accel.numpy import embedding as embedding
from xpnet.accel.numpy import fused as fused
from xpnet.accel.numpy import linear as linear
from xpnet.accel.numpy import max_pooling as max_pooling
from xpnet.accel.numpy import memory as memory
from xpnet.accel.numpy import normalization as normalization
from xpnet.accel.numpy import recurrent as recurrent
from xpnet.accel.numpy import rules as rules
from xpnet.accel.numpy import softmax as softmax

memory.keep_freed_memory()
