"""Guarded reading: what is right comes out right, and what is not is one short line of the asked kind."""

from __future__ import annotations

import io
import json
import os
import socket
import struct
import zipfile
import zlib

import pytest

from duotune import reading
from duotune.errors import MAX_MESSAGE, ArtifactError, ConfigError, DataError, UnknownNameError
from duotune.reading.archives import Archive


def refused(call, *words: str, error: type[Exception] = DataError) -> str:
    with pytest.raises(error) as caught:
        call()
    assert type(caught.value) is error
    line = str(caught.value)
    assert line.isprintable() and len(line) < 400, line
    for word in words:
        assert word in line, (word, line)
    return line


# ------------------------------------------------------------------------------------------ quoting


@pytest.mark.parametrize(
    "value",
    ["x" * 10**6, "a\nb\x00\x1b[31m\udc80", b"\xff" * 10**6, 10**5000, [[[[[[1]]]]]] * 10**5, {"k" * 999: "v" * 9999}],
    ids=["long", "control", "bytes", "digits", "nested", "mapping"],
)
def test_what_is_quoted_is_short_and_printable(value):
    text = reading.shown(value)
    assert text.isprintable() and len(text) <= reading.MAX_SHOWN + 5
    assert reading.shown("red fox") == "'red fox'" and reading.shown(12) == "12"


@pytest.mark.parametrize(
    "error",
    [
        DataError("a\nb\udcff" + "x" * 9999 + "; end"),
        ConfigError("z\r\n; end" + "y" * 9999 + "end"),
        UnknownNameError("t", "q" * 9999, ["end"]),
    ],
    ids=["data", "config", "name"],
)
def test_every_error_is_one_printable_line(error):
    assert str(error).isprintable() and len(str(error)) <= MAX_MESSAGE + 5 and "end" in str(error)[-10:]


@pytest.mark.parametrize("kind", [DataError, ArtifactError])
def test_an_error_in_a_worker_says_what_it_said_there(kind):
    from torch._utils import ExceptionWrapper

    try:
        raise kind("cannot read the image a.png: broken: really; repair or remove it")
    except kind:
        caught = ExceptionWrapper(where="in DataLoader worker process 0")
    with pytest.raises(kind) as again:
        caught.reraise()
    assert str(again.value) == "cannot read the image a.png: broken: really; repair or remove it"


def test_reasons_are_one_line():
    assert reading.because(FileNotFoundError(2, "No such file or directory", "x" * 999)) == "No such file or directory"
    assert reading.because(KeyError("a")) == "KeyError: 'a'" and reading.because(EOFError()) == "EOFError"
    assert reading.because(ValueError("\n  first\nsecond")) == "first"


# ------------------------------------------------------------------------------------------ files and text


def test_only_regular_files_are_read(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(tmp_path / "socket"))
    (tmp_path / "loop").symlink_to("loop")
    expected = {"pipe": "a named pipe", "socket": "a socket", ".": "a folder", "absent": "no such file", "loop": "loop"}
    for name, word in expected.items():
        refused(lambda name=name: reading.read_bytes(tmp_path / name, "a recipe"), word, "a recipe")
    refused(lambda: reading.read_bytes("/dev/zero"), "a device")
    for name in ("a\0b", "\ud800", "x" * 5000):
        refused(
            lambda name=name: reading.read_bytes(tmp_path / name, "a recipe", ArtifactError),
            "a recipe",
            error=ArtifactError,
        )


def test_sizes_are_limited(tmp_path):
    (tmp_path / "big").write_bytes(b"12345")
    assert reading.read_bytes(tmp_path / "big", limit=5) == b"12345"
    refused(lambda: reading.read_bytes(tmp_path / "big", limit=4), "limit of 4 bytes")
    assert reading.check_file(tmp_path / "big") == tmp_path / "big"


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-32"])
def test_text_in_every_marked_encoding(tmp_path, encoding):
    (tmp_path / "t").write_bytes("Füchse, 狐\n".encode(encoding))
    assert reading.read_text(tmp_path / "t") == "Füchse, 狐\n"


def test_other_encodings_are_refused_by_byte(tmp_path):
    (tmp_path / "t").write_bytes("cat\nF\u00fcchse".encode("latin-1"))
    refused(lambda: reading.read_text(tmp_path / "t"), "byte 0xfc at position 5 (line 2)", "save it as UTF-8")
    refused(lambda: reading.decode_text(b"\xff\xfea", "names"), "UTF-16")


# ------------------------------------------------------------------------------------------ JSON


