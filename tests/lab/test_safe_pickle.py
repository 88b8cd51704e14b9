"""Plain pickles are read as Python's own reader reads them; every other one is refused before anything of it runs."""

import builtins
import os
import pickle
import struct
from collections import OrderedDict
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest

from sdkernels.lab.readers import safe_pickle
from sdkernels.lab.readers.safe_pickle import load_plain

HINT = "Get it somewhere"
PIXELS = np.arange(24, dtype=np.uint8).reshape(4, 6)


def loaded(tmp_path: Path, raw: bytes):
    path = tmp_path / "batch"
    path.write_bytes(raw)
    return load_plain(path, HINT)


def refused(tmp_path: Path, raw: bytes, says: str) -> None:
    with pytest.raises(ValueError, match=says) as raised:
        loaded(tmp_path, raw)
    assert str(tmp_path / "batch") in str(raised.value)
    assert HINT in str(raised.value)


def python_2_array(
    core: bytes = b"numpy.core.multiarray", code: bytes = b"u1", data: bytes = PIXELS.tobytes()
) -> bytes:
    """A uint8 array [4, 6] as Python 2's cPickle wrote it at protocol 2, instruction by instruction."""
    return (
        b"c" + core + b"\n_reconstruct\nq\x02cnumpy\nndarray\nq\x03K\x00\x85U\x01b\x87Rq\x04"
        b"(K\x01K\x04K\x06\x86cnumpy\ndtype\nq\x05U" + bytes([len(code)]) + code + b"K\x00K\x01\x87Rq\x06"
        b"(K\x03U\x01|NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tb\x89"
        b"T" + struct.pack("<i", len(data)) + data + b"tb"
    )


def python_2_batch(**changes: bytes) -> bytes:
    """A dict of the array, labels and a name, its keys Python 2's strings."""
    array = python_2_array(**changes)
    return b"\x80\x02}q\x01(U\x04data" + array + b"U\x06labels]q\x07(K\x06K\x09eU\x04nameU\x06caf\xe9.0u."


class Recorder:
    """Pickled, it calls ``function(*arguments)`` when it is read."""

    def __init__(self, function, *arguments):
        self.what = function, arguments

    def __reduce__(self):
        return self.what


class TestReads:
    @pytest.mark.parametrize("core", [b"numpy.core.multiarray", b"numpy._core.multiarray"])
    def test_what_python_2_wrote(self, tmp_path, core):
        batch = loaded(tmp_path, python_2_batch(core=core))
        assert list(batch) == [b"data", b"labels", b"name"]
        assert batch[b"data"].dtype == np.uint8
        np.testing.assert_array_equal(batch[b"data"], PIXELS)
        assert (batch[b"labels"], batch[b"name"]) == ([6, 9], b"caf\xe9.0")
        oracle = pickle.loads(python_2_batch(core=b"numpy._core.multiarray"), encoding="bytes")
        np.testing.assert_array_equal(oracle[b"data"], batch[b"data"])  # the stream above is a real one

    @pytest.mark.parametrize("protocol", range(5))
    def test_what_this_python_writes(self, tmp_path, protocol):
        content = {
            b"data": PIXELS,
            b"labels": [3, -1, 2**40, 255, 256, 70_000],
            "text": "naïve",
            b"": [b"", b"\x00\xff", None, True, {}, [], {7: [[1]]}],
        }
        read = loaded(tmp_path, pickle.dumps(content, protocol))
        np.testing.assert_array_equal(read.pop(b"data"), content.pop(b"data"))
        assert read == content
        assert type(read[b""][3]) is bool

    @pytest.mark.parametrize("dtype", ["u1", "i1", "<i2", ">i4", "<u8", ">f4", "<f8", "f2"])
    def test_arrays_of_every_type_order_and_shape(self, tmp_path, dtype):
        for array in (np.arange(6, dtype=dtype), np.zeros((0, 3), dtype), np.array(5, dtype)):
            read = loaded(tmp_path, pickle.dumps(array, 2))
            assert read.dtype == array.dtype.newbyteorder("=")
            np.testing.assert_array_equal(read, array)
        by_columns = np.asfortranarray(np.arange(6, dtype=dtype).reshape(2, 3))
        read = loaded(tmp_path, pickle.dumps(by_columns, 2))
        np.testing.assert_array_equal(read, by_columns)
        assert read.flags.c_contiguous
        read[0] = 1  # its own memory

    def test_what_occurs_twice_and_what_nests(self, tmp_path):
        shared = [1]
        for _ in range(18):
            shared = [shared, shared]  # 2^18 paths to the same list
        read = loaded(tmp_path, pickle.dumps(shared, 2))
        assert read[0] is read[1]


class Plain:
    """A class of the user's own, without anything of it."""


