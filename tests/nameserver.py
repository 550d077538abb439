"""A DNS server on loopback, UDP and TCP, that answers out of a dictionary.

It behaves like the recursive resolver a mail server asks: it follows CNAME, gives a SOA
with each denial, and cuts UDP answers short. Tests tell it to fail, to lie about
authentication, or to say nothing.
"""

import asyncio
from collections.abc import Mapping, Sequence
from typing import cast

import dns.exception
import dns.flags
import dns.message
import dns.name
import dns.rcode
import dns.rdata
import dns.rdataclass
import dns.rdatatype
import dns.rrset

Zone = Mapping[str, Mapping[str, Sequence[str]]]

MAX_CHAIN = 10
UDP_OCTETS = 1232


class Nameserver:
    """Answers for the names of a zone: {'example.com': {'A': ['192.0.2.1'], 'TXT': ['v=spf1 -all']}}.

    A TXT value is its plain text, or presentation form where it begins with a quote.
    '*.example.com' is a wildcard. servfail, nxdomain, silent: names to fail in that way;
    authenticated: sets AD, but for the names in insecure; truncated: names whose UDP answers are cut;
    asked: what came.
    """

    def __init__(self, zone: Zone, *, ttl: int = 60, negative_ttl: int = 30) -> None:
        self.zone: dict[str, dict[str, list[str]]] = {}
        self.ttl = ttl
        self.negative_ttl = negative_ttl
        self.servfail: set[str] = set()
        self.nxdomain: set[str] = set()
        self.silent: set[str] = set()
        self.truncated: set[str] = set()
        self.authenticated = False
        self.insecure: set[str] = set()
        self.asked: list[tuple[str, str, str]] = []  # name, type, transport
        self.port = 0
        self._udp: asyncio.DatagramTransport | None = None
        self._tcp: asyncio.Server | None = None
        self.update(zone)

    @property
    def address(self) -> str:
        return f"127.0.0.1:{self.port}"

    def update(self, zone: Zone) -> None:
        """Put names into the zone, each in the place of its old records."""
        for name, records in zone.items():
            self.zone[name.lower()] = {rdtype: list(values) for rdtype, values in records.items()}

    async def start(self) -> None:
        loop = asyncio.get_running_loop()
        for _ in range(20):
            self._tcp = await asyncio.start_server(self._serve_stream, "127.0.0.1", 0)
            self.port = self._tcp.sockets[0].getsockname()[1]
            try:
                self._udp, _ = await loop.create_datagram_endpoint(
                    lambda: _Datagrams(self), local_addr=("127.0.0.1", self.port)
                )
                return
            except OSError:  # the number is taken on the other transport
                self._tcp.close()
        raise OSError("no port is free on both transports")

    async def stop(self) -> None:
        if self._udp is not None:
            self._udp.close()
        if self._tcp is not None:
            self._tcp.close()
            await self._tcp.wait_closed()

    async def _serve_stream(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while True:
                octets = await reader.readexactly(int.from_bytes(await reader.readexactly(2), "big"))
                answer = self.answer(octets, "tcp")
                if answer is not None:
                    writer.write(len(answer).to_bytes(2, "big") + answer)
                    await writer.drain()
        except (asyncio.IncompleteReadError, ConnectionError):
            pass
        finally:
            writer.close()

    def answer(self, octets: bytes, transport: str) -> bytes | None:
        """Return the wire form of the answer to a query; None where nothing is to be said."""
        try:
            query = dns.message.from_wire(octets)
        except dns.exception.DNSException:
            return None
        question = query.question[0]
        name = question.name.to_text(omit_final_dot=True).lower()
        self.asked.append((name, dns.rdatatype.to_text(question.rdtype), transport))
        if name in self.silent:
            return None
        response = dns.message.make_response(query, recursion_available=True)
        self._fill(response, question.name, question.rdtype)
        if transport == "tcp":
            return response.to_wire(max_size=65535)
        if name in self.truncated:
            response.answer.clear()
            response.flags |= dns.flags.TC
            return response.to_wire()
        return _within(response)

    def _fill(
        self, response: dns.message.Message, name: dns.name.Name, rdtype: dns.rdatatype.RdataType
    ) -> None:
        seen: set[str] = set()
        if self.authenticated:
            response.flags |= dns.flags.AD
        while True:
            text = name.to_text(omit_final_dot=True).lower()
            if text in self.insecure:
                response.flags &= ~dns.flags.AD
            if text in self.servfail or text in seen or len(seen) > MAX_CHAIN:
                response.answer.clear()
                response.set_rcode(dns.rcode.SERVFAIL)
                return
            seen.add(text)
            records = None if text in self.nxdomain else self._records(text)
            if records is None:
                response.set_rcode(dns.rcode.NXDOMAIN)
                break
            wanted = dns.rdatatype.to_text(rdtype)
            if wanted in records:
                response.answer.append(_rrset(name, wanted, records[wanted], self.ttl))
                return
            if "CNAME" not in records:
                break
            alias = _rrset(name, "CNAME", records["CNAME"], self.ttl)
            response.answer.append(alias)
            name = alias[0].target
        soa = f"ns.invalid. root.invalid. 1 60 60 60 {self.negative_ttl}"
        response.authority.append(dns.rrset.from_text(".", self.negative_ttl, "IN", "SOA", soa))

    def _records(self, name: str) -> dict[str, list[str]] | None:
        """The records of a name; {} for one that only has names below it, None where there is none."""
        if name in self.zone:
            return self.zone[name]
        if any(known.endswith("." + name) for known in self.zone):
            return {}
        parent = name
        while "." in parent:
            parent = parent.partition(".")[2]
            if f"*.{parent}" in self.zone:
                return self.zone[f"*.{parent}"]
            if parent in self.zone:
                return None
        return None


class _Datagrams(asyncio.DatagramProtocol):
    def __init__(self, server: Nameserver) -> None:
        self.server = server

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast(asyncio.DatagramTransport, transport)

    def datagram_received(self, data: bytes, addr: tuple[str, int]) -> None:
        answer = self.server.answer(data, "udp")
        if answer is not None:
            self.transport.sendto(answer, addr)


def _within(response: dns.message.Message) -> bytes:
    """The wire form as it fits into a datagram, cut short with TC set where it does not."""
    try:
        return response.to_wire(max_size=UDP_OCTETS)
    except dns.exception.TooBig:
        response.answer.clear()
        response.flags |= dns.flags.TC
        return response.to_wire(max_size=UDP_OCTETS)


def _rrset(name: dns.name.Name, rdtype: str, values: Sequence[str], ttl: int) -> dns.rrset.RRset:
    kind = dns.rdatatype.from_text(rdtype)
    rdatas = [dns.rdata.from_text(dns.rdataclass.IN, kind, _presentation(rdtype, value)) for value in values]
    return dns.rrset.from_rdata_list(name, ttl, rdatas)


def _presentation(rdtype: str, value: str) -> str:
    if rdtype == "TXT":
        return value if value.startswith('"') else _quoted(value.encode())
    if rdtype in ("MX", "CNAME", "PTR", "NS") and not value.endswith("."):
        return value + "."
    return value


def _quoted(text: bytes) -> str:
    """Plain octets as character strings of at most 255 (RFC 1035 3.3.14)."""
    pieces = [text[start : start + 255] for start in range(0, len(text), 255)] or [b""]
    return " ".join('"' + "".join(f"\\{octet:03d}" for octet in piece) + '"' for piece in pieces)
