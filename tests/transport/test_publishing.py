"""What we publish: the policy and its id, and TLSA records of each certificate that our host may show."""

from pathlib import Path

import pytest
from cryptography import x509

from server.config import Settings
from server.sections import Server, Tls
from server.sections_transport import TlsReports, Transport
from server.tls import make_self_signed
from server.transport.mtasts import read_policy, read_record
from server.transport.publishing import Published, advice, own_policy, policy_id, read_published
from server.transport.tlsrpt import read_record as read_report_record
from tests.transport.authority import make, write
from tests.transport.test_dane import tlsa

HOSTNAME = "mx.ours.test"


def settings(tmp_path: Path, *, tls: Tls | None = None, **transport: object) -> Settings:
    return Settings(
        server=Server(hostname=HOSTNAME, data_directory=tmp_path),
        tls=tls or Tls(),
        transport=Transport(**transport),
        tls_reports=TlsReports(report_address="tls-reports@ours.test"),
    )


def test_another_policy_has_another_id() -> None:
    ids = set()
    for mode in ("testing", "enforce", "none"):
        for age in (86400, 604800):
            policy = own_policy(mode, (HOSTNAME,), age)
            assert policy is not None and read_policy(policy.text.encode()) == policy
            ids.add(policy_id(policy))
            assert read_record([(f"v=STSv1; id={policy_id(policy)}".encode(),)]) == policy_id(policy)
    assert len(ids) == 6
    assert own_policy("off", (HOSTNAME,), 1) is None


def test_nothing_is_advised_that_is_not_on(tmp_path: Path) -> None:
    told = advice("ours.test", read_published(settings(tmp_path)))
    assert [(one.type, one.name) for one in told] == [("TXT", "_smtp._tls.ours.test")]
    assert read_report_record([(told[0].value.encode(),)]) == ("mailto:tls-reports@ours.test",)
    told = advice("other.test", Published(HOSTNAME))
    assert read_report_record([(told[0].value.encode(),)]) == ("mailto:postmaster@other.test",)


def records(found: Settings) -> list[str]:
    return [one.value for one in advice("ours.test", read_published(found)) if one.type == "TLSA"]


def test_record_names_the_key_of_a_first_start(tmp_path: Path) -> None:
    assert records(settings(tmp_path, publish_tlsa=True)) == [], "there is no certificate yet"
    file, _ = make_self_signed(tmp_path / "tls", names=[HOSTNAME])
    (one,) = records(settings(tmp_path, publish_tlsa=True))
    assert one.startswith("3 1 1 ") and len(one) == 6 + 64
    assert x509.load_pem_x509_certificate(file.read_bytes())


@pytest.mark.parametrize(
    ("names", "count"), [([HOSTNAME], 2), (["*.ours.test"], 2), (["other.test"], 1), (["ours.test"], 1)]
)
def test_each_certificate_that_the_host_may_show_has_a_record(
    tmp_path: Path, names: list[str], count: int
) -> None:
    default, other = make("default", names=[HOSTNAME]), make("other", names=names)
    chain, key = write(tmp_path / "default", default)
    folder = tmp_path / "domains" / "other"
    made = write(folder, other)
    made[0].rename(folder / "certificate.pem")
    (tmp_path / "domains" / "broken").mkdir()
    tls = Tls(certificate_file=str(chain), key_file=str(key), domains_directory=str(tmp_path / "domains"))
    found = records(settings(tmp_path, tls=tls, publish_tlsa=True))
    expected = [str(tlsa(3, 1, 1, one)) for one in (default, other)][:count]
    assert found == expected
