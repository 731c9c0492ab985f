/* loopbox.keeper._relay: the relay's loop, compiled.
 *
 * Owns: one thread with one edge-triggered epoll loop that accepts from doors, checks whose
 * process calls, dials into a box's network namespace, and moves bytes both ways with half-close,
 * reset and back-pressure carried across. Python talks to it through a queue of commands.
 *
 * Must never: hold or wait for the GIL in the loop; look at the bytes; call back into Python;
 * touch a descriptor it was not given. Its twin is relay_python.py: same interface, same tests.
 *
 * Longer than a module should be because the compiler has to see the path of a message whole
 * (event, recv, send) to inline it, and setup.py builds one file per extension.
 *
 * Example (see relay.py for the public face):
 *     core = _relay.Core(home_netns_fd, diag_fd); core.start()
 *     core.add_door(1, listener_fd, (group, netns_fd), packed_targets, owner_uid)
 *
 * Reading order: values, doors to the kernel, flows (the path of a message), dialling, accepting,
 * commands, the loop, the Python face.
 */
#define PY_SSIZE_T_CLEAN
#ifndef _GNU_SOURCE
#define _GNU_SOURCE
#endif
#include <Python.h>

#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <linux/inet_diag.h>
#include <linux/netlink.h>
#include <linux/sock_diag.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

/* ---- limits ------------------------------------------------------------------------------ */

enum {
    COPY_BYTES = 64 * 1024,      /* one recv; stays in the second-level cache */
    BULK_AFTER = 4,              /* full reads in a row before a direction is moved by splice */
    BULK_LEAST = 32 * 1024,      /* a burst smaller than this ends bulk mode */
    SPLICE_BYTES = 4096 * 1024,  /* one splice; the pipe's slots are the real limit */
    WIDE_PIPES = 8,              /* the first few are wide, the others not: together a fifth of */
    WIDE_PIPE_BYTES = 1024 * 1024, /* fs.pipe-user-pages-soft, past which every new pipe of the */
    PIPE_BYTES = 256 * 1024,     /* user, in any program, shrinks */
    PIPES = 32,
    ROUNDS = 16,                 /* moves per turn, so that one bulk flow cannot starve others */
    EVENTS = 256,
    TARGETS = 8,
    SLAB = 256,                  /* connections per allocation */
    SLABS = 8192,
    BUCKETS = 1024,
    RETRY_MS = 50,               /* pause of a door, or of a dial, that ran out of descriptors */
    STARVED_MS = 10000,          /* then the dial is given up */
    LINGER_MS = 2000,            /* a refused client's time to read the refusal */
    LINGER_BYTES = 1024 * 1024,  /* and what it may still send meanwhile */
    ENDED = 65536,               /* reports of ended connections kept for the reader */
    COMPLAINTS = 64,
    BURST = 64,                  /* most connections accepted per event of a door */
};

/* ---- values ------------------------------------------------------------------------------ */

enum side { LEFT = 0, RIGHT = 1 };
enum state { FREE, DIALLING, STARVED, CARRYING, LINGERING };
enum tag { TAG_WAKE, TAG_DOOR, TAG_LEFT, TAG_RIGHT };

struct target { /* packed by relay.pack_targets: keep both in step */
    uint16_t family;
    uint16_t port; /* network order */
    uint8_t address[16];
};

struct place { /* a network namespace of a group; pinned by the descriptor until drop_group */
    struct place *next;
    ino_t inode;
    int fd;
};

struct group {
    struct group *next;
    struct place *places;
    int number;
    atomic_uint_fast64_t open, bytes;
};

struct door {
    struct door *next;        /* in its bucket */
    struct door *next_paused;
    struct group *group;
    struct place *place;
    int64_t owner;            /* uid, or -1 for anyone */
    int number, fd;
    unsigned burst, target_count;
    bool paused, complained, here_known;
    struct sockaddr_storage here; /* the listener's address: every client's, unless a wildcard */
    struct target targets[TARGETS];
};

struct flow { /* one direction; flow[LEFT] carries left to right */
    uint8_t *pending;         /* bytes the other end would not take yet; NULL when none */
    uint32_t start, end;
    uint32_t in_pipe, burst;
    int8_t pipe;              /* index into the pool, held only while bytes are in it; or -1 */
    uint8_t full_reads;
    bool bulk, unspliceable, blocked, eof, finished;
};

struct end {
    int fd;
    bool readable, hangup, failed, urgent, wants_out, registered;
};

struct conn {
    struct conn *before, *after; /* in the ready list or the timed list */
    struct group *group;
    struct place *place;
    uint8_t *refusal;
    uint64_t id, bytes[2];
    int64_t deadline, give_up;
    uint32_t index, generation, refusal_size, lingered;
    uint8_t state, listed;    /* listed: 0, 1 ready, 2 timed */
    uint8_t target_count, next_target;
    bool reported;
    struct end end[2];
    struct flow flow[2];
    struct target targets[TARGETS];
};

enum verb { ADD_DOOR, RETARGET_DOOR, REMOVE_DOOR, DIAL, JOIN, DROP_GROUP };

struct command {
    struct command *next;
    enum verb verb;
    int door, group, fd, fd2, netns_fd;
    int64_t owner;
    uint64_t id;
    ino_t inode;
    unsigned target_count;
    struct target targets[TARGETS];
    uint8_t *first, *second;  /* head or to_right; refusal or to_left */
    uint32_t first_size, second_size;
};

struct ended { uint64_t id, bytes_in, bytes_out; bool reset; };
struct complaint { const char *what; int number, error; };
struct list { struct conn *first; };

typedef struct {
    PyObject_HEAD
    /* shared with callers, under `lock` */
    pthread_mutex_t lock;
    struct command *queue, **queue_tail;
    struct group *groups[BUCKETS];
    struct ended *ended;
    uint32_t ended_start, ended_count;
    struct complaint complaints[COMPLAINTS];
    uint32_t complaint_count;
    atomic_bool posted;       /* there are commands */
    bool started, stopped;
    atomic_bool leaving;
    pid_t pid;                /* a forked child has no such thread to wait for */
    pthread_t thread;
    atomic_uint_fast64_t next_id, open, accepted, refused, failed, bytes[2];
    int wake_fd, ended_fd, epoll_fd, home_fd, diag_fd;
    /* the loop's own */
    struct door *doors[BUCKETS], *paused;
    struct conn *slabs[SLABS];
    uint32_t slab_count, *free_slots, free_count;
    struct list ready, timed;
    int64_t retry_at;         /* when paused doors are looked at again, ms */
    ino_t home, standing;
    int pipes[PIPES][2];
    uint8_t idle_pipes[PIPES];
    unsigned pipe_count, idle_count;
    bool no_pipes, woken;
    uint32_t diag_sequence;
    uint8_t *scratch;
} Core;

#define ADD(counter, amount) \
    atomic_store_explicit(&(counter), \
        atomic_load_explicit(&(counter), memory_order_relaxed) + (amount), memory_order_relaxed)
#define READ(counter) atomic_load_explicit(&(counter), memory_order_relaxed)

static int64_t now_ms(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (int64_t)t.tv_sec * 1000 + t.tv_nsec / 1000000;
}

static void complain(Core *core, const char *what, int number, int error)
{
    pthread_mutex_lock(&core->lock);
    if (core->complaint_count < COMPLAINTS)
        core->complaints[core->complaint_count++] = (struct complaint){what, number, error};
    pthread_mutex_unlock(&core->lock);
}

/* ---- lists of connections ------------------------------------------------------------------ */

static void unlist(Core *core, struct conn *c)
{
    if (!c->listed)
        return;
    struct list *list = c->listed == 1 ? &core->ready : &core->timed;
    if (c->before)
        c->before->after = c->after;
    else
        list->first = c->after;
    if (c->after)
        c->after->before = c->before;
    c->before = c->after = NULL;
    c->listed = 0;
}

static void enlist(Core *core, struct conn *c, int which)
{
    if (c->listed == which)
        return;
    unlist(core, c);
    struct list *list = which == 1 ? &core->ready : &core->timed;
    c->after = list->first;
    if (c->after)
        c->after->before = c;
    list->first = c;
    c->listed = (uint8_t)which;
}

