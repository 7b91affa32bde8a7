"""One file per algorithm, and the pieces they share. No torch at import time: losses are written on tensor methods.

A new algorithm is a subclass of `base.Algorithm` in a file of its own, one YAML in `conf/algo/`, and one test that
checks it against numbers.
"""
