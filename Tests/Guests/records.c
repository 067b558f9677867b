// What the Linux guest does. With its disk, and how that is checked: numbered records, each one told on the serial port once it is safe. With its network:
// lines with numbers, for a client that notices when one is missing.
//
//   records tick             prints `T <n>` ten times a second until the power button is pressed
//   records write FOLDER     checks what is there, then writes until it is killed; prints
//                              V <first> <last>    at its start: these are there, whole
//                              W <n>               record n has been written, and fsync has returned
//                              C <first> <last>    every 64 records: all is read from the disk again, and is as it must be
//   records check FOLDER     prints V and ends
//   records dirty MIB RATE   writes a number to each page of so much memory in turn, RATE MiB of pages a second; with DIRTY_NOISE in its
//                            environment the pages are full of noise, otherwise of zeros
//   records stream PORT      sends the lines `1`, `2`, ... to whoever connects, one every 20 ms, to each from the beginning
//
// Whatever is not as it must be is a line `CORRUPT <what>`, and exit status 2.
//
// Records 64 k to 64 k + 63 are in the file k.log (8 digits), appended one after another; the files before the last 12 are deleted. After each
// eighth record its number is in the file `last`, which is written anew and renamed. So there is a bit of all that a file system does.
//
//   record:  "R <number, 8 digits> <length of body, 4 digits> <FNV-1a of body, 8 hex digits>\n" body

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <linux/input.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <signal.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

enum { per_file = 64, files_kept = 12, header_bytes = 25, body_limit = 2000, last_every = 8 };

static char file_buffer[per_file * (header_bytes + body_limit) + 1];

// One write: lines of several processes do not mix.
static void say(const char *format, ...) {
    char line[256];
    va_list values;
    va_start(values, format);
    int length = vsnprintf(line, sizeof line - 1, format, values);
    va_end(values);
    if (length > (int)sizeof line - 2) length = sizeof line - 2;
    line[length] = '\n';
    if (write(1, line, length + 1) < 0) _exit(1);
}

__attribute__((noreturn)) static void corrupt(const char *format, ...) {
    char what[200];
    va_list values;
    va_start(values, format);
    vsnprintf(what, sizeof what, format, values);
    va_end(values);
    say("CORRUPT %s", what);
    _exit(2);
}

static void need(int succeeded, const char *what) {
    if (!succeeded) corrupt("%s: %s", what, strerror(errno));
}

// MARK: Records

static size_t make_record(long number, char *to) {
    size_t length = number * 211 % body_limit;
    uint32_t random = 2463534242u + number, hash = 2166136261u;
    char *body = to + header_bytes;
    for (size_t i = 0; i < length; i++) {
        random ^= random << 13, random ^= random >> 17, random ^= random << 5;
        body[i] = random;
        hash = (hash ^ (unsigned char)body[i]) * 16777619u;
    }
    char header[header_bytes + 1];
    snprintf(header, sizeof header, "R %08u %04u %08x\n", (unsigned)number % 100000000, (unsigned)length % 10000, hash);
    memcpy(to, header, header_bytes);
    return header_bytes + length;
}

static void file_name(char *name, long file) { snprintf(name, 32, "%08ld.log", file); }

// The numbers of the first and the last file; none is missing between them. False when there is none at all.
static int find_files(long *first, long *last) {
    long lowest = -1, highest = -1, count = 0;
    DIR *folder = opendir(".");
    need(folder != NULL, "opendir");
    for (struct dirent *entry; (entry = readdir(folder)) != NULL;) {
        char *end;
        long file = strtol(entry->d_name, &end, 10);
        if (end == entry->d_name || strcmp(end, ".log") != 0) continue;
        if (lowest < 0 || file < lowest) lowest = file;
        if (file > highest) highest = file;
        count++;
    }
    closedir(folder);
    if (count != highest - lowest + (count > 0)) corrupt("%ld files from %ld to %ld", count, lowest, highest);
    if (lowest > 0 && count < files_kept) corrupt("only %ld files up to %ld", count, highest);
    *first = lowest, *last = highest;
    return lowest >= 0;
}