/* ---- connections: slots with a generation ----------------------------------------------------
 * An epoll registration outlives close() while a child of the keeper between fork and exec holds
 * a copy of the descriptor, so events may come for a slot that has been reused. */

static struct conn *conn_at(Core *core, uint32_t index)
{
    return &core->slabs[index / SLAB][index % SLAB];
}

static bool grow_slabs(Core *core)
{
    if (core->slab_count == SLABS)
        return false;
    uint32_t total = (core->slab_count + 1) * SLAB;
    uint32_t *slots = realloc(core->free_slots, total * sizeof *slots);
    if (!slots)
        return false;
    core->free_slots = slots;
    struct conn *slab = calloc(SLAB, sizeof *slab);
    if (!slab)
        return false;
    for (uint32_t i = SLAB; i-- > 0;) {
        slab[i].index = core->slab_count * SLAB + i;
        core->free_slots[core->free_count++] = slab[i].index;
    }
    core->slabs[core->slab_count++] = slab;
    return true;
}

static struct conn *new_conn(Core *core, struct group *group, int left, int right)
{
    if (!core->free_count && !grow_slabs(core))
        return NULL;
    struct conn *c = conn_at(core, core->free_slots[--core->free_count]);
    uint32_t index = c->index, generation = c->generation + 1;
    memset(c, 0, offsetof(struct conn, targets));
    c->index = index;
    c->generation = generation;
    c->group = group;
    c->end[LEFT].fd = left;
    c->end[RIGHT].fd = right;
    c->flow[LEFT].pipe = c->flow[RIGHT].pipe = -1;
    ADD(core->open, 1);
    ADD(group->open, 1);
    return c;
}

static void close_idle_pipes(Core *core)
{
    while (core->idle_count) {
        int *pair = core->pipes[core->idle_pipes[--core->idle_count]];
        close(pair[0]);
        close(pair[1]);
        pair[0] = pair[1] = -1;
    }
    core->pipe_count = 0;
    for (int i = 0; i < PIPES; i++)
        core->pipe_count += core->pipes[i][0] >= 0;
    core->no_pipes = false;
}

static void report_end(Core *core, struct conn *c, bool reset)
{
    pthread_mutex_lock(&core->lock);
    if (!core->ended)
        core->ended = malloc(ENDED * sizeof *core->ended);
    if (core->ended) {
        if (core->ended_count == ENDED) { /* nobody reads: the oldest go */
            core->ended_start = (core->ended_start + 1) % ENDED;
            core->ended_count--;
        }
        core->ended[(core->ended_start + core->ended_count++) % ENDED] =
            (struct ended){c->id, c->bytes[LEFT], c->bytes[RIGHT], reset};
    }
    pthread_mutex_unlock(&core->lock);
    uint64_t one = 1;
    (void)!write(core->ended_fd, &one, sizeof one);
}

static void close_end(struct end *e, bool reset)
{
    if (e->fd < 0)
        return;
    if (reset) {
        struct linger now = {1, 0};
        setsockopt(e->fd, SOL_SOCKET, SO_LINGER, &now, sizeof now);
    }
    close(e->fd);
    e->fd = -1;
}

static void drop_pipe(Core *core, struct flow *f)
{
    if (f->pipe < 0)
        return;
    int *pair = core->pipes[f->pipe];
    close(pair[0]);
    close(pair[1]);
    pair[0] = pair[1] = -1;
    core->pipe_count--;
    f->pipe = -1;
}

/* Ends both sockets and forgets the connection: by reset, or in order (all bytes were passed). */
static void close_conn(Core *core, struct conn *c, bool reset)
{
    unlist(core, c);
    if (c->reported)
        report_end(core, c, reset);
    for (int side = LEFT; side <= RIGHT; side++) {
        close_end(&c->end[side], reset);
        drop_pipe(core, &c->flow[side]);
        free(c->flow[side].pending);
        c->flow[side].pending = NULL;
    }
    free(c->refusal);
    c->refusal = NULL;
    c->state = FREE;
    c->generation++;
    core->free_slots[core->free_count++] = c->index;
    ADD(core->open, -1);
    ADD(c->group->open, -1);
    if (core->paused)
        core->retry_at = 0; /* two descriptors came free */
    if (!READ(core->open) && core->idle_count)
        close_idle_pipes(core);
}

/* ---- epoll ------------------------------------------------------------------------------- */

static uint64_t conn_token(struct conn *c, int side)
{
    return (uint64_t)c->generation << 32 | (uint64_t)c->index << 2 |
           (uint64_t)(side == LEFT ? TAG_LEFT : TAG_RIGHT);
}

/* EPOLLOUT is asked for only once a send fell short: an edge-triggered registration that includes
 * it reports "writable" at once, a wasted event on every short connection. From then on it stays:
 * the kernel only signals it after a send that found no space. */
static bool watch(Core *core, struct conn *c, int side, bool out)
{
    struct end *e = &c->end[side];
    if (e->registered && (e->wants_out || !out))
        return true;
    struct epoll_event event = {
        .events = EPOLLIN | EPOLLRDHUP | EPOLLPRI | EPOLLET | (out ? EPOLLOUT : 0u),
        .data.u64 = conn_token(c, side),
    };
    int op = e->registered ? EPOLL_CTL_MOD : EPOLL_CTL_ADD;
    if (epoll_ctl(core->epoll_fd, op, e->fd, &event) < 0) {
        complain(core, "cannot watch a connection", e->fd, errno);
        return false;
    }
    e->registered = true;
    e->wants_out = out;
    return true;
}

/* ---- flows: the path of a message ------------------------------------------------------------
 * Each step returns false when it closed the connection. */

static void count(Core *core, struct conn *c, int side, uint64_t bytes)
{
    c->bytes[side] += bytes;
    ADD(core->bytes[side], bytes);
    ADD(c->group->bytes, bytes);
}

static bool lost(Core *core, struct conn *c)
{
    close_conn(core, c, true);
    return false;
}

/* The receiver of flow `side` is gone. What it said before it went (an early "413" and a close
 * with the upload unread) is still in its socket: pass that on, then reset both. */
static bool receiver_lost(Core *core, struct conn *c, int side)
{
    struct flow *back = &c->flow[!side];
    if (back->blocked || back->pending || back->in_pipe || back->eof)
        return lost(core, c);
    for (int i = 0; i < ROUNDS; i++) {
        ssize_t n = recv(c->end[!side].fd, core->scratch, COPY_BYTES, MSG_DONTWAIT);
        if (n <= 0)
            break;
        ssize_t sent = send(c->end[side].fd, core->scratch, (size_t)n,
                            MSG_NOSIGNAL | MSG_DONTWAIT);
        if (sent > 0)
            count(core, c, !side, (uint64_t)sent);
        if (sent != n)
            break;
    }
    return lost(core, c);
}

static bool block(Core *core, struct conn *c, int side)
{
    c->flow[side].blocked = true;
    if (!watch(core, c, !side, true))
        return lost(core, c);
    return true;
}

static bool take_pipe(Core *core, struct flow *f)
{
    if (f->pipe >= 0)
        return true;
    if (core->idle_count) {
        f->pipe = (int8_t)core->idle_pipes[--core->idle_count];
        return true;
    }
    if (core->no_pipes || core->pipe_count == PIPES)
        return false;
    int slot = 0;
    while (core->pipes[slot][0] >= 0)
        slot++;
    int *pair = core->pipes[slot];
    if (pipe2(pair, O_NONBLOCK | O_CLOEXEC) < 0) {
        pair[0] = pair[1] = -1;
        return false;
    }
    if (fcntl(pair[1], F_SETPIPE_SZ, slot < WIDE_PIPES ? WIDE_PIPE_BYTES : PIPE_BYTES) < 0 &&
        fcntl(pair[1], F_GETPIPE_SZ) < COPY_BYTES) { /* over the user's budget: not worth it */
        close(pair[0]);
        close(pair[1]);
        pair[0] = pair[1] = -1;
        core->no_pipes = true;
        return false;
    }
    core->pipe_count++;
    f->pipe = (int8_t)slot;
    return true;
}

