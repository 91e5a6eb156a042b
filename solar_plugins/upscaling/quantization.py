"""Quantized bases: tensors are copied as they are, and module names in quantization configs follow the plan. Pure.

Quantized tensors are copied like all others, because they have the layer's name. But quantization configs contain lists
of modules, such as those kept in full precision, that refer to layers by number.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from functools import partial
from itertools import pairwise
from typing import TYPE_CHECKING, Any

from solar_plugins.errors import CheckpointError
from solar_plugins.upscaling.decoder import Decoder
from solar_plugins.upscaling.layer_plan import LayerPlan

if TYPE_CHECKING:
    from solar_plugins.upscaling.architectures.table import Architecture

KNOWN_METHODS = frozenset({"bitsandbytes", "gptq", "awq", "fp8", "compressed-tensors", "fbgemm_fp8", "mxfp4"})
"""Methods that store each module's tensors under the module's name, and no other data about layers."""


SIDE_FILES: Mapping[str, str | None] = {
    "quantize_config.json": "gptq",
    "quant_config.json": "awq",
    "quantization_config.json": None,
    "hf_quant_config.json": "modelopt",
}
"""Quantization configs outside config.json, of AutoGPTQ, AutoAWQ, AutoRound and NVIDIA's ModelOpt, with the method that
each implies if it has none."""

_QUANTIZED = re.compile(
    r"\.(?:q(?:weight|zeros|data)|g_idx|scales|biases|SCB|weight_format|W_q|codes|codebooks|centroids|Qidxs|trellis|suh|svh|q_groups|q_invperm|scales_and_zeros"
    r"|(?:nested_)?(?:absmax|quant_map)|quant_state\..+|_data|_scale|(?:input|output)_scale"
    r"|weight_(?:packed|scales?|scale_inv|scale_2|shape|zero_point|g_idx))$"
    r"|_(?:blocks|scales)$|:\w+$"
)
"""Suffixes of tensors that only quantized weights have: of GPTQ and AWQ, MLX, bitsandbytes, HQQ, AQLM, VPTQ, QuIP#,
EXL2 and EXL3, quanto, FP8, compressed-tensors and ModelOpt, MXFP4, torchao."""


_INTEGERS = frozenset({"I8", "U8", "I16", "U16", "I32", "U32", "I64", "U64", "F4"})
"""Dtypes of packed or scaled weights. `F4` packs two numbers into a byte, which torch cannot load by itself."""

_ANY_CHARACTER = re.compile(r"\.[*+]")
_ANY_NUMBER = re.compile(r"\[0-9\][+*]")
_DOT = re.compile(r"\\?\.")
_NUMBERS = re.compile(r"(?=.*\d)[\d()|\[\]{}?:,^$-]+")


def reordered_quantizations(decoder: Decoder, plan: LayerPlan) -> dict[str, Any]:
    """`Decoder.quantizations` with module names that follow the plan: a layer's name is repeated for each copy.

    Raises:
        CheckpointError: The method is not supported; the plan has layers that are not copies (zero bytes are not zero
            weights); or a pattern refers to layers in a way that cannot be rewritten.

    Example:
        >>> quantization = {"quant_method": "awq", "modules_to_not_convert": ["lm_head", "model.layers.1.mlp"]}
        >>> config = {"model_type": "llama", "num_hidden_layers": 3, "quantization_config": quantization}
        >>> plan = LayerPlan.from_sources(3, [0, 1, 1, 2])
        >>> reordered_quantizations(Decoder.of(config), plan)["quantization_config"]["modules_to_not_convert"]
        ['lm_head', 'model.layers.1.mlp', 'model.layers.2.mlp']
    """
    for place, said in list(decoder.quantizations.items())[:1]:
        method = _method(place, said)
        if method not in KNOWN_METHODS:
            raise CheckpointError(
                f"{_described(place)}: quant_method is {method!r:.200}; expected one of "
                f"{', '.join(sorted(KNOWN_METHODS))}. Use the unquantized base, and quantize after training"
            )
        others = sorted({layer.initialization for layer in plan.layers} - {"copy"})
        if others:
            raise CheckpointError(
                f"{_described(place)}: the weights are quantized, but the plan has {' and '.join(others)} layers, "
                "whose weights must be zero or computed; use the unquantized base, or a plan of copies"
            )
    reordered = {}
    for place, said in decoder.quantizations.items():
        copies = partial(_copies, architecture=decoder.architecture, plan=plan, place=_described(place))
        reordered[place] = _reordered(said, copies)
    return reordered


def refuse_undeclared_quantization(names: Iterable[str], decoder: Decoder) -> None:
    """Refuse quantized weights without a quantization config: they could not be loaded.

    Args:
        names: The tensors of the layers.
        decoder: The base's decoder.

    Raises:
        CheckpointError: There is such a tensor.
    """
    if decoder.quantization is not None:
        return
    found = next(filter(_QUANTIZED.search, names), None)
    if found is not None:
        raise CheckpointError(
            f"tensor {found!r:.200} is part of a quantized weight, but config.json has no quantization_config, and "
            f"none of {', '.join(SIDE_FILES)} exists. Add the config that the quantizer wrote, or use the unquantized "
            "base and quantize after training"
        )


def refuse_undeclared_integers(dtypes: Mapping[str, str], decoder: Decoder) -> None:
    """Refuse integer weights without a quantization config: transformers would load them without scaling.

    Args:
        dtypes: The safetensors dtypes of the base's tensors, by name.
        decoder: The base's decoder.

    Raises:
        CheckpointError: There is such a weight.
    """
    if decoder.quantization is not None:
        return
    found = next((name for name, dtype in dtypes.items() if name.endswith(".weight") and dtype in _INTEGERS), None)
    if found is not None:
        raise CheckpointError(
            f"tensor {found!r:.200} has the dtype {dtypes[found]}, expected a floating-point dtype: it is quantized, "
            "but config.json has no quantization_config. Add the config that the quantizer wrote, or use the "
            "unquantized base and quantize after training"
        )


def _method(place: str, said: Any) -> str | None:
    if not isinstance(said, Mapping):
        return None
    if any(said.get(key) for key in ("load_in_4bit", "load_in_8bit")):
        return "bitsandbytes"  # As in transformers, whatever quant_method says.
    default = "compressed-tensors" if place == "compression_config" else SIDE_FILES.get(place)
    method = said.get("quant_method", default)
    return method if isinstance(method, str) else repr(method)


def _described(place: str) -> str:
    return place if place in SIDE_FILES else f"config.json: {place}"


def _reordered(value: Any, copies: Callable[[str], list[str]]) -> Any:
    if isinstance(value, Mapping):
        return {name: _reordered(inner, copies) for key, inner in value.items() for name in copies(key)}
    if isinstance(value, list):
        return [
            name
            for entry in value
            for name in (copies(entry) if isinstance(entry, str) else [_reordered(entry, copies)])
        ]
    return value


def _copies(name: str, architecture: Architecture, plan: LayerPlan, place: str) -> list[str]:
    """Rewrite a module name or pattern for all copies of its layer; unchanged if it does not refer to a layer."""
    name = name.replace("[.]", r"\.")
    # Dots may be escaped, as in patterns of compressed-tensors.
    match = re.search(rf"((?:\w+\\?\.)*\b{re.escape(architecture.stack)}\\?\.)(\d+)(?=$|\\?\.|\$)", name)
    if match and not architecture.is_prefix(match[1].replace("\\", "")):
        return [name]
    if match and _ANY_CHARACTER.match(name, match.end(2)) and _begins_another(match[2], plan):
        raise CheckpointError(
            f"{place} has the pattern {name!r:.200}, whose dot after {match[2]} matches any character, so it also "
            f"matches other layers that start with {match[2]}; write {match[2]}\\., or one entry per layer"
        )
    if match:
        old = int(match[2])
        new = [position for position, source in enumerate(plan.sources) if source == old]
        if old >= plan.base_layers:  # prediction layers past the last one
            new = [old - plan.base_layers + len(plan)]
        return [f"{name[: match.start(2)]}{position}{name[match.end(2) :]}" for position in new]
    fixed = _ANY_NUMBER.sub("", name)
    if re.search(rf"\b{re.escape(architecture.stack)}\\?\.[\[({{]*\d", fixed):
        raise CheckpointError(
            f"{place} has the pattern {name!r:.200}, which matches several layers; write one entry per layer"
        )
    if _names_a_number_alone(fixed):
        raise CheckpointError(
            f"{place} has the pattern {name!r:.200}, which refers to layers by number only; write the full prefix, "
            f"such as {architecture.layers_prefix}3., with one entry per layer"
        )
    return [name]


def _begins_another(number: str, plan: LayerPlan) -> bool:
    others = range(max(plan.base_layers, len(plan)))
    return any(str(other).startswith(number) and str(other) != number for other in others)


def _names_a_number_alone(name: str) -> bool:
    r"""Whether a part between dots consists of numbers, and the part before it is not a name.

    Example:
        >>> [_names_a_number_alone(name) for name in (r"-:.*\.18\..*", r"re:.*experts\.0\..*", "0.8.1")]
        [True, False, False]
    """
    return any(
        _NUMBERS.fullmatch(part) and not re.search(r"\w$", before) for before, part in pairwise(_DOT.split(name))
    )
