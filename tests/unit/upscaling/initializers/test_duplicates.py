"""``solar.init.duplicates``: what a recipe may say, what becomes of it in the plan, and whose fault an error is."""

import subprocess
import sys
from contextlib import contextmanager

import pytest
import torch

from solar_plugins.errors import ArgsError, CheckpointError, PluginError
from solar_plugins.plugins import manager as registry
from solar_plugins.plugins.markers import hookimpl
from solar_plugins.solar_block import InitArgs
from solar_plugins.upscaling.base_model import find_base
from solar_plugins.upscaling.checkpoint import ensure_checkpoint
from solar_plugins.upscaling.decoder import Decoder
from solar_plugins.upscaling.initializers import layer_initializers
from solar_plugins.upscaling.initializers.base import LayerInitializer
from solar_plugins.upscaling.layer_plan import LayerPlan, PlannedLayer
from solar_plugins.upscaling.strategies import plan_of
from solar_plugins.upscaling.strategies.base import InitStrategy, StrategyArgs
from solar_plugins.upscaling.upscaled_config import upscale_config
from solar_plugins.upscaling.upscaled_tensors import planned_shards

HALF = PlannedLayer(1, "scaled", (("factor", 0.5),))


def stacked(duplicates, **keys):
    return plan_of(InitArgs(strategy="interleave", duplicates=duplicates, **keys), 2)


@contextmanager
def registered(initializers=(), strategies=()):
    class Plugin:
        @hookimpl
        def register_layer_initializers(self):
            return list(initializers)

        @hookimpl
        def register_init_strategies(self):
            return list(strategies)

    plugin = Plugin()
    registry.loaded_plugins().manager.register(plugin)
    try:
        yield
    finally:
        registry.loaded_plugins().manager.unregister(plugin)


def third(**changes):
    """An initializer of a third party that adds 1 to the gate of the MLP."""
    settings = {
        "name": "third",
        "args": StrategyArgs,
        "starts": lambda layer, args: {"mlp.gate_proj.weight": "computed"},
        "compute": lambda tensor, args: tensor.base() + 1,
        "summary": "",
    }
    return LayerInitializer(**settings | changes)


@pytest.mark.parametrize(
    "said",
    [
        "scaled",
        {"initializer": "scaled"},
        {"initializer": "scaled", "factor": 0.5},
        {"initializer": "scaled", "factor": "0.5"},
        "{initializer: scaled, factor: 0.5}",
        '{"initializer": "scaled", "factor": "0.5"}',
    ],
)
def test_every_spelling_of_duplicates_gives_the_same_plan(said):
    assert stacked(said).layers == (PlannedLayer(0), HALF._replace(source=0), PlannedLayer(1), HALF)


def test_the_built_in_ones_come_through_the_hook():
    assert layer_initializers().keys() >= {"copy", "identity", "scaled", "noise", "average"}


def test_only_second_and_later_occurrences_change():
    plan = plan_of(InitArgs(strategy="slices", slices="1:3,0:2,2:4,1:2", duplicates="identity"), 4)
    kinds = [(layer.source, layer.initialization) for layer in plan.layers]
    assert kinds == [
        (1, "copy"),
        (2, "copy"),
        (0, "copy"),
        (1, "identity"),
        (2, "identity"),
        (3, "copy"),
        (1, "identity"),
    ]
    assert plan.duplicates() == (3, 4, 6)


def test_duplicates_that_a_strategy_and_a_recipe_both_initialize_are_an_error():
    assert str(plan_of(InitArgs(strategy="block_expansion", new_layers=1), 2)) == (
        "2 -> 3 layers: [0..1] + [1] as identity"
    )
    with pytest.raises(ArgsError, match=r"solar.init.duplicates: 'scaled' also applies to layer 2"):
        plan_of(InitArgs(strategy="block_expansion", new_layers=1, duplicates="scaled"), 2)


