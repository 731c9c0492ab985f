/* The few system calls that boxes are made of and Python does not offer everywhere.
 *
 * Owns: setns(2), unshare(2), mount(2), umount2(2) as plain functions that raise OSError, and
 * `counters`, one pass over many /proc/net/sockstat descriptors (the keeper's change detector,
 * four times a second for every box: the loop is what costs in Python).
 * Must never: decide anything, keep state, or need a library beyond libc.
 *
 * The twin in pure Python is loopbox/kernel/syscalls.py, with the same tests.
 */
#define PY_SSIZE_T_CLEAN
#define _GNU_SOURCE
#include <Python.h>
#include <errno.h>
#include <sched.h>
#include <string.h>
#include <sys/mount.h>
#include <unistd.h>

#include "making.h"

static PyObject *
py_setns(PyObject *self, PyObject *args)
{
    int fd, flags = 0;
    (void)self;
    if (!PyArg_ParseTuple(args, "i|i:setns", &fd, &flags))
        return NULL;
    int result;
    Py_BEGIN_ALLOW_THREADS
    result = setns(fd, flags);
    Py_END_ALLOW_THREADS
    if (result < 0)
        return PyErr_SetFromErrno(PyExc_OSError);
    Py_RETURN_NONE;
}

static PyObject *
py_unshare(PyObject *self, PyObject *args)
{
    int flags;
    (void)self;
    if (!PyArg_ParseTuple(args, "i:unshare", &flags))
        return NULL;
    int result;
    Py_BEGIN_ALLOW_THREADS
    result = unshare(flags);
    Py_END_ALLOW_THREADS
    if (result < 0)
        return PyErr_SetFromErrno(PyExc_OSError);
    Py_RETURN_NONE;
}

static PyObject *
py_mount(PyObject *self, PyObject *args)
{
    PyObject *source = NULL, *target = NULL;
    const char *kind, *data;
    unsigned long flags;
    (void)self;
    if (!PyArg_ParseTuple(args, "O&O&zkz:mount", PyUnicode_FSConverter, &source,
                          PyUnicode_FSConverter, &target, &kind, &flags, &data)) {
        Py_XDECREF(source);
        Py_XDECREF(target);
        return NULL;
    }
    int result;
    Py_BEGIN_ALLOW_THREADS
    result = mount(PyBytes_AS_STRING(source), PyBytes_AS_STRING(target), kind, flags, data);
    Py_END_ALLOW_THREADS
    int saved = errno;
    PyObject *failed = NULL;
    if (result < 0) {
        PyObject *name = PyUnicode_DecodeFSDefault(PyBytes_AS_STRING(target));
        errno = saved;
        if (name)
            failed = PyErr_SetFromErrnoWithFilenameObject(PyExc_OSError, name);
        Py_XDECREF(name);
    }
    Py_DECREF(source);
    Py_DECREF(target);
    if (result < 0)
        return failed;
    Py_RETURN_NONE;
}

static PyObject *
py_umount2(PyObject *self, PyObject *args)
{
    PyObject *target = NULL;
    int flags;
    (void)self;
    if (!PyArg_ParseTuple(args, "O&i:umount2", PyUnicode_FSConverter, &target, &flags)) {
        Py_XDECREF(target);
        return NULL;
    }
    int result;
    Py_BEGIN_ALLOW_THREADS
    result = umount2(PyBytes_AS_STRING(target), flags);
    Py_END_ALLOW_THREADS
    Py_DECREF(target);
    if (result < 0)
        return PyErr_SetFromErrno(PyExc_OSError);
    Py_RETURN_NONE;
}

