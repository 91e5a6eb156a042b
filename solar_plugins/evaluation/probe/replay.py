"""Runs the layers of a loaded model in any order, on given hidden states.

The base's own forward pass is recorded: every layer's input and other arguments (masks, positions). A layer is then
called again with another hidden state and the same arguments. For the final norm and head, the model is called with its
layers bypassed. Models that pass state between layers in another way are rejected. Layers that do not start as copies
run with the weights that the upscaled checkpoint would have.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from solar_plugins.errors import CheckpointError
from solar_plugins.evaluation.probe.schedule import NewLayer, Schedule
from solar_plugins.logs import logger
from solar_plugins.upscaling.base_model import BaseCheckpoint
from solar_plugins.upscaling.initializers.computed import base_tensors, new_tensors

if TYPE_CHECKING:
    import torch
    from torch import Tensor
    from transformers import PreTrainedModel

LOG = logger("probe")

SEGMENT_TOKENS = 32
"""Predicted tokens per segment; the standard errors of a race are estimated over segments."""
NO_TARGET = -100

STACK_WORDS = ("vision", "audio", "visual")


@dataclass
class Call:
    """The arguments of a layer in the base's forward pass except the hidden state, and the form of its output."""

    arguments: tuple[Any, ...]
    keywords: dict[str, Any]
    hidden_by_keyword: bool
    rest: tuple[Any, ...] | None
    """The rest of its output after the hidden state; None if the output is only the hidden state."""


@dataclass
class Recording:
    """The base's forward pass on one document.

    Args:
        ids: Of shape (1, tokens).
        states: The input of each layer, then the output of the last; of shape (1, tokens, width) each, or (1, tokens,
            streams, width).
        calls: One per layer.
    """

    ids: Tensor
    states: list[Tensor] = field(default_factory=list)
    calls: list[Call] = field(default_factory=list)


