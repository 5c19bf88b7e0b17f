"""Run a command in a network namespace without a route, and record every packet that it sends: names to look up first.

    unshare --map-root-user --net --mount python -m tests.proofs.no_network OUT COMMAND…

Writes the destinations, and the names in queries to port 53, to OUT, one a line. The resolver is 127.0.0.1, where
nobody listens, so that a lookup from Python or from C++ becomes a packet on the loopback and fails at once.
"""

from __future__ import annotations

import fcntl
import socket
import struct
import subprocess
import sys
import tempfile
import threading
from pathlib import Path

_SIOCGIFFLAGS, _SIOCSIFFLAGS, _IFF_UP = 0x8913, 0x8914, 0x1
_ALL_PROTOCOLS, _ETHERNET_BYTES = 0x0003, 14
_IPV4, _ICMP, _UDP, _DNS = 4, 1, 17, 53


def main(out: Path, command: list[str]) -> int:
    """Run the command, write what it sent, and return its exit code."""
    _switch_on_loopback()
    _use_files({"/etc/resolv.conf": "nameserver 127.0.0.1\n", "/etc/nsswitch.conf": "hosts: files dns\n"}, out.parent)
    packets: list[str] = []
    sniffer = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(_ALL_PROTOCOLS))
    sniffer.settimeout(0.5)
    done = threading.Event()
    listener = threading.Thread(target=_listen, args=(sniffer, packets, done))
    listener.start()
    code = subprocess.run(command, check=False).returncode
    done.set()
    listener.join()
    out.write_text("".join(f"{packet}\n" for packet in packets), encoding="utf-8")
    return code


def _switch_on_loopback() -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as any_socket:
        request = bytearray(struct.pack("16sh14x", b"lo", 0))
        fcntl.ioctl(any_socket, _SIOCGIFFLAGS, request)
        (flags,) = struct.unpack_from("h", request, 16)
        struct.pack_into("h", request, 16, flags | _IFF_UP)
        fcntl.ioctl(any_socket, _SIOCSIFFLAGS, request)


def _use_files(contents: dict[str, str], work: Path) -> None:
    """Put other contents in place of system files, in this mount namespace only."""
    folder = Path(tempfile.mkdtemp(prefix="no-network-", dir=work))
    for path, text in contents.items():
        if Path(path).exists():
            replacement = folder / Path(path).name
            replacement.write_text(text, encoding="utf-8")
            subprocess.run(["mount", "--bind", replacement, path], check=True)


def _listen(sniffer: socket.socket, packets: list[str], done: threading.Event) -> None:
    while True:
        try:
            frame = sniffer.recv(65535)
        except TimeoutError:
            if done.is_set():
                return
            continue
        if (packet := _describe(frame[_ETHERNET_BYTES:])) is not None:
            packets.append(packet)


def _describe(packet: bytes) -> str | None:
    """Return the name that a DNS query asks for, or else the destination of a packet; None for the kernel's answers."""
    if packet[0] >> 4 != _IPV4:
        return "a packet that is not IPv4"
    header = 4 * (packet[0] & 0xF)
    protocol, address = packet[9], socket.inet_ntoa(packet[16:20])
    if protocol == _ICMP:
        return None
    (port,) = struct.unpack_from("!H", packet, header + 2)
    if protocol == _UDP and port == _DNS:
        return _queried_name(packet[header + 8 + 12 :])
    return f"{address} protocol {protocol} port {port}"


def _queried_name(question: bytes) -> str:
    labels, place = [], 0
    while place < len(question) and question[place]:
        labels.append(question[place + 1 : place + 1 + question[place]].decode("ascii", "replace"))
        place += 1 + question[place]
    return ".".join(labels)


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1]), sys.argv[2:]))
