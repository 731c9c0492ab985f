/* The one function that making.c gives to the module in syscalls.c. */
#ifndef LOOPBOX_MAKING_H
#define LOOPBOX_MAKING_H

#include <Python.h>

/* make_box(network, ping, nft, routes4, routes6) -> (net, cookie): a descriptor, the caller's, and
 * the network namespace's cookie. `network` is a fresh network namespace to take, or -1 to make one.
 * Where `ping` is empty the box keeps the kernel's settings; where `routes4` is, it is sealed: no
 * route to the wide world. Raises OSError, leaving nothing. */
PyObject *loopbox_make_box(PyObject *self, PyObject *args);

#endif
