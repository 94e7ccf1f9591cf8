"""Everything that merges: any chunks, in any order and tree, give the same results.

The expected results come from plain loops with ``math.fsum``.
"""

import math
from functools import cached_property

import numpy as np
import pytest
import torch
from builders import (
    Springs,
    atom_samples,
    atom_target,
    atomic_basis,
    forces,
    labels,
    mask_of,
    pair_target,
    spherical,
    structure_target,
    system,
)
from merge_battery import MergeTester
from metatensor.torch import TensorMap

from lightning_scaler import CompositionBaseline, ScaleAccumulator
from lightning_scaler.baselines import AdditiveCoverage, Contribution
from lightning_scaler.batches import Atoms
from lightning_scaler.statistics import BlockValues, TargetStatistics
from lightning_scaler.statistics.grouped_sums import compute_means
from lightning_scaler.statistics.least_squares import LeastSquares, make_problems, merge_problems
from lightning_scaler.statistics.means import Means, merge_means
from lightning_scaler.tensors import TargetLayout, from_state, to_state

NAN = float("nan")
TYPES = [1, 6, 8]

COMPOSITIONS = [
    *((8,), (1, 8, 1), (6, 8), (6, 1, 1, 1, 1), (1, 1), (8, 6, 8), (1, 6, 8), (6, 1, 1, 1)),
    *((8, 1), (6, 6, 1, 1), (1, 8, 8, 1), (6, 8, 1, 1), (6,), (1,), (8, 8), (6, 6, 6, 1, 1, 1)),
]


def counts_of(types):
    """Number of atoms of each type in TYPES."""
    return [types.count(atomic_type) for atomic_type in TYPES]


def present(numbers):
    return [float(x) for x in numbers if not math.isnan(x)]


def sq_sum(numbers):
    return math.fsum(x * x for x in present(numbers))


def sum_sq_dev(numbers):
    numbers = present(numbers)
    mean = math.fsum(numbers) / len(numbers) if numbers else 0.0
    return math.fsum((x - mean) ** 2 for x in numbers)


class TestMeans(MergeTester):
    """Means by type of two properties far from zero, some values missing."""

    n_observations = 40

    @cached_property
    def data(self):
        rng = np.random.default_rng(0)
        values = -1e5 + rng.normal(size=(40, 2, 2))
        values[rng.random(values.shape) < 0.2] = NAN
        return torch.from_numpy(values), torch.from_numpy(rng.integers(0, 3, 40))

    def read(self, observations):
        values, type_index = self.data
        rows = torch.tensor(list(observations), dtype=torch.int64)
        return Means(*compute_means([values[rows]], type_index[rows], 3))

    def merge(self, first, second):
        return merge_means(first, second)

    def results(self, means):
        exact = means.mean + means.mean_correction
        return {"counts": means.counts, "mean": exact, "sum_sq_dev": means.sum_sq_dev}

    def expected(self):
        values, type_index = self.data
        by_type = [
            [present(values[type_index == row][:, :, p].flatten()) for p in range(2)]
            for row in range(3)
        ]
        return {
            "counts": [[len(x) for x in row] for row in by_type],
            "mean": [[math.fsum(x) / len(x) for x in row] for row in by_type],
            "sum_sq_dev": [[sum_sq_dev(x) for x in row] for row in by_type],
        }

    def state(self, means):
        return to_state(means)

    def from_state(self, state):
        return from_state(Means, state)


class TestLeastSquares(MergeTester):
    """More rows than are kept before a reduction; most chunks have only some of the columns."""

    n_observations = 700
    tolerances = {"weights": 1e-10}  # noqa: RUF012

    @cached_property
    def data(self):
        rng = np.random.default_rng(1)
        matrix = rng.integers(0, 4, (700, 3)).astype(float)
        noise = 1e-2 * rng.normal(size=(700, 2))
        return matrix, matrix @ [[-1.0, 2.0], [-5.0, 1.0], [-9.0, 0.0]] + noise

    def read(self, observations):
        matrix, values = (array[list(observations)] for array in self.data)
        used = np.flatnonzero((matrix != 0).any(0))
        problem = LeastSquares(torch.tensor([TYPES[i] for i in used], dtype=torch.int64), 2)
        problem.add(torch.from_numpy(matrix[:, used]), torch.from_numpy(values))
        return problem

    def results(self, problem):
        every = problem.copy()
        every.extend(torch.tensor(TYPES))
        guess = torch.tensor(self.guess, dtype=torch.float64)
        return {
            "types": every.types,
            "weights": every.weights(),
            "sum_sq_residuals": every.sum_sq_residuals(guess),
            "column_norms": every.column_norms(),
        }

    guess = ((0.3, -1.0), (2.0, 0.1), (-0.7, 4.0))

    def expected(self):
        matrix, values = self.data
        residuals = values - matrix @ np.array(self.guess)
        return {
            "types": TYPES,
            "weights": np.linalg.lstsq(matrix, values, rcond=None)[0],
            "sum_sq_residuals": [sq_sum(residuals[:, p]) for p in range(2)],
            "column_norms": [math.sqrt(sq_sum(matrix[:, i])) for i in range(3)],
        }

    def from_state(self, state):
        return LeastSquares.from_state(state)


