"""Downloads, from a server on this machine only; each test says how the server misbehaves."""

import contextlib
import functools
import hashlib
import http.client
import io
import re
import shutil
import stat
import threading
import zipfile
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from ctssl_jax.errors import ConfigError, DataError, StorageError
from data_prep import organsmnist
from data_prep.download import fetch as download
from data_prep.download import unpack
from data_prep.download.fetch import MB, Remote, fetch

CONTENT = bytes(range(256)) * 20_000  # 5.12 MB


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_GET(self):
        server, asked = self.server, self.headers["Range"]
        server.asked.append(asked)
        if server.errors:
            return self.answer(server.errors.pop(0))
        if self.path == "/elsewhere.bin":
            return self.answer(302, Location=server.location)
        start = int(asked.removeprefix("bytes=").removesuffix("-")) if asked else 0
        if server.ranges and start >= len(server.content):
            return self.answer(416)
        start = start if server.ranges else 0
        body = server.content[start:]
        length = {} if server.chunked else {"Content-Length": len(body)}
        if start:
            shown = f"bytes {start + server.shift}-{len(server.content) - 1}/{len(server.content)}"
            self.answer(206, body=None, **{"Content-Range": shown}, **length)
        else:
            self.answer(200, body=None, **length)
        stop = server.cuts.pop(0) if server.cuts else len(body)
        with contextlib.suppress(ConnectionError):  # who refuses a file hangs up
            self.wfile.write(body[:stop])
        self.close_connection = True

    def answer(self, status, body=b"", **headers):
        self.send_response(status)
        if body is not None:
            headers["Content-Length"] = len(body)
        for name, value in headers.items():
            self.send_header(name, str(value))
        self.send_header("Connection", "close")
        self.end_headers()

    def log_message(self, *args):
        pass


@pytest.fixture
def server(monkeypatch):
    monkeypatch.setattr(download, "BACKOFF_S", 0.0)
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        server.content, server.ranges, server.chunked, server.shift = CONTENT, True, False, 0
        server.cuts, server.errors, server.asked, server.location = [], [], [], ""
        server.url = f"http://127.0.0.1:{server.server_port}/set.bin"
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        yield server
        server.shutdown()
        thread.join()


def remote(server, content=CONTENT, limit=10 * MB, url=None):
    return Remote(url or server.url, "sha256", hashlib.sha256(content).hexdigest(), limit)


def files(folder):
    return sorted(path.name for path in folder.rglob("*"))


def test_a_file_comes_whole_and_a_second_time_not_at_all(server, tmp_path):
    out = tmp_path / "new" / "folder"
    assert fetch(remote(server), out) == out / "set.bin"
    assert (out / "set.bin").read_bytes() == CONTENT
    assert files(out) == ["set.bin"]
    fetch(remote(server), out)
    assert server.asked == [None]


def test_a_cut_connection_is_taken_up_where_it_ended(server, tmp_path):
    server.cuts = [1_000_000, 2_500_000]
    fetch(remote(server), tmp_path)
    assert (tmp_path / "set.bin").read_bytes() == CONTENT
    assert server.asked == [None, "bytes=1000000-", "bytes=3500000-"]


def test_cuts_without_end_are_borne_as_long_as_something_comes(server, tmp_path):
    server.cuts = [500_000] * 9
    fetch(remote(server), tmp_path)
    assert len(server.asked) == 10


def test_a_killed_download_is_taken_up_by_the_next_command(server, tmp_path):
    (tmp_path / ".set.bin.part").write_bytes(CONTENT[:4_000_000])
    fetch(remote(server), tmp_path)
    assert server.asked == ["bytes=4000000-"]
    assert (tmp_path / "set.bin").read_bytes() == CONTENT


def test_a_complete_part_needs_nothing_more(server, tmp_path):
    (tmp_path / ".set.bin.part").write_bytes(CONTENT)
    fetch(remote(server), tmp_path)
    assert files(tmp_path) == ["set.bin"]


def test_a_server_without_parts_starts_again(server, tmp_path):
    server.ranges, server.cuts = False, [1_000_000]
    fetch(remote(server), tmp_path)
    assert server.asked == [None, "bytes=1000000-"]
    assert (tmp_path / "set.bin").read_bytes() == CONTENT


