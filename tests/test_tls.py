"""Certificates: chosen by name, read anew, a broken one named and the old one kept."""

import os
import socket
import ssl
import stat
import threading
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import serialization

from server.listen import ListenSyntax, parse_listen
from server.sockets import BindFailed, open_listeners
from server.tls import CertificateError, ServerTls, make_self_signed


@pytest.fixture
def place(tmp_path: Path) -> Path:
    """A default certificate and three for domains."""
    make_self_signed(tmp_path / "default", names=["mail.example.org"])
    for directory, names in (
        ("a", ["a.example", "*.wild.example"]),
        ("b", ["b.example"]),
        ("c", ["XN--BCHER-KVA.example"]),
    ):
        made = make_self_signed(tmp_path / "domains" / directory, names=names)
        if directory == "b":  # as certbot names them
            for path, name in zip(made, ("fullchain.pem", "privkey.pem"), strict=True):
                path.rename(path.with_name(name))
    (tmp_path / "domains" / "README").write_text("not a directory")
    return tmp_path


def load(place: Path, **more) -> ServerTls:
    default = place / "default"
    return ServerTls(
        default / "certificate.pem", default / "key.pem", domains_directory=place / "domains", **more
    )


def shown(context: ssl.SSLContext, name: str | None) -> x509.Certificate:
    """The certificate that a client is shown that asks for a name."""
    ours, theirs = socket.socketpair()

    def serve() -> None:
        with theirs, context.wrap_socket(theirs, server_side=True):
            pass

    server = threading.Thread(target=serve)
    server.start()
    client = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    client.check_hostname = False
    client.verify_mode = ssl.CERT_NONE
    with ours, client.wrap_socket(ours, server_hostname=name) as secured:
        found = x509.load_der_x509_certificate(secured.getpeercert(binary_form=True) or b"")
    server.join()
    return found


def subject(context: ssl.SSLContext, name: str | None) -> str:
    return shown(context, name).subject.rfc4514_string().removeprefix("CN=")


@pytest.mark.parametrize(
    ("asked", "expected"),
    [
        ("a.example", "a.example"),
        ("A.EXAMPLE", "a.example"),
        ("b.example", "b.example"),
        ("x.wild.example", "a.example"),
        ("x.y.wild.example", "mail.example.org"),
        ("wild.example", "mail.example.org"),
        ("bücher.example", "XN--BCHER-KVA.example"),
        ("unknown.example", "mail.example.org"),
        ("mail.example.org", "mail.example.org"),
        ("x" * 63 + ".example", "mail.example.org"),
        (None, "mail.example.org"),
    ],
)
def test_the_name_asked_for_chooses_the_certificate(place, asked, expected):
    tls = load(place)
    assert tls.problems == ()
    assert subject(tls.context(), asked) == expected


def test_a_reload_brings_what_is_new_and_changed_to_listeners_of_before(place):
    tls = load(place)
    listener = tls.context()
    serial = shown(listener, "a.example").serial_number
    kept = tls._names["b.example"]
    for name in ("certificate.pem", "key.pem"):
        (place / "domains" / "a" / name).unlink()
        (place / "default" / name).unlink()
    make_self_signed(place / "domains" / "a", names=["a.example"])
    make_self_signed(place / "domains" / "d", names=["d.example"])
    make_self_signed(place / "default", names=["new.example.org"])
    assert tls.reload() == ()
    assert shown(listener, "a.example").serial_number != serial
    assert subject(listener, "d.example") == "d.example"
    assert subject(listener, "x.wild.example") == "new.example.org"
    assert tls._names["b.example"] is kept


def test_a_directory_that_is_gone_takes_its_names_along(place):
    tls = load(place)
    for path in (place / "domains" / "a").iterdir():
        path.unlink()
    (place / "domains" / "a").rmdir()
    assert tls.reload() == ()
    assert subject(tls.context(), "a.example") == "mail.example.org"


@pytest.mark.parametrize("broken", ["nonsense", "other key", "no key", "no file", "encrypted"])
def test_a_broken_certificate_is_named_and_the_old_one_kept(place, broken):
    tls = load(place)
    directory = place / "domains" / "a"
    if broken == "nonsense":
        (directory / "certificate.pem").write_text("nonsense")
    elif broken == "other key":
        (directory / "key.pem").write_bytes((place / "default" / "key.pem").read_bytes())
    elif broken == "no key":
        (directory / "key.pem").write_text("")
    elif broken == "no file":
        (directory / "key.pem").unlink()
    else:
        key = serialization.load_pem_private_key((directory / "key.pem").read_bytes(), None)
        (directory / "key.pem").write_bytes(
            key.private_bytes(
                serialization.Encoding.PEM,
                serialization.PrivateFormat.PKCS8,
                serialization.BestAvailableEncryption(b"secret"),
            )
        )
    make_self_signed(place / "domains" / "d", names=["d.example"])
    (problem,) = tls.reload()
    assert str(directory) in problem
    assert "secret" not in problem
    assert subject(tls.context(), "a.example") == "a.example"
    assert subject(tls.context(), "d.example") == "d.example"


def test_a_broken_default_is_named_kept_and_keeps_no_domain_from_its_renewal(place):
    tls = load(place)
    (place / "default" / "certificate.pem").write_text("nonsense")
    make_self_signed(place / "domains" / "d", names=["d.example"])
    (problem,) = tls.reload()
    assert str(place / "default" / "certificate.pem") in problem
    assert subject(tls.context(), None) == "mail.example.org"
    assert subject(tls.context(), "d.example") == "d.example"


