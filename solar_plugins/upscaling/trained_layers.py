"""``solar.train``: from the plan to the parameters to train, and to the Axolotl keys that select them. Pure."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, NamedTuple

from solar_plugins.errors import ArgsError
from solar_plugins.recipe import Recipe
from solar_plugins.solar_block import TrainArgs
from solar_plugins.text import span
from solar_plugins.upscaling.architectures.outer_tensors import (
    HEADS,
    OPTIONAL_EMBEDDINGS,
    UNCHECKED,
    outer_modules,
)
from solar_plugins.upscaling.decoder import Decoder
from solar_plugins.upscaling.layer_plan import LayerPlan
from solar_plugins.upscaling.tensor_names import is_tied

WRAPPERS = r"(?:(?:base_model.model|module|pretrained_model|_orig_mod|_fsdp_wrapped_module).)*"
"""Name prefixes that PEFT, DDP, TRL, torch.compile and FSDP add. Not just any prefix: the vision towers of some models
have layers with the same suffix (``vision_model.model.layers.``). In these patterns a dot is literal, as Axolotl reads
``unfrozen_parameters`` (axolotl/utils/freeze.py)."""

MODULES = r"(?:\w+.)*"
"""Any nested modules."""

NO_TOWER = r"(?!vis|audio|multi_modal|embed_(?:vision|audio))"
"""Excludes vision and audio towers (names from axolotl/utils/freeze.py)."""

CLASSIFIER_HEAD = f"{WRAPPERS}(?:score|classifier)."
"""The head of a reward model or another classifier. It is new, so it is always trained."""

ABSOLUTE_SCHEDULES = ("one_cycle", "rex")
"""Schedules for which Axolotl sets one maximum learning rate for all parameters (core/trainers/mixins/scheduler.py)."""

NORM = r"(?:\w*(?i:norm)\w*|(?:pre_)?ln_?\w*)"
"""Names of norms. Some contain numbered norms, one per head."""


class Trained(NamedTuple):
    """What ``solar.train`` trains."""

    layers: tuple[int, ...]
    """The trained layers of the deeper model, bottom first."""
    new: tuple[int, ...]
    """The layers that the plan added, trained or not."""
    num_layers: int
    """Depth of the deeper model."""
    embeddings: bool
    norms: bool
    """The norms outside the trained layers."""
    lm_head: bool

    def __str__(self) -> str:
        """For messages.

        Example:
            >>> print(Trained((20, 21, 22, 25), (), 48, embeddings=False, norms=True, lm_head=False))
            4 of 48 layers are trained (20..22, 25), and the other norms
        """
        others = {"the embeddings": self.embeddings, "the other norms": self.norms, "the head": self.lm_head}
        also = [name for name, chosen in others.items() if chosen]
        return f"{len(self.layers)} of {self.num_layers} layers are trained ({_listed(self.layers)})" + "".join(
            f", and {name}" for name in also
        )

    @property
    def everything(self) -> bool:
        """Whether nothing is frozen."""
        return len(self.layers) == self.num_layers and self.embeddings and self.norms and self.lm_head


def _listed(layers: Sequence[int]) -> str:
    """``20..22, 25`` for 20, 21, 22, 25."""
    runs: list[list[int]] = []
    for layer in layers:
        if runs and layer == runs[-1][-1] + 1:
            runs[-1].append(layer)
        else:
            runs.append([layer])
    return ", ".join(span(run[0], run[-1] + 1) for run in runs)


def new_layers(plan: LayerPlan) -> tuple[int, ...]:
    """The layers that a plan added: second and later copies of a base layer, layers of donors, and non-copies.

    Example:
        >>> new_layers(LayerPlan.from_sources(4, [0, 1, 2, 1, 2, 3]))
        (3, 4)
    """
    seen = set[int]()
    new = []
    for position, layer in enumerate(plan.layers):
        if layer.model or layer.source in seen or layer.initialization != "copy":
            new.append(position)
        else:
            seen.add(layer.source)
    return tuple(new)


def seam_layers(plan: LayerPlan, around: int) -> tuple[int, ...]:
    """The ``around`` layers on each side of each seam.

    Example:
        >>> seam_layers(LayerPlan.from_sources(4, [0, 1, 2, 1, 2, 3]), around=1)
        (2, 3)
    """
    places = [seam.position for seam in plan.seams()]
    return tuple(at for at in range(len(plan)) if any(place - around <= at < place + around for place in places))


def trained_parts(args: TrainArgs, decoder: Decoder, plan: LayerPlan | None) -> Trained:
    """What ``solar.train`` trains of a model.

    Args:
        args: ``solar.train``.
        decoder: The decoder of the base or of the upscaled model. They differ only in depth, which is the plan's.
        plan: The plan that the model was or will be upscaled by; None if it has no recorded plan.

    Raises:
        ArgsError: The plan lacks the requested layers, or only one of two tied weights is to be trained.
    """
    if plan is None and (args.layers != "all" or args.lr_scale):
        key = "lr_scale" if args.layers == "all" else f"layers: {args.layers}"
        raise ArgsError(
            f"solar.train.{key}: base_model has no recorded plan (solar_plugins in its config.json), so which of its "
            "layers are new is not known. Upscale it with solar.init or `solar upscale`, or set layers: all without "
            "lr_scale"
        )
    depth = len(plan) if plan else decoder.num_layers
    every = args.layers == "all"
    embeddings, lm_head = _ends(args, decoder)
    return Trained(
        layers=tuple(range(depth)) if plan is None or every else _chosen(args, plan),
        new=new_layers(plan) if plan else (),
        num_layers=depth,
        embeddings=embeddings,
        norms=every if args.norms is None else args.norms,
        lm_head=lm_head,
    )


def _chosen(args: TrainArgs, plan: LayerPlan) -> tuple[int, ...]:
    if args.layers == "new":
        chosen, missing = new_layers(plan), "adds no layer"
    else:
        assert args.around is not None
        chosen, missing = seam_layers(plan, args.around), "has no seam"
    if not chosen:
        raise ArgsError(f"solar.train.layers: {args.layers}, but the plan {missing} ({plan}); set layers: all or new")
    return chosen


def _ends(args: TrainArgs, decoder: Decoder) -> tuple[bool, bool]:
    """Whether the embeddings and the head are trained."""
    every = args.layers == "all"
    embeddings, lm_head = args.embeddings, args.lm_head
    if is_tied(decoder):
        embeddings = lm_head if embeddings is None else embeddings
        lm_head = embeddings if lm_head is None else lm_head
        if embeddings != lm_head:
            raise ArgsError(
                f"solar.train: embeddings: {args.embeddings} and lm_head: {args.lm_head}, but this model ties its head "
                "to its embeddings (tie_word_embeddings); set both to the same value"
            )
    return every if embeddings is None else embeddings, every if lm_head is None else lm_head


def layer_patterns(decoder: Decoder, layers: Iterable[int]) -> list[str]:
    r"""For each spelling of the decoder's layers, a pattern for the start of these layers' parameter names.

    Example:
        >>> decoder = Decoder.of({"model_type": "llama", "num_hidden_layers": 32})
        >>> [pattern.removeprefix(WRAPPERS) for pattern in layer_patterns(decoder, [4, 9])]
        ['model.layers.(?:4|9).']
    """
    numbers = "|".join(map(str, layers))
    return [f"{_before(decoder)}{prefix}(?:{numbers})." for prefix in decoder.architecture.prefixes]


def _before(decoder: Decoder) -> str:
    """A pattern for the prefix of the decoder's names. Custom code may nest the decoder in any modules."""
    return MODULES if decoder.has_own_code else WRAPPERS