@pytest.mark.parametrize(
    ("said", "kind", "words"),
    [
        (
            "scald",
            PluginError,
            "solar.init.duplicates: 'scald' is not a registered initializer; did you mean scaled? known: ",
        ),
        ("scald", PluginError, "did you mean scaled?"),
        (
            {"initializer": "scaled", "factr": 1},
            ArgsError,
            "solar.init.duplicates.factr: unknown key; did you mean fac",
        ),
        (
            {"initializer": "scaled", "factor": 0},
            ArgsError,
            "duplicates.factor: 0 is not allowed; expected a value greater",
        ),
        (
            {"initializer": "scaled", "factor": True},
            ArgsError,
            "duplicates.factor: True is not allowed; expected a num",
        ),
        (
            {"initializer": "scaled", "factor": "inf"},
            ArgsError,
            "duplicates.factor: 'inf' is not allowed; expected",
        ),
        ({"initializer": "identity", "x": 1}, ArgsError, "solar.init.duplicates.x: unknown key; known: none"),
        ({"factor": 1}, ArgsError, "expected the name of an initializer, such as identity, or a map such as {initiali"),
        (["scaled"], ArgsError, "solar.init.duplicates: ['scaled'] is not allowed; expected the name"),
        (True, ArgsError, "solar.init.duplicates: True is not allowed"),
        ("{initializer: [", ArgsError, "solar.init.duplicates: '{initializer: [': not valid YAML"),
    ],
)
def test_invalid_initializers_are_rejected(said, kind, words):
    with pytest.raises(kind) as error:
        stacked(said)
    assert words in str(error.value)


def test_a_type_with_unknown_residual_writers_is_rejected_by_its_config():
    """Gemma 2 has a norm behind them, after which a factor would do nothing."""
    plan = stacked("scaled")
    decoder = Decoder.of({"model_type": "gemma2", "num_hidden_layers": 2, "layer_types": ["full_attention"] * 2})
    with pytest.raises(CheckpointError, match="not tested for model_type 'gemma2'"):
        upscale_config(decoder, plan)
    upscale_config(decoder, stacked("noise"))


@pytest.mark.parametrize("name", ["scaled", "noise", "average", "identity"])
def test_quantized_bases_are_refused_with_the_reason(name):
    quantization = {"quant_method": "gptq"}
    decoder = Decoder.of({"model_type": "llama", "num_hidden_layers": 2, "quantization_config": quantization})
    with pytest.raises(CheckpointError, match=f"weights are quantized, but the plan has {name} layers, whose"):
        upscale_config(decoder, stacked(name))


def test_planning_needs_no_torch_and_neither_do_zeros(base, tmp_path):
    code = (
        "import sys\n"
        "from click.testing import CliRunner\n"
        "from solar_plugins.cli import solar\n"
        "for line in sys.argv[1:]:\n"
        "    result = CliRunner().invoke(solar, line.split())\n"
        "    assert result.exit_code == 0, result.output\n"
        "print(*{'torch', 'numpy', 'transformers'} & set(sys.modules))\n"
    )
    lines = [f"plan --base {base} --drop-layers 2 --duplicates {name}" for name in ("scaled", "noise", "average")]
    lines += [f"upscale {base} {tmp_path / 'out'} --drop-layers 2 --duplicates identity"]
    done = subprocess.run([sys.executable, "-c", code, *lines], capture_output=True, text=True, check=True)
    assert done.stdout.split() == []


def test_a_third_party_initializer_is_used_for_the_checkpoint(base, tmp_path):
    from safetensors.torch import load_file

    with registered([third()]):
        plan = plan_of(InitArgs(strategy="interleave", duplicates="third"), 8)
        made = ensure_checkpoint(find_base(str(base)), plan, tmp_path / "cache")
    old, new = load_file(base / "model.safetensors"), load_file(made / "model.safetensors")
    assert new["model.layers.5.mlp.gate_proj.weight"].equal(old["model.layers.2.mlp.gate_proj.weight"] + 1)
    assert new["model.layers.4.mlp.gate_proj.weight"].equal(old["model.layers.2.mlp.gate_proj.weight"])
    with pytest.raises(PluginError, match="'third' is not a registered initializer"):
        planned_shards(find_base(str(base)), plan)


def test_a_strategy_may_choose_an_initializer_per_layer_and_omit_arguments():
    def plan(num_layers, args):
        return LayerPlan(num_layers, (*map(PlannedLayer, range(num_layers)), PlannedLayer(0, "noise", (("seed", 3),))))

    with registered(strategies=[InitStrategy("chooses", StrategyArgs, plan, summary="")]):
        made = plan_of(InitArgs(strategy="chooses"), 2)
    assert made.layers[2] == PlannedLayer(0, "noise", (("relative", 0.01), ("seed", 3)))


