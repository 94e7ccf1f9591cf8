"""One battery of tests for everything that is read in parts and merged.

A subclass says how its statistic is read from some observations, merged and evaluated; it inherits
the tests, as those of torchmetrics inherit from ``MetricTester``.
"""

import copy
import pickle
from collections.abc import Iterator, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
import torch

Results = dict[str, Any]


class MergeTester:
    """Tests of a statistic of :attr:`n_observations` numbered observations.

    Attributes:
        n_observations: number of observations; 14 at least, so that 7 are not all of them.
        rtol: relative tolerance of all results.
        tolerances: relative tolerances of some results, by the beginning of their names.
        atol: absolute tolerance, for results that may be zero up to rounding.
    """

    n_observations: ClassVar[int]
    rtol: ClassVar[float] = 1e-12
    atol: ClassVar[float] = 0.0
    tolerances: ClassVar[dict[str, float]] = {}

    def read(self, observations: Sequence[int]) -> Any:
        """The statistic of some observations, in this order."""
        raise NotImplementedError

    def empty(self) -> Any:
        """The statistic of no observations."""
        return self.read([])

    def merge(self, first: Any, second: Any) -> Any:
        """Both together; the first one may be changed and returned."""
        first.merge(second)
        return first

    def results(self, statistic: Any) -> Results:
        """All that is computed from it, as arrays and numbers by name."""
        raise NotImplementedError

    def expected(self) -> Results:
        """Some results of all observations, computed without the package."""
        raise NotImplementedError

    def state(self, statistic: Any) -> Any:
        """Plain objects and tensors."""
        return statistic.state()

    def from_state(self, state: Any) -> Any:
        """The inverse of :meth:`state`."""
        raise NotImplementedError

    # The tests

    def test_results_equal_an_independent_computation(self):
        self.assert_close(self.results(self.read(range(self.n_observations))), self.expected())

    @pytest.mark.parametrize("chunks", ["one by one", "pairs", "sevens", "uneven"])
    def test_any_chunks_equal_one_chunk(self, chunks):
        whole = self.results(self.read(range(self.n_observations)))
        merged = self.merged(self.read(chunk) for chunk in self.chunks(chunks))
        self.assert_close(self.results(merged), whole)

    @pytest.mark.parametrize("seed", range(3))
    def test_chunks_in_any_order_equal_one_chunk(self, seed):
        whole = self.results(self.read(range(self.n_observations)))
        chunks = self.chunks("uneven")
        np.random.default_rng(seed).shuffle(chunks)
        self.assert_close(self.results(self.merged(self.read(chunk) for chunk in chunks)), whole)

    @pytest.mark.parametrize("tree", ["balanced", "from the last", "into an empty one"])
    def test_chunks_merged_in_any_tree_equal_one_chunk(self, tree):
        whole = self.results(self.read(range(self.n_observations)))
        parts = [self.read(chunk) for chunk in self.chunks("uneven")]
        if tree == "balanced":
            while len(parts) > 1:
                pairs = [parts[i : i + 2] for i in range(0, len(parts), 2)]
                parts = [self.merged(pair) for pair in pairs]
            merged = parts[0]
        elif tree == "from the last":
            merged = parts.pop()
            while parts:
                merged = self.merge(parts.pop(), merged)
        else:
            merged = self.merged([self.empty(), *parts])
        self.assert_close(self.results(merged), whole)

    def test_merging_with_an_empty_one_changes_nothing(self):
        part = self.read(range(5))
        before = self.results(copy.deepcopy(part))
        self.assert_close(self.results(self.merge(self.empty(), copy.deepcopy(part))), before)
        self.assert_close(self.results(self.merge(part, self.empty())), before)
        nothing = self.results(self.empty())
        self.assert_close(self.results(self.merge(self.empty(), self.empty())), nothing)

    @pytest.mark.parametrize("few", [False, True])
    def test_merging_leaves_the_second_one_unchanged(self, few):
        second = self.read(range(1) if few else range(5, self.n_observations))
        before = self.results(copy.deepcopy(second))
        for first in (self.empty(), self.read(range(5))):
            # Three merges: the first one must not share with the second what later ones change.
            merged = self.merge(first, second)
            merged = self.merge(merged, self.read(range(3)))
            self.merge(merged, second)
            self.assert_equal(self.results(second), before)

    @pytest.mark.parametrize("copy_of", [copy.deepcopy, lambda x: pickle.loads(pickle.dumps(x))])
    def test_copies_are_equal_and_independent(self, copy_of):
        original = self.read(range(5))
        before = self.results(copy_of(original))
        other = copy_of(original)
        self.assert_equal(self.results(other), before)
        other = self.merge(copy_of(original), self.read(range(5, self.n_observations)))
        self.assert_equal(self.results(original), before)
        self.assert_close(self.results(other), self.results(self.read(range(self.n_observations))))

    def test_state_is_restored_without_pickled_code(self, tmp_path: Path):
        parts = [self.read(range(5)), self.read(range(5, self.n_observations)), self.empty()]
        restored = []
        for i, part in enumerate(parts):
            torch.save(self.state(part), tmp_path / f"{i}.pt")
            state = torch.load(tmp_path / f"{i}.pt", weights_only=True)
            restored.append(self.from_state(state))
            self.assert_close(self.results(self.from_state(state)), self.results(part))
        whole = self.results(self.read(range(self.n_observations)))
        self.assert_close(self.results(self.merged(restored)), whole)

    # Helpers

    def chunks(self, how: str) -> list[list[int]]:
        """All observations in chunks; the uneven ones include empty ones."""
        everything = list(range(self.n_observations))
        if how == "uneven":
            ends = [0, 0, 1, 5, 5, 12, 13, self.n_observations, self.n_observations]
            return [everything[a:b] for a, b in pairwise(ends)]
        size = {"one by one": 1, "pairs": 2, "sevens": 7}[how]
        return [everything[i : i + size] for i in range(0, len(everything), size)]

    def merged(self, parts: Sequence[Any] | Iterator[Any]) -> Any:
        """All of them, each merged into the first."""
        parts = iter(parts)
        total = next(parts)
        for part in parts:
            total = self.merge(total, part)
        return total

    def assert_close(self, found: Results, expected: Results) -> None:
        """The same results up to rounding; ``found`` may have more of them."""
        assert expected.keys() <= found.keys()
        for name, numbers in expected.items():
            near = [rtol for start, rtol in self.tolerances.items() if name.startswith(start)]
            np.testing.assert_allclose(
                _array(found[name]),
                _array(numbers),
                rtol=near[0] if near else self.rtol,
                atol=self.atol,
                err_msg=name,
            )

    def assert_equal(self, found: Results, expected: Results) -> None:
        """The same results to the last bit."""
        assert expected.keys() == found.keys()
        for name, numbers in expected.items():
            np.testing.assert_array_equal(_array(found[name]), _array(numbers), err_msg=name)


def _array(numbers: Any) -> np.ndarray:
    return numbers.numpy() if isinstance(numbers, torch.Tensor) else np.asarray(numbers)
