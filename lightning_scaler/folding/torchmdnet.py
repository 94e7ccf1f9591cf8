"""TorchMD-NET: the standard deviation and the reference energies of a ``TorchMD_Net``."""

from collections.abc import Mapping
from importlib import import_module
from typing import Any

import torch

from ..plain_tensors import Declaration
from .folded_target import FoldedTarget, Preset


class TorchMDNet(Preset):
    """``LNNP`` of TorchMD-NET: multiplied by ``std``, then ``Atomref`` and ``mean`` are added."""

    def recognises(self, source: Any) -> bool:
        """Whether a module, or the content of a checkpoint, is of TorchMD-NET."""
        if isinstance(source, dict):
            names = source.get("state_dict", {})
            network = any(name.startswith("model.representation_model.") for name in names)
            return network and "model.std" in names
        return any(base.__module__.startswith("torchmdnet.") for base in type(source).__mro__)

    def module_class(self, checkpoint: Any) -> Any:
        """``LNNP``, which checkpoints do not name."""
        return import_module("torchmdnet.module").LNNP

    def predict(self, module: Any, batch: Any) -> Any:
        """The output of ``predict_step``, since ``forward`` takes the tensors one by one."""
        return module.predict_step(batch, 0)

    def write(
        self, module: Any, targets: Mapping[str, FoldedTarget], declaration: Declaration
    ) -> None:
        """Multiply ``std``, ``mean`` and the table of ``Atomref`` by the scale, and add the shifts.

        Raises:
            ValueError: for several targets, priors that are not multiplied by ``std``, an
                ``Atomref`` that is switched off, or a network that takes none.
        """
        if len(targets) != 1:
            raise ValueError(
                f"fold: expected one target, got {list(targets)}; TorchMD-NET predicts y, and "
                "neg_dy as its gradient: gradients={'positions': {'tensor': '-neg_dy', "
                "'prediction': 1}}"
            )
        (target,), net = targets.values(), module.model
        priors = list(net.prior_model or [])
        _check_priors(priors)
        net.std.copy_(net.std.double() * target.scale)
        net.mean.copy_(net.mean.double() * target.scale)
        if any(target.shifts.values()) and not priors:
            priors.append(_added_prior(module, target))
        for position, prior in enumerate(priors):
            table = prior.atomref.weight.double() * target.scale
            if position == 0:
                table += target.table(range(len(table))).to(table.device).unsqueeze(1)
            # reset_parameters copies the first into the second.
            prior.initial_atomref.copy_(table)
            prior.atomref.weight.copy_(table)
        # A module that is built from a checkpoint has the priors that these name.
        module.hparams["prior_model"] = ["Atomref"] * len(priors) or None
        module.hparams["prior_args"] = [prior.get_init_args() for prior in priors]
        module.hparams["load_model"] = None


def _check_priors(priors: list[Any]) -> None:
    for prior in priors:
        name = type(prior).__name__
        if not hasattr(prior, "initial_atomref"):
            raise ValueError(
                f"fold: the prior {name} was multiplied by the scale in training, which TorchMD-NET"
                " cannot do; train without it"
            )
        if not prior.enable:
            raise ValueError(
                f"fold: the prior {name} is switched off, so that it cannot hold the baseline; "
                "train without remove_ref_energy and enable=False"
            )


def _added_prior(module: Any, target: FoldedTarget) -> Any:
    """An ``Atomref`` of zeros that was appended to the network."""
    net = module.model
    if not net.output_model.allow_prior_model:
        raise ValueError(
            f"fold: target '{target.target}': {type(net.output_model).__name__} takes no prior, so "
            "there is no place for the baseline; train with baseline='none'"
        )
    prior = import_module("torchmdnet.priors").Atomref(max_z=module.hparams["max_z"])
    net.prior_model = torch.nn.ModuleList([prior.to(net.std)])
    return prior
