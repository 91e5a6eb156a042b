"""The probe: documents, rounds, results, and the record file from which an interrupted probe resumes.

Documents are evaluated in rounds, and only plans that may still be the best of their size stay in. After each round a
plan is dropped if it is worse than the best of its size by more than `STANDARD_ERRORS` of the paired difference. Of the
rest, the best few of each size stay, fewer in each round (successive halving, Karnin et al. 2013), because plans whose
blocks differ by one layer would never be separated.
"""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import batched
from math import fsum
from pathlib import Path
from statistics import fmean
from typing import TYPE_CHECKING, Any, NamedTuple, Self

from solar_plugins.errors import ArgsError
from solar_plugins.evaluation.held_out import read_texts
from solar_plugins.evaluation.loss import Difference, Loss, difference
from solar_plugins.evaluation.models import hardware, load_model, load_tokenizer
from solar_plugins.evaluation.probe.candidates import Candidate
from solar_plugins.evaluation.probe.replay import (
    SEGMENT_TOKENS,
    LayerReplay,
    NewWeights,
    angular_distances,
    block_influences,
)
from solar_plugins.evaluation.probe.schedule import chunks, schedule
from solar_plugins.logs import logger

if TYPE_CHECKING:
    from solar_plugins.upscaling.base_model import BaseCheckpoint

STANDARD_ERRORS = 3.0
MIN_SEGMENTS = 8
"""With fewer segments the standard error is too uncertain."""
FIRST_CAP, LAST_CAP = 24, 2
"""The maximum number of plans of a size after the first round, halved after each later round down to the last."""


def rounds(num_documents: int, first: int = 1) -> list[range]:
    """The documents of each round: each has as many as all rounds before it.

    >>> rounds(16)
    [range(0, 1), range(1, 2), range(2, 4), range(4, 8), range(8, 16)]
    >>> rounds(3, first=2)
    [range(0, 2), range(2, 3)]
    """
    found, start, end = list[range](), 0, first
    while start < num_documents:
        found.append(range(start, min(end, num_documents)))
        start, end = end, 2 * end
    return found


def still_racing(
    losses: Mapping[int, Loss], groups: Iterable[Sequence[int]], keep: frozenset[int], turn: int
) -> set[int]:
    """The plans that stay for the next round.

    Args:
        losses: Of each plan, on the same segments of text.
        groups: Indices of the plans of each size.
        keep: Plans that always stay.
        turn: The index of the round that has just ended.

    Example:
        >>> near, far = Loss((10.0, 21.0) * 4, (9,) * 8), Loss((19.0, 31.0) * 4, (9,) * 8)
        >>> sorted(still_racing({0: near, 1: near, 2: far}, [[0, 1, 2]], frozenset(), 0))
        [0, 1]
    """
    staying, cap = set(keep), max(LAST_CAP, FIRST_CAP >> turn)
    for group in groups:
        ordered = sorted(group, key=lambda index: losses[index].nats_per_token)
        leader = losses[ordered[0]]
        staying.update(index for index in ordered[:cap] if not _significantly_worse(losses[index], leader))
    return staying


def _significantly_worse(loss: Loss, leader: Loss) -> bool:
    excess, error = difference(loss, leader)
    return len(loss.window_nats) >= MIN_SEGMENTS and error is not None and excess > STANDARD_ERRORS * error


LOG = logger("probe")

BASE = -1
"""The index of the base among the plans."""
MIN_DOCUMENTS = 3
UNSEEN_SHARE = 1 / 3
BATCH_TOKENS = {"cpu": 2048, "cuda": 32768}
MAX_LOGITS = 32_000_000
"""Larger batches are slower on a CPU and not faster on a GPU."""
LOGIT_BYTES = 12
"""A logit in 16 bits, in fp32, and its log-softmax in fp32."""


