"""One reader for every file: whatever is wrong with it is one exception with one phrase."""

import io
import zipfile

import numpy as np
import pytest

from robust_gan.data import own
from robust_gan.errors import DataError, UserError
from robust_gan.evaluation import EvaluationState
from robust_gan.reporting import details
from robust_gan.storage import files

ARRAYS = {"images": np.random.default_rng(0).random((40, 8, 8, 1)), "labels": np.arange(40) % 4}


def packed(compressed=True, **arrays):
    buffer = io.BytesIO()
    (np.savez_compressed if compressed else np.savez)(buffer, **(arrays or ARRAYS))
    return buffer.getvalue()


def single_array():
    buffer = io.BytesIO()
    np.save(buffer, ARRAYS["images"])
    return buffer.getvalue()


def flipped(start, stop, step):
    content = bytearray(packed())
    for place in range(start, stop, step):
        content[place] ^= 0xFF
    return bytes(content)


def overwritten(start, filling):
    content = bytearray(packed(compressed=False))
    content[start : start + len(filling)] = filling
    return bytes(content)


def marked(offset, value):
    """Sets two bytes of both headers of the first member: its flags or its method of compression."""
    content = bytearray(packed())
    for magic, place in ((b"PK\x03\x04", offset), (b"PK\x01\x02", offset + 2)):
        start = content.index(magic) + place
        content[start : start + 2] = value.to_bytes(2, "little")
    return bytes(content)


def huge_header():
    header = io.BytesIO()
    np.lib.format.write_array_header_1_0(header, {"descr": "<f8", "fortran_order": False, "shape": (10**15,)})
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr("images.npy", header.getvalue())
        archive.writestr("labels.npy", header.getvalue())
    return buffer.getvalue()


DAMAGED = {
    "cut": packed()[: len(packed()) // 2],
    "empty": b"",
    "a page": b"<html>quota exceeded</html>",
    "a bent stream": flipped(400, 4000, 37),
    "one bit": flipped(2000, 2001, 1),
    "a bent header of an array": overwritten(60, b"#" * 30),
    "an unfinished header of an array": overwritten(100, b"((((((("),
    "objects": packed(images=np.array([{}, []], object), labels=np.arange(2)),
    "a single array": single_array(),
    "encrypted": marked(6, 1),
    "an unknown compression": marked(8, 97),
    "a header that asks for a petabyte": huge_header(),
}


@pytest.mark.parametrize("name", DAMAGED)
def test_a_damaged_file_is_one_exception_wherever_it_is_read(name, tmp_path):
    path = tmp_path / "a.npz"
    path.write_bytes(DAMAGED[name])
    with pytest.raises(files.UnreadableError) as found:
        files.read_arrays(path)
    assert len(str(found.value).splitlines()) == 1
    with pytest.raises(DataError, match=r"is no \.npz of plain arrays \("):
        own.read(str(path))
    with pytest.raises(UserError, match="is damaged"):
        EvaluationState(path)
    path.rename(tmp_path / details.FILE)
    with pytest.raises(UserError, match="is damaged"):
        details.read(tmp_path)


def test_a_folder_in_place_of_a_file_is_named(tmp_path):
    for read in (files.read_arrays, files.read_json):
        with pytest.raises(files.UnreadableError, match="it cannot be read: is a directory"):
            read(tmp_path)
        with pytest.raises(FileNotFoundError):
            read(tmp_path / "missing")


@pytest.mark.parametrize("content", [b"", b"{", b"\xff\xfe\x00", b"[" * 100_000, b'{"a": nul}'])
def test_damaged_json_is_one_exception(content, tmp_path):
    path = tmp_path / "a.json"
    path.write_bytes(content)
    with pytest.raises(files.UnreadableError):
        files.read_json(path)


def test_lines_that_are_cut_are_left_out(tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_bytes(b'{"step": 1}\n\xff\xfe\n[1]\n{"step": 2}\n{"st')
    assert files.read_lines(path) == [{"step": 1}, {"step": 2}]
    assert files.read_lines(tmp_path / "missing") == []
