"""From a base and a layer plan to an upscaled checkpoint.

* `layer_plan`, `strategies`: which base layers the deeper model has, in which order, and how each starts.
* `architectures`: data about model types. `decoder`: what one config says of its layers, looked up there once.
* `upscaled_config`, `quantization`, `upscaled_tensors`: config and tensors of the deeper model; nothing is written.
* `base_model`: finds the base, reads its config and its tensors' headers. `checkpoint`: writes the deeper model.
* `marker`, `provenance`, `model_card`: what a checkpoint says of itself. `verify`: compares it with its base.
* `estimates`: how large the deeper model is. `mergekit`: a plan as a mergekit recipe.
"""