// Whole records at the beginning of a file; `bytes`: as far as they reach. `discard`: they are to come from the disk, not from memory.
static int read_file(long file, int discard, off_t *bytes, off_t *size) {
    static char expected[header_bytes + body_limit];
    char name[32];
    file_name(name, file);
    int in = open(name, O_RDONLY);
    need(in >= 0, name);
    if (discard) posix_fadvise(in, 0, 0, POSIX_FADV_DONTNEED);
    ssize_t got = 0, some;
    while ((some = read(in, file_buffer + got, sizeof file_buffer - got)) > 0) got += some;
    need(some == 0, name);
    close(in);
    int count = 0;
    for (*bytes = 0, *size = got; count < per_file; count++) {
        size_t length = make_record(file * per_file + count, expected);
        if (*bytes + (off_t)length > got || memcmp(file_buffer + *bytes, expected, length) != 0) break;
        *bytes += length;
    }
    return count;
}

// Checks all that is there; `last` is -1 when there is nothing. Behind the last record may be the beginning of the next, which nobody was told of.
static void check(long *first, long *last, int discard) {
    long first_file, last_file;
    off_t bytes = 0, size = 0;
    *first = 0, *last = -1;
    if (find_files(&first_file, &last_file)) {
        *first = first_file * per_file;
        for (long file = first_file; file <= last_file; file++) {
            int count = read_file(file, discard, &bytes, &size);
            if (file < last_file && (count < per_file || size > bytes))
                corrupt("file %ld of %ld to %ld: %d records in %ld of %ld bytes", file, first_file, last_file, count, (long)bytes, (long)size);
            *last = file * per_file + count - 1;
        }
    }
    char text[32] = "";
    int in = open("last", O_RDONLY);
    if (in >= 0) {
        if (read(in, text, sizeof text - 1) < 0) corrupt("last: %s", strerror(errno));
        close(in);
    }
    long noted = in < 0 ? -1 : strtol(text, NULL, 10);
    // The record before the last one was complete, and so was what belongs to it.
    long due = *last < 1 ? -1 : (*last - 1) / last_every * last_every;
    if (noted > *last || noted < due) corrupt("`last` says %ld where the last record is %ld", noted, *last);
}

// MARK: Writing

static void sync_folder(void) {
    int folder = open(".", O_RDONLY | O_DIRECTORY);
    need(folder >= 0 && fsync(folder) == 0, "fsync of the folder");
    close(folder);
}

static void note_last(long number) {
    int out = open("last.new", O_WRONLY | O_CREAT | O_TRUNC, 0644);
    need(out >= 0 && dprintf(out, "%ld\n", number) > 0 && fsync(out) == 0, "last.new");
    close(out);
    need(rename("last.new", "last") == 0, "rename of last.new");
    sync_folder();
}

// What a crash left behind the last record goes away first.
static int reopen(long number) {
    char name[32];
    off_t bytes, size;
    file_name(name, number / per_file);
    int out = open(name, O_WRONLY);
    need(out >= 0, name);
    read_file(number / per_file, 0, &bytes, &size);
    need(ftruncate(out, bytes) == 0 && lseek(out, bytes, SEEK_SET) == bytes && fsync(out) == 0, name);
    return out;
}

static int next_file(long number, int old) {
    char name[32];
    if (old >= 0) close(old);
    file_name(name, number / per_file - files_kept);
    if (number / per_file >= files_kept) unlink(name);
    file_name(name, number / per_file);
    int out = open(name, O_WRONLY | O_CREAT | O_TRUNC, 0644);
    need(out >= 0, name);
    return out;
}

// Also what is known of folders and files is forgotten, as far as it is on the disk.
static void forget_cache(void) {
    int control = open("/proc/sys/vm/drop_caches", O_WRONLY);
    if (control < 0) return;
    if (write(control, "3", 1) < 0) perror("drop_caches");
    close(control);
}

__attribute__((noreturn)) static void write_records(void) {
    static char record[header_bytes + body_limit];
    long first, last;
    check(&first, &last, 1);
    say("V %ld %ld", first, last);
    // An empty file behind a full one: as if it were not there.
    long number = last + 1;
    int out = number % per_file != 0 ? reopen(number) : -1;
    for (;; number++) {
        int is_new = number % per_file == 0;
        if (is_new) out = next_file(number, out);
        size_t length = make_record(number, record);
        need(write(out, record, length) == (ssize_t)length && fsync(out) == 0, "A record");
        if (is_new) sync_folder();
        if (number % last_every == 0) note_last(number);
        say("W %ld", number);
        if (number % per_file == per_file - 1) {
            forget_cache();
            check(&first, &last, 1);
            if (last != number) corrupt("record %ld was written, the last one is %ld", number, last);
            say("C %ld %ld", first, last);
        }
    }
}

