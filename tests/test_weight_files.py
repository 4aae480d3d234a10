"""Weights files: downloads from a server that does everything wrong, on the loopback."""
import hashlib
import http.server
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
import torch
from conftest import hash_state, openai_archive
from test_clip_model import one_line, sparse

import clip_model
from assets import weight_files

CONTENT = bytes(range(256)) * 2000
SUM = hashlib.sha256(CONTENT).hexdigest()


class Server(http.server.BaseHTTPRequestHandler):
    """Serves `content`; `mode` is what goes wrong, `seen` the path and Range of every request."""
    protocol_version = "HTTP/1.1"
    content, mode, seen, go = CONTENT, "", [], threading.Event()

    def do_GET(self):
        content, mode, wanted = Server.content, Server.mode, self.headers.get("Range")
        Server.seen.append((self.path, wanted))
        self.close_connection = True
        ranges = wanted and mode not in ("no ranges", "no ranges, breaks", "page")
        start = int(wanted.removeprefix("bytes=").removesuffix("-")) if ranges else 0
        if mode == "garbage":
            return self.wfile.write(b"HTTP/1.1 what is this?\r\n\r\n")
        if mode in ("404", "503") or start >= len(content):
            return self.send_error(int(mode or 416))
        self.send_response(206 if start else 200)
        body = content[start:]
        if start:
            sent = {"other range": 0, "no range": None}.get(mode, start)
            if sent is not None:
                self.send_header("Content-Range", f"bytes {sent}-{len(content) - 1}/{len(content)}")
        if mode in ("wrong", "page"):
            body = b"<html>Please sign in</html>"
        if mode == "short":
            body = body[:1000]
        if mode == "breaks in chunks":
            self.send_header("Transfer-Encoding", "chunked")
            self.end_headers()
            return self.wfile.write(b"3E8\r\n" + body[:1000] + b"\r\n3E8\r\n"
                                    + body[1000:1003])
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if mode == "stalls":
            self.wfile.write(body[:70_001])
            return Server.go.wait(10)
        if mode == "slow":
            Server.go.wait(10)
        self.wfile.write(body[:1000] if "breaks" in mode else body)

    def log_message(self, *_):
        pass


@pytest.fixture
def server(tmp_path, monkeypatch):
    Server.content, Server.mode, Server.seen, Server.go = CONTENT, "", [], threading.Event()
    httpd = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Server)
    threading.Thread(target=httpd.serve_forever, args=(.01,), daemon=True).start()
    for name in ("no_proxy", "NO_PROXY"):
        monkeypatch.setenv(name, "127.0.0.1")
    monkeypatch.setattr(weight_files, "URL", f"http://127.0.0.1:{httpd.server_port}")
    monkeypatch.setattr(weight_files, "CACHE", tmp_path / "of" / "clip")    # made if missing
    yield Server
    Server.go.set()
    httpd.shutdown()
    httpd.server_close()


def cached():
    """Without the lock, which some versions of filelock leave behind."""
    return {path.name: path.read_bytes() for path in weight_files.CACHE.iterdir()
            if path.suffix != ".lock"}


def half():
    weight_files.CACHE.mkdir(parents=True)
    (weight_files.CACHE / "model.part").write_bytes(CONTENT[:5000])
    return {"model.part": CONTENT[:5000]}


def test_a_named_model_is_fetched_once(server, tmp_path, monkeypatch):
    state = hash_state(vl=1, tl=1)
    openai_archive(sparse(state), tmp_path / "archive.pt")
    server.content = (tmp_path / "archive.pt").read_bytes()
    digest = hashlib.sha256(server.content).hexdigest()
    monkeypatch.setitem(weight_files.MODELS, "ViT-B/16", (digest, "ViT-B-16.pt"))
    for _ in range(2):
        clip = clip_model.load("ViT-B/16")
        assert torch.equal(clip.visual.proj, state["visual.proj"].half().float())
    assert server.seen == [(f"/{digest}/ViT-B-16.pt", None)]
    assert cached() == {"ViT-B-16.pt": server.content}


def test_download_is_checked_kept_and_not_repeated(server):
    path = weight_files.download(SUM, "model.pt")
    assert path == weight_files.CACHE / "model.pt" and cached() == {"model.pt": CONTENT}
    assert weight_files.download(SUM, "model.pt") == path
    assert server.seen == [(f"/{SUM}/model.pt", None)]


@pytest.mark.parametrize("first, came, reason", [
    ("breaks", 1000, "the connection ended after 1000 of 512000 bytes"),
    ("breaks in chunks", 1003, "IncompleteRead")])
@pytest.mark.parametrize("second", ["", "no ranges"])
def test_interrupted_download_goes_on(server, first, came, reason, second):
    server.mode = first
    with pytest.raises(FileNotFoundError, match=f"could not download model.pt .*{reason}") as error:
        weight_files.download(SUM, "model.pt")
    assert one_line(error) and list(cached()) == ["model.part"]    # no half has the final name
    assert cached()["model.part"] == CONTENT[:came]
    server.mode = second
    weight_files.download(SUM, "model.pt")
    assert cached() == {"model.pt": CONTENT}
    assert [wanted for _, wanted in server.seen] == [None, f"bytes={came}-"]


