"""Ask a running OpenAI-compatible server for log-probabilities, with and without an adapter.

Three ways of naming an adapter are known: a model name of its own (vLLM, SGLang), or, in llama.cpp's server, a list of
adapters with scales in every request, which ``GET /lora-adapters`` announces.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any
from urllib.error import HTTPError, URLError
from urllib.parse import urlsplit
from urllib.request import Request, urlopen

from loratlas.errors import RequestError

TIMEOUT = 60.0
"""Seconds that an answer may take."""

TOP = 10
"""Log-probabilities that are asked for."""

_LARGEST = 10_000_000  # bytes of an answer

Logprobs = dict[str, float]
"""Text of a token → its log-probability in nats, of the likeliest next tokens."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Server:
    """A server and how its adapter is switched.

    Args:
        url: as given, without a slash at its end.
        base: fields of a request for the base alone.
        adapted: fields of a request with the adapter.
    """

    url: str
    base: Mapping[str, Any]
    adapted: Mapping[str, Any]

    def next_token(self, prompt: str, *, adapted: bool) -> Logprobs:
        """Log-probabilities of the likeliest tokens behind a prompt.

        Args:
            prompt: text, sent as it is.
            adapted: with the adapter or without.

        Raises:
            RequestError: no answer, or one without log-probabilities.
        """
        fields = {
            "prompt": prompt,
            "max_tokens": 1,
            "temperature": 0.0,
            "logprobs": TOP,
            **(self.adapted if adapted else self.base),
        }
        return _logprobs(self.url, _call(f"{self.url}/v1/completions", fields))


def open_server(url: str, *, model: str | None = None, base_model: str | None = None) -> Server:
    """Find out how a server names its base and its adapter.

    Args:
        url: ``http://localhost:8000``.
        model: the adapter's name there. base_model: the base's; both are asked for where they are not given.

    Raises:
        RequestError: no answer, or names that have to be given.
    """
    parts = urlsplit(url)
    if parts.scheme not in ("http", "https") or not parts.netloc:
        raise RequestError(given=f"--url {url}", found="no address", instead="http://localhost:8000")
    url = url.rstrip("/").removesuffix("/v1")
    names = [
        str(item.get("id")) for item in _call(f"{url}/v1/models").get("data") or () if isinstance(item, dict)
    ]
    loras = _optional(f"{url}/lora-adapters")
    if isinstance(loras, list) and loras:
        entries = [{"id": item.get("id", i)} for i, item in enumerate(loras)]
        # Keys and values that the base has left in the cache would answer for the adapter.
        name = {"cache_prompt": False, **({"model": names[0]} if names else {})}
        return Server(
            url=url,
            base={**name, "lora": [{**entry, "scale": 0.0} for entry in entries]},
            adapted={**name, "lora": [{**entry, "scale": float(i == 0)} for i, entry in enumerate(entries)]},
        )
    if model is None or base_model is None:
        if len(names) != 2:
            raise RequestError(
                given=f"--url {url}",
                found=f"models {', '.join(names[:8]) or 'none'}, of which neither base nor adapter is clear",
                instead="--served-adapter NAME --served-base NAME",
            )
        base_model, model = names
    for name in (model, base_model):
        if names and name not in names:
            raise RequestError(
                given=f"the served model {name!r}",
                found=f"the server has {', '.join(names[:8])}",
                instead=names[-1],
            )
    return Server(url=url, base={"model": base_model}, adapted={"model": model})


def difference(one: Logprobs, other: Logprobs) -> float:
    """Largest difference over the tokens that both list, in nats; infinite where they share none.

    >>> difference({"a": -0.5, "b": -2.0}, {"a": -0.75, "c": -3.0})
    0.25
    """
    shared = one.keys() & other.keys()
    return max((abs(one[token] - other[token]) for token in shared), default=math.inf)


def _logprobs(url: str, answer: Any) -> Logprobs:
    try:
        given = answer["choices"][0]["logprobs"]
        listed = given["content"][0]["top_logprobs"] if "content" in given else given["top_logprobs"][0]
        pairs = listed.items() if isinstance(listed, dict) else ((e["token"], e["logprob"]) for e in listed)
        logprobs = {str(token): float(value) for token, value in pairs}
        if not logprobs:
            raise ValueError("an empty list")
    except (KeyError, IndexError, TypeError, ValueError) as error:
        raise RequestError(
            given=f"--url {url}",
            found=f"an answer of /v1/completions without log-probabilities ({type(error).__name__})",
            instead="a server that answers `logprobs`, as vLLM, SGLang and llama.cpp do",
        ) from error
    return logprobs


def _optional(url: str) -> Any:
    try:
        return _call(url)
    except RequestError:
        return None


def _call(url: str, fields: Mapping[str, Any] | None = None) -> Any:
    body = None if fields is None else json.dumps(fields).encode("utf-8")
    request = Request(url, data=body, headers={"Content-Type": "application/json"})
    try:
        with urlopen(request, timeout=TIMEOUT) as answer:
            return json.loads(answer.read(_LARGEST).decode("utf-8"))
    except HTTPError as error:
        raise _silent(url, f"it answered {error.code} {error.reason}") from error
    except (URLError, OSError) as error:
        raise _silent(url, f"no answer ({getattr(error, 'reason', error)})") from error
    except ValueError as error:
        raise _silent(url, "an answer that is no JSON") from error


def _silent(url: str, found: str) -> RequestError:
    return RequestError(
        given=url, found=found, instead="the address of an OpenAI-compatible server that runs"
    )