def adapter_patterns(decoder: Decoder) -> list[str]:
    r"""PEFT's ``layers_pattern``: the names of the layer lists to which its layer indices apply.

    PEFT searches for each anywhere in a name, so the usual ``layers`` would also match a vision tower's.

    Example:
        >>> adapter_patterns(Decoder.of({"model_type": "llama", "num_hidden_layers": 32}))
        ['layers']
    """
    if not decoder.is_composite:
        return [decoder.architecture.stack]
    return [rf"(?<!.){re.escape(prefix.removesuffix('.'))}" for prefix in decoder.architecture.prefixes]


def unfrozen_patterns(decoder: Decoder, trained: Trained) -> list[str]:
    """Axolotl's ``unfrozen_parameters`` to train exactly these parts.

    Raises:
        ArgsError: Embeddings or head are requested, but their names are not known for this model type.
    """
    patterns = layer_patterns(decoder, trained.layers)
    if trained.embeddings:
        names = "|".join(embedding_modules(decoder))
        patterns += [f"{_before(decoder)}{parent}(?:{names})." for parent in _parents(decoder)]
    if trained.norms:
        patterns += norm_patterns(decoder)
    if trained.lm_head:
        patterns += [f"{MODULES}(?:{'|'.join(head_modules(decoder))})."]
    return [*patterns, CLASSIFIER_HEAD]


