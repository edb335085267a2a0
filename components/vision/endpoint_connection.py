"""A connection to a Triton server: where it is, how it is asked, and what its failures mean in one line."""

import asyncio
import contextlib
import importlib
import os
import ssl
import uuid
from collections.abc import Mapping
from dataclasses import dataclass
from multiprocessing.shared_memory import SharedMemory
from pathlib import Path
from types import MappingProxyType
from typing import Any, Literal
from urllib.parse import urlsplit

import numpy as np

from components.step import StageError, UserError

Protocol = Literal["http", "grpc"]

_SCHEMES: dict[str, tuple[Protocol, bool, int]] = {
    "http": ("http", False, 80),
    "https": ("http", True, 443),
    "grpc": ("grpc", False, 8001),
    "grpcs": ("grpc", True, 443),
}
_TRITON_PORTS = {"http": 8000, "grpc": 8001}
# Asking again is safe: an inference changes nothing on the server. Only what a restarting server or a closed
# connection explains is asked again, and only where the server has answered before.
_RETRY_SECONDS = (0.2, 0.8)
_UNAVAILABLE = {"429", "502", "503", "StatusCode.UNAVAILABLE"}
# What a server that is no Triton gets as its error: by gRPC, and by HTTP from `tritonclient`, which wants JSON.
_UNIMPLEMENTED, _UNREADABLE = "StatusCode.UNIMPLEMENTED", "while decoding the response"
# Triton's own limit of a message, the largest that gRPC knows.
_UNLIMITED = 2**31 - 1
_SMALLEST_REGION = 1 << 18


class NoServerError(UserError):
    """Nothing listens at the address."""


@dataclass(frozen=True, slots=True)
class Address:
    """Where a server is.

    Attributes:
        protocol: How it is asked.
        location: Host and port, for HTTP also a base path.
        secure: Whether by TLS.
    """

    protocol: Protocol
    location: str
    secure: bool

    @classmethod
    def parse(cls, url: str, protocol: Protocol = "http") -> "Address":
        """Reads `host:port`, asked by `protocol`, or a URL of scheme http, https, grpc or grpcs (gRPC with TLS).

        Raises:
            UserError: It is neither.
        """
        try:
            parts = urlsplit(url if "://" in url else f"//{url}")
            port = parts.port
        except ValueError as error:
            raise UserError(f"{url!r}: {error}; write host:port, http://…, https://…, grpc://… or grpcs://…") from error
        if not parts.hostname or parts.scheme not in ("", *_SCHEMES) or parts.query or parts.fragment:
            raise UserError(f"{url!r} is no server; write host:port, http://…, https://…, grpc://… or grpcs://…")
        if parts.username or parts.password:
            raise UserError(f"{parts.hostname}: a URL with a password ends in logs; leave it out")
        asked, secure, usual = _SCHEMES.get(parts.scheme, (protocol, False, _TRITON_PORTS[protocol]))
        path = parts.path.rstrip("/")
        if path and asked == "grpc":
            raise UserError(f"{url!r}: gRPC knows no paths; write grpc://host:port")
        host = f"[{parts.hostname}]" if ":" in parts.hostname else parts.hostname
        return cls(asked, f"{host}:{port or usual}{path}", secure)

    def __str__(self) -> str:
        return f"{self.protocol}{'s' if self.secure else ''}://{self.location}"


