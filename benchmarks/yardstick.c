/*
 * The yardstick: what plain C does with the same bytes on the same sockets.
 *
 * One process of a pair. A message is a 48-byte header, as RDS has it, and a payload. The sender numbers messages, gathers up to 256 of
 * them for one writev and keeps nothing: what TCP takes is sent. As "stream" it copies payloads up to 4 KiB beside their headers, which
 * is faster; as "vectors" each header and each payload is a vector of its own. The receiver reads up to 256 KiB at once, checks number, port and length of each header, and looks at no payload.
 * There is no retransmit queue, no congestion test, no memory for each message: an upper bound, not a library.
 *
 * Usage: yardstick left|right stream|vectors|single|echo SIZE CONNECTIONS IDLE PORT
 * Commands on standard input and events on standard output are those of benchmarks/worker.py.
 */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <endian.h>
#include <errno.h>
#include <fcntl.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/uio.h>
#include <time.h>
#include <unistd.h>

enum { BATCH = 256, BATCH_BYTES = 256 << 10, COPY_BYTES = 4096, READ_BYTES = 256 << 10, DPORT = 4000 };

struct header { /* big-endian, as in net/rds */
    uint64_t sequence, ack;
    uint32_t len;
    uint16_t sport, dport;
    uint8_t flags, credit, padding[4];
    uint16_t csum;
    uint8_t exthdr[16];
} __attribute__((packed));
_Static_assert(sizeof(struct header) == 48, "an RDS header has 48 bytes");

struct connection {
    int fd;
    uint64_t sent, received; /* messages, and so sequence numbers */
    uint8_t *buffer;         /* bytes read and not yet parsed: `kept` of them */
    size_t kept;
    uint32_t payload_left; /* of a payload longer than what was read */
};

static size_t size, copy_bytes = COPY_BYTES;
static int connections;
static struct connection *peers;
static uint8_t *payload, *staging;
static uint64_t received_messages, received_bytes, reads, writes;

static void fail(const char *what)
{
    fprintf(stderr, "yardstick: %s: %s\n", what, strerror(errno));
    exit(1);
}

static void fail_wire(const char *what)
{
    fprintf(stderr, "yardstick: wrong header: %s\n", what);
    exit(1);
}

static uint64_t now_ns(void)
{
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return now.tv_sec * 1000000000ull + now.tv_nsec;
}

static double cpu_s(void)
{
    struct rusage usage;
    getrusage(RUSAGE_SELF, &usage);
    return usage.ru_utime.tv_sec + usage.ru_stime.tv_sec + (usage.ru_utime.tv_usec + usage.ru_stime.tv_usec) * 1e-6;
}

static long resident_bytes(void)
{
    long total = 0, resident = 0;
    FILE *file = fopen("/proc/self/statm", "r");
    if (!file || fscanf(file, "%ld %ld", &total, &resident) != 2)
        fail("/proc/self/statm");
    fclose(file);
    return resident * sysconf(_SC_PAGESIZE);
}

static void write_header(struct header *header, struct connection *peer)
{
    memset(header, 0, sizeof *header);
    header->sequence = htobe64(++peer->sent);
    header->len = htobe32(size);
    header->sport = header->dport = htobe16(DPORT);
}

static void write_all(int fd, struct iovec *vectors, int count)
{
    while (count) {
        ssize_t done = writev(fd, vectors, count);
        if (done < 0)
            fail("writev");
        writes++;
        while (count && (size_t)done >= vectors->iov_len) {
            done -= vectors->iov_len;
            vectors++, count--;
        }
        if (count) {
            vectors->iov_base = (uint8_t *)vectors->iov_base + done;
            vectors->iov_len -= done;
        }
    }
}

static void send_batch(struct connection *peer, uint64_t count)
{
    static struct header headers[BATCH];
    struct iovec vectors[2 * BATCH];
    int used = 0;
    if (size <= copy_bytes) {
        uint8_t *end = staging;
        for (uint64_t i = 0; i < count; i++) {
            write_header((struct header *)end, peer);
            memcpy(end + sizeof(struct header), payload, size);
            end += sizeof(struct header) + size;
        }
        vectors[used++] = (struct iovec){staging, end - staging};
    } else {
        for (uint64_t i = 0; i < count; i++) {
            write_header(&headers[i], peer);
            vectors[used++] = (struct iovec){&headers[i], sizeof headers[i]};
            vectors[used++] = (struct iovec){payload, size};
        }
    }
    write_all(peer->fd, vectors, used);
}

static void send_messages(uint64_t count, uint64_t batch)
{
    for (int next = 0; count; next = (next + 1) % connections) {
        uint64_t now = count < batch ? count : batch;
        send_batch(&peers[next], now);
        count -= now;
    }
}

static void check_header(const struct header *header, struct connection *peer)
{
    if (be64toh(header->sequence) != ++peer->received)
        fail_wire("sequence");
    if (be16toh(header->dport) != DPORT)
        fail_wire("port");
    if (be32toh(header->len) != size)
        fail_wire("length");
}

static void receive_some(struct connection *peer)
{
    ssize_t got = read(peer->fd, peer->buffer + peer->kept, READ_BYTES - peer->kept);
    if (got <= 0)
        fail("read");
    reads++;
    uint8_t *at = peer->buffer, *end = at + peer->kept + got;
    while (at < end) {
        if (peer->payload_left) {
            size_t part = (size_t)(end - at) < peer->payload_left ? (size_t)(end - at) : peer->payload_left;
            at += part;
            received_bytes += part;
            peer->payload_left -= part;
            received_messages += !peer->payload_left;
        } else if ((size_t)(end - at) >= sizeof(struct header)) {
            check_header((struct header *)at, peer);
            peer->payload_left = be32toh(((struct header *)at)->len);
            at += sizeof(struct header);
        } else {
            break;
        }
    }
    peer->kept = end - at;
    memmove(peer->buffer, at, peer->kept);
}