class LayerReplay:
    """The layers of a model, to be run in any order.

    Args:
        model: In eval mode.
        num_layers: Its depth.
        batch_tokens: Maximum tokens per batch, but at least one document.
        logit_elements: Maximum logits per batch, but at least those of one document.
        new_weights: Returns the parameters in which a new layer differs from its source layer.

    Raises:
        CheckpointError: It is not clear which modules are the decoder layers.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        num_layers: int,
        batch_tokens: int,
        logit_elements: int,
        new_weights: Callable[[NewLayer, torch.nn.Module], Mapping[str, Tensor]] | None = None,
    ) -> None:
        self.model, self.layers, self._new_weights = model, decoder_layers(model, num_layers), new_weights
        self._batch_tokens, self._logit_elements = batch_tokens, logit_elements
        self._batches = True

    def record(self, ids: Tensor) -> Recording:
        """Run and record the base.

        Args:
            ids: Of shape (1, tokens).

        Raises:
            CheckpointError: Layers were not called once each and in order, or not with the output of the previous one.
        """
        recording, outputs = Recording(ids), list[Any]()
        order = list[int]()

        def before(number: int) -> Callable[..., None]:
            def hook(_: Any, arguments: tuple[Any, ...], keywords: dict[str, Any]) -> None:
                by_keyword = not arguments
                hidden = keywords["hidden_states"] if by_keyword else arguments[0]
                rest = {key: value for key, value in keywords.items() if key != "hidden_states"}
                order.append(number)
                recording.states.append(hidden)
                recording.calls.append(Call(tuple(arguments[1:]), rest, by_keyword, None))

            return hook

        def after(number: int) -> Callable[..., None]:
            def hook(_: Any, __: Any, output: Any) -> None:
                outputs.append(_hidden(output))
                recording.calls[number].rest = tuple(output[1:]) if isinstance(output, tuple | list) else None

            return hook

        hooks = [
            handle
            for number, layer in enumerate(self.layers)
            for handle in (
                layer.register_forward_pre_hook(before(number), with_kwargs=True),
                layer.register_forward_hook(after(number)),
            )
        ]
        try:
            self.model(input_ids=ids, use_cache=False)
        finally:
            for handle in hooks:
                handle.remove()
        self._check_flow(recording, outputs, order)
        recording.states.append(outputs[-1])
        return recording

    def _check_flow(self, recording: Recording, outputs: Sequence[Any], order: Sequence[int]) -> None:
        if list(order) != list(range(len(self.layers))):
            raise CheckpointError(
                refusal(f"its layers run in the order {order[:40]}, not once each from first to last")
            )
        shape = tuple(recording.states[0].shape)
        if shape[0] != 1:  # The second axis may be longer than the text: some models prepend a prompt of their own.
            raise CheckpointError(refusal(f"its hidden states have the shape {shape}, not (batch, tokens, width)"))
        for number, (state, made) in enumerate(zip(recording.states[1:], outputs, strict=False), start=1):
            if state.shape != made.shape or not state.equal(made):
                raise CheckpointError(refusal(f"the input of layer {number} is not the output of layer {number - 1}"))

    def run(
        self, recording: Recording, schedule: Schedule, ran: Callable[[int], object]
    ) -> Iterator[tuple[int, Tensor]]:
        """The last hidden state of every plan, as soon as it is computed.

        Args:
            recording: The base's forward pass on the document.
            schedule: The schedule of the plans.
            ran: Called with the number of layer passes after each batch.

        Yields:
            A plan's index, and a state of shape (1, tokens, width).
        """
        indices = dict[int, list[int]]()
        for index, node in enumerate(schedule.ends):
            indices.setdefault(node, []).append(index)
        states = {node: recording.states[depth] for node, depth in schedule.trunk.items()}
        for node in schedule.trunk:
            yield from ((index, states[node]) for index in indices.get(node, ()))
        waiting = schedule.children()
        size = max(1, self._batch_tokens // recording.ids.shape[1]) if self._batches else 1
        for layer, nodes, new in schedule.steps:
            for start in range(0, len(nodes), size):
                batch = nodes[start : start + size]
                parents = [schedule.nodes[node].parent for node in batch]
                made = self.apply(recording, layer, [states[parent] for parent in parents], new)
                ran(len(batch))
                for node, parent, state in zip(batch, parents, made, strict=True):
                    waiting[parent] -= 1
                    if waiting[parent] == 0:
                        states.pop(parent, None)
                    if waiting[node]:
                        states[node] = state
                    yield from ((index, state) for index in indices.get(node, ()))

    def apply(
        self, recording: Recording, layer: int, states: Sequence[Tensor], new: NewLayer | None = None
    ) -> list[Tensor]:
        """The outputs of a layer, or of a new layer in its place, for several hidden states of one document."""
        import torch

        call, count = recording.calls[layer], len(states)
        hidden = torch.cat(list(states))
        arguments = [_repeated(value, count) for value in call.arguments]
        keywords = {key: _repeated(value, count) for key, value in call.keywords.items()}
        if call.hidden_by_keyword:
            keywords["hidden_states"] = hidden
        else:
            arguments.insert(0, hidden)
        module = self.layers[layer]
        if new is None:
            output = module(*arguments, **keywords)
        else:
            assert self._new_weights is not None, "new layers need new_weights"
            weights = dict(self._new_weights(new, module))
            output = torch.func.functional_call(module, weights, tuple(arguments), keywords)
        return list(_hidden(output).split(1))

    def document_nats(self, recording: Recording, states: Sequence[Tensor]) -> list[list[float]]:
        """The negative log-likelihood of the document's tokens after the first, given each last hidden state.

        Returns:
            For each state the sums over `SEGMENT_TOKENS` predicted tokens, in nats.
        """
        size, nats = self.head_batch(recording), list[list[float]]()
        for start in range(0, len(states), size):
            nats += self._nats(recording, states[start : start + size])
        return nats

    def head_batch(self, recording: Recording) -> int:
        """How many last hidden states of the document are passed to the head per batch."""
        vocabulary = int(getattr(self.model.config.get_text_config(), "vocab_size", 50_000))
        return max(1, self._logit_elements // (recording.ids.shape[1] * vocabulary)) if self._batches else 1

    def _nats(self, recording: Recording, states: Sequence[Tensor]) -> list[list[float]]:
        import torch

        ids = recording.ids.expand(len(states), -1)
        with self._bypassed(recording, torch.cat(list(states))):
            logits = self.model(input_ids=ids, use_cache=False).logits
        # The last position predicts nothing; slicing it off would copy all other logits.
        targets = torch.nn.functional.pad(ids[:, 1:], (0, 1), value=NO_TARGET).to(logits.device)
        loss = torch.nn.functional.cross_entropy(
            logits.view(-1, logits.shape[-1]).float(), targets.reshape(-1), ignore_index=NO_TARGET, reduction="none"
        )
        predicted = loss.view(len(states), -1)[:, :-1].double()
        starts = range(0, predicted.shape[1], SEGMENT_TOKENS)
        sums = [predicted[:, start : start + SEGMENT_TOKENS].sum(dim=1) for start in starts]
        nats: list[list[float]] = torch.stack(sums, dim=1).tolist()
        return nats

    @contextmanager
    def _bypassed(self, recording: Recording, hidden: Tensor) -> Iterator[None]:
        """The model with its layers bypassed: its last layer returns ``hidden``."""
        count, last = hidden.shape[0], len(self.layers) - 1

        def stand_in(number: int) -> Callable[..., Any]:
            rest = recording.calls[number].rest

            def forward(*arguments: Any, **keywords: Any) -> Any:
                given = arguments[0] if arguments else keywords["hidden_states"]
                out = hidden if number == last else given
                return out if rest is None else (out, *(_repeated(value, count) for value in rest))

            return forward

        before = [layer.__dict__.get("forward") for layer in self.layers]
        try:
            for number, layer in enumerate(self.layers):
                layer.forward = stand_in(number)
            yield
        finally:
            for layer, forward in zip(self.layers, before, strict=True):
                if forward is None:
                    del layer.forward
                else:
                    layer.forward = forward

    def check(self, ids: Tensor) -> None:
        """Check that layers pass nothing but the hidden state to each other.

        Args:
            ids: Any text, of shape (1, tokens).

        Raises:
            CheckpointError: They do, or calling a layer again gives another result.
        """
        recording = self.record(ids)
        self._check_arguments(recording)
        disturbed = self._disturbed(ids)
        for number, (one, other) in enumerate(zip(recording.calls, disturbed.calls, strict=True)):
            for name in sorted(set(one.keywords) | set(other.keywords)):
                if not _same(one.keywords.get(name), other.keywords.get(name)):
                    raise CheckpointError(refusal(f"layer {number}'s argument {name} depends on the layers before it"))
            if not _same(one.arguments, other.arguments):
                raise CheckpointError(refusal(f"an argument of layer {number} depends on the layers before it"))
        # The model has just run on other states: anything that a layer kept from that would show up here.
        for number in reversed(range(len(self.layers))):
            (again,) = self.apply(recording, number, [recording.states[number]])
            if not _close(again, recording.states[number + 1]):
                raise CheckpointError(refusal(f"layer {number} gives another result when it is called again"))
            if self._batches and not self._batch_is_right(recording, disturbed, number):
                self._batches = False
                LOG.warning("layer %d gives another result in a batch, so plans run one at a time", number)

    def _batch_is_right(self, one: Recording, other: Recording, number: int) -> bool:
        """False for Bloom, for example: some of its arguments have batch and heads in one axis."""
        try:
            made = self.apply(one, number, [one.states[number], other.states[number]])
        except (RuntimeError, ValueError, IndexError):
            return False
        return _close(made[0], one.states[number + 1]) and _close(made[1], other.states[number + 1])

    def _disturbed(self, ids: Tensor) -> Recording:
        """A forward pass with another input of the first layer."""

        def turn(_: Any, arguments: Any, keywords: Any) -> Any:
            if arguments:
                return (arguments[0].flip(-1), *arguments[1:]), keywords
            return arguments, keywords | {"hidden_states": keywords["hidden_states"].flip(-1)}

        handle = self.layers[0].register_forward_pre_hook(turn, with_kwargs=True, prepend=True)
        try:
            return self.record(ids)
        finally:
            handle.remove()

    def _check_arguments(self, recording: Recording) -> None:
        for number, call in enumerate(recording.calls):
            for name, value in [("an argument", one) for one in call.arguments] + list(call.keywords.items()):
                if not _is_plain(value):
                    raise CheckpointError(
                        refusal(f"layer {number} takes {name}, a {type(value).__name__}, which layers may share")
                    )


def decoder_layers(model: PreTrainedModel, num_layers: int) -> Sequence[Any]:
    """The decoder layers of a loaded model.

    Raises:
        CheckpointError: No `ModuleList`, or more than one, could hold them.
    """
    from torch.nn import ModuleList

    lists = {
        name: module
        for name, module in model.named_modules()
        if isinstance(module, ModuleList)
        and len(module) == num_layers
        and not any(word in name for word in STACK_WORDS)
        and any(True for _ in module.parameters())
    }
    outer = [name for name in lists if not any(name.startswith(f"{other}.") for other in lists)]
    if len(outer) != 1:
        raise CheckpointError(
            refusal(
                f"{len(outer)} module lists of length {num_layers} could be its layers ({', '.join(outer) or 'none'})"
            )
        )
    return list(lists[outer[0]])


def refusal(why: str) -> str:
    """The message for a model that cannot be probed."""
    return f"solar probe cannot run the layers of this model in another order: {why}. Upscale it and evaluate that"


def _hidden(output: Any) -> Any:
    return output[0] if isinstance(output, tuple | list) else output


def _repeated(value: Any, count: int) -> Any:
    """A recorded argument, expanded from batch size 1 to ``count``."""
    import torch

    if isinstance(value, torch.Tensor):
        return value.expand(count, *value.shape[1:]) if value.ndim and value.shape[0] == 1 and count > 1 else value
    if isinstance(value, tuple):
        return tuple(_repeated(part, count) for part in value)
    if isinstance(value, Mapping):
        return {key: _repeated(part, count) for key, part in value.items()}
    return value


def _is_plain(value: Any) -> bool:
    import torch

    if isinstance(value, tuple):
        return all(_is_plain(part) for part in value)
    if isinstance(value, dict):
        return all(_is_plain(part) for part in value.values())
    return value is None or isinstance(value, torch.Tensor | bool | int | float | str | torch.dtype | torch.device)


def _same(one: Any, other: Any) -> bool:
    import torch

    if isinstance(one, torch.Tensor) and isinstance(other, torch.Tensor):
        return one.shape == other.shape and one.equal(other)
    if isinstance(one, tuple) and isinstance(other, tuple):
        return len(one) == len(other) and all(_same(*pair) for pair in zip(one, other, strict=True))
    if isinstance(one, dict) and isinstance(other, dict):
        return one.keys() == other.keys() and all(_same(one[key], other[key]) for key in one)
    return bool(one == other)


def _close(one: Tensor, other: Tensor) -> bool:
    import torch

    tolerance = 1e-4 if one.dtype == torch.float32 else 0.1
    scale = float(other.float().abs().max()) or 1.0
    return float((one.float() - other.float()).abs().max()) <= tolerance * scale


def block_influences(recording: Recording) -> list[float]:
    """For each layer, 1 minus the mean cosine similarity of input and output (ShortGPT, arXiv:2403.03853, eq. 1)."""
    pairs = zip(recording.states[:-1], recording.states[1:], strict=True)
    return [1 - float(_cosines(low, high).mean()) for low, high in pairs]


def angular_distances(recording: Recording) -> torch.Tensor:
    """The angle divided by pi between any two layer inputs (and the last output), averaged over tokens.

    Source: Gromov et al. 2024, arXiv:2403.17887, eq. 6, which uses the last token only.

    Returns:
        Of shape (layers + 1, layers + 1).
    """
    import torch

    stacked = torch.cat(recording.states).flatten(2).float()
    unit = torch.nn.functional.normalize(stacked, dim=-1)
    cosines = torch.einsum("itd,jtd->ijt", unit, unit).clamp(-1, 1)
    return (torch.arccos(cosines) / torch.pi).mean(dim=-1)


def _cosines(one: Tensor, other: Tensor) -> Tensor:
    import torch

    return torch.nn.functional.cosine_similarity(one.flatten(2).float(), other.flatten(2).float(), dim=-1)


LOG = logger("probe")


class NewWeights:
    """Weights of layers that do not start as copies, computed from the base's files, in an LRU cache.

    Args:
        base: The base.
        max_bytes: Size of the cache; it always holds at least one layer.
    """

    def __init__(self, base: BaseCheckpoint, max_bytes: int) -> None:
        self._base, self._max_bytes = base, max_bytes
        self._kept: OrderedDict[NewLayer, dict[str, Tensor]] = OrderedDict()
        self._bytes = 0
        self._warned = False

    def __call__(self, new: NewLayer, source: torch.nn.Module) -> Mapping[str, Tensor]:
        """The parameters in which a new layer differs from its source, as in the loaded upscaled model.

        Args:
            new: The layer.
            source: The loaded base layer that it is based on.

        Raises:
            SolarError: They cannot be computed, or loading renames or changes them.
        """
        if new not in self._kept:
            weights = self._computed(new, source)
            self._bytes += _bytes(weights)
            while self._kept and self._bytes > self._max_bytes:
                self._bytes -= _bytes(self._kept.popitem(last=False)[1])
                self._warn_once()
            self._kept[new] = weights
        self._kept.move_to_end(new)
        return self._kept[new]

    def _computed(self, new: NewLayer, source: torch.nn.Module) -> dict[str, Tensor]:
        files, loaded = base_tensors(self._base), dict(source.named_parameters()) | dict(source.named_buffers())
        weights = {}
        for name, tensor in new_tensors(self._base, new.planned, new.position):
            there = loaded.get(name)
            if there is None or not there.equal(files.read(name, new.planned.source).to(there)):
                raise CheckpointError(refusal(f"transformers renames or changes {name} of a layer when it loads it"))
            weights[name] = tensor.to(there)
        return weights

    def _warn_once(self) -> None:
        if not self._warned:
            LOG.info(
                "new layers do not fit into --memory and are recomputed for each document; raise --memory if possible"
            )
            self._warned = True


def _bytes(weights: Mapping[str, Tensor]) -> int:
    return sum(tensor.nbytes for tensor in weights.values())