def test_a_strategy_with_an_unknown_initializer_is_an_error():
    def plan(num_layers, args):
        return LayerPlan(num_layers, (PlannedLayer(0, "nois"),))

    with (
        registered(strategies=[InitStrategy("chooses", StrategyArgs, plan, summary="")]),
        pytest.raises(PluginError, match=r"strategy: layer with initializer 'nois': .*did you mean noise"),
    ):
        plan_of(InitArgs(strategy="chooses"), 2)


def passing(layer, args):
    return dict.fromkeys(layer.residual_writers, "zero") | {"mlp.gate_proj.weight": "computed"}


def test_an_initializer_that_passes_its_input_through_makes_no_seam(base):
    with registered([third(starts=passing, passes_through=True)]):
        plan = plan_of(InitArgs(strategy="interleave", duplicates="third"), 8)
        planned_shards(find_base(str(base)), plan)
        assert plan.seams() == ()
        again = LayerPlan.from_dict(plan.to_dict())
        assert again == plan
        assert not again.layers[1].acts


class DictArgs(StrategyArgs):
    values: dict = {}  # noqa: RUF012  pydantic copies it


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"starts": lambda layer, args: 1 // 0}, "'third' failed on base layer 0 with ZeroDivisionError"),
        ({"starts": lambda layer, args: ["x"]}, "'third' returned ['x'], expected a map"),
        ({"starts": lambda layer, args: {"x": "new"}}, "expected a map from tensor names to 'zero' or 'computed'"),
        ({"starts": lambda layer, args: {"x": "zero"}}, "returned 'x', which is not"),
        ({"passes_through": True}, "has passes_through=True, but does not zero"),
        ({"compute": None}, "tensor mlp.gate_proj.weight of new layer 1: the initializer has no compute function"),
        ({"compute": lambda tensor, args: 1 // 0}, "of new layer 1: failed with ZeroDivisionError"),
        ({"compute": lambda tensor, args: None}, "returned a NoneType, expected a tensor"),
        ({"compute": lambda tensor, args: tensor.base().float()}, "returned torch.float32 of shape [48, 32], expected"),
        (
            {"compute": lambda tensor, args: tensor.base()[1:]},
            "of shape [47, 32], expected torch.bfloat16 of shape [48",
        ),
        ({"compute": lambda tensor, args: tensor.base() / 0}, "returned values that are not finite"),
        ({"args": DictArgs}, "'third' has an argument that a plan cannot store: {} is not a number"),
    ],
)
def test_a_broken_third_party_initializer_is_named(base, tmp_path, changes, words):
    with registered([third(**changes)]), pytest.raises(PluginError) as error:
        ensure_checkpoint(
            find_base(str(base)), plan_of(InitArgs(strategy="interleave", duplicates="third"), 8), tmp_path / "cache"
        )
    assert words in str(error.value)
    assert "third" in str(error.value)
    assert not [*(tmp_path / "cache").glob("upscaled-*")]


def test_a_tensor_that_the_base_lacks_is_named(base, tmp_path):
    wrong = third(compute=lambda tensor, args: tensor.read("mlp.gate.weight", 1))
    with registered([wrong]), pytest.raises(CheckpointError, match=r"base layer 1 has no tensor 'mlp.gate.weight'"):
        ensure_checkpoint(
            find_base(str(base)), plan_of(InitArgs(strategy="interleave", duplicates="third"), 8), tmp_path / "cache"
        )


def test_a_reader_gives_each_caller_a_tensor_of_its_own(base):
    """A function that changes what it read must not change what the next one reads."""
    seen = []

    def twice(tensor, args):
        first = tensor.base()
        seen.append(first.clone())
        first.zero_()
        return tensor.base()

    with registered([third(compute=twice)]):
        plan = plan_of(InitArgs(strategy="interleave", duplicates="third"), 8)
        (shard,) = planned_shards(find_base(str(base)), plan)
        made = next(bytes(tensor.compute()) for tensor in shard.tensors if tensor.compute)
    assert made == bytes(seen[0].view(torch.uint8).numpy())