static void receive_messages(uint64_t total)
{
    struct pollfd *polled = calloc(connections, sizeof *polled);
    for (int i = 0; i < connections; i++)
        polled[i] = (struct pollfd){peers[i].fd, POLLIN, 0};
    while (received_messages < total) {
        if (connections == 1) {
            receive_some(&peers[0]);
            continue;
        }
        if (poll(polled, connections, -1) < 0)
            fail("poll");
        for (int i = 0; i < connections; i++)
            if (polled[i].revents)
                receive_some(&peers[i]);
    }
    free(polled);
}

static int compare_times(const void *left, const void *right)
{
    uint64_t a = *(const uint64_t *)left, b = *(const uint64_t *)right;
    return a < b ? -1 : a > b;
}

static void set_up(int is_left, int idle, int port)
{
    struct sockaddr_in address = {.sin_family = AF_INET, .sin_port = htons(port), .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    int on = 1, listener = -1;
    if (!is_left) {
        listener = socket(AF_INET, SOCK_STREAM, 0);
        setsockopt(listener, SOL_SOCKET, SO_REUSEADDR, &on, sizeof on);
        if (bind(listener, (struct sockaddr *)&address, sizeof address) || listen(listener, 1024))
            fail("listen");
    }
    printf("{\"event\": \"ready\"}\n");
    fflush(stdout);
    for (int i = 0; i < connections + idle; i++) {
        int fd = is_left ? socket(AF_INET, SOCK_STREAM, 0) : accept(listener, NULL, NULL);
        if (fd < 0 || (is_left && connect(fd, (struct sockaddr *)&address, sizeof address)))
            fail("connect");
        setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &on, sizeof on);
        if (i < connections)
            peers[i] = (struct connection){.fd = fd, .buffer = malloc(READ_BYTES)};
    }
}

int main(int argc, char **argv)
{
    if (argc != 7) {
        fprintf(stderr, "usage: yardstick left|right stream|vectors|single|echo SIZE CONNECTIONS IDLE PORT\n");
        return 2;
    }
    int is_left = !strcmp(argv[1], "left"), is_echo = !strcmp(argv[2], "echo");
    size = strtoul(argv[3], NULL, 10);
    connections = atoi(argv[4]);
    if (!strcmp(argv[2], "vectors"))
        copy_bytes = 0;
    uint64_t batch = is_echo || !strcmp(argv[2], "single") ? 1 : BATCH_BYTES / size;
    batch = batch < 1 ? 1 : batch > BATCH ? BATCH : batch;
    peers = calloc(connections, sizeof *peers);
    payload = malloc(size);
    memset(payload, 'x', size);
    staging = malloc(BATCH * (sizeof(struct header) + COPY_BYTES));
    prctl(PR_SET_PDEATHSIG, SIGKILL);
    printf("{\"event\": \"booted\"}\n");
    fflush(stdout);

    char line[64];
    double cpu_before = 0;
    uint64_t reads_before = 0, writes_before = 0;
    long idle_bytes = 0;
    while (fgets(line, sizeof line, stdin)) {
        if (!strcmp(line, "open\n")) {
            set_up(is_left, atoi(argv[5]), atoi(argv[6]));
        } else if (!strcmp(line, "prepare\n")) {
            idle_bytes = idle_bytes ? idle_bytes : resident_bytes();
            printf("{\"event\": \"prepared\"}\n");
        } else if (!strncmp(line, "go ", 3)) {
            uint64_t count = strtoull(line + 3, NULL, 10), messages_before = received_messages, bytes_before = received_bytes;
            uint64_t *times = is_left && is_echo ? malloc(count * sizeof *times) : NULL;
            cpu_before = cpu_s(), reads_before = reads, writes_before = writes;
            uint64_t started = now_ns();
            for (uint64_t i = 0; is_echo && i < count; i++) {
                uint64_t asked = now_ns();
                if (is_left)
                    send_messages(1, 1);
                receive_messages(messages_before + i + 1);
                if (is_left)
                    times[i] = now_ns() - asked;
                else
                    send_messages(1, 1);
            }
            if (!is_echo && is_left)
                send_messages(count, batch);
            else if (!is_echo)
                receive_messages(messages_before + count);
            printf("{\"event\": \"done\", \"started_ns\": %lu, \"ended_ns\": %lu, \"messages\": %lu, \"bytes\": %lu", started, now_ns(),
                   received_messages - messages_before, received_bytes - bytes_before);
            if (times) {
                qsort(times, count, sizeof *times, compare_times);
                printf(", \"p50_us\": %.3f, \"p99_us\": %.3f", times[count / 2] / 1e3, times[count * 99 / 100] / 1e3);
                free(times);
            }
            printf("}\n");
        } else if (!strcmp(line, "report\n")) {
            printf("{\"event\": \"report\", \"cpu_s\": %.6f, \"resident_bytes\": %ld, \"idle_resident_bytes\": %ld, "
                   "\"counters\": {\"stream_reads\": %lu, \"stream_writes\": %lu}}\n",
                   cpu_s() - cpu_before, resident_bytes(), idle_bytes, reads - reads_before, writes - writes_before);
        } else if (!strcmp(line, "stop\n")) {
            return 0;
        }
        fflush(stdout);
    }
    return 1;
}