class TestProblems(MergeTester):
    """Problems of four properties, with missing values in two, that merge by splitting."""

    n_observations = 30
    weights = ((0.5, 1.0, -1.0, 2.0), (1.5, 0.0, 3.0, 0.2), (-2.0, 1.0, 0.1, 7.0))

    @cached_property
    def data(self):
        rng = np.random.default_rng(2)
        values = rng.normal(size=(30, 4))
        values[rng.random(30) < 0.3, 1] = NAN
        values[12, 3] = NAN
        return rng.integers(0, 4, (30, 3)).astype(float), values

    def read(self, observations):
        matrix, values = (torch.from_numpy(array[list(observations)]) for array in self.data)
        return make_problems(matrix, values[:, None], torch.tensor(TYPES))

    def merge(self, first, second):
        return merge_problems(first, second)

    def results(self, problems):
        found = torch.full((4,), torch.nan, dtype=torch.float64)
        weights = torch.tensor(self.weights, dtype=torch.float64)
        for properties, problem in problems:
            found[properties] = problem.sum_sq_residuals(weights[:, properties])
        return {"sum_sq_residuals": found}

    def expected(self):
        matrix, values = self.data
        residuals = values - matrix @ np.array(self.weights)
        return {"sum_sq_residuals": [sq_sum(residuals[:, p]) for p in range(4)]}

    def state(self, problems):
        return to_state(problems)

    def from_state(self, state):
        return from_state(list[tuple[list[int], LeastSquares]], state)


class TargetTester(MergeTester):
    """Statistics of one target of 16 systems; a chunk has only the types of its own systems."""

    n_observations = 16
    weights = ((0.5, -1.0), (1.5, 3.0), (-2.0, 0.25))

    def tensor(self, observations):
        """The target of some systems."""
        raise NotImplementedError

    def read(self, observations):
        systems = [system(*COMPOSITIONS[i]) for i in observations]
        tensor = self.tensor(list(observations))
        atoms = Atoms.from_systems(systems)
        types = sorted({z for i in observations for z in COMPOSITIONS[i]})
        return TargetStatistics.from_batch(
            TargetLayout.of("t", tensor),
            self.block_values(tensor),
            atoms,
            torch.tensor(types, dtype=torch.int64),
            extensive=True,
            baseline=True,
        )

    def block_values(self, tensor):
        return [BlockValues(block.values) for block in tensor.blocks()]

    def results(self, statistics):
        results = {"types": statistics.types}
        for key, block in statistics.blocks.items():
            n_properties = block.counts.shape[1]
            weights = torch.tensor(self.weights, dtype=torch.float64)[:, :n_properties]
            rows = torch.isin(torch.tensor(TYPES), statistics.types)
            applies = block.means is not None or block.totals_fit
            of_types = weights[rows] if applies else None
            results |= {
                f"counts {key}": block.counts,
                f"raw_sq_sum {key}": block.raw_sq_sum,
                f"residual_sq_sum {key}": block.residual_sq_sum(of_types),
                f"raw_sum_sq_dev {key}": block.raw_sum_sq_dev(),
                f"term_sq_sum {key}": block.term_sq_sum(of_types),
                f"epsilon {key}": block.epsilon,
            }
            if block.rounding_sq_sum is not None:
                # In units of the precision, so that the absolute tolerance means nothing here.
                results[f"rounding_sq_sum {key}"] = block.rounding_sq_sum * 2.0**46
        return results

    def state(self, statistics):
        return to_state(statistics)

    def from_state(self, state):
        return TargetStatistics.from_state("t", state)