static void give_pipe(Core *core, struct flow *f)
{
    if (f->pipe >= 0 && !f->in_pipe) {
        core->idle_pipes[core->idle_count++] = (uint8_t)f->pipe;
        f->pipe = -1;
    }
}

static bool again(int error)
{
    return error == EAGAIN || error == EWOULDBLOCK;
}

/* Passes on what the pipe holds, as far as the receiver takes it. */
static bool flush_pipe(Core *core, struct conn *c, int side)
{
    struct flow *f = &c->flow[side];
    while (f->in_pipe) {
        ssize_t n = splice(core->pipes[f->pipe][0], NULL, c->end[!side].fd, NULL, f->in_pipe,
                           SPLICE_F_MOVE | SPLICE_F_NONBLOCK);
        if (n < 0 && errno == EINTR)
            continue;
        if (n < 0 && again(errno))
            return block(core, c, side);
        if (n <= 0)
            return receiver_lost(core, c, side);
        f->in_pipe -= (uint32_t)n;
        count(core, c, side, (uint64_t)n);
    }
    give_pipe(core, f);
    return true;
}

static bool flush_pending(Core *core, struct conn *c, int side)
{
    struct flow *f = &c->flow[side];
    while (f->start < f->end) {
        ssize_t n = send(c->end[!side].fd, f->pending + f->start, f->end - f->start,
                         MSG_NOSIGNAL | MSG_DONTWAIT);
        if (n < 0 && errno == EINTR)
            continue;
        if (n < 0 && again(errno))
            return block(core, c, side);
        if (n < 0)
            return receiver_lost(core, c, side);
        f->start += (uint32_t)n;
        count(core, c, side, (uint64_t)n);
    }
    free(f->pending);
    f->pending = NULL;
    f->start = f->end = 0;
    return true;
}

static bool keep_pending(struct flow *f, const uint8_t *bytes, size_t size)
{
    f->pending = malloc(size);
    if (!f->pending)
        return false;
    memcpy(f->pending, bytes, size);
    f->start = 0;
    f->end = (uint32_t)size;
    return true;
}

/* The sender has said all it will and these are its last bytes: held back until the FIN that the
 * next read tells of, they leave in one segment with it. The receiver wakes once, not twice: a
 * short connection costs 5 % less. */
static int last_words(const struct end *from, ssize_t n)
{
    return from->hangup && !from->failed && !from->urgent && n < COPY_BYTES ? MSG_MORE : 0;
}

/* There was no end after all: let go of what was held back for it (tcp(7), TCP_NODELAY). */
static void push(const struct end *to)
{
    int on = 1;
    setsockopt(to->fd, IPPROTO_TCP, TCP_NODELAY, &on, sizeof on);
}

/* One recv and one send. A read that did not fill the buffer has emptied the socket: skip the
 * read that would say so. Not after a hang-up (the edge that told of the FIN came together with
 * the data, there is no other) and not near urgent data (a read stops at the mark). */
static bool move_by_copy(Core *core, struct conn *c, int side)
{
    struct flow *f = &c->flow[side];
    struct end *from = &c->end[side];
    ssize_t n = recv(from->fd, core->scratch, COPY_BYTES, MSG_DONTWAIT);
    if (n < 0) {
        if (again(errno)) {
            from->readable = false;
            if (from->hangup)
                push(&c->end[!side]);
            return true;
        }
        return errno == EINTR ? true : lost(core, c);
    }
    if (n == 0) {
        f->eof = true;
        return true;
    }
    if (n < COPY_BYTES) {
        f->full_reads = 0;
        if (!from->hangup && !from->urgent)
            from->readable = false;
    } else if (++f->full_reads >= BULK_AFTER && !from->urgent && !f->unspliceable) {
        f->full_reads = 0;
        f->bulk = true;
        f->burst = 0;
    }
    ssize_t sent = send(c->end[!side].fd, core->scratch, (size_t)n,
                        MSG_NOSIGNAL | MSG_DONTWAIT | last_words(from, n));
    if (sent < 0) {
        if (!again(errno) && errno != EINTR)
            return receiver_lost(core, c, side);
        sent = 0;
    }
    count(core, c, side, (uint64_t)sent);
    if (sent == n)
        return true;
    if (!keep_pending(f, core->scratch + sent, (size_t)(n - sent)))
        return lost(core, c);
    return block(core, c, side);
}

static bool move_by_splice(Core *core, struct conn *c, int side)
{
    struct flow *f = &c->flow[side];
    struct end *from = &c->end[side];
    ssize_t n = splice(from->fd, NULL, core->pipes[f->pipe][1], NULL, SPLICE_BYTES,
                       SPLICE_F_MOVE | SPLICE_F_NONBLOCK);
    if (n > 0) {
        f->in_pipe = (uint32_t)n;
        f->burst += (uint32_t)n > UINT32_MAX - f->burst ? 0 : (uint32_t)n;
        return flush_pipe(core, c, side);
    }
    int error = errno;
    give_pipe(core, f);
    if (n == 0) {
        f->eof = true;
    } else if (again(error)) { /* the pipe was empty, so it is the socket that has no more */
        from->readable = false;
        f->bulk = f->burst >= BULK_LEAST;
        f->burst = 0;
    } else if (error == EINVAL) { /* a socket that cannot be spliced */
        f->bulk = false;
        f->unspliceable = true;
    } else if (error != EINTR) {
        return lost(core, c);
    }
    return true;
}

static bool finish_flow(Core *core, struct conn *c, int side)
{
    c->flow[side].finished = true;
    if (c->flow[!side].finished) {
        close_conn(core, c, false);
        return false;
    }
    shutdown(c->end[!side].fd, SHUT_WR);
    return true;
}

/* Moves what can be moved from `side` to the other, at most ROUNDS times. */
static bool pump(Core *core, struct conn *c, int side)
{
    struct flow *f = &c->flow[side];
    if (f->blocked)
        return true;
    if (f->in_pipe && !flush_pipe(core, c, side))
        return false;
    if (f->pending && !f->blocked && !flush_pending(core, c, side))
        return false;
    int rounds = ROUNDS;
    while (c->end[side].readable && !f->eof && !f->blocked) {
        if (!rounds--) {
            enlist(core, c, 1);
            return true;
        }
        bool moved = f->bulk && take_pipe(core, f) ? move_by_splice(core, c, side)
                                                   : move_by_copy(core, c, side);
        if (!moved)
            return false;
    }
    if (f->eof && !f->finished && !f->blocked)
        return finish_flow(core, c, side);
    return true;
}

/* A socket of ours on loopback: no Nagle, and Reno, which every user may choose. There is no loss
 * on loopback to be clever about, and a default of BBR would pace it: 1.4 to 3 times the CPU per
 * byte in bulk (kernel 6.18, 2 busy cores). Where it is not allowed the default stays. */
static void tune(int fd)
{
    int on = 1;
    setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &on, sizeof on);
    setsockopt(fd, IPPROTO_TCP, TCP_CONGESTION, "reno", 4);
}

/* ---- dialling ------------------------------------------------------------------------------ */

static bool stand_in(Core *core, int fd, ino_t inode)
{
    if (core->standing == inode)
        return true;
    if (setns(fd, CLONE_NEWNET) < 0) {
        complain(core, "cannot enter a network namespace", fd, errno);
        return false;
    }
    core->standing = inode;
    return true;
}

static socklen_t build_address(const struct target *t, struct sockaddr_storage *out)
{
    memset(out, 0, sizeof(struct sockaddr_in6));
    if (t->family == AF_INET) {
        struct sockaddr_in *v4 = (struct sockaddr_in *)out;
        v4->sin_family = AF_INET;
        v4->sin_port = t->port;
        memcpy(&v4->sin_addr, t->address, 4);
        return sizeof *v4;
    }
    struct sockaddr_in6 *v6 = (struct sockaddr_in6 *)out;
    v6->sin6_family = AF_INET6;
    v6->sin6_port = t->port;
    memcpy(&v6->sin6_addr, t->address, 16);
    return sizeof *v6;
}

