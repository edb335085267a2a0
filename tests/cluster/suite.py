"""The checks, in their order. Each runs alone, too: `make test-cluster CHECKS=slow`."""

import re
import time

import pytest

from cluster import serving, workflow
from cluster.claims import claim
from cluster.commands import gridbox
from cluster.place import SERVICE, ended_stages, gateway_api, toml_with_claim

# --- Kubeflow --------------------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("installed")
def test_doctor(place, figure):
    ran = gridbox("doctor", place.workflow, "--profile", place.settings.profile, *place.values()).ok()
    lines = [line for line in ran.out.splitlines() if re.match(r"(pass|skipped) ", line)]
    figure(f"{len(lines)} findings, {sum(line.startswith('skipped') for line in lines)} skipped")
    assert lines


def test_upload(place, figure):
    file = place.folder / "workflow.yaml"
    assert place.package
    gridbox("upload", file).ok()
    again = gridbox("upload", file).ok()
    assert "is there already" in again.out
    figure(f"{file.stat().st_size:,} bytes")


@pytest.mark.usefixtures("installed")
def test_submit(place, figure, record_property):
    """The whole workflow, followed to its end; the Workflow object stays within its budget at every look."""
    place.keep(seed=int(time.time()))
    followed = place.submit("first")
    assert followed.code == 0, followed.text
    place.keep(run=followed.run_id)
    told, stages = ended_stages(followed.text), set(place.package.stages().values())
    assert set(told) == stages, f"no line of {sorted(stages - set(told))}\n{followed.text}"
    sizes = dict(followed.samples) | {len(told): workflow.size(place.workflow_of(followed.run_id))}
    for ended, size in sizes.items():
        record_property(f"bytes after {ended} stages", size)
    figure(f"{len(told)} stages in {followed.seconds:.0f} s, Workflow {max(sizes.values()):,} bytes")
    assert max(sizes.values()) < workflow.BUDGET


@pytest.mark.usefixtures("first_run")
def test_cache(place, figure):
    """The same again: every stage that may be cached is."""
    followed = place.submit("second")
    assert followed.code == 0, followed.text
    computed = place.cacheable & workflow.computed(place.workflow_of(followed.run_id))
    figure(f"{len(place.cacheable)} stages cached, {followed.seconds:.0f} s")
    assert not computed


def test_logs(first_run, figure):
    ran = gridbox("logs", first_run, "preflight").ok()
    lines = ran.out.splitlines()
    figure(f"{len(lines)} lines")
    assert lines[0].startswith("== preflight: succeeded")
    assert len(lines) > 1


def test_list(place, first_run, figure):
    runs = gridbox("list").ok().out
    pipelines = gridbox("list", "pipelines").ok().out
    figure(f"{len(runs.splitlines()) - 1} runs")
    assert first_run in runs
    assert place.package.name in pipelines


@pytest.mark.usefixtures("installed")
def test_cancel(place, figure):
    """A run that is cancelled while its first stage runs ends as cancelled."""

    def is_running(followed):
        return re.search(r": running$", followed.text, re.MULTILINE)

    followed = place.submit("cancelled", until=is_running)
    start = time.monotonic()
    assert is_running(followed), followed.text
    gridbox("cancel", followed.run_id).ok()
    ended = gridbox("wait", followed.run_id, timeout=place.seconds(300))
    figure(f"ended {time.monotonic() - start:.0f} s after")
    assert ended.code == 1, ended.text
    assert "cancelled" in ended.text


def test_schedule(place, figure):
    name = f"{SERVICE}-schedule"
    options = ("--profile", place.settings.profile, "--cron", "0 3 * * 1", "--name", name)
    gridbox("schedule", "create", place.workflow, *options, *place.values()).ok()
    try:
        states = [_state_of(name)]
        for command in ("disable", "enable"):
            gridbox("schedule", command, name).ok()
            states.append(_state_of(name))
    finally:
        gridbox("schedule", "delete", name).ok()
    figure(", ".join(states))
    assert states == ["enabled", "disabled", "enabled"]
    assert name not in gridbox("schedule", "list").ok().out