def new_patterns(decoder: Decoder, trained: Trained) -> list[str]:
    """Patterns for the start of the names of parameters that the base did not have, for ``lr_scale``."""
    return [*layer_patterns(decoder, trained.new), CLASSIFIER_HEAD]


def norm_patterns(decoder: Decoder) -> list[str]:
    """Patterns for the names of all norms of the decoder, inside and outside its layers."""
    before = _before(decoder)
    return [rf"{before}{parent}{NO_TOWER}{MODULES}{NORM}.(?:\d+.)?\w+$" for parent in _parents(decoder)]


def _parents(decoder: Decoder) -> list[str]:
    """For each spelling of the decoder's layers, the module that contains them, with a trailing dot."""
    return [prefix.removesuffix(f"{decoder.architecture.stack}.") for prefix in decoder.architecture.prefixes]


def embedding_modules(decoder: Decoder) -> tuple[str, ...]:
    """All names of the embedding modules, such as ``embed_tokens``, including position embeddings.

    Raises:
        ArgsError: They are not known for this model type.
    """
    model_type = _checked_type(decoder)
    outer = (*outer_modules(model_type), *OPTIONAL_EMBEDDINGS.get(model_type, ()))
    return tuple(name for names in outer for name in names.split("|") if not re.fullmatch(NORM, name))


def head_modules(decoder: Decoder) -> tuple[str, ...]:
    """All names of the language-modeling head, such as ``lm_head``.

    Raises:
        ArgsError: They are not known for this model type.
    """
    return HEADS.get(_checked_type(decoder), ("lm_head",))


def _checked_type(decoder: Decoder) -> str:
    model_type = str(decoder.text_config.get("model_type"))
    if model_type in UNCHECKED:
        raise ArgsError(
            f"solar.train: the names of the embeddings and the head are not known for model_type {model_type!r}; set "
            "embeddings and lm_head to false, or use unfrozen_parameters instead of solar.train"
        )
    return model_type


def training_keys(recipe: Recipe, args: TrainArgs, decoder: Decoder, plan: LayerPlan | None) -> dict[str, Any]:
    """The Axolotl keys that implement ``solar.train``: parameters to unfreeze, or layers to adapt.

    Args:
        recipe: The recipe.
        args: Its ``solar.train``.
        decoder: The decoder of its base, upscaled or not.
        plan: The plan that the base was or will be upscaled by; None if it has no recorded plan.

    Raises:
        ArgsError: The plan lacks the requested layers, another recipe key conflicts, or Axolotl does not support it.
    """
    trained = trained_parts(args, decoder, plan)
    if args.lr_scale:
        _check_lr_scale(recipe, args, trained)
    if recipe.adapter:
        keys = _adapter_keys(recipe, args, decoder, trained)
    else:
        keys = {} if trained.everything else {"unfrozen_parameters": unfrozen_patterns(decoder, trained)}
    for key, value in keys.items():
        own = getattr(recipe, key)
        if own not in (None, value):
            raise ArgsError(f"{key}: {own!r:.200} conflicts with solar.train, which sets this key; remove one of them")
    copied = list(recipe.lora_modules_to_save or ())
    missing = [name for name in _copied_modules(recipe, args, decoder) if name not in copied]
    return keys | ({"lora_modules_to_save": copied + missing} if missing else {})


