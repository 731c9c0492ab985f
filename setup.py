"""The compiled core is optional: without a C compiler the pure Python twins serve.

Each extension has such a twin with the same interface and the same tests, so
`optional=True` (a failed build warns and goes on) loses speed, never function.
"""

from setuptools import Extension, setup

setup(
    ext_modules=[
        Extension(
            "loopbox.kernel._syscalls",
            ["src/native/syscalls.c", "src/native/making.c"],
            depends=["src/native/making.h"],
            extra_compile_args=["-O2", "-Wall", "-Wextra"],
            optional=True,
        ),
        Extension(
            "loopbox.keeper._relay",
            ["src/native/relay.c"],
            extra_compile_args=["-O2", "-Wall", "-Wextra", "-pthread"],
            extra_link_args=["-pthread"],
            optional=True,
        ),
    ]
)
