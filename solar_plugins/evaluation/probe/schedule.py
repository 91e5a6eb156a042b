"""Schedules the layer passes of many plans: shared prefixes run once, and equal layers run as a batch. Pure.

Plans are paths of a trie of layers. A node is the hidden state after the layers of its path, so plans with a common
prefix share it. Nodes with the same next layer and the same number of layers left form one step; for repeats of one
base, these are plans with the same ending.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import NamedTuple

from solar_plugins.upscaling.layer_plan import LayerPlan, PlannedLayer


class NewLayer(NamedTuple):
    """A layer that does not start as a copy; its weights may depend on its position."""

    planned: PlannedLayer
    position: int


class Node(NamedTuple):
    """A hidden state: that of its parent after one more layer."""

    parent: int
    layer: int
    new: NewLayer | None = None
    """None for an unchanged layer of the base."""


class Step(NamedTuple):
    """One layer, applied to several hidden states."""

    layer: int
    nodes: tuple[int, ...]
    """The resulting nodes, each computed from its parent."""
    new: NewLayer | None = None


@dataclass(frozen=True, slots=True)
class Schedule:
    """How to compute the last hidden state of every plan.

    Args:
        nodes: Node 0 is the embeddings; parents come before their children.
        ends: The last node of each plan.
        trunk: Nodes that are states of the base itself, with their number of layers; they need not be computed.
        steps: In order.
    """

    nodes: tuple[Node, ...]
    ends: tuple[int, ...]
    trunk: dict[int, int]
    steps: tuple[Step, ...]

    @property
    def layer_passes(self) -> int:
        """The number of layer applications."""
        return sum(len(step.nodes) for step in self.steps)

    def states_held(self) -> int:
        """The peak number of stored hidden states, without those of the base and of the active batch."""
        children, ends = self.children(), set(self.ends)
        held = peak = 0
        for step in self.steps:
            for node in step.nodes:
                parent = self.nodes[node].parent
                children[parent] -= 1
                held += (children[node] > 0 or node in ends) - (children[parent] == 0 and parent not in self.trunk)
                peak = max(peak, held)
        return peak

    def children(self) -> list[int]:
        """For each node, how many states are computed from it."""
        made = [0] * len(self.nodes)
        for step in self.steps:
            for node in step.nodes:
                made[self.nodes[node].parent] += 1
        return made


def schedule(plans: Sequence[LayerPlan]) -> Schedule:
    """The schedule for plans of one base.

    Identity layers are skipped.

    Example:
        >>> plan = LayerPlan.from_sources(3, [0, 1, 0, 1, 2])
        >>> schedule([plan]).steps
        (Step(layer=0, nodes=(3,), new=None), Step(layer=1, nodes=(4,), new=None), Step(layer=2, nodes=(5,), new=None))
    """
    nodes, index = [Node(-1, -1)], dict[Node, int]()
    ends = []
    for plan in plans:
        node = 0
        for position, layer in enumerate(plan.layers):
            if not layer.acts:
                continue
            new = None if layer.initialization == "copy" else NewLayer(layer, position)
            key = Node(node, layer.source, new)
            if key not in index:
                index[key] = len(nodes)
                nodes.append(key)
            node = index[key]
        ends.append(node)
    trunk = _trunk(nodes)
    left = _layers_left(nodes)
    run = [node for node in range(1, len(nodes)) if node not in trunk]

    def step(node: int) -> tuple[int, int, str]:
        return -left[node], nodes[node].layer, repr(nodes[node].new)

    steps = [tuple(group) for _, group in groupby(sorted(run, key=step), step)]
    return Schedule(
        nodes=tuple(nodes),
        ends=tuple(ends),
        trunk=trunk,
        steps=tuple(Step(nodes[group[0]].layer, group, nodes[group[0]].new) for group in steps),
    )


def _trunk(nodes: Sequence[Node]) -> dict[int, int]:
    trunk = {0: 0}
    for number, node in enumerate(nodes[1:], start=1):
        if node.new is None and node.parent in trunk and node.layer == trunk[node.parent]:
            trunk[number] = node.layer + 1
    return trunk


def _layers_left(nodes: Sequence[Node]) -> list[int]:
    left = [0] * len(nodes)
    for number in range(len(nodes) - 1, 0, -1):
        parent = nodes[number].parent
        left[parent] = max(left[parent], left[number] + 1)
    return left


def chunks(plans: Sequence[LayerPlan], max_states: int) -> list[list[int]]:
    """Indices of plans in groups that store at most ``max_states`` hidden states, or consist of a single plan."""
    waiting, done = [list(range(len(plans)))], list[list[int]]()
    while waiting:
        indices = waiting.pop()
        if len(indices) == 1 or schedule([plans[index] for index in indices]).states_held() <= max_states:
            done.append(indices)
        else:
            half = len(indices) // 2
            waiting += [indices[half:], indices[:half]]
    return done
