"""The commands ``lightning-scaler-…``, and our configs on the search path of every Hydra app.

The highest room: it may import any other.
"""
