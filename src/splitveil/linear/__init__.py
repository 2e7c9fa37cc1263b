"""A server's first layer as linear algebra: factors, for the dense and for the patch operator."""

from splitveil.linear.convolution import Convolution
from splitveil.linear.decompose import left_vectors
from splitveil.linear.factors import Factors, Operator
from splitveil.linear.maps import FullyConnected, LinearMap, TokenWise
from splitveil.linear.operators import DEFAULT_TOP, FULL_UP_TO, factorise, rank_tolerance

__all__ = [
    "DEFAULT_TOP",
    "FULL_UP_TO",
    "Convolution",
    "Factors",
    "FullyConnected",
    "LinearMap",
    "Operator",
    "TokenWise",
    "factorise",
    "left_vectors",
    "rank_tolerance",
]