def _state_of(schedule):
    (line,) = [line for line in gridbox("schedule", "list").ok().out.splitlines() if line.startswith(schedule)]
    return line.split()[1]


@pytest.mark.usefixtures("installed")
def test_claim(place, tmp_path, figure):
    """A claim of ordinary ownership is refused by the pre-flight, with the way out; one made writable passes."""
    name = f"{SERVICE}-checkpoints"
    file = next((origin for origin in place.configuration.origins.values() if origin.endswith(".toml")), "")
    (tmp_path / "gridbox.toml").write_text(toml_with_claim(file, name))

    def preflight(title):
        has_ended = re.compile("preflight: (done|failed)")
        return place.submit(title, until=lambda followed: has_ended.search(followed.text), cwd=tmp_path)

    with claim(place, name) as owned_by:
        owned_by("0:0", "0755")
        refused = preflight("refused")
        owned_by("10001:10001", "0770")
        accepted = preflight("accepted")
        gridbox("cancel", accepted.run_id).ok()
        gridbox("wait", accepted.run_id, timeout=place.seconds(300))
        told = gridbox("logs", refused.run_id, "preflight").ok().out
    figure(f"refused after {refused.seconds:.0f} s")
    assert "preflight: failed" in refused.text
    assert "preflight: done" in accepted.text, accepted.text
    assert "10001" in told
    assert "chown" in told


# --- Kubernetes ------------------------------------------------------------------------------------------------------


def test_overlays(place, overlay, manifests, figure):
    """The server takes every overlay, and the one that is applied already a second time without a change."""
    root = serving.ROOT / "manifests/overlays"
    names = sorted(str(file.parent.relative_to(root)) for file in root.rglob("kustomization.yaml"))
    lacking = {}
    for name in names:
        folder = serving.overlay(manifests, name, place.namespace) if name != serving.OVERLAY else overlay
        lacking |= _dry_run(place, name, "-k", folder)
    figure(f"{len(names)} overlays" + "".join(f"; {name}: no {kind} here" for name, kind in lacking.items()))
    place.kubectl("apply", "--server-side", "-k", overlay).ok()
    again = place.kubectl("diff", "--server-side", "-k", overlay)
    assert again.code == 0, again.text


@pytest.mark.usefixtures("overlay")
def test_chart(place, figure):
    helm = pytest.importorskip("helm_python", reason="helm-python-sdk is not installed")
    with helm.Chart.load(serving.ROOT / "charts/gridbox-serving") as chart:
        files = chart.render(
            {"model": {"prefix": "models/facenet/versions/1/repository"}}, name=SERVICE, namespace=place.namespace
        )
    documents = [text for file, text in files.items() if not file.endswith("NOTES.txt")]
    _dry_run(place, "chart", "-n", place.namespace, "-f", "-", stdin="\n---\n".join(documents))
    figure(f"{len(documents)} files")


def _dry_run(place, name, *source, stdin=None):
    """Has the server check documents; returns, by name, the kind that the cluster does not know, if any."""
    ran = place.kubectl("apply", "--server-side", "--dry-run=server", "--force-conflicts", *source, stdin=stdin)
    unknown = re.findall(r'no matches for kind "(\w+)"', ran.err)
    assert ran.code == 0 or unknown, f"{name}: {ran.text}"
    return {name: unknown[0]} if unknown else {}


# --- KServe ----------------------------------------------------------------------------------------------------------


def test_replace(place, bench, served, figure):
    """A changed run replaces version 1 while a client asks all the time."""
    name, _, value = place.settings.change.partition("=")
    with place.client(bench) as client:
        (old,) = client.now().digests()
        followed = place.submit("changed", **{name: value})
        assert followed.code == 0, followed.text
        time.sleep(5)
    answers, deployed = client.answers, workflow.ended(place.workflow_of(followed.run_id), "deploy")
    (new,) = answers.digests(after=deployed)
    figure(
        f"{len(answers.requests)} requests, {len(answers.lost)} lost; version 2 answers "
        f"{deployed - answers.first(new):.0f} s before deploy returns"
    )
    assert new != old
    assert not answers.lost, answers.lost
    assert place.service().storage_uri != served.storage_uri