class TestPerStructureStatistics(TargetTester):
    """Two properties of an extensive target, some values of the second missing."""

    @cached_property
    def values(self):
        values = np.random.default_rng(3).normal(size=(16, 2)) - 40.0
        values[[2, 9, 10], 1] = NAN
        return values

    def tensor(self, observations):
        return structure_target(self.values[observations].reshape(-1, 2))

    def expected(self):
        counts = np.array([counts_of(types) for types in COMPOSITIONS])
        n_atoms = counts.sum(1, keepdims=True)
        per_atom = self.values / n_atoms
        residuals = (self.values - counts @ np.array(self.weights)) / n_atoms
        return {
            "types": TYPES,
            "counts (0,)": [[16, 13]],
            "raw_sq_sum (0,)": [[sq_sum(per_atom[:, p]) for p in range(2)]],
            "residual_sq_sum (0,)": [[sq_sum(residuals[:, p]) for p in range(2)]],
            "raw_sum_sq_dev (0,)": sum(sum_sq_dev(per_atom[:, p]) for p in range(2)),
        }


class TestPerAtomStatistics(TargetTester):
    """Two properties per atom, some values masked, minus a contribution in float32."""

    atol = 1e-13

    @cached_property
    def values(self):
        return [np.random.default_rng(40 + i).normal(size=(len(z), 2)) + 3.0 for i, z in self.each]

    each = tuple(enumerate(COMPOSITIONS))

    def tensor(self, observations):
        values = np.concatenate([np.zeros((0, 2)), *(self.values[i] for i in observations)])
        return atom_target(values, atom_samples(*(len(COMPOSITIONS[i]) for i in observations)))

    def block_values(self, tensor):
        values = tensor.block().values
        return [BlockValues(values, mask=values < 4.0, contribution=values.round().float())]

    def expected(self):
        def column(atomic_type, p, function):
            numbers = [
                float(x)
                for values, (_, types) in zip(self.values, self.each, strict=True)
                for x, z in zip(values[:, p], types, strict=True)
                if z == atomic_type and x < 4.0
            ]
            return [function(x) for x in numbers]

        def table(function, of_column=sq_sum):
            return [[of_column(column(z, p, function)) for p in range(2)] for z in TYPES]

        weights = dict(zip(TYPES, self.weights, strict=True))
        residual = [
            [sq_sum(column(z, p, lambda x, w=weights[z][p]: x - round(x) - w)) for p in range(2)]
            for z in TYPES
        ]
        everything = [[x for z in TYPES for x in column(z, p, float)] for p in range(2)]
        return {
            "types": TYPES,
            "counts (0,)": table(float, len),
            "raw_sq_sum (0,)": table(float),
            "residual_sq_sum (0,)": residual,
            "raw_sum_sq_dev (0,)": sum(map(sum_sq_dev, everything)),
            "rounding_sq_sum (0,)": table(round),
        }


class TestRankTwoStatistics(TargetTester):
    """A rank-2 block per structure: the baseline is subtracted from its diagonal."""

    @cached_property
    def values(self):
        return np.random.default_rng(5).normal(size=(16, 3, 3, 1)) + 2.0

    def tensor(self, observations):
        axes = [labels(f"o3_mu_{i}", [-1, 0, 1]) for i in (1, 2)]
        names = ["o3_lambda_1", "o3_lambda_2", "o3_sigma_1", "o3_sigma_2"]
        values = self.values[observations].reshape(-1, 3, 3, 1)
        one = structure_target(values, components=axes).block()
        return TensorMap(labels(names, [[1, 1, 1, 1]]), [one.copy()])

    def expected(self):
        key = (1, 1, 1, 1)
        per_atom, residuals, diagonal = [], [], []
        for values, types in zip(self.values[..., 0], COMPOSITIONS, strict=True):
            baseline = sum(n * w[0] for n, w in zip(counts_of(types), self.weights, strict=True))
            per_atom += list((values / len(types)).flatten())
            residuals += list(((values - baseline * np.eye(3)) / len(types)).flatten())
            diagonal += list(np.diag(values) / len(types))
        off_diagonal = sq_sum(per_atom) - sq_sum(diagonal)
        return {
            f"counts {key}": [[16 * 9]],
            f"raw_sq_sum {key}": [[sq_sum(per_atom)]],
            f"residual_sq_sum {key}": [[sq_sum(residuals)]],
            f"raw_sum_sq_dev {key}": sum_sq_dev(diagonal) + off_diagonal,
        }


