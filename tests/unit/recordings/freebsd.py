"""What FreeBSD and NetBSD print, written by hand after their manuals."""

IFCONFIG = """\
em0: flags=1008843<UP,BROADCAST,RUNNING,SIMPLEX,MULTICAST,LOWER_UP> metric 0 mtu 1500
	ether 08:00:27:00:00:01
	inet 10.0.2.15 netmask 0xffffff00 broadcast 10.0.2.255
	media: Ethernet autoselect (1000baseT <full-duplex>)
	status: active
lo0: flags=1008049<UP,LOOPBACK,RUNNING,MULTICAST,LOWER_UP> metric 0 mtu 16384
	inet 127.0.0.1 netmask 0xff000000
	inet6 ::1 prefixlen 128
	inet6 fe80::1%lo0 prefixlen 64 scopeid 0x2
"""

NETBSD_IFCONFIG = """\
wm0: flags=0x8843<UP,BROADCAST,RUNNING,SIMPLEX,MULTICAST> mtu 1500
	address: 08:00:27:00:00:02
	inet 10.0.2.16/24 broadcast 10.0.2.255 flags 0
	inet6 fe80::a00:27ff:fe00:2%wm0/64 flags 0 scopeid 0x1
lo0: flags=0x8049<UP,LOOPBACK,RUNNING,MULTICAST> mtu 33624
	inet 127.0.0.1/8 flags 0
	inet6 ::1/128 flags 0x20<NODAD>
"""

NETSTAT = """\
Active Internet connections (including servers)
Proto Recv-Q Send-Q Local Address          Foreign Address        (state)
tcp4       0      0 *.22                   *.*                    LISTEN
tcp6       0      0 *.22                   *.*                    LISTEN
tcp4       0      0 127.0.0.1.25           *.*                    LISTEN
udp4       0      0 *.514                  *.*
"""

ROUTES = """\
Routing tables

Internet:
Destination        Gateway            Flags     Netif Expire
default            10.0.2.2           UGS         em0
10.0.2.0/24        link#1             U           em0
10.0.2.15          link#2             UHS         lo0
127.0.0.1          link#2             UH          lo0

Internet6:
Destination                       Gateway                       Flags     Netif Expire
::1                               link#2                        UHS         lo0
fe80::%lo0/64                     link#2                        U           lo0
"""

ROUTE_GET = {
    "127.0.0.1": """\
   route to: 127.0.0.1
destination: 127.0.0.1
        fib: 0
  interface: lo0
      flags: <UP,HOST,DONE,PINNED>
 recvpipe  sendpipe  ssthresh  rtt,msec    mtu        weight    expire
       0         0         0         0     16384         1         0
""",
    "::1": """\
   route to: ::1
destination: ::1
        fib: 0
  interface: lo0
      flags: <UP,HOST,DONE,STATIC,PINNED>
""",
}

ARP = """\
? (10.0.2.2) at 52:55:0a:00:02:02 on em0 expires in 1199 seconds [ethernet]
? (10.0.2.15) at 08:00:27:00:00:01 on em0 permanent [ethernet]
"""

OPENBSD_ARP = """\
Host                                 Ethernet Address    Netif Expire    Flags
10.0.2.2                             52:55:0a:00:02:02     em0 18m30s
10.0.2.15                            08:00:27:00:00:01     em0 permanent l
10.0.2.99                            (incomplete)          em0 expired
"""

OPENBSD_ROUTE_GET = """\
   route to: 127.0.0.1
destination: 127.0.0.1
       mask: 255.255.255.255
  interface: lo0
 if address: 127.0.0.1
   priority: 1 ()
      flags: <UP,HOST,DONE,LOCAL>
     use       mtu    expire
      13     32768         0
"""

PING = """\
PING 127.0.0.1 (127.0.0.1): 56 data bytes
64 bytes from 127.0.0.1: icmp_seq=0 ttl=64 time=0.041 ms

--- 127.0.0.1 ping statistics ---
1 packets transmitted, 1 packets received, 0.0% packet loss
"""

RESOLV_CONF = b"search home\nnameserver 10.0.2.3\n"
NSSWITCH = b"group: compat\nhosts: files dns\n"
HOSTS = b"::1\t\t\tlocalhost localhost.my.domain\n127.0.0.1\t\tlocalhost localhost.my.domain\n"
