"""Weights from an https address: fetched once, checked, never over http; the server is a real one."""

from __future__ import annotations

import datetime
import hashlib
import ipaddress
import ssl
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
import torch
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID
from safetensors.torch import save

from vdmini_core.artifacts import cache_folder
from vdmini_core.errors import DataError
from vdmini_core.metrics.weights_source import load_state_dict, locate

CONTENT = bytes(range(256)) * 8192  # 2 MiB
DIGEST = hashlib.sha256(CONTENT).hexdigest()


class Handler(BaseHTTPRequestHandler):
    asked: list[str] = []  # noqa: RUF012

    def do_GET(self) -> None:
        self.asked.append(self.path)
        redirected = {"/moved": "/w.pt", "/plain": f"http://127.0.0.1:{self.server.server_port}/w.pt"}  # type: ignore[attr-defined]
        if self.path in redirected:
            self.send_response(302)
            self.send_header("Location", redirected[self.path])
            self.end_headers()
        elif self.path == "/w.pt":
            self.send_response(200)
            self.send_header("Content-Length", str(len(CONTENT)))
            self.end_headers()
            self.wfile.write(CONTENT)
        else:
            self.send_error(404)

    def log_message(self, *_: object) -> None:
        pass


def self_signed(folder: Path) -> tuple[Path, Path]:
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "127.0.0.1")])
    now = datetime.datetime.now(datetime.UTC)
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(hours=1))
        .not_valid_after(now + datetime.timedelta(hours=1))
        .add_extension(
            x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address("127.0.0.1"))]), critical=False
        )
        .sign(key, hashes.SHA256())
    )
    chain, private = folder / "cert.pem", folder / "key.pem"
    chain.write_bytes(certificate.public_bytes(serialization.Encoding.PEM))
    private.write_bytes(
        key.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.NoEncryption(),
        )
    )
    return chain, private


@pytest.fixture
def server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    chain, private = self_signed(tmp_path)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(chain, private)
    made = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    made.socket = context.wrap_socket(made.socket, server_side=True)
    thread = threading.Thread(target=made.serve_forever, daemon=True)
    thread.start()
    monkeypatch.setenv("SSL_CERT_FILE", str(chain))
    monkeypatch.setenv("VDMINI_CACHE", str(tmp_path / "cache"))
    Handler.asked = []
    yield f"https://127.0.0.1:{made.server_port}"
    made.shutdown()
    made.server_close()
    thread.join()


def kept() -> list[Path]:
    return [path for path in cache_folder().rglob("*") if path.is_file()]


def test_fetched_once_and_found_again(server: str) -> None:
    path = locate(f"{server}/moved", DIGEST.upper())
    assert path.read_bytes() == CONTENT and kept() == [path]
    assert Handler.asked == ["/moved", "/w.pt"]
    assert locate(f"{server}/w.pt", DIGEST) == path
    assert len(Handler.asked) == 2
    path.write_bytes(b"damaged")
    with pytest.raises(DataError, match=r"(?s)other ones.*damaged copy"):
        locate(f"{server}/w.pt", DIGEST)


def test_what_is_refused_leaves_nothing_behind(server: str) -> None:
    for address, digest, why in (
        ("/w.pt", "0" * 64, f"(?s)that came are other ones.*{DIGEST}"),
        ("/w.pt", None, "need their sha256"),
        ("/w.pt", "../../w", "no sha256"),
        ("/gone.pt", DIGEST, "(?s)cannot be fetched.*404"),
        ("/plain", DIGEST, "(?s)https all the way.*http://127"),
    ):
        with pytest.raises(DataError, match=why):
            locate(server + address, digest)
    assert kept() == []


def test_an_answer_without_end_is_given_up(server: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("vdmini_core.metrics.weights_source.MAX_BYTES", len(CONTENT) - 1)
    with pytest.raises(DataError, match="the weights do not end"):
        locate(f"{server}/w.pt", DIGEST)
    assert kept() == []


def test_a_server_that_cannot_prove_who_it_is_is_refused(
    server: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("SSL_CERT_FILE")
    with pytest.raises(DataError, match=r"(?s)cannot be fetched.*(?i:certificate)"):
        locate(f"{server}/w.pt", DIGEST)


def test_safetensors_whose_length_looks_like_another_kind_of_file(tmp_path: Path) -> None:
    """A header of 128 bytes (mod 256) starts like a pickle, one of 0x4B50 (mod 65536) like a zip archive."""
    tensors, found = {"a": torch.arange(3.0)}, set()
    for wanted in (b"\x80", b"PK"):
        for padding in range(0, 24_000, 8):
            blob = save(tensors, {"note": "x" * padding})
            if blob.startswith(wanted):
                (tmp_path / "w").write_bytes(blob)
                assert torch.equal(load_state_dict(tmp_path / "w")["a"], tensors["a"])
                found.add(wanted)
                break
    assert found == {b"\x80", b"PK"}


def test_a_refusal_names_what_is_in_the_file(tmp_path: Path) -> None:
    torch.save(torch.nn.Linear(2, 2), tmp_path / "object.pt")
    (tmp_path / "pickle.pt").write_bytes(b"\x80\x02h\x00")
    for name, found in (
        ("object.pt", "an object of `torch.nn.modules.linear.Linear`"),
        ("pickle.pt", "no checkpoint of torch"),
    ):
        with pytest.raises(DataError, match="cannot be read as weights") as refusal:
            load_state_dict(tmp_path / name)
        assert found in str(refusal.value) and "Re-running" not in str(refusal.value)
