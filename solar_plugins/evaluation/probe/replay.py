"""A loaded model whose layers can be run in any order, on hidden states that are given.

The base's own run is recorded: every layer's input and the arguments that came with it (masks, positions). A layer is
then called again with another hidden state and the same arguments. Final norm and head are those of the model: it is
called once more with its layers bypassed. A model that passes state between layers in another way is refused.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from solar_plugins.errors import CheckpointError
from solar_plugins.evaluation.probe.schedule import NewLayer, Schedule
from solar_plugins.logs import logger

if TYPE_CHECKING:
    import torch
    from torch import Tensor
    from transformers import PreTrainedModel

LOG = logger("probe")

SEGMENT_TOKENS = 32
"""Predicted tokens of a segment; what a race knows of its errors it knows from segments."""
NO_TARGET = -100

STACK_WORDS = ("vision", "audio", "visual")


@dataclass
class Call:
    """What a layer was given in the base's run beside the hidden state, and the shape of what it gave back."""

    arguments: tuple[Any, ...]
    keywords: dict[str, Any]
    hidden_by_keyword: bool
    rest: tuple[Any, ...] | None
    """What its output holds after the hidden state; None where the output is the hidden state alone."""


@dataclass
class Recording:
    """The base's run on one document.

    Args:
        ids: Of shape (1, tokens).
        states: The input of each layer, then the output of the last; of shape (1, tokens, width) each, or (1, tokens,
            streams, width).
        calls: For each layer.
    """

    ids: Tensor
    states: list[Tensor] = field(default_factory=list)
    calls: list[Call] = field(default_factory=list)


