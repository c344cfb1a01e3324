"""Compute losses that families share. Each is summed in float64, since a score is a small difference of two of them."""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int64
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from ecoflap.adapters.shared.embeddings import cosines
from ecoflap.core.errors import DataError
from ecoflap.core.forward.noise import gaussian

JUDGED_ALONE = "it judges every pair of an image and a text by itself, by a sigmoid"
"""Why :func:`sigmoid_pairs` is a loss of no logits."""
WITHOUT_CLASSES = "without a classifier it is the inner product of what the model makes of an image with a fixed vector"
"""Why :func:`random_projection` is a loss of no logits."""
LOGITS_BYTES = 16 * 2**20  # measured on two cores: faster than 8 or 256 MiB, and a sixteenth of the memory
IGNORED = -100  # transformers' mark of a label that is padding
_NONE_TO_PREDICT = (
    "a batch holds no token to predict: its texts are of one token each, or all of their labels are ignored. Give "
    "samples with more text."
)


def shifted(labels: Int64[Tensor, "rows tokens"]) -> Int64[Tensor, "rows tokens"]:
    """Put each label to the position before it, whose logits are to predict it; the last has none."""
    return F.pad(labels[:, 1:], (0, 1), value=IGNORED)


def mean_nll(
    logits: Float[Tensor, "*batch vocabulary"], labels: Int64[Tensor, "*batch"], smoothing: float = 0.0
) -> Float[Tensor, ""]:
    """Give the mean negative log-likelihood of the labels that are not ``IGNORED``.

    :param labels: That of each position is the one which the logits of the same position are to predict.
    :param smoothing: The share of each target that is spread evenly over all of the vocabulary.
    :raises DataError: Where all are ignored.
    """
    real = labels != IGNORED
    targets = labels[real]
    if not len(targets):
        raise DataError(_NONE_TO_PREDICT)
    # Each term is exact enough in float32; it is their sum that would lose a small difference.
    terms = F.cross_entropy(logits[real].float(), targets, reduction="none", label_smoothing=smoothing)
    return terms.double().mean()


