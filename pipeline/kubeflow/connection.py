"""HTTP to the Kubeflow Pipelines API: tokens, authorities, tries, and one clear line for everything that goes wrong.

The generated client of kfp is not used: it asks the server in its constructor, takes most of a second to import, and
follows redirects to a login page whose HTML it then cannot parse.
"""

import functools
import ipaddress
import json
import ssl
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any
from urllib.parse import urlencode, urlsplit
from urllib.request import getproxies, proxy_bypass

import urllib3
from urllib3.exceptions import (
    ConnectTimeoutError,
    HTTPError,
    LocationParseError,
    MaxRetryError,
    NewConnectionError,
    ProxyError,
    ReadTimeoutError,
    SSLError,
)

from components.step import StageError, UserError
from pipeline.settings import Configuration, Credential

Document = dict[str, Any]

CONNECT_SECONDS = 10.0
# A call is made again where another try may help and the first one can have changed nothing.
TRIES = 4
PAUSE_SECONDS = 0.5
LONGEST_PAUSE = 20
RETRIED_STATUS = (429, 502, 503, 504)
MESSAGE_LETTERS = 300


class Refused(UserError):
    """The server answers, but not with what was asked for, and asking differently may help.

    Attributes:
        status: Of HTTP.
    """

    def __init__(self, message: str, status: int) -> None:
        super().__init__(message)
        self.status = status


class Unavailable(StageError):
    """The server cannot be reached, or fails."""


