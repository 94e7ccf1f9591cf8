"""What batches, outputs and declarations of users get wrong, or get right in unusual ways."""

from lightning_scaler.batches.addresses import find, replace


def test_an_index_counted_from_the_end_is_replaced():
    for holder in ((1, 2, 3), [1, 2, 3]):
        assert find(holder, (-1,)) == 3
        assert replace(holder, (-1,), 5) == type(holder)([1, 2, 5])
