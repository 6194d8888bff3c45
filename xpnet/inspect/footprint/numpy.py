"""What the accelerated operations for NumPy allocate, said on fake arrays.

Every function here stands for the one of the same operation in ``xpnet.accel.numpy``: it makes the arrays that this one
makes and keeps what it keeps, in the same order, and counts the working memory of its chunks. The tests compare the account
of whole training steps with what Python's tracemalloc measures.
"""

from xpnet.inspect.footprint import numpy_convolution as numpy_convolution
from xpnet.inspect.footprint import numpy_others as numpy_others
from xpnet.inspect.footprint import numpy_pooling as numpy_pooling
from xpnet.inspect.footprint import numpy_recurrent as numpy_recurrent