def test_json_values_are_those_of_the_standard_library():
    value = {"a": [1, -2.5, None, True, "ü"], "b": {"c": 2**63 - 1, "d": -(2**63 - 1), "e": 1e308}}
    for text in (json.dumps(value), "\ufeff" + json.dumps(value), json.dumps(value).encode("utf-16")):
        assert reading.parse_json(text, "x") == value
    assert reading.parse_json('{"a": 1, "a": 1}', "x") == {"a": 1}


@pytest.mark.parametrize(
    ("text", "word"),
    [
        ("[" * 65 + "]" * 65, "64 deep"),
        ("[" * 10**5 + "]" * 10**5, "64 deep"),
        ('{"a":' * 10**5, "64 deep"),
        ("9" * 5000, "beyond 64 bits"),
        (str(2**63), "beyond 64 bits"),
        ("1e999", "double precision"),
        ("-1e999", "double precision"),
        ("NaN", "no JSON number"),
        ("-Infinity", "no JSON number"),
        ('{"id": 1, "id": 2}', "'id' twice"),
        ("{", "not valid JSON"),
        ("", "not valid JSON"),
        ("\0" * 5000, "not valid JSON"),
        (b"\xff", "no UTF-8"),
    ],
)
def test_json_beyond_its_limits_is_refused(text, word):
    refused(lambda: reading.parse_json(text, "x.json", ArtifactError), "x.json", word, error=ArtifactError)


def test_json_within_its_limits():
    assert reading.parse_json("[" * 64 + "]" * 64, "x") is not None
    assert str(reading.parse_json("[NaN, 1e999]", "x", nonfinite=True)) == "[nan, inf]"
    assert reading.parse_json(str(10**30), "x", wide=True) == 10**30
    refused(lambda: reading.parse_json("9" * 101, "x", wide=True), "101 digits")


# ------------------------------------------------------------------------------------------ YAML

BOMB = "a0: &a0 [x]\n" + "".join(f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 9)}]\n" for i in range(1, 30))


def test_yaml_values():
    assert reading.parse_yaml("a: &x [1, 2.5]\nb: *x\nc: no\n", "r") == {"a": [1, 2.5], "b": [1, 2.5], "c": False}
    assert reading.parse_yaml("base: &b {k: 1}\nuse: {<<: *b, m: 2}", "r")["use"] == {"k": 1, "m": 2}
    assert reading.parse_yaml("", "r") is None and reading.parse_yaml("\ufeffa: 1", "r") == {"a": 1}


@pytest.mark.parametrize(
    ("text", "word"),
    [
        (BOMB, "100,000 values"),
        ("a: &a [*a]", "inside of what it names"),
        ("[" * 3000, "64 deep"),
        ("[" * 100 + "]" * 100, "64 deep"),
        ("a: 2024-99-99", "not valid YAML"),
        ("a: !!int x", "not valid YAML"),
        ("a: !!int ''", "not valid YAML"),
        ("a: !!timestamp x", "not valid YAML"),
        ("a: !!bool x", "not valid YAML"),
        ("a: !!python/object/apply:os.system [true]", "not valid YAML"),
        ("? [a]\n: b", "not valid YAML"),
        ("a: 1\na: 2", "line 2 gives the key 'a' again"),
        ("a: " + "9" * 5000, "not valid YAML"),
        ("a: 99999999999999999999", "beyond 64 bits"),
        ("a: .inf", "no finite number"),
        ("a: \x07", "not valid YAML"),
        ("a: [1", "not valid YAML"),
        ("x" * (2**20 + 1), "limit of 1,048,576 bytes"),
    ],
)
def test_yaml_beyond_its_limits_is_refused(text, word):
    refused(lambda: reading.parse_yaml(text, "r.yaml", ConfigError), "r.yaml", word, error=ConfigError)


def test_yaml_files(tmp_path):
    (tmp_path / "r.yaml").write_bytes(b"\xef\xbb\xbfa: 1\n")
    assert reading.read_yaml(tmp_path / "r.yaml") == {"a": 1}
    (tmp_path / "r.json").write_text("[1]")
    assert reading.read_json(tmp_path / "r.json") == [1]


# ------------------------------------------------------------------------------------------ archives


def archive(tmp_path, members, compression=zipfile.ZIP_DEFLATED):
    path = tmp_path / "a.zip"
    with zipfile.ZipFile(path, "w", compression) as file:
        for name, content in members:
            file.writestr(name, content)
    return path


