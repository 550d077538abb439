"""The runner of public suites, and the suites themselves."""

import json
from pathlib import Path

import pytest

from tests import judge
from tests.sender_auth.zone import corpora

CORPORA = corpora()
absent = not CORPORA.is_dir()


@pytest.mark.skipif(absent, reason=f"no corpora at {CORPORA}; MAILAGENTS_CORPORA names them")
@pytest.mark.parametrize(
    ("suite", "total"),
    [("spf", 203), ("dkim", 97), ("arc", 188), ("dmarc", 15), ("mime", 74), ("arf", 5), ("tlsrpt", 7)],
)
def test_suite_passes_whole(suite: str, total: int, capsys: pytest.CaptureFixture[str]) -> None:
    status = judge.main([suite, "--json"])
    report = json.loads(capsys.readouterr().out)
    assert report == {"suite": suite, "passed": total, "total": total, "failed": []}
    assert status == 0


@pytest.mark.parametrize("suite", ["spf", "dkim", "arc", "dmarc", "mime", "arf", "tlsrpt"])
def test_absent_corpus_is_never_a_pass(
    suite: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert judge.main([suite, str(tmp_path), "--json"]) == 2
    said = capsys.readouterr()
    assert said.out == ""
    assert "absent" in said.err


SPF_CASES = """
description: made here
tests:
  right: {helo: h.example, host: 192.0.2.1, mailfrom: a@example.com, result: pass}
  wrong: {helo: h.example, host: 192.0.2.1, mailfrom: a@example.com, result: fail}
zonedata:
  example.com: [{SPF: 'v=spf1 ip4:192.0.2.1 -all'}]
"""


def test_failed_case_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "rfc7208-tests.yml").write_text(SPF_CASES)
    assert judge.main(["spf", str(tmp_path), "--json"]) == 1
    report = json.loads(capsys.readouterr().out)
    assert report == {"suite": "spf", "passed": 1, "total": 2, "failed": ["made here: wrong"]}
    assert judge.main(["spf", str(tmp_path)]) == 1
    assert "made here: wrong: pass" in capsys.readouterr().out
