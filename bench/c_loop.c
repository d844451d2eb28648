/*
 * c_loop: the mirror's hot loop in C, to measure what Python costs. Not a product: two processes, one TCP
 * connection, a handful of files in one directory, no recovery of any kind. Any error ends the process.
 *
 *   c_loop target --dir DIR --listen HOST:PORT
 *   c_loop source --dir DIR --mount DIR --peer HOST:PORT
 *
 * Both print `ready` on stdout. SIGTERM unmounts and exits 0.
 *
 * The source speaks the kernel's FUSE protocol (linux/fuse.h) on /dev/fuse itself. It has one thread and one
 * epoll loop: take at most BATCH requests, send them as frames with one sendmsg, apply them to the own copy,
 * then read acknowledgements and answer the kernel. The target receives into one large buffer, applies whole
 * frames and sends one cumulative acknowledgement for each batch. Both spin up to SPIN_NS before they sleep.
 */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <linux/fuse.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <signal.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/mman.h>
#include <sys/mount.h>
#include <sys/signalfd.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/statvfs.h>
#include <sys/uio.h>
#include <time.h>
#include <unistd.h>

#ifndef FOPEN_PARALLEL_DIRECT_WRITES
#define FOPEN_PARALLEL_DIRECT_WRITES (1 << 6)
#endif

enum {
    BATCH = 8,                          /* requests taken before the socket is served */
    BATCH_BYTES = 256 << 10,            /* and payload: larger writes are passed on one by one */
    MAX_PAYLOAD = 1 << 20,              /* FUSE's limit with 256 pages */
    REQUEST_BYTES = MAX_PAYLOAD + 4096, /* a payload and its FUSE headers */
    MAX_FILES = 1024,                   /* file numbers are never reused */
    MAX_PENDING = 4096,                 /* requests sent and not acknowledged; the kernel is told to send fewer */
    MAX_BACKGROUND = 256,
    MAX_NAME = 255,
    RECEIVE_BYTES = 4 << 20,
};
#define SPIN_NS 100000ull
#define TIMEOUT_S 3600

enum operation { OPEN = 1, WRITE, TRUNCATE, FSYNC, UNLINK };

/* One frame: this header (native byte order: both ends are on one machine) and `length` bytes of payload. */
struct frame {
    uint32_t length;
    uint16_t operation;
    uint16_t file;
    uint64_t sequence;
    uint64_t offset; /* WRITE: where; TRUNCATE: the new size */
};

static void fail(const char *format, ...)
{
    va_list arguments;
    int error = errno;
    va_start(arguments, format);
    fprintf(stderr, "c_loop: ");
    vfprintf(stderr, format, arguments);
    fprintf(stderr, " (errno %d: %s)\n", error, strerror(error));
    va_end(arguments);
    exit(1);
}

static uint64_t now_ns(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (uint64_t)t.tv_sec * 1000000000ull + (uint64_t)t.tv_nsec;
}

static void write_all_at(int fd, const char *data, size_t size, off_t offset)
{
    ssize_t done = pwrite(fd, data, size, offset);
    if (done != (ssize_t)size) /* a short write is an error too */
        fail("pwrite of %zu bytes at %lld gave %zd", size, (long long)offset, done);
}

static char *map_buffer(size_t size)
{
    char *buffer = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_POPULATE, -1, 0);
    if (buffer == MAP_FAILED)
        fail("no memory");
    return buffer;
}

static void watch(int epoll, int fd)
{
    struct epoll_event event = {.events = EPOLLIN, .data.fd = fd};
    if (epoll_ctl(epoll, EPOLL_CTL_ADD, fd, &event))
        fail("epoll_ctl");
}

static int terminations(void)
{
    sigset_t set;
    sigemptyset(&set);
    sigaddset(&set, SIGTERM);
    sigaddset(&set, SIGINT);
    sigprocmask(SIG_BLOCK, &set, NULL);
    int fd = signalfd(-1, &set, SFD_CLOEXEC);
    if (fd < 0)
        fail("signalfd");
    return fd;
}

