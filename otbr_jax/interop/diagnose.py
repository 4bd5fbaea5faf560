"""Says in one clause what a file is that holds no readable tensors, from its first bytes."""

from __future__ import annotations

import io
import json
import pathlib
import zipfile

from otbr_jax.interop.torch_files import pickled_names

_MAGIC = (
    (b"\x89HDF\r\n\x1a\n", "an HDF5 file, as Keras writes them"),
    (b"\x93NUMPY", "a NumPy array (.npy)"),
    (b"GGUF", "a GGUF file"),
    (b"\x1f\x8b", "a gzip archive; unpack it first"),
    (b"7z\xbc\xaf\x27\x1c", "a 7z archive; unpack it first"),
    (b"Rar!", "a RAR archive; unpack it first"),
    (b"BZh", "a bzip2 archive; unpack it first"),
    (b"\xfd7zXZ", "an xz archive; unpack it first"),
    (b"\x89PNG", "a PNG image"),
    (b"\xff\xd8\xff", "a JPEG image"),
    (b"%PDF", "a PDF document"),
)
_TEXT = (
    ("version https://git-lfs", "a pointer of Git LFS, not the file itself; `git lfs pull` fetches that"),
    ("<!doctype html", "an HTML page, as a download that went wrong leaves it"),
    ("<html", "an HTML page, as a download that went wrong leaves it"),
    ("<?xml", "an XML document, as a download that went wrong leaves it"),
)
UNKNOWN = "a file that starts with"
"""How the clause begins for an unknown file."""

_NPZ = "a NumPy archive (.npz), as Haiku and big_vision write weights; bring the network as Python code, with them as"


def what_it_is(path: pathlib.Path, head: bytes) -> str:
    """A clause about a file that starts with these bytes."""
    if not head:
        return "an empty file"
    for magic, kind in _MAGIC:
        if head.startswith(magic):
            return kind
    start = head[:4096].lstrip().lower()
    for text, kind in _TEXT:
        if start.startswith(text.encode()):
            return kind
    if head.startswith(b"PK"):
        return _archive(path)
    if head[257:262] == b"ustar":
        return "a tar archive; unpack it first"
    if path.suffix.lower() == ".onnx" or (head[:1] == b"\x08" and b"onnx" in head[:4096].lower()):
        return "an ONNX program, which is code; expected a file of its tensors"
    if names := pickled_names(io.BytesIO(head)):
        return f"a pickle that torch.save did not write (it asks for {names[0]}, which was not run)"
    if head[:1] in (b"{", b"["):
        return f"JSON ({', '.join(_keys(head)) or 'cut off'})"
    return f"{UNKNOWN} {head[:16]!r}"


def _archive(path: pathlib.Path) -> str:
    try:
        with zipfile.ZipFile(path) as archive:
            names = archive.namelist()
    except Exception:  # an archive may be broken in many ways
        return "a zip archive that is damaged"
    if names and all(name.endswith(".npy") for name in names):
        return f"{_NPZ} its variables"
    if any(name.endswith(("models/model.json", "archive_format")) for name in names):
        return "an exported program (.pt2), which is code; expected a file of its tensors"
    if any(name.endswith("model.weights.h5") for name in names):
        return "a Keras model (.keras)"
    if any(name.endswith("/data.pkl") for name in names):
        return "a zip archive that is damaged"
    few = ", ".join(names[:3]) or "nothing"
    return f"a zip archive that torch.save did not write (it holds {few})"


def _keys(head: bytes) -> list[str]:
    try:
        content = json.loads(head)
    except ValueError:
        return []
    return [str(key) for key in list(content)[:4]] if isinstance(content, dict) else []
