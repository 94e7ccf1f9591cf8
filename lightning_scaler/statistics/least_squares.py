"""Streaming linear least squares."""

from typing import Any

import torch

from .moments import Rows, minimum_norm_weights, reduce_rows, squares_left

# One reduction of this many rows costs about as much as one of ten.
ROWS_AT_ONCE = 512


class LeastSquares:
    """Linear least squares over rows that come in any chunks, by merging QR factors.

    Columns of the matrix are named by atomic types and may be added at any time. The memory held
    does not depend on the number of rows seen.

    Args:
        types: sorted atomic types, one per column, ``(n_columns,)``.
        n_properties: number of value columns that share the matrix.

    Example:
        Water and oxygen, of energies 4 and 3:

        >>> problem = LeastSquares(torch.tensor([1, 8]), n_properties=1)
        >>> counts = torch.tensor([[2.0, 1.0], [0.0, 1.0]]).double()
        >>> problem.add(counts, torch.tensor([[4.0], [3.0]]).double())
        >>> problem.weights()
        tensor([[0.5000],
                [3.0000]], dtype=torch.float64)
    """

    def __init__(self, types: torch.Tensor, n_properties: int) -> None:
        self.types = types
        self.n_properties = n_properties
        self._matrix: list[torch.Tensor] = []
        self._values: list[torch.Tensor] = []
        self._rest = torch.zeros(n_properties, dtype=torch.float64)

    def add(self, matrix: torch.Tensor, values: torch.Tensor) -> None:
        """Add rows: matrix ``(n_rows, n_columns)``, values ``(n_rows, n_properties)``."""
        self._matrix.append(matrix)
        self._values.append(values)
        if sum(chunk.shape[0] for chunk in self._matrix) > ROWS_AT_ONCE + self.types.numel():
            self._reduce()

    def merge(self, other: "LeastSquares") -> None:
        """Add all rows of another problem, whose columns may be others."""
        types = self.types
        if not torch.equal(types, other.types):
            types = torch.cat([types, other.types]).unique()
            self.extend(types)
        for matrix, values in zip(other._matrix, other._values, strict=True):
            self.add(_columns(matrix, other.types, types), values)
        self._rest = self._rest + other._rest

    def extend(self, types: torch.Tensor) -> None:
        """Take a sorted superset of the types as columns; the new ones are zero so far."""
        if not torch.equal(types, self.types):
            self._matrix = [_columns(matrix, self.types, types) for matrix in self._matrix]
            self.types = types

    def select(self, properties: list[int]) -> "LeastSquares":
        """A copy that holds only some of the value columns."""
        copy = LeastSquares(self.types, len(properties))
        copy._matrix = list(self._matrix)
        copy._values = [values[:, properties] for values in self._values]
        copy._rest = self._rest[properties]
        return copy

    def rows(self) -> Rows:
        """The reduced problem."""
        self._reduce()
        return Rows(self._matrix[0], self._values[0], self._rest)

    def weights(self) -> torch.Tensor:
        """Weights of smallest norm, ``(n_columns, n_properties)``; NaN for types without a row."""
        rows = self.rows()
        weights = minimum_norm_weights(rows)
        return torch.where((rows.matrix != 0.0).any(0)[:, None], weights, torch.nan)

    def squares_left(self, weights: torch.Tensor) -> torch.Tensor:
        """Sum of squared residuals for any weights, ``(n_properties,)``; unused types have none."""
        return squares_left(self.rows(), torch.nan_to_num(weights))

    def column_norms(self) -> torch.Tensor:
        """Euclidean norm of every column of the whole matrix, ``(n_columns,)``."""
        return self.rows().matrix.square().sum(0).sqrt()

    def state(self) -> dict[str, Any]:
        """The problem as plain Python objects and tensors."""
        rows = self.rows()
        return {"types": self.types, **rows._asdict()}

    @classmethod
    def from_state(cls, state: dict[str, Any]) -> "LeastSquares":
        """The inverse of :meth:`state`."""
        problem = cls(state["types"], state["rest"].numel())
        problem._matrix, problem._values = [state["matrix"]], [state["values"]]
        problem._rest = state["rest"]
        return problem

    def _reduce(self) -> None:
        if not self._matrix:
            self._matrix = [torch.zeros((0, self.types.numel()), dtype=torch.float64)]
            self._values = [torch.zeros((0, self.n_properties), dtype=torch.float64)]
        if len(self._matrix) > 1 or self._matrix[0].shape[0] > self.types.numel():
            reduced = reduce_rows(torch.cat(self._matrix), torch.cat(self._values))
            self._matrix, self._values = [reduced.matrix], [reduced.values]
            self._rest = self._rest + reduced.rest


def _columns(matrix: torch.Tensor, types: torch.Tensor, wanted: torch.Tensor) -> torch.Tensor:
    if torch.equal(types, wanted):
        return matrix
    columns = torch.zeros((matrix.shape[0], wanted.numel()), dtype=matrix.dtype)
    columns[:, torch.searchsorted(wanted, types)] = matrix
    return columns


Problems = list[tuple[list[int], LeastSquares]]


def read_problems(matrix: torch.Tensor, entries: torch.Tensor, types: torch.Tensor) -> Problems:
    """One problem for the properties without missing values, one for each of the others.

    Args:
        matrix: ``(n_samples, n_columns)``.
        entries: ``(n_samples, n_entries, n_properties)``, NaN where missing; the entries of a
            sample share its row of the matrix.
        types: one per column.

    Returns:
        Properties and their problem.
    """
    n_samples, n_entries, n_properties = entries.shape
    if n_entries != 1:
        matrix = matrix.repeat_interleave(n_entries, dim=0)
    values = entries.reshape(n_samples * n_entries, n_properties)
    present = ~torch.isnan(values)
    complete = present.all(0).tolist()
    problems = []
    together = [p for p in range(n_properties) if complete[p]]
    for properties in [together] * bool(together) + [
        [p] for p in range(n_properties) if not complete[p]
    ]:
        problem = LeastSquares(types, len(properties))
        if properties == together:
            # A copy, since what is kept must not change with the caller's tensors.
            problem.add(matrix, values[:, properties])
        else:
            keep = present[:, properties[0]]
            problem.add(matrix[keep], values[keep][:, properties])
        problems.append((properties, problem))
    return problems


def merge_problems(first: Problems, second: Problems) -> Problems:
    """Merge by properties, splitting off those that share a problem on one side only."""
    if [properties for properties, _ in first] == [properties for properties, _ in second]:
        for (_, mine), (_, yours) in zip(first, second, strict=True):
            mine.merge(yours)
        return first
    merged = []
    for properties, mine in first:
        for others, yours in second:
            common = [p for p in properties if p in others]
            if common:
                problem = mine.select([properties.index(p) for p in common])
                problem.merge(yours.select([others.index(p) for p in common]))
                merged.append((common, problem))
    return merged
