"""Fixtures of the suite, which checks run, and the table at the end."""

import json
import os

import pytest

from cluster import serving
from cluster import settings as cluster_settings
from cluster.place import SERVICE, Place
from cluster.table import CHECK, Table
from components.step import StageError, UserError
from pipeline import settings as gridbox_settings
from pipeline.catalogue import FIRST
from pipeline.kubeflow.session import open_session

_TABLE = pytest.StashKey[Table]()
_PLACE = pytest.StashKey[Place]()


def pytest_configure(config):
    """Ends with one line where there is no cluster, and well; not well where a setting is wrong."""
    try:
        settings, configuration = cluster_settings.load(), gridbox_settings.load()
    except UserError as error:
        pytest.exit(str(error), 2)
    try:
        open_session(configuration)
    except (UserError, StageError) as error:
        pytest.exit(f"test-cluster is skipped: {error}", 0)
    folder = config.rootpath / settings.folder
    folder.mkdir(parents=True, exist_ok=True)
    kept = folder / "state.json"
    state = json.loads(kept.read_text()) if kept.is_file() else {}
    place = Place(settings, configuration, os.environ.get("WORKFLOW") or FIRST, folder, state)
    if (ready := place.kubectl("get", "--raw", "/readyz")).code:
        pytest.exit(f"test-cluster is skipped: {(ready.err.splitlines() or ['kubectl fails'])[-1]}", 0)
    config.stash[_PLACE], config.stash[_TABLE] = place, Table()


def pytest_collection_modifyitems(config, items):
    """Leaves the checks that CHECKS names, in the order in which they stand."""
    wanted = os.environ.get("CHECKS", "").replace(",", " ").split()
    names = {item.name.removeprefix(CHECK): item for item in items}
    if unknown := sorted(set(wanted) - set(names)):
        pytest.exit(f"CHECKS: there is no check {', '.join(unknown)}; there are {', '.join(names)}", 2)
    if wanted:
        config.hook.pytest_deselected(items=[item for name, item in names.items() if name not in wanted])
        items[:] = [item for name, item in names.items() if name in wanted]


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item):
    """Collects the rows of the table."""
    report = yield
    item.config.stash[_TABLE].add(report)
    return report


def pytest_terminal_summary(terminalreporter, config):
    """Prints the table and what is left in the cluster."""
    if _TABLE not in config.stash:
        return
    terminalreporter.section("cluster")
    for line in config.stash[_TABLE].lines():
        terminalreporter.write_line(line)
    for line in config.stash[_PLACE].left():
        terminalreporter.write_line(f"left: {line}")


@pytest.fixture(scope="session")
def place(pytestconfig):
    """The cluster under test."""
    return pytestconfig.stash[_PLACE]


@pytest.fixture
def figure(record_property):
    """Writes the figure of a check's row in the table, and into the JUnit file."""
    return lambda text: record_property("figure", text)


@pytest.fixture(scope="session")
def manifests(place, tmp_path_factory):
    """A copy of the manifests with the store's keys in it, removed as soon as it is not needed."""
    folder = tmp_path_factory.mktemp("manifests")
    placement = place.configuration.placement
    scheme, _, host = (placement.store_endpoint or "https://s3.amazonaws.com").partition("://")
    values = {
        "store": f"{scheme}://{host}",
        "store-https": str(int(scheme == "https")),
        "store-region": placement.store_region,
        "pod-security": serving.pod_security(place.kubectl),
        "pipeline-account": place.account,
        "pipeline-namespace": place.runs,
    }
    keys = serving.keys(place.kubectl, place.runs, placement.store_secret)
    serving.copy_manifests(folder, keys, {name: value for name, value in values.items() if value})
    yield folder
    (folder / "manifests/base/s3.env").unlink()


@pytest.fixture(scope="session")
def installed(place, request):
    """The namespace for serving, as the documents have a user make it; and the folder of the overlay."""
    if not place.has_kserve:
        yield None
        return
    manifests = request.getfixturevalue("manifests")
    found = place.kubectl.get(f"/api/v1/namespaces/{place.namespace}")
    if found and not serving.MARK.items() <= (found["metadata"].get("labels") or {}).items():
        pytest.fail(f"namespace {place.namespace} is not this suite's; give another TEST_CLUSTER_NAMESPACE")
    folder = serving.overlay(manifests, serving.OVERLAY, place.namespace)
    place.kubectl("apply", "--server-side", "-k", folder).ok()
    place.kubectl("label", "namespace", place.namespace, *(f"{key}={value}" for key, value in serving.MARK.items()),
                  "--overwrite").ok()  # fmt: skip
    yield folder
    if not place.settings.keep:
        # Before the namespace, since it also made roles of the whole cluster.
        place.kubectl("-n", place.namespace, "delete", "inferenceservice", SERVICE, "--ignore-not-found", timeout=180)
        place.kubectl("delete", "-k", folder, "--ignore-not-found", timeout=300)
        with place.bench() as bench:
            bench.script("remove", place.store)
        (place.folder / "state.json").unlink(missing_ok=True)


@pytest.fixture(scope="session")
def overlay(installed):
    """The folder of the overlay that is applied."""
    if installed is None:
        pytest.skip("there is no KServe here")
    return installed


@pytest.fixture(scope="session")
def first_run(place, installed):  # noqa: ARG001 - a namespace to serve in
    """The id of a run that has ended well; where KServe is, its version 1 is served."""
    if "run" not in place.state or (place.has_kserve and place.service() is None):
        followed = place.submit("first")
        assert followed.code == 0, followed.text
        place.keep(run=followed.run_id, seed=place.state["seed"])
    return place.state["run"]


@pytest.fixture(scope="session")
def served(place, first_run):  # noqa: ARG001 - it has deployed
    """A served version 1."""
    if not place.has_kserve:
        pytest.skip("there is no KServe here")
    return place.service()


@pytest.fixture(scope="session")
def bench(place, served):  # noqa: ARG001 - there is nothing to do in it before
    """The pod from which commands run inside the cluster."""
    with place.bench() as bench:
        yield bench


@pytest.fixture
def restored(place, bench):
    """Serves afterwards the version again that was served before, whatever a check has done."""
    before = place.service().storage_uri
    yield before
    if (service := place.service()).storage_uri != before or service.canaries:
        bench.shell(f"gridbox serve rollback --name {SERVICE} --namespace {place.namespace}", timeout=300).ok()