static bool start_carrying(Core *core, struct conn *c, bool try_left)
{
    unlist(core, c);
    c->state = CARRYING;
    free(c->refusal);
    c->refusal = NULL;
    c->end[LEFT].readable |= try_left;
    if (!watch(core, c, RIGHT, c->flow[LEFT].pending != NULL))
        return lost(core, c);
    if (!pump(core, c, LEFT))
        return false;
    if (c->flow[RIGHT].pending && !pump(core, c, RIGHT))
        return false;
    if (!watch(core, c, LEFT, c->flow[RIGHT].blocked))
        return lost(core, c);
    return true;
}

/* Nothing answered: say so to the client and let it read that before the socket goes. Closing
 * with its bytes unread would send a reset, which can overtake the words. */
static void refuse(Core *core, struct conn *c)
{
    ADD(core->failed, 1);
    free(c->flow[LEFT].pending);
    c->flow[LEFT].pending = NULL;
    if (!c->refusal_size) {
        close_conn(core, c, true);
        return;
    }
    (void)!send(c->end[LEFT].fd, c->refusal, c->refusal_size, MSG_NOSIGNAL | MSG_DONTWAIT);
    shutdown(c->end[LEFT].fd, SHUT_WR);
    c->state = LINGERING;
    c->deadline = now_ms() + LINGER_MS;
    enlist(core, c, 2);
    if (!watch(core, c, LEFT, false))
        close_conn(core, c, true);
}

static void linger(Core *core, struct conn *c)
{
    for (;;) {
        ssize_t n = recv(c->end[LEFT].fd, core->scratch, COPY_BYTES, MSG_DONTWAIT);
        if (n < 0 && again(errno))
            return;
        c->lingered += n > 0 ? (uint32_t)n : 0;
        if (n <= 0 || c->lingered > LINGER_BYTES) {
            close_conn(core, c, n != 0);
            return;
        }
    }
}

static void starve(Core *core, struct conn *c)
{
    int64_t now = now_ms();
    if (c->state != STARVED)
        c->give_up = now + STARVED_MS;
    c->state = STARVED;
    c->deadline = now + RETRY_MS;
    enlist(core, c, 2);
}

/* Tries the targets from c->next_target on. On loopback the handshake is over when connect
 * returns EINPROGRESS (the answer waited for the socket lock), so a second connect tells. */