/* Wait for events: without sleeping until `spin_until`, then asleep. Returns the number of events. */
static int wait_spinning(int epoll, struct epoll_event *events, int room, uint64_t spin_until)
{
    for (;;) {
        int count = epoll_wait(epoll, events, room, spin_until ? 0 : -1);
        if (count > 0)
            return count;
        if (count < 0 && errno != EINTR)
            fail("epoll_wait");
        if (spin_until && now_ns() > spin_until)
            spin_until = 0;
    }
}

static struct sockaddr_in parse_address(const char *text)
{
    struct sockaddr_in address = {.sin_family = AF_INET};
    char host[64];
    const char *colon = strrchr(text, ':');
    if (!colon || colon - text >= (long)sizeof host)
        fail("not HOST:PORT: %s", text);
    memcpy(host, text, (size_t)(colon - text));
    host[colon - text] = 0;
    address.sin_port = htons((uint16_t)atoi(colon + 1));
    if (inet_pton(AF_INET, host, &address.sin_addr) != 1)
        fail("not an IPv4 address: %s", host);
    return address;
}

static void set_socket(int fd)
{
    int one = 1;
    if (setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one))
        fail("TCP_NODELAY");
    if (fcntl(fd, F_SETFL, O_NONBLOCK))
        fail("O_NONBLOCK");
}

static void say_ready(void)
{
    puts("ready");
    fflush(stdout);
}

/* ------------------------------------------------------------------------------------------- target */

static void apply(int directory, int *files, const struct frame *frame, char *payload)
{
    char name[MAX_NAME + 1];
    if (frame->file >= MAX_FILES)
        fail("file number %u", frame->file);
    switch (frame->operation) {
    case WRITE:
        write_all_at(files[frame->file], payload, frame->length, (off_t)frame->offset);
        return;
    case TRUNCATE:
        if (ftruncate(files[frame->file], (off_t)frame->offset))
            fail("ftruncate");
        return;
    case FSYNC:
        if (fdatasync(files[frame->file]))
            fail("fdatasync");
        return;
    case OPEN:
    case UNLINK:
        if (frame->length > MAX_NAME)
            fail("name too long");
        memcpy(name, payload, frame->length);
        name[frame->length] = 0;
        if (frame->operation == UNLINK) {
            if (unlinkat(directory, name, 0))
                fail("unlink %s", name);
            return;
        }
        files[frame->file] = openat(directory, name, O_RDWR | O_CREAT | O_CLOEXEC | O_NOFOLLOW, 0644);
        if (files[frame->file] < 0)
            fail("open %s", name);
        return;
    default:
        fail("operation %u", frame->operation);
    }
}

/* Apply the whole frames at the beginning of the buffer; return the bytes used and the last sequence number. */
static size_t apply_frames(int directory, int *files, char *buffer, size_t filled, uint64_t *applied)
{
    size_t used = 0;
    while (filled - used >= sizeof(struct frame)) {
        struct frame frame;
        memcpy(&frame, buffer + used, sizeof frame);
        if (frame.length > MAX_PAYLOAD)
            fail("frame of %u bytes", frame.length);
        if (filled - used < sizeof frame + frame.length)
            break;
        apply(directory, files, &frame, buffer + used + sizeof frame);
        *applied = frame.sequence;
        used += sizeof frame + frame.length;
    }
    return used;
}

