"""Models of the real classes with random weights, saved in the hub's own layout: public, for tests (tiny) and benchmarks (full size).

What they make is noise; that they load, batch and fit is real. Speed does not depend on the weights' values.
"""
