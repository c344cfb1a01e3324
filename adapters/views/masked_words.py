"""Make the view of an encoder that fills in masked words, such as BERT."""

from torch import Tensor, nn

from ecoflap.adapters.shared.members import member
from ecoflap.adapters.views.view import TEXT_AXES, Example, view
from ecoflap.core.contracts.records import View


class MaskedLM(nn.Module):
    """Runs an encoder with its head."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> tuple[Tensor]:
        return (self.model(input_ids=input_ids, attention_mask=attention_mask).logits,)


def view_of_masked_lm(model: nn.Module) -> View:
    """Give ``encoder``: a text in, logits of each of its words out, the masked ones among them."""
    vocabulary = len(member(model, "get_input_embeddings")().weight)

    def made(example: Example) -> dict[str, Tensor]:
        ids = example.ids(vocabulary, example.batch, example.length)
        return {"input_ids": ids, "attention_mask": example.mask(*ids.shape)}

    axes = {"input_ids": TEXT_AXES, "attention_mask": TEXT_AXES}
    return view("encoder", MaskedLM(model), made, ("logits",), axes)
