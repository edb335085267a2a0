"""Where Kubeflow is, and who asks: `gridbox.toml`, the environment and flags, each overruling the one before it.

One name does everywhere: the key `ca_file` of the file is `GRIDBOX_CA_FILE` in the environment and `--ca-file` on the
command line. The file is the nearest `gridbox.toml` from the working directory upwards, else
`~/.config/gridbox/gridbox.toml`. A secret is never a setting: a token comes from a file or an environment variable.
"""

import os
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from enum import StrEnum
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import urlsplit

from components.step import UserError
from pipeline.images import Images
from pipeline.options import Backend, Options, Serving, parse_engines
from pipeline.parameters import nearest
from pipeline.placement import Placement
from pipeline.tables import read_table

FILE_NAME = "gridbox.toml"
PREFIX = "GRIDBOX_"
TOKEN_VARIABLE = f"{PREFIX}TOKEN"
# Where Kubernetes projects a token whose audience is the Pipelines API, and the variable by which kfp moves that place.
PROJECTED_TOKEN = "/var/run/secrets/kubeflow/pipelines/token"
PROJECTED_TOKEN_VARIABLE = "KF_PIPELINES_SA_TOKEN_PATH"
IN_CLUSTER_ENDPOINT = "http://ml-pipeline.kubeflow.svc.cluster.local:8888"
PLACEMENT, IMAGES = "placement", "images"
_PATHS = ("token_file", "ca_file")
_SECRETS = ("token", "password", "secret", "key")

Choice = TypeVar("Choice", bound=StrEnum)


def _setting(help_text: str, default: Any = "") -> Any:  # noqa: ANN401 - of the setting's type
    return field(default=default, metadata={"help": help_text})


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """Settings of the commands for Kubeflow. An empty string means that it is not set."""

    endpoint: str = _setting("URL of Kubeflow Pipelines: its UI, or its API server.")
    namespace: str = _setting("The namespace of your runs; a Kubeflow for several users wants one.")
    token_file: str = _setting("File that holds a bearer token; it is read for every request.")
    ca_file: str = _setting("Certificates (PEM) of the authority to trust, for a certificate of your own making.")
    ui: str = _setting("URL of the UI for the links that are printed, where it is not the endpoint.")
    context: str = _setting("Context of the kubeconfig, for what is asked of Kubernetes itself.")
    experiment: str = _setting(
        "The experiment that runs are sorted into; it is created where it is missing.", "Default"
    )
    service_account: str = _setting("The service account that the stages run as; empty for the installation's own.")
    store: str = _setting("Where models are published: s3://bucket/prefix. `gridbox doctor` tries to write there.")
    store_endpoint: str = _setting(
        "URL of the object store as this machine reaches it; the stages' own is in the table [placement]."
    )
    timeout: float = _setting("Seconds to wait for an answer.", 30.0)
    patience: float = _setting(
        "Seconds until `submit` and `wait` say that a run stands still, or give up on a server that is down.", 300.0
    )
    engine: str = _setting(
        "Whose program the TAO stages call: open or tao, perhaps with exceptions: tao,export=open.", "open"
    )
    serving: str = _setting("What a deployed model runs on: cpu (ONNX Runtime) or gpu (a TensorRT plan).", "cpu")
    backend: str = _setting("The oldest Kubeflow Pipelines that shall run what is compiled: 2.15 or 2.16.", "2.16")


@dataclass(frozen=True, slots=True)
class Credential:
    """A bearer token and where it comes from. It has no text form, so that it cannot slip into one."""

    origin: str
    secret: str = field(repr=False)


@dataclass(frozen=True, slots=True)
class Configuration:
    """Settings with their origins.

    Attributes:
        settings: The values that hold.
        origins: By the name of a setting, who has set it: `default`, a file, a variable or a flag.
        placement: What the cluster offers the stages: the file's table `[placement]`.
        images: What the stages run in: the file's table `[images]`.
    """

    settings: Settings
    origins: Mapping[str, str]
    placement: Placement = field(default_factory=Placement)
    images: Images = field(default_factory=Images)

    def options(self) -> Options:
        """Returns how to compile a pipeline.

        Raises:
            UserError: A setting is none of its values.
        """
        settings = self.settings
        return Options(
            _one_of(Serving, settings.serving, self.origins["serving"]),
            parse_engines(settings.engine),
            _one_of(Backend, settings.backend, self.origins["backend"]),
            self.placement,
            self.images,
        )

    def credential(self) -> Credential | None:
        """Returns the token to ask with: a flag's file, the environment's, a file's, the pod's own, or none.

        Raises:
            UserError: A named file cannot be read, or what stands there cannot be a token.
        """
        given = self.origins["token_file"]
        if self.settings.token_file and (given.startswith("--") or not os.environ.get(TOKEN_VARIABLE)):
            return _read_token(Path(self.settings.token_file), f"{self.settings.token_file} ({given})")
        if os.environ.get(TOKEN_VARIABLE):
            return _checked(os.environ[TOKEN_VARIABLE], TOKEN_VARIABLE)
        projected = Path(os.environ.get(PROJECTED_TOKEN_VARIABLE) or PROJECTED_TOKEN)
        return _read_token(projected, f"{projected} (this pod's)") if projected.is_file() else None

    def endpoint(self) -> str:
        """Returns the URL to ask, without a slash at its end; within a cluster there is a default.

        Raises:
            UserError: There is none, or it is no http(s) URL, or it holds a password.
        """
        endpoint = self.settings.endpoint
        if not endpoint and os.environ.get("KUBERNETES_SERVICE_HOST"):
            endpoint = IN_CLUSTER_ENDPOINT
        if not endpoint:
            raise UserError(
                "where is Kubeflow? Set endpoint in gridbox.toml, GRIDBOX_ENDPOINT or --endpoint, for example "
                "http://localhost:8080 after: kubectl -n kubeflow port-forward svc/ml-pipeline-ui 8080:80"
            )
        parts = urlsplit(endpoint)
        if "@" in parts.netloc:
            raise UserError("endpoint: a URL is no place for a password; use token_file or GRIDBOX_TOKEN")
        if parts.scheme not in ("http", "https") or not parts.hostname or parts.query:
            raise UserError(f"endpoint {endpoint}: write it like https://kubeflow.example.com/pipeline")
        return endpoint.partition("#")[0].rstrip("/")