class Document(NamedTuple):
    """A tokenized and truncated text."""

    text: int
    """The index of its text file."""
    ids: tuple[int, ...]

    @property
    def predicted(self) -> int:
        """The number of predicted tokens."""
        return len(self.ids) - 1

    @property
    def segments(self) -> list[int]:
        """The number of predicted tokens of each segment."""
        return [min(SEGMENT_TOKENS, self.predicted - start) for start in range(0, self.predicted, SEGMENT_TOKENS)]


type Numbered = Sequence[tuple[int, Document]]
"""Documents with their numbers."""


class Documents(NamedTuple):
    """The documents of the race, and documents that the race does not use."""

    names: tuple[str, ...]
    """The names of the text files."""
    race: tuple[Document, ...]
    unseen: tuple[Document, ...]


@dataclass(frozen=True, slots=True)
class Settings:
    """How a probe measures.

    Args:
        sequence_len: Documents are truncated at this number of tokens.
        limit_tokens: Maximum tokens per text file, or None.
        memory_bytes: For hidden states and logits.
        dtype: float32 or bfloat16; None for the best one of the hardware.
        race: Whether to evaluate later documents only with plans that may still be the best of their size.
    """

    sequence_len: int
    limit_tokens: int | None
    memory_bytes: int
    dtype: str | None
    race: bool = True


@dataclass(slots=True)
class Measured:
    """Negative log-likelihoods in nats, by plan, document and segment."""

    nats: dict[int, dict[int, list[float]]] = field(default_factory=dict)

    def loss(self, plan: int, documents: Numbered) -> Loss:
        """The loss of a plan on documents that it was evaluated on."""
        nats = self.nats[plan]
        return Loss(tuple(fsum(nats[key]) for key, _ in documents), tuple(one.predicted for _, one in documents))

    def segments(self, plan: int, documents: Numbered) -> Loss:
        """The same by segment."""
        nats = [one for key, _ in documents for one in self.nats[plan][key]]
        return Loss(tuple(nats), tuple(length for _, one in documents for length in one.segments))


@dataclass(frozen=True, slots=True)
class PlanResult:
    """The results of a plan.

    Args:
        candidate: The plan.
        loss: On the documents of the race that it was evaluated on.
        delta: That loss minus the base's on the same documents.
        by_text: The same per text file; None if it was evaluated on none of its documents.
        unseen: The same on documents that the race did not use; None if not evaluated.
    """

    candidate: Candidate
    loss: Loss
    delta: Difference
    by_text: tuple[Difference | None, ...]
    unseen: Difference | None


@dataclass(frozen=True, slots=True)
class Comparison:
    """The best plan of a size and DUS of that size, on documents that the race did not use."""

    best: int
    dus: int | None
    difference: Difference | None
    """The loss of the best minus that of DUS; None if there is no DUS of that size."""


@dataclass(frozen=True, slots=True)
class ProbeResult:
    """The results of a probe. ``plans`` keeps the order of the candidates."""

    base_name: str
    num_layers: int
    documents: Documents
    base_loss: Loss
    plans: tuple[PlanResult, ...]
    sizes: Mapping[int, Comparison]
    """By number of added layers."""
    influences: tuple[float, ...]
    angles: tuple[tuple[float, ...], ...]
    """Mean angular distance between the inputs of two layers; the last row is for the last layer's output."""
    device: str
    dtype: str
    layer_passes: int
    naive_layer_passes: int
    seconds: float


def encode_texts(tokenizer: Any, paths: Sequence[Path], settings: Settings) -> Documents:
    """The tokenized documents of text files.

    Raises:
        ArgsError: A file has no texts, or too few that are long enough.
    """
    race, unseen = list[list[Document]](), list[list[Document]]()
    for number, path in enumerate(paths):
        documents, left = list[Document](), settings.limit_tokens
        for text in read_texts(path):
            ids = tuple(tokenizer(text)["input_ids"][: settings.sequence_len])
            if left is not None:
                ids = ids[:left]
                left -= len(ids)
            if len(ids) > 1:
                documents.append(Document(number, ids))
        if len(documents) < MIN_DOCUMENTS:
            raise ArgsError(
                f"{path}: {len(documents)} texts of 2 tokens or more; expected at least {MIN_DOCUMENTS}, better 24: "
                "standard errors are estimated over documents. Add texts"
            )
        last = max(1, round(len(documents) * UNSEEN_SHARE))
        race.append(documents[:-last])
        unseen.append(documents[-last:])
    return Documents(tuple(path.name for path in paths), _interleaved(race), _interleaved(unseen))