class Connection:
    """Asks one server. Nothing is asked before the first call."""

    def __init__(self, configuration: Configuration) -> None:
        """Prepares a connection.

        Raises:
            UserError: There is no endpoint, the token or the certificates cannot be read, or the token would travel
                unencrypted through a network.
        """
        self.endpoint = configuration.endpoint()
        self._configuration = configuration
        self._timeout = configuration.settings.timeout
        self._check_secrecy(configuration.credential())
        self._pool = _pool(self.endpoint, configuration.settings.ca_file)

    def json(
        self,
        method: str,
        path: str,
        query: Mapping[str, str | int] | None = None,
        body: Document | None = None,
        repeatable: bool = False,
    ) -> Document:
        """Makes a call whose answer is a JSON object.

        Args:
            method: Of HTTP.
            path: Below the endpoint, as `apis/v2beta1/runs`.
            query: Its parameters; empty texts are left out.
            body: The object to send.
            repeatable: Making the call twice does what making it once does. GET always counts as repeatable.

        Raises:
            Refused: The server answers with a status from 300 to 499, or with something that is no JSON.
            Unavailable: The server cannot be reached or fails.
        """
        content = None if body is None else json.dumps(body, allow_nan=False).encode()
        headers = {} if body is None else {"Content-Type": "application/json"}
        return self._object(self._request(method, path, query, repeatable, headers, body=content), path)

    def upload(self, path: str, query: Mapping[str, str | int], name: str, content: bytes) -> Document:
        """Posts a file as the form field `uploadfile`; see `json` for the rest."""
        form = {"uploadfile": (name, content, "application/octet-stream")}
        return self._object(self._request("POST", path, query, False, {}, fields=form), path)

    def lines(self, path: str, query: Mapping[str, str | int]) -> Iterator[str]:
        """Yields the lines of a text as they arrive; see `json` for errors."""
        answer = self._request("GET", path, query, True, {}, preload_content=False)
        try:
            yield from _lines(answer)
        except (HTTPError, OSError) as error:
            raise Unavailable(f"{self.endpoint}: the log broke off: {_reason(error)}") from error
        finally:
            answer.release_conn()

    def _request(
        self,
        method: str,
        path: str,
        query: Mapping[str, str | int] | None,
        repeatable: bool,
        headers: dict[str, str],
        **arguments: Any,  # noqa: ANN401 - urllib3's
    ) -> urllib3.BaseHTTPResponse:
        credential = self._configuration.credential()  # for each request: projected tokens are renewed
        if credential:
            headers["Authorization"] = f"Bearer {credential.secret}"
        given = {name: value for name, value in (query or {}).items() if value != ""}
        url = f"{self.endpoint}/{path}" + (f"?{urlencode(given)}" if given else "")
        try:
            answer = self._pool.request(
                method,
                url,
                headers={"Accept": "application/json, text/plain", **headers},
                timeout=urllib3.Timeout(connect=min(CONNECT_SECONDS, self._timeout), read=self._timeout),
                retries=_retries(repeatable or method == "GET"),
                redirect=False,
                **arguments,
            )
        except (HTTPError, OSError) as error:
            raise self._unreachable(error, method) from error
        if answer.status >= 300 or _is_page(answer):
            raise self._refusal(answer, credential)
        return answer

    def _object(self, answer: urllib3.BaseHTTPResponse, path: str) -> Document:
        try:
            document = json.loads(answer.data or b"{}")
        except ValueError:
            document = None
        if not isinstance(document, dict):
            raise Refused(f"{self.endpoint}/{path}: answers with something that is no JSON object; {_WRONG}", 0)
        return document

    def _check_secrecy(self, credential: Credential | None) -> None:
        parts = urlsplit(self.endpoint)
        if credential and parts.scheme == "http" and not _is_near(parts.hostname or ""):
            raise UserError(
                f"{self.endpoint}: the token ({credential.origin}) would travel unencrypted; use https:// or a "
                "port-forward to localhost"
            )

    def _unreachable(self, error: Exception, method: str) -> Exception:
        cause = error.reason if isinstance(error, MaxRetryError) and error.reason else error
        if isinstance(cause, ProxyError):
            return Unavailable(f"{self.endpoint}: the proxy does not help: {_reason(cause)}; see HTTPS_PROXY, NO_PROXY")
        if isinstance(cause, SSLError):
            return UserError(f"{self.endpoint}: {_tls_problem(cause)}")
        if isinstance(cause, LocationParseError):
            return UserError(f"{self.endpoint}: this is no URL that can be asked")
        is_slow = isinstance(cause, ReadTimeoutError | ConnectTimeoutError) and not isinstance(
            cause, NewConnectionError
        )
        said = (
            f"no answer within {self._timeout:g} s (setting timeout)"
            if is_slow
            else f"cannot be reached: {_reason(cause)}"
        )
        local = _is_loopback(urlsplit(self.endpoint).hostname or "")
        hint = "; is the port-forward running? kubectl -n kubeflow port-forward svc/ml-pipeline-ui 8080:80"
        again = "" if method == "GET" else "; the call may have arrived, so look (gridbox list) before you repeat it"
        return Unavailable(f"{self.endpoint}: {said}{hint if local else ''}{again}")

    def _refusal(self, answer: urllib3.BaseHTTPResponse, credential: Credential | None) -> Exception:
        status = answer.status
        is_html = answer.headers.get("Content-Type", "").startswith("text/html")
        if status == 413:
            return Refused(
                f"{self.endpoint}: what is sent is too large for the server, or for a proxy before it (413); upload "
                "the pipeline from nearer by and submit it with --uploaded, or have the limit raised (nginx: "
                "client_max_body_size)",
                status,
            )
        if status >= 500:
            said = "" if is_html else _said(answer, credential)
            mend = "; it is starting or overloaded, so try again later" if status in RETRIED_STATUS else ""
            return Unavailable(f"{self.endpoint}: the server fails ({status}){said}{mend}")
        if 300 <= status < 400 or is_html:
            token = f"the token ({credential.origin}) does not open it" if credential else "no token was sent"
            return Refused(
                f"{self.endpoint}: a web page, such as a login, answers in place of the API, and {token}; {_WRONG}",
                status if status >= 400 else 401,
            )
        said = _said(answer, credential)
        if status == 401:
            mend = f"renew the token ({credential.origin})" if credential else "set token_file or GRIDBOX_TOKEN"
            return Refused(f"{self.endpoint}: not authenticated (401){said}; {mend}", status)
        if status == 403:
            namespace = self._configuration.settings.namespace
            where = f" in the namespace {namespace}" if namespace else ", and no namespace is set"
            return Refused(
                f"{self.endpoint}: not allowed{where} (403){said}; check the namespace, or have an administrator give "
                "you the role kubeflow-edit there",
                status,
            )
        if status == 404 and _is_unknown_address(answer):
            return Refused(f"{self.endpoint}: there is no Kubeflow Pipelines API v2beta1 here (404); {_WRONG}", 0)
        if status == 404:
            return Refused(f"{self.endpoint}: there is no such thing (404){said}", status)
        if status == 409:
            return Refused(f"{self.endpoint}: it is there already, or has changed meanwhile (409){said}", status)
        return Refused(f"{self.endpoint}: the request is refused ({status}){said}", status)


_WRONG = (
    "check the endpoint: the UI's address (https://host/pipeline), or a port-forward to svc/ml-pipeline-ui that goes "
    "round the login"
)


