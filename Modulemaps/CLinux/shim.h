/* What Swift's Glibc overlay cannot express: macros (CMSG_*), variadic system calls, and calls that older C libraries do not
 * wrap. Nothing here decides anything; every function returns what the kernel returned, with errno left as it was. */
#ifndef SHADOW_VIRT_CLINUX_H
#define SHADOW_VIRT_CLINUX_H
#include <errno.h>
#include <fcntl.h>
#include <linux/userfaultfd.h>
#include <signal.h>
#include <stdint.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/inotify.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <sys/statfs.h>
#include <sys/un.h>
#include <unistd.h>

/* SCM_RIGHTS needs the CMSG macros. Sends `length` bytes and, when fd >= 0, that descriptor with them. */
static inline ssize_t clinux_send_with_fd(int socket, const void *bytes, size_t length, int fd, int flags)
{
    struct iovec iov = { .iov_base = (void *)bytes, .iov_len = length };
    union { struct cmsghdr align; char space[CMSG_SPACE(sizeof(int))]; } control;
    struct msghdr message = { .msg_iov = &iov, .msg_iovlen = 1 };
    if (fd >= 0) {
        memset(&control, 0, sizeof control);
        message.msg_control = control.space;
        message.msg_controllen = sizeof control.space;
        struct cmsghdr *header = CMSG_FIRSTHDR(&message);
        header->cmsg_level = SOL_SOCKET;
        header->cmsg_type = SCM_RIGHTS;
        header->cmsg_len = CMSG_LEN(sizeof(int));
        memcpy(CMSG_DATA(header), &fd, sizeof fd);
    }
    return sendmsg(socket, &message, flags);
}

/* Receives into `bytes`; *fd is the first descriptor that came along or -1, *truncated tells a message longer than `length`. */
static inline ssize_t clinux_receive_with_fd(int socket, void *bytes, size_t length, int *fd, int *truncated, int flags)
{
    struct iovec iov = { .iov_base = bytes, .iov_len = length };
    union { struct cmsghdr align; char space[CMSG_SPACE(4 * sizeof(int))]; } control;
    struct msghdr message = { .msg_iov = &iov, .msg_iovlen = 1, .msg_control = control.space,
                              .msg_controllen = sizeof control.space };
    *fd = -1;
    *truncated = 0;
    ssize_t received = recvmsg(socket, &message, flags | MSG_CMSG_CLOEXEC);
    if (received < 0)
        return received;
    *truncated = (message.msg_flags & (MSG_TRUNC | MSG_CTRUNC)) != 0;
    for (struct cmsghdr *header = CMSG_FIRSTHDR(&message); header; header = CMSG_NXTHDR(&message, header)) {
        if (header->cmsg_level != SOL_SOCKET || header->cmsg_type != SCM_RIGHTS)
            continue;
        size_t count = (header->cmsg_len - CMSG_LEN(0)) / sizeof(int);
        for (size_t i = 0; i < count; i++) {
            int received_fd;
            memcpy(&received_fd, CMSG_DATA(header) + i * sizeof(int), sizeof(int));
            if (*fd < 0) *fd = received_fd; else close(received_fd);
        }
    }
    return received;
}

/* glibc 2.36 wraps it, older ones do not. */
static inline int clinux_pidfd_signal(int pidfd, int signal_number)
{
    return (int)syscall(SYS_pidfd_send_signal, pidfd, signal_number, NULL, 0);
}
static inline int clinux_close_range(unsigned int first, unsigned int last)
{
    return (int)syscall(SYS_close_range, first, last, 0);
}
static inline int clinux_pidfd_open(pid_t pid) { return (int)syscall(SYS_pidfd_open, pid, 0); }
/* A copy of another process's descriptor. Since Linux 5.6; its number is the same on all architectures. */
static inline int clinux_pidfd_getfd(int pidfd, int fd) { return (int)syscall(438, pidfd, fd, 0); }

/* Takes write protection and registration off a range of the memory that a userfaultfd watches; who waits there goes on. The
 * descriptor may be a copy from another process: it keeps to the memory of the one that opened it. */
static inline int clinux_userfaultfd_release(int fd, uint64_t start, uint64_t length)
{
    struct uffdio_writeprotect protection = { .range = { .start = start, .len = length }, .mode = 0 };
    struct uffdio_range range = { .start = start, .len = length };
    int protected = ioctl(fd, UFFDIO_WRITEPROTECT, &protection);
    int unregistered = ioctl(fd, UFFDIO_UNREGISTER, &range);
    return protected < 0 && unregistered < 0 ? -1 : unregistered;
}