@pytest.mark.parametrize("mode, error, message", [
    ("page", ValueError, "came with a wrong SHA-256 and was deleted"),
    ("other range", FileNotFoundError, "asked for the bytes from 5000 on, got bytes 0-511999/5"),
    ("no range", FileNotFoundError, "asked for the bytes from 5000 on, got others"),
    ("no ranges, breaks", FileNotFoundError, "connection ended after 1000 of 512000 bytes"),
    ("503", FileNotFoundError, "could not download model.pt .Service Unavailable")])
def test_an_answer_that_does_not_go_on_costs_no_half_download(server, mode, error, message):
    before, server.mode = half(), mode
    with pytest.raises(error, match=message) as raised:
        weight_files.download(SUM, "model.pt")
    assert one_line(raised) and cached() == before
    server.mode = ""
    weight_files.download(SUM, "model.pt")
    assert cached() == {"model.pt": CONTENT} and server.seen[-1][1] == "bytes=5000-"


def test_a_rest_that_is_announced_too_short_is_kept(server):
    half()
    server.mode = "short"
    with pytest.raises(FileNotFoundError, match="the connection ended after 6000 of 512000 bytes"):
        weight_files.download(SUM, "model.pt")
    assert cached() == {"model.part": CONTENT[:6000]}


def test_a_stalled_server_times_out_and_loses_nothing(server, monkeypatch):
    monkeypatch.setattr(weight_files, "TIMEOUT", .3)
    server.mode = "stalls"
    with pytest.raises(FileNotFoundError, match="could not download model.pt .timed out"):
        weight_files.download(SUM, "model.pt")
    assert cached() == {"model.part": CONTENT[:70_001]}
    server.mode = ""
    weight_files.download(SUM, "model.pt")
    assert cached() == {"model.pt": CONTENT}


FETCH = """
import sys
from pathlib import Path
from assets import weight_files
weight_files.URL, weight_files.CACHE = sys.argv[1], Path(sys.argv[2])
print("ready", flush=True)
print(weight_files.download(sys.argv[3], "model.pt"))
"""


def test_two_processes_at_once_both_end_well(server):
    server.mode = "slow"
    command = [sys.executable, "-c", FETCH, weight_files.URL, str(weight_files.CACHE), SUM]
    both = [subprocess.Popen(command, cwd=Path(clip_model.__file__).parent, text=True,
                             stdout=subprocess.PIPE, stderr=subprocess.PIPE) for _ in range(2)]
    for process in both:
        assert process.stdout.readline() == "ready\n"
    time.sleep(.5)                              # one has asked by now, the other waits for it
    assert len(server.seen) == 1
    server.go.set()
    for process in both:
        out, error = process.communicate(timeout=20)
        assert process.returncode == 0 and out.strip().endswith("model.pt"), error
    assert cached() == {"model.pt": CONTENT} and len(server.seen) == 1


def test_a_part_that_is_whole_needs_only_its_name(server):
    weight_files.CACHE.mkdir(parents=True)
    (weight_files.CACHE / "model.part").write_bytes(CONTENT)
    weight_files.download(SUM, "model.pt")
    assert cached() == {"model.pt": CONTENT}


@pytest.mark.parametrize("part", [CONTENT + b"x", b"x" + CONTENT[:5000]],
                         ids=["too long", "of another file"])
def test_a_part_that_does_not_fit_is_thrown_away(server, part):
    weight_files.CACHE.mkdir(parents=True)
    (weight_files.CACHE / "model.part").write_bytes(part)
    with pytest.raises(ValueError, match="wrong SHA-256 and was deleted; run again"):
        weight_files.download(SUM, "model.pt")
    assert cached() == {}
    weight_files.download(SUM, "model.pt")
    assert cached() == {"model.pt": CONTENT}


def test_wrong_sums(server):
    server.mode = "wrong"
    message = f"{SUM}/model.pt came with a wrong SHA-256 and was deleted"
    with pytest.raises(ValueError, match=message) as error:
        weight_files.download(SUM, "model.pt")
    assert one_line(error) and cached() == {}
    (weight_files.CACHE / "model.pt").write_bytes(b"mine")
    message = f"clip/model.pt has a wrong SHA-256, expected {SUM}: delete it"
    with pytest.raises(ValueError, match=message) as error:
        weight_files.download(SUM, "model.pt")
    assert one_line(error) and cached() == {"model.pt": b"mine"}       # overwrites nobody's file
    assert len(server.seen) == 1


@pytest.mark.parametrize("mode, reason", [
    ("404", "Not Found"), ("garbage", "HTTP/1.1 what"), ("nobody listens", "refused")])
def test_without_a_network_one_line_says_what_to_put_where(server, monkeypatch, mode, reason):
    server.mode = mode
    if mode == "nobody listens":
        monkeypatch.setattr(weight_files, "URL", "http://127.0.0.1:9")
    with pytest.raises(FileNotFoundError) as error:
        clip_model.load("ViT-B/16")
    message = str(error.value)
    url = f"{weight_files.URL}/{weight_files.MODELS['ViT-B/16'][0]}/ViT-B-16.pt"
    assert message.startswith("could not download ViT-B-16.pt (") and reason in message
    assert one_line(error)
    assert message.endswith(f"put the file from {url} into {weight_files.CACHE}")
    assert cached() == {}
