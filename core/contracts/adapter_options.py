"""What an adapter may say about itself: the optional members of that kind, which has the most of them.

What holds of the others, in ``ecoflap.core.contracts.options``, holds of these.
"""

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

from jaxtyping import Bool
from torch import Tensor, nn

from ecoflap.core.contracts import optional_methods as methods
from ecoflap.core.contracts.options import PartOptions
from ecoflap.core.contracts.records import Batch, View
from ecoflap.core.model.anatomy import Source


class AdapterOptions(PartOptions):
    """What an adapter may have, beside the abilities of ``ecoflap.core.contracts.abilities``.

    :cvar priority: Of several adapters that claim a model, the one with the highest is taken. One that is written for a
        family has 0, the default; one that takes what no other knows is below that.
    :cvar save_surroundings: A method ``save_surroundings(model, folder)`` that writes what ``save`` writes beside the
        weights: configuration, tokenizer or processor. None stands for what transformers' ``save_pretrained`` writes
        for a model, which of any other is nothing.
    :cvar save_weights: A method ``save_weights(model, weights, folder)`` that writes some of a model's weights, given
        by their names in it, as ``save`` does. An adapter that has it, and ``save_surroundings``, can do with a model
        that is larger than memory: where ``source.mapped`` is given, its ``load`` maps the weights, and tells it where
        they are. None, the default, stands for an adapter that reads all weights into memory.
    :cvar read_processor: A method ``read_processor(source, model)`` that gives what ``load`` would set as
        ``processor``, None where the folder of the source holds none. It is asked on a model without weights, and for
        a source that lies here, so that a plan can try the data on it. With None, the default, nothing is tried.
    """

    priority: int = 0
    save_surroundings: methods.SavesSurroundings | None = None
    save_weights: methods.SavesWeights | None = None
    read_processor: methods.ReadsProcessor | None = None

    def running(self, model: nn.Module) -> AbstractContextManager[None]:
        """Give a context in which the engine runs the model, backward and all; the default changes nothing.

        What a loss needs of the model while it computes, such as another way to run its experts, is needed again where
        a block is run anew in the backward.
        """
        return nullcontext()

    def left_out(self, model: nn.Module) -> Mapping[str, str]:
        """Say by parameter, or by a block or module around it, which matrices are no layers on purpose, and why.

        Such are routers of experts; none by default. Of several names the nearest tells. ``ecoflap inspect`` shows why.
        """
        return {}

    def own_inputs(self, model: nn.Module, batch: Batch) -> Mapping[str, Any] | None:
        """Give what the model's own forward is called with so that it computes its own loss of a batch.

        ``check_adapter`` and the beginning of a run hold the adapter's loss against the ``loss`` in what comes back:
        with transformers that takes the batch with its ``labels``. None, the default, stands for a model whose forward
        computes no loss.
        """
        return None

    def predicted(self, model: nn.Module, batch: Batch) -> Bool[Tensor, "batch tokens"] | None:
        """Say which tokens of a batch's texts the loss is the mean over; None, the default, for all but the first.

        ``perplexity`` and ``continuation`` ask for it. They are those of a decoder's texts, where there is an encoder.
        """
        return None

    def handed_on(self, model: nn.Module, tower: str, tokens: int) -> int:
        """Tell how many numbers a tower's blocks hand on of a batch beside hidden states, for the plan; 0, the default.

        Such are position biases that the first block computes for all others. They are recorded with what blocks gave.

        :param tokens: How many a sample has, as its dataset says.
        """
        return 0

    def export_views(self, model: nn.Module) -> Sequence[View]:
        """Give the parts of a model that can be exported by themselves; none by default.

        It is asked for their names on a model without weights too, and must not compute with it.
        """
        return ()

    def views_refused(self, model: nn.Module, exporter: str) -> Mapping[str, str]:
        """Say by name which views an exporter cannot write of this model, and why; none by default.

        They are those that :meth:`export_views` gives and torch cannot put into such a file, and those that models like
        this one have and it has not. A reason is a clause without a full stop: a recipe that names the view is refused
        with it, and of one that names none the plan says what is left out. It is asked as the views are.

        :param exporter: The exporter's name: ``onnx`` or ``torchscript``.
        """
        return {}

    def why_not(self, source: Source) -> str | None:
        """Say what a model is that no adapter's ``matches`` claims, for its refusal; None by default, if not known."""
        return None

    def why_no_logits(self, model: nn.Module) -> str | None:
        """Say why this model's loss is no cross entropy of logits, whatever the data are, as a clause; None, the
        default, where it is one, or where that shows on data only.

        A recipe that refines the whole model is refused with it before weights are read; where it is None a run finds
        out on its first batch. Like :meth:`export_views` it is asked on a model without weights.
        """
        return None

    def refuses(self, model: nn.Module, ability: type[Any]) -> str | None:
        """Say why this model lacks an ability whose methods the adapter has; None, the default, where it has it."""
        return None