def _adapter_keys(recipe: Recipe, args: TrainArgs, decoder: Decoder, trained: Trained) -> dict[str, Any]:
    if args.norms:
        raise ArgsError("solar.train.norms: true, but an adapter does not train norms; remove this key, or adapter")
    # Otherwise PEFT trains the embeddings and the head separately, but the merged model has only one of them.
    tied = {"peft_ensure_weight_tying": True} if is_tied(decoder) and (args.embeddings or args.lm_head) else {}
    if tied and recipe.fsdp_config:
        asked = "embeddings" if args.embeddings else "lm_head"
        raise ArgsError(
            f"fsdp_config: with adapter: {recipe.adapter} and solar.train.{asked}, PEFT trains a copy of the "
            "embeddings, which this model ties to its head (tie_word_embeddings), and FSDP2 cannot shard that. Use "
            f"deepspeed or DDP, or remove {asked}"
        )
    if len(trained.layers) == trained.num_layers:
        return tied
    if recipe.lora_target_parameters:
        raise ArgsError(
            f"lora_target_parameters: {recipe.lora_target_parameters!r:.200}; PEFT adapts such parameters in all "
            f"layers, but solar.train.layers is {args.layers}. Remove the key, set layers: all, or remove adapter"
        )
    if isinstance(recipe.lora_target_modules, str):
        raise ArgsError(
            f"lora_target_modules: {recipe.lora_target_modules!r:.200} is a pattern, with which PEFT ignores the "
            "choice of layers; with solar.train, give a list of names, or set lora_target_linear: true"
        )
    chosen = {"peft_layers_to_transform": list(trained.layers), "peft_layers_pattern": adapter_patterns(decoder)}
    return chosen | tied


def _copied_modules(recipe: Recipe, args: TrainArgs, decoder: Decoder) -> Iterator[str]:
    """With an adapter, the embeddings and the head are fully trained, as PEFT's copies (modules_to_save)."""
    if not recipe.adapter:
        return
    tied = is_tied(decoder)
    if args.embeddings or (tied and args.lm_head):
        yield from embedding_modules(decoder)
    if args.lm_head and not tied:
        yield from head_modules(decoder)


def _check_lr_scale(recipe: Recipe, args: TrainArgs, trained: Trained) -> None:
    if recipe.lr_scheduler in ABSOLUTE_SCHEDULES:
        raise ArgsError(
            f"solar.train.lr_scale: lr_scheduler: {recipe.lr_scheduler} sets the same learning rate for all "
            "parameters; use another schedule, such as cosine"
        )
    outer = (args.embeddings, args.lm_head) if recipe.adapter else (trained.embeddings, trained.norms, trained.lm_head)
    if set(trained.layers) <= set(trained.new) and not any(outer):
        raise ArgsError(
            f"solar.train.lr_scale: with layers: {args.layers}, none of the base's own parameters are trained, so it "
            "has no effect; remove it, or set layers: all"
        )


def refuse_frozen_identity_layers(args: TrainArgs, decoder: Decoder, plan: LayerPlan) -> None:
    """Refuse to freeze a layer that this recipe adds as identity: it would always stay an identity.

    Raises:
        ArgsError: Such a layer is frozen.
    """
    identity = {place for place, layer in enumerate(plan.layers) if not layer.acts}
    frozen = sorted(identity.difference(trained_parts(args, decoder, plan).layers))
    if frozen:
        raise ArgsError(
            f"solar.train.layers: {args.layers} freezes layers {', '.join(map(str, frozen))}, which this plan adds as "
            f"identity layers, so they would never have an effect ({plan}); set layers: new or all"
        )
