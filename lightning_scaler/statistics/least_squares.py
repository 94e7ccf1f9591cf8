"""Linear least squares over rows that arrive in chunks, and one problem for several properties."""

from dataclasses import dataclass
from typing import Annotated, Any, NamedTuple

import torch

from ..tensors import TensorCheck, check_shapes, from_state

# A reduction of 512 rows takes about as long as one of 10 rows.
MAX_PENDING_ROWS = 512


class ReducedRows(NamedTuple):
    r"""A least-squares problem reduced to at most ``n_columns`` rows.

    With :math:`A` the matrix and :math:`y` the values of all rows,
    :math:`|A w - y|^2 = |R w - z|^2 + r` for every :math:`w`.

    Attributes:
        matrix: :math:`R`, ``(n_rows, n_columns)``.
        values: :math:`z`, ``(n_rows, n_properties)``.
        residual_ss: :math:`r`, the sum of squares that no weights explain, ``(n_properties,)``.
    """

    matrix: torch.Tensor
    values: torch.Tensor
    residual_ss: torch.Tensor


def reduce_rows(matrix: torch.Tensor, values: torch.Tensor) -> ReducedRows:
    """Reduce a least-squares problem by QR.

    The normal equations would cancel: totals of 1e5 with residuals of 1e-3 leave no digit, while
    the error of QR is a few roundings of the totals. Each property is treated by itself: scaling
    one by a power of two scales its results exactly.

    Args:
        matrix: ``(n_rows, n_columns)`` float64.
        values: ``(n_rows, n_properties)`` float64, none missing.

    Source: G. H. Golub, C. F. Van Loan, Matrix Computations, section 5.3.
    """
    n_columns = matrix.shape[1]
    # Without the orthogonal factor it takes a third of the time.
    triangular = torch.linalg.qr(torch.cat([matrix, values], 1), mode="r").R
    residual_ss = triangular[n_columns:, n_columns:].square().sum(0)
    return ReducedRows(
        triangular[:n_columns, :n_columns], triangular[:n_columns, n_columns:], residual_ss
    )


def minimum_norm_weights(rows: ReducedRows) -> torch.Tensor:
    """The least-squares weights of smallest norm, ``(n_columns, n_properties)``.

    Directions that the matrix does not determine get no weight, instead of an error or 1e12.
    """
    left, singular, right = torch.linalg.svd(rows.matrix, full_matrices=False)
    determined = singular > 1e-11 * singular.max() if singular.numel() else singular > 0
    left, singular, right = left[:, determined], singular[determined], right[determined]
    weights = torch.zeros((rows.matrix.shape[1], rows.values.shape[1]), dtype=rows.values.dtype)
    for _ in range(2):  # the second time corrects rounding errors
        remaining = rows.values - rows.matrix @ weights
        weights = weights + right.T @ ((left.T @ remaining) / singular[:, None])
    return weights


def sum_sq_residuals(rows: ReducedRows, weights: torch.Tensor) -> torch.Tensor:
    """Sum of squared residuals of the whole problem for any weights, ``(n_properties,)``."""
    return (rows.values - rows.matrix @ weights).square().sum(0) + rows.residual_ss


