/* Boxes' networks, some in one call: what loopbox/kernel/making.py does step by step, without the
 * interpreter between the steps and without the GIL, so that two threads make boxes side by side.
 *
 * Owns: the order of the system calls and closing all of it when one fails.
 * Must never: decide anything (the netlink requests come ready made), or explain a failure: the
 * caller then walks the slow way once, which names the step and keeps the kernel's own words.
 */
#define PY_SSIZE_T_CLEAN
#define _GNU_SOURCE
#include <Python.h>
#include <errno.h>
#include <fcntl.h>
#include <linux/netlink.h>
#include <linux/rtnetlink.h>
#include <net/if.h>
#include <sched.h>
#include <stdint.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/socket.h>
#include <unistd.h>

#include "making.h"

#ifndef SO_NETNS_COOKIE
#define SO_NETNS_COOKIE 71
#endif

struct plan {
    int network; /* a fresh one to take, or -1 to make one */
    Py_buffer nft, routes4, routes6;
};

/* The cookie names this network namespace and no other, ever; 0 before Linux 5.14. */
static int
raise_lo(uint64_t *cookie)
{
    struct ifreq request;
    memset(&request, 0, sizeof request);
    strcpy(request.ifr_name, "lo");
    request.ifr_flags = IFF_UP | IFF_LOOPBACK | IFF_RUNNING;
    int fd = socket(AF_INET, SOCK_DGRAM | SOCK_CLOEXEC, 0);
    if (fd < 0)
        return -1;
    int result = ioctl(fd, SIOCSIFFLAGS, &request);
    socklen_t length = sizeof *cookie;
    if (getsockopt(fd, SOL_SOCKET, SO_NETNS_COOKIE, cookie, &length))
        *cookie = 0;
    close(fd);
    return result;
}

/* Send one netlink datagram and read answers until the one ack it asks for; any error fails. */
static int
request(int fd, const Py_buffer *batch)
{
    char answer[16384];
    if (send(fd, batch->buf, (size_t)batch->len, 0) < 0)
        return -1;
    for (;;) {
        ssize_t length = recv(fd, answer, sizeof answer, 0);
        if (length < 0)
            return -1;
        int left = (int)length;
        for (struct nlmsghdr *head = (struct nlmsghdr *)answer; NLMSG_OK(head, (unsigned)left);
             head = NLMSG_NEXT(head, left)) {
            if (head->nlmsg_type != NLMSG_ERROR)
                continue;
            int error = ((struct nlmsgerr *)NLMSG_DATA(head))->error;
            if (error) {
                errno = -error;
                return -1;
            }
            return 0;
        }
    }
}

static int
request_on_new(int protocol, const Py_buffer *first, const Py_buffer *second)
{
    int fd = socket(AF_NETLINK, SOCK_RAW | SOCK_CLOEXEC, protocol);
    if (fd < 0)
        return -1;
    int result = request(fd, first);
    if (result == 0 && second && second->len)
        result = request(fd, second);
    int saved = errno;
    close(fd);
    errno = saved;
    return result;
}

static int
make(const struct plan *plan, int *net, uint64_t *cookie)
{
    int entered = plan->network < 0 ? unshare(CLONE_NEWNET) : setns(plan->network, CLONE_NEWNET);
    if (entered || raise_lo(cookie))
        return -1;
    if ((*net = open("/proc/thread-self/ns/net", O_RDONLY | O_CLOEXEC)) < 0)
        return -1;
    if (request_on_new(NETLINK_NETFILTER, &plan->nft, NULL))
        return -1;
    if (!plan->routes4.len) /* sealed: a guard and no way out */
        return 0;
    return request_on_new(NETLINK_ROUTE, &plan->routes4, &plan->routes6);
}

PyObject *
loopbox_make_boxes(PyObject *self, PyObject *args)
{
    struct plan plan;
    struct { int net; uint64_t cookie; } made[LOOPBOX_MOST_AT_ONCE];
    int wanted, count = 0, saved = 0;
    (void)self;
    if (!PyArg_ParseTuple(args, "iiy*y*y*:make_boxes", &wanted, &plan.network, &plan.nft,
                          &plan.routes4, &plan.routes6))
        return NULL;
    if (wanted > LOOPBOX_MOST_AT_ONCE)
        wanted = LOOPBOX_MOST_AT_ONCE;
    Py_BEGIN_ALLOW_THREADS
    for (; count < wanted; count++) {
        made[count].net = -1;
        made[count].cookie = 0;
        if (make(&plan, &made[count].net, &made[count].cookie)) {
            saved = errno;
            if (made[count].net >= 0)
                close(made[count].net);
            break;
        }
    }
    Py_END_ALLOW_THREADS
    PyBuffer_Release(&plan.nft);
    PyBuffer_Release(&plan.routes4);
    PyBuffer_Release(&plan.routes6);
    if (!count) {
        errno = saved;
        return PyErr_SetFromErrno(PyExc_OSError);
    }
    PyObject *boxes = PyList_New(count);
    for (int i = 0; boxes && i < count; i++) {
        PyObject *one = Py_BuildValue("(iK)", made[i].net, (unsigned long long)made[i].cookie);
        if (one)
            PyList_SET_ITEM(boxes, i, one);
        else
            Py_CLEAR(boxes);
    }
    for (int i = 0; !boxes && i < count; i++)
        close(made[i].net);
    return boxes;
}
