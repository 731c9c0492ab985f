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

SOCKSTAT = """\
USER     COMMAND    PID   FD PROTO  LOCAL ADDRESS         FOREIGN ADDRESS
root     sshd       854   3  tcp6   *:22                  *:*
root     sshd       854   4  tcp4   *:22                  *:*
root     sendmail   812   5  tcp4   127.0.0.1:25          *:*
root     syslogd    700   7  udp4   *:514                 *:*
ntpd     ntpd       690   21 udp6   fe80::1%lo0:123       *:*
alice    ssh        990   3  tcp4   10.0.2.15:40100       10.0.2.2:22
"""

FSTAT = """\
USER     CMD          PID   FD MOUNT        INUM  MODE         R/W    SZ|DV
root     sshd       75629    3* internet stream tcp 0x0 *:22
root     sshd       75629    4* internet6 stream tcp 0x0 [::]:22
alice    node        1234   20* internet stream tcp 0xffff800000a1b2c3 127.0.0.1:3000
alice    ssh         4321    3* internet stream tcp 0x0 10.0.0.2:5000 --> 10.0.0.1:22
_unbound unbound       99    5* internet dgram udp 127.0.0.1:53
root     inetd         60    6* internet6 stream tcp [fe80::1%lo0]:79
root     sshd       75629    wd /                2  drwxr-xr-x     r      512
"""

OPENBSD_NETSTAT = """\
Active Internet connections (including servers)
Proto   Recv-Q Send-Q  Local Address          Foreign Address        TCP-State
tcp          0      0  *.22                   *.*                    LISTEN
tcp          0      0  127.0.0.1.3000         *.*                    LISTEN
udp          0      0  127.0.0.1.53           *.*
Active Internet connections (including servers)
Proto   Recv-Q Send-Q  Local Address          Foreign Address        TCP-State
tcp6         0      0  *.22                   *.*                    LISTEN
"""

OPENBSD_IFCONFIG = """\
lo0: flags=2008049<UP,LOOPBACK,RUNNING,MULTICAST,LRO> mtu 32768
	index 4 priority 0 llprio 3
	groups: lo
	inet6 ::1 prefixlen 128
	inet6 fe80::1%lo0 prefixlen 64 scopeid 0x4
	inet 127.0.0.1 netmask 0xff000000
em0: flags=808843<UP,BROADCAST,RUNNING,SIMPLEX,MULTICAST,AUTOCONF4> mtu 1500
	lladdr 08:00:27:00:00:03
	index 1 priority 0 llprio 3
	groups: egress
	media: Ethernet autoselect (none)
	status: no carrier
	inet 10.0.2.17 netmask 0xffffff00 broadcast 10.0.2.255
"""

ILLUMOS_IFCONFIG = """\
lo0: flags=2001000849<UP,LOOPBACK,RUNNING,MULTICAST,IPv4,VIRTUAL> mtu 8232 index 1
	inet 127.0.0.1 netmask ff000000
e1000g0: flags=1004843<UP,BROADCAST,RUNNING,MULTICAST,DHCP,IPv4> mtu 1500 index 2
	inet 10.0.2.18 netmask ffffff00 broadcast 10.0.2.255
"""
