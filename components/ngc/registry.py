"""The part of NGC's HTTPS API that lists and downloads the files of a model version.

The key comes from `NGC_API_KEY` and is sent to NGC's two hosts only: as the password of a token request, or, if it is a
personal one (`nvapi-…`), as the bearer token. Files lie on other hosts under signed URLs, which need no key. Without a
key access is that of a guest, which suffices for most of TAO's models.

`NGC_ENDPOINT` and `NGC_AUTH_ENDPOINT` name other hosts, for a proxy or a test.

Source of the URLs: NVIDIA's `tao_core` (token) and public download scripts (files). That guests may list files, as they
may download them, is inferred.
"""

import base64
import binascii
import http.client
import json
import os
import re
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from components.progress import Download
from components.step import UserError
from components.store import RETRIED_STATUS, RETRY, RetryPolicy, TransientError, check_inside, fetch, retried

KEY = "NGC_API_KEY"
_ENDPOINTS = {"NGC_ENDPOINT": "https://api.ngc.nvidia.com", "NGC_AUTH_ENDPOINT": "https://authn.nvidia.com"}
_PERSONAL = "nvapi-"
_LOCAL_HOSTS = ("localhost", "127.0.0.1", "::1")
_SOURCE = re.compile(r"(?P<org>[\w.-]+)/(?:(?P<team>[\w.-]+)/)?(?P<model>[\w.-]+):(?P<version>[\w.-]+)")
_PAGE_SIZE = 100


@dataclass(frozen=True, slots=True)
class ModelVersion:
    """A version of a model in the registry; `team` may be empty."""

    org: str
    team: str
    model: str
    version: str

    @classmethod
    def parse(cls, source: str) -> "ModelVersion":
        """Reads `org/team/model:version` or `org/model:version`.

        Raises:
            UserError: It is neither.
        """
        match = _SOURCE.fullmatch(source)
        if not match:
            raise UserError(f"{source}: write org/team/model:version, for example nvidia/tao/facenet:unpruned_v2.0")
        return cls(match["org"], match["team"] or "", match["model"], match["version"])

    def __str__(self) -> str:
        return f"{'/'.join(filter(None, (self.org, self.team, self.model)))}:{self.version}"

    @property
    def page(self) -> str:
        """The web page of the model and its licence."""
        team = f"/teams/{self.team}" if self.team else ""
        return f"https://catalog.ngc.nvidia.com/orgs/{self.org}{team}/models/{self.model}"


@dataclass(frozen=True, slots=True)
class RemoteFile:
    """A file of a model version: its path in it, bytes, and SHA-256 in hexadecimal (empty if NGC names none)."""

    path: str
    size: int
    sha256: str