static void dial(Core *core, struct conn *c)
{
    for (; c->next_target < c->target_count; c->next_target++) {
        const struct target *t = &c->targets[c->next_target];
        struct sockaddr_storage address;
        socklen_t size = build_address(t, &address);
        if (!stand_in(core, c->place->fd, c->place->inode))
            break;
        int fd = socket(t->family, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
        if (fd < 0) {
            if (errno != EMFILE && errno != ENFILE && errno != ENOBUFS && errno != ENOMEM)
                continue;
            starve(core, c);
            return;
        }
        tune(fd);
        int result = connect(fd, (struct sockaddr *)&address, size);
        if (result < 0 && errno == EINPROGRESS)
            result = connect(fd, (struct sockaddr *)&address, size);
        c->end[RIGHT] = (struct end){.fd = fd};
        if (result == 0 || errno == EISCONN) {
            start_carrying(core, c, true);
            return;
        }
        if (errno == EALREADY || errno == EINPROGRESS) { /* the server's backlog is full */
            c->state = DIALLING;
            unlist(core, c);
            if (!watch(core, c, RIGHT, true) || !watch(core, c, LEFT, false))
                close_conn(core, c, true);
            return;
        }
        close_end(&c->end[RIGHT], false);
    }
    refuse(core, c);
}

static void on_dial_event(Core *core, struct conn *c)
{
    int error = 0;
    socklen_t size = sizeof error;
    getsockopt(c->end[RIGHT].fd, SOL_SOCKET, SO_ERROR, &error, &size);
    struct sockaddr_storage peer;
    socklen_t peer_size = sizeof peer;
    if (!error && getpeername(c->end[RIGHT].fd, (struct sockaddr *)&peer, &peer_size) == 0) {
        if (start_carrying(core, c, true) && c->end[RIGHT].readable)
            pump(core, c, RIGHT);
        return;
    }
    if (!error && errno == ENOTCONN && !c->end[RIGHT].failed && !c->end[RIGHT].hangup)
        return; /* still on its way */
    close_end(&c->end[RIGHT], false);
    c->next_target++;
    dial(core, c);
}

/* ---- accepting ----------------------------------------------------------------------------- */

struct diag_request { struct nlmsghdr head; struct inet_diag_req_v2 body; };

static void put_address(const struct sockaddr_storage *a, __be32 *address, __be16 *port)
{
    if (a->ss_family == AF_INET) {
        const struct sockaddr_in *v4 = (const struct sockaddr_in *)a;
        memcpy(address, &v4->sin_addr, 4);
        *port = v4->sin_port;
    } else {
        const struct sockaddr_in6 *v6 = (const struct sockaddr_in6 *)a;
        memcpy(address, &v6->sin6_addr, 16);
        *port = v6->sin6_port;
    }
}

/* Is this answer the very socket asked for, alive, and the owner's? A lookup falls back to a
 * listener on the client's port (not the client); an orphan or time-wait socket reads as uid 0
 * with no inode, whoever it belonged to. */
static bool is_owner(const struct diag_request *asked, const struct inet_diag_msg *seen,
                     int64_t owner)
{
    return seen->idiag_state != TCP_LISTEN && seen->id.idiag_sport == asked->body.id.idiag_sport &&
           seen->id.idiag_dport == asked->body.id.idiag_dport &&
           (int64_t)seen->idiag_uid == owner && !(seen->idiag_uid == 0 && seen->idiag_inode == 0);
}

/* Exact sock_diag(7) lookup of the client's own socket: 5 us however many there are. The kernel
 * answers before sendto returns. Anything unclear is a no. */
static bool admits(Core *core, struct door *d, int client, const struct sockaddr_storage *peer)
{
    struct sockaddr_storage mine, *here = d->here_known ? &d->here : &mine;
    socklen_t size = sizeof mine;
    if (!d->here_known && getsockname(client, (struct sockaddr *)&mine, &size) < 0)
        return false;
    struct diag_request ask = {
        .head = {.nlmsg_len = sizeof ask,
                 .nlmsg_type = SOCK_DIAG_BY_FAMILY,
                 .nlmsg_flags = NLM_F_REQUEST,
                 .nlmsg_seq = ++core->diag_sequence},
        .body = {.sdiag_family = (uint8_t)peer->ss_family,
                 .sdiag_protocol = IPPROTO_TCP,
                 .idiag_states = ~0u},
    };
    put_address(peer, ask.body.id.idiag_src, &ask.body.id.idiag_sport);
    put_address(here, ask.body.id.idiag_dst, &ask.body.id.idiag_dport);
    ask.body.id.idiag_if = 1; /* lo is 1 in every namespace; 0 would miss clients bound to it */
    ask.body.id.idiag_cookie[0] = ask.body.id.idiag_cookie[1] = INET_DIAG_NOCOOKIE;
    struct sockaddr_nl kernel = {.nl_family = AF_NETLINK};
    if (sendto(core->diag_fd, &ask, sizeof ask, MSG_DONTWAIT, (struct sockaddr *)&kernel,
               sizeof kernel) < 0) {
        complain(core, "cannot ask whose connection it is", core->diag_fd, errno);
        return false;
    }
    union { struct nlmsghdr head; uint8_t bytes[4096]; } reply;
    for (;;) {
        ssize_t n = recv(core->diag_fd, &reply, sizeof reply, MSG_DONTWAIT);
        if (n < 0 && errno == EINTR)
            continue;
        if (n < (ssize_t)NLMSG_HDRLEN)
            return false;
        if (reply.head.nlmsg_seq != ask.head.nlmsg_seq)
            continue; /* left over from an earlier question */
        if (reply.head.nlmsg_type != SOCK_DIAG_BY_FAMILY ||
            n < (ssize_t)NLMSG_LENGTH(sizeof(struct inet_diag_msg)))
            return false;
        return is_owner(&ask, NLMSG_DATA(&reply.head), d->owner);
    }
}

static uint64_t door_token(const struct door *d)
{
    return (uint64_t)(uintptr_t)d | TAG_DOOR; /* malloc aligns by 16: low bits are the tag's */
}

static void pause_door(Core *core, struct door *d, int error)
{
    struct epoll_event quiet = {.events = 0, .data.u64 = door_token(d)};
    epoll_ctl(core->epoll_fd, EPOLL_CTL_MOD, d->fd, &quiet);
    d->paused = true;
    d->next_paused = core->paused;
    core->paused = d;
    core->retry_at = now_ms() + RETRY_MS;
    if (!d->complained)
        complain(core, "cannot accept for now at a door", d->number, error);
    d->complained = true;
}

static void resume_doors(Core *core)
{
    struct door *d = core->paused;
    core->paused = NULL;
    while (d) {
        struct door *next = d->next_paused;
        struct epoll_event event = {.events = EPOLLIN, .data.u64 = door_token(d)};
        epoll_ctl(core->epoll_fd, EPOLL_CTL_MOD, d->fd, &event);
        d->paused = false;
        d->next_paused = NULL;
        d = next;
    }
}

static void welcome(Core *core, struct door *d, int client, const struct sockaddr_storage *peer)
{
    struct end turned_away = {.fd = client};
    ADD(core->accepted, 1);
    if (d->owner >= 0 && !admits(core, d, client, peer)) {
        ADD(core->refused, 1);
        close_end(&turned_away, true);
        return;
    }
    struct conn *c = new_conn(core, d->group, client, -1);
    if (!c) {
        ADD(core->failed, 1);
        close_end(&turned_away, true);
        return;
    }
    c->place = d->place;
    c->target_count = (uint8_t)d->target_count;
    memcpy(c->targets, d->targets, d->target_count * sizeof *d->targets);
    dial(core, c);
}

/* Doors are level-triggered: one accept for a lone client without the EAGAIN after it, and in a
 * burst twice as many each time. Commands go first: whoever connects after retarget_door has
 * returned is led to the new targets. */
static void on_door_event(Core *core, struct door *d)
{
    for (unsigned i = 0; i < d->burst; i++) {
        if (READ(core->posted))
            return;
        struct sockaddr_storage peer;
        socklen_t size = sizeof peer;
        int fd = accept4(d->fd, (struct sockaddr *)&peer, &size, SOCK_NONBLOCK | SOCK_CLOEXEC);
        if (fd >= 0) {
            d->complained = false;
            welcome(core, d, fd, &peer);
            continue;
        }
        if (again(errno)) {
            d->burst = i ? i : 1;
            return;
        }
        if (errno != ECONNABORTED && errno != EINTR) { /* EMFILE, ENFILE, ENOBUFS, ENOMEM … */
            pause_door(core, d, errno);
            return;
        }
    }
    d->burst = d->burst * 2 > BURST ? BURST : d->burst * 2;
}

/* ---- groups, doors and commands -------------------------------------------------------------- */

static unsigned bucket(int number)
{
    return (unsigned)number % BUCKETS;
}

static struct group *find_group(Core *core, int number, bool make)
{
    struct group *g = core->groups[bucket(number)];
    while (g && g->number != number)
        g = g->next;
    if (g || !make)
        return g;
    g = calloc(1, sizeof *g);
    if (!g)
        return NULL;
    g->number = number;
    pthread_mutex_lock(&core->lock);
    g->next = core->groups[bucket(number)];
    core->groups[bucket(number)] = g;
    pthread_mutex_unlock(&core->lock);
    return g;
}

/* Takes the descriptor: keeps it, or closes it when the group already has this namespace. */
static struct place *find_place(struct group *g, int fd)
{
    struct stat seen;
    if (fstat(fd, &seen) < 0) {
        close(fd);
        return NULL;
    }
    for (struct place *p = g->places; p; p = p->next)
        if (p->inode == seen.st_ino) {
            close(fd);
            return p;
        }
    struct place *p = calloc(1, sizeof *p);
    if (!p) {
        close(fd);
        return NULL;
    }
    *p = (struct place){g->places, seen.st_ino, fd};
    g->places = p;
    return p;
}

static void free_command(struct command *m)
{
    int fds[] = {m->fd, m->fd2, m->netns_fd};
    for (int i = 0; i < 3; i++)
        if (fds[i] >= 0)
            close(fds[i]);
    free(m->first);
    free(m->second);
    free(m);
}

static struct door **find_door(Core *core, int number)
{
    struct door **at = &core->doors[bucket(number)];
    while (*at && (*at)->number != number)
        at = &(*at)->next;
    return at;
}

static void remove_door(Core *core, struct door **at)
{
    struct door *d = *at;
    if (!d)
        return;
    *at = d->next;
    for (struct door **p = &core->paused; *p; p = &(*p)->next_paused)
        if (*p == d) {
            *p = d->next_paused;
            break;
        }
    epoll_ctl(core->epoll_fd, EPOLL_CTL_DEL, d->fd, NULL);
    close(d->fd);
    free(d);
}

static bool is_wildcard(const struct sockaddr_storage *a)
{
    if (a->ss_family == AF_INET)
        return !((const struct sockaddr_in *)a)->sin_addr.s_addr;
    return IN6_IS_ADDR_UNSPECIFIED(&((const struct sockaddr_in6 *)a)->sin6_addr);
}

static void add_door(Core *core, struct command *m)
{
    remove_door(core, find_door(core, m->door));
    struct group *g = find_group(core, m->group, true);
    int netns_fd = m->netns_fd;
    m->netns_fd = -1;
    struct place *place = g ? find_place(g, netns_fd) : NULL;
    struct door *d = place ? calloc(1, sizeof *d) : NULL;
    if (!d) {
        complain(core, "cannot open a door", m->door, ENOMEM);
        return;
    }
    d->group = g;
    d->place = place;
    d->number = m->door;
    d->fd = m->fd;
    d->owner = m->owner;
    d->burst = 1;
    d->target_count = m->target_count;
    memcpy(d->targets, m->targets, sizeof d->targets);
    tune(d->fd); /* accepted sockets inherit it */
    socklen_t size = sizeof d->here;
    getsockname(d->fd, (struct sockaddr *)&d->here, &size);
    d->here_known = !is_wildcard(&d->here);
    fcntl(d->fd, F_SETFL, fcntl(d->fd, F_GETFL) | O_NONBLOCK);
    struct epoll_event event = {.events = EPOLLIN, .data.u64 = door_token(d)};
    if (epoll_ctl(core->epoll_fd, EPOLL_CTL_ADD, d->fd, &event) < 0) {
        complain(core, "cannot watch a door", m->door, errno);
        free(d);
        return;
    }
    m->fd = -1;
    d->next = core->doors[bucket(d->number)];
    core->doors[bucket(d->number)] = d;
}

static void prepare(int fd)
{
    int on = 1;
    setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &on, sizeof on);
    fcntl(fd, F_SETFL, fcntl(fd, F_GETFL) | O_NONBLOCK);
}

static void load_pending(struct flow *f, uint8_t **bytes, uint32_t size)
{
    if (!size)
        return;
    f->pending = *bytes;
    f->end = size;
    *bytes = NULL;
}

static void adopt(Core *core, struct command *m)
{
    struct group *g = find_group(core, m->group, true);
    struct place *place = NULL;
    if (g && m->netns_fd >= 0) {
        place = find_place(g, m->netns_fd);
        m->netns_fd = -1;
    }
    struct conn *c = g && (place || m->verb == JOIN) ? new_conn(core, g, m->fd, m->fd2) : NULL;
    if (!c) {
        complain(core, "cannot adopt a connection", m->fd, ENOMEM);
        return;
    }
    m->fd = m->fd2 = -1;
    prepare(c->end[LEFT].fd);
    if (m->verb == DIAL)
        tune(c->end[LEFT].fd); /* a client on loopback; ends to join may lead anywhere */
    load_pending(&c->flow[LEFT], &m->first, m->first_size);
    if (m->verb == JOIN) {
        prepare(c->end[RIGHT].fd);
        load_pending(&c->flow[RIGHT], &m->second, m->second_size);
        c->id = m->id;
        c->reported = true;
        start_carrying(core, c, true);
        return;
    }
    c->refusal = m->second;
    c->refusal_size = m->second_size;
    m->second = NULL;
    c->place = place;
    c->target_count = (uint8_t)m->target_count;
    memcpy(c->targets, m->targets, sizeof c->targets);
    dial(core, c);
}

