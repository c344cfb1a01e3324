"""Read vision transformers of timm (Eva and VisionTransformer) and of their layout, as LAVIS' EVA-ViT is."""

import torch
from jaxtyping import Float, Int8
from torch import Tensor, nn

from ecoflap.adapters.shared.members import find, member
from ecoflap.core.contracts.records import IMAGE

CLASSES = frozenset({"timm.models.eva.Eva", "timm.models.vision_transformer.VisionTransformer"})
MATRICES = ("attn.qkv", "attn.proj", "mlp.fc1", "mlp.fc2")


def is_covered(model: nn.Module) -> bool:
    """Say whether a model is of timm's two classes, or is laid out as their first version was, which LAVIS copied."""
    names = {f"{kind.__module__}.{kind.__qualname__}" for kind in type(model).__mro__}
    return bool(names & CLASSES) or _is_laid_out(model)


def stem_of(model: nn.Module) -> nn.Parameter:
    """Give the first weight that an image meets, which says in which type and on which device images are wanted."""
    return next(member(model, "patch_embed", nn.Module).parameters())


def token_kinds(model: nn.Module, pixels: Float[Tensor, "batch channels height width"]) -> Int8[Tensor, "batch tokens"]:
    """Say that every position is of the image: the patches, and the class, distillation and register tokens before."""
    return torch.full((len(pixels), _patches(model, pixels) + _tokens_before(model)), IMAGE, dtype=torch.int8)


def _is_laid_out(model: nn.Module) -> bool:
    blocks = find(model, "blocks", nn.ModuleList)
    if not blocks or find(model, "cls_token", nn.Parameter) is None:
        return False
    linear = all(find(block, name, nn.Linear) is not None for block in blocks for name in MATRICES)
    return linear and find(model, "patch_embed.proj", nn.Conv2d) is not None


def _patches(model: nn.Module, pixels: Float[Tensor, "batch channels height width"]) -> int:
    """Count the patches of these images, whose size a model with dynamic_img_size lets differ from its own."""
    embed = member(model, "patch_embed")
    if not hasattr(embed, "dynamic_feat_size"):
        return int(embed.num_patches)
    height, width = pixels.shape[-2:]
    rows, columns = embed.dynamic_feat_size((height, width))
    return int(rows * columns)


def _tokens_before(model: nn.Module) -> int:
    """Count what stands before the patches; an old timm and LAVIS say it by the length of their positions only."""
    known = find(model, "num_prefix_tokens", int)
    if known is not None:
        return known
    positions = find(model, "pos_embed")
    return 1 if positions is None else int(positions.shape[1]) - int(member(model, "patch_embed.num_patches"))
