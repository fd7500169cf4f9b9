/* Floor: the kernel's send() to each socket. One process, one epoll, no broker.
 *
 * Serves just enough WebSocket for the clients of the harness: any request is answered with 101; what comes from
 * /publish (masked with 0) is sent to every socket of the channel that the text names, one send() each.
 *
 *     cc -O2 -o floor_send floor_send.c && ./floor_send PORT
 */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <netinet/tcp.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <unistd.h>

enum { MAX_FD = 65536, ROOMS = 65536, INPUT = 1 << 18 };
static const char ANSWER[] =
    "HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\r\n";

struct client { int upgraded, room, place; size_t held; unsigned char *data; };
struct room { int *sockets; int count, space; };
static struct client clients[MAX_FD];
static struct room rooms[ROOMS];

/* Four letters of four bits, as benchmarks/harness/text.py writes them. */
static int number(const unsigned char *letters) {
    int value = 0;
    for (int i = 0; i < 4; i++) value = value << 4 | (letters[i] & 15);
    return value;
}

static void join(int fd, int number_of_room) {
    struct room *room = &rooms[number_of_room];
    if (room->count == room->space)
        room->sockets = realloc(room->sockets, sizeof(int) * (room->space = room->space ? room->space * 2 : 16));
    clients[fd].room = number_of_room;
    clients[fd].place = room->count;
    room->sockets[room->count++] = fd;
}

static void leave(int fd) {
    struct client *client = &clients[fd];
    if (client->room >= 0) {
        struct room *room = &rooms[client->room];
        int last = room->sockets[--room->count];
        room->sockets[client->place] = last;
        clients[last].place = client->place;
    }
    free(client->data);
    client->data = NULL;
    close(fd);
}

static void fan_out(const unsigned char *text, size_t size) {
    static unsigned char frame[INPUT + 10];
    size_t head = 2;
    frame[0] = 0x81;
    if (size < 126) {
        frame[1] = size;
    } else if (size < 65536) {
        frame[1] = 126, frame[2] = size >> 8, frame[3] = size, head = 4;
    } else {
        frame[1] = 127, head = 10;
        for (int i = 0; i < 8; i++) frame[2 + i] = (uint64_t)size >> (56 - 8 * i);
    }
    memcpy(frame + head, text, size);
    struct room *room = &rooms[number(text + 8)];
    for (int i = 0; i < room->count; i++) {
        size_t sent = 0;
        while (sent < head + size) { /* blocking sockets: a client that stalls holds everyone, as a bare loop does */
            ssize_t now = send(room->sockets[i], frame + sent, head + size - sent, MSG_NOSIGNAL);
            if (now <= 0) break;
            sent += now;
        }
    }
}

/* Returns how many bytes of `data` were taken; a client that closes takes -1. */
static long take(int fd, unsigned char *data, size_t held) {
    if (!clients[fd].upgraded) {
        unsigned char *end = memmem(data, held, "\r\n\r\n", 4);
        if (!end) return 0;
        unsigned char *path = memchr(data, ' ', held), *stop = memchr(path + 1, ' ', end - path);
        send(fd, ANSWER, sizeof ANSWER - 1, MSG_NOSIGNAL);
        clients[fd].upgraded = 1;
        if (memcmp(path + 1, "/publish", 8)) join(fd, number(stop - 4));
        return end + 4 - data;
    }
    if (held < 6) return 0;
    size_t size = data[1] & 127, at = 2;
    if (size == 126) {
        size = (size_t)data[2] << 8 | data[3], at = 4;
    } else if (size == 127) {
        if (held < 10) return 0;
        size = 0, at = 10;
        for (int i = 0; i < 8; i++) size = size << 8 | data[2 + i];
    }
    if (held < at + 4 + size) return 0;
    if ((data[0] & 15) == 8) return -1;
    if ((data[0] & 15) == 1) fan_out(data + at + 4, size);
    return at + 4 + size;
}

static void serve(int fd) {
    struct client *client = &clients[fd];
    static unsigned char input[INPUT];
    if (client->held) memcpy(input, client->data, client->held);
    ssize_t got = recv(fd, input + client->held, INPUT - client->held, 0);
    if (got <= 0) {
        leave(fd);
        return;
    }
    size_t held = client->held + got, done = 0;
    long taken;
    while ((taken = take(fd, input + done, held - done)) > 0) done += taken;
    if (taken < 0) {
        leave(fd);
        return;
    }
    client->held = held - done;
    if (client->held) {
        client->data = realloc(client->data, client->held);
        memcpy(client->data, input + done, client->held);
    }
}

int main(int argc, char **argv) {
    struct rlimit files;
    getrlimit(RLIMIT_NOFILE, &files);
    files.rlim_cur = files.rlim_max;
    setrlimit(RLIMIT_NOFILE, &files);
    int one = 1, listening = socket(AF_INET, SOCK_STREAM, 0), poll = epoll_create1(0);
    setsockopt(listening, SOL_SOCKET, SO_REUSEADDR, &one, sizeof one);
    struct sockaddr_in address = {.sin_family = AF_INET, .sin_port = htons(atoi(argv[argc - 1]))};
    address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    if (bind(listening, (struct sockaddr *)&address, sizeof address) || listen(listening, 4096)) {
        perror("floor_send");
        return 1;
    }
    struct epoll_event event = {.events = EPOLLIN, .data.fd = listening}, events[256];
    epoll_ctl(poll, EPOLL_CTL_ADD, listening, &event);
    for (;;) {
        int count = epoll_wait(poll, events, 256, -1);
        for (int i = 0; i < count; i++) {
            int fd = events[i].data.fd;
            if (fd != listening) {
                serve(fd);
                continue;
            }
            fd = accept(listening, NULL, NULL);
            if (fd < 0) continue;
            if (fd >= MAX_FD) {
                close(fd);
                continue;
            }
            clients[fd] = (struct client){.room = -1};
            setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one);
            event.events = EPOLLIN, event.data.fd = fd;
            epoll_ctl(poll, EPOLL_CTL_ADD, fd, &event);
        }
    }
}
