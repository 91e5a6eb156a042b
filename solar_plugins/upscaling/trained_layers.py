"""Which parameters of an upscaled model ``solar.train`` trains: from the plan to names of loaded modules. Pure."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from typing import NamedTuple

from solar_plugins.errors import ArgsError
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
"""What PEFT, DDP, TRL, torch.compile and FSDP put before a model's names. Not just anything: the vision towers of some
models end like their decoders (``vision_model.model.layers.``). In these patterns a dot is a dot, as Axolotl reads
``unfrozen_parameters`` (axolotl/utils/freeze.py)."""

MODULES = r"(?:\w+.)*"
"""Any modules, one in another."""

NO_TOWER = r"(?!vis|audio|multi_modal|embed_(?:vision|audio))"
"""Not what holds images or sound (the names are those of axolotl/utils/freeze.py), beside which a decoder may stand."""

JUDGING_HEAD = f"{WRAPPERS}(?:score|classifier)."
"""The head of a reward model or another model for classification. It is new, so it always learns."""

NORM = r"(?:\w*(?i:norm)\w*|(?:pre_)?ln_?\w*)"
"""What a norm is called; a few hold numbered norms for each head."""


class Trained(NamedTuple):
    """What ``solar.train`` trains."""

    layers: tuple[int, ...]
    """Of the deeper model, bottom first."""
    new: tuple[int, ...]
    """Layers that the plan added, trained or not."""
    num_layers: int
    """Of the deeper model."""
    embeddings: bool
    norms: bool
    """The norms that are not in a trained layer."""
    lm_head: bool

    def __str__(self) -> str:
        """In words.

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
    """The layers that a plan added: second and later copies of a base layer, a donor's, and whatever starts otherwise.

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
        decoder: Of the base, or of the upscaled model: only its depth differs, and that is the plan's.
        plan: By which the model was, or will be, upscaled; None where the model has no record of one.

    Raises:
        ArgsError: The plan does not have what is asked for, or tied weights are asked for by halves.
    """
    if plan is None and (args.layers != "all" or args.lr_scale):
        key = "lr_scale" if args.layers == "all" else f"layers: {args.layers}"
        raise ArgsError(
            f"solar.train.{key}: base_model has no record of a plan (config.json: solar_plugins), so nobody knows "
            "which of its layers are new. Upscale it with solar.init or `solar upscale`, or set layers: all, without "
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
                f"solar.train: embeddings: {args.embeddings} and lm_head: {args.lm_head}, but this model's head is its "
                "embeddings (tie_word_embeddings); give both the same value"
            )
    return every if embeddings is None else embeddings, every if lm_head is None else lm_head


def layer_patterns(decoder: Decoder, layers: Iterable[int]) -> list[str]:
    r"""For each spelling of the decoder's layers, what the names of these layers' parameters begin with.

    Example:
        >>> decoder = Decoder.of({"model_type": "llama", "num_hidden_layers": 32})
        >>> [pattern.removeprefix(WRAPPERS) for pattern in layer_patterns(decoder, [4, 9])]
        ['model.layers.(?:4|9).']
    """
    numbers = "|".join(map(str, layers))
    return [f"{_before(decoder)}{prefix}(?:{numbers})." for prefix in decoder.architecture.prefixes]


def _before(decoder: Decoder) -> str:
    """What may stand before a name of the decoder. Code of its own may nest it in whatever it likes."""
    return MODULES if decoder.has_own_code else WRAPPERS


def adapter_patterns(decoder: Decoder) -> list[str]:
    r"""What PEFT takes as ``layers_pattern``: where the layers stand to whose numbers it keeps.

    PEFT searches each for itself in a name, so that the usual ``layers`` would be a vision tower's too.

    Example:
        >>> adapter_patterns(Decoder.of({"model_type": "llama", "num_hidden_layers": 32}))
        ['layers']
    """
    if not decoder.is_composite:
        return [decoder.architecture.stack]
    return [rf"(?<!.){re.escape(prefix.removesuffix('.'))}" for prefix in decoder.architecture.prefixes]


def unfrozen_patterns(decoder: Decoder, trained: Trained) -> list[str]:
    """What Axolotl takes as ``unfrozen_parameters`` to train exactly these parts.

    Raises:
        ArgsError: Embeddings or head are asked for, and their names are not known for this model type.
    """
    patterns = layer_patterns(decoder, trained.layers)
    if trained.embeddings:
        names = "|".join(embedding_modules(decoder))
        patterns += [f"{_before(decoder)}{parent}(?:{names})." for parent in _parents(decoder)]
    if trained.norms:
        patterns += norm_patterns(decoder)
    if trained.lm_head:
        patterns += [f"{MODULES}(?:{'|'.join(head_modules(decoder))})."]
    return [*patterns, JUDGING_HEAD]


def new_patterns(decoder: Decoder, trained: Trained) -> list[str]:
    """What the names begin with of parameters that the base did not have, for ``lr_scale``."""
    return [*layer_patterns(decoder, trained.new), JUDGING_HEAD]


def norm_patterns(decoder: Decoder) -> list[str]:
    """What the names of all norms of the decoder are like, in its layers and beside them."""
    before = _before(decoder)
    return [rf"{before}{parent}{NO_TOWER}{MODULES}{NORM}.(?:\d+.)?\w+$" for parent in _parents(decoder)]


def _parents(decoder: Decoder) -> list[str]:
    """For each spelling of the decoder's layers, the module that holds them, with a dot at its end."""
    return [prefix.removesuffix(f"{decoder.architecture.stack}.") for prefix in decoder.architecture.prefixes]


def embedding_modules(decoder: Decoder) -> tuple[str, ...]:
    """The embeddings beside the stack of layers, of positions too, such as ``embed_tokens``, under all their names.

    Raises:
        ArgsError: They are not known for this model type.
    """
    model_type = _checked_type(decoder)
    outer = (*outer_modules(model_type), *OPTIONAL_EMBEDDINGS.get(model_type, ()))
    return tuple(name for names in outer for name in names.split("|") if not re.fullmatch(NORM, name))


def head_modules(decoder: Decoder) -> tuple[str, ...]:
    """The head for language modelling, such as ``lm_head``, under all its names.

    Raises:
        ArgsError: It is not known for this model type.
    """
    return HEADS.get(_checked_type(decoder), ("lm_head",))


def _checked_type(decoder: Decoder) -> str:
    model_type = str(decoder.text_config.get("model_type"))
    if model_type in UNCHECKED:
        raise ArgsError(
            f"solar.train: where a {model_type} model has its embeddings and head is not known here; set embeddings "
            "and lm_head to false, or write unfrozen_parameters instead of solar.train"
        )
    return model_type