class LeastSquares:
    """Streaming linear least squares.

    The matrix has one column per atomic type; columns can be added at any time. Memory does not
    grow with the number of rows.

    Args:
        types: sorted atomic types, one per column, ``(n_columns,)``.
        n_properties: number of properties that share the matrix.

    Example:
        Energies of water and an oxygen atom, 4 and 3:

        >>> problem = LeastSquares(torch.tensor([1, 8]), n_properties=1)
        >>> composition = torch.tensor([[2.0, 1.0], [0.0, 1.0]]).double()
        >>> problem.add(composition, torch.tensor([[4.0], [3.0]]).double())
        >>> problem.weights()
        tensor([[0.5000],
                [3.0000]], dtype=torch.float64)
    """

    def __init__(self, types: torch.Tensor, n_properties: int) -> None:
        self.types = types
        self.n_properties = n_properties
        self._matrices: list[torch.Tensor] = []
        self._values: list[torch.Tensor] = []
        self._residual_ss = torch.zeros(n_properties, dtype=torch.float64)

    def add(self, matrix: torch.Tensor, values: torch.Tensor) -> None:
        """Add rows: matrix ``(n_rows, n_columns)``, values ``(n_rows, n_properties)``."""
        self._matrices.append(matrix)
        self._values.append(values)
        if sum(len(chunk) for chunk in self._matrices) > MAX_PENDING_ROWS + self.types.numel():
            self._reduce()

    def merge(self, other: "LeastSquares") -> None:
        """Add all rows of another problem, which may have other types and remains unchanged."""
        types = self.types
        if not torch.equal(types, other.types):
            types = torch.cat([types, other.types]).unique()
            self.extend(types)
        for matrix, values in zip(other._matrices, other._values, strict=True):
            self.add(_reindex_columns(matrix, other.types, types), values)
        self._residual_ss = self._residual_ss + other._residual_ss

    def extend(self, types: torch.Tensor) -> None:
        """Add columns of zeros, so that the columns are those of a sorted superset of types."""
        if not torch.equal(types, self.types):
            self._matrices = [_reindex_columns(m, self.types, types) for m in self._matrices]
            self.types = types

    def copy(self) -> "LeastSquares":
        """A copy that later rows leave unchanged."""
        copy = LeastSquares(self.types, self.n_properties)
        # No tensor is changed in place.
        copy._matrices, copy._values = list(self._matrices), list(self._values)
        copy._residual_ss = self._residual_ss
        return copy

    def select(self, properties: list[int]) -> "LeastSquares":
        """A copy with only some of the properties."""
        copy = LeastSquares(self.types, len(properties))
        copy._matrices = list(self._matrices)
        copy._values = [values[:, properties] for values in self._values]
        copy._residual_ss = self._residual_ss[properties]
        return copy

    def rows(self) -> ReducedRows:
        """The reduced problem."""
        self._reduce()
        # Sums are rounded by the order in memory, which a problem from a file would not share.
        matrix, values = (
            part[0].clone(memory_format=torch.contiguous_format)
            for part in (self._matrices, self._values)
        )
        return ReducedRows(matrix, values, self._residual_ss)

    def weights(self, fixed: torch.Tensor | None = None) -> torch.Tensor:
        """Weights of smallest norm, ``(n_columns, n_properties)``; NaN for types in no row.

        Args:
            fixed: weights that are not fitted, ``(n_columns, n_properties)``; NaN for those
                that are fitted to the remainder.
        """
        rows = self.rows()
        if fixed is None:
            fixed = torch.full((self.types.numel(), self.n_properties), torch.nan).double()
        weights = fixed.clone()
        remaining = rows.values - rows.matrix @ torch.nan_to_num(fixed)
        to_fit = list(map(tuple, fixed.isnan().T.tolist()))
        for pattern in set(to_fit):  # the same weights are fitted for all of these
            properties = [p for p in range(self.n_properties) if to_fit[p] == pattern]
            free = torch.tensor(pattern, dtype=torch.bool)
            matrix = rows.matrix[:, free]
            of_pattern = ReducedRows(matrix, remaining[:, properties], rows.residual_ss)
            fitted = minimum_norm_weights(of_pattern)
            fitted = torch.where((matrix != 0.0).any(0)[:, None], fitted, torch.nan)
            weights[free.nonzero(), torch.tensor(properties)] = fitted
        return weights

    def sum_sq_residuals(self, weights: torch.Tensor) -> torch.Tensor:
        """Sum of squared residuals for any weights, ``(n_properties,)``; NaN weights count as 0."""
        return sum_sq_residuals(self.rows(), torch.nan_to_num(weights))

    def column_norms(self) -> torch.Tensor:
        """Euclidean norm of every column of the whole matrix, ``(n_columns,)``."""
        return self.rows().matrix.square().sum(0).sqrt()

    def state(self) -> dict[str, Any]:
        """The reduced problem as plain Python objects and tensors."""
        return {"types": self.types, **self.rows()._asdict()}

    @classmethod
    def from_state(cls, state: Any) -> "LeastSquares":
        """The inverse of :meth:`state`.

        Raises:
            InvalidStateError: for a state that is not that of a least-squares problem.
        """
        saved: _SavedProblem = from_state(_SavedProblem, state)
        n_rows = {"n_rows": len(saved.matrix)}
        sizes = {"n_columns": saved.types.numel(), "n_properties": saved.residual_ss.numel()}
        check_shapes(saved, {**n_rows, **sizes})
        problem = cls(saved.types, saved.residual_ss.numel())
        problem._matrices, problem._values = [saved.matrix], [saved.values]
        problem._residual_ss = saved.residual_ss
        return problem

    def _reduce(self) -> None:
        if not self._matrices:
            self._matrices = [torch.zeros((0, self.types.numel()), dtype=torch.float64)]
            self._values = [torch.zeros((0, self.n_properties), dtype=torch.float64)]
        if len(self._matrices) > 1 or len(self._matrices[0]) > self.types.numel():
            reduced = reduce_rows(torch.cat(self._matrices), torch.cat(self._values))
            self._matrices, self._values = [reduced.matrix], [reduced.values]
            self._residual_ss = self._residual_ss + reduced.residual_ss


