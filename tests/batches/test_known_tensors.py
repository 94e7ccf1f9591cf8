"""What has been found out about the TensorMaps of a batch."""

import copy
import pickle

from builders import structure_target

from lightning_scaler.batches.known_tensors import ROOM, Known, KnownTensors


def test_tensors_are_told_apart_by_identity():
    tensors, one, same = KnownTensors(), structure_target([1.0]), structure_target([1.0])
    tensors.learn(one, Known(True))
    assert tensors.get(one) == Known(True)
    assert tensors.get(same) is None
    tensors.learn_same(one, same)
    assert tensors.get(one) == Known(True)
    tensors.learn_same(same, one)
    tensors.learn(one, Known(False))
    assert (tensors.get(one), tensors.get(same)) == (Known(False), Known(True))


def test_what_is_gone_is_forgotten():
    tensors, tensor, other = KnownTensors(), structure_target([1.0]), structure_target([1.0])
    tensors.learn(tensor, Known(True))
    # Another TensorMap may come to lie where the first one was.
    tensors._entries[id(other)] = tensors._entries[id(tensor)]
    assert tensors.get(other) is None
    for _ in range(3 * ROOM):
        tensors.learn(structure_target([1.0]), Known(False))
        assert len(tensors._entries) < 2 * ROOM
    assert tensors.get(tensor) == Known(True)


def test_what_lives_is_kept_however_much_it_is():
    tensors, living = KnownTensors(), [structure_target([1.0]) for _ in range(3 * ROOM)]
    for tensor in living:
        tensors.learn(tensor, Known(True))
    assert all(tensors.get(tensor) == Known(True) for tensor in living)


def test_copies_know_nothing():
    tensors, tensor = KnownTensors(), structure_target([1.0])
    tensors.learn(tensor, Known(True, original=tensor))
    for copied in (copy.deepcopy(tensors), pickle.loads(pickle.dumps(tensors))):
        assert copied.get(tensor) is None