static void run_target(const char *path, const char *listen_on)
{
    static int files[MAX_FILES];
    int one = 1, directory = open(path, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    int listener = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
    struct sockaddr_in address = parse_address(listen_on);
    int signals = terminations(), epoll = epoll_create1(EPOLL_CLOEXEC), connection = -1;
    char *buffer = map_buffer(RECEIVE_BYTES);
    size_t filled = 0;
    uint64_t applied = 0, acknowledged = 0, spin_until = 0;

    if (directory < 0)
        fail("%s", path);
    setsockopt(listener, SOL_SOCKET, SO_REUSEADDR, &one, sizeof one);
    if (bind(listener, (struct sockaddr *)&address, sizeof address) || listen(listener, 1))
        fail("cannot listen on %s", listen_on);
    memset(files, -1, sizeof files);
    watch(epoll, signals);
    watch(epoll, listener);
    say_ready();
    for (;;) {
        struct epoll_event events[4];
        int count = wait_spinning(epoll, events, 4, spin_until);
        for (int i = 0; i < count; i++) {
            if (events[i].data.fd == signals)
                exit(0);
            if (events[i].data.fd == listener) {
                if (connection >= 0 || (connection = accept4(listener, NULL, NULL, SOCK_CLOEXEC)) < 0)
                    fail("accept");
                set_socket(connection);
                watch(epoll, connection);
                continue;
            }
            ssize_t got = recv(connection, buffer + filled, RECEIVE_BYTES - filled, 0);
            if (got == 0) { /* the source has ended: this pair's run is over */
                epoll_ctl(epoll, EPOLL_CTL_DEL, connection, NULL);
                spin_until = 0;
                continue;
            }
            if (got < 0) {
                if (errno == EAGAIN)
                    continue;
                fail("recv");
            }
            filled += (size_t)got;
            size_t used = apply_frames(directory, files, buffer, filled, &applied);
            if (used < filled)
                memmove(buffer, buffer + used, filled - used);
            filled -= used;
            if (applied != acknowledged) {
                /* eight bytes at a time to a peer that reads them: the socket's buffer cannot fill */
                if (send(connection, &applied, sizeof applied, MSG_NOSIGNAL) != sizeof applied)
                    fail("acknowledgement not sent");
                acknowledged = applied;
            }
            spin_until = now_ns() + SPIN_NS;
        }
    }
}

/* ------------------------------------------------------------------------------------------- source */

struct file {
    char name[MAX_NAME + 1]; /* empty when unlinked */
    int fd;
};

struct pending {
    uint64_t sequence;
    uint32_t length; /* of the answer to the kernel; 0: nobody waits */
    union {
        struct fuse_out_header header;
        char bytes[sizeof(struct fuse_out_header) + sizeof(struct fuse_entry_out) + sizeof(struct fuse_open_out)];
    } answer;
};

static struct {
    int fuse, socket, directory;
    const char *mount_point;
    struct file files[MAX_FILES]; /* the node id is the index; 1 is the directory itself */
    uint32_t file_count;
    uint64_t sequence;
    struct pending pending[MAX_PENDING];
    uint64_t pending_first, pending_end;
    uint64_t ack;         /* partly received acknowledgement */
    size_t ack_filled;
    char *requests[BATCH];
    char *answer;         /* for reads and directories */
    /* the batch under way */
    struct frame frames[BATCH];
    struct iovec vector[2 * BATCH];
    int batch, vector_first, vector_end;
} s;

static void answer_kernel(uint64_t unique, int error, const void *data, size_t size)
{
    struct fuse_out_header header = {.len = (uint32_t)(sizeof header + size), .error = -error, .unique = unique};
    struct iovec vector[2] = {{&header, sizeof header}, {(void *)data, size}};
    if (writev(s.fuse, vector, size ? 2 : 1) < 0 && errno != ENOENT && errno != ENODEV) /* ENOENT: interrupted */
        fail("answer to the kernel");
}

/* Remember what to tell the kernel when `sequence` has been applied on both sides. */
static struct pending *add_pending(uint64_t unique, const void *data, size_t size)
{
    if (s.pending_end - s.pending_first == MAX_PENDING)
        fail("too many requests");
    struct pending *p = &s.pending[s.pending_end++ % MAX_PENDING];
    p->sequence = ++s.sequence;
    p->length = unique ? (uint32_t)(sizeof(struct fuse_out_header) + size) : 0;
    p->answer.header = (struct fuse_out_header){.len = p->length, .unique = unique};
    if (size)
        memcpy(p->answer.bytes + sizeof(struct fuse_out_header), data, size);
    return p;
}

static void receive_acknowledgements(void)
{
    uint64_t applied[64];
    memcpy(applied, &s.ack, s.ack_filled);
    ssize_t got = recv(s.socket, (char *)applied + s.ack_filled, sizeof applied - s.ack_filled, 0);
    if (got < 0 && errno == EAGAIN)
        return;
    if (got <= 0)
        fail("the target has gone");
    size_t filled = s.ack_filled + (size_t)got, whole = filled / sizeof applied[0];
    s.ack_filled = filled % sizeof applied[0];
    memcpy(&s.ack, applied + whole, s.ack_filled);
    if (!whole)
        return;
    while (s.pending_first < s.pending_end) {
        struct pending *p = &s.pending[s.pending_first % MAX_PENDING];
        if (p->sequence > applied[whole - 1])
            break;
        if (p->length && write(s.fuse, p->answer.bytes, p->length) < 0 && errno != ENOENT && errno != ENODEV)
            fail("answer to the kernel");
        s.pending_first++;
    }
}

/* Send what the socket takes now. Returns whether everything has been sent. */
static int send_some(void)
{
    while (s.vector_first < s.vector_end) {
        struct msghdr message = {.msg_iov = s.vector + s.vector_first,
                                 .msg_iovlen = (size_t)(s.vector_end - s.vector_first)};
        ssize_t sent = sendmsg(s.socket, &message, MSG_NOSIGNAL);
        if (sent < 0) {
            if (errno == EAGAIN)
                return 0;
            fail("sendmsg");
        }
        while (s.vector_first < s.vector_end && (size_t)sent >= s.vector[s.vector_first].iov_len)
            sent -= (ssize_t)s.vector[s.vector_first++].iov_len;
        if (sent) {
            struct iovec *v = &s.vector[s.vector_first];
            v->iov_base = (char *)v->iov_base + sent;
            v->iov_len -= (size_t)sent;
        }
    }
    return 1;
}

static void send_rest(void)
{
    while (!send_some()) {
        struct pollfd wait = {.fd = s.socket, .events = POLLIN | POLLOUT};
        if (poll(&wait, 1, -1) < 0 && errno != EINTR)
            fail("poll");
        if (wait.revents & POLLIN)
            receive_acknowledgements();
    }
    s.vector_first = s.vector_end = 0;
}

static void add_frame(struct frame frame, const void *payload)
{
    s.frames[s.batch] = frame;
    s.vector[s.vector_end++] = (struct iovec){&s.frames[s.batch], sizeof frame};
    if (frame.length)
        s.vector[s.vector_end++] = (struct iovec){(void *)payload, frame.length};
    s.batch++;
}

/* Send the batch, apply it here while the target works, then send what the socket did not take at once. */
static void finish_batch(void)
{
    struct iovec payloads[BATCH];
    if (!s.batch)
        return;
    for (int i = 0; i < s.batch; i++) /* every frame of a batch is a write: header, payload */
        payloads[i] = s.vector[2 * i + 1];
    int sent = send_some();
    for (int i = 0; i < s.batch; i++)
        write_all_at(s.files[s.frames[i].file].fd, payloads[i].iov_base, s.frames[i].length,
                     (off_t)s.frames[i].offset);
    if (!sent)
        send_rest();
    s.batch = s.vector_first = s.vector_end = 0;
}

/* Send one operation that is not a write; its answer goes to the kernel when the target has applied it. */
static void send_operation(enum operation operation, uint32_t file, uint64_t offset, const char *name,
                           uint64_t unique, const void *data, size_t size)
{
    struct pending *p = add_pending(unique, data, size);
    add_frame((struct frame){.length = name ? (uint32_t)strlen(name) : 0, .operation = (uint16_t)operation,
                             .file = (uint16_t)file, .sequence = p->sequence, .offset = offset}, name);
    send_rest();
    s.batch = 0;
}

static void fill_attributes(uint64_t node, struct fuse_attr *attributes)
{
    struct stat status;
    if (fstat(node == FUSE_ROOT_ID ? s.directory : s.files[node].fd, &status))
        fail("fstat");
    *attributes = (struct fuse_attr){
        .ino = node, .size = (uint64_t)status.st_size, .blocks = (uint64_t)status.st_blocks,
        .atime = (uint64_t)status.st_atim.tv_sec, .mtime = (uint64_t)status.st_mtim.tv_sec,
        .ctime = (uint64_t)status.st_ctim.tv_sec, .mode = status.st_mode, .nlink = (uint32_t)status.st_nlink,
        .uid = status.st_uid, .gid = status.st_gid, .blksize = 4096};
}

/* The node of a name, opened on both sides when it is new; 0 where there is none. */
static uint64_t find_file(const char *name, int flags)
{
    for (uint32_t i = 2; i < s.file_count; i++)
        if (!strcmp(s.files[i].name, name))
            return i;
    int fd = openat(s.directory, name, O_RDWR | O_CLOEXEC | O_NOFOLLOW | flags, 0644);
    if (fd < 0)
        return 0;
    if (s.file_count == MAX_FILES || strlen(name) > MAX_NAME)
        fail("too many files");
    uint32_t node = s.file_count++;
    strcpy(s.files[node].name, name);
    s.files[node].fd = fd;
    send_operation(OPEN, node, 0, name, 0, NULL, 0);
    return node;
}

static struct fuse_entry_out entry(uint64_t node)
{
    struct fuse_entry_out out = {.nodeid = node, .entry_valid = TIMEOUT_S, .attr_valid = TIMEOUT_S};
    fill_attributes(node, &out.attr);
    return out;
}

static void list_directory(const struct fuse_in_header *header, const struct fuse_read_in *in)
{
    int fd = openat(s.directory, ".", O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    DIR *listing = fdopendir(fd);
    size_t filled = 0;
    uint64_t position = 0;
    for (struct dirent *found; (found = readdir(listing));) {
        size_t length = strlen(found->d_name), size = FUSE_DIRENT_ALIGN(FUSE_NAME_OFFSET + length);
        if (++position <= in->offset)
            continue;
        if (filled + size > in->size)
            break;
        struct fuse_dirent *out = (struct fuse_dirent *)(s.answer + filled);
        memset(out, 0, size);
        out->ino = found->d_ino;
        out->off = position;
        out->namelen = (uint32_t)length;
        out->type = found->d_type;
        memcpy(out->name, found->d_name, length);
        filled += size;
    }
    closedir(listing);
    answer_kernel(header->unique, 0, s.answer, filled);
}

static void set_attributes(const struct fuse_in_header *header, const struct fuse_setattr_in *in)
{
    struct fuse_attr_out out = {.attr_valid = TIMEOUT_S};
    if (header->nodeid != FUSE_ROOT_ID && in->valid & FATTR_MODE && fchmod(s.files[header->nodeid].fd, in->mode))
        fail("fchmod");
    if (in->valid & FATTR_SIZE && ftruncate(s.files[header->nodeid].fd, (off_t)in->size)) {
        answer_kernel(header->unique, errno, NULL, 0);
        return;
    }
    fill_attributes(header->nodeid, &out.attr);
    if (in->valid & FATTR_SIZE)
        send_operation(TRUNCATE, (uint32_t)header->nodeid, in->size, NULL, header->unique, &out, sizeof out);
    else
        answer_kernel(header->unique, 0, &out, sizeof out);
}

static void initialise(const struct fuse_in_header *header, const struct fuse_init_in *in)
{
    const uint32_t wanted = FUSE_ASYNC_READ | FUSE_BIG_WRITES | FUSE_MAX_PAGES | FUSE_ASYNC_DIO | FUSE_PARALLEL_DIROPS;
    struct fuse_init_out out = {
        .major = FUSE_KERNEL_VERSION, .minor = FUSE_KERNEL_MINOR_VERSION, .max_readahead = in->max_readahead,
        .flags = in->flags & wanted, .max_background = MAX_BACKGROUND, .congestion_threshold = MAX_BACKGROUND,
        .max_write = MAX_PAYLOAD, .time_gran = 1, .max_pages = 256};
    if ((in->flags & wanted) != wanted)
        fail("the kernel does not offer what is needed: %x", in->flags);
    answer_kernel(header->unique, 0, &out, sizeof out);
    say_ready();
}

static void open_file(const struct fuse_in_header *header)
{
    struct fuse_open_out out = {.fh = header->nodeid,
                                .open_flags = FOPEN_DIRECT_IO | FOPEN_PARALLEL_DIRECT_WRITES};
    if (header->opcode == FUSE_OPENDIR)
        out.open_flags = 0;
    answer_kernel(header->unique, 0, &out, sizeof out);
}

static void create_file(const struct fuse_in_header *header, const char *name)
{
    struct { struct fuse_entry_out entry; struct fuse_open_out open; } out = {0};
    uint64_t node = find_file(name, O_CREAT);
    if (!node) {
        answer_kernel(header->unique, errno, NULL, 0);
        return;
    }
    out.entry = entry(node);
    out.open = (struct fuse_open_out){.fh = node, .open_flags = FOPEN_DIRECT_IO | FOPEN_PARALLEL_DIRECT_WRITES};
    /* an empty write at 0: the answer waits until the target has created the file */
    send_operation(WRITE, (uint32_t)node, 0, NULL, header->unique, &out, sizeof out);
}

static void remove_file(const struct fuse_in_header *header, const char *name)
{
    if (unlinkat(s.directory, name, 0)) {
        answer_kernel(header->unique, errno, NULL, 0);
        return;
    }
    for (uint32_t i = 2; i < s.file_count; i++)
        if (!strcmp(s.files[i].name, name))
            s.files[i].name[0] = 0;
    send_operation(UNLINK, 0, 0, name, header->unique, NULL, 0);
}

static void read_file(const struct fuse_in_header *header, const struct fuse_read_in *in)
{
    size_t size = in->size < MAX_PAYLOAD ? in->size : MAX_PAYLOAD;
    ssize_t got = pread(s.files[header->nodeid].fd, s.answer, size, (off_t)in->offset);
    if (got < 0)
        fail("pread");
    answer_kernel(header->unique, 0, s.answer, (size_t)got);
}

static void flush_file(const struct fuse_in_header *header)
{
    send_operation(FSYNC, (uint32_t)header->nodeid, 0, NULL, header->unique, NULL, 0);
    if (fdatasync(s.files[header->nodeid].fd))
        fail("fdatasync");
}

/* Everything but a write. */
static void handle(const struct fuse_in_header *header, const void *in)
{
    switch (header->opcode) {
    case FUSE_INIT: initialise(header, in); return;
    case FUSE_LOOKUP: {
        uint64_t node = find_file(in, 0);
        struct fuse_entry_out out;
        if (!node) {
            answer_kernel(header->unique, ENOENT, NULL, 0);
            return;
        }
        out = entry(node);
        answer_kernel(header->unique, 0, &out, sizeof out);
        return;
    }
    case FUSE_GETATTR: {
        struct fuse_attr_out out = {.attr_valid = TIMEOUT_S};
        fill_attributes(header->nodeid, &out.attr);
        answer_kernel(header->unique, 0, &out, sizeof out);
        return;
    }
    case FUSE_STATFS: {
        struct fuse_statfs_out out = {0};
        struct statvfs status;
        if (fstatvfs(s.directory, &status))
            fail("fstatvfs");
        out.st = (struct fuse_kstatfs){.blocks = status.f_blocks, .bfree = status.f_bfree,
                                       .bavail = status.f_bavail, .files = status.f_files,
                                       .ffree = status.f_ffree, .bsize = (uint32_t)status.f_bsize,
                                       .frsize = (uint32_t)status.f_frsize, .namelen = MAX_NAME};
        answer_kernel(header->unique, 0, &out, sizeof out);
        return;
    }
    case FUSE_OPEN:
    case FUSE_OPENDIR: open_file(header); return;
    case FUSE_CREATE: create_file(header, (const char *)in + sizeof(struct fuse_create_in)); return;
    case FUSE_UNLINK: remove_file(header, in); return;
    case FUSE_SETATTR: set_attributes(header, in); return;
    case FUSE_READ: read_file(header, in); return;
    case FUSE_READDIR: list_directory(header, in); return;
    case FUSE_FSYNC: flush_file(header); return;
    case FUSE_FSYNCDIR:
    case FUSE_RELEASE:
    case FUSE_RELEASEDIR: answer_kernel(header->unique, 0, NULL, 0); return;
    case FUSE_FORGET:
    case FUSE_BATCH_FORGET:
    case FUSE_INTERRUPT: return; /* no answer; files stay open until the end */
    default: answer_kernel(header->unique, ENOSYS, NULL, 0);
    }
}

/* Take at most BATCH requests. Returns 0 when the mount has gone. */
static int take_requests(void)
{
    size_t bytes = 0;
    for (int taken = 0; taken < BATCH && bytes < BATCH_BYTES; taken++) {
        char *request = s.requests[s.batch];
        ssize_t got = read(s.fuse, request, REQUEST_BYTES);
        if (got < 0) {
            if (errno == ENODEV)
                return 0;
            if (errno == EAGAIN)
                break;
            if (errno == EINTR || errno == ENOENT)
                continue;
            fail("read of /dev/fuse");
        }
        const struct fuse_in_header *header = (const void *)request;
        if (header->opcode != FUSE_WRITE) {
            finish_batch(); /* order; s.requests[0] may be `request`: a batch of none */
            handle(header, request + sizeof *header);
            continue;
        }
        const struct fuse_write_in *in = (const void *)(request + sizeof *header);
        struct fuse_write_out out = {.size = in->size};
        struct pending *p = add_pending(header->unique, &out, sizeof out);
        add_frame((struct frame){.length = in->size, .operation = WRITE, .file = (uint16_t)header->nodeid,
                                 .sequence = p->sequence, .offset = in->offset}, in + 1);
        bytes += in->size;
    }
    finish_batch();
    return 1;
}

static void mount_here(const char *mount_point)
{
    char options[128];
    s.fuse = open("/dev/fuse", O_RDWR | O_NONBLOCK | O_CLOEXEC);
    if (s.fuse < 0)
        fail("/dev/fuse");
    snprintf(options, sizeof options, "fd=%d,rootmode=40000,user_id=0,group_id=0,default_permissions,allow_other",
             s.fuse);
    if (mount("c_loop", mount_point, "fuse.c_loop", MS_NOSUID | MS_NODEV, options))
        fail("mount on %s", mount_point);
    s.mount_point = mount_point;
}

static void unmount(void)
{
    if (s.mount_point)
        umount2(s.mount_point, MNT_DETACH);
}

static void run_source(const char *path, const char *mount_point, const char *peer)
{
    struct sockaddr_in address = parse_address(peer);
    int signals = terminations(), epoll = epoll_create1(EPOLL_CLOEXEC);
    uint64_t spin_until = 0;

    s.directory = open(path, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    if (s.directory < 0)
        fail("%s", path);
    s.file_count = 2;
    for (int i = 0; i < BATCH; i++)
        s.requests[i] = map_buffer(REQUEST_BYTES);
    s.answer = map_buffer(MAX_PAYLOAD);
    s.socket = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
    if (connect(s.socket, (struct sockaddr *)&address, sizeof address))
        fail("cannot connect to %s", peer);
    set_socket(s.socket);
    atexit(unmount);
    mount_here(mount_point);
    watch(epoll, signals);
    watch(epoll, s.fuse);
    watch(epoll, s.socket);
    for (;;) {
        struct epoll_event events[4];
        int count = wait_spinning(epoll, events, 4, s.pending_first < s.pending_end ? spin_until : 0);
        for (int i = 0; i < count; i++) {
            if (events[i].data.fd == signals)
                exit(0);
            if (events[i].data.fd == s.socket)
                receive_acknowledgements();
            else if (!take_requests())
                exit(0);
        }
        spin_until = now_ns() + SPIN_NS;
    }
}

static const char *option(int count, char **arguments, const char *name)
{
    for (int i = 2; i + 1 < count; i += 2)
        if (!strcmp(arguments[i], name))
            return arguments[i + 1];
    fprintf(stderr, "c_loop: %s is missing\n", name);
    exit(2);
}

int main(int count, char **arguments)
{
    if (count > 1 && !strcmp(arguments[1], "target"))
        run_target(option(count, arguments, "--dir"), option(count, arguments, "--listen"));
    if (count > 1 && !strcmp(arguments[1], "source"))
        run_source(option(count, arguments, "--dir"), option(count, arguments, "--mount"),
                   option(count, arguments, "--peer"));
    fprintf(stderr, "usage: c_loop target|source --dir DIR ...\n");
    return 2;
}
