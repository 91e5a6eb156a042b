"""The keys that say how to reach an OpenAI-compatible endpoint."""

from __future__ import annotations

from typing import Annotated, Any
from urllib.parse import urlsplit

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, field_validator


def _as_list(value: Any) -> Any:
    return [value] if isinstance(value, str) else value


Urls = Annotated[list[Annotated[str, Field(min_length=1)]], BeforeValidator(_as_list), Field(min_length=1)]


class ServerArgs(BaseModel):
    """A served model."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    base_url: Urls = Field(
        description="OpenAI-compatible address, such as http://localhost:8000/v1; a list shares the requests among them"
    )
    model: str = Field(min_length=1, description="name of the model, as the endpoint lists it")
    key_variable: str | None = Field(
        None,
        pattern=r"^[A-Za-z_][A-Za-z0-9_]*$",
        description="name of the environment variable with the API key, such as OPENAI_API_KEY; default: no key",
    )
    concurrency: int = Field(64, ge=1, le=1000, description="requests at once")
    timeout: float = Field(600, gt=0, description="seconds that one request may take")
    retries: int = Field(5, ge=0, description="how often a request that fails is repeated")
    patience: float = Field(
        900,
        ge=0,
        description="seconds to wait for a server that restarts, is overloaded (503) or limits the rate (429)",
    )
    extra: dict[str, Any] = Field(default_factory=dict, description="more keys for the body of each request")

    @field_validator("base_url")
    @classmethod
    def _addresses(cls, urls: list[str]) -> list[str]:
        for url in urls:
            parts = urlsplit(url)
            if parts.scheme not in ("http", "https") or not parts.netloc:
                raise ValueError("expected an address that starts with http:// or https://")
            if "@" in parts.netloc or parts.query:
                raise ValueError("expected an address without a password or a key; name its variable in key_variable")
        return [url.rstrip("/") for url in urls]

    @field_validator("extra")
    @classmethod
    def _no_key_of_ours(cls, extra: dict[str, Any]) -> dict[str, Any]:
        for key in extra.keys() & {"model", "messages", "input", "seed", "stream", "n"}:
            raise ValueError(f"{key}: set by this package; remove it")
        return extra
