"""What to apply for a canary, a promotion and a roll-back, worked out from what is live. Pure functions on documents.

The InferenceService says what is live, the ledger what was served before it. So a roll-back needs nothing but the
cluster, even when the run that deployed is gone.
"""

import copy
import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from components.serve.kserve import (
    CONTAINER,
    LABELS,
    MODE,
    RUN,
    SCALING,
    SERVICE_VERSION,
    Document,
    Mode,
    check,
)
from components.serve.ledger import Entry, Ledger, State, uri_of
from components.step import UserError

_PERCENT = "canaryTrafficPercent"


@dataclass(frozen=True, slots=True)
class Live:
    """An InferenceService in the cluster, as deployments see it.

    Attributes:
        document: The whole object.
    """

    document: Mapping[str, Any]

    @property
    def mode(self) -> str:
        """Its mode."""
        return str(self._annotations.get(MODE) or self.document.get("status", {}).get("deploymentMode", ""))

    @property
    def predictor(self) -> Document:
        """The predictor of the spec."""
        return dict(self.document["spec"]["predictor"])

    @property
    def canary(self) -> Document | None:
        """The predictor on trial beside another one, if any."""
        if self.document["spec"].get("canary"):
            return dict(self.document["spec"]["canary"][0]["predictor"])
        return self.predictor if self.predictor.get(_PERCENT, 100) < 100 else None

    @property
    def latest(self) -> Document:
        """The predictor that was deployed last."""
        return self.canary or self.predictor

    @property
    def uri(self) -> str:
        """Where the model of the latest deployment lies."""
        return uri_of(self.latest)

    @property
    def run_id(self) -> str:
        """The run of the latest deployment, or empty."""
        return run_of(self.latest)

    @property
    def _annotations(self) -> Mapping[str, str]:
        return dict(self.document["metadata"].get("annotations", {}))

    def entry(self, ledger: Ledger) -> Entry:
        """Returns the latest deployment; one that the ledger does not know was made by hand."""
        known = ledger.find(self.uri)
        return known or Entry(
            predictor=_without(self.latest, _PERCENT), annotations=self.service_annotations, state=State.promoted
        )

    @property
    def service_annotations(self) -> dict[str, str]:
        """The annotations that tell KServe how to run it."""
        return {name: value for name, value in self._annotations.items() if "serving.kserve.io/" in name}

    def changed(self, annotations: Mapping[str, str], spec: Mapping[str, Any]) -> Document:
        """Returns what to apply to change exactly this version of the object."""
        metadata = self.document["metadata"]
        document = {
            "apiVersion": SERVICE_VERSION,
            "kind": "InferenceService",
            "metadata": {
                "name": metadata["name"],
                "namespace": metadata["namespace"],
                "labels": dict(LABELS),
                "annotations": dict(annotations),
                "resourceVersion": metadata["resourceVersion"],
            },
            "spec": copy.deepcopy(dict(spec)),
        }
        check(document, self.document)
        return document

    def require(self, run_id: str) -> None:
        """Refuses when a run (empty: any) is not the one that was deployed last."""
        if run_id and self.run_id != run_id:
            raise UserError(f"{self.name}: run {self.run_id or '(unknown)'} was deployed since; {run_id} is not served")

    @property
    def name(self) -> str:
        """What messages call it."""
        return f"inferenceservices/{self.document['metadata']['name']} in {self.document['metadata']['namespace']}"


def run_of(predictor: Mapping[str, Any]) -> str:
    """Returns the run that a predictor came from, or empty."""
    return str(predictor.get("annotations", {}).get(RUN, ""))


def replaced(live: Live | None, ledger: Ledger, run_id: str) -> Entry | None:
    """Returns what a run's deployment replaces, and what it goes back to: not a trial, where anything was judged.

    Returns:
        None where nothing but the run itself was served.

    Raises:
        UserError: A canary of another run is on trial, or one of unknown origin.
    """
    if live is None:
        return None
    if live.canary is not None and live.run_id != run_id:
        raise UserError(
            f"{live.name}: a canary of run {live.run_id or '(unknown)'} is on trial; promote it or roll it back first"
        )
    entry = live.entry(ledger)
    if live.run_id == run_id:  # this run again
        return ledger.find(entry.before)
    return ledger.judged(entry) or entry


def challenge(new: Document, live: Live | None, ledger: Ledger, run_id: str, percent: int) -> tuple[Document, Ledger]:
    """Returns what to apply to deploy a new model, and the ledger with it.

    Args:
        new: The InferenceService as it shall be in the end.
        live: What is in the cluster.
        ledger: What has been served.
        run_id: The run that deploys.
        percent: Traffic to the new model until it is promoted, 1 to 99; 0 for all at once. Where nothing is served,
            the new model gets all.

    Raises:
        UserError: What is live cannot become this.
    """
    annotations, predictor = new["metadata"]["annotations"], copy.deepcopy(new["spec"]["predictor"])
    former = replaced(live, ledger, run_id)
    entry = Entry(predictor=predictor, annotations=annotations, before=former.uri if former else "")
    noted = ledger.added(entry, *([former] if former else []))
    if live is None:
        return new, noted
    if former is None:
        return live.changed(annotations, {"predictor": predictor}), noted
    served = former.predictor
    if percent and live.mode == Mode.standard:
        _check_inherited(served, predictor, live.name)
        base = live.predictor if run_of(live.predictor) != run_id else served
        canary = _canary_predictor(predictor, run_id)
        share = {"trafficPercent": percent, "predictor": canary}
        return live.changed(former.annotations, {"predictor": base, "canary": [share]}), noted
    # After a promotion in Standard mode the Deployment has the promoted canary's name: another one would replace its
    # pods before new ones are ready.
    if "name" in served:
        predictor["name"] = served["name"]
    applied = {**predictor, _PERCENT: percent} if percent else predictor
    return live.changed(annotations, {"predictor": applied}), noted


