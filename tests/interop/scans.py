"""What sslscan finds at a door, and what must hold of it whatever key the server has."""

from pathlib import Path
from xml.etree import ElementTree

from tests.interop.programs import program, run


def judge_tls(home: Path, place: str, options: list[str]) -> ElementTree.ElementTree:
    """Scan a door; fails on a version, suite or fault that is weak. place: host and port."""
    run(home, program("sslscan"), "--no-colour", f"--xml={home}/found.xml", *options, place)
    found = ElementTree.parse(home / "found.xml")
    spoken = {
        f"{one.get('type')} {one.get('version')}"
        for one in found.iter("protocol")
        if one.get("enabled") == "1"
    }
    assert spoken == {"tls 1.2", "tls 1.3"}
    suites = list(found.iter("cipher"))
    assert suites
    # Its word for the suites of TLS 1.3 is acceptable.
    assert {suite.get("strength") for suite in suites} <= {"strong", "acceptable"}
    for suite in suites:
        assert int(suite.get("bits", "0")) >= 128
        assert "GCM" in suite.get("cipher", "") or "POLY1305" in suite.get("cipher", "")
        assert suite.get("ecdhebits"), "forward secrecy"
    assert [one.get("vulnerable") for one in found.iter("heartbleed")].count("1") == 0
    assert all(one.get("supported") == "0" for one in found.iter("compression"))
    assert all(one.get("supported") == "0" or one.get("secure") == "1" for one in found.iter("renegotiation"))
    return found