def test_a_server_that_sends_another_part_is_not_believed(server, tmp_path):
    server.shift = 1
    (tmp_path / ".set.bin.part").write_bytes(CONTENT[:1000])
    with pytest.raises(StorageError, match=r"another part than asked for; repeat"):
        fetch(remote(server), tmp_path)
    assert (tmp_path / ".set.bin.part").read_bytes() == CONTENT[:1000]


def test_a_part_of_another_file_is_found_by_the_checksum_and_deleted(server, tmp_path):
    (tmp_path / ".set.bin.part").write_bytes(b"x" * 1000)
    with pytest.raises(DataError, match=r"set.bin: wrong sha256 checksum, deleted"):
        fetch(remote(server), tmp_path)
    assert files(tmp_path) == []
    fetch(remote(server), tmp_path)
    assert files(tmp_path) == ["set.bin"]


def test_a_file_that_is_there_is_never_overwritten(server, tmp_path):
    (tmp_path / "set.bin").write_bytes(b"mine")
    with pytest.raises(DataError, match="is there already and is another file"):
        fetch(remote(server), tmp_path)
    assert (tmp_path / "set.bin").read_bytes() == b"mine"
    assert server.asked == []


def test_without_a_stated_length_the_checksum_decides(server, tmp_path):
    server.chunked = True
    fetch(remote(server), tmp_path)
    assert (tmp_path / "set.bin").read_bytes() == CONTENT


def test_errors_of_the_server_are_tried_again_with_growing_pauses(server, tmp_path, monkeypatch):
    pauses = []
    monkeypatch.setattr(download, "BACKOFF_S", 1.0)
    monkeypatch.setattr(download.time, "sleep", pauses.append)
    server.errors = [503, 500, 429]
    fetch(remote(server), tmp_path)
    assert pauses == [1, 2, 4]
    server.errors = [500] * 99
    with pytest.raises(StorageError, match="the server answers 500; repeat the command later"):
        fetch(remote(server, b""), tmp_path / "other")
    assert len(server.asked) == 4 + download.ATTEMPTS
    assert len(pauses) == 3 + download.ATTEMPTS - 1


def test_a_missing_file_is_not_tried_again(server, tmp_path):
    server.errors = [404, 404]
    with pytest.raises(DataError, match="the server answers 404"):
        fetch(remote(server), tmp_path)
    assert len(server.asked) == 1


def test_a_server_that_is_not_there(tmp_path, server):
    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as gone:
        url = f"http://127.0.0.1:{gone.server_port}/set.bin"
    with pytest.raises(StorageError, match=r"cannot be reached \(ConnectionRefusedError\)"):
        fetch(remote(server, url=url), tmp_path)


def test_a_redirect_is_followed_on_this_machine_and_never_to_http(server, tmp_path):
    elsewhere = server.url.replace("set", "elsewhere")
    server.location = server.url
    path = fetch(remote(server, url=elsewhere), tmp_path)
    assert path.read_bytes() == CONTENT
    path.unlink()
    for location in ("http://example.invalid/set.bin", "ftp://127.0.0.1/set.bin"):
        server.location = location
        with pytest.raises(ConfigError, match="leads to an address that is not https"):
            fetch(remote(server, url=elsewhere), tmp_path)
    assert files(tmp_path) == []
    server.location = elsewhere  # for ever
    with pytest.raises(DataError, match="the server answers 302"):
        fetch(remote(server, url=elsewhere), tmp_path)


def test_a_redirect_does_not_lead_from_outside_to_this_machine(server):
    request = download.urllib.request.Request("https://example.invalid/set.bin")
    headers = http.client.HTTPMessage()
    with pytest.raises(DataError, match="an address of this machine"):
        download._Redirects().redirect_request(request, None, 302, "", headers, server.url)