def canary_name(predictor: Mapping[str, Any], run_id: str) -> str:
    """Returns the name of a Standard canary: new for every run and model, and valid as part of a Service's name."""
    told = run_id + "\n" + str(predictor["model"]["storageUri"])
    return "v" + hashlib.sha256(told.encode()).hexdigest()[:8]


def _canary_predictor(predictor: Document, run_id: str) -> Document:
    canary = _without(predictor, *SCALING)
    # The custom resource definition demands the container's name here, where the webhook forbids it elsewhere.
    model = {**canary["model"], "name": CONTAINER}
    return {**canary, "name": canary_name(predictor, run_id), "model": model}


_INHERITED = (("nodeSelector",), ("tolerations",), ("model", "args"), ("model", "env"), ("model", "resources"))


def _check_inherited(served: Mapping[str, Any], predictor: Mapping[str, Any], name: str) -> None:
    """Refuses a canary that would get what the new model must not have: KServe lays it over the served predictor."""
    for path in _INHERITED:
        before, after = served, predictor
        for part in path:
            before, after = before.get(part) or {}, after.get(part) or {}
        both = isinstance(before, Mapping) and isinstance(after, Mapping)
        if (not after and before) or (both and _merged(before, after) != after):
            raise UserError(
                f"{name}: a canary in mode Standard inherits {'.'.join(path)} of what is served, which the new model "
                "does not have; deploy it without a canary (deploy_canary_percent 0)"
            )


def promoted(live: Live, run_id: str) -> Document | None:
    """Returns what to apply to give the latest deployment all traffic; None where it has it already.

    Args:
        live: What is in the cluster.
        run_id: The run that must have deployed it; empty for any.

    Raises:
        UserError: The latest deployment is of another run.
    """
    live.require(run_id)
    annotations = live.service_annotations
    if live.document["spec"].get("canary"):
        assert live.canary is not None
        # What KServe made the canary's pods of: with the same template they keep running.
        predictor = _merged(live.predictor, live.canary)
        predictor["model"] = _without(predictor["model"], "name")
        return live.changed(annotations, {"predictor": predictor})
    if _PERCENT in live.predictor:
        return live.changed(annotations, {"predictor": _without(live.predictor, _PERCENT)})
    return None


def rolled_back(live: Live, ledger: Ledger, run_id: str) -> Document | None:
    """Returns what to apply to go back to what was served before the latest deployment.

    In Knative a canary's roll-back takes two steps: this one gives all traffic to the revision that had it, at once,
    and makes a revision of the former predictor; when that is ready, `promoted` drops the percentage. Dropping it
    right away would send everything to the newest ready revision, which is the rejected one.

    Returns:
        The document, or None where the run is not what was deployed last: nothing to do.

    Raises:
        UserError: Nothing is known of what was served before.
    """
    if run_id and live.run_id != run_id:
        return None
    if live.document["spec"].get("canary"):
        return live.changed(live.service_annotations, {"predictor": live.predictor})
    former = ledger.find(live.entry(ledger).before)
    if former is None:
        raise UserError(f"{live.name}: nothing was served before run {live.run_id or '(unknown)'}; it is left as it is")
    return _returned(live, former)


def returned(live: Live, ledger: Ledger, version: str) -> Document | None:
    """Returns what to apply to serve an earlier deployment again, named by its version or its run.

    Returns:
        The document, or None where it is served already.

    Raises:
        UserError: The ledger does not know it, or a canary is on trial.
    """
    found = [entry for entry in ledger.entries if version == entry.run or f"/{version}/" in entry.uri]
    if not found:
        known = ", ".join(entry.uri for entry in ledger.entries) or "none"
        raise UserError(f"{live.name}: no deployment of {version} is known; known are {known}")
    if live.canary is not None:
        raise UserError(f"{live.name}: a canary of run {live.run_id or '(unknown)'} is on trial; roll it back first")
    return None if live.uri == found[-1].uri else _returned(live, found[-1])


def _returned(live: Live, entry: Entry) -> Document:
    predictor = _without(entry.predictor, "name")
    if "name" in live.predictor:  # the Deployment keeps its name, and its pods until new ones are ready
        predictor["name"] = live.predictor["name"]
    if live.canary is not None:
        predictor[_PERCENT] = 0
    return live.changed(entry.annotations, {"predictor": predictor})


def _without(mapping: Mapping[str, Any], *names: str) -> Document:
    return {key: value for key, value in mapping.items() if key not in names}


def _merged(below: Mapping[str, Any], above: Mapping[str, Any]) -> Document:
    """Lays one document over another as KServe lays a canary over the stable predictor: maps merge, lists replace."""
    merged = dict(below)
    for key, value in above.items():
        both = isinstance(value, Mapping) and isinstance(merged.get(key), Mapping)
        merged[key] = _merged(merged[key], value) if both else value
    return merged
