from types import SimpleNamespace

import pytest
import torch

from solar_plugins.axolotl_adapter.trained_parameters import check_trained_parameters
from solar_plugins.errors import ArgsError
from solar_plugins.upscaling.decoder import Decoder
from solar_plugins.upscaling.trained_layers import Trained

DECODER = Decoder.of({"model_type": "llama", "num_hidden_layers": 3})
UP, LORA = "model.layers.{}.mlp.up_proj.weight", "base_model.model.model.layers.{}.mlp.up_proj.lora_A.default.weight"
TOWER = "base_model.model.vision_tower.layers.1.up_proj.lora_A.default.weight"


def check(*learning, layers=(1,)):
    names = [UP.format(layer) for layer in range(3)] + ["model.norm.weight"]
    parameters = {name: torch.nn.Parameter(torch.zeros(2), requires_grad=False) for name in names}
    parameters |= {name: torch.nn.Parameter(torch.zeros(2)) for name in learning}
    model = SimpleNamespace(named_parameters=lambda: iter(parameters.items()))
    trained = Trained(layers, layers, 3, embeddings=False, norms=False, lm_head=False)
    return check_trained_parameters(model, DECODER, trained)


def test_the_layers_of_the_plan_learn():
    assert "1 of 3 layers" in check(UP.format(1))
    assert "1 of 3 layers" in check(LORA.format(1))
    assert "3 of 3 layers" in check(*map(LORA.format, range(3)), TOWER, layers=(0, 1, 2)), "nothing was chosen"


@pytest.mark.parametrize(
    ("learning", "message"),
    [
        ([UP.format(1), UP.format(2)], r"layers 1, 2 of the loaded model would learn, not 1\."),
        ([], r"layers none of the loaded model would learn, not 1\."),
        ([LORA.format(0)], r"layers 0 .* not 1\. An adapter that goes on \(lora_model_dir\) keeps its own layers"),
        ([LORA.format(1), TOWER], r"the adapter covers .*vision_tower\.layers\.1\.up_proj\S* too, which is in none of"),
    ],
)
def test_what_else_would_learn_is_refused(learning, message):
    with pytest.raises(ArgsError, match=message):
        check(*learning)
