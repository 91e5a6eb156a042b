"""What a mergekit recipe has to say of a base: where its weights lie, and what they are."""

from __future__ import annotations

import os
from pathlib import Path
from typing import NamedTuple

from solar_plugins.errors import CheckpointError
from solar_plugins.upscaling.base_model import BaseCheckpoint, find_base
from solar_plugins.upscaling.mergekit import Reference, reference
from solar_plugins.upscaling.weight_files import read_weights


class Weights(NamedTuple):
    """Where mergekit finds a base's weights, and what they are."""

    model: Reference
    dtypes: frozenset[str] | None
    """Of its tensors, as safetensors calls them; None if the weights are not here."""


def weights_of(
    base: str, revision: str | None, *, trust_remote_code: bool = False, trusted_keys: tuple[str, ...] = ()
) -> Weights:
    """What mergekit has to be told of a base. A local one gets its whole path, so that the YAML runs in any folder.

    Args:
        base: A directory, a config.json or a hub id.
        revision: Of a hub id.
        trust_remote_code: As for `find_base`.
        trusted_keys: As for `find_base`.

    Raises:
        CheckpointError: The base cannot be found; or it is a folder whose weights are damaged, or carry names of
            training wrappers.
    """
    path = Path(os.path.expanduser(base))
    name = str(path.parent) if path.is_file() else base
    found = find_base(name, revision, trust_remote_code=trust_remote_code, trusted_keys=trusted_keys)
    model = reference(base, revision) if found.revision else reference(str(found.directory))
    return Weights(model, _dtypes(found))


def _dtypes(found: BaseCheckpoint) -> frozenset[str] | None:
    tensors = found.tensors_here
    if tensors and not tensors.keys() <= read_weights(found.directory).tensors.keys():
        raise CheckpointError(
            f"{found.name}: its tensors carry names of training wrappers, which mergekit does not strip; use `solar "
            "upscale`, which does"
        )
    return None if tensors is None else frozenset(tensor.dtype for tensor in tensors.values())