ATTACKS = {
    "os.system": (Recorder(os.system, "touch {}"), r"tries to load (posix|nt)\.system"),
    "eval": (Recorder(eval, "open({!r}, 'w')"), r"tries to load (__builtin__|builtins)\.eval"),
    "exec": (Recorder(exec, "open({!r}, 'w')"), r"tries to load (__builtin__|builtins)\.exec"),
    "open": (Recorder(open, "{}", "w"), r"tries to load (io|_io)\.open"),
    "getattr": (Recorder(getattr, "{}", "upper"), r"tries to load (__builtin__|builtins)\.getattr"),
    "numpy's load": (Recorder(np.load, "{}"), r"tries to load numpy\.load"),
    "bytearray": (bytearray(b"1"), r"tries to load (__builtin__|builtins)\.bytearray|holds a BYTEARRAY8"),
    "ordered dict": (OrderedDict(a=1), r"tries to load collections\.OrderedDict"),
    "path": (Path("/tmp"), r"tries to load pathlib\."),
    "object": (Recorder(object), r"tries to load (__builtin__|builtins)\.object"),
    "a class": (Plain(), r"tries to load (copyreg|copy_reg|tests\.lab\.test_safe_pickle)\.(_reconstructor|Plain)"),
    "complex": (1j, r"tries to load (__builtin__|builtins)\.complex"),
}


