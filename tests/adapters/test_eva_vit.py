import json
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

pytest.importorskip("timm", minversion="1", reason="pip install 'ecoflap[clip]'")

from pico_timm import CLASSES, FAMILIES, build, classifying, fused, pictures, split

import ecoflap
from ecoflap import ColumnNorm, Replay
from ecoflap.adapters.eva_vit import EvaVitAdapter
from ecoflap.adapters.hubs.timm import transform_of
from ecoflap.core.contracts.protocols import Adapter
from ecoflap.core.contracts.records import Batch
from ecoflap.core.errors import DataError, ModelError, RecipeError
from ecoflap.core.forward.noise import gaussian
from ecoflap.core.model.anatomy import Anatomy, Source
from ecoflap.core.model.source import in_memory, open_source

FUSED = ["attn.qkv", "attn.proj", "mlp.fc1", "mlp.fc2"]
SPLIT = ["attn.q_proj", "attn.k_proj", "attn.v_proj", "attn.proj", "mlp.fc1_g", "mlp.fc1_x", "mlp.fc2"]


class Attention(nn.Module):
    """As in LAVIS' eva_vit: q, k and v in one matrix, whose biases are kept apart and handed to F.linear."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.qkv, self.proj = nn.Linear(width, 3 * width, bias=False), nn.Linear(width, width)
        self.q_bias, self.v_bias = nn.Parameter(torch.zeros(width)), nn.Parameter(torch.zeros(width))

    def forward(self, x: Tensor) -> Tensor:
        bias = torch.cat((self.q_bias, torch.zeros_like(self.v_bias), self.v_bias))
        q, k, v = F.linear(input=x, weight=self.qkv.weight, bias=bias).chunk(3, -1)
        return self.proj((q @ k.transpose(-2, -1) / 8).softmax(-1) @ v)


class Block(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm1, self.attn, self.norm2 = nn.LayerNorm(width), Attention(width), nn.LayerNorm(width)
        self.mlp = nn.ModuleDict({"fc1": nn.Linear(width, 2 * width), "fc2": nn.Linear(2 * width, width)})

    def forward(self, x: Tensor, rel_pos_bias: Tensor | None = None) -> Tensor:
        x = x + self.attn(self.norm1(x))
        return x + self.mlp["fc2"](F.gelu(self.mlp["fc1"](self.norm2(x))))


class Patches(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.num_patches, self.proj = 16, nn.Conv2d(3, width, 4, 4)


class LikeLavis(nn.Module):
    """Gives a vector for each token, and says 1000 classes though it has no head."""

    def __init__(self, width: int = 32) -> None:
        super().__init__()
        self.num_classes, self.patch_embed = 1000, Patches(width)
        self.cls_token = nn.Parameter(torch.zeros(1, 1, width))
        self.pos_embed = nn.Parameter(torch.zeros(1, 17, width))
        self.blocks = nn.ModuleList([Block(width), Block(width)])

    def forward(self, pixels: Tensor) -> Tensor:
        x = self.patch_embed.proj(pixels).flatten(2).transpose(1, 2)
        x = torch.cat((self.cls_token.expand(len(x), -1, -1), x), 1) + self.pos_embed
        for block in self.blocks:
            x = block(x, None)
        return x


@pytest.fixture
def adapter() -> EvaVitAdapter:
    return EvaVitAdapter()


@pytest.fixture
def labelled() -> Batch:
    return FAMILIES["timm_vit"].adapter().collate(classifying(), pictures(4, classes=CLASSES))


def like_lavis() -> nn.Module:
    torch.manual_seed(0)
    return LikeLavis().eval()


def pixels(size: int = 16) -> Batch:
    drawn = torch.Generator().manual_seed(1)
    return {"pixel_values": torch.randn(2, 3, size, size, generator=drawn), "seeds": torch.tensor([3, 4])}


def save_unnamed(model: Any, adapter: EvaVitAdapter, folder: Path) -> Source:
    """As from a model that was made of timm's classes, not by its factory."""
    for note in ("pretrained_cfg", "_model_args"):
        vars(model).pop(note, None)
    adapter.save(model, folder)
    return open_source(str(folder), folder)