class TestAtomicBasisStatistics(TargetTester):
    """A chunk has blocks only for the types of its systems; those with lambda 0 have a baseline."""

    atol = 1e-13

    def tensor(self, observations):
        rows, scalars, vectors = ({z: [] for z in TYPES} for _ in range(3))
        for row, i in enumerate(observations):
            rng = np.random.default_rng(60 + i)
            for atom, z in enumerate(COMPOSITIONS[i]):
                rows[z].append([row, atom])
                scalars[z].append(rng.normal(size=(1, 2)))
                vectors[z].append(rng.normal(size=(3, 2)))
        found = [z for z in TYPES if rows[z]]
        values = {(0, z): np.array(scalars[z]) for z in found}
        values |= {(1, z): np.array(vectors[z]) for z in found}
        return atomic_basis(values, rows)

    def read(self, observations):
        self.observations = list(observations)
        return super().read(observations) if self.observations else self.empty()

    def empty(self):
        layout = TargetLayout.of("t", self.tensor([0]))
        return TargetStatistics(layout, torch.empty(0, dtype=torch.int64), {})

    def block_values(self, tensor):
        first_atom = np.cumsum([0, *(len(COMPOSITIONS[i]) for i in self.observations)])
        return [
            BlockValues(
                block.values,
                torch.tensor([first_atom[row] + atom for row, atom in block.samples.values]),
            )
            for block in tensor.blocks()
        ]

    def expected(self):
        results = {"types": TYPES}
        for key, block in self.tensor(range(16)).items():
            o3_lambda, _, atomic_type = name = tuple(key.values.tolist())
            row = TYPES.index(atomic_type)
            columns = block.values.permute(2, 0, 1).flatten(1).tolist()
            weights = self.weights[row] if o3_lambda == 0 else (0.0, 0.0)
            raw, residual = np.zeros((3, 2)), np.zeros((3, 2))
            raw[row] = [sq_sum(numbers) for numbers in columns]
            residual[row] = [
                sq_sum(x - w for x in numbers) for numbers, w in zip(columns, weights, strict=True)
            ]
            deviation = sum_sq_dev if o3_lambda == 0 else sq_sum
            results |= {
                f"raw_sq_sum {name}": raw,
                f"residual_sq_sum {name}": residual,
                f"raw_sum_sq_dev {name}": sum(map(deviation, columns)),
            }
        return results


class TestAdditiveCoverage(MergeTester):
    """Contributions to two of three targets, one block of which some batches do not have."""

    n_observations = 15

    def read(self, observations):
        coverage = AdditiveCoverage()
        for i in observations:
            blocks = {0: [[[1.0]]]} | ({1: torch.ones(1, 3, 1)} if i % 3 == 1 else {})
            tensors = {
                "s": spherical(blocks, labels("system", [0])),
                "e": structure_target([1.0]),
                "q": structure_target([2.0]),
            }
            part = Contribution(torch.zeros(1, 1), {}, ("positions",) if i == 10 else ())
            parts = {"s": [None, part][: len(blocks)], "e": [part]}
            layouts = {name: TargetLayout.of(name, tensor) for name, tensor in tensors.items()}
            coverage.merge(AdditiveCoverage.of_batch({"s", "e"}, layouts, parts))
        return coverage

    def results(self, coverage):
        state = coverage.state()
        return {"state": sorted(repr(sorted(part, key=repr)) for part in state.values())}

    def assert_close(self, found, expected):
        assert found == expected

    assert_equal = assert_close

    def expected(self):
        blocks = [("s", [0, 1], False), ("s", [1, 1], True), ("e", [0], True), ("q", [0], False)]
        parts = [["e", "s"], blocks, [("e", "positions"), ("s", "positions")]]
        return {"state": sorted(repr(sorted(part, key=repr)) for part in parts)}

    def from_state(self, state):
        return AdditiveCoverage.from_state(state)


