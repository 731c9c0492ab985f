"""Programs an auditor knows: which answer anybody, what that is called, how to bind them.

Owns: one table. A row matches by the program's name or words of its command line, and by the port
where a name alone says too little.

Must never: decide reach or severity (findings.py does), run anything.

Example::

    recognised("redis-server *:6379", 6379).unauthenticated     # True
"""

from __future__ import annotations

import re
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Tool:
    """One known program."""

    name: str
    pattern: re.Pattern[str] | None
    """What its command line looks like; None: known by port alone."""
    ports: frozenset[int]
    """Ports it is known by when nothing is known of the process. Empty: by its command only."""
    fix: str
    """How to bind it to loopback."""
    unauthenticated: bool = False
    """It obeys whoever connects (as it is usually run)."""
    danger: str = ""
    """What a stranger can do."""
    is_http: bool = False
    """It speaks HTTP, so a web page can be made to talk to it."""


_ROWS: tuple[tuple[str, str | None, tuple[int, ...], str, str, str], ...] = (
    # name, command line (regular expression), ports, fix, flags (u no password, h HTTP), danger
    (
        "Redis",
        r"redis-server|valkey-server",
        (6379,),
        "bind 127.0.0.1 -::1 in redis.conf, or redis-server --bind 127.0.0.1",
        "u",
        "read, write, and run code as its user",
    ),
    (
        "memcached",
        r"memcached",
        (11211,),
        "memcached -l 127.0.0.1 -U 0",
        "u",
        "read and write everything cached",
    ),
    (
        "Elasticsearch",
        r"elasticsearch|opensearch",
        (9200, 9300),
        "network.host: 127.0.0.1 in elasticsearch.yml",
        "uh",
        "read and delete every index",
    ),
    (
        "MongoDB",
        r"mongod\b",
        (27017,),
        "mongod --bind_ip 127.0.0.1",
        "u",
        "read and delete every database",
    ),
    (
        "etcd",
        r"\betcd\b",
        (2379, 2380),
        "etcd --listen-client-urls http://127.0.0.1:2379",
        "uh",
        "read every secret of a cluster",
    ),
    (
        "Docker API",
        r"dockerd",
        (2375,),
        "remove tcp:// from dockerd's hosts; use the Unix socket or SSH",
        "uh",
        "become root on this machine",
    ),
    (
        "kubelet",
        r"kubelet",
        (10250, 10255),
        "kubelet --address=127.0.0.1",
        "h",
        "run commands in pods",
    ),
    (
        "Node inspector",
        r"\bnode(js)?\b.*--inspect",
        (9229,),
        "node --inspect=127.0.0.1:9229",
        "uh",
        "run any JavaScript in the program",
    ),
    (
        "Chrome DevTools",
        r"--remote-debugging-port",
        (9222,),
        "--remote-debugging-address=127.0.0.1",
        "uh",
        "read every page and cookie of the browser",
    ),
    (
        "debugpy",
        r"debugpy|ptvsd",
        (5678,),
        "python -m debugpy --listen 127.0.0.1:5678",
        "u",
        "run any Python in the program",
    ),
    (
        "Java debugger",
        r"jdwp|agentlib:jdwp",
        (5005,),
        "-agentlib:jdwp=...,address=127.0.0.1:5005",
        "u",
        "run any code in the program",
    ),
    (
        "delve",
        r"\bdlv\b",
        (2345,),
        "dlv --listen=127.0.0.1:2345",
        "u",
        "run any code in the program",
    ),
    ("gdbserver", r"gdbserver", (), "gdbserver 127.0.0.1:PORT", "u", "run any code as its user"),
    (
        "Jupyter",
        r"jupyter|ipykernel",
        (8888,),
        "jupyter lab --ip=127.0.0.1",
        "uh",
        "run any code as its user",
    ),
    (
        "TensorBoard",
        r"tensorboard",
        (6006,),
        "tensorboard --host 127.0.0.1",
        "uh",
        "read the logs of your models",
    ),
    (
        "Ollama",
        r"\bollama\b",
        (11434,),
        "OLLAMA_HOST=127.0.0.1 ollama serve",
        "uh",
        "use and delete your models",
    ),
    (
        "X11",
        r"\bX(org|vfb|wayland)?\b.* -listen tcp|Xorg.*:\d",
        (6000,),
        "X -nolisten tcp",
        "u",
        "see the screen and type",
    ),
    ("VNC", r"vnc", (5900, 5901), "vncserver -localhost yes", "", "see the screen and type"),
    (
        "NFS",
        None,
        (2049,),
        "limit it in /etc/exports and the packet filter",
        "u",
        "read exported files",
    ),
    (
        "PostgreSQL",
        r"\bpostgres(ql)?\b|postmaster",
        (5432,),
        "listen_addresses = 'localhost' in postgresql.conf",
        "",
        "try passwords",
    ),
    (
        "MySQL",
        r"mysqld|mariadbd",
        (3306,),
        "bind-address = 127.0.0.1 in my.cnf",
        "",
        "try passwords",
    ),
    (
        "RabbitMQ",
        r"rabbitmq",
        (5672, 15672),
        "listeners.tcp.local = 127.0.0.1:5672",
        "",
        "try passwords",
    ),
    (
        "Kafka",
        r"kafka\.Kafka|kafka-server",
        (9092,),
        "listeners=PLAINTEXT://127.0.0.1:9092",
        "u",
        "read and write every topic",
    ),
    (
        "ZooKeeper",
        r"zookeeper",
        (2181,),
        "clientPortAddress=127.0.0.1",
        "u",
        "change a cluster's state",
    ),
    (
        "Prometheus",
        r"prometheus",
        (9090,),
        "prometheus --web.listen-address=127.0.0.1:9090",
        "uh",
        "read what is measured",
    ),
    ("Grafana", r"grafana", (), "http_addr = 127.0.0.1 in grafana.ini", "h", "try passwords"),
    (
        "Mailpit",
        r"mailpit|mailhog|maildev|mailcatcher",
        (1025, 8025, 1080),
        "mailpit --listen 127.0.0.1:8025 --smtp 127.0.0.1:1025",
        "uh",
        "read every mail caught",
    ),
    ("MinIO", r"\bminio\b", (), "minio server --address 127.0.0.1:9000", "h", "try passwords"),
    (
        "Flask",
        r"\bflask\b",
        (),
        "flask run --host 127.0.0.1",
        "uh",
        "use the app; with the debugger on, run any code",
    ),
    (
        "Werkzeug debugger",
        r"werkzeug",
        (),
        "app.run(host='127.0.0.1')",
        "uh",
        "run any code with the debugger's PIN",
    ),
    (
        "Django",
        r"manage\.py\s+runserver|django",
        (),
        "python manage.py runserver 127.0.0.1:8000",
        "uh",
        "use the app with DEBUG's answers",
    ),
    ("uvicorn", r"uvicorn|hypercorn|fastapi", (), "uvicorn --host 127.0.0.1", "uh", "use the app"),
    ("gunicorn", r"gunicorn", (), "gunicorn --bind 127.0.0.1:8000", "h", "use the app"),
    (
        "Python http.server",
        r"-m\s+http\.server|SimpleHTTPServer",
        (),
        "python -m http.server --bind 127.0.0.1",
        "uh",
        "read every file below its directory",
    ),
    (
        "Vite",
        r"\bvite\b",
        (5173,),
        "vite --host 127.0.0.1 (and drop server.host)",
        "uh",
        "read the project's source",
    ),
    (
        "Next.js",
        r"\bnext(-server| dev| start)?\b",
        (),
        "next dev -H 127.0.0.1",
        "uh",
        "use the app and read its source",
    ),
    (
        "webpack dev server",
        r"webpack(-dev-server| serve)",
        (),
        "webpack serve --host 127.0.0.1",
        "uh",
        "read the project's source",
    ),
    (
        "Angular",
        r"\bng\s+serve",
        (4200,),
        "ng serve --host 127.0.0.1",
        "uh",
        "read the project's source",
    ),
    ("Rails", r"\bpuma\b|rails\s+s", (), "rails server -b 127.0.0.1", "uh", "use the app"),
    ("PHP server", r"\bphp\S*\s+-S", (), "php -S 127.0.0.1:8000", "uh", "use the app"),
    (
        "Storybook",
        r"storybook",
        (6006,),
        "storybook dev --host 127.0.0.1",
        "uh",
        "read the project's source",
    ),
    (
        "Node program",
        r"\bnode(js)?\b|\bbun\b|\bdeno\b",
        (),
        "server.listen(PORT, '127.0.0.1')",
        "h",
        "use the program",
    ),
    ("nginx", r"nginx", (), "listen 127.0.0.1:80; in the server block", "h", "use the site"),
    ("Apache", r"apache2|httpd\b", (), "Listen 127.0.0.1:80 in ports.conf", "h", "use the site"),
    ("Caddy", r"caddy", (2019,), "bind 127.0.0.1 in the Caddyfile", "h", "use the site"),
    ("CUPS", r"cupsd", (631,), "Listen 127.0.0.1:631 in cupsd.conf", "h", "print"),
    (
        "OpenSSH",
        r"\bsshd\b",
        (22,),
        "ListenAddress 127.0.0.1 in sshd_config",
        "",
        "try passwords and keys",
    ),
    (
        "mDNS",
        r"avahi-daemon",
        (5353,),
        "allow-interfaces=lo in avahi-daemon.conf",
        "",
        "learn this machine's names",
    ),
    (
        "DHCP client",
        r"dhclient|dhcpcd|NetworkManager|systemd-networkd",
        (68, 546),
        "nothing: it must hear the network",
        "",
        "",
    ),
)
"""Most telling first: the first row whose pattern matches the command line wins, then ports."""


def _tool(row: tuple[str, str | None, tuple[int, ...], str, str, str]) -> Tool:
    name, pattern, ports, fix, flags, danger = row
    return Tool(
        name=name,
        pattern=None if pattern is None else re.compile(pattern, re.IGNORECASE),
        ports=frozenset(ports),
        fix=fix,
        unauthenticated="u" in flags,
        danger=danger,
        is_http="h" in flags,
    )


TOOLS: tuple[Tool, ...] = tuple(_tool(row) for row in _ROWS)

_SCANNED = 512
"""Characters of a command line that are looked at: hostile ones can be megabytes long."""


def recognised(command: str | None, port: int) -> Tool | None:
    """The known program behind a listener, by its command line, else by its port."""
    if command:
        start = command[:_SCANNED]
        return next((tool for tool in TOOLS if tool.pattern and tool.pattern.search(start)), None)
    return next((tool for tool in TOOLS if port in tool.ports), None)
