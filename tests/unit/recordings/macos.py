"""What a Mac prints, written by hand after its manuals (no Mac was at hand)."""

IFCONFIG = """\
lo0: flags=8049<UP,LOOPBACK,RUNNING,MULTICAST> mtu 16384
	options=1203<RXCSUM,TXCSUM,TXSTATUS,SW_TIMESTAMP>
	inet 127.0.0.1 netmask 0xff000000
	inet6 ::1 prefixlen 128
	inet6 fe80::1%lo0 prefixlen 64 scopeid 0x1
	inet 10.9.9.9 netmask 0xffffffff
	nd6 options=201<PERFORMNUD,DAD>
gif0: flags=8010<POINTOPOINT,MULTICAST> mtu 1280
en0: flags=8863<UP,BROADCAST,SMART,RUNNING,SIMPLEX,MULTICAST> mtu 1500
	ether f0:18:98:00:00:01
	inet6 fe80::1c2f:aaaa:bbbb:cccc%en0 prefixlen 64 secured scopeid 0x6
	inet 192.168.1.23 netmask 0xffffff00 broadcast 192.168.1.255
	media: autoselect
	status: active
en1: flags=8963<UP,BROADCAST,SMART,RUNNING,PROMISC,SIMPLEX,MULTICAST> mtu 1500
	media: autoselect <full-duplex>
	status: inactive
"""

NETSTAT = """\
Active Internet connections (including servers)
Proto Recv-Q Send-Q  Local Address          Foreign Address        (state)
tcp4       0      0  192.168.1.23.52100     17.57.144.20.443       ESTABLISHED
tcp4       0      0  127.0.0.1.5432         *.*                    LISTEN
tcp46      0      0  *.8080                 *.*                    LISTEN
tcp6       0      0  *.3000                 *.*                    LISTEN
tcp4       0      0  *.6379                 *.*                    LISTEN
tcp6       0      0  ::1.5432               *.*                    LISTEN
tcp4       0      0  10.9.9.9.9000          *.*                    LISTEN
udp4       0      0  *.5353                 *.*
udp6       0      0  fe80::1%lo0.123        *.*
udp4       0      0  192.168.1.23.60000     8.8.8.8.53
Active Multipath Internet connections
"""

ROUTES = """\
Routing tables

Internet:
Destination        Gateway            Flags               Netif Expire
default            192.168.1.1        UGScg                 en0
127                127.0.0.1          UCS                   lo0
127.0.0.1          127.0.0.1          UH                    lo0
192.168.1          link#6             UCS                   en0      !
224.0.0/4          link#6             UmCS                  en0      !

Internet6:
Destination                             Gateway                         Flags         Netif Expire
::1                                     ::1                             UHL             lo0
fe80::%lo0/64                           fe80::1%lo0                     UcI             lo0
"""

LSOF = """\
p412
cpostgres
u501
f5
PTCP
n[::1]:5432
f6
PTCP
n127.0.0.1:5432
p900
credis-server
u501
f6
PTCP
n*:6379
p77
cmDNSResponder
u65
f8
PUDP
n*:5353
p1000
cnode
u501
f20
PTCP
n*:8080
f22
PTCP
n192.168.1.23:52100->17.57.144.20:443
"""

ROUTE_GET = {
    "127.0.0.1": """\
   route to: 127.0.0.1
destination: 127.0.0.1
  interface: lo0
      flags: <UP,HOST,DONE,LOCAL>
 recvpipe  sendpipe  ssthresh  rtt,msec    rttvar  hopcount      mtu     expire
     49152     49152         0         0         0         0     16384         0
""",
    "::1": """\
   route to: ::1
destination: ::1
  interface: lo0
      flags: <UP,HOST,DONE,LOCAL>
 recvpipe  sendpipe  ssthresh  rtt,msec    rttvar  hopcount      mtu     expire
     49152     49152         0         0         0         0     16384         0
""",
    "1.1.1.1": """\
   route to: 1.1.1.1
destination: default
       mask: default
    gateway: 192.168.1.1
  interface: en0
      flags: <UP,GATEWAY,DONE,STATIC,PRCLONING,GLOBAL>
 recvpipe  sendpipe  ssthresh  rtt,msec    rttvar  hopcount      mtu     expire
         0         0         0         0         0         0      1500         0
""",
}

ARP = """\
? (192.168.1.1) at a4:b1:c1:0:0:1 on en0 ifscope [ethernet]
? (192.168.1.9) at (incomplete) on en0 ifscope [ethernet]
? (224.0.0.251) at 1:0:5e:0:0:fb on en0 ifscope permanent [ethernet]
"""

NDP = """\
Neighbor                                Linklayer Address  Netif Expire    St Flgs Prbs
::1                                     (incomplete)         lo0 permanent R
fe80::1%lo0                             (incomplete)         lo0 permanent R
fe80::1%en0                             a4:b1:c1:0:0:1       en0 23h59m59s S  R
"""

PING = """\
PING 127.0.0.1 (127.0.0.1): 56 data bytes
64 bytes from 127.0.0.1: icmp_seq=0 ttl=64 time=0.053 ms

--- 127.0.0.1 ping statistics ---
1 packets transmitted, 1 packets received, 0.0% packet loss
round-trip min/avg/max/stddev = 0.053/0.053/0.053/0.000 ms
"""

NO_PING = """\
PING 192.168.1.1 (192.168.1.1): 56 data bytes

--- 192.168.1.1 ping statistics ---
1 packets transmitted, 0 packets received, 100.0% packet loss
"""

SCUTIL = """\
DNS configuration

resolver #1
  search domain[0] : home
  nameserver[0] : 192.168.1.1
  nameserver[1] : fe80::1%en0
  if_index : 6 (en0)
  flags    : Request A records
  reach    : 0x00020002 (Reachable,Directly Reachable Address)

resolver #2
  domain   : corp.example
  nameserver[0] : 10.8.0.1
  flags    : Supplemental, Request A records
  order    : 102600

resolver #3
  domain   : local
  options  : mdns
  timeout  : 5
  flags    : Request A records
  reach    : 0x00000000 (Not Reachable)
  order    : 300000

DNS configuration (for scoped queries)

resolver #1
  search domain[0] : home
  nameserver[0] : 192.168.77.77
  if_index : 6 (en0)
  flags    : Scoped, Request A records
"""

HOSTS = b"""\
##
# Host Database
##
127.0.0.1	localhost
255.255.255.255	broadcasthost
::1             localhost
"""

NETSTAT_VERBOSE = """\
Active Internet connections (including servers)
Proto Recv-Q Send-Q  Local Address          Foreign Address        (state)      rxbytes  process:pid
tcp4       0      0  127.0.0.1.8021         *.*                    LISTEN             0    launchd:1
tcp46      0      0  *.5948                 *.*                    LISTEN             0 Agent X:602
tcp6       0      0  fe80::1c2f:aaaa:.3000  *.*                    LISTEN             0      node:77
"""
"""Newer releases print more columns; without -W a long address is cut at its column."""
