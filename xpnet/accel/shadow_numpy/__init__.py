"""What the accelerated operations for NumPy allocate, said on shadows.

Every function here stands for the one of the same operation in ``xpnet.accel.numpy``: it makes the arrays that this one
makes and keeps what it keeps, in the same order, and counts the working memory of its chunks. The tests compare the account
of whole training steps with what Python's tracemalloc measures.
"""

from xpnet.accel.shadow_numpy import convolution as convolution
from xpnet.accel.shadow_numpy import others as others
from xpnet.accel.shadow_numpy import pooling as pooling
from xpnet.accel.shadow_numpy import recurrent as recurrent