def altered(path, **fields: int):
    """The archive with fields of every header set, as a packer that lies would."""
    places = {"flags": ((6, "<H"), (8, "<H")), "method": ((8, "<H"), (10, "<H")), "size": ((22, "<I"), (24, "<I"))}
    content = bytearray(path.read_bytes())
    for name, value in fields.items():
        for mark, (offset, form) in zip((b"PK\3\4", b"PK\1\2"), places[name]):
            start = content.find(mark)
            while start >= 0:
                struct.pack_into(form, content, start + offset, value)
                start = content.find(mark, start + 4)
    path.write_bytes(content)
    return path


@pytest.mark.parametrize("compression", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA])
def test_members_come_out_whole(tmp_path, compression):
    content = os.urandom(3000) * 5
    with Archive(archive(tmp_path, [("d/", ""), ("d/a", content), ("b", b"")], compression)) as opened:
        assert opened.names == ("d/a", "b") and "d/a" in opened and "d" not in opened
        assert opened.read("d/a") == content and opened.read("b") == b"" and opened.size("d/a") == 15000
        refused(lambda: opened.read("c"), "no file 'c'")
        refused(lambda: opened.read("d/a", limit=14999), "14,999")


def test_names_as_their_maker_meant_them(tmp_path):
    path = archive(tmp_path, [("train\\F?chse?\\1.png", b"1"), ("plain", b"2")])
    content = path.read_bytes().replace(b"F?chse?", "Füchse".encode())  # 7 bytes, and no flag that says UTF-8
    path.write_bytes(content)
    with Archive(path) as opened:
        assert opened.names == ("train/Füchse/1.png", "plain") and opened.read("train/Füchse/1.png") == b"1"


@pytest.mark.parametrize("name", ["/etc/x", "../x", "a/../../x", "a\\..\\x", "C:\\x"])
def test_names_that_leave_the_archive_are_refused(tmp_path, name):
    refused(lambda: Archive(archive(tmp_path, [(name, b"")])), "leaves the archive")


def test_one_name_has_one_content(tmp_path):
    with pytest.warns(UserWarning, match="Duplicate"):
        refused(lambda: Archive(archive(tmp_path, [("a", b"1"), ("a", b"2")])), "'a' twice")
    with pytest.warns(UserWarning, match="Duplicate"), Archive(archive(tmp_path, [("a", b"1")] * 2)) as opened:
        assert opened.read("a") == b"1"


def test_members_that_cannot_be_read_say_why(tmp_path):
    def read(**fields):
        path = altered(archive(tmp_path, [("a", b"0123456789" * 20)]), **fields)
        return lambda: Archive(path, error=ArtifactError).read("a")

    refused(read(flags=1), "encrypted", error=ArtifactError)
    refused(read(method=93), "cannot unpack", error=ArtifactError)
    refused(read(method=12), "cannot unpack", error=ArtifactError)
    refused(read(size=2**31), "limit", error=ArtifactError)
    refused(read(size=9), "cannot unpack", error=ArtifactError)
    refused(read(size=201), error=ArtifactError)
    link = zipfile.ZipInfo("a")
    link.create_system, link.external_attr = 3, 0o120777 << 16
    refused(lambda: Archive(archive(tmp_path, [(link, b"/etc/passwd")])).read("a"), "symbolic link")


@pytest.mark.parametrize("compression", [zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA])
@pytest.mark.parametrize("told", [None, 1000], ids=["honest", "lying"])
def test_bombs_are_counted_while_they_unpack(tmp_path, compression, told):
    path = archive(tmp_path, [("bomb", bytes(40 * 2**20))], compression)
    if told:
        altered(path, size=told)
    refused(lambda: Archive(path).read("bomb"))


@pytest.mark.parametrize("content", [b"", b"PK", b"PK\5\6" + bytes(18 * 2), b"PK\5\6" + b"\xff" * 18, bytes(1000)])
def test_what_is_no_archive_is_refused_or_empty(tmp_path, content):
    path = tmp_path / "a.zip"
    path.write_bytes(content)
    if content.startswith(b"PK\5\6\0"):
        assert Archive(path).names == ()
    else:
        refused(lambda: Archive(path, "class folders in a zip"), "class folders in a zip")


def test_a_broken_directory_is_refused(tmp_path):
    whole = archive(tmp_path, [(f"{i}", zlib.compress(bytes(i))) for i in range(20)]).read_bytes()
    start = whole.find(b"PK\1\2")
    for place in range(start, len(whole), 7):
        broken = bytearray(whole)
        broken[place] ^= 0xFF
        (tmp_path / "b.zip").write_bytes(broken)
        try:
            with Archive(tmp_path / "b.zip") as opened:
                for name in opened.names:
                    opened.read(name)
        except DataError as error:
            assert len(str(error)) < 400
    assert zipfile.is_zipfile(io.BytesIO(whole))
