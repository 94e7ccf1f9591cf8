"""A network and its scales, with the interface of metatomic."""

# ruff: noqa: UP006, UP035, UP045 (metatomic compares the annotations of `forward` with its own)

from collections.abc import Mapping
from typing import Dict, List, Optional

import torch
from metatensor.torch import Labels, TensorBlock, TensorMap
from metatomic.torch import ModelOutput, System

from .frozen_scaler import FrozenScaler
from .output_units import Output


class DeployedModel(torch.nn.Module):
    """What a simulation engine calls: systems in float64 in, physical values in float64 out.

    Args:
        network: predicts targets in model space; see :func:`export`.
        scaler: scales of all outputs.
        outputs: outputs by their name in metatomic.
        dtype: floating-point dtype of the network.
    """

    properties: Dict[str, Labels]

    def __init__(
        self,
        network: torch.nn.Module,
        scaler: FrozenScaler,
        outputs: Mapping[str, Output],
        dtype: torch.dtype,
    ) -> None:
        super().__init__()
        self.network = network
        self.scaler = scaler
        self.dtype = dtype
        self.target_of_output = {name: output.target for name, output in outputs.items()}
        self.properties = {
            name: Labels([output.property_name], torch.zeros((1, 1), dtype=torch.int64))
            for name, output in outputs.items()
            if output.property_name
        }

    def forward(
        self,
        systems: List[System],
        outputs: Dict[str, ModelOutput],
        selected_atoms: Optional[Labels] = None,
    ) -> Dict[str, TensorMap]:
        """Compute the requested outputs.

        Args:
            systems: systems of the batch, with the neighbor lists of the network.
            outputs: requested outputs by name.
            selected_atoms: atoms to which the outputs are limited, ``None``: all.
        """
        requested: Dict[str, ModelOutput] = {}
        for name, output in outputs.items():
            requested[self.target_of_output[name]] = output
        in_dtype = [system.to(self.dtype) for system in systems]
        predictions = self.network(in_dtype, requested, selected_atoms)
        wanted: Dict[str, TensorMap] = {}
        for target, output in requested.items():
            if target not in predictions:
                raise ValueError("the network gave no prediction of the target '" + target + "'")
            prediction = predictions[target]
            if output.sample_kind == "atom" and "atom" not in prediction.sample_names:
                raise ValueError(
                    "prediction of '" + target + "': values per atom were requested "
                    "(sample_kind='atom'), and the network gave values per structure"
                )
            wanted[target] = _without_gradients(prediction)
        physical = self.scaler(systems, wanted, requested, selected_atoms)
        result: Dict[str, TensorMap] = {}
        for name, target in self.target_of_output.items():
            if name in outputs:
                tensor = physical[target]
                if name in self.properties:
                    tensor = _with_properties(tensor, self.properties[name])
                result[name] = tensor.to(torch.float64)
        return result


def _without_gradients(tensor: TensorMap) -> TensorMap:
    """The values alone: engines differentiate by autograd."""
    blocks: List[TensorBlock] = []
    for block in tensor.blocks():
        blocks.append(TensorBlock(block.values, block.samples, block.components, block.properties))
    return TensorMap(tensor.keys, blocks)


def _with_properties(tensor: TensorMap, properties: Labels) -> TensorMap:
    block = tensor.block()
    properties = properties.to(block.values.device)
    renamed = TensorBlock(block.values, block.samples, block.components, properties)
    return TensorMap(tensor.keys, [renamed])
