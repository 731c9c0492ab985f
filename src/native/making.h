/* The one function that making.c gives to the module in syscalls.c. */
#ifndef LOOPBOX_MAKING_H
#define LOOPBOX_MAKING_H

#include <Python.h>

/* make_box(template, network, port, udp_buffer, backlog, ping, log, nft, routes4, routes6)
 *   -> (net, mnt, tcp, udp, log, cookie): descriptors, the caller's, and the network namespace's
 * cookie. `network` is a fresh network namespace to take, or -1 to make one. With port 0 the box
 * is sealed: only `nft` is installed, and tcp, udp and log are -1. Raises OSError, leaving none. */
PyObject *loopbox_make_box(PyObject *self, PyObject *args);

#endif
