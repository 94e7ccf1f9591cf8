"""Targets that are plain tensors, as a user declares them."""

from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import TYPE_CHECKING, Any, ClassVar, Literal, TypeAlias

from ..settings import did_you_mean
from .addresses import Address, Path, parse_address

if TYPE_CHECKING:
    Gradients: TypeAlias = Mapping[str, Address | "GradientTensor"]
    Components: TypeAlias = str | Mapping[str, int] | None
    OtherAddress: TypeAlias = Address | Literal[False] | None
else:
    # Configs of Hydra can hold no object whose fields have other types.
    Gradients = Components = Address = OtherAddress = Any

VECTOR, MATRIX = "xyz", "matrix"
SHAPES = {None: (), VECTOR: (3,), MATRIX: (3, 3)}
PARAMETERS = ("positions", "strain")

# What declares a stress, in messages.
STRESS = "gradients={'strain': {'tensor': 'stress', 'volume': 'cell'}}"


@dataclass(frozen=True)
class GradientTensor:
    """Where a gradient of a declared target is found, and how it differs from the tensor there.

    Args:
        tensor: address in the batch; a minus before it, ``"-forces"``, means that the gradient is
            minus the tensor there.
        prediction: address in the output of the network; default: the same. It has the sign of
            ``tensor``, unless it begins with a minus or a plus. ``False``: the output has none,
            because the steps of the module differentiate the values in it.
        volume: for a stress, address in the batch of the volumes, ``(n_structures,)``, or the
            cells, ``(n_structures, 3, 3)``. The gradient with respect to strain is then the tensor
            times the volume. ``False``: the tensor is a virial, whatever its name is.
    """

    tensor: Address
    prediction: OtherAddress = None
    volume: OtherAddress = None


@dataclass(frozen=True, repr=False)
class DeclaredTarget:
    """What :class:`PerStructure` and :class:`PerAtom` have in common."""

    tensor: Address | None = None
    prediction: Address | None = None
    components: Components = None
    properties: int | None = None
    unit: str | None = None

    per: ClassVar[str]

    def __post_init__(self) -> None:
        # Settings from YAML have types of their own.
        for name in ("tensor", "prediction"):
            address = getattr(self, name)
            if address is not None:
                self._set(name, parse_address(self._where(name), address))
        self._set("components", _parse_components(self._where("components"), self.components))
        if self.properties is not None and (
            isinstance(self.properties, bool)
            or not isinstance(self.properties, int)
            or self.properties < 1
        ):
            raise ValueError(
                f"{self._where('properties')}: expected the number of properties, the columns of "
                f"the tensor, got {self.properties!r}"
            )
        if self.unit is not None and not isinstance(self.unit, str):
            raise TypeError(f"{self._where('unit')}: expected a string, got {self.unit!r}")

    @property
    def shape(self) -> tuple[int, ...]:
        """Number of components along each axis, without samples and properties."""
        if self.components is None or isinstance(self.components, str):
            return SHAPES[self.components]
        return (2 * self.components["spherical"] + 1,)

    def arguments(self) -> dict[str, Any]:
        """The arguments that differ from their defaults, as plain values, as in YAML."""
        found: dict[str, Any] = {"per": self.per}
        for one in fields(self):
            value = getattr(self, one.name)
            if value not in (one.default, {}):
                found[one.name] = _plain(value)
        return found

    def __repr__(self) -> str:
        arguments = [f"{k}={v!r}" for k, v in self.arguments().items() if k != "per"]
        return f"{type(self).__name__}({', '.join(arguments)})"

    def _where(self, name: str) -> str:
        return f"{type(self).__name__}({name}=…)"

    def _set(self, name: str, value: Any) -> None:
        object.__setattr__(self, name, value)


@dataclass(frozen=True, repr=False)
class PerStructure(DeclaredTarget):
    """A target with one row for each structure, in plain tensors: an energy, a dipole, a gap.

    Args:
        tensor: address in the batch: a key, an attribute, an index, a tuple of these for nested
            objects, or a column, as in ``("y", 1)``. Default: the name of the target.
        prediction: address in the output of the network. Default: the same, or the name of the
            target where the output has nothing at that address.
        components: ``None`` for scalars, ``"xyz"`` for vectors, ``"matrix"`` for 3 x 3 matrices,
            ``{"spherical": l}`` for real spherical tensors with components -l to l.
        properties: number of properties in the last axis, if there is more than one.
        unit: unit of the values in the data.
        gradients: addresses of gradients by parameter. ``{"positions": "-forces"}``: forces, which
            are minus the gradient, ``(n_atoms, 3)``; ``{"strain": "-virial"}``: a virial,
            ``(n_structures, 3, 3)``; ``{"strain": {"tensor": "stress", "volume": "cell"}}``: a
            stress, and the volumes or cells by which it is multiplied. The output has the gradient
            at the same address, with the same sign, or at ``{"prediction": …}`` beside ``tensor``.
        intensive: the values do not grow with the number of atoms, and are not divided by it.
        per_atom: the values are those of an extensive target divided by the number of atoms.

    Tensors have the shape ``(n_structures, *components)`` or ``(n_structures, *components,
    n_properties)``.

    Raises:
        TypeError, ValueError: for an argument of another kind.

    Example:
        >>> PerStructure(gradients={"positions": "-forces"}, unit="eV").arguments()
        {'per': 'structure', 'unit': 'eV', 'gradients': {'positions': '-forces'}}
    """

    gradients: Gradients = field(default_factory=dict)
    intensive: bool = False
    per_atom: bool = False

    per: ClassVar[str] = "structure"

    def __post_init__(self) -> None:
        super().__post_init__()
        if not isinstance(self.gradients, Mapping):
            raise TypeError(
                f"{self._where('gradients')}: expected addresses by parameter, such as "
                f"{{'positions': '-forces'}}, got {self.gradients!r}"
            )
        gradients = {}
        for parameter, value in self.gradients.items():
            if parameter not in PARAMETERS:
                raise ValueError(
                    f"{self._where('gradients')}: expected the parameters {list(PARAMETERS)}, got "
                    f"{parameter!r}; forces are minus the gradient with respect to 'positions', "
                    "{'positions': '-forces'}"
                )
            where = f"{type(self).__name__}(gradients={{'{parameter}': …}})"
            gradients[parameter] = _parse_gradient(where, parameter, value)
        self._set("gradients", gradients)
        for name in ("intensive", "per_atom"):
            if not isinstance(getattr(self, name), bool):
                raise TypeError(
                    f"{self._where(name)}: expected True or False, got {getattr(self, name)!r}"
                )
        if self.intensive and self.per_atom:
            raise ValueError(
                f"{self._where('per_atom')}: expected an extensive target; leave intensive=True "
                "out: values per atom are treated as those of the whole structure"
            )


