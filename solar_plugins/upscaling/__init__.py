"""From a base and a layer plan to an upscaled checkpoint.

* `layer_plan`, `strategies`, `initializers`: which base layers the deeper model has, and how each is initialized.
* `architectures`: a table of model types. `decoder`: the decoder that a config describes, from that table.
* `upscaled_config`, `quantization`, `upscaled_tensors`: config and tensors of the deeper model; nothing is written.
* `base_model`, `donors`: find the base and other models, read configs and headers. `checkpoint`: writes the new model.
* `marker`, `provenance`, `model_card`: metadata in a checkpoint. `verify`: compares a checkpoint with its base.
* `estimates`: the size of the deeper model. `mergekit`: plans as mergekit recipes. `trained_layers`: ``solar.train``.
"""
