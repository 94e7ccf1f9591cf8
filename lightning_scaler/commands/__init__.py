"""The Hydra applications of the package, and its configs on the search path of all others.

The highest room: imports any other.
"""