# Properties, and the problem that they share.
Problems = list[tuple[list[int], LeastSquares]]


def make_problems(matrix: torch.Tensor, values: torch.Tensor, types: torch.Tensor) -> Problems:
    """One problem for all properties without missing values, and one for each other property.

    Args:
        matrix: ``(n_samples, n_types)``.
        values: ``(n_samples, n_components, n_properties)``, NaN where missing; all components of a
            sample share its row of the matrix.
        types: sorted atomic types, ``(n_types,)``.
    """
    n_samples, n_components, n_properties = values.shape
    if n_components != 1:
        matrix = matrix.repeat_interleave(n_components, dim=0)
    values = values.reshape(n_samples * n_components, n_properties)
    present = ~torch.isnan(values)
    complete = present.all(0).tolist()
    problems: Problems = []
    shared = [p for p in range(n_properties) if complete[p]]
    if shared:
        problem = LeastSquares(types, len(shared))
        # Indexing copies: the caller may change its values afterwards.
        problem.add(matrix, values[:, shared])
        problems.append((shared, problem))
    for p in range(n_properties):
        if not complete[p]:
            problem = LeastSquares(types, 1)
            problem.add(matrix[present[:, p]], values[present[:, p]][:, [p]])
            problems.append(([p], problem))
    return problems


def merge_problems(first: Problems, second: Problems) -> Problems:
    """The problems of both; properties share a problem where they do in both."""
    if [properties for properties, _ in first] == [properties for properties, _ in second]:
        pairs = zip(first, second, strict=True)
        return [(properties, _merge(ours, theirs)) for (properties, ours), (_, theirs) in pairs]
    merged = []
    for properties, ours in first:
        for others, theirs in second:
            common = [p for p in properties if p in others]
            if common:
                our_part = ours.select([properties.index(p) for p in common])
                their_part = theirs.select([others.index(p) for p in common])
                merged.append((common, _merge(our_part, their_part)))
    return merged


def _merge(first: LeastSquares, second: LeastSquares) -> LeastSquares:
    merged = first.copy()
    merged.merge(second)
    return merged


def _reindex_columns(matrix: torch.Tensor, old: torch.Tensor, new: torch.Tensor) -> torch.Tensor:
    if torch.equal(old, new):
        return matrix
    columns = torch.zeros((len(matrix), new.numel()), dtype=matrix.dtype)
    columns[:, torch.searchsorted(new, old)] = matrix
    return columns


@dataclass(frozen=True)
class _SavedProblem:
    types: Annotated[torch.Tensor, TensorCheck("n_columns", dtype=torch.int64)]
    matrix: Annotated[torch.Tensor, TensorCheck("n_rows", "n_columns")]
    values: Annotated[torch.Tensor, TensorCheck("n_rows", "n_properties")]
    residual_ss: Annotated[torch.Tensor, TensorCheck("n_properties")]
