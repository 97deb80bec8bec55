"""A checkpoint: arrays and JSON in one file, which is read whole or refused.

The file is a zip archive without compression, as ``numpy.savez`` writes: ``checkpoint.json``
and an ``.npy`` of each array, so that ``numpy.load`` opens it. Its comment, at the very end,
holds the SHA-256 of all bytes before the digest. Nothing in it is pickled.
"""

import hashlib
import json
import os
import uuid
import zipfile
from contextlib import suppress
from dataclasses import dataclass
from glob import escape, glob
from io import BytesIO
from typing import Any

import numpy as np
from fsspec.core import url_to_fs
from fsspec.implementations.local import LocalFileSystem

from skdtheano.runtime.failures import CheckpointRefused

#: Of the facts and arrays in a file; grows with each change that an older reader cannot read.
SCHEMA = 1

_MARK = b"skdtheano-checkpoint sha256:"
_DIGEST_BYTES = 64
_FACTS = "checkpoint.json"


@dataclass(frozen=True)
class Checkpoint:
    """What a file holds.

    Attributes
    ----------
    facts : dict
        Of what JSON has; floats come back bit for bit.
    arrays : dict of str to ndarray
    """

    facts: dict[str, Any]
    arrays: dict[str, np.ndarray]

    def to_bytes(self) -> bytes:
        buffer = BytesIO()
        with zipfile.ZipFile(buffer, "w") as archive:
            facts = {"schema": SCHEMA, **self.facts}
            archive.writestr(zipfile.ZipInfo(_FACTS), json.dumps(facts, indent=1))
            for name, array in self.arrays.items():
                with archive.open(zipfile.ZipInfo(f"{name}.npy"), "w") as member:
                    np.lib.format.write_array(member, array, allow_pickle=False)
            archive.comment = _MARK + b"0" * _DIGEST_BYTES
        content = buffer.getbuffer()[:-_DIGEST_BYTES]
        return b"".join([content, hashlib.sha256(content).hexdigest().encode()])

    @classmethod
    def from_bytes(cls, content: bytes) -> "Checkpoint":
        """Read what `to_bytes` made.

        Raises
        ------
        CheckpointRefused
            If it is anything else; the text says what.
        """
        body, digest = content[:-_DIGEST_BYTES], content[-_DIGEST_BYTES:]
        if not body.endswith(_MARK):
            raise CheckpointRefused("it is cut off, or no checkpoint of skdtheano")
        if hashlib.sha256(body).hexdigest().encode() != digest:
            raise CheckpointRefused("it is damaged: its checksum differs from its content")
        try:
            return cls._from_archive(content)
        except CheckpointRefused:
            raise
        except Exception as error:
            # Whole, as its checksum says, and yet not what we write: made by someone else.
            raise CheckpointRefused(f"it cannot be read ({error!r})") from error

    @classmethod
    def _from_archive(cls, content: bytes) -> "Checkpoint":
        with zipfile.ZipFile(BytesIO(content)) as archive:
            members = archive.infolist()
            if any(member.compress_type != zipfile.ZIP_STORED for member in members):
                raise CheckpointRefused("it is compressed, and checkpoints are not")
            facts = json.loads(archive.read(_FACTS))
            schema = facts.pop("schema")
            if schema > SCHEMA:
                raise CheckpointRefused(
                    f"it has schema {schema}, and this version of skdtheano reads those up "
                    f"to {SCHEMA}; use the version that wrote it, or a newer one"
                )
            arrays = {}
            for member in members:
                if member.filename != _FACTS:
                    with archive.open(member) as file:
                        array = np.lib.format.read_array(file, allow_pickle=False)
                    arrays[member.filename.removesuffix(".npy")] = array
        return cls(facts, arrays)


class CheckpointFile:
    """Where a checkpoint is kept.

    Parameters
    ----------
    url : str or os.PathLike
        A path, or an address that fsspec knows: ``s3://bucket/fit.npz``, ``memory://fit``.

    Raises
    ------
    ValueError
        If fsspec has no filesystem for it.
    """

    def __init__(self, url: "str | os.PathLike[str]") -> None:
        self.url = os.fspath(url)
        try:
            self._files, self._path = url_to_fs(self.url)
        except (ValueError, ImportError) as error:
            raise ValueError(
                f"checkpoint={self.url!r} cannot be opened: {error}. Give the path of a file, "
                "or an address of a filesystem that fsspec has, such as 's3://bucket/fit.npz'."
            ) from error
        self._is_local = isinstance(self._files, LocalFileSystem)

    def read(self) -> Checkpoint | None:
        """What was written last; None if nothing was.

        Raises
        ------
        CheckpointRefused
            If it is not all there, or not ours.
        """
        try:
            content = self._files.cat_file(self._path)
        except FileNotFoundError:
            return None
        except Exception as error:
            raise CheckpointRefused(f"it cannot be read ({error!r})") from error
        return Checkpoint.from_bytes(content)

    def check_writable(self) -> None:
        """Make the folder if there is none, and see that a file can be made there.

        Raises
        ------
        ValueError
            If not.
        """
        try:
            if self._is_local:
                os.makedirs(os.path.dirname(self._path), exist_ok=True)
                for left in glob(f"{escape(self._path)}.*.part"):  # by processes that died
                    with suppress(FileNotFoundError):
                        os.remove(left)
                part = self._part()
                _write_synced(part, b"")
                os.remove(part)
            else:
                part = self._part()
                self._files.pipe_file(part, b"")
                self._files.rm_file(part)
        except Exception as error:
            raise ValueError(
                f"checkpoint={self.url!r} cannot be written: {error!r}. Give a place where "
                "you may make files."
            ) from error

    def write(self, checkpoint: Checkpoint) -> None:
        """Replace what was there, in one go.

        A local file is renamed into place once it is on the disk. Other filesystems take
        the content in one call, which object stores carry out whole or not at all.
        """
        content = checkpoint.to_bytes()
        if not self._is_local:
            self._files.pipe_file(self._path, content)
            return
        # A name of its own: two fits of one path must not write into each other's file.
        part = self._part()
        try:
            _write_synced(part, content)
            os.replace(part, self._path)
        finally:
            with suppress(OSError):
                os.remove(part)
        with suppress(OSError):  # a folder cannot be opened everywhere
            folder = os.open(os.path.dirname(self._path), os.O_RDONLY)
            try:
                os.fsync(folder)
            finally:
                os.close(folder)

    def _part(self) -> str:
        return f"{self._path}.{uuid.uuid4().hex[:12]}.part"


def _write_synced(path: str, content: bytes) -> None:
    with open(path, "wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