/* FNV-1a over what the file says now: any change of any counter changes the number. */
static unsigned long long
fingerprint(int fd, char *buffer, size_t size)
{
    ssize_t length = pread(fd, buffer, size, 0);
    unsigned long long hash = 1469598103934665603ULL;
    ssize_t at = 0;
    /* "sockets: used" counts Unix sockets too, and nobody waits for those. */
    if (length > 8 && memcmp(buffer, "sockets:", 8) == 0)
        while (at < length && buffer[at] != '\n')
            at++;
    for (; at < length; at++) {
        /* "mem", "alloc" and "orphan" count the whole machine, not this namespace: stop the
         * line where they begin, or every box would seem to change with every other. */
        if (buffer[at] == ' ' && length - at > 7
            && (memcmp(buffer + at, " orphan", 7) == 0 || memcmp(buffer + at, " mem", 4) == 0
                || memcmp(buffer + at, " memory", 7) == 0)) {
            while (at < length && buffer[at] != '\n')
                at++;
        }
        if (at < length)
            hash = (hash ^ (unsigned char)buffer[at]) * 1099511628211ULL;
    }
    return length < 0 ? 0 : hash;
}

static PyObject *
py_counters(PyObject *self, PyObject *arg)
{
    (void)self;
    PyObject *items = PySequence_Fast(arg, "counters() takes a sequence of descriptors");
    if (!items)
        return NULL;
    Py_ssize_t count = PySequence_Fast_GET_SIZE(items);
    int *fds = PyMem_Malloc(sizeof(int) * (size_t)(count ? count : 1));
    unsigned long long *found = PyMem_Malloc(sizeof(*found) * (size_t)(count ? count : 1));
    PyObject *result = NULL;
    if (!fds || !found) {
        PyErr_NoMemory();
        goto done;
    }
    for (Py_ssize_t i = 0; i < count; i++) {
        long fd = PyLong_AsLong(PySequence_Fast_GET_ITEM(items, i));
        if (fd == -1 && PyErr_Occurred())
            goto done;
        fds[i] = (int)fd;
    }
    Py_BEGIN_ALLOW_THREADS
    char buffer[1024];
    for (Py_ssize_t i = 0; i < count; i++)
        found[i] = fingerprint(fds[i], buffer, sizeof buffer);
    Py_END_ALLOW_THREADS
    result = PyList_New(count);
    if (!result)
        goto done;
    for (Py_ssize_t i = 0; i < count; i++) {
        PyObject *value = PyLong_FromUnsignedLongLong(found[i]);
        if (!value) {
            Py_CLEAR(result);
            goto done;
        }
        PyList_SET_ITEM(result, i, value);
    }
done:
    PyMem_Free(fds);
    PyMem_Free(found);
    Py_DECREF(items);
    return result;
}

static PyMethodDef methods[] = {
    {"setns", py_setns, METH_VARARGS, "setns(fd, flags=0): move this thread, setns(2)."},
    {"unshare", py_unshare, METH_VARARGS, "unshare(flags): unshare(2) for this thread."},
    {"mount", py_mount, METH_VARARGS, "mount(source, target, kind, flags, data): mount(2)."},
    {"umount2", py_umount2, METH_VARARGS, "umount2(target, flags): umount2(2)."},
    {"make_boxes", loopbox_make_boxes, METH_VARARGS, "Boxes' networks; see making.h."},
    {"counters", py_counters, METH_O, "counters(fds): one fingerprint per sockstat descriptor."},
    {NULL, NULL, 0, NULL},
};

static PyModuleDef_Slot slots[] = {
#ifdef Py_MOD_GIL_NOT_USED
    {Py_mod_gil, Py_MOD_GIL_NOT_USED},
#endif
    {0, NULL},
};

static struct PyModuleDef module = {
    PyModuleDef_HEAD_INIT,
    .m_name = "_syscalls",
    .m_doc = "setns, unshare, mount, umount2 and the listener change detector.",
    .m_size = 0,
    .m_methods = methods,
    .m_slots = slots,
};

PyMODINIT_FUNC
PyInit__syscalls(void)
{
    return PyModuleDef_Init(&module);
}