def mean_nll_in_chunks(
    logits: Float[Tensor, "*batch vocabulary"], labels: Int64[Tensor, "*batch"]
) -> Float[Tensor, ""]:
    """Give the same as :func:`mean_nll`, with a few rows of logits in float32 at a time.

    :raises DataError: Where all labels are ignored.
    """
    real = labels != IGNORED
    rows, targets = real.nonzero(as_tuple=True), labels[real]
    if not len(targets):
        raise DataError(_NONE_TO_PREDICT)
    count = max(1, LOGITS_BYTES // (4 * logits.shape[-1]))
    places = zip(*(axis.split(count) for axis in rows), strict=True)
    terms = [
        F.cross_entropy(logits[place].float(), wanted, reduction="none").double().sum()
        for place, wanted in zip(places, targets.split(count), strict=True)
    ]
    return torch.stack(terms).sum() / len(targets)


def mean_nll_of_hidden(
    head: nn.Module, hidden: Float[Tensor, "targets hidden"], targets: Int64[Tensor, " targets"], vocabulary: int
) -> Float[Tensor, ""]:
    """Give the mean negative log-likelihood of targets from the hidden states that a head makes logits of.

    Logits are made for a chunk of targets at a time, and made again in the backward; they are never kept.

    :param vocabulary: How many logits the head makes for a target.
    """
    rows = max(1, LOGITS_BYTES // (4 * vocabulary))
    total = hidden.new_zeros((), dtype=torch.float64)
    for chunk, wanted in zip(hidden.split(rows), targets.split(rows), strict=True):
        if torch.is_grad_enabled():
            total = total + checkpoint(_chunk_nll, head, chunk, wanted, use_reentrant=False, preserve_rng_state=False)
        else:
            total = total + _chunk_nll(head, chunk, wanted)
    return total / len(targets)


def _chunk_nll(
    head: nn.Module, hidden: Float[Tensor, "rows hidden"], targets: Int64[Tensor, " rows"]
) -> Float[Tensor, ""]:
    return F.cross_entropy(head(hidden).float(), targets, reduction="none").double().sum()


def info_nce(similarities: Float[Tensor, "images texts"]) -> Float[Tensor, ""]:
    """Compute symmetric InfoNCE, ½·(CE over texts + CE over images), of similarities that the model has scaled itself.

    Radford et al., CLIP, ICML 2021, figure 3.

    :raises DataError: For one pair alone, whose loss is 0 whatever the weights are.
    """
    pairs = len(similarities)
    if pairs < 2:
        raise DataError(
            "a contrastive loss needs at least two pairs in every batch: set batch_size to 2 or more, so that it "
            "divides the number of samples or leaves more than one over."
        )
    targets = torch.arange(pairs, device=similarities.device)
    wide = similarities.float()
    terms = [F.cross_entropy(logits, targets, reduction="none").double().mean() for logits in (wide, wide.T)]
    return (terms[0] + terms[1]) / 2


def random_projection(features: Float[Tensor, "batch features"], seeds: Int64[Tensor, " batch"]) -> Float[Tensor, ""]:
    """Compute a loss for a model without head or labels: the mean of ⟨f/‖f‖, r⟩ with a fixed random r for each image.

    It is no distance to the dense model's own features, because that would have no gradient at the dense model.

    :param seeds: A number that belongs to the image, whichever batch it is in.
    """
    wide = F.normalize(features.float(), dim=-1)
    directions = [gaussian((features.shape[-1],), int(seed)) for seed in seeds]
    return (wide * torch.stack(directions).to(wide)).double().sum(-1).mean()


def class_nll(logits: Float[Tensor, "batch classes"], labels: Int64[Tensor, " batch"]) -> Float[Tensor, ""]:
    """Compute the cross entropy of each image's class.

    :raises DataError: Where a label is no class of the model's.
    """
    classes = logits.shape[-1]
    wrong = sorted({int(label) for label in labels if not 0 <= label < classes})
    if wrong:
        raise DataError(f"the data has the labels {wrong[:5]}, and the model knows classes 0 to {classes - 1}.")
    return mean_nll(logits, labels)


def vision_loss(
    output: Float[Tensor, "batch features"],
    labels: Int64[Tensor, " batch"] | None,
    seeds: Int64[Tensor, " batch"],
    classifier: Float[Tensor, "classes features"] | None = None,
) -> Float[Tensor, ""]:
    """Compute the loss of a vision model alone: cross entropy with labels, the random projection without.

    :param output: Logits, or features where there is no head.
    :param labels: None where the samples have none, or the model has no head and no classifier is given.
    :param classifier: A zero-shot classifier's text embeddings; logits are then the raw cosines, as in ECoFLaP.
    """
    if labels is None:
        return random_projection(output, seeds)
    if classifier is not None:
        output = cosines(output, classifier)
    return class_nll(output, labels)


def labels_of(labels: Sequence[int | None]) -> Int64[Tensor, " batch"] | None:
    """Give labels as a tensor where every sample has one, and None where none has.

    :raises DataError: Where some have and some have not.
    """
    known = [label for label in labels if label is not None]
    if known and len(known) < len(labels):
        raise DataError(f"{len(labels) - len(known)} of {len(labels)} images have no label: give all of them, or none.")
    return torch.tensor(known) if known else None


def sigmoid_pairs(similarities: Float[Tensor, "images texts"]) -> Float[Tensor, ""]:
    """Compute −Σ log σ(±s) over all texts, as a mean over images: + for an image's own text, − for the others.

    The model has scaled and shifted the similarities s itself.

    Zhai et al., Sigmoid loss for language image pre-training, ICCV 2023, algorithm 1.
    """
    pairs = len(similarities)
    signs = 2 * torch.eye(pairs, device=similarities.device) - 1
    return -F.logsigmoid(signs * similarities.float()).double().sum() / pairs
