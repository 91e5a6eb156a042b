"""The probe itself: documents, rounds, what was measured, and the file that lets an interrupted probe go on."""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import batched
from math import fsum
from pathlib import Path
from statistics import fmean
from typing import TYPE_CHECKING, Any, NamedTuple, Self

from solar_plugins.errors import ArgsError
from solar_plugins.evaluation.held_out_texts import read_texts
from solar_plugins.evaluation.loss import Difference, Loss, difference
from solar_plugins.evaluation.models import hardware, load_model, load_tokenizer
from solar_plugins.evaluation.probe.candidates import Candidate
from solar_plugins.evaluation.probe.new_layers import NewWeights
from solar_plugins.evaluation.probe.race import rounds, still_racing
from solar_plugins.evaluation.probe.replay import SEGMENT_TOKENS, LayerReplay, angular_distances, block_influences
from solar_plugins.evaluation.probe.schedule import chunks, schedule
from solar_plugins.logs import logger

if TYPE_CHECKING:
    from solar_plugins.upscaling.base_model import BaseCheckpoint

LOG = logger("probe")

BASE = -1
"""The base's place among the plans."""
MIN_DOCUMENTS = 3
UNSEEN_SHARE = 1 / 3
BATCH_TOKENS = {"cpu": 2048, "cuda": 32768}
MAX_LOGITS = 32_000_000
"""More at once is slower on a CPU, and no faster on a GPU."""
LOGIT_BYTES = 12
"""In 16 bits, in fp32, and its log-softmax in fp32."""


class Document(NamedTuple):
    """A text as the base's tokenizer encodes it, cut."""

    text: int
    """Which of the texts it belongs to."""
    ids: tuple[int, ...]

    @property
    def predicted(self) -> int:
        """How many of its tokens are predicted."""
        return len(self.ids) - 1

    @property
    def segments(self) -> list[int]:
        """How many tokens are predicted in each segment."""
        return [min(SEGMENT_TOKENS, self.predicted - start) for start in range(0, self.predicted, SEGMENT_TOKENS)]


type Numbered = Sequence[tuple[int, Document]]
"""Documents, each with its number."""


class Documents(NamedTuple):
    """What is measured on: documents of the race, and others that the race never sees."""

    names: tuple[str, ...]
    """Of the texts."""
    race: tuple[Document, ...]
    unseen: tuple[Document, ...]


@dataclass(frozen=True, slots=True)
class Settings:
    """How a probe measures.

    Args:
        sequence_len: Tokens at which a document is cut.
        limit_tokens: Of each text at most so many tokens, or None.
        memory_bytes: For hidden states and logits.
        dtype: float32 or bfloat16; None for what the hardware is best at.
        race: Whether to spend later documents only on plans that may still be the best of their size.
    """

    sequence_len: int
    limit_tokens: int | None
    memory_bytes: int
    dtype: str | None
    race: bool = True


@dataclass(slots=True)
class Measured:
    """Negative log-likelihoods in nats, by plan, document and segment of it."""

    nats: dict[int, dict[int, list[float]]] = field(default_factory=dict)

    def loss(self, place: int, documents: Numbered) -> Loss:
        """The loss of a plan on some documents, all of which it was measured on."""
        nats = self.nats[place]
        return Loss(tuple(fsum(nats[key]) for key, _ in documents), tuple(one.predicted for _, one in documents))

    def segments(self, place: int, documents: Numbered) -> Loss:
        """The same by segment."""
        nats = [one for key, _ in documents for one in self.nats[place][key]]
        return Loss(tuple(nats), tuple(length for _, one in documents for length in one.segments))


@dataclass(frozen=True, slots=True)
class PlanResult:
    """What was measured of a plan.

    Args:
        candidate: The plan.
        loss: On the documents of the race that it was measured on.
        delta: How much that is above the base on the same documents.
        by_text: The same for each text; None where it has no document yet.
        unseen: How much it is above the base on documents that the race never saw; None where not measured.
    """

    candidate: Candidate
    loss: Loss
    delta: Difference
    by_text: tuple[Difference | None, ...]
    unseen: Difference | None


@dataclass(frozen=True, slots=True)
class Comparison:
    """The best plan of a size and DUS of that size, on documents that the race never saw."""

    best: int
    dus: int | None
    difference: Difference | None
    """How much the best is above DUS; None where there is no DUS of that size."""


