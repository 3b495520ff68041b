"""An endpoint with OpenAI's interface for chats: OPENAI_BASE_URL and OPENAI_API_KEY say which one.

The `openai` package (requirements-llm.txt) connects, repeats what failed in passing (429, 5xx, timeouts, no connection)
after growing pauses, and waits as long as the server asks. What leaves this module, answers, errors and log lines, has
been searched for the key.
"""

import logging
import os
import threading
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urlsplit

from dataloaders.quoting import shorten
from preprocess.llm.stages import Messages

LEAST_SECRET = 8  # characters; a shorter key is a placeholder for a server that asks for none
HIDDEN = "(key)"


class EndpointError(OSError):
    """The endpoint cannot be used, after all repetitions; the message is one sentence without the key."""


class RefusedError(ValueError):
    """The endpoint refuses one question, as a content filter does; the message is without the key."""


class Usage:
    """Counts of what was sent and received, as the server states them."""

    def __init__(self) -> None:
        self.calls = self.tokens_in = self.tokens_out = 0
        self._lock = threading.Lock()

    def add(self, stated: Any) -> None:
        """Count an answer; some servers state no tokens."""
        with self._lock:
            self.calls += 1
            self.tokens_in += getattr(stated, "prompt_tokens", None) or 0
            self.tokens_out += getattr(stated, "completion_tokens", None) or 0


@dataclass(frozen=True)
class Key:
    """The secret, which is in no representation of this object."""

    value: str = field(repr=False)

    def hide(self, text: str) -> str:
        """Return the text without the key."""
        return text.replace(self.value, HIDDEN) if len(self.value) >= LEAST_SECRET else text


class KeyFilter(logging.Filter):
    """Takes the key out of log lines, tracebacks included."""

    def __init__(self, key: Key) -> None:
        super().__init__()
        self.key = key

    def filter(self, record: logging.LogRecord) -> bool:
        record.msg, record.args = self.key.hide(record.getMessage()), ()
        if record.exc_info:
            record.exc_text = self.key.hide(logging.Formatter().formatException(record.exc_info))
            record.exc_info = None
        return True


def key_and_url() -> tuple[Key, str]:
    """Return the key and the base URL, "" for OpenAI's own; ValueError if the environment has no usable ones."""
    key, url = os.environ.get("OPENAI_API_KEY", "").strip(), os.environ.get("OPENAI_BASE_URL", "").strip()
    if not key:
        raise ValueError(
            "OPENAI_API_KEY is not set: put the key of the endpoint into this environment variable, or any word for a "
            "server that asks for none"
        )
    if not (key.isascii() and key.isprintable()) or " " in key:
        raise ValueError("OPENAI_API_KEY has characters that no key has, such as blanks: set it again")
    if url:
        try:
            parts = urlsplit(url)
            whole = parts.scheme in ("http", "https") and bool(parts.hostname) and (parts.port or 1) > 0
        except ValueError:
            whole = False
        if not whole:
            raise ValueError("OPENAI_BASE_URL is no URL such as http://127.0.0.1:8000/v1: correct it")
        if parts.username or parts.password or parts.query or Key(key).hide(url) != url:
            raise ValueError("OPENAI_BASE_URL has a name, a password, a key or a query in it: leave only the address")
    return Key(key), url


class Endpoint:
    """Sends chats to a model. May be used by several threads.

    Args:
        temperature: None: not sent, for models that refuse it.
        max_tokens: of an answer; 0: not sent.
        timeout: seconds that an answer may take.
        retries: repetitions of a call that failed in passing.

    Raises ValueError without the `openai` package, a key or a usable address.
    """

    def __init__(self, model: str, temperature: float | None, max_tokens: int, timeout: float, retries: int) -> None:
        self.key, url = key_and_url()
        try:
            import openai  # optional, and takes a second to import
        except ImportError as error:
            raise ValueError("the openai package is missing: pip install -r requirements-llm.txt") from error
        self._openai = openai
        self._client: Any = openai.OpenAI(
            api_key=self.key.value, base_url=url or None, timeout=timeout, max_retries=retries
        )
        self.host = urlsplit(str(self._client.base_url)).netloc
        self._asks: dict[str, Any] = {"model": model}
        if temperature is not None:
            self._asks["temperature"] = temperature
        if max_tokens:
            self._asks["max_tokens"] = max_tokens
        self.timeout, self.retries = timeout, retries
        self.usage = Usage()
        for handler in [*logging.getLogger().handlers, *logging.getLogger("openai").handlers]:
            handler.addFilter(KeyFilter(self.key))

    def ask(self, messages: Messages) -> str:
        """Return the model's answer.

        Raises:
            EndpointError: the server cannot be reached or used.
            RefusedError: it refuses this question, or its answer is none, was cut, or has the key in it.
        """
        try:
            completion = self._client.chat.completions.create(messages=messages, **self._asks)
        except self._openai.OpenAIError as error:
            raise self._explained(error) from None  # the cause may quote the key
        except ValueError as error:  # a body that is not JSON
            raise RefusedError(f"the answer is no chat completion ({self._quoted(error)})") from None
        return self._text_of(completion)

    def _text_of(self, completion: Any) -> str:
        self.usage.add(getattr(completion, "usage", None))
        choice = next(iter(getattr(completion, "choices", None) or ()), None)
        message = getattr(choice, "message", None)
        if choice is None or message is None:
            raise RefusedError("the answer is no chat completion")
        text = message.content or ""
        if choice.finish_reason == "length":
            raise RefusedError("the answer was cut: raise --max_tokens")
        if self.key.hide(text) != text:
            raise RefusedError("the answer has the key in it")
        return text

    def _explained(self, error: Exception) -> Exception:
        """Return an error of the package as one sentence."""
        said = self._quoted(error)
        status = getattr(error, "status_code", None)
        if isinstance(error, self._openai.APITimeoutError):
            return EndpointError(
                f"{self.host} gave no answer within {self.timeout:g} s, {self.retries + 1} times: try again later, or "
                "raise --timeout"
            )
        if isinstance(error, self._openai.APIConnectionError):
            return EndpointError(
                f"{self.host} cannot be reached ({said}), {self.retries + 1} times: check OPENAI_BASE_URL"
            )
        if status in (401, 403):
            return EndpointError(f"{self.host} refuses the key ({said}): check OPENAI_API_KEY")
        if status == 404:
            return EndpointError(
                f"{self.host} has no such model or address ({said}): check --model, and that OPENAI_BASE_URL ends as "
                "its documentation says, often in /v1"
            )
        if status in (400, 413, 422):
            return RefusedError(f"the endpoint refuses the question ({said})")
        if status is not None:
            return EndpointError(f"{self.host} fails, {self.retries + 1} times ({said}): try again later")
        return RefusedError(f"the answer cannot be read ({said})")

    def _quoted(self, error: Exception) -> str:
        return shorten(" ".join(self.key.hide(str(error)).split()), 300)
