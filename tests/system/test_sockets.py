"""sock_diag against real sockets of this very process."""

import os
import socket
import struct

import pytest

from loopbox.kernel.sockets import listening, open_diag, owner_of


@pytest.fixture
def diag():
    """A diag socket for the namespace the tests run in."""
    with open_diag() as handle:
        yield handle


def inode_of(sock):
    """The inode the kernel gave a socket of ours."""
    return os.fstat(sock.fileno()).st_ino


@pytest.mark.parametrize(
    ("made", "v6only", "expected"),
    [
        pytest.param(("AF_INET", "SOCK_STREAM", "127.0.0.1"), None, ("tcp", "ipv4"), id="tcp4"),
        pytest.param(("AF_INET6", "SOCK_STREAM", "::1"), None, ("tcp", "ipv6"), id="tcp6"),
        pytest.param(("AF_INET6", "SOCK_STREAM", "::"), 0, ("tcp", "dual"), id="tcp-dual"),
        pytest.param(("AF_INET6", "SOCK_STREAM", "::"), 1, ("tcp", "ipv6"), id="tcp-v6only"),
        pytest.param(
            ("AF_INET6", "SOCK_STREAM", "::ffff:127.0.0.1"), 0, ("tcp", "ipv4"), id="tcp-mapped"
        ),
        pytest.param(("AF_INET", "SOCK_DGRAM", "127.0.0.1"), None, ("udp", "ipv4"), id="udp4"),
        pytest.param(("AF_INET6", "SOCK_DGRAM", "::"), 0, ("udp", "dual"), id="udp-dual"),
    ],
)
def test_a_real_listener_is_listed(diag, made, v6only, expected):
    """A socket we open is found with its protocol, family, port, inode and uid."""
    family, kind, address = made
    with socket.socket(getattr(socket, family), getattr(socket, kind)) as sock:
        if v6only is not None:
            sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, v6only)
        sock.bind((address, 0))
        if kind == "SOCK_STREAM":
            sock.listen()

        found = [entry for entry in listening(diag) if entry.inode == inode_of(sock)]

        assert [(*expected, sock.getsockname()[1], os.getuid())] == [
            (entry.protocol, entry.family, entry.port, entry.uid) for entry in found
        ]


def test_connected_udp_and_bound_tcp_wait_for_nobody(diag):
    """A UDP socket with a peer, and a TCP socket that does not listen, are not listed."""
    with socket.socket(type=socket.SOCK_DGRAM) as talk, socket.socket() as idle:
        talk.connect(("127.0.0.1", 9))
        idle.bind(("127.0.0.1", 0))

        inodes = {entry.inode for entry in listening(diag)}

        assert set() == inodes & {inode_of(talk), inode_of(idle)}


@pytest.mark.parametrize("dial", ["127.0.0.1", "::1", "::ffff:127.0.0.1"])
def test_owner_of_a_tcp_client(diag, dial):
    """The client of an accepted connection is found by its exact four numbers, mapped or not."""
    with socket.create_server(("::", 0), family=socket.AF_INET6, dualstack_ipv6=True) as server:
        family = socket.AF_INET6 if ":" in dial else socket.AF_INET
        with socket.socket(family) as client:
            client.connect((dial, server.getsockname()[1]))
            accepted, peer = server.accept()
            with accepted:
                owner = owner_of(
                    diag, protocol="tcp", local=peer[:2], remote=accepted.getsockname()[:2]
                )

                assert (os.getuid(), inode_of(client)) == (owner.uid, owner.inode)


def test_owner_of_a_udp_client(diag):
    """The sender of a datagram is found, connected or not."""
    with socket.socket(type=socket.SOCK_DGRAM) as server:
        server.bind(("127.0.0.1", 0))
        for connected in (True, False):
            with socket.socket(type=socket.SOCK_DGRAM) as client:
                if connected:
                    client.connect(server.getsockname())
                client.sendto(b"x", server.getsockname())
                peer = server.recvfrom(10)[1]

                owner = owner_of(diag, protocol="udp", local=peer, remote=server.getsockname())

                assert (os.getuid(), inode_of(client)) == (owner.uid, owner.inode)


def test_a_client_that_reset_has_no_owner(diag):
    """After a reset the socket is gone and nobody is named."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        client = socket.create_connection(server.getsockname())
        accepted, peer = server.accept()
        client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        client.close()
        with accepted:
            assert None is owner_of(diag, protocol="tcp", local=peer, remote=accepted.getsockname())


def test_a_listener_on_the_clients_address_is_no_owner(diag):
    """When the client is gone, a listener on the very same address is not taken for it."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        assert None is owner_of(
            diag, protocol="tcp", local=server.getsockname(), remote=("127.0.0.1", 1)
        )


@pytest.mark.parametrize("address", ["127.0.0.1", "::1"])
@pytest.mark.parametrize("protocol", ["tcp", "udp"])
def test_owner_of_a_client_bound_to_lo(diag, address, protocol):
    """SO_BINDTODEVICE hides a socket from a look-up that names no interface: ours names lo."""
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    kind = socket.SOCK_STREAM if protocol == "tcp" else socket.SOCK_DGRAM
    with socket.socket(family, kind) as server, socket.socket(family, kind) as client:
        server.bind((address, 0))
        if protocol == "tcp":
            server.listen()
        client.setsockopt(socket.SOL_SOCKET, socket.SO_BINDTODEVICE, b"lo")
        client.connect(server.getsockname())

        owner = owner_of(
            diag,
            protocol=protocol,
            local=client.getsockname()[:2],
            remote=server.getsockname()[:2],
        )

        assert inode_of(client) == getattr(owner, "inode", None)