@pytest.mark.parametrize(
    ("url", "named"),
    [
        ("http://example.invalid/set.bin", "must begin with https"),
        ("file:///etc/passwd", "must begin with https"),
        ("ftp://127.0.0.1/set.bin", "must begin with https"),
        ("http://127.0.0.1.example.invalid/set.bin", "must begin with https"),
        ("https://example.invalid/", "end with a plain file name"),
        ("https://example.invalid/..", "end with a plain file name"),
        ("https://example.invalid/%2e%2e%2fset", "end with a plain file name"),
    ],
)
def test_urls_that_are_refused_before_any_connection(url, named, tmp_path):
    with pytest.raises(ConfigError, match=named):
        fetch(Remote(url, "md5", "0" * 32, MB), tmp_path)
    assert files(tmp_path) == []


def test_a_file_over_the_limit_is_refused(server, tmp_path):
    with pytest.raises(DataError, match="more than 5 MB; raise --max_mb"):
        fetch(remote(server, limit=5 * MB), tmp_path)
    server.chunked = True  # now nobody says so beforehand
    with pytest.raises(DataError, match="more than 5 MB; raise --max_mb"):
        fetch(remote(server, limit=5 * MB), tmp_path)
    assert files(tmp_path) in ([], [".set.bin.part"])
    assert sum(path.stat().st_size for path in tmp_path.iterdir()) <= 5 * MB + download.CHUNK


def test_a_full_disk_is_told_before_anything_comes(server, tmp_path, monkeypatch):
    full = shutil.disk_usage(tmp_path)._replace(free=5 * MB)
    monkeypatch.setattr(download.shutil, "disk_usage", lambda folder: full)
    with pytest.raises(StorageError, match="5 MB to come, 5 MB free in --out"):
        fetch(remote(server), tmp_path)
    assert files(tmp_path) == []


def test_a_disk_that_refuses_is_told(server, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(StorageError, match=r"cannot write set.bin in --out"):
        fetch(remote(server), tmp_path / "file")


def test_progress_tells_rate_and_end(server, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(download, "Progress", functools.partial(download.Progress, every=0.0))
    monkeypatch.setattr(download, "CHUNK", 250_000)  # less than the MB that are counted
    fetch(remote(server), tmp_path)
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 5
    assert re.fullmatch(r"3 of 6 MB of set.bin, [\d,]+ per second, done at [\d:]{8}", lines[2])


# The command.


def test_organs_are_fetched_by_the_checksums_that_their_loader_knows(monkeypatch, tmp_path):
    asked = []

    def fetched(remote, folder):
        asked.append(remote)
        return folder / remote.url.rpartition("/")[2]

    monkeypatch.setattr(download, "fetch", fetched)
    for name in download.FILES:
        assert download.main([name, f"--out={tmp_path}", "--max_mb=900"]) == 0
    assert {remote.limit for remote in asked} == {900 * MB}
    known = {(name, md5) for name, sums in organsmnist.MD5.items() for md5 in sums}
    assert {(remote.url.rpartition("/")[2], remote.checksum) for remote in asked} == known
    for remote in asked:
        record = "6496656" if remote.checksum == organsmnist.VERSION_2 else "10519652"
        assert remote.url.startswith(f"https://zenodo.org/records/{record}/files/organsmnist")


def command(server, out, *flags, url=None):
    return download.main(["covid_ct", f"--out={out}", f"--url={url or server.url}", *flags])


def test_command_fetches_a_mirror(server, tmp_path, capsys):
    for algorithm in ("sha256", "md5"):
        digest = hashlib.new(algorithm, CONTENT).hexdigest().upper()
        assert command(server, tmp_path / algorithm, f"--{algorithm}={digest}") == 0
        assert (tmp_path / algorithm / "set.bin").read_bytes() == CONTENT
    assert "set.bin: checked" in capsys.readouterr().out
    assert command(server, tmp_path / "wrong", f"--md5={'0' * 32}") == 3
    assert files(tmp_path / "wrong") == []


@pytest.mark.parametrize(
    ("flags", "named"),
    [
        (["covid_ct"], "covid_ct is not fetched by URL; Cite: "),
        (["lidc"], "NBIA"),
        (["hemorrhage"], "kaggle"),
        (["covid_ct", "--url=https://example.invalid/a.zip"], "give --sha256 or --md5"),
        (["covid_ct", "--url=https://example.invalid/a.zip", "--md5=12"], "must be 32 hex"),
        (["covid_ct", f"--md5={'0' * 32}"], "give its --url too"),
    ],
)
def test_command_that_lacks_something_says_what(flags, named, tmp_path, capsys):
    assert download.main([*flags, f"--out={tmp_path / 'out'}"]) == 2
    error = capsys.readouterr().err
    assert named in error
    assert error.count("\n") == 1
    assert not (tmp_path / "out").exists()


# Archives.


def archive(path, members, compression=zipfile.ZIP_STORED):
    with zipfile.ZipFile(path, "w", compression) as file:
        for name, content in members:
            file.writestr(name, content)
    return path


def test_command_unpacks_an_archive(server, tmp_path):
    members = [("CT_COVID/", b""), ("CT_COVID/a%1.png", b"one"), ("Data-split/b.txt", b"two")]
    server.content = archive(tmp_path / "made.zip", members).read_bytes()
    server.url = server.url.replace("set.bin", "set.zip")
    digest = hashlib.sha256(server.content).hexdigest()
    assert command(server, tmp_path / "out", f"--sha256={digest}") == 0
    out = tmp_path / "out" / "set"
    assert files(out) == ["CT_COVID", "Data-split", "a%1.png", "b.txt"]
    assert (out / "CT_COVID" / "a%1.png").read_bytes() == b"one"
    assert files(tmp_path / "out")[:2] == ["CT_COVID", "Data-split"]  # no temporary folder


def link():
    member = zipfile.ZipInfo("link")
    member.external_attr = (stat.S_IFLNK | 0o777) << 16
    return member


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("../out.txt", "leaves its folder"),
        ("a/../../out.txt", "leaves its folder"),
        ("/out.txt", "leaves its folder"),
        ("..\\out.txt", "leaves its folder"),
        ("C:out.txt", "leaves its folder"),
        (link(), "link or device"),
    ],
)
def test_an_archive_that_would_write_elsewhere_is_refused_whole(tmp_path, name, reason):
    (tmp_path / "in").mkdir()
    path = archive(tmp_path / "in" / "set.zip", [("good.txt", b"good"), (name, b"/etc/passwd")])
    with pytest.raises(DataError, match=reason):
        unpack.unpack(path, MB)
    assert files(tmp_path) == ["in", "set.zip"]