def load(flags: Mapping[str, Any] | None = None, folder: Path | None = None) -> Configuration:
    """Reads the settings.

    Args:
        flags: By name, what was said on the command line; None and the empty text count as unsaid.
        folder: Where the search for the file begins; by default the working directory.

    Raises:
        UserError: The file cannot be read, or it or a variable holds what is no setting.
    """
    values: dict[str, Any] = {}
    origins = {each.name: "default" for each in fields(Settings)}
    placement, images = Placement(), Images()
    file = find_file(folder or Path.cwd())
    if file:
        document = _read_file(file)
        placement = read_table(Placement, document.pop(PLACEMENT, {}), PLACEMENT, str(file))
        images = read_table(Images, document.pop(IMAGES, {}), IMAGES, str(file))
        for name, value in _from_document(file, document).items():
            values[name], origins[name] = value, str(file)
    for each in fields(Settings):
        variable = PREFIX + each.name.upper()
        if text := os.environ.get(variable):
            values[each.name], origins[each.name] = _converted(text, each.name, variable), variable
        said = (flags or {}).get(each.name)
        if said not in (None, ""):
            values[each.name], origins[each.name] = said, "--" + each.name.replace("_", "-")
    for name in _PATHS:
        if values.get(name):
            values[name] = str(Path(values[name]).expanduser())
    return Configuration(Settings(**values), origins, placement, images)


def find_file(folder: Path) -> Path | None:
    """Returns the settings file for work in a folder, or None."""
    home = Path(os.environ.get("XDG_CONFIG_HOME") or "~/.config").expanduser() / "gridbox"
    absolute = folder.absolute()
    places = (place / FILE_NAME for place in (absolute, *absolute.parents, home))
    return next((place for place in places if place.is_file()), None)


def _read_file(file: Path) -> dict[str, Any]:
    try:
        document: dict[str, Any] = tomllib.loads(file.read_text(encoding="utf-8"))
    except OSError as error:
        raise UserError(f"{file}: cannot be read: {error.strerror}") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        # The text may hold a secret in the wrong place: say where, not what.
        raise UserError(f"{file}: this is no TOML: {_position(error)}") from error
    return document


def _from_document(file: Path, document: Mapping[str, Any]) -> dict[str, Any]:
    values = {name: _from_file(file, name, value) for name, value in document.items()}
    paths = {name: str(file.parent / Path(str(values[name])).expanduser()) for name in _PATHS if values.get(name)}
    return values | paths


def _one_of(kind: type[Choice], text: str, origin: str) -> Choice:
    try:
        return kind(text)
    except ValueError as error:
        raise UserError(f"{kind.__name__.lower()} {text} ({origin}): must be {' or '.join(kind)}") from error


def _position(error: Exception) -> str:
    return str(error).rpartition("(")[2].rstrip(")") if "(at" in str(error) else "it is not UTF-8"


def _from_file(file: Path, name: str, value: object) -> object:
    known = {each.name: type(each.default) for each in fields(Settings)}
    if name not in known:
        if any(word in name.lower() for word in _SECRETS):
            raise UserError(f"{file}: {name}: no secret belongs in this file; name a token_file, or set GRIDBOX_TOKEN")
        raise UserError(f"{file}: {name}: there is no such setting; {nearest(name, known)}")
    if known[name] is float and isinstance(value, int) and not isinstance(value, bool):
        value = float(value)
    if not isinstance(value, known[name]):
        raise UserError(f"{file}: {name}: write a {'number' if known[name] is float else 'text in quotes'}")
    return _positive(value, f"{file}: {name}")


def _converted(text: str, name: str, origin: str) -> object:
    if not isinstance(next(each.default for each in fields(Settings) if each.name == name), float):
        return text
    try:
        return _positive(float(text), origin)
    except ValueError as error:
        raise UserError(f"{origin}: must be a number of seconds") from error


def _positive(value: object, origin: str) -> object:
    if isinstance(value, float) and not 0 < value < float("inf"):
        raise UserError(f"{origin}: must be a number of seconds above 0")
    return value


def _read_token(file: Path, origin: str) -> Credential:
    try:
        return _checked(file.read_text(encoding="utf-8"), origin)
    except OSError as error:
        raise UserError(f"token file {origin}: cannot be read: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise UserError(f"token file {origin}: this is no text") from error


def _checked(text: str, origin: str) -> Credential:
    """Checks a token without ever saying it: it goes into a header, so it must be one word of visible ASCII."""
    token = text.strip()
    if not token or any(not "!" <= letter <= "~" for letter in token):
        raise UserError(f"{origin}: this is no bearer token (one word, without spaces or line breaks)")
    return Credential(origin, token)
