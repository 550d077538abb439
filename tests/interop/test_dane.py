"""What we publish, judged by Postfix: its DANE client asks unbound, which validates our advice."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.daemon.running import ROOT
from tests.transport import unbound

pytestmark = [
    pytest.mark.skipif(os.geteuid() != 0, reason="namespaces need root"),
    pytest.mark.skipif(not os.path.exists(unbound.UNBOUND), reason="no unbound"),
    pytest.mark.skipif(shutil.which("posttls-finger") is None, reason="no Postfix"),
]


def test_postfix_verifies_the_server_by_the_record_that_is_advised(tmp_path: Path) -> None:
    resolver = tmp_path / "resolv.conf"
    resolver.write_text("nameserver 127.0.0.1\noptions edns0 trust-ad\n")
    place = Path("/etc/resolv.conf").resolve()
    script = (
        f'ip link set lo up && mount --bind "{resolver}" "{place}" && '
        f'exec "{sys.executable}" -m tests.interop.posttls "{tmp_path}"'
    )
    command = ["unshare", "--net", "--mount", "sh", "-c", script]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=150, check=False)
    if "Operation not permitted" in done.stderr:
        pytest.skip("namespaces are not to be had here")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "DNSSEC-signed TLSA record" in done.stdout
    assert "Verified TLS connection established" in done.stdout
