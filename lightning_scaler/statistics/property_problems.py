"""Least-squares problems of the properties of a block, which share one where none is missing."""

import torch

from .least_squares import LeastSquares

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
    """The problems of both; properties share one if they share one on both sides."""
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