@dataclass(frozen=True, slots=True)
class ProbeResult:
    """All that a probe found. ``plans`` has the candidates in their order."""

    base_name: str
    num_layers: int
    documents: Documents
    base_loss: Loss
    plans: tuple[PlanResult, ...]
    sizes: Mapping[int, Comparison]
    """By number of added layers."""
    influences: tuple[float, ...]
    angles: tuple[tuple[float, ...], ...]
    """Mean angular distance between the inputs of two layers; the last row is the last layer's output."""
    device: str
    dtype: str
    layer_passes: int
    naive_layer_passes: int
    seconds: float


def encode_texts(tokenizer: Any, paths: Sequence[Path], settings: Settings) -> Documents:
    """The documents of some files.

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
                "the errors are estimated over documents"
            )
        last = max(1, round(len(documents) * UNSEEN_SHARE))
        race.append(documents[:-last])
        unseen.append(documents[-last:])
    return Documents(tuple(path.name for path in paths), _in_turn(race), _in_turn(unseen))


def _in_turn(lists: Sequence[Sequence[Document]]) -> tuple[Document, ...]:
    longest = max(map(len, lists))
    return tuple(one[place] for place in range(longest) for one in lists if place < len(one))


class Probe:
    """A probe of one base. Make it, then `run`."""

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
        for place, candidate in enumerate(candidates):
            self._sizes.setdefault(candidate.added, []).append(place)

    @property
    def fingerprint(self) -> str:
        """A hash of all that the figures depend on: an interrupted probe of the same goes on."""
        plans = [candidate.plan.to_dict() for candidate in self.candidates]
        content = [self.base.identity, plans, [one.ids for _, one in self._keys], self._dtype, hardware().device]
        return hashlib.sha256(json.dumps(content).encode()).hexdigest()

    @property
    def _dtype(self) -> str:
        return self.settings.dtype or hardware().dtype

    @property
    def _share_of_memory(self) -> int:
        """Bytes for hidden states, as many for logits, and as many for the weights of new layers if there are any."""
        return self.settings.memory_bytes // (2 if all(one.plan.only_copies for one in self.candidates) else 3)

    def run(self, record: Path) -> ProbeResult:
        """Measure.

        Args:
            record: The file of what was measured so far; it is read, and appended to.

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
        results = tuple(self._result(place, measured) for place in range(len(self.candidates)))
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
        """Measure round by round, and average what the base's own runs show."""
        alive = set(range(len(self.candidates)))
        always = frozenset(place for place, one in enumerate(self.candidates) if one.is_dus)
        numbers = range(len(self.documents.race))
        turns = rounds(len(numbers)) if self.settings.race else [numbers]
        for turn, documents in enumerate(turns, start=1):
            with self._progress(f"round {turn} of {len(turns)}", alive, documents) as advance:
                for number in documents:
                    self._measure(replay, store, passes, number, sorted(alive), advance)
            if turn < len(turns):
                seen = self._keys[: documents.stop]
                losses = {place: store.measured.segments(place, seen) for place in alive}
                groups = [[place for place in group if place in alive] for group in self._sizes.values()]
                alive = still_racing(losses, groups, always, turn - 1)
        return store.averages(len(numbers))

    def _compare(self, replay: LayerReplay, store: _Record, passes: _Passes) -> dict[int, Comparison]:
        """The best plan of each size and DUS, on documents that the race never saw."""
        race = self._keys[: len(self.documents.race)]
        unseen = self._keys[len(race) :]
        chosen = dict[int, tuple[int, int | None]]()
        for size, places in sorted(self._sizes.items()):
            whole = [place for place in places if len(store.measured.nats[place]) >= len(race)]
            best = min(whole, key=lambda place: store.measured.loss(place, race).nats_per_token)
            dus = next((place for place in places if self.candidates[place].is_dus), None)
            chosen[size] = best, dus
        plans = {place for pair in chosen.values() for place in pair if place is not None}
        with self._progress("the best, on unseen documents", plans, [number for number, _ in unseen]) as advance:
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
        places: Sequence[int],
        advance: Callable[[float], object],
    ) -> None:
        """One document, on the base and the plans that were not measured on it yet."""
        known = store.measured.nats
        missing = [place for place in places if number not in known.get(place, {})]
        advance(len(places) - len(missing))
        if not missing and number in known.get(BASE, {}):
            return
        document = self._keys[number][1]
        recording = replay.record(self._tensor(document, replay.model.device))
        found = {BASE: replay.document_nats(recording, [recording.states[-1]])[0]}
        bytes_of_state = recording.states[0].nbytes
        states = max(4, self._share_of_memory // bytes_of_state - len(recording.states))
        plans = [self.candidates[place].plan for place in missing]
        groups = chunks(plans, states)
        orders = [schedule([plans[one] for one in group]) for group in groups]
        share = len(missing) / max(1, sum(order.layer_passes for order in orders))
        for group, order in zip(groups, orders, strict=True):
            passes.done += order.layer_passes
            ends = replay.run(recording, order, lambda count: advance(count * share))
            for batch in batched(ends, replay.head_batch(recording)):
                nats = replay.document_nats(recording, [state for _, state in batch])
                found |= {missing[group[place]]: one for (place, _), one in zip(batch, nats, strict=True)}
        shown = None
        if number < len(self.documents.race):
            shown = {"influences": block_influences(recording), "angles": angular_distances(recording).tolist()}
        store.add(number, found, shown)

    @contextmanager
    def _progress(
        self, title: str, places: Collection[int], documents: Collection[int]
    ) -> Iterator[Callable[[float], object]]:
        from tqdm import tqdm

        total, done = len(places) * len(documents), 0.0

        def advance(plans: float) -> None:
            nonlocal done
            done += plans
            bar.update(min(round(done), total) - bar.n)

        with tqdm(total=total, desc=f"{title}: {len(places)} plans", unit="plan", mininterval=0.5) as bar:
            yield advance

    def _tensor(self, document: Document, device: Any) -> Any:
        import torch

        return torch.tensor([document.ids], dtype=torch.long, device=device)

    def _result(self, place: int, measured: Measured) -> PlanResult:
        seen = [key for key in self._keys[: len(self.documents.race)] if key[0] in measured.nats[place]]
        unseen = self._keys[len(self.documents.race) :]
        whole = all(number in measured.nats[place] for number, _ in unseen)

        def above(documents: Numbered) -> Difference:
            return difference(measured.loss(place, documents), measured.loss(BASE, documents))

        by_text = [[key for key in seen if key[1].text == text] for text in range(len(self.documents.names))]
        return PlanResult(
            candidate=self.candidates[place],
            loss=measured.loss(place, seen),
            delta=above(seen),
            by_text=tuple(above(one) if one else None for one in by_text),
            unseen=above(unseen) if whole else None,
        )


class _Passes:
    """How many layers were run."""

    done = 0


class _Record:
    """The file of what was measured: a line for each document of each round, after a line that says of what."""

    def __init__(self, path: Path, fingerprint: str) -> None:
        self.measured, self._shown = Measured(), dict[int, dict[str, Any]]()
        self._path, self._fingerprint = path, fingerprint

    def __enter__(self) -> Self:
        """Read what is there, and begin the file anew with it."""
        lines = self._read()
        self._path.parent.mkdir(parents=True, exist_ok=True)
        self._file = self._path.open("w", encoding="utf-8")
        self._write({"fingerprint": self._fingerprint})
        for line in lines:
            self._keep(line)
            self._write(line)
        if lines:
            LOG.info("%s: goes on after %d lines of figures", self._path, len(lines))
        return self

    def __exit__(self, *_: object) -> None:
        """Close the file."""
        self._file.close()

    def _read(self) -> list[dict[str, Any]]:
        """The whole lines of an earlier run of the same probe; the last may be half a line."""
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
        """Note a document's figures, and what its recording shows of the base."""
        line = {"document": number, "nats": {str(place): one for place, one in nats.items()}, "shown": shown}
        self._keep(line)
        self._write(line)

    def _keep(self, line: Mapping[str, Any]) -> None:
        for place, nats in line["nats"].items():
            self.measured.nats.setdefault(int(place), {})[line["document"]] = nats
        if line["shown"]:
            self._shown[line["document"]] = line["shown"]

    def _write(self, line: Mapping[str, Any]) -> None:
        self._file.write(json.dumps(line) + "\n")
        self._file.flush()

    def averages(self, documents: int) -> tuple[tuple[float, ...], tuple[tuple[float, ...], ...]]:
        """Block influences and angular distances, the mean over documents."""
        shown = [self._shown[number] for number in range(documents)]
        influences = tuple(fmean(column) for column in zip(*(one["influences"] for one in shown), strict=True))
        rows = zip(*(one["angles"] for one in shown), strict=True)
        return influences, tuple(tuple(fmean(column) for column in zip(*row, strict=True)) for row in rows)