static void reset_conns(Core *core, struct group *only)
{
    for (uint32_t i = 0; i < core->slab_count * SLAB; i++) {
        struct conn *c = conn_at(core, i);
        if (c->state != FREE && (!only || c->group == only))
            close_conn(core, c, true);
    }
}

static void remove_doors(Core *core, struct group *only)
{
    for (int i = 0; i < BUCKETS; i++)
        for (struct door **at = &core->doors[i]; *at;)
            if (!only || (*at)->group == only)
                remove_door(core, at);
            else
                at = &(*at)->next;
}

static void go_home(Core *core)
{
    if (!stand_in(core, core->home_fd, core->home))
        complain(core, "cannot leave a network namespace", core->home_fd, errno);
}

static void forget_group(Core *core, struct group *g)
{
    pthread_mutex_lock(&core->lock);
    struct group **at = &core->groups[bucket(g->number)];
    while (*at != g)
        at = &(*at)->next;
    *at = g->next;
    pthread_mutex_unlock(&core->lock);
    while (g->places) {
        struct place *p = g->places;
        g->places = p->next;
        if (core->standing == p->inode)
            go_home(core);
        close(p->fd);
        free(p);
    }
    free(g);
}

static void drop_group(Core *core, struct command *m)
{
    struct group *g = find_group(core, m->group, false);
    if (g) {
        reset_conns(core, g);
        remove_doors(core, g);
        forget_group(core, g);
    }
    if (m->inode && core->standing == m->inode)
        go_home(core);
}

static void retarget_door(Core *core, struct command *m)
{
    struct door *d = *find_door(core, m->door);
    if (!d)
        return;
    d->target_count = m->target_count;
    memcpy(d->targets, m->targets, sizeof d->targets);
}

static void obey(Core *core, struct command *m)
{
    switch (m->verb) {
    case ADD_DOOR: add_door(core, m); break;
    case RETARGET_DOOR: retarget_door(core, m); break;
    case REMOVE_DOOR: remove_door(core, find_door(core, m->door)); break;
    case DIAL: case JOIN: adopt(core, m); break;
    case DROP_GROUP: drop_group(core, m); break;
    }
    free_command(m);
}

static void obey_all(Core *core)
{
    uint64_t ignored;
    (void)!read(core->wake_fd, &ignored, sizeof ignored);
    pthread_mutex_lock(&core->lock);
    struct command *m = core->queue;
    core->queue = NULL;
    core->queue_tail = &core->queue;
    atomic_store(&core->posted, false);
    pthread_mutex_unlock(&core->lock);
    while (m) {
        struct command *next = m->next;
        obey(core, m);
        m = next;
    }
}

/* ---- the loop ------------------------------------------------------------------------------ */

static void keep_urgent_byte(struct end *e)
{
    int on = 1; /* the urgency is lost, the byte is not */
    setsockopt(e->fd, SOL_SOCKET, SO_OOBINLINE, &on, sizeof on);
    e->urgent = true;
}

static void on_conn_event(Core *core, struct conn *c, int side, uint32_t events)
{
    struct end *e = &c->end[side];
    e->readable |= (events & ~(uint32_t)EPOLLOUT) != 0;
    e->hangup |= (events & (EPOLLRDHUP | EPOLLHUP | EPOLLERR)) != 0;
    e->failed |= (events & EPOLLERR) != 0;
    if ((events & EPOLLPRI) && !e->urgent)
        keep_urgent_byte(e);
    if (c->state == CARRYING) {
        struct flow *from_here = &c->flow[side], *to_here = &c->flow[!side];
        if (e->failed && (from_here->eof || from_here->blocked)) {
            close_conn(core, c, true); /* no read will tell: it is over, or must wait */
            return;
        }
        if (e->readable && !pump(core, c, side))
            return;
        if (events & EPOLLOUT) {
            to_here->blocked = false;
            pump(core, c, !side);
        }
    } else if (c->state == DIALLING) {
        if (side == RIGHT)
            on_dial_event(core, c);
        else if (e->failed)
            close_conn(core, c, true);
    } else if (c->state == LINGERING) {
        linger(core, c);
    }
}

static void on_event(Core *core, const struct epoll_event *event)
{
    uint64_t token = event->data.u64;
    unsigned tag = token & 3;
    if (tag == TAG_WAKE) {
        core->woken = true; /* after this batch: commands free doors, events point to them */
        return;
    }
    if (tag == TAG_DOOR) {
        struct door *d = (struct door *)(uintptr_t)(token & ~(uint64_t)3);
        if (!d->paused)
            on_door_event(core, d);
        return;
    }
    struct conn *c = conn_at(core, (uint32_t)token >> 2);
    if (c->generation == (uint32_t)(token >> 32) && c->state != FREE)
        on_conn_event(core, c, tag == TAG_LEFT ? LEFT : RIGHT, event->events);
}

static void run_ready(Core *core)
{
    struct conn *c = core->ready.first;
    core->ready.first = NULL;
    while (c) { /* may come back to the list; may close itself, never another */
        struct conn *next = c->after;
        c->before = c->after = NULL;
        c->listed = 0;
        if (pump(core, c, LEFT))
            pump(core, c, RIGHT);
        c = next;
    }
}

static void run_timers(Core *core)
{
    if (!core->timed.first && !core->paused)
        return;
    int64_t now = now_ms();
    if (core->paused && core->retry_at <= now)
        resume_doors(core);
    struct conn *next;
    for (struct conn *c = core->timed.first; c; c = next) {
        next = c->after;
        if (c->deadline > now)
            continue;
        if (c->state == LINGERING)
            close_conn(core, c, true);
        else if (c->give_up <= now)
            refuse(core, c);
        else
            dial(core, c);
    }
}

static int patience(Core *core)
{
    if (core->ready.first)
        return 0;
    return core->timed.first || core->paused ? RETRY_MS : -1;
}

static void *run(void *argument)
{
    Core *core = argument;
    struct epoll_event events[EVENTS];
    while (!core->leaving) {
        int n = epoll_wait(core->epoll_fd, events, EVENTS, patience(core));
        for (int i = 0; i < n; i++)
            on_event(core, &events[i]);
        if (core->ready.first)
            run_ready(core);
        if (core->woken) {
            core->woken = false;
            obey_all(core);
        }
        run_timers(core);
    }
    reset_conns(core, NULL);
    remove_doors(core, NULL);
    return NULL;
}

/* ---- the Python face ------------------------------------------------------------------------- */

static void post(Core *core, struct command *m)
{
    pthread_mutex_lock(&core->lock);
    bool closed = core->stopped;
    if (!closed) {
        *core->queue_tail = m;
        core->queue_tail = &m->next;
        atomic_store(&core->posted, true);
    }
    uint64_t one = 1;
    if (!closed)
        (void)!write(core->wake_fd, &one, sizeof one);
    pthread_mutex_unlock(&core->lock);
    if (closed)
        free_command(m);
}

static struct command *new_command(enum verb verb)
{
    struct command *m = calloc(1, sizeof *m);
    if (!m) {
        PyErr_NoMemory();
        return NULL;
    }
    m->verb = verb;
    m->fd = m->fd2 = m->netns_fd = -1;
    return m;
}

static bool load_targets(struct command *m, const Py_buffer *packed)
{
    size_t size = sizeof(struct target);
    if (packed->len == 0 || packed->len % size || packed->len / size > TARGETS) {
        PyErr_Format(PyExc_ValueError, "a door leads to 1 to %d targets", TARGETS);
        return false;
    }
    m->target_count = (unsigned)(packed->len / size);
    memcpy(m->targets, packed->buf, packed->len);
    return true;
}

