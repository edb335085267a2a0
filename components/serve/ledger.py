"""What has been served under a name and how it was judged: a ConfigMap beside the InferenceService.

It stands apart because KServe copies the annotations of an InferenceService to its pods: there, a change of mind would
restart them, and a roll-back would never meet the pods that still run. The InferenceService alone says what is live;
an entry without its InferenceService means nothing.
"""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from enum import StrEnum
from typing import Any

from components.measure.metric import AVERAGE_PRECISION, Score
from components.serve.cluster import CONFIG_MAP, Cluster
from components.serve.kserve import LABELS, RUN, Document
from components.step import UserError

KEY = "deployments.json"
# Deployments that a roll-back can go back to.
KEPT = 8


class State(StrEnum):
    """Whether a deployment was judged at its endpoint."""

    trial = "trial"
    promoted = "promoted"


@dataclass(frozen=True, slots=True, kw_only=True)
class Entry:
    """A deployment.

    Attributes:
        predictor: As it was applied, without a canary's percentage.
        annotations: Of the InferenceService with it.
        state: See `State`.
        before: The storage URI of what a roll-back serves again; empty where there is nothing.
    """

    predictor: Document
    annotations: dict[str, str]
    state: State = State.trial
    before: str = ""

    @property
    def uri(self) -> str:
        """Where its model lies: new for every deployment, so it is its name here."""
        return uri_of(self.predictor)

    @property
    def run(self) -> str:
        """The run that it came from, or empty."""
        return str(self.predictor.get("annotations", {}).get(RUN, ""))


@dataclass(frozen=True, slots=True)
class Best:
    """The best score that was ever promoted, by which metric, and on what images and rules."""

    value: float
    data: str
    run: str
    metric: str = AVERAGE_PRECISION

    @property
    def score(self) -> Score:
        """The score itself."""
        return Score(self.metric, self.value)

    def is_worse_than(self, other: "Best") -> bool:
        """Tells whether another one takes its place: it is better, or of other images, rules or metric."""
        if (self.data, self.metric) != (other.data, other.metric):
            return True
        return other.score.points_above(self.score) > 0


@dataclass(frozen=True, slots=True)
class Ledger:
    """See the module.

    Attributes:
        entries: Oldest first.
        best: See `Best`.
        version: Resource version of the ConfigMap it was read from, or empty.
    """

    entries: tuple[Entry, ...] = ()
    best: Best | None = None
    version: str = field(default="", compare=False)

    def find(self, uri: str) -> Entry | None:
        """Returns the entry of a storage URI."""
        return next((entry for entry in self.entries if entry.uri == uri), None)

    def judged(self, entry: Entry | None) -> Entry | None:
        """Returns the newest promoted deployment, from an entry backwards."""
        seen: set[str] = set()
        while entry is not None and entry.state is not State.promoted and entry.uri not in seen:
            seen.add(entry.uri)
            entry = self.find(entry.before)
        return entry if entry is not None and entry.state is State.promoted else None

    def added(self, entry: Entry, *found: Entry) -> "Ledger":
        """Returns the ledger with a new deployment; `found` is what was live and may not be known here yet.

        Trials that were replaced before anybody judged them are forgotten.
        """
        again = self.find(entry.uri)
        if again:  # the same deployment once more, judged as it is
            entry = replace(entry, state=again.state)
        known = {each.uri: each for each in (*self.entries, *found) if each.uri != entry.uri}
        kept = [each for each in known.values() if each.state is State.promoted or each.uri == entry.before]
        return replace(self, entries=(*kept[-(KEPT - 1) :], entry))

    def without(self, uri: str) -> "Ledger":
        """Returns the ledger without a deployment that was undone."""
        return replace(self, entries=tuple(entry for entry in self.entries if entry.uri != uri))

    def promoted(self, predictor: Document, score: Best | None) -> "Ledger":
        """Returns the ledger with a deployment promoted; a score of other images than the best's takes its place.

        Args:
            predictor: As it is served from now on.
            score: What its endpoint scored, or None.
        """
        entries = tuple(
            replace(each, state=State.promoted, predictor=predictor) if each.uri == uri_of(predictor) else each
            for each in self.entries
        )
        best = self.best
        if score and (best is None or best.is_worse_than(score)):
            best = score
        return replace(self, entries=entries, best=best)


def uri_of(predictor: Mapping[str, Any]) -> str:
    """Returns where the model of a predictor lies, or empty."""
    return str(predictor.get("model", {}).get("storageUri", ""))


def read_ledger(cluster: Cluster, name: str, namespace: str) -> Ledger:
    """Reads the ledger of an InferenceService; an empty one where there is none.

    Raises:
        UserError: It is damaged, or may not be read.
        StageError: The API server fails.
    """
    found = cluster.get(CONFIG_MAP, _name(name), namespace)
    if found is None:
        return Ledger()
    try:
        document = json.loads(found["data"][KEY])
        entries = tuple(Entry(**{**each, "state": State(each["state"])}) for each in document["deployments"])
        best = Best(**document["best"]) if document["best"] else None
    except (KeyError, TypeError, ValueError) as error:
        raise UserError(
            f"configmaps/{_name(name)} in {namespace}: not written by gridbox ({error!r}); delete it, and what was "
            "served before is forgotten"
        ) from error
    return Ledger(entries, best, found["metadata"]["resourceVersion"])


def write_ledger(cluster: Cluster, name: str, namespace: str, ledger: Ledger) -> Ledger:
    """Replaces the ledger that it was made from.

    Raises:
        Changed: It was written concurrently.
        UserError: It may not be written.
        StageError: The API server fails.
    """
    metadata: Document = {"name": _name(name), "namespace": namespace, "labels": dict(LABELS)}
    if ledger.version:
        metadata["resourceVersion"] = ledger.version
    text = json.dumps(
        {
            "deployments": [asdict(entry) for entry in ledger.entries],
            "best": asdict(ledger.best) if ledger.best else None,
        },
        sort_keys=True,
    )
    document = {"apiVersion": "v1", "kind": "ConfigMap", "metadata": metadata, "data": {KEY: text}}
    applied = cluster.apply(CONFIG_MAP, document)
    return replace(ledger, version=applied["metadata"]["resourceVersion"])


def _name(service: str) -> str:
    return f"gridbox-{service}"
