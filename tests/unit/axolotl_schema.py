"""Recipes by Axolotl's own schema with our plugin's: which keys it would drop in silence."""

from solar_plugins.axolotl_adapter.recipe_checks import changes, check_recipe
from solar_plugins.recipe import parse_recipe


def keys_that_axolotl_drops(recipe):
    """The keys of a complete recipe that are gone after validation, on a machine with eight GPUs."""
    from axolotl.integrations.base import PluginManager
    from axolotl.utils.config import validate_config
    from axolotl.utils.dict import DictDefault

    PluginManager.get_instance().register("solar_plugins.SolarPlugin")
    parsed = parse_recipe(recipe)
    check_recipe(parsed)
    recipe = recipe | changes(parsed)  # as our plugin does before the schema
    gpu = {"bf16": True, "fp8": False, "tf32": True, "n_gpu": 8, "compute_capability": "sm_90"}
    validated = validate_config(DictDefault(recipe), capabilities=gpu, env_capabilities={"torch_version": "2.14.1"})
    return dropped_keys(recipe, validated.to_dict())


def dropped_keys(before, after, where=""):
    """Keys of a nested recipe that validation lost."""
    if isinstance(before, dict):
        lost = [f"{where}{key}" for key in before if not isinstance(after, dict) or key not in after]
        kept = [key for key in before if isinstance(after, dict) and key in after]
        return lost + [key for k in kept for key in dropped_keys(before[k], after[k], f"{where}{k}.")]
    if isinstance(before, list) and isinstance(after, list):
        return [
            key
            for i, (a, b) in enumerate(zip(before, after, strict=True))
            for key in dropped_keys(a, b, f"{where}{i}.")
        ]
    return []
