"""Code that needs other projects is the code that tests/peers runs with them."""

import ast

import pytest
import yaml
from pages import ROOT, code_blocks, mappings_in

PEERS = ROOT / "tests" / "peers"
SCALER = "lightning_scaler.TargetScaler"


def blocks_of(name, language):
    return code_blocks(ROOT / "docs" / f"{name}.md", language)


def trees_of(name):
    return [ast.parse(block) for block in blocks_of(name, "python")]


def scalers_in(configuration):
    return [node for node in mappings_in(configuration) if node.get("_target_") == SCALER]


@pytest.mark.parametrize(
    ("name", "config"), [("nequip", "nequip.yaml"), ("schnetpack", "experiment/molecules.yaml")]
)
def test_the_callback_in_yaml_is_the_one_that_is_run(name, config):
    shown = scalers_in([yaml.safe_load(block) for block in blocks_of(name, "yaml")])
    assert shown
    assert shown == scalers_in(yaml.safe_load((PEERS / config).read_text()))


def test_scales_and_shifts_of_nequip_are_switched_off_as_in_the_run():
    shown = yaml.safe_load(blocks_of("nequip", "yaml")[0])["training_module"]["model"]
    run = yaml.safe_load((PEERS / "nequip.yaml").read_text())["training_module"]["model"]
    assert len(shown) == 3
    assert shown == {key: run[key] for key in shown}


def test_the_class_for_nequip_is_the_one_that_is_run():
    run = ast.parse((PEERS / "on_path" / "scaled_nequip.py").read_text())
    classes = [
        [ast.dump(node) for tree in trees for node in tree.body if isinstance(node, ast.ClassDef)]
        for trees in (trees_of("nequip"), [run])
    ]
    assert classes[0] == classes[1]
    assert len(classes[0]) == 1


def test_the_declaration_for_torchmdnet_is_the_one_that_is_run():
    run = ast.parse((PEERS / "test_torchmdnet.py").read_text())
    (declared,) = [
        ast.literal_eval(node.value)
        for node in run.body
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "TARGETS"
    ]
    (shown,) = [
        ast.literal_eval(node.value)
        for tree in trees_of("torchmdnet")
        for node in ast.walk(tree)
        if isinstance(node, ast.keyword) and node.arg == "targets"
    ]
    assert shown == declared