def test_is_an_adapter(adapter: EvaVitAdapter):
    assert isinstance(adapter, Adapter)


@pytest.mark.parametrize(("make", "names"), [(fused, FUSED), (classifying, FUSED), (split, SPLIT), (like_lavis, FUSED)])
def test_matrices_of_a_block(make: Any, names: list[str], adapter: EvaVitAdapter):
    model = make()
    assert adapter.matches(in_memory(model))
    anatomy = Anatomy.of(adapter.towers(model), adapter.layers)
    first = [layer.name for layer in anatomy.layers_of["blocks.0"]]
    assert first == [f"blocks.0.{name}.weight" for name in names]


@pytest.mark.parametrize(
    ("name", "arguments"),
    [
        ("deit_base_distilled_patch16_224", {}),
        ("vit_base_patch16_224", {"global_pool": "map", "class_token": False}),
        ("vit_base_patch16_224", {"reg_tokens": 3, "no_embed_class": True, "patch_drop_rate": 0.5}),
        ("vit_base_patch16_224", {"block_fn": "parallel"}),
        ("vit_pe_core_base_patch16_224", {"num_classes": 7}),
        ("vit_base_patch16_rope_mixed_224", {}),
        ("eva_giant_patch14_224", {"use_post_norm": True, "global_pool": "", "num_classes": 3}),
        ("eva02_tiny_patch14_224", {"swiglu_mlp": True, "scale_mlp": False}),
    ],
)
def test_variants_are_captured_whole(name: str, arguments: dict[str, Any], adapter: EvaVitAdapter):
    """Replay refuses a matrix that is not captured, or that is fed another number of tokens than is said."""
    if arguments.get("block_fn") == "parallel":
        from timm.models.vision_transformer import ParallelScalingBlock

        arguments = {"block_fn": ParallelScalingBlock}
    model, batch = build(name, **{"depth": 2, **arguments}), pixels()
    towers = adapter.towers(model)
    anatomy = Anatomy.of(towers, adapter.layers, [tower.name for tower in towers])
    replay = Replay(model, adapter, [batch], anatomy=anatomy)
    with torch.no_grad():
        expected = adapter.loss(model, batch)
    for index in range(len(replay.blocks)):
        assert float(replay.loss(index)) == float(expected)
        assert replay.run(index, (ColumnNorm,))
        replay.advance(index)


def test_both_heads_of_a_distilled_deit(adapter: EvaVitAdapter):
    model = build("deit_base_distilled_patch16_224", depth=1)
    assert [tower.name for tower in adapter.towers(model)] == ["vision", "head", "head_dist"]