@pytest.mark.usefixtures("restored")
def test_slow(place, bench, figure):
    """A version whose server needs 45 s more is not called served before it serves."""
    with place.client(bench) as client:
        (old,) = client.now().digests()
        ran, returned, digest = place.deploy(bench, "slow")
        time.sleep(5)
    answers = client.answers
    figure(f"deploy took {ran.seconds:.0f} s; {len(answers.requests)} requests, {len(answers.lost)} lost")
    ran.ok()
    assert ran.seconds > 45
    assert answers.digests(after=returned) == {digest}
    assert answers.digests() == {old, digest}
    assert not answers.lost, answers.lost


def test_crashing(place, bench, restored, figure):
    """A version whose server does not start is refused, and version 1 serves on."""
    _refused(place, bench, restored, figure, "crashing", "", "CrashLoopBackOff")


def test_unpullable(place, bench, restored, figure):
    """So is one whose image nobody has pushed."""
    _refused(place, bench, restored, figure, "none", "gridbox.invalid/nowhere:1", "cannot be pulled")


def _refused(place, bench, before, figure, fault, image, reason):
    with place.client(bench) as client:
        (old,) = client.now().digests()
        ran, _, _ = place.deploy(bench, fault, image)
    answers = client.answers
    print(ran.text)
    figure(f"refused after {ran.seconds:.0f} s; {len(answers.requests)} requests, {len(answers.lost)} lost")
    assert ran.code == 1
    assert reason in ran.text
    assert answers.digests() == {old}
    assert not answers.lost, answers.lost
    assert place.service().storage_uri == before
    assert ran.seconds < place.seconds(120)


@pytest.mark.usefixtures("restored")
def test_canary(place, bench, figure):
    """A canary gets its share of the traffic, or is refused by name where nothing can give it one."""
    with place.client(bench) as client:
        (old,) = client.now().digests()
        ran, returned, digest = place.deploy(bench, "none", canary=10)
        if gateway_api(place.kubectl):
            time.sleep(30)
    answers = client.answers
    assert not answers.lost, answers.lost
    if not gateway_api(place.kubectl):
        figure(f"refused by name after {ran.seconds:.0f} s: Gateway API is off")
        assert ran.code == 2, ran.text
        assert "enableGatewayApi" in ran.text
        assert not place.service().canaries
        assert answers.digests() == {old}
        return
    ran.ok()
    later = [each["digest"] for each in answers.requests if each["start"] > returned]
    figure(f"{later.count(digest)} of {len(later)} answers by the canary, ready after {ran.seconds:.0f} s")
    assert 0 < later.count(digest) < len(later) / 2


def test_rollback(place, bench, restored, figure):
    """`rollback` serves the former version again, `rollback --to` a named one; nobody loses a request."""
    rollback = ("serve", "rollback", "--name", SERVICE, "--namespace", place.namespace)
    version = restored.rpartition("/versions/")[2].partition("/")[0]
    with place.client(bench) as client:
        (old,) = client.now().digests()
        took = []
        for words in (rollback, (*rollback, "--to", version)):
            place.deploy(bench, "none")[0].ok()
            assert place.service().storage_uri != restored
            ran = gridbox(*words, timeout=place.seconds(300)).ok()
            took.append(ran.seconds)
            assert place.service().storage_uri == restored
            after = time.time()
            time.sleep(3)
            assert client.now().digests(after) == {old}
    figure(f"{took[0]:.0f} s, --to a version {took[1]:.0f} s; {len(client.answers.lost)} requests lost")
    assert not client.answers.lost, client.answers.lost
    told = gridbox("serve", "status", "--name", SERVICE, "--namespace", place.namespace).ok()
    assert version in told.out
