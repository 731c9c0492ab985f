"""What PowerShell prints on Windows 11, written by hand after its documentation."""

ADDRESSES = """\
[
  {"IPAddress": "fe80::d1f:aaaa%12", "PrefixLength": 64, "InterfaceIndex": 12,
   "InterfaceAlias": "Ethernet", "AddressState": 4},
  {"IPAddress": "::1", "PrefixLength": 128, "InterfaceIndex": 1,
   "InterfaceAlias": "Loopback Pseudo-Interface 1", "AddressState": 4},
  {"IPAddress": "192.168.1.40", "PrefixLength": 24, "InterfaceIndex": 12,
   "InterfaceAlias": "Ethernet", "AddressState": 4},
  {"IPAddress": "127.0.0.1", "PrefixLength": 8, "InterfaceIndex": 1,
   "InterfaceAlias": "Loopback Pseudo-Interface 1", "AddressState": 4}
]
"""

TCP = """\
[
  {"LocalAddress": "0.0.0.0", "LocalPort": 135, "OwningProcess": 1064},
  {"LocalAddress": "::", "LocalPort": 135, "OwningProcess": 1064},
  {"LocalAddress": "127.0.0.1", "LocalPort": 5432, "OwningProcess": 4100},
  {"LocalAddress": "127.0.0.2", "LocalPort": 8080, "OwningProcess": 5200}
]
"""

UDP = '{"LocalAddress": "0.0.0.0", "LocalPort": 5353, "OwningProcess": 2236}'

ROUTES = """\
[
  {"DestinationPrefix": "0.0.0.0/0", "NextHop": "192.168.1.1", "ifIndex": 12},
  {"DestinationPrefix": "192.168.1.0/24", "NextHop": "0.0.0.0", "ifIndex": 12},
  {"DestinationPrefix": "::1/128", "NextHop": "::", "ifIndex": 1}
]
"""

PROCESSES = """\
[
  {"Id": 1064, "ProcessName": "svchost", "Path": null},
  {"Id": 4100, "ProcessName": "postgres", "Path": "C:\\\\pg\\\\bin\\\\postgres.exe"},
  {"Id": 5200, "ProcessName": "node", "Path": "C:\\\\node\\\\node.exe"},
  {"Id": 2236, "ProcessName": "chrome", "Path": null}
]
"""

ADAPTERS = """\
[
  {"ifIndex": 12, "Name": "Ethernet", "MediaConnectionState": 1, "InterfaceAdminStatus": 1},
  {"ifIndex": 7, "Name": "Wi-Fi", "MediaConnectionState": 2, "InterfaceAdminStatus": 1}
]
"""

NEIGHBOURS = """\
[
  {"ifIndex": 12, "IPAddress": "192.168.1.1", "State": 5},
  {"ifIndex": 12, "IPAddress": "192.168.1.77", "State": 0},
  {"ifIndex": 12, "IPAddress": "ff02::16", "State": 6}
]
"""

SERVERS = """\
[
  {"ServerAddresses": ["192.168.1.1"]},
  {"ServerAddresses": []},
  {"ServerAddresses": ["fec0:0:0:ffff::1", "fec0:0:0:ffff::2"]}
]
"""

PING = '{"Status": 0, "RoundtripTime": 0}'
NO_PING = '{"Status": 11010, "RoundtripTime": 0}'
HOSTS = b"# localhost name resolution is handled within DNS itself.\r\n#\t127.0.0.1 localhost\r\n"