def test_an_archive_that_grows_too_much_is_refused(tmp_path):
    zeros = [("zeros", bytes(900_000))]
    path = archive(tmp_path / "set.zip", zeros, zipfile.ZIP_DEFLATED)
    with pytest.raises(DataError, match=r"too much in it \(1 files, 900,000 bytes\)"):
        unpack.unpack(path, MB)
    path = archive(tmp_path / "set.zip", zeros)
    with pytest.raises(DataError, match="too much in it"):
        unpack.unpack(path, 899_999)
    assert unpack.unpack(path, 900_000) == tmp_path / "set"


def test_damaged_archives_leave_nothing(tmp_path):
    good = archive(tmp_path / "set.zip", [("a.txt", b"content of a")]).read_bytes()
    damaged = {
        "cut": good[:-30],
        "altered": good.replace(b"content", b"cOntent", 1),
        "none": b"<html>not found</html>",
        "encrypted": good.replace(
            b"PK\x01\x02\x14\x03\x14\x00\x00", b"PK\x01\x02\x14\x03\x14\x00\x01"
        ),
    }
    for content in damaged.values():
        (tmp_path / "set.zip").write_bytes(content)
        with pytest.raises(DataError, match=r"set.zip is (encrypted|not a zip archive)"):
            unpack.unpack(tmp_path / "set.zip", MB)
        assert files(tmp_path) == ["set.zip"]


def test_names_that_collide_are_refused_and_a_folder_is_not_overwritten(tmp_path):
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as file:
        file.writestr("a", b"one")
        file.writestr("./a", b"two")
    (tmp_path / "set.zip").write_bytes(buffer.getvalue())
    with pytest.raises(DataError, match="two files of one name"):
        unpack.unpack(tmp_path / "set.zip", MB)
    (tmp_path / "set").mkdir()
    with pytest.raises(DataError, match="set in --out is there already"):
        unpack.unpack(tmp_path / "set.zip", MB)