@pytest.mark.parametrize("size", [16, 24])
def test_tokens_follow_the_size_of_the_images(size: int, adapter: EvaVitAdapter):
    model, batch = build("vit_base_patch16_224", dynamic_img_size=True, reg_tokens=2), pixels(size)
    tokens = adapter.tokens(model, batch, "vision")
    assert tokens.tolist() == [[2] * ((size // 4) ** 2 + 3)] * 2
    seen = []
    model.blocks[0].register_forward_hook(lambda _, inputs, output: seen.append(output.shape[:2]))
    adapter.loss(model, batch)
    assert seen == [tokens.shape]


def test_tokens_of_the_old_layout(adapter: EvaVitAdapter):
    assert adapter.tokens(like_lavis(), pixels(), "vision").shape == (2, 17)


def test_loss_with_labels_is_cross_entropy(labelled: Batch, adapter: EvaVitAdapter):
    model = classifying()
    with torch.no_grad():
        logs = model(labelled["pixel_values"]).double().log_softmax(-1)
    by_hand = -logs[range(4), labelled["labels"]].mean()
    torch.testing.assert_close(adapter.loss(model, labelled), by_hand, rtol=1e-6, atol=0)


def test_loss_without_head_is_the_random_projection(adapter: EvaVitAdapter):
    model, batch = fused(), pixels()
    with torch.no_grad():
        features = F.normalize(model(batch["pixel_values"]).double(), dim=-1)
        loss = adapter.loss(model, {**batch, "labels": torch.tensor([0, 1])})
    by_hand = sum(features[i] @ gaussian((32,), seed).double() for i, seed in enumerate((3, 4))) / 2
    torch.testing.assert_close(loss, by_hand, rtol=1e-5, atol=0)


def test_loss_of_tokens_is_that_of_their_mean(adapter: EvaVitAdapter):
    model, batch = like_lavis(), pixels()
    with torch.no_grad():
        features = F.normalize(model(batch["pixel_values"]).double().mean(1), dim=-1)
        by_hand = sum(features[i] @ gaussian((32,), seed).double() for i, seed in enumerate((3, 4))) / 2
        torch.testing.assert_close(adapter.loss(model, batch), by_hand, rtol=1e-4, atol=0)


def test_zero_shot_cross_entropy_of_raw_cosines(tmp_path: Path):
    matrix = torch.randn(7, 32, generator=torch.Generator().manual_seed(2))
    save_file({"embeddings": matrix}, tmp_path / "classes.safetensors")
    adapter, model, batch = EvaVitAdapter(classifier=tmp_path / "classes.safetensors"), fused(), pixels()
    labels = torch.tensor([6, 2])
    with torch.no_grad():
        cosines = F.cosine_similarity(model(batch["pixel_values"])[:, None].double(), matrix.double()[None], dim=-1)
        by_hand = F.cross_entropy(cosines, labels)
        torch.testing.assert_close(adapter.loss(model, {**batch, "labels": labels}), by_hand, rtol=1e-5, atol=0)
    with pytest.raises(DataError, match="needs the images' labels"):
        adapter.loss(model, batch)
    with pytest.raises(
        DataError, match=r"classifier: its text embeddings have 32 features, and the model's images have 5\."
    ):
        adapter.loss(classifying(), {**batch, "labels": labels})


def test_images_are_read_as_timm_reads_them_at_the_models_own_size(adapter: EvaVitAdapter):
    model = fused()
    adapter.load(in_memory(model), None, "cpu")
    batch = adapter.collate(model, pictures(3))
    assert batch["pixel_values"].shape == (3, 3, 16, 16)
    assert len(set(batch["seeds"].tolist())) == 3
    torch.testing.assert_close(batch["pixel_values"][0], transform_of(model)(pictures(3)[0].image))


def test_says_that_a_transform_is_wanted(adapter: EvaVitAdapter):
    model = adapter.load(in_memory(like_lavis()), None, "cpu")
    with pytest.raises(DataError, match=r"needs a transform .* give ecoflap\.run a processor"):
        adapter.collate(model, pictures(2))


def test_says_which_images_a_transform_cannot_join(adapter: EvaVitAdapter):
    import torchvision

    adapter.processor = torchvision.transforms.ToTensor()
    with pytest.raises(DataError, match=r"images of sizes \[\(16, 16\), \(20, 20\)\]"):
        adapter.collate(fused(), [*pictures(1), *pictures(1, size=16)])


@pytest.mark.parametrize(
    ("config", "claims"),
    [
        ({"architecture": "eva02_base_patch14_448", "pretrained_cfg": {}}, True),
        ({"architecture": "deit3_small_patch16_224"}, True),
        ({"architecture": "resnet50", "pretrained_cfg": {}}, False),
        ({"architecture": "eva02_base_patch14_448", "model_type": "timm_wrapper"}, False),
        ({"architecture": ["LlamaForCausalLM"]}, False),
        ({"model_type": "llama"}, False),
    ],
)
def test_claims_what_timm_builds_of_its_classes(config: dict[str, Any], claims: bool, adapter: EvaVitAdapter):
    assert adapter.matches(Source("x", config=config)) is claims


def test_does_not_claim_other_models_in_memory(adapter: EvaVitAdapter):
    import timm

    assert not adapter.matches(in_memory(timm.create_model("resnet10t")))
    assert not adapter.matches(in_memory(nn.Linear(2, 2)))


def test_by_name_without_weights(adapter: EvaVitAdapter):
    source = Source("timm:eva_giant_patch14_224.clip_ft_in1k")
    assert adapter.matches(source)
    model = adapter.load(source, None, "meta")
    assert {tensor.device.type for tensor in [*model.parameters(), *model.buffers()]} == {"meta"}
    layers = list(Anatomy.of(adapter.towers(model), adapter.layers).layers())
    assert (len(layers), sum(layer.size for _, layer in layers)) == (160, 40 * 1408 * (4 * 1408 + 2 * 6144))
    assert adapter.processor is None


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("eva_giant_patch14_225", "timm has no model named .* Did you mean 'eva_giant_patch14_224'"),
        ("resnet10t", "is a timm.models.resnet.ResNet; this adapter knows timm's Eva"),
    ],
)
def test_names_it_cannot_take(name: str, message: str, adapter: EvaVitAdapter):
    with pytest.raises(ModelError, match=message):
        adapter.load(Source(f"timm:{name}"), None, "meta")


@pytest.mark.parametrize("make", [fused, split, classifying])
def test_saves_what_timm_reads(make: Any, adapter: EvaVitAdapter, tmp_path: Path):
    model, batch = make(), pixels()
    for name in ("one", "two"):
        adapter.save(model, tmp_path / name)
    source = open_source("one", tmp_path)
    assert adapter.matches(source)
    again = adapter.load(source, None, "cpu")
    assert torch.equal(again(batch["pixel_values"]), model(batch["pixel_values"]))
    adapter.save(again, tmp_path / "again")
    for file in (tmp_path / "one").iterdir():
        assert file.read_bytes() == (tmp_path / "two" / file.name).read_bytes(), file.name
        assert file.read_bytes() == (tmp_path / "again" / file.name).read_bytes(), file.name


def test_two_models_read_by_one_adapter_are_saved_each_as_it_was_read(adapter: EvaVitAdapter, tmp_path: Path):
    """With a timm before 1.0.31 too, which does not write down in a model what it was made with."""
    models = []
    for number, make in enumerate((fused, classifying)):
        adapter.save(make(), tmp_path / str(number))
        models.append(adapter.load(open_source(str(number), tmp_path), None, "cpu"))
        vars(models[-1]).pop("_model_args", None)
    for number, model in enumerate(models):
        adapter.save(model, tmp_path / "again" / str(number))
        for file in (tmp_path / str(number)).iterdir():
            assert file.read_bytes() == (tmp_path / "again" / str(number) / file.name).read_bytes(), file


def test_loads_in_the_checkpoints_types_or_the_one_asked_for(adapter: EvaVitAdapter, tmp_path: Path):
    model = fused().bfloat16()
    model.norm.float() if isinstance(model.norm, nn.LayerNorm) else model.fc_norm.float()
    adapter.save(model, tmp_path)
    source = open_source(str(tmp_path), tmp_path)
    again = adapter.load(source, None, "cpu")
    assert {n: t.dtype for n, t in again.state_dict().items()} == {n: t.dtype for n, t in model.state_dict().items()}
    assert {tensor.dtype for tensor in adapter.load(source, torch.float16, "cpu").parameters()} == {torch.float16}
    assert again.blocks[0].attn.k_bias.dtype == torch.bfloat16


def test_refuses_a_checkpoint_with_holes(adapter: EvaVitAdapter, tmp_path: Path):
    adapter.save(fused(), tmp_path)
    state = load_file(tmp_path / "model.safetensors")
    del state["blocks.1.mlp.fc1.weight"]
    save_file(state, tmp_path / "model.safetensors")
    with pytest.raises(ModelError, match=r"(?s)cannot make local-dir:.*blocks\.1\.mlp\.fc1\.weight"):
        adapter.load(open_source(str(tmp_path), tmp_path), None, "cpu")


def test_a_model_made_of_timms_classes_is_saved_by_name(tmp_path: Path):
    from family import redraw
    from timm.models.vision_transformer import VisionTransformer

    arguments = {"img_size": 16, "patch_size": 4, "embed_dim": 32, "depth": 2, "num_heads": 4, "num_classes": 3}
    model: Any = redraw(VisionTransformer(**arguments))
    adapter = EvaVitAdapter(architecture="vit_base_patch16_224", arguments=arguments)
    adapter.save(model, tmp_path)
    assert not hasattr(model, "pretrained_cfg")
    again = EvaVitAdapter().load(open_source(str(tmp_path), tmp_path), None, "cpu")
    assert torch.equal(again(pixels()["pixel_values"]), model(pixels()["pixel_values"]))


def test_a_folder_that_lacks_arguments_says_which_parameter_gives_them(adapter: EvaVitAdapter, tmp_path: Path):
    """As timm before 1.0.31 writes it."""
    model = build("eva02_tiny_patch14_224", depth=1)
    adapter.save(model, tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    known = config.pop("model_args")
    (tmp_path / "config.json").write_text(json.dumps(config))
    source = open_source(str(tmp_path), tmp_path)
    with pytest.raises(ModelError, match=r"give them: adapter: \{use: eva_vit, arguments: "):
        adapter.load(source, None, "cpu")
    again = EvaVitAdapter(arguments=known).load(source, None, "cpu")
    assert torch.equal(again(pixels()["pixel_values"]), model(pixels()["pixel_values"]))


def test_weights_without_architecture_name_the_parameters_that_load_them(adapter: EvaVitAdapter, tmp_path: Path):
    model = fused()
    source = save_unnamed(model, adapter, tmp_path)
    assert json.loads((tmp_path / "config.json").read_text()) == {"weights_of": "timm.models.eva.Eva"}
    assert adapter.matches(source)
    with pytest.raises(ModelError, match=r"weights of a timm\.models\.eva\.Eva, .* architecture: NAME, arguments: "):
        adapter.load(source, None, "cpu")
    known = {"img_size": 16, "patch_size": 4, "embed_dim": 32, "depth": 3, "num_heads": 4, "mlp_ratio": 2.0}
    named = EvaVitAdapter("eva_giant_patch14_224", {**known, "num_classes": 0})
    assert next(named.load(source, None, "meta").parameters()).is_meta
    assert torch.equal(named.load(source, None, "cpu")(pixels()["pixel_values"]), model(pixels()["pixel_values"]))
    with pytest.raises(ModelError, match="does not fit eva_giant_patch14_224 with the arguments"):
        EvaVitAdapter("eva_giant_patch14_224", known).load(source, None, "cpu")


def test_a_whole_run_on_the_layout_of_lavis(tmp_path: Path):
    from torchvision.transforms import CenterCrop, Compose, ToTensor

    model = like_lavis()
    recipe = {
        "version": 1, "sparsity": 0.5, "prune": "wanda", "score": {"use": "zeroth_order", "samples": 2},
        "calibration": {"use": "table:Samples", "row": "timm_eva", "samples": 4, "batch_size": 2},
    }  # fmt: skip
    processor = Compose([CenterCrop(16), ToTensor()])
    done = ecoflap.run(recipe, model=model, processor=processor, folder=tmp_path / "run", allow_code=True)
    assert len(done.plan.layers) == 8
    saved = load_file(tmp_path / "run" / "model" / "model.safetensors")
    assert list(saved) == sorted(model.state_dict())
    assert all(torch.equal(tensor, model.state_dict()[name]) for name, tensor in saved.items())


def test_an_unknown_architecture_is_a_problem_of_the_plan(tmp_path: Path):
    recipe = {
        "version": 1, "sparsity": 0.5, "prune": "magnitude", "score": "magnitude",
        "model": {"adapter": {"use": "eva_vit", "architecture": "eva_gigantic", "arguments": {"img_size": 16}}},
    }  # fmt: skip
    with pytest.raises(RecipeError, match=r"architecture: timm has none of timm's Eva .* named 'eva_gigantic'"):
        ecoflap.run(recipe, model=fused(), folder=tmp_path / "run")