class TestRefuses:
    @pytest.mark.parametrize("protocol", range(6))
    @pytest.mark.parametrize("name", ATTACKS)
    def test_functions_and_classes_by_name(self, tmp_path, name, protocol):
        attack, says = ATTACKS[name]
        mark = tmp_path / "run"
        if isinstance(attack, Recorder):
            function, arguments = attack.what
            attack = Recorder(function, *(argument.format(mark) for argument in arguments))
        refused(tmp_path, pickle.dumps({b"data": [attack]}, protocol), says)
        assert not mark.exists()

    def test_the_attack_is_a_real_one(self, tmp_path):
        pickle.loads(pickle.dumps(Recorder(eval, f"open({str(tmp_path / 'run')!r}, 'w').close()"), 2))
        assert (tmp_path / "run").exists()

    def test_old_ways_to_call(self, tmp_path):
        refused(tmp_path, b"(S'touch x'\nios\nsystem\n.", r"tries to load os\.system")
        refused(tmp_path, b"(cos\nsystem\nS'touch x'\no.", r"tries to load os\.system")
        refused(tmp_path, b"\x80\x02cbuiltins\neval\nU\x011\x85\x81.", r"tries to load builtins\.eval")
        refused(tmp_path, b"(I5\ninumpy\nndarray\n.", "calls NdArray by itself")
        refused(tmp_path, b"(cnumpy\ndtype\nNo.", "another type than numbers")
        refused(tmp_path, b"\x80\x02cnumpy\ndtype\nK\x01\x85\x81.", "no pickle, or damaged: NEWOBJ")
        refused(tmp_path, b"\x80\x04cnumpy\nndarray\n(K\x01\x90.", "no pickle, or damaged")
        refused(tmp_path, b"\x80\x02\x82\x01.", "holds a EXT1 1")
        refused(tmp_path, b"Pelsewhere\n.", "holds a PERSID 'elsewhere'")
        refused(tmp_path, b"\x80\x02U\x09elsewhereQ.", "holds a BINPERSID")

    def test_values_of_other_types(self, tmp_path):
        for value, says in [
            (1.5, "holds a float"),
            ((1, 2), "holds a tuple"),
            ({1, 2}, "holds a set"),
            (frozenset([1]), "holds a frozenset"),
            ({(1, 2): 3}, "keys"),
            ({None: 3}, "keys"),
        ]:
            refused(tmp_path, pickle.dumps({b"x": value}, 4), says)

    def test_arrays_of_objects_and_other_types(self, tmp_path):
        touch = Recorder(os.system, f"touch {tmp_path / 'run'}")
        refused(tmp_path, pickle.dumps(np.array([touch], dtype=object), 2), r"array of objects|tries to load")
        refused(tmp_path, pickle.dumps(np.array([1, "a"], dtype=object), 2), "array of objects .*'O8'")
        refused(tmp_path, python_2_batch(code=b"O8"), "array of objects")
        for dtype in ("S3", "U3", "M8[s]", "c8", "b1", [("a", "u1")], "V3"):
            refused(tmp_path, pickle.dumps(np.zeros(2, dtype), 2), "another type than numbers, dtype")
        assert not (tmp_path / "run").exists()

    def test_numpys_stand_ins_used_otherwise(self, tmp_path):
        reconstruct, ndarray, dtype = (
            b"cnumpy.core.multiarray\n_reconstruct\n",
            b"cnumpy\nndarray\n",
            b"cnumpy\ndtype\n",
        )
        u1 = dtype + b"U\x02u1K\x00K\x01\x87R"
        for raw, says in {
            ndarray + b"K\x05\x85R": "calls NdArray by itself",
            ndarray: "holds a NdArray",
            u1: "holds a DType",
            reconstruct: "holds a Reconstruct",
            reconstruct + ndarray + b"K\x00\x85U\x01b\x87R": "holds a Array",  # without its state
            reconstruct + b"K\x01K\x00\x85U\x01b\x87R": "reconstructs something other",
            reconstruct + ndarray + b"K\x09\x85U\x01b\x87R": "reconstructs something other",
            reconstruct + b"}U\x08__code__U\x01xsb": "gives Reconstruct a state",
            reconstruct + b"N}U\x0c__defaults__)s\x86b": "gives Reconstruct a state",
            u1 + b"}U\x04codeU\x01Osb": "type other than numbers",
            u1 + b"K\x05\x85R": "calls DType by itself",
            dtype + b"N\x85R": "another type than numbers",
            b"c_codecs\nencode\nX\x01\x00\x00\x00aX\x03\x00\x00\x00rot\x86R": "encodes something other",
            b"cbuiltins\nbytes\nK\x05\x85R": "calls bytes with arguments",
            b"c_codecs\ndecode\n": r"tries to load _codecs\.decode",
            b"cnumpy.core.multiarray\nfromstring\n": r"tries to load numpy\.core\.multiarray\.fromstring",
            b"cnumpy\ncore.multiarray._reconstruct\n": r"tries to load numpy\.core\.multiarray\._reconstruct",
        }.items():
            refused(tmp_path, b"\x80\x02" + raw + b".", says)

    def test_arrays_that_do_not_fit_their_bytes(self, tmp_path):
        refused(tmp_path, python_2_batch(data=b"1" * 23), r"shape \(4, 6\) and type u1 in 23 bytes")
        refused(tmp_path, python_2_batch(code=b"i8"), r"type i8 in 24 bytes")
        for shape in (b"J\xff\xff\xff\xffJ\xe8\xff\xff\xff\x86", b"NK\x18\x86"):
            refused(tmp_path, python_2_batch().replace(b"K\x04K\x06\x86", shape), "holds an array of shape")
        refused(tmp_path, python_2_batch().replace(b"|NNNJ", b"|N}NJ"), "fields or parts")
        refused(tmp_path, python_2_batch().replace(b"U\x01|", b"U\x01!"), "type other than numbers")
        refused(tmp_path, python_2_batch().replace(b"tb\x89T", b"tb]T"), "shape, a type and bytes")

    def test_what_would_not_end(self, tmp_path):
        itself: list = []
        itself.append(itself)
        refused(tmp_path, pickle.dumps(itself, 2), "holds itself")
        refused(tmp_path, b"]" * 100_000 + b"a" * 99_999 + b".", "nests deeper than 20")

    def test_memory_it_does_not_need(self, tmp_path, monkeypatch):
        refused(tmp_path, b"\x80\x02K\x01r\xff\xff\xff\x7f.", "numbers an object 2147483647")
        refused(tmp_path, b"I1\np2147483647\n.", "numbers an object 2147483647")
        refused(tmp_path, b"\x80\x04\x8e" + struct.pack("<Q", 2**60) + b"x.", "no pickle, or damaged")
        monkeypatch.setattr(safe_pickle, "LARGEST", 10)
        refused(tmp_path, pickle.dumps(list(range(20))), "larger than 10 bytes")

    def test_every_truncation_and_what_follows_the_end(self, tmp_path):
        whole = python_2_batch()
        for keep in range(len(whole)):
            refused(tmp_path, whole[:keep], "no pickle, or damaged")
        refused(tmp_path, whole + b"cos\nsystem\n.", r"goes on for 12 bytes after its end")

    def test_every_changed_byte_gives_plain_data_or_a_refusal(self, tmp_path):
        whole = python_2_batch()
        for at in range(len(whole)):
            for change in (0x01, 0x20, 0x80, 0xFF):
                raw = bytearray(whole)
                raw[at] ^= change
                try:
                    read = loaded(tmp_path, bytes(raw))
                except ValueError:
                    continue
                kinds = {type(value) for value in (read.values() if isinstance(read, dict) else [read])}
                assert kinds <= {np.ndarray, list, bytes, str, int, dict, bool, type(None)}

    def test_nothing_is_changed_by_reading(self, tmp_path):
        before = dict(vars(builtins)), dict(vars(safe_pickle))
        for raw in (python_2_batch(), b"\x80\x02cnumpy\ndtype\n}U\x04codeU\x01Osb.", pickle.dumps(Recorder(eval, "1"))):
            with suppress(ValueError):
                loaded(tmp_path, raw)
        assert before == (dict(vars(builtins)), dict(vars(safe_pickle)))

    def test_other_files(self, tmp_path):
        refused(tmp_path, b"", "no pickle, or damaged")
        refused(tmp_path, b"<!DOCTYPE html><html>404", "no pickle, or damaged|holds a")
        with pytest.raises(FileNotFoundError, match=r"nowhere is missing\. Get it somewhere"):
            load_plain(tmp_path / "nowhere", HINT)
