"""The reference for depth surgery: the real modules of a loaded model, rearranged in memory, without our code."""

import copy

import torch
from tiny_decoders import DEPTH_KEYS

# store_full_length_kv says which layer keeps keys for layers that share them; where none shares it has no effect.
POSITION_WORDS = (
    "store_full_length_kv",
    "idx",
    "index",
    "layer_id",
    "block_id",
    "layer_number",
    "seed",
    "num_hidden_layers",
)


def stack_of(model, num_layers):
    """The name of the module list that holds the decoder's layers."""
    lists = [
        name
        for name, module in model.named_modules()
        if isinstance(module, torch.nn.ModuleList)
        and len(module) == num_layers
        and not any(word in name for word in ("vision", "audio"))
        and any(p.numel() for p in module.parameters())
    ]
    (name,) = [name for name in lists if not any(name.startswith(f"{other}.") for other in lists)]
    return name


def rearranged(model, sources, num_layers):
    """A copy of ``model`` whose layer ``i`` is its layer ``sources[i]``, parameters, buffers, attributes and all."""
    model = copy.deepcopy(model)
    name = stack_of(model, num_layers)
    parent, _, own = name.rpartition(".")
    layers = model.get_submodule(name)
    setattr(model.get_submodule(parent), own, torch.nn.ModuleList([copy.deepcopy(layers[s]) for s in sources]))
    for config in {
        id(m.config): m.config for m in model.get_submodule(parent).modules() if hasattr(m, "config")
    }.values():
        values = vars(config)
        for key, value in list(values.items()):
            if isinstance(value, list | tuple) and len(value) == num_layers:
                values[key] = [value[source] for source in sources]
            if key in DEPTH_KEYS and value == num_layers:
                values[key] = len(sources)
    for module in model.get_submodule(parent).modules():
        for key in ("num_layers", "num_hidden_layers", "n_layers"):
            if vars(module).get(key) == num_layers:
                setattr(module, key, len(sources))
    return model


def plain_attributes(layer):
    """What a layer knows of itself beyond its tensors: numbers, flags and names, but not its position."""
    return {
        f"{name}.{key}": round(value, 9) if isinstance(value, float) else value
        for name, module in layer.named_modules()
        for key, value in vars(module).items()
        if isinstance(value, bool | int | float | str) and not any(word in key for word in POSITION_WORDS)
    }
