// A line that takes its time, where the kernel has no netem: ethernet frames between a device and a new tap device arrive later, either way.
//
//   delay DEVICE TAP MILLISECONDS JITTER PID
//
// Each frame waits MILLISECONDS, JITTER more or less, and never overtakes another. It prints `ready` when TAP is there, and ends, with TAP, when the
// process PID has ended, by SIGTERM, or after half an hour. Built and started by faults.sh.
//
//   hostA  cable <-- veth --> portA <-- raw socket [ delay ] tap --> lateA, on the switch in place of portA
//
// Headers of virtio_net go along with the frames: on a veth these have no checksums yet, and up to 64 KiB.

#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <linux/if_packet.h>
#include <linux/if_tun.h>
#include <linux/virtio_net.h>
#include <net/ethernet.h>
#include <net/if.h>
#include <arpa/inet.h>
#include <poll.h>
#include <sched.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

enum {
  frame_size = (64 << 10) + 256,
  // As netem has it; what comes when a way is full is lost. In bytes: twice what TCP has under way at 1 Gbit/s and 50 ms.
  frame_limit = 1024, byte_limit = 12 << 20,
  life_seconds = 1800,
};

struct frame { int64_t due; size_t size; uint8_t *bytes; };
struct way { int from, to; int64_t last; size_t bytes; unsigned first, count; struct frame frames[frame_limit]; };

static int64_t delay, jitter; // nanoseconds

static void fail(const char *what) {
  fprintf(stderr, "delay: %s: %s\n", what, strerror(errno));
  exit(1);
}

static int64_t now(void) {
  struct timespec time;
  clock_gettime(CLOCK_MONOTONIC, &time);
  return time.tv_sec * 1000000000LL + time.tv_nsec;
}

static int open_device(const char *name) {
  const int on = 1;
  int fd = socket(AF_PACKET, SOCK_RAW | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
  struct sockaddr_ll address = { .sll_family = AF_PACKET, .sll_protocol = htons(ETH_P_ALL), .sll_ifindex = (int)if_nametoindex(name) };
  if (fd < 0 || address.sll_ifindex == 0) fail(name);
  if (setsockopt(fd, SOL_PACKET, PACKET_VNET_HDR, &on, sizeof on) < 0) fail("PACKET_VNET_HDR");
  // What is sent here would be read again.
  if (setsockopt(fd, SOL_PACKET, PACKET_IGNORE_OUTGOING, &on, sizeof on) < 0) fail("PACKET_IGNORE_OUTGOING");
  if (bind(fd, (struct sockaddr *)&address, sizeof address) < 0) fail(name);
  return fd;
}

static int open_tap(const char *name) {
  struct ifreq request = { .ifr_flags = IFF_TAP | IFF_NO_PI | IFF_VNET_HDR };
  int fd = open("/dev/net/tun", O_RDWR | O_NONBLOCK | O_CLOEXEC);
  if (fd < 0) fail("/dev/net/tun");
  strncpy(request.ifr_name, name, IFNAMSIZ - 1);
  if (ioctl(fd, TUNSETIFF, &request) < 0) fail(name);
  if (ioctl(fd, TUNSETOFFLOAD, TUN_F_CSUM | TUN_F_TSO4 | TUN_F_TSO6) < 0) fail("TUNSETOFFLOAD");
  return fd;
}

static void take(struct way *way) {
  static uint8_t buffer[frame_size];
  // Not without end: frames that are due have to go meanwhile.
  for (int turn = 0; turn < 64; turn++) {
    ssize_t size = read(way->from, buffer, sizeof buffer);
    if (size <= (ssize_t)sizeof(struct virtio_net_hdr)) return;
    if (way->count == frame_limit || way->bytes + (size_t)size > byte_limit) continue;
    struct frame *frame = &way->frames[(way->first + way->count) % frame_limit];
    int64_t due = now() + delay + (jitter > 0 ? (int64_t)((drand48() * 2 - 1) * (double)jitter) : 0);
    if (due < way->last) due = way->last;
    *frame = (struct frame){ .due = due, .size = (size_t)size, .bytes = malloc((size_t)size) };
    if (frame->bytes == NULL) fail("Frame");
    memcpy(frame->bytes, buffer, (size_t)size);
    way->last = due;
    way->bytes += (size_t)size;
    way->count++;
  }
}

static void give(struct way *way) {
  for (; way->count > 0 && way->frames[way->first].due <= now(); way->count--) {
    struct frame *frame = &way->frames[way->first];
    // A device that is down or full loses it, as lines do.
    if (write(way->to, frame->bytes, frame->size) < 0 && errno == EBADF) fail("write");
    free(frame->bytes);
    way->bytes -= frame->size;
    way->first = (way->first + 1) % frame_limit;
  }
}

static struct timespec rest(const struct way *ways) { // until the next frame is due
  int64_t time = 1000000000LL, at = now();
  for (int i = 0; i < 2; i++) {
    if (ways[i].count > 0 && ways[i].frames[ways[i].first].due - at < time) time = ways[i].frames[ways[i].first].due - at;
  }
  return time < 0 ? (struct timespec){ 0 } : (struct timespec){ time / 1000000000LL, time % 1000000000LL };
}

int main(int count, char **words) {
  static struct way ways[2];
  if (count != 6) {
    fprintf(stderr, "usage: delay DEVICE TAP MILLISECONDS JITTER PID\n");
    return 64;
  }
  delay = (int64_t)(atof(words[3]) * 1e6);
  jitter = (int64_t)(atof(words[4]) * 1e6);
  int device = open_device(words[1]), tap = open_tap(words[2]), owner = (int)syscall(SYS_pidfd_open, atoi(words[5]), 0);
  if (owner < 0) fail("The process to end with");
  ways[0].from = ways[1].to = device;
  ways[1].from = ways[0].to = tap;
  // Where others want the processors it would be late by another 10 ms; without the right to that, so it is.
  sched_setscheduler(0, SCHED_RR, &(struct sched_param){ .sched_priority = 1 });
  alarm(life_seconds);
  puts("ready");
  fclose(stdout);
  for (;;) {
    struct pollfd polled[3] = { { device, POLLIN, 0 }, { tap, POLLIN, 0 }, { owner, POLLIN, 0 } };
    struct timespec time = rest(ways);
    if (ppoll(polled, 3, &time, NULL) < 0 && errno != EINTR) fail("ppoll");
    if (polled[2].revents != 0) return 0;
    for (int i = 0; i < 2; i++) {
      take(&ways[i]);
      give(&ways[i]);
    }
  }
}