def _interleaved(lists: Sequence[Sequence[Document]]) -> tuple[Document, ...]:
    longest = max(map(len, lists))
    return tuple(one[index] for index in range(longest) for one in lists if index < len(one))


class Probe:
    """A probe of one base."""

    def __init__(
        self, base: BaseCheckpoint, candidates: Sequence[Candidate], texts: Sequence[Path], settings: Settings
    ) -> None:
        """Load the base's tokenizer and encode the texts.

        Raises:
            SolarError: The tokenizer or a text cannot be used.
        """
        self.base, self.candidates, self.settings = base, candidates, settings
        trusted = bool(base.config.get("auto_map"))
        self._trusted = trusted
        tokenizer = load_tokenizer(base.directory, trust_remote_code=trusted)
        self.documents = encode_texts(tokenizer, texts, settings)
        self._keys = [*enumerate((*self.documents.race, *self.documents.unseen))]
        self._sizes: dict[int, list[int]] = {}
        for index, candidate in enumerate(candidates):
            self._sizes.setdefault(candidate.added, []).append(index)

    @property
    def fingerprint(self) -> str:
        """A hash of everything that the results depend on; a record with the same fingerprint is resumed."""
        plans = [candidate.plan.to_dict() for candidate in self.candidates]
        content = [self.base.identity, plans, [one.ids for _, one in self._keys], self._dtype, hardware().device]
        return hashlib.sha256(json.dumps(content).encode()).hexdigest()

    @property
    def _dtype(self) -> str:
        return self.settings.dtype or hardware().dtype

    @property
    def _share_of_memory(self) -> int:
        """Bytes for hidden states, the same for logits, and the same for weights of new layers if there are any."""
        return self.settings.memory_bytes // (2 if all(one.plan.only_copies for one in self.candidates) else 3)

    def run(self, record: Path) -> ProbeResult:
        """Run the probe.

        Args:
            record: The file with the results so far; it is read and appended to.

        Raises:
            CheckpointError: The model cannot be loaded, or its layers cannot be run in another order.
        """
        import torch

        started = time.monotonic()
        model = load_model(self.base.directory, trust_remote_code=self._trusted, dtype=self._dtype)
        kind = model.device.type
        elements = min(MAX_LOGITS, self._share_of_memory // LOGIT_BYTES)
        new_weights = NewWeights(self.base, self._share_of_memory)
        replay = LayerReplay(model, self.base.num_layers, BATCH_TOKENS.get(kind, 4096), elements, new_weights)
        passes = _Passes()
        with torch.inference_mode(), _Record(record, self.fingerprint) as store:
            replay.check(self._tensor(self._keys[0][1], model.device))
            influences, angles = self._race(replay, store, passes)
            sizes = self._compare(replay, store, passes)
        measured = store.measured
        results = tuple(self._result(index, measured) for index in range(len(self.candidates)))
        race = self._keys[: len(self.documents.race)]
        return ProbeResult(
            base_name=self.base.public_name,
            num_layers=self.base.num_layers,
            documents=self.documents,
            base_loss=measured.loss(BASE, race),
            plans=results,
            sizes=sizes,
            influences=influences,
            angles=angles,
            device=hardware().device,
            dtype=self._dtype,
            layer_passes=passes.done,
            naive_layer_passes=sum(len(one.plan) for one in self.candidates) * len(race),
            seconds=time.monotonic() - started,
        )

    def _race(
        self, replay: LayerReplay, store: _Record, passes: _Passes
    ) -> tuple[tuple[float, ...], tuple[tuple[float, ...], ...]]:
        """Evaluate round by round, and average the similarities of the base's layers."""
        alive = set(range(len(self.candidates)))
        always = frozenset(index for index, one in enumerate(self.candidates) if one.is_dus)
        numbers = range(len(self.documents.race))
        turns = rounds(len(numbers)) if self.settings.race else [numbers]
        for turn, documents in enumerate(turns, start=1):
            with self._progress(f"round {turn} of {len(turns)}", alive, documents) as advance:
                for number in documents:
                    self._measure(replay, store, passes, number, sorted(alive), advance)
            if turn < len(turns):
                seen = self._keys[: documents.stop]
                losses = {index: store.measured.segments(index, seen) for index in alive}
                groups = [[index for index in group if index in alive] for group in self._sizes.values()]
                alive = still_racing(losses, groups, always, turn - 1)
        return store.averages(len(numbers))

    def _compare(self, replay: LayerReplay, store: _Record, passes: _Passes) -> dict[int, Comparison]:
        """Compare the best plan of each size with DUS, on documents that the race did not use."""
        race = self._keys[: len(self.documents.race)]
        unseen = self._keys[len(race) :]
        chosen = dict[int, tuple[int, int | None]]()
        for size, indices in sorted(self._sizes.items()):
            finished = [index for index in indices if len(store.measured.nats[index]) >= len(race)]
            best = min(finished, key=lambda index: store.measured.loss(index, race).nats_per_token)
            dus = next((index for index in indices if self.candidates[index].is_dus), None)
            chosen[size] = best, dus
        plans = {index for pair in chosen.values() for index in pair if index is not None}
        with self._progress("best plans on unseen documents", plans, [number for number, _ in unseen]) as advance:
            for number, _ in unseen:
                self._measure(replay, store, passes, number, sorted(plans), advance)
        return {
            size: Comparison(
                best,
                dus,
                None
                if dus is None
                else difference(store.measured.loss(best, unseen), store.measured.loss(dus, unseen)),
            )
            for size, (best, dus) in chosen.items()
        }

    def _measure(
        self,
        replay: LayerReplay,
        store: _Record,
        passes: _Passes,
        number: int,
        indices: Sequence[int],
        advance: Callable[[float], object],
    ) -> None:
        """Evaluate the base and the given plans on one document, unless that is done already."""
        known = store.measured.nats
        missing = [index for index in indices if number not in known.get(index, {})]
        advance(len(indices) - len(missing))
        if not missing and number in known.get(BASE, {}):
            return
        document = self._keys[number][1]
        recording = replay.record(self._tensor(document, replay.model.device))
        found = {BASE: replay.document_nats(recording, [recording.states[-1]])[0]}
        bytes_of_state = recording.states[0].nbytes
        states = max(4, self._share_of_memory // bytes_of_state - len(recording.states))
        plans = [self.candidates[index].plan for index in missing]
        groups = chunks(plans, states)
        orders = [schedule([plans[one] for one in group]) for group in groups]
        share = len(missing) / max(1, sum(order.layer_passes for order in orders))
        for group, order in zip(groups, orders, strict=True):
            passes.done += order.layer_passes
            ends = replay.run(recording, order, lambda count: advance(count * share))
            for batch in batched(ends, replay.head_batch(recording)):
                nats = replay.document_nats(recording, [state for _, state in batch])
                found |= {missing[group[index]]: one for (index, _), one in zip(batch, nats, strict=True)}
        shown = None
        if number < len(self.documents.race):
            shown = {"influences": block_influences(recording), "angles": angular_distances(recording).tolist()}
        store.add(number, found, shown)

    @contextmanager
    def _progress(
        self, title: str, indices: Collection[int], documents: Collection[int]
    ) -> Iterator[Callable[[float], object]]:
        from tqdm import tqdm

        total, done = len(indices) * len(documents), 0.0

        def advance(plans: float) -> None:
            nonlocal done
            done += plans
            bar.update(min(round(done), total) - bar.n)

        with tqdm(total=total, desc=f"{title}: {len(indices)} plans", unit="plan", mininterval=0.5) as bar:
            yield advance

    def _tensor(self, document: Document, device: Any) -> Any:
        import torch

        return torch.tensor([document.ids], dtype=torch.long, device=device)

    def _result(self, index: int, measured: Measured) -> PlanResult:
        seen = [key for key in self._keys[: len(self.documents.race)] if key[0] in measured.nats[index]]
        unseen = self._keys[len(self.documents.race) :]
        evaluated = all(number in measured.nats[index] for number, _ in unseen)

        def above(documents: Numbered) -> Difference:
            return difference(measured.loss(index, documents), measured.loss(BASE, documents))

        by_text = [[key for key in seen if key[1].text == text] for text in range(len(self.documents.names))]
        return PlanResult(
            candidate=self.candidates[index],
            loss=measured.loss(index, seen),
            delta=above(seen),
            by_text=tuple(above(one) if one else None for one in by_text),
            unseen=above(unseen) if evaluated else None,
        )


class _Passes:
    """Counts layer passes."""

    done = 0


class _Record:
    """The record file: a line with the fingerprint, then a line of results for each document of each round."""

    def __init__(self, path: Path, fingerprint: str) -> None:
        self.measured, self._shown = Measured(), dict[int, dict[str, Any]]()
        self._path, self._fingerprint = path, fingerprint

    def __enter__(self) -> Self:
        """Read the existing results and rewrite the file with them."""
        lines = self._read()
        self._path.parent.mkdir(parents=True, exist_ok=True)
        self._file = self._path.open("w", encoding="utf-8")
        self._write({"fingerprint": self._fingerprint})
        for line in lines:
            self._keep(line)
            self._write(line)
        if lines:
            LOG.info("%s: resuming after %d lines of results", self._path, len(lines))
        return self

    def __exit__(self, *_: object) -> None:
        """Close the file."""
        self._file.close()

    def _read(self) -> list[dict[str, Any]]:
        """The complete lines of an earlier run of the same probe; its last line may be truncated."""
        try:
            text = self._path.read_text(encoding="utf-8")
        except FileNotFoundError:
            return []
        lines = list[dict[str, Any]]()
        for line in text.split("\n")[:-1]:
            try:
                content = json.loads(line)
            except ValueError:
                break
            lines.append(content)
        same = bool(lines) and lines[0] == {"fingerprint": self._fingerprint}
        return lines[1:] if same else []

    def add(self, number: int, nats: Mapping[int, list[float]], shown: dict[str, Any] | None) -> None:
        """Record a document's losses and the similarities of the base's layers."""
        line = {"document": number, "nats": {str(index): one for index, one in nats.items()}, "shown": shown}
        self._keep(line)
        self._write(line)

    def _keep(self, line: Mapping[str, Any]) -> None:
        for index, nats in line["nats"].items():
            self.measured.nats.setdefault(int(index), {})[line["document"]] = nats
        if line["shown"]:
            self._shown[line["document"]] = line["shown"]

    def _write(self, line: Mapping[str, Any]) -> None:
        self._file.write(json.dumps(line) + "\n")
        self._file.flush()

    def averages(self, documents: int) -> tuple[tuple[float, ...], tuple[tuple[float, ...], ...]]:
        """Block influences and angular distances, averaged over documents."""
        shown = [self._shown[number] for number in range(documents)]
        influences = tuple(fmean(column) for column in zip(*(one["influences"] for one in shown), strict=True))
        rows = zip(*(one["angles"] for one in shown), strict=True)
        return influences, tuple(tuple(fmean(column) for column in zip(*row, strict=True)) for row in rows)
