/*
 * The guest's own view of its disk: overwrites it with O_DIRECT, one write after the other, and says how long they took by
 * the guest's clock. Anything that fails is said as `stalls: cannot …`, and ends it.
 *
 *   stalls DEVICE PASSES     64 KiB each, all of the disk again and again, each time other bytes; PASSES 0: for good
 *
 * One line after each MiB, `stalls: written=MIB longest=MS` with the MiB so far and the slowest write so far. After each
 * pass it reads everything back and says `stalls: pass=N verified`.
 *
 *   stalls DEVICE times      4 KiB each, at random places, for good
 *
 * One line after each second, `stalls: second=N longest=US US:COUNT …`, with the writes of that second alone: how many took
 * so many microseconds. Times are rounded down to 7 binary digits, so there are at most BUCKETS of them.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#define BLOCK 65536
#define SMALL 4096
#define MIB (1 << 20)

/* A time has LINEAR buckets below LINEAR microseconds, and half as many for each doubling from there on. */
#define LINEAR 128
#define DOUBLINGS 20
#define BUCKETS (LINEAR + DOUBLINGS * LINEAR / 2)

static int64_t now_us(void)
{
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return now.tv_sec * 1000000 + now.tv_nsec / 1000;
}

static void fill(uint64_t *block, uint64_t pass, uint64_t offset)
{
    for (uint64_t i = 0; i < BLOCK / sizeof *block; i++)
        block[i] = pass << 40 ^ (offset + i * sizeof *block);
}

static void fail(const char *what, off_t offset)
{
    printf("stalls: cannot %s at %lld: %s\n", what, (long long)offset, strerror(errno));
    exit(1);
}

static void overwrite(int disk, off_t size, uint64_t passes)
{
    uint64_t *block, *expected, written = 0;
    if (posix_memalign((void **)&block, 4096, BLOCK) || posix_memalign((void **)&expected, 4096, BLOCK))
        fail("begin", 0);
    int64_t longest = 0;
    for (uint64_t pass = 1; passes == 0 || pass <= passes; pass++) {
        for (off_t offset = 0; offset < size; offset += BLOCK) {
            fill(block, pass, offset);
            int64_t begun = now_us();
            if (pwrite(disk, block, BLOCK, offset) != BLOCK)
                fail("write", offset);
            int64_t took = (now_us() - begun) / 1000;
            longest = took > longest ? took : longest;
            written += BLOCK;
            if (written % MIB == 0) {
                printf("stalls: written=%llu longest=%lld\n", (unsigned long long)written / MIB, (long long)longest);
                fflush(stdout);
            }
        }
        for (off_t offset = 0; offset < size; offset += BLOCK) {
            fill(expected, pass, offset);
            if (pread(disk, block, BLOCK, offset) != BLOCK)
                fail("read", offset);
            if (memcmp(block, expected, BLOCK))
                fail("find what was written", offset);
        }
        printf("stalls: pass=%llu verified\n", (unsigned long long)pass);
        fflush(stdout);
    }
}

static int bucket(int64_t us)
{
    int doubling = 0;
    while (us >> doubling >= LINEAR)
        doubling++;
    int index = doubling * LINEAR / 2 + (int)(us >> doubling);
    return index < BUCKETS ? index : BUCKETS - 1;
}

/* The shortest time of a bucket. */
static long long shortest(int index)
{
    if (index < LINEAR)
        return index;
    int doubling = (index - LINEAR / 2) / (LINEAR / 2);
    return (long long)(index - doubling * LINEAR / 2) << doubling;
}

static void times(int disk, off_t size)
{
    static unsigned counts[BUCKETS];
    uint64_t *block, random = 0x9e3779b97f4a7c15;
    if (posix_memalign((void **)&block, 4096, SMALL))
        fail("begin", 0);
    int64_t longest = 0, told = now_us();
    for (unsigned second = 1;;) {
        /* xorshift64 */
        random ^= random << 13;
        random ^= random >> 7;
        random ^= random << 17;
        off_t offset = random % (size / SMALL) * SMALL;
        for (size_t i = 0; i < SMALL / sizeof *block; i++)
            block[i] = random + i;
        int64_t begun = now_us();
        if (pwrite(disk, block, SMALL, offset) != SMALL)
            fail("write", offset);
        int64_t now = now_us(), took = now - begun;
        longest = took > longest ? took : longest;
        counts[bucket(took)]++;
        if (now - told < 1000000)
            continue;
        printf("stalls: second=%u longest=%lld", second++, (long long)longest);
        for (int i = 0; i < BUCKETS; i++)
            if (counts[i])
                printf(" %lld:%u", shortest(i), counts[i]);
        printf("\n");
        fflush(stdout);
        memset(counts, 0, sizeof counts);
        longest = 0;
        told = now_us();
    }
}

int main(int argc, char **argv)
{
    /* A line at once, however long. */
    static char lines[MIB];
    setvbuf(stdout, lines, _IOFBF, sizeof lines);
    if (argc != 3)
        return 2;
    int disk = open(argv[1], O_RDWR | O_DIRECT);
    off_t size = disk < 0 ? 0 : lseek(disk, 0, SEEK_END) / MIB * MIB;
    if (size <= 0)
        fail("begin", 0);
    if (strcmp(argv[2], "times") == 0)
        times(disk, size);
    else
        overwrite(disk, size, strtoull(argv[2], NULL, 10));
    return 0;
}
