"""GPUs by name."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import NamedTuple

from solar_plugins.errors import ArgsError
from solar_plugins.text import close_match

GIGABYTES: Mapping[str, int] = {
    "t4": 16, "v100-16gb": 16, "v100-32gb": 32, "rtx3060": 12, "rtx3080": 10, "rtx3090": 24, "rtx4080": 16,
    "rtx4090": 24, "rtx5080": 16, "rtx5090": 32, "a10": 24, "a10g": 24, "a30": 24, "a40": 48, "l4": 24, "l40": 48,
    "l40s": 48, "rtxa5000": 24, "a5000": 24, "rtxa6000": 48, "a6000": 48, "rtx6000ada": 48, "rtxpro6000": 96,
    "a100-40gb": 40, "a100-80gb": 80, "h100": 80, "h100nvl": 94, "h200": 141, "gh200": 96, "b200": 180, "b300": 288,
    "mi210": 64, "mi250x": 128, "mi300x": 192, "mi325x": 256, "mi355x": 288,
}  # fmt: skip
"""Memory in GB as the makers' data sheets have it."""


class Gpus(NamedTuple):
    """GPUs that a training must fit."""

    text: str
    number: int
    gigabytes: float


def parse_gpus(text: str, where: str = "--gpu") -> Gpus:
    """GPUs such as ``H100``, ``8xA100-80GB``, ``RTX 4090``, ``24`` or ``2x24GB``.

    Args:
        text: What a user wrote.
        where: The option or key, for the message.

    Raises:
        ArgsError: The name is not known, and no number of GB.

    >>> parse_gpus("8xH100")[1:], parse_gpus("24")[1:], parse_gpus("2 x RTX 4090")[1:]
    ((8, 80), (1, 24.0), (2, 24))
    """
    found = re.fullmatch(r"\s*(?:(\d{1,5})\s*[x*]\s*)?(.+?)\s*", text, re.IGNORECASE)
    count, name = (int(found[1] or 1), found[2]) if found else (1, text)
    if number := re.fullmatch(r"(\d+(?:\.\d+)?)\s*(?:gb)?", name, re.IGNORECASE):
        gigabytes: float = float(number[1])
    else:
        plain = re.sub(r"[\s_]|nvidia|geforce|amd|instinct|tesla", "", name.lower()).removesuffix("-sxm")
        variants = [plain, plain.replace("-", ""), re.sub(r"-?(\d+)gb$", r"-\1gb", plain)]
        gigabytes = next((GIGABYTES[one] for one in variants if one in GIGABYTES), 0)
    if count < 1 or gigabytes <= 0:
        close = close_match(name.lower(), GIGABYTES)
        hint = f"did you mean {close.upper()}? " if close else ""
        raise ArgsError(
            f"{where}: {text!r}; expected a name, such as H100, A100-80GB or 8xH100, or the memory in GB, such as 24 "
            f"or 2x24. {hint}For another GPU give its GB"
        )
    return Gpus(text, count, gigabytes)
