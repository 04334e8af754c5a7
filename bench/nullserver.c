/* The least a server can do: for every LINES newlines it reads, it writes one reply of SIZE bytes.
 *
 * Usage: nullserver LINES SIZE, prints the port it listens on, ends when its stdin does. A load generator can't
 * get more answers out of any real server than out of this one, so this is the generator's ceiling.
 */
#include <arpa/inet.h>
#include <errno.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

enum { PEERS = 64, BUFFER = 256 * 1024 };

struct peer {
    long newlines; /* read and not paid for by a reply yet */
    long owed;     /* reply bytes not written yet */
    long phase;    /* where in a reply the next byte is */
};

static struct pollfd fds[PEERS + 2];
static struct peer peers[PEERS + 2];
static char in[BUFFER], *out;
static long lines, size, out_size;

/* Read what is there and note what is owed for it; 0 when the peer is gone. */
static int take(int i)
{
    ssize_t n = recv(fds[i].fd, in, sizeof in, MSG_DONTWAIT);
    if (n <= 0)
        return 0;
    for (char *at = in; (at = memchr(at, '\n', in + n - at)) != NULL; at++)
        peers[i].newlines++;
    peers[i].owed += peers[i].newlines / lines * size;
    peers[i].newlines %= lines;
    return 1;
}

/* Write what the socket takes of what is owed; 0 when the peer is gone. */
static int give(int i)
{
    struct peer *p = &peers[i];
    long room = out_size - p->phase;
    ssize_t n = send(fds[i].fd, out + p->phase, p->owed < room ? p->owed : room, MSG_DONTWAIT | MSG_NOSIGNAL);
    if (n < 0)
        return errno == EAGAIN;
    p->owed -= n;
    p->phase = (p->phase + n) % size;
    return 1;
}

static int listen_somewhere(void)
{
    struct sockaddr_in address = {.sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    socklen_t length = sizeof address;
    int fd = socket(AF_INET, SOCK_STREAM, 0);
    if (fd < 0 || bind(fd, (void *)&address, length) < 0 || listen(fd, PEERS) < 0 ||
        getsockname(fd, (void *)&address, &length) < 0) {
        perror("nullserver");
        exit(1);
    }
    printf("%d\n", ntohs(address.sin_port));
    fflush(stdout);
    return fd;
}

int main(int argc, char **argv)
{
    if (argc != 3 || (lines = atol(argv[1])) < 1 || (size = atol(argv[2])) < 1)
        return 2;
    out_size = (BUFFER / size + 2) * size;
    out = malloc(out_size);
    for (long i = 0; i < out_size; i++)
        out[i] = i % size == size - 1 ? '\n' : 'x';
    int count = 2;
    fds[0] = (struct pollfd){.fd = 0, .events = POLLIN};
    fds[1] = (struct pollfd){.fd = listen_somewhere(), .events = POLLIN};
    while (poll(fds, count, -1) > 0 && !fds[0].revents) {
        for (int i = count - 1; i >= 2; i--) {
            int alive = 1;
            if (fds[i].revents & (POLLIN | POLLHUP | POLLERR))
                alive = take(i);
            if (alive && peers[i].owed)
                alive = give(i);
            fds[i].events = POLLIN | (peers[i].owed ? POLLOUT : 0);
            if (!alive) {
                close(fds[i].fd);
                fds[i] = fds[--count];
                peers[i] = peers[count];
            }
        }
        if (fds[1].revents && count < PEERS + 2) {
            int one = 1, fd = accept(fds[1].fd, NULL, NULL);
            setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one);
            peers[count] = (struct peer){0};
            fds[count++] = (struct pollfd){.fd = fd, .events = POLLIN};
        }
    }
    return 0;
}
