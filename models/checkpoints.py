"""Checkpoints of a training: whole or not at all, read without unpickling, refused where they belong elsewhere."""

import hashlib
import io
import os
import uuid
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch

from models.exceptions import CheckpointError


def save_checkpoint(path: Path, parts: Mapping[str, Any], signature: Mapping[str, str], log: Mapping[str, Any]) -> None:
    """Write a checkpoint in place of the one before.

    Parameters
    ----------
    parts
        What has a ``state_dict``, by name.
    signature
        What the training is of.
    log
        Lists of numbers and texts.
    """
    buffer = io.BytesIO()
    states = {name: part.state_dict() for name, part in parts.items()}
    torch.save({"signature": dict(signature), "states": states, "log": dict(log)}, buffer)
    path.parent.mkdir(parents=True, exist_ok=True)
    scratch = path.with_name(f".{path.name}.{uuid.uuid4().hex[:8]}.part")
    try:
        with scratch.open("wb") as file:
            file.write(buffer.getbuffer())
            file.flush()
            os.fsync(file.fileno())
        scratch.replace(path)
    finally:
        scratch.unlink(missing_ok=True)


def content_hash(*arrays: np.ndarray | torch.Tensor | None) -> str:
    """SHA-256 of types, shapes and values, such as those of the data that a training learns from."""
    digest = hashlib.sha256()
    for array in arrays:
        found = array.cpu().numpy() if isinstance(array, torch.Tensor) else np.asarray([] if array is None else array)
        digest.update(f"{found.dtype}{found.shape}".encode())
        digest.update(np.ascontiguousarray(found).data)
    return digest.hexdigest()


def load_checkpoint(
    path: Path, parts: Mapping[str, Any], signature: Mapping[str, str], device: torch.device
) -> dict[str, Any]:
    """Give the parts their states back; returns the log.

    Raises
    ------
    CheckpointError
        If the file cannot be read, or is of another training.
    """
    try:
        found = torch.load(path, map_location=device, weights_only=True)
        known, states, log = found["signature"], found["states"], dict(found["log"])
    except Exception as error:
        raise CheckpointError(f"The checkpoint {path} cannot be read: {error}") from error
    different = [key for key, value in signature.items() if known.get(key) != value]
    if different:
        raise CheckpointError(
            f"The checkpoint {path} belongs to another training: {', '.join(different)} differ; remove it to begin anew"
        )
    for name, part in parts.items():
        part.load_state_dict(states[name])
    return log
