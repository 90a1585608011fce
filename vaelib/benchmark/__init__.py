"""Which way to run a model is fastest on this machine, and whether it still gives the right numbers.

:func:`vaelib.benchmark.matrix.measure` answers it, and ``vaelib benchmark`` on the command line.
"""