class Connection:
    """Calls of `tritonclient`'s asyncio client, with a time limit, retries where they are safe, and clear errors."""

    def __init__(self, address: Address, host: str, certificates: Path | None, timeout: float) -> None:
        """Takes what `Endpoint` was given; `open` connects."""
        self.address = address
        self._host, self._certificates, self._timeout = host, certificates, timeout
        self._answered = False
        self._client: Any = None
        if address.protocol == "grpc":
            os.environ.setdefault("GRPC_VERBOSITY", "NONE")  # what goes wrong is said here, in one line
        try:
            self._module = importlib.import_module(f"tritonclient.{address.protocol}.aio")
            self._failures = _connection_failures(address.protocol)
        except (ImportError, RuntimeError) as error:
            raise UserError("asking a Triton server needs its client: pip install 'gridbox[serving]'") from error

    async def open(self) -> None:
        """Makes the client, on the loop on which it is used. Nothing is sent yet."""
        address, certificates = self.address, self._certificates
        if certificates is not None and not certificates.is_file():
            raise UserError(f"{certificates}: no such file of certificates")
        if address.protocol == "http":
            trust: ssl.SSLContext | bool = True
            if address.secure:
                trust = _trust(certificates)
            self._client = self._module.InferenceServerClient(
                address.location, conn_timeout=None, ssl=address.secure, ssl_context=trust
            )
            return
        options: list[tuple[str, object]] = [
            ("grpc.max_send_message_length", _UNLIMITED),
            ("grpc.max_receive_message_length", _UNLIMITED),
        ]
        if self._host:
            options.append(("grpc.default_authority", self._host))
        self._client = self._module.InferenceServerClient(
            address.location, ssl=address.secure, root_certificates=certificates, channel_args=options
        )

    async def close(self) -> None:
        """Closes the connections; a server that is stopped would wait for them."""
        if self._client is not None:
            await self._client.close()

    async def model_config(self, model: str) -> dict[str, Any]:
        """Returns a model's configuration as JSON.

        Raises:
            UserError: Nothing listens there, it is no Triton, or it has no such model.
            StageError: The server fails.
        """
        more = {"as_json": True} if self.address.protocol == "grpc" else {}
        config = await self._call("get_model_config", model, **more)
        return dict(config.get("config", config))

    async def infer(
        self,
        model: str,
        name: str,
        content: bytes,
        region: "Region | None" = None,
        asked: Mapping[str, float] = MappingProxyType({}),
    ) -> Any:  # noqa: ANN401 - an untyped client's result
        """Runs a model whose one input is UINT8 [1, bytes] and returns its `InferResult`.

        Args:
            model: The model.
            name: The input.
            content: What it gets; with `region`, it already lies there.
            region: A registered region of shared memory.
            asked: Parameters of the request.

        Raises:
            RefusedError: The server answers, and refuses this request.
            StageError: The server fails.
        """
        tensor = self._module.InferInput(name, [1, len(content)], "UINT8")
        if region is not None:
            tensor.set_shared_memory(region.name, len(content))
        else:
            tensor.set_data_from_numpy(np.frombuffer(content, np.uint8)[None])
        # As text: KServe's protocol knows no fractions among the parameters.
        more = {"parameters": {key: f"{value:.9g}" for key, value in asked.items()}} if asked else {}
        return await self._call("infer", model, [tensor], **more)

    async def register(self, region: "Region") -> None:
        """Tells the server of a region of shared memory.

        Raises:
            UserError: The server does not see this machine's shared memory.
        """
        try:
            await self._call("register_system_shared_memory", region.name, f"/{region.name}", region.size)
        except RefusedError as error:
            raise UserError(f"{self.address}: shared memory needs a server on this machine: {error}") from error

    async def unregister(self, region: "Region") -> None:
        """Tells the server that a region goes away."""
        await self._call("unregister_system_shared_memory", region.name)

    async def _call(self, method: str, *arguments: object, **more: object) -> Any:  # noqa: ANN401 - untyped client
        # A client may add to the headers that it is given.
        if self._host and self.address.protocol == "http":
            more["headers"] = {"Host": self._host}
        for wait in (*_RETRY_SECONDS, None):
            try:
                async with asyncio.timeout(self._timeout):
                    answer = await getattr(self._client, method)(*arguments, **more)
            except Exception as error:
                if wait is None or not (self._answered and self._may_pass(error)):
                    raise self._explained(error) from error
            else:
                self._answered = True
                return answer
            await asyncio.sleep(wait)
        raise AssertionError("the last attempt returns or raises")

    def _may_pass(self, error: Exception) -> bool:
        return isinstance(error, self._failures) or _status(error) in _UNAVAILABLE

    def _explained(self, error: Exception) -> Exception:
        status, reason = _status(error), _reason(error)
        if isinstance(error, TimeoutError):
            return StageError(f"{self.address}: no answer within {self._timeout:g} s")
        if self._may_pass(error) and self._answered:
            return StageError(f"{self.address}: the server is gone or refuses work ({reason}); see its log")
        if self._may_pass(error) and self.address.secure:
            return UserError(
                f"no Triton with TLS at {self.address} ({reason}); is the authority's certificate missing?"
            )
        if self._may_pass(error):
            return NoServerError(f"no Triton at {self.address} ({reason}); start one with `gridbox serve`")
        if not self._answered and (not status or status == _UNIMPLEMENTED or _UNREADABLE in reason):
            hint = "" if self._host else "; is it the port of another protocol, or a gateway that asks for a host name?"
            return UserError(
                f"{self.address}: something answers, but it is no Triton ({status or type(error).__name__}){hint}"
            )
        if not status:
            return StageError(f"{self.address}: {type(error).__name__}: {reason}")
        return RefusedError(reason)


