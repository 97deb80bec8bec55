"""What this package has derived and compiled, on the disk, for the next process.

It lies in the engine's cache directory, and all processes of a user on a host share it. The
name of a file is a hash of its key, which tells all that decides the content, and its first
line one of key and content: so what is stale, damaged or foreign is not found or not believed.
None of it is ever an error; what cannot be read is made again.
"""

import hashlib
import os
import tempfile
from contextlib import suppress
from pathlib import Path

from skdtheano import engine


def directory() -> Path:
    return Path(engine.cache_directory()) / "skdtheano"


def kept(key: str) -> bytes | None:
    """What was kept under a key, if anything."""
    try:
        seal, _, content = _file(key).read_bytes().partition(b"\n")
    except OSError:
        return None
    return content if seal == _seal(key, content) else None


def keep(key: str, content: bytes) -> None:
    """Write a file whole or not at all: others may read it meanwhile."""
    file = _file(key)
    with suppress(OSError):  # a full disk, or a directory of others
        file.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(dir=file.parent, delete=False) as draft:
            try:
                draft.write(_seal(key, content) + b"\n" + content)
                draft.flush()
                os.replace(draft.name, file)
            except BaseException:
                os.unlink(draft.name)
                raise


def _file(key: str) -> Path:
    return directory() / hashlib.sha256(key.encode()).hexdigest()[:32]


def _seal(key: str, content: bytes) -> bytes:
    return hashlib.sha256(key.encode() + b"\n" + content).hexdigest().encode()
