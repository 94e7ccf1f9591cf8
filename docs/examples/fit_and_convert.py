# %% Energies and charges of molecules without Lightning: fit scales, train, convert predictions.
import rich
import torch

from lightning_scaler import PerAtom, PerStructure, ScaleAccumulator
from lightning_scaler.molecules.dataset import MoleculesDataset


def batches(split):
    molecules = list(MoleculesDataset(split, cutoff=5.0))
    for chosen in torch.randperm(len(molecules)).split(25):
        items = [molecules[i] for i in chosen]
        batch = {key: torch.cat([item[key][:, 0] for item in items]) for key in targets}
        batch["z"] = torch.cat([item["system"].types for item in items])
        batch["positions"] = torch.cat([item["system"].positions for item in items]).float()
        batch["n_atoms"] = torch.tensor([len(item["system"]) for item in items])
        yield batch


# %% Fit
torch.manual_seed(0)
targets = {"energy": PerStructure(), "charges": PerAtom()}
train, test = list(batches("train")), list(batches("conformers"))
scaler = ScaleAccumulator(targets=targets, baseline="composition").fit(train)
rich.print(scaler.table(), scaler.baselines_table())

# %% Train, with targets and predictions of order one
elements = torch.nn.Embedding(100, 32)
layers = torch.nn.Sequential(torch.nn.Linear(64, 64), torch.nn.SiLU(), torch.nn.Linear(64, 2))
optimizer = torch.optim.Adam([*elements.parameters(), *layers.parameters()], lr=5e-3)


def predict(batch):
    z, n_atoms, positions = batch["z"], batch["n_atoms"], batch["positions"]
    owner = torch.arange(len(n_atoms)).repeat_interleave(n_atoms)
    i, j = (owner[:, None] == owner).fill_diagonal_(False).nonzero().T
    distances = (positions[i] - positions[j]).norm(dim=1, keepdim=True)
    pairs = torch.exp(-8 * (distances - torch.linspace(0.7, 4, 32)) ** 2) * elements(z[j])
    environments = torch.zeros(len(z), 32).index_add(0, i, pairs)
    energies, charges = layers(torch.cat([elements(z), environments], 1)).unbind(1)
    return {"energy": torch.zeros(len(n_atoms)).index_add(0, owner, energies), "charges": charges}


for batch in 15 * train:
    target = scaler.convert(batch, batch)
    output = scaler.convert(batch, predict(batch), source="model", target="loss")
    energies = (output["energy"] - target["energy"]) / batch["n_atoms"]
    loss = energies.square().mean() + (output["charges"] - target["charges"]).square().mean()
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()

# %% Test, in eV and e
for name in targets:
    outputs = [scaler.convert(b, predict(b), source="model", target="physical") for b in test]
    errors = torch.cat([out[name] - batch[name] for out, batch in zip(outputs, test, strict=True)])
    print(f"RMSE of the {name} in the test set: {errors.square().mean().sqrt():.4f}")