static bool load_bytes(uint8_t **out, uint32_t *size, const Py_buffer *given)
{
    if (given->len > 1 << 30) {
        PyErr_SetString(PyExc_ValueError, "more than 1 GiB of first bytes");
        return false;
    }
    if (!given->len)
        return true;
    *out = malloc(given->len);
    if (!*out) {
        PyErr_NoMemory();
        return false;
    }
    memcpy(*out, given->buf, given->len);
    *size = (uint32_t)given->len;
    return true;
}

/* The copy is made in the caller's thread, so that it may close its own at once. */
static bool load_netns(struct command *m, int fd)
{
    m->netns_fd = fcntl(fd, F_DUPFD_CLOEXEC, 3);
    if (m->netns_fd < 0) {
        PyErr_SetFromErrno(PyExc_OSError);
        return false;
    }
    return true;
}

static PyObject *discard(struct command *m)
{
    m->fd = m->fd2 = -1; /* a call that raises has taken nothing over */
    free_command(m);
    return NULL;
}

static PyObject *Core_add_door(Core *core, PyObject *args)
{
    int door, listener_fd, group, netns_fd;
    long long owner;
    Py_buffer targets;
    if (!PyArg_ParseTuple(args, "ii(ii)y*L", &door, &listener_fd, &group, &netns_fd, &targets,
                          &owner))
        return NULL;
    struct command *m = new_command(ADD_DOOR);
    bool fine = m && load_targets(m, &targets) && load_netns(m, netns_fd);
    PyBuffer_Release(&targets);
    if (!fine)
        return m ? discard(m) : NULL;
    m->door = door;
    m->fd = listener_fd;
    m->group = group;
    m->owner = owner;
    post(core, m);
    Py_RETURN_NONE;
}

static PyObject *Core_retarget_door(Core *core, PyObject *args)
{
    int door;
    Py_buffer targets;
    if (!PyArg_ParseTuple(args, "iy*", &door, &targets))
        return NULL;
    struct command *m = new_command(RETARGET_DOOR);
    bool fine = m && load_targets(m, &targets);
    PyBuffer_Release(&targets);
    if (!fine)
        return m ? discard(m) : NULL;
    m->door = door;
    post(core, m);
    Py_RETURN_NONE;
}

static PyObject *Core_remove_door(Core *core, PyObject *args)
{
    int door;
    if (!PyArg_ParseTuple(args, "i", &door))
        return NULL;
    struct command *m = new_command(REMOVE_DOOR);
    if (!m)
        return NULL;
    m->door = door;
    post(core, m);
    Py_RETURN_NONE;
}

static PyObject *Core_dial(Core *core, PyObject *args)
{
    int client_fd, group, netns_fd;
    Py_buffer targets, head, refusal;
    if (!PyArg_ParseTuple(args, "i(ii)y*y*y*", &client_fd, &group, &netns_fd, &targets, &head,
                          &refusal))
        return NULL;
    struct command *m = new_command(DIAL);
    bool fine = m && load_targets(m, &targets) &&
                load_bytes(&m->first, &m->first_size, &head) &&
                load_bytes(&m->second, &m->second_size, &refusal) && load_netns(m, netns_fd);
    PyBuffer_Release(&targets);
    PyBuffer_Release(&head);
    PyBuffer_Release(&refusal);
    if (!fine)
        return m ? discard(m) : NULL;
    m->fd = client_fd;
    m->group = group;
    post(core, m);
    Py_RETURN_NONE;
}

static PyObject *Core_join(Core *core, PyObject *args)
{
    int left_fd, right_fd, group;
    Py_buffer to_right, to_left;
    if (!PyArg_ParseTuple(args, "iiiy*y*", &left_fd, &right_fd, &group, &to_right, &to_left))
        return NULL;
    struct command *m = new_command(JOIN);
    bool fine = m && load_bytes(&m->first, &m->first_size, &to_right) &&
                load_bytes(&m->second, &m->second_size, &to_left);
    PyBuffer_Release(&to_right);
    PyBuffer_Release(&to_left);
    if (!fine)
        return m ? discard(m) : NULL;
    m->fd = left_fd;
    m->fd2 = right_fd;
    m->group = group;
    uint64_t id = m->id = atomic_fetch_add(&core->next_id, 1) + 1;
    post(core, m);
    return PyLong_FromUnsignedLongLong(id);
}

static PyObject *Core_drop_group(Core *core, PyObject *args)
{
    int group, netns_fd;
    if (!PyArg_ParseTuple(args, "ii", &group, &netns_fd))
        return NULL;
    struct stat seen = {0};
    if (netns_fd >= 0 && fstat(netns_fd, &seen) < 0)
        return PyErr_SetFromErrno(PyExc_OSError);
    struct command *m = new_command(DROP_GROUP);
    if (!m)
        return NULL;
    m->group = group;
    m->inode = seen.st_ino;
    post(core, m);
    Py_RETURN_NONE;
}

static PyObject *Core_counters(Core *core, PyObject *Py_UNUSED(none))
{
    PyObject *groups = PyList_New(0);
    if (!groups)
        return NULL;
    bool fine = true;
    pthread_mutex_lock(&core->lock);
    for (int i = 0; i < BUCKETS && fine; i++)
        for (struct group *g = core->groups[i]; g && fine; g = g->next) {
            PyObject *one = Py_BuildValue("iKK", g->number, (unsigned long long)READ(g->open),
                                          (unsigned long long)READ(g->bytes));
            fine = one && PyList_Append(groups, one) == 0;
            Py_XDECREF(one);
        }
    pthread_mutex_unlock(&core->lock);
    if (!fine) {
        Py_DECREF(groups);
        return NULL;
    }
    return Py_BuildValue(
        "KKKKKKN", (unsigned long long)READ(core->open), (unsigned long long)READ(core->accepted),
        (unsigned long long)READ(core->refused), (unsigned long long)READ(core->failed),
        (unsigned long long)READ(core->bytes[LEFT]), (unsigned long long)READ(core->bytes[RIGHT]),
        groups);
}

static PyObject *Core_ended(Core *core, PyObject *Py_UNUSED(none))
{
    uint64_t ignored;
    if (core->ended_fd >= 0)
        (void)!read(core->ended_fd, &ignored, sizeof ignored);
    pthread_mutex_lock(&core->lock);
    uint32_t size = core->ended_count;
    struct ended *taken = size ? malloc(size * sizeof *taken) : NULL;
    for (uint32_t i = 0; taken && i < size; i++)
        taken[i] = core->ended[(core->ended_start + i) % ENDED];
    core->ended_start = core->ended_count = 0;
    pthread_mutex_unlock(&core->lock);
    PyObject *list = PyList_New(0);
    for (uint32_t i = 0; list && taken && i < size; i++) {
        PyObject *one = Py_BuildValue(
            "KKKO", (unsigned long long)taken[i].id, (unsigned long long)taken[i].bytes_in,
            (unsigned long long)taken[i].bytes_out, taken[i].reset ? Py_True : Py_False);
        if (!one || PyList_Append(list, one) < 0)
            Py_CLEAR(list);
        Py_XDECREF(one);
    }
    free(taken);
    return list;
}

static PyObject *Core_complaints(Core *core, PyObject *Py_UNUSED(none))
{
    struct complaint taken[COMPLAINTS];
    pthread_mutex_lock(&core->lock);
    uint32_t size = core->complaint_count;
    memcpy(taken, core->complaints, size * sizeof *taken);
    core->complaint_count = 0;
    pthread_mutex_unlock(&core->lock);
    PyObject *list = PyList_New(0);
    for (uint32_t i = 0; list && i < size; i++) {
        PyObject *one = Py_BuildValue("sii", taken[i].what, taken[i].number, taken[i].error);
        if (!one || PyList_Append(list, one) < 0)
            Py_CLEAR(list);
        Py_XDECREF(one);
    }
    return list;
}

static PyObject *Core_ended_fd(Core *core, PyObject *Py_UNUSED(none))
{
    return PyLong_FromLong(core->ended_fd);
}