@pytest.mark.filterwarnings("ignore:these data are zero")
class TestScaleAccumulator(MergeTester):
    """Targets of several kinds with missing values, a baseline and an additive module."""

    n_observations = 16
    tolerances = {"weights": 1e-10}  # noqa: RUF012
    additive = Springs()
    baseline = CompositionBaseline()

    def empty(self):
        return ScaleAccumulator(
            intensive_targets=["gap"], baseline=self.baseline, additive=self.additive
        )

    def read(self, observations):
        accumulator = self.empty()
        if len(observations):
            accumulator.update(*self.batch(list(observations)))
        return accumulator

    @cached_property
    def systems(self):
        return [system(*types) for types in COMPOSITIONS]

    @cached_property
    def numbers(self):
        """Values of every system, by target."""
        drawn = []
        for i, types in enumerate(COMPOSITIONS):
            rng, n = np.random.default_rng(80 + i), len(types)
            numbers = {
                "energy": -10.0 * sum(types) + rng.normal(size=1),
                "gap": rng.normal(size=2) + 4.0,
                "alpha0": rng.normal(size=(1, 1)) + 4.0,
                "alpha2": rng.normal(size=(5, 1)),
                "forces": rng.normal(size=(n, 3)),
                "charges": rng.normal(size=n),
                "hopping": rng.normal(size=1),
            }
            if i in (3, 8):
                numbers["energy"][:] = NAN
            if i in (2, 5, 11):
                numbers["gap"][1] = NAN
            numbers["charges"][numbers["charges"] > 1.2] = NAN
            drawn.append(numbers)
        return drawn

    def batch(self, observations):
        def stack(name):
            return np.stack([self.numbers[i][name] for i in observations])

        def join(name):
            return np.concatenate([self.numbers[i][name] for i in observations])

        counts = [len(COMPOSITIONS[i]) for i in observations]
        rows = labels("system", range(len(observations)))
        pairs = [[row, 0, 0, 1, 0, 0] for row in range(len(observations))]
        targets = {
            "energy": structure_target(stack("energy")),
            "gap": structure_target(stack("gap")),
            "alpha": spherical({0: stack("alpha0"), 2: stack("alpha2")}, rows),
            "forces": forces(join("forces"), *counts),
            "charges": atom_target(join("charges"), atom_samples(*counts)),
            "hopping": pair_target(join("hopping"), pairs),
        }
        masks = {"forces": mask_of(targets["forces"], [targets["forces"].block().values < 1.5])}
        return [self.systems[i] for i in observations], targets, masks

    def results(self, accumulator):
        try:
            scaler = accumulator.compute()
        except ValueError as error:
            assert "no target was seen" in str(error)  # noqa: PT017
            return {}
        results = {}
        for name, scales in scaler.targets.items():
            results[f"types {name}"] = scales.types
            results[f"per_target {name}"] = scales.per_target
            for key, table in scales.per_property.items():
                results[f"per_property {name} {key}"] = table
            for key, table in scales.weights.items():
                results[f"weights {name} {key}"] = table
            results[f"rms_before {name}"] = scales.rms_before
            results[f"rms_after {name}"] = scales.rms_after
            results[f"explained_variance {name}"] = scales.explained_variance
        return results

    def expected(self):
        """Scales of energies, forces and charges, and what is reported about energies."""
        springs = [0.5 * float(s.positions.square().sum()) for s in self.systems]
        totals = np.array([n["energy"][0] for n in self.numbers]) - springs
        rows = np.flatnonzero(~np.isnan(totals))
        matrix = np.array([counts_of(types) for types in COMPOSITIONS])[rows]
        weights = np.zeros(3)
        if self.baseline is not None:
            weights = np.linalg.lstsq(matrix, totals[rows], rcond=None)[0]
        residuals = (totals[rows] - matrix @ weights) / matrix.sum(1)
        by_type = {(name, z): [] for name in ("forces", "charges") for z in TYPES}
        for numbers, types in zip(self.numbers, COMPOSITIONS, strict=True):
            for atom, z in enumerate(types):
                by_type["forces", z] += [x for x in numbers["forces"][atom] if x < 1.5]
                by_type["charges", z] += present([numbers["charges"][atom] - 0.1 * z])
        spread = sq_sum if self.baseline is None else sum_sq_dev
        results = {"types charges": TYPES}
        for name, of_type in (("forces", sq_sum), ("charges", spread)):
            squares = [of_type(by_type[name, z]) for z in TYPES]
            counts = [len(by_type[name, z]) for z in TYPES]
            scales = [math.sqrt(s / n) for s, n in zip(squares, counts, strict=True)]
            pooled = math.sqrt(math.fsum(squares) / sum(counts))
            results[f"per_target {name}"] = [*scales, pooled, 1.0]
        rms = math.sqrt(sq_sum(residuals) / len(rows))
        results["per_target energy"] = [rms, rms, 1.0]
        raw = np.array([self.numbers[i]["energy"][0] for i in rows]) / matrix.sum(1)
        results["rms_before energy"] = math.sqrt(sq_sum(raw) / len(rows))
        results["rms_after energy"] = rms
        results["explained_variance energy"] = 1.0 - sq_sum(residuals) / spread(raw)
        if self.baseline is not None:
            results["weights energy (0,)"] = weights[:, None]
        return results

    def from_state(self, state):
        accumulator = self.empty()
        accumulator.merge_state(state)
        return accumulator


@pytest.mark.filterwarnings("ignore:subtracting the baseline makes these targets larger")
class TestScaleAccumulatorWithoutBaseline(TestScaleAccumulator):
    """The same targets without a baseline."""

    baseline = None