def _pool(endpoint: str, ca_file: str) -> urllib3.PoolManager:
    options: dict[str, Any] = {}
    if endpoint.startswith("https://"):
        options["ssl_context"] = _ssl_context(ca_file)
    parts = urlsplit(endpoint)
    proxy = getproxies().get(parts.scheme)
    if proxy and not proxy_bypass(parts.hostname or "") and not _is_loopback(parts.hostname or ""):
        return urllib3.ProxyManager(proxy, **options)
    return urllib3.PoolManager(**options)


def _ssl_context(ca_file: str) -> ssl.SSLContext:
    """Trusts the authorities of the system, and those of a file beside them."""
    context = ssl.create_default_context()
    if ca_file:
        try:
            context.load_verify_locations(cafile=ca_file)
        except (OSError, ssl.SSLError) as error:
            known = Path(ca_file).is_file()
            why = "it holds no PEM certificate" if known else "there is no such file"
            raise UserError(f"ca_file {ca_file}: {why}") from error
    return context


def _retries(repeatable: bool) -> urllib3.Retry:
    """Connections that never came about are tried again for every call; answers only where nothing can happen twice."""
    return urllib3.Retry(
        total=TRIES - 1,
        read=2,  # a server that never answers costs the time-out three times, no more
        allowed_methods=None if repeatable else ("GET",),  # empty would mean all of them
        status_forcelist=RETRIED_STATUS,
        backoff_factor=PAUSE_SECONDS,
        backoff_max=LONGEST_PAUSE,
        retry_after_max=LONGEST_PAUSE,
        raise_on_status=False,
    )


def _lines(answer: urllib3.BaseHTTPResponse) -> Iterator[str]:
    rest = b""
    for block in answer.stream(1 << 16):
        *whole, rest = (rest + block).split(b"\n")
        for line in whole:
            yield line.decode("utf-8", errors="replace").rstrip("\r")
    if rest:
        yield rest.decode("utf-8", errors="replace")


def _is_page(answer: urllib3.BaseHTTPResponse) -> bool:
    """Whether a web page was served where the API should be: a login, or the UI's own page for unknown addresses."""
    return answer.status < 300 and answer.headers.get("Content-Type", "").startswith("text/html")


def _is_unknown_address(answer: urllib3.BaseHTTPResponse) -> bool:
    """Whether a 404 is about the address, not about the object: the API tells of its objects in JSON and at length."""
    try:
        return str(json.loads(answer.data).get("message")) == "Not Found"
    except (ValueError, AttributeError):
        return True


def _said(answer: urllib3.BaseHTTPResponse, credential: Credential | None) -> str:
    """Returns the server's own words on one line, without the token should it repeat it."""
    text = answer.data.decode("utf-8", errors="replace")
    try:
        document = json.loads(text)
        words = document.get("message") or document.get("error_message") or document.get("error") or ""
    except (ValueError, AttributeError):
        words = text
    words = " ".join(str(words).split())
    if credential:
        words = words.replace(credential.secret, "***")
    return f": {words[:MESSAGE_LETTERS]}" if words else ""


def _tls_problem(error: SSLError) -> str:
    said = str(error)
    if "WRONG_VERSION_NUMBER" in said or "RECORD_LAYER_FAILURE" in said:
        return "does not speak TLS; does the endpoint begin with http://?"
    if "Hostname mismatch" in said or "IP address mismatch" in said:
        return "the certificate is for another name; use the name that it was made for"
    if "CERTIFICATE_VERIFY_FAILED" in said:
        reason = said.partition("verify failed: ")[2].partition(" (_ssl")[0] or "not trusted"
        return f"the certificate is not trusted ({reason}); name its authority: ca_file, GRIDBOX_CA_FILE or --ca-file"
    return f"no secure connection: {_reason(error)}"


def _reason(error: BaseException) -> str:
    """Returns the innermost reason, without urllib3's description of its own objects."""
    inner = error.__cause__ or (error.args[-1] if error.args and isinstance(error.args[-1], BaseException) else None)
    if isinstance(inner, BaseException):
        return _reason(inner)
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    return " ".join(str(error).rpartition(">: ")[2].split())[:MESSAGE_LETTERS] or type(error).__name__


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


@functools.cache
def _is_near(host: str) -> bool:
    """Whether plain HTTP stays on this machine or inside the cluster."""
    return _is_loopback(host) or host.endswith((".svc", ".svc.cluster.local"))
