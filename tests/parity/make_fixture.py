"""Write tests/interop/metatrain_fixture: checkpoints by metatrain, and its conversions.

Run in an environment with the extra ``parity``: ``python tests/parity/make_fixture.py``.
"""

import json
import sys
from pathlib import Path

TESTS = Path(__file__).resolve().parents[1]
TARGETS = ["energy", "forces", "orbitals"]


def main() -> None:
    """Fit random targets, save the fit, and convert random predictions."""
    sys.path.insert(0, str(TESTS / "support"))
    import test_checkpoints as fits
    from metatrain.composition import CompositionModel
    from metatrain.scaler import Scaler
    from target_kinds import KINDS, random_numbers

    # A few systems suffice, and keep the file small.
    fits.SYSTEMS = fits.SYSTEMS[:5]
    folder = TESTS / "interop" / "metatrain_fixture"
    folder.mkdir(exist_ok=True)
    data, info, _ = fits.dataset(TARGETS)
    composition = CompositionModel.from_valid_targets(info, fits.TYPES)
    fits.fit_composition(composition, data, str(folder))
    scaler = Scaler({"densify_atomic_basis": True}, info)
    fits.fit_scaler(scaler, data, [composition], str(folder))
    expected = {"types": [system.types.tolist() for system in fits.SYSTEMS]}
    for name in TARGETS:
        model = KINDS[fits.OF_CHECKPOINT[name]](fits.SYSTEMS, random_numbers(seed=17))
        physical = fits.physical_by_metatrain(scaler, composition, name, model)
        expected[name] = [
            {"model": block.values.tolist(), "physical": other.values.tolist()}
            for block, other in zip(model.blocks(), physical.blocks(), strict=True)
        ]
    (folder / "expected.json").write_text(json.dumps(expected) + "\n")


if __name__ == "__main__":
    main()
