"""What peft makes of a packed model: LoRA beside packed weights can be run, and neither trained nor merged."""

import warnings

import pytest
import torch
from exported import half_pruned
from table import ALL_ROWS
from torch import nn

import ecoflap
from ecoflap.core.errors import KernelError

peft = pytest.importorskip("peft")
pytestmark = pytest.mark.filterwarnings(
    "ignore:.is_gradient_checkpointing. is deprecated:FutureWarning"
)  # peft asks it


@pytest.fixture(params=["llama", "gpt2"])
def model(request):
    if request.param not in ALL_ROWS:
        pytest.skip("these families are not of this environment")
    made = half_pruned(request.param).model.eval()
    ecoflap.pack_model(made)
    names = {"llama": ["q_proj", "down_proj"], "gpt2": ["c_attn", "c_fc"]}[request.param]
    config = peft.LoraConfig(r=4, target_modules=names, init_lora_weights=False, fan_in_fan_out=request.param == "gpt2")
    return peft.get_peft_model(made, config).eval()


IDS = torch.tensor([[1, 5, 7, 9]])


def test_it_is_run(model):
    """Each layer adds B A x to what the packed weights give: held against the dense weights in float64."""
    name, layer = next((name, one) for name, one in model.named_modules() if hasattr(one, "base_layer"))
    x = torch.randn(3, layer.in_features, generator=torch.Generator().manual_seed(3))
    with torch.no_grad():
        weight = layer.base_layer.weight.clone().double()
        weight = weight.T if name.endswith(("c_attn", "c_fc")) else weight
        a, b = (getattr(layer, which)["default"].weight.double() for which in ("lora_A", "lora_B"))
        bias = 0 if layer.base_layer.bias is None else layer.base_layer.bias.double()
        expected = x.double() @ (weight + layer.scaling["default"] * b @ a).T + bias
        assert torch.allclose(layer(x).double(), expected, atol=1e-5)
        assert model(input_ids=IDS).logits.isfinite().all()


def test_it_is_not_trained(model):
    loss = model.train()(input_ids=IDS, labels=IDS).loss
    with pytest.raises(KernelError, match="can be run and not trained"):
        loss.backward()


def test_it_is_not_merged(model):
    with pytest.raises(
        KernelError, match=r"packed weights cannot be written to.*weights='dense', into which a LoRA is merged"
    ):
        model.merge_and_unload()


def test_one_of_an_attention_of_torch_is_refused():
    """peft takes its weights out, and puts others in."""
    attention = nn.Sequential(nn.MultiheadAttention(32, 4))
    with torch.no_grad():
        attention[0].in_proj_weight[::2] = 0
    ecoflap.pack_model(attention)
    with pytest.raises(KernelError, match=r"in_proj_weight of this MultiheadAttention is packed, and cannot"):
        peft.get_peft_model(attention, peft.LoraConfig(r=4, target_modules=["0"]))(*[torch.ones(2, 3, 32)] * 3)


def test_one_of_packed_experts_is_refused(tmp_path):
    """peft finds no parameters there to put it beside, and would read past its weights."""
    if "mixtral" not in ALL_ROWS:
        pytest.skip("this family is not of this environment")
    config = peft.LoraConfig(r=4, target_modules=["q_proj"], target_parameters=["mlp.experts.down_proj"])
    peft.get_peft_model(half_pruned("mixtral").model.eval(), config).save_pretrained(tmp_path)
    packed = half_pruned("mixtral").model.eval()
    ecoflap.pack_model(packed)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # peft's, of parameters that it does not find
        with pytest.raises(RuntimeError, match=r"experts is packed, and takes no LoRA\. Merge it into the model"):
            peft.PeftModel.from_pretrained(packed, tmp_path)