// MARK: Ticks

static void tick(void) {
    struct pollfd inputs[8];
    int count = 0;
    for (int i = 0; i < 8; i++) {
        char name[32];
        snprintf(name, sizeof name, "/dev/input/event%d", i);
        int fd = open(name, O_RDONLY | O_NONBLOCK);
        if (fd >= 0) inputs[count++] = (struct pollfd){.fd = fd, .events = POLLIN};
    }
    struct timespec next;
    clock_gettime(CLOCK_MONOTONIC, &next);
    for (long number = 1;; number++) {
        say("T %ld", number);
        if ((next.tv_nsec += 100000000) >= 1000000000) next.tv_sec++, next.tv_nsec -= 1000000000;
        clock_nanosleep(CLOCK_MONOTONIC, TIMER_ABSTIME, &next, NULL);
        if (poll(inputs, count, 0) <= 0) continue;
        for (int i = 0; i < count; i++) {
            struct input_event event;
            while (read(inputs[i].fd, &event, sizeof event) == sizeof event)
                if (event.type == EV_KEY && event.code == KEY_POWER && event.value == 1) return;
        }
    }
}

// A hundredth of a second's worth at a time.
__attribute__((noreturn)) static void dirty(long mebibytes, long rate) {
    enum { page = 4096, pages_a_mebibyte = 256, slices = 100 };
    long pages = mebibytes * pages_a_mebibyte, slice = rate * pages_a_mebibyte / slices;
    need(pages > 0 && slice > 0, "dirty: MIB and RATE");
    char *memory = malloc(pages * page);
    need(memory != NULL, "malloc");
    if (getenv("DIRTY_NOISE") != NULL) {
        uint64_t state = 88172645463325252;
        for (long word = 0; word < pages * page / (long)sizeof state; word++) {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            ((uint64_t *)memory)[word] = state;
        }
    }
    for (long number = 0;;) {
        for (long end = number + slice; number < end; number++) *(volatile long *)(memory + number % pages * page) = number;
        usleep(1000000 / slices);
    }
}

// MARK: Network

__attribute__((noreturn)) static void count_for(int client) {
    struct timespec next;
    clock_gettime(CLOCK_MONOTONIC, &next);
    // Ends with its connection: a write to a closed one is a signal.
    for (long number = 1; dprintf(client, "%ld\n", number) > 0; number++) {
        if ((next.tv_nsec += 20000000) >= 1000000000) next.tv_sec++, next.tv_nsec -= 1000000000;
        clock_nanosleep(CLOCK_MONOTONIC, TIMER_ABSTIME, &next, NULL);
    }
    _exit(0);
}

__attribute__((noreturn)) static void stream(int port) {
    struct sockaddr_in address = {.sin_family = AF_INET, .sin_port = htons(port)};
    int listener = socket(AF_INET, SOCK_STREAM, 0), yes = 1;
    setsockopt(listener, SOL_SOCKET, SO_REUSEADDR, &yes, sizeof yes);
    // Each line at once, not together with those after it.
    setsockopt(listener, IPPROTO_TCP, TCP_NODELAY, &yes, sizeof yes);
    need(bind(listener, (struct sockaddr *)&address, sizeof address) == 0 && listen(listener, 8) == 0, "listen");
    signal(SIGCHLD, SIG_IGN);
    for (;;) {
        int client = accept(listener, NULL, NULL);
        if (client < 0) continue;
        if (fork() == 0) count_for(client);
        close(client);
    }
}

int main(int count, char **words) {
    if (count == 2 && strcmp(words[1], "tick") == 0) {
        tick();
        return 0;
    }
    if (count == 4 && strcmp(words[1], "dirty") == 0) dirty(atol(words[2]), atol(words[3]));
    if (count != 3) {
        fprintf(stderr, "records tick | write FOLDER | check FOLDER | dirty MIB RATE | stream PORT\n");
        return 64;
    }
    if (strcmp(words[1], "stream") == 0) stream(atoi(words[2]));
    need(chdir(words[2]) == 0, words[2]);
    if (strcmp(words[1], "write") == 0) write_records();
    long first, last;
    check(&first, &last, 0);
    say("V %ld %ld", first, last);
    return 0;
}