@dataclass(frozen=True, repr=False)
class PerAtom(DeclaredTarget):
    """A target with one row for each atom, in plain tensors: charges, forces without an energy.

    Tensors have the shape ``(n_atoms, *components)`` or ``(n_atoms, *components, n_properties)``,
    the atoms of all structures one after another. See :class:`PerStructure` for the arguments.

    Example:
        >>> PerAtom(tensor="q", components={"spherical": 1}).arguments()
        {'per': 'atom', 'tensor': 'q', 'components': {'spherical': 1}}
    """

    per: ClassVar[str] = "atom"


def split_sign(address: Path) -> tuple[int | None, Path]:
    """The sign before an address, ``None`` if it has none, and the address without it.

    Example:
        >>> split_sign(("-forces",)), split_sign(("out", "forces"))
        ((-1, ('forces',)), (None, ('out', 'forces')))
    """
    first = address[0] if address else 0
    if isinstance(first, str) and first[:1] in ("-", "+"):
        return -1 if first[0] == "-" else 1, (first[1:], *address[1:])
    return None, address


def parse_target(name: str, target: Any) -> PerStructure | PerAtom:
    """A declared target from itself, or from a dict of its arguments with ``per``.

    Raises:
        TypeError: for anything else.
        ValueError: for unknown arguments.

    Example:
        >>> parse_target("charges", {"per": "atom"})
        PerAtom()
    """
    kinds = {kind.per: kind for kind in (PerStructure, PerAtom)}
    if isinstance(target, (PerStructure, PerAtom)):
        return target
    if isinstance(target, type) and target in kinds.values():
        raise TypeError(f"targets, '{name}': write {target.__name__}(), with its brackets")
    if not isinstance(target, Mapping):
        raise TypeError(
            f"targets, '{name}': expected PerStructure(...), PerAtom(...), or a dict of their "
            f"arguments such as {{'per': 'structure'}}, got {target!r}"
        )
    arguments = {str(argument): value for argument, value in target.items()}
    # Hydra holds objects that it has made in a config, which knows their class.
    made: Any = getattr(getattr(target, "_metadata", None), "object_type", None)
    per = made.per if made in (PerStructure, PerAtom) else arguments.pop("per", None)
    if per not in kinds:
        raise ValueError(
            f"targets, '{name}': expected 'per': 'structure' or 'per': 'atom', got {per!r}"
        )
    known = [one.name for one in fields(kinds[per])]
    for argument in arguments:
        if argument not in known:
            raise ValueError(
                f"targets, '{name}': {kinds[per].__name__} has no argument '{argument}'; "
                f"{did_you_mean(str(argument), known)}"
            )
    try:
        return kinds[per](**arguments)
    except (TypeError, ValueError) as error:
        raise type(error)(f"targets, '{name}': {error}") from None


def _parse_components(where: str, components: Any) -> Any:
    if components in (None, VECTOR, MATRIX):
        return components
    if isinstance(components, Mapping) and set(components) == {"spherical"}:
        degree = components["spherical"]
        if isinstance(degree, int) and not isinstance(degree, bool) and degree >= 0:
            return {"spherical": degree}
    raise ValueError(
        f"{where}: expected None, 'xyz', 'matrix' or {{'spherical': l}}, got {components!r}"
    )


def _parse_gradient(where: str, parameter: str, value: Any) -> GradientTensor:
    if isinstance(value, Mapping):
        known = [one.name for one in fields(GradientTensor)]
        for argument in value:
            if argument not in known:
                raise ValueError(
                    f"{where}: unknown argument '{argument}'; {did_you_mean(str(argument), known)}"
                )
        if "tensor" not in value:
            raise ValueError(f"{where}: expected the address 'tensor', got {dict(value)!r}")
        value = GradientTensor(**value)
    if not isinstance(value, GradientTensor):
        value = GradientTensor(value)
    addresses = {
        name: address
        if (address is None or address is False) and name != "tensor"
        else parse_address(f"{where}, {name}", address)
        for name, address in vars(value).items()
    }
    if addresses["volume"] is not None and parameter != "strain":
        raise ValueError(f"{where}: a volume belongs to a stress, with the parameter 'strain'")
    return GradientTensor(**addresses)  # type: ignore[arg-type]


def _plain(value: Any) -> Any:
    """Addresses and gradients as in YAML."""
    if isinstance(value, GradientTensor):
        if value.prediction is None and value.volume is None:
            return _plain(value.tensor)
        return {name: _plain(part) for name, part in vars(value).items() if part is not None}
    if isinstance(value, Mapping):
        return {name: _plain(part) for name, part in value.items()}
    if isinstance(value, tuple):
        return value[0] if len(value) == 1 else list(value)
    return value
