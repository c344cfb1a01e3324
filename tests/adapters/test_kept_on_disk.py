"""What blocks gave, kept on the disk, trains a block to the bits that it has in memory."""

import pytest
import torch
from table import ALL_ROWS

import ecoflap

KINDS = {"blip2_t5", "gemma3", "smolvlm"}
"""A vision tower of SigLIP's kind is fed hidden states that are transposed, and sums them in another order."""


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=() if name in KINDS else pytest.mark.slow) for name in sorted(ALL_ROWS)]
)
def test_each_family_is_trained_to_the_same_bits(name, tmp_path):
    row = ALL_ROWS[name]
    found = []
    for keep in ("memory", "disk"):
        model, processor = row.build(), row.adapter().processor
        data = {"use": "table:Samples", "row": name, "samples": 2 * row.batch_size, "batch_size": row.batch_size}
        recipe = {
            "version": 1, "calibration": {**data, "keep": keep}, "sparsity": 0.5, "prune": "magnitude",
            "refine": {"use": "reconstruct", "steps": 2, "batches": 1},
        }  # fmt: skip
        ecoflap.run(recipe, model=model, processor=processor, folder=tmp_path / keep, allow_code=True)
        found.append({key: tensor.clone() for key, tensor in model.state_dict().items()})
    assert all(torch.equal(tensor, found[1][key]) for key, tensor in found[0].items())