def test_a_start_with_a_broken_domain_serves_the_others(place):
    (place / "domains" / "a" / "certificate.pem").write_text("nonsense")
    (place / "domains" / "e").mkdir()
    tls = load(place)
    assert [
        str(place / "domains" / name) in problem for name, problem in zip("ae", tls.problems, strict=True)
    ]
    assert subject(tls.context(), "a.example") == "mail.example.org"
    assert subject(tls.context(), "b.example") == "b.example"


def test_a_directory_that_cannot_be_read_leaves_the_old_certificates(place):
    tls = load(place)
    (place / "domains").rename(place / "moved")
    (problem,) = [one for one in tls.reload() if str(place / "domains") + ":" in one]
    assert "No such file" in problem
    assert subject(tls.context(), "b.example") == "b.example"


def test_a_start_with_a_broken_default_is_refused(place):
    (place / "default" / "key.pem").write_text("nonsense")
    with pytest.raises(CertificateError, match=str(place / "default" / "certificate.pem")):
        load(place)


def test_of_two_for_one_name_the_one_that_is_good_for_longer_is_shown(place):
    make_self_signed(place / "domains" / "0", names=["b.example", "first.example"], days=900)
    make_self_signed(place / "domains" / "z", names=["b.example", "last.example"], days=30)
    names = shown(load(place).context(), "b.example").extensions.get_extension_for_class(
        x509.SubjectAlternativeName
    )
    assert "first.example" in names.value.get_values_for_type(x509.DNSName)


@pytest.mark.parametrize(("minimum", "spoken"), [("1.2", True), ("1.3", False)])
def test_the_oldest_version_is_as_set(place, minimum, spoken):
    context = load(place, minimum_version=minimum).context()
    ours, theirs = socket.socketpair()
    faults: list[OSError] = []

    def serve() -> None:
        try:
            with theirs, context.wrap_socket(theirs, server_side=True):
                pass
        except OSError as error:
            faults.append(error)

    server = threading.Thread(target=serve)
    server.start()
    client = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    client.check_hostname = False
    client.verify_mode = ssl.CERT_NONE
    client.maximum_version = ssl.TLSVersion.TLSv1_2
    try:
        with ours, client.wrap_socket(ours, server_hostname="b.example") as secured:
            assert spoken
            assert secured.version() == "TLSv1.2"
    except ssl.SSLError:
        assert not spoken
    server.join()
    assert bool(faults) is not spoken


def test_keys_of_session_tickets_are_changed_each_day(place, monkeypatch):
    now = 1000.0
    monkeypatch.setattr("server.tls.time.monotonic", lambda: now)
    tls = load(place)
    first = tls.context()
    now += 24 * 3600 - 1
    assert tls.context() is first
    now += 1
    second = tls.context()
    assert second is not first
    assert second is tls.context()
    assert subject(first, "a.example") == subject(second, "a.example") == "a.example"
    for name in ("certificate.pem", "key.pem"):
        (place / "default" / name).unlink()
    now += 24 * 3600
    assert tls.context() is second
    make_self_signed(place / "default", names=["new.example.org"])
    now += 24 * 3600
    assert subject(tls.context(), None) == "mail.example.org", "what has changed waits for a reload"
    assert tls.reload() == ()
    assert subject(tls.context(), None) == "new.example.org"


def test_a_unix_socket_has_the_mode_and_group_that_were_asked_for(tmp_path):
    path = tmp_path / "lmtp"
    group = os.getgid()
    import grp

    name = grp.getgrgid(group).gr_name
    ((listen, made),) = open_listeners([f"unix:{path},mode=0622,group={name}"], {})
    with made:
        found = path.stat()
        assert (stat.S_IMODE(found.st_mode), found.st_gid) == (0o622, group)
        assert parse_listen(str(listen)) == listen
    ((_, again),) = open_listeners([f"unix:{path}"], {})  # in place of what was left there
    again.close()


@pytest.mark.parametrize(
    ("text", "reason"), [("owner=nobody-of-that-name", "no such user"), ("group=none.such", "no such group")]
)
def test_an_unknown_owner_is_told(tmp_path, text, reason):
    with pytest.raises(BindFailed, match=reason):
        open_listeners([f"unix:{tmp_path / 'x'},{text}"], {})


def test_a_file_that_is_no_socket_is_never_removed(tmp_path):
    path = tmp_path / "precious"
    path.write_text("data")
    with pytest.raises(BindFailed, match="File exists"):
        open_listeners([f"unix:{path}"], {})
    assert path.read_text() == "data"


@pytest.mark.parametrize(
    ("text", "word"),
    [
        ("tcp:0.0.0.0:24,mode=0660", "Unix socket"),
        ("unix:/x,mode=9", "no mode"),
        ("unix:/x,mode=", "no mode"),
        ("unix:/x,mode=04755", "no mode"),
        ("unix:/x,mode=0660,mode=0666", "twice"),
        ("unix:/x,proxy,proxy", "twice"),
        ("unix:/x,owner=", "no name"),
        ("unix:/x,owner=a b", "no name"),
    ],
)
def test_faulty_options_are_refused(text, word):
    with pytest.raises(ListenSyntax, match=word):
        parse_listen(text)


@pytest.mark.parametrize(
    "text",
    [
        "unix:/run/l,proxy,mode=0660,owner=a,group=postfix",
        "unix:/run/l,mode=0660",
        "unix:/run/a,b,group=mail",
        "tcp:127.0.0.1:24,proxy",
    ],
)
def test_options_are_written_back(text):
    assert str(parse_listen(text)) == text