static PyObject *Core_start(Core *core, PyObject *Py_UNUSED(none))
{
    if (core->started || core->stopped) {
        PyErr_SetString(PyExc_RuntimeError, "a relay starts once");
        return NULL;
    }
    sigset_t all, before;
    sigfillset(&all);
    pthread_sigmask(SIG_BLOCK, &all, &before); /* signals are the interpreter's main thread's */
    int error = pthread_create(&core->thread, NULL, run, core);
    pthread_sigmask(SIG_SETMASK, &before, NULL);
    if (error) {
        errno = error;
        return PyErr_SetFromErrno(PyExc_OSError);
    }
    core->started = true;
    core->pid = getpid();
    Py_RETURN_NONE;
}

static void close_all(Core *core)
{
    while (core->queue) {
        struct command *m = core->queue;
        core->queue = m->next;
        free_command(m);
    }
    for (int i = 0; i < BUCKETS; i++)
        while (core->groups[i]) {
            core->standing = 0; /* the thread is gone, so it stands nowhere */
            forget_group(core, core->groups[i]);
        }
    close_idle_pipes(core);
    int *fds[] = {&core->wake_fd, &core->ended_fd, &core->epoll_fd, &core->home_fd,
                  &core->diag_fd};
    for (int i = 0; i < 5; i++) {
        if (*fds[i] >= 0)
            close(*fds[i]);
        *fds[i] = -1;
    }
}

static void halt(Core *core)
{
    pthread_mutex_lock(&core->lock);
    bool first = !core->stopped, ours = core->started && core->pid == getpid();
    core->stopped = true;
    if (first && ours) {
        uint64_t one = 1;
        atomic_store(&core->leaving, true);
        (void)!write(core->wake_fd, &one, sizeof one);
    }
    pthread_mutex_unlock(&core->lock);
    if (!first)
        return;
    if (ours) {
        Py_BEGIN_ALLOW_THREADS
        pthread_join(core->thread, NULL);
        Py_END_ALLOW_THREADS
    }
    close_all(core);
}

static PyObject *Core_stop(Core *core, PyObject *Py_UNUSED(none))
{
    halt(core);
    Py_RETURN_NONE;
}

static int Core_open(Core *core, int home_netns_fd, int diag_fd)
{
    struct stat home;
    core->home_fd = fcntl(home_netns_fd, F_DUPFD_CLOEXEC, 3);
    core->diag_fd = fcntl(diag_fd, F_DUPFD_CLOEXEC, 3);
    core->epoll_fd = epoll_create1(EPOLL_CLOEXEC);
    core->wake_fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
    core->ended_fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
    if (core->home_fd < 0 || core->diag_fd < 0 || core->epoll_fd < 0 || core->wake_fd < 0 ||
        core->ended_fd < 0 || fstat(core->home_fd, &home) < 0)
        return -1;
    core->home = home.st_ino;
    struct epoll_event event = {.events = EPOLLIN | EPOLLET, .data.u64 = TAG_WAKE};
    return epoll_ctl(core->epoll_fd, EPOLL_CTL_ADD, core->wake_fd, &event);
}

static PyObject *Core_new(PyTypeObject *type, PyObject *args, PyObject *Py_UNUSED(keywords))
{
    int home_netns_fd, diag_fd;
    if (!PyArg_ParseTuple(args, "ii", &home_netns_fd, &diag_fd))
        return NULL;
    Core *core = (Core *)type->tp_alloc(type, 0); /* zeroed */
    if (!core)
        return NULL;
    pthread_mutex_init(&core->lock, NULL);
    core->queue_tail = &core->queue;
    core->wake_fd = core->ended_fd = core->epoll_fd = core->home_fd = core->diag_fd = -1;
    memset(core->pipes, -1, sizeof core->pipes);
    core->scratch = malloc(COPY_BYTES);
    if (!core->scratch || Core_open(core, home_netns_fd, diag_fd) < 0) {
        if (core->scratch)
            PyErr_SetFromErrno(PyExc_OSError);
        else
            PyErr_NoMemory();
        Py_DECREF(core);
        return NULL;
    }
    return (PyObject *)core;
}

static void Core_dealloc(Core *core)
{
    PyTypeObject *type = Py_TYPE(core);
    halt(core);
    for (uint32_t i = 0; i < core->slab_count; i++)
        free(core->slabs[i]);
    free(core->free_slots);
    free(core->scratch);
    free(core->ended);
    pthread_mutex_destroy(&core->lock);
    type->tp_free(core);
    Py_DECREF(type);
}

static PyMethodDef Core_methods[] = {
    {"start", (PyCFunction)Core_start, METH_NOARGS, "start() starts the relay's thread, once."},
    {"stop", (PyCFunction)Core_stop, METH_NOARGS, "stop() resets and closes all it owns."},
    {"add_door", (PyCFunction)Core_add_door, METH_VARARGS,
     "add_door(door, listener_fd, (group, netns_fd), targets, owner) with owner -1 for anyone."},
    {"retarget_door", (PyCFunction)Core_retarget_door, METH_VARARGS,
     "retarget_door(door, targets) for connections accepted from now on."},
    {"remove_door", (PyCFunction)Core_remove_door, METH_VARARGS, "remove_door(door)"},
    {"dial", (PyCFunction)Core_dial, METH_VARARGS,
     "dial(client_fd, (group, netns_fd), targets, head, refusal)"},
    {"join", (PyCFunction)Core_join, METH_VARARGS,
     "join(left_fd, right_fd, group, to_right, to_left) -> connection id"},
    {"drop_group", (PyCFunction)Core_drop_group, METH_VARARGS,
     "drop_group(group, netns_fd) with netns_fd -1 for none."},
    {"counters", (PyCFunction)Core_counters, METH_NOARGS,
     "counters() -> (open, accepted, refused, failed, in, out, [(group, open, bytes)])"},
    {"ended", (PyCFunction)Core_ended, METH_NOARGS,
     "ended() -> [(id, bytes_in, bytes_out, reset)] of joined connections since the last call"},
    {"ended_fd", (PyCFunction)Core_ended_fd, METH_NOARGS,
     "ended_fd() -> eventfd, readable when ended() has something"},
    {"complaints", (PyCFunction)Core_complaints, METH_NOARGS,
     "complaints() -> [(what, number, errno)] since the last call"},
    {NULL, NULL, 0, NULL},
};

static PyType_Slot Core_slots[] = {
    {Py_tp_doc, "Core(home_netns_fd, diag_fd): the compiled relay behind relay.NativeRelay."},
    {Py_tp_new, Core_new},
    {Py_tp_dealloc, Core_dealloc},
    {Py_tp_methods, Core_methods},
    {0, NULL},
};

static PyType_Spec Core_spec = {
    .name = "loopbox.keeper._relay.Core",
    .basicsize = sizeof(Core),
    .flags = Py_TPFLAGS_DEFAULT,
    .slots = Core_slots,
};

static int module_exec(PyObject *module)
{
    PyObject *type = PyType_FromSpec(&Core_spec);
    if (!type)
        return -1;
    int result = PyModule_AddObjectRef(module, "Core", type);
    Py_DECREF(type);
    if (result == 0)
        result = PyModule_AddIntConstant(module, "TARGET_BYTES", sizeof(struct target));
    return result;
}

static PyModuleDef_Slot module_slots[] = {
    {Py_mod_exec, module_exec},
#ifdef Py_mod_multiple_interpreters
    {Py_mod_multiple_interpreters, Py_MOD_PER_INTERPRETER_GIL_SUPPORTED},
#endif
#ifdef Py_mod_gil
    {Py_mod_gil, Py_MOD_GIL_NOT_USED},
#endif
    {0, NULL},
};

static struct PyModuleDef module_definition = {
    PyModuleDef_HEAD_INIT,
    .m_name = "_relay",
    .m_doc = "The relay's loop, compiled; see loopbox.keeper.relay.",
    .m_slots = module_slots,
};

PyMODINIT_FUNC PyInit__relay(void)
{
    return PyModuleDef_Init(&module_definition);
}