class RefusedError(Exception):
    """The server answers, and says why it does not do what it was asked for."""


class Region:
    """A piece of this machine's shared memory that a server on it may be told of."""

    def __init__(self, size: int) -> None:
        """Makes it `size` bytes large."""
        self.name, self.size = f"gridbox-image-{uuid.uuid4().hex[:16]}", size
        self._memory = SharedMemory(self.name, create=True, size=size)

    def write(self, content: bytes) -> None:
        """Puts bytes at its beginning."""
        assert self._memory.buf is not None
        self._memory.buf[: len(content)] = content

    def remove(self) -> None:
        """Frees it."""
        self._memory.close()
        self._memory.unlink()


class Regions:
    """Regions of shared memory that requests take turns to use; there are no more than requests in flight."""

    def __init__(self, connection: Connection) -> None:
        """Takes the connection whose server is told of them."""
        self._connection = connection
        self._made: list[Region] = []
        self._free: list[Region] = []

    async def take(self, size: int) -> Region:
        """Returns a registered region of at least `size` bytes."""
        if self._free:
            region = max(self._free, key=lambda region: region.size)
            self._free.remove(region)
            if region.size >= size:
                return region
            await self._discard(region)
        region = Region(max(_SMALLEST_REGION, 1 << (size - 1).bit_length()))
        self._made.append(region)
        await self._connection.register(region)
        return region

    def give_back(self, region: Region) -> None:
        """Takes back a region whose request has been answered; the server may still read those of others."""
        self._free.append(region)

    async def _discard(self, region: Region) -> None:
        self._made.remove(region)
        try:
            await self._connection.unregister(region)
        finally:
            region.remove()

    async def close(self) -> None:
        """Frees all regions."""
        while self._made:
            # A server that is gone has forgotten them.
            with contextlib.suppress(UserError, StageError, RefusedError):
                await self._discard(self._made[-1])


def _connection_failures(protocol: Protocol) -> tuple[type[Exception], ...]:
    """Returns what is raised when a connection cannot be made or breaks; gRPC reports both as a status."""
    if protocol == "grpc":
        return ()
    aiohttp = importlib.import_module("aiohttp")
    return (aiohttp.ClientConnectionError, aiohttp.ClientPayloadError)


def _trust(certificates: Path | None) -> ssl.SSLContext:
    try:
        return ssl.create_default_context(cafile=certificates)
    except (OSError, ssl.SSLError) as error:
        raise UserError(f"{certificates}: not a file of certificates in PEM ({error})") from error


def _status(error: Exception) -> str:
    """Returns the status of an answer (HTTP's number, gRPC's name), empty when there was no answer."""
    status = getattr(error, "status", None)
    return str(status() or "") if callable(status) else ""


def _reason(error: Exception) -> str:
    """Returns what is behind an error, in one line."""
    message = getattr(error, "message", None)
    if callable(message):
        # gRPC tells the whole way to the last attempt.
        text = str(message()).rpartition("last error: ")[-1]
    elif isinstance(error, OSError) and error.errno and error.strerror:
        text = os.strerror(error.errno) if error.errno > 0 else error.strerror
    else:
        text = str(error)
    return " ".join(text.split()) or type(error).__name__