class LayerReplay:
    """The layers of a model, to be run in any order.

    Args:
        model: In evaluation mode.
        num_layers: Its depth.
        batch_tokens: At most so many tokens are run at once, or one document.
        logit_elements: At most so many logits are made at once, or those of one document.
        new_weights: Gives, for a layer that is none of the base's, the parameters in which it differs from its source.

    Raises:
        CheckpointError: Which of its modules are the decoder's layers is not clear.
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
        """Run the base.

        Args:
            ids: Of shape (1, tokens).

        Raises:
            CheckpointError: A layer was not called once and in order, or was given what another one made.
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
        self._refuse_other_flow(recording, outputs, order)
        recording.states.append(outputs[-1])
        return recording

    def _refuse_other_flow(self, recording: Recording, outputs: Sequence[Any], order: Sequence[int]) -> None:
        if list(order) != list(range(len(self.layers))):
            raise CheckpointError(
                refusal(f"its layers run in the order {order[:40]}, not each once from first to last")
            )
        shape = tuple(recording.states[0].shape)
        if (
            shape[0] != 1
        ):  # The second axis may be longer than the text: some models put a prompt of their own before it.
            raise CheckpointError(refusal(f"its hidden states have the shape {shape}, not (batch, tokens, width)"))
        for number, (state, made) in enumerate(zip(recording.states[1:], outputs, strict=False), start=1):
            if state.shape != made.shape or not state.equal(made):
                raise CheckpointError(refusal(f"layer {number} is not given what layer {number - 1} made"))

    def run(
        self, recording: Recording, schedule: Schedule, ran: Callable[[int], object]
    ) -> Iterator[tuple[int, Tensor]]:
        """The last hidden state of every plan, as soon as it is known.

        Args:
            recording: The base's run on the document.
            schedule: Of the plans.
            ran: Called with numbers of layer passes, as they are done.

        Yields:
            A plan's place, and a state of shape (1, tokens, width).
        """
        places = dict[int, list[int]]()
        for place, node in enumerate(schedule.ends):
            places.setdefault(node, []).append(place)
        states = {node: recording.states[depth] for node, depth in schedule.trunk.items()}
        for node in schedule.trunk:
            yield from ((place, states[node]) for place in places.get(node, ()))
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
                    yield from ((place, state) for place in places.get(node, ()))

    def apply(
        self, recording: Recording, layer: int, states: Sequence[Tensor], new: NewLayer | None = None
    ) -> list[Tensor]:
        """What a layer, or a new one in its place, makes of several hidden states of one document."""
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
            assert self._new_weights is not None, "a base alone was to be replayed"
            weights = dict(self._new_weights(new, module))
            output = torch.func.functional_call(module, weights, tuple(arguments), keywords)
        return list(_hidden(output).split(1))

    def document_nats(self, recording: Recording, states: Sequence[Tensor]) -> list[list[float]]:
        """What each last hidden state makes of the document: the negative log-likelihood of its tokens but the first.

        Returns:
            For each state the sums over `SEGMENT_TOKENS` predicted tokens each, in nats.
        """
        size, nats = self.head_batch(recording), list[list[float]]()
        for start in range(0, len(states), size):
            nats += self._nats(recording, states[start : start + size])
        return nats

    def head_batch(self, recording: Recording) -> int:
        """How many last hidden states of the document the head is given at once."""
        vocabulary = int(getattr(self.model.config.get_text_config(), "vocab_size", 50_000))
        return max(1, self._logit_elements // (recording.ids.shape[1] * vocabulary)) if self._batches else 1

    def _nats(self, recording: Recording, states: Sequence[Tensor]) -> list[list[float]]:
        import torch

        ids = recording.ids.expand(len(states), -1)
        with self._bypassed(recording, torch.cat(list(states))):
            logits = self.model(input_ids=ids, use_cache=False).logits
        # The last position predicts nothing; to leave it out would copy all the others.
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
        """The model without its layers: whatever it embeds, its last layer gives back ``hidden``."""
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
        """Find out whether the layers pass anything on beside the hidden state.

        Args:
            ids: Of shape (1, tokens); some text.

        Raises:
            CheckpointError: They do, or a layer that is called again gives another result.
        """
        recording = self.record(ids)
        self._refuse_objects(recording)
        disturbed = self._disturbed(ids)
        for number, (one, other) in enumerate(zip(recording.calls, disturbed.calls, strict=True)):
            for name in sorted(set(one.keywords) | set(other.keywords)):
                if not _same(one.keywords.get(name), other.keywords.get(name)):
                    raise CheckpointError(refusal(f"layer {number}'s argument {name} depends on the layers before it"))
            if not _same(one.arguments, other.arguments):
                raise CheckpointError(refusal(f"an argument of layer {number} depends on the layers before it"))
        # The model has just run on other states: what a layer kept from there would show now.
        for number in reversed(range(len(self.layers))):
            (again,) = self.apply(recording, number, [recording.states[number]])
            if not _close(again, recording.states[number + 1]):
                raise CheckpointError(refusal(f"layer {number} gives another result when it is called again"))
            if self._batches and not self._batch_is_right(recording, disturbed, number):
                self._batches = False
                LOG.warning("layer %d gives another result in a batch, so plans are run one by one", number)

    def _batch_is_right(self, one: Recording, other: Recording, number: int) -> bool:
        """Bloom, for one, has arguments in which batch and heads are one axis."""
        try:
            made = self.apply(one, number, [one.states[number], other.states[number]])
        except (RuntimeError, ValueError, IndexError):
            return False
        return _close(made[0], one.states[number + 1]) and _close(made[1], other.states[number + 1])

    def _disturbed(self, ids: Tensor) -> Recording:
        """The run with another input of the first layer."""

        def turn(_: Any, arguments: Any, keywords: Any) -> Any:
            if arguments:
                return (arguments[0].flip(-1), *arguments[1:]), keywords
            return arguments, keywords | {"hidden_states": keywords["hidden_states"].flip(-1)}

        handle = self.layers[0].register_forward_pre_hook(turn, with_kwargs=True, prepend=True)
        try:
            return self.record(ids)
        finally:
            handle.remove()

    def _refuse_objects(self, recording: Recording) -> None:
        for number, call in enumerate(recording.calls):
            for name, value in [("an argument", one) for one in call.arguments] + list(call.keywords.items()):
                if not _is_plain(value):
                    raise CheckpointError(
                        refusal(f"layer {number} is given {name}, a {type(value).__name__}, which layers may share")
                    )


def decoder_layers(model: PreTrainedModel, num_layers: int) -> Sequence[Any]:
    """The decoder's layers of a loaded model.

    Raises:
        CheckpointError: No list of modules, or more than one, could be them.
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
            refusal(f"{len(outer)} lists of {num_layers} modules could be its layers ({', '.join(outer) or 'none'})")
        )
    return list(lists[outer[0]])


def refusal(why: str) -> str:
    """Words for a model that cannot be probed."""
    return (
        f"solar probe cannot run this model's layers in another order: {why}. Upscale it and measure the result instead"
    )


def _hidden(output: Any) -> Any:
    return output[0] if isinstance(output, tuple | list) else output


def _repeated(value: Any, count: int) -> Any:
    """A recorded argument for a batch of ``count`` states: tensors of a batch of 1 are repeated."""
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
    """For each layer 1 minus the mean cosine of its input and output (ShortGPT, arXiv:2403.03853, eq. 1)."""
    pairs = zip(recording.states[:-1], recording.states[1:], strict=True)
    return [1 - float(_cosines(low, high).mean()) for low, high in pairs]


def angular_distances(recording: Recording) -> torch.Tensor:
    """Between the inputs of any two layers and the last output: the mean over tokens of the angle divided by pi.

    Source: Gromov et al. 2024, arXiv:2403.17887, eq. 6; there of the last token only.

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
