/* The one function that making.c gives to the module in syscalls.c. */
#ifndef LOOPBOX_MAKING_H
#define LOOPBOX_MAKING_H

#include <Python.h>

enum { LOOPBOX_MOST_AT_ONCE = 64 };

/* make_boxes(count, network, nft, routes4, routes6) -> [(net, cookie), ...]: descriptors, the
 * caller's, and the network namespaces' cookies. `network` is a fresh one to take (count is 1),
 * -1 for none; no routes, no way out. Fewer than wanted when one failed; raises OSError when none
 * could be made. The thread is left in the last one. */
PyObject *loopbox_make_boxes(PyObject *self, PyObject *args);

#endif