class Registry:
    """NGC, asked for one model version."""

    def __init__(self, version: ModelVersion, retry: RetryPolicy = RETRY) -> None:
        """Takes key and hosts from the environment; sends nothing.

        Raises:
            UserError: A host in the environment is not reached by https.
        """
        self._version = version
        self._retry = retry
        self._key = os.environ.get(KEY, "").strip()  # mounted secrets often end with a line break
        self._api, self._authn = (_endpoint(name, default) for name, default in _ENDPOINTS.items())
        self._bearer = self._key if self._key.startswith(_PERSONAL) else ""

    @property
    def is_guest(self) -> bool:
        """Whether there is no key."""
        return not self._key

    def files(self) -> list[RemoteFile]:
        """Lists the version's files.

        Raises:
            UserError: There is no such version, NGC denies access, or its answer cannot be read.
        """
        of, found = self._version, list[RemoteFile]()
        if self.is_guest:
            base = f"{self._api}/v2/models/{'/'.join(filter(None, (of.org, of.team, of.model)))}"
        else:
            base = f"{self._api}/v2/{_path(of)}/models/{of.model}"
        for page in range(10_000):
            url = f"{base}/versions/{of.version}/files?page-number={page}&page-size={_PAGE_SIZE}"
            answer = self._json(url)
            try:
                listed = [_remote_file(entry) for entry in answer["modelFiles"]]
                total = int((answer.get("paginationInfo") or {}).get("totalResults") or 0)
            except (KeyError, TypeError, ValueError, binascii.Error) as error:
                raise UserError(f"{of}: NGC's list of files cannot be read ({error!r}); try again later") from error
            found += listed
            if not listed or len(found) >= total:
                break
        for file in found:
            check_inside(file.path, str(of))
        return found

    def fetch(self, file: RemoteFile, destination: Path, sha256: str = "") -> None:
        """Downloads a file, or resumes an earlier download.

        Args:
            file: One of `files`.
            destination: The file to write.
            sha256: The expected SHA-256, hexadecimal, in addition to the one that NGC names.

        Raises:
            UserError: NGC denies access, the download fails, or the content is not the expected one.
        """
        known = file.sha256 or sha256.lower()
        if sha256 and known != sha256.lower():
            raise UserError(f"{self._version}: NGC has {file.path} with the SHA-256 {known}, expected {sha256.lower()}")
        with Download(f"{file.path} of {self._version}") as progress:
            fetch(self._location(file.path), destination, known, progress.report, self._retry)

    def _location(self, path: str) -> str:
        """Returns the signed URL of a file, from NGC's answer or its redirect."""
        of, query = self._version, urllib.parse.urlencode({"path": path})
        if self.is_guest:
            url = f"{self._api}/v2/models/{_path(of)}/{of.model}/{of.version}/files?redirect=true&{query}"
        else:
            url = f"{self._api}/v2/{_path(of)}/models/{of.model}/{of.version}/files?{query}"
        answer = self._json(url)
        urls = answer.get("urls") or [""]
        if not isinstance(urls[0], str) or not _is_safe(urls[0]):
            raise UserError(f"{of}: NGC names no https address for {path}; try again later")
        return urls[0]

    def _json(self, url: str) -> Mapping[str, Any]:
        """Requests a JSON object; a redirect is returned as the object `{"urls": [location]}`."""
        headers = {"Accept": "application/json"}
        if not self.is_guest:
            self._bearer = self._bearer or self._token()
            headers["Authorization"] = f"Bearer {self._bearer}"
        return self._ask(url, headers)

    def _token(self) -> str:
        of = self._version
        scopes = [f"group/ngc:{of.org}", *([f"group/ngc:{of.org}/{of.team}"] if of.team else [])]
        query = urllib.parse.urlencode({"service": "ngc", "scope": scopes}, doseq=True)
        password = base64.b64encode(f"$oauthtoken:{self._key}".encode()).decode()
        headers = {"Accept": "application/json", "Authorization": f"Basic {password}"}
        token = self._ask(f"{self._authn}/token?{query}", headers).get("token")
        if not isinstance(token, str) or not token:
            raise UserError(f"{of}: NGC gives no token for the key in {KEY}; make a new key")
        return token

    def _ask(self, url: str, headers: Mapping[str, str]) -> Mapping[str, Any]:
        def once() -> Mapping[str, Any]:
            request = urllib.request.Request(url, headers={"User-Agent": "gridbox", **headers})
            try:
                with _OPENER.open(request, timeout=self._retry.timeout) as response:
                    answer = json.load(response)
            except urllib.error.HTTPError as error:
                with error:
                    if error.code in (301, 302, 303, 307, 308):
                        return {"urls": [error.headers.get("Location", "")]}
                    if error.code in RETRIED_STATUS:
                        raise TransientError(f"NGC answers {error.code} {error.reason}") from None
                    # Not `from error`: its text comes from the server.
                    raise self._refusal(error.code, error.read(1 << 16)) from None
            except (OSError, http.client.HTTPException) as error:
                raise TransientError(f"NGC cannot be reached ({getattr(error, 'reason', None) or error})") from error
            except ValueError:
                raise UserError(f"{self._version}: NGC's answer is no JSON; is there a proxy in between?") from None
            if not isinstance(answer, dict):
                raise UserError(f"{self._version}: NGC's answer is of an unknown form; try again later")
            return answer

        return retried(once, str(self._version), self._retry)

    def _refusal(self, code: int, body: bytes) -> UserError:
        """Returns the error for an answer that is not retried."""
        of, said = self._version, self._description(body)
        if code in (401, 403) and self.is_guest:
            return UserError(f"{of}: NGC gives it to no guest ({code}{said}); set {KEY} to a key of your NGC account")
        if code == 401:
            return UserError(
                f"{of}: NGC refuses the key in {KEY} (401{said}); make a new one at https://org.ngc.nvidia.com/setup"
            )
        if code == 403:
            return UserError(
                f"{of}: NGC denies access (403{said}); accept the model's licence at {of.page} as the key's owner, and "
                f"see that the key covers the organisation {of.org}"
            )
        if code == 404:
            return UserError(f"{of}: NGC has no such model or version (404{said}); look at {of.page}")
        return UserError(f"{of}: NGC answers {code}{said}")

    def _description(self, body: bytes) -> str:
        """Returns NGC's own description, on one line and without the key."""
        try:
            text = str(json.loads(body)["requestStatus"]["statusDescription"])
        except (ValueError, KeyError, TypeError):
            return ""
        for secret in filter(None, (self._key, self._bearer)):
            text = text.replace(secret, "***")
        return f": {' '.join(text.split())[:200]}"


class _NoRedirect(urllib.request.HTTPRedirectHandler):
    """Follows no redirect: urllib would send the key to the next host."""

    def redirect_request(
        self,
        req: urllib.request.Request,
        fp: IO[bytes],
        code: int,
        msg: str,
        headers: http.client.HTTPMessage,
        newurl: str,
    ) -> None:
        """Makes no request."""


_OPENER = urllib.request.build_opener(_NoRedirect)


def _endpoint(name: str, default: str) -> str:
    url = (os.environ.get(name) or default).rstrip("/")
    if not _is_safe(url) or set(url) & {"?", "#"}:
        raise UserError(f"{name}: must start with https:// (http:// only on this machine) and hold no user, ? and #")
    return url


def _is_safe(url: str) -> bool:
    """Returns whether a URL is encrypted, or stays on this machine."""
    parts = urllib.parse.urlsplit(url)
    return (
        bool(parts.hostname)
        and "@" not in parts.netloc
        and (parts.scheme == "https" or (parts.scheme == "http" and parts.hostname in _LOCAL_HOSTS))
    )


def _path(of: ModelVersion) -> str:
    return f"org/{of.org}" + (f"/team/{of.team}" if of.team else "")


def _remote_file(entry: Mapping[str, Any]) -> RemoteFile:
    checksum = base64.b64decode(entry.get("sha256_base64") or "", validate=True)
    return RemoteFile(str(entry["path"]), int(entry.get("sizeInBytes") or 0), checksum.hex())