/* Declared only under _GNU_SOURCE, which Swift's importer does not set. */
static inline int clinux_accept(int listener)
{
    return (int)syscall(SYS_accept4, listener, NULL, NULL, SOCK_CLOEXEC);
}
static inline int clinux_memfd(const char *name) { return (int)syscall(SYS_memfd_create, name, 1U /* MFD_CLOEXEC */); }
static inline int clinux_eventfd(void) { return eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK); }

/* prctl and fcntl are variadic. */
static inline int clinux_die_with_parent(int signal_number) { return prctl(PR_SET_PDEATHSIG, signal_number); }
static inline int clinux_set_name(const char *name) { return prctl(PR_SET_NAME, name); }
static inline int clinux_set_nonblocking(int fd, int on)
{
    int flags = fcntl(fd, F_GETFL);
    if (flags < 0) return flags;
    return fcntl(fd, F_SETFL, on ? flags | O_NONBLOCK : flags & ~O_NONBLOCK);
}
static inline int clinux_set_cloexec(int fd, int on) { return fcntl(fd, F_SETFD, on ? FD_CLOEXEC : 0); }
static inline int clinux_fallocate(int fd, int mode, off_t offset, off_t length)
{
    return (int)syscall(SYS_fallocate, fd, mode, offset, length);
}
static inline int clinux_punch_hole(int fd, off_t offset, off_t length)
{
    return clinux_fallocate(fd, 0x02 | 0x01 /* PUNCH_HOLE | KEEP_SIZE */, offset, length);
}
/* Its type differs between C libraries' headers with and without _GNU_SOURCE. 0: the calling thread, whatever POSIX says. */
static inline int clinux_set_thread_niceness(int niceness) { return setpriority(PRIO_PROCESS, 0, niceness); }

/* Takes the space and makes the file longer if need be; with `keep_size` only the space. */
static inline int clinux_allocate(int fd, off_t offset, off_t length, int keep_size)
{
    return clinux_fallocate(fd, keep_size ? 0x01 /* KEEP_SIZE */ : 0, offset, length);
}
static inline int clinux_zero_range(int fd, off_t offset, off_t length)
{
    return clinux_fallocate(fd, 0x10 | 0x01 /* ZERO_RANGE | KEEP_SIZE */, offset, length);
}
/* Starts to write out what is dirty in the file and does not wait for it. */
static inline int clinux_start_writeback(int fd)
{
    return (int)syscall(SYS_sync_file_range, fd, (off_t)0, (off_t)0, 2U /* SYNC_FILE_RANGE_WRITE */);
}
/* The next data (or hole, which the end of the file is as well) at or after `offset`. */
static inline off_t clinux_seek_data(int fd, off_t offset) { return lseek(fd, offset, 3 /* SEEK_DATA */); }
static inline off_t clinux_seek_hole(int fd, off_t offset) { return lseek(fd, offset, 4 /* SEEK_HOLE */); }

/* Locks that belong to the open file, not to the process: F_OFD_SETLK and F_OFD_GETLK, by number because _GNU_SOURCE is not set. */
static inline int clinux_lock_open_file(int fd, int exclusive, off_t start, off_t length)
{
    struct flock lock = { .l_type = exclusive ? F_WRLCK : F_RDLCK, .l_whence = SEEK_SET, .l_start = start, .l_len = length };
    return fcntl(fd, 37 /* F_OFD_SETLK */, &lock);
}
static inline int clinux_unlock_open_file(int fd)
{
    struct flock lock = { .l_type = F_UNLCK, .l_whence = SEEK_SET };
    return fcntl(fd, 37 /* F_OFD_SETLK */, &lock);
}
/* 1: somebody else has a lock of any kind there, 0: nobody. */
static inline int clinux_open_file_is_locked(int fd, off_t start, off_t length)
{
    struct flock lock = { .l_type = F_WRLCK, .l_whence = SEEK_SET, .l_start = start, .l_len = length };
    if (fcntl(fd, 36 /* F_OFD_GETLK */, &lock) < 0) return -1;
    return lock.l_type != F_UNLCK;
}

/* O_TMPFILE and O_DIRECT exist under _GNU_SOURCE only; glibc's own names of them are always there. With `unnamed` the path is that of a
 * folder and the new file has no name in it; else the file must not be there yet. */
static inline int clinux_open_scratch(const char *path, int unnamed, int direct)
{
    return open(path, O_RDWR | O_CLOEXEC | (unnamed ? __O_TMPFILE : O_CREAT | O_EXCL | O_NOFOLLOW) | (direct ? __O_DIRECT : 0), 0600);
}

/* <sys/statfs.h> is not part of Swift's Glibc. The file system's magic number; -1 with errno set when it cannot be told. */
static inline int64_t clinux_file_system_type(const char *path)
{
    struct statfs info;
    return statfs(path, &info) == 0 ? (int64_t)(uint32_t)info.f_type : -1;
}
#endif
