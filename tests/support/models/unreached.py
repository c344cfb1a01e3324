"""A pico Mixtral some of whose experts no token reaches."""

from table import row_of

from ecoflap import Replay


def unreached() -> tuple[Replay, list[str]]:
    """Give a replay on one batch, and the names of the layers that it leaves without a token."""
    family = row_of("mixtral")
    model, adapter = family.build(), family.adapter()
    for name, parameter in model.named_parameters():
        if ".gate." in name or ".router." in name:
            parameter.data.zero_()  # all experts are equal to every token, so that the same ones are chosen
    batch = adapter.collate(model, family.samples(2))
    replay = Replay(model, adapter, [batch])
    model.requires_grad_(True)
    adapter.loss(model, batch).backward()
    layers = {layer.name: layer for _, layer in replay.anatomy.layers()}
    gradients = {name: layer.parameter.grad for name, layer in layers.items()}
    left = [name for name, found in gradients.items() if found is None or not layers[name].matrix_of(found).any()]
    model.zero_grad()
    assert left
    return replay, left
