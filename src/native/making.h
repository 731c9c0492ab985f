/* The one function that making.c gives to the module in syscalls.c. */
#ifndef LOOPBOX_MAKING_H
#define LOOPBOX_MAKING_H

#include <Python.h>

/* make_box(network, nft, routes4, routes6) -> (net, cookie): a descriptor, the caller's, and the
 * network namespace's cookie. `network` is a fresh one to take, -1 for none; no routes, no way
 * out. Raises OSError, leaving nothing. */
PyObject *loopbox_make_box(PyObject *self, PyObject *args);

#endif
