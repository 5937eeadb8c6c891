/*
 * The guest's own view of its disk: overwrites all of it again and again, each time other bytes, with O_DIRECT, and says how
 * long its slowest write took so far.
 *
 *   stalls DEVICE PASSES     PASSES 0: for good
 *
 * One line after each MiB, `stalls: written=MIB longest=MS` with the MiB so far and whole milliseconds by the guest's
 * clock. After each pass it reads everything back and says `stalls: pass=N verified`. Anything that fails is said as
 * `stalls: cannot …`, and ends it.
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
#define MIB (1 << 20)

static int64_t now_ms(void)
{
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return now.tv_sec * 1000 + now.tv_nsec / 1000000;
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

int main(int argc, char **argv)
{
    setvbuf(stdout, NULL, _IOLBF, 0);
    if (argc != 3)
        return 2;
    int disk = open(argv[1], O_RDWR | O_DIRECT);
    off_t size = disk < 0 ? 0 : lseek(disk, 0, SEEK_END) / MIB * MIB;
    uint64_t *block, *expected;
    if (size <= 0 || posix_memalign((void **)&block, 4096, BLOCK) || posix_memalign((void **)&expected, 4096, BLOCK))
        fail("begin", 0);
    uint64_t passes = strtoull(argv[2], NULL, 10), written = 0;
    int64_t longest = 0;
    for (uint64_t pass = 1; passes == 0 || pass <= passes; pass++) {
        for (off_t offset = 0; offset < size; offset += BLOCK) {
            fill(block, pass, offset);
            int64_t begun = now_ms();
            if (pwrite(disk, block, BLOCK, offset) != BLOCK)
                fail("write", offset);
            int64_t took = now_ms() - begun;
            longest = took > longest ? took : longest;
            written += BLOCK;
            if (written % MIB == 0)
                printf("stalls: written=%llu longest=%lld\n", (unsigned long long)written / MIB, (long long)longest);
        }
        for (off_t offset = 0; offset < size; offset += BLOCK) {
            fill(expected, pass, offset);
            if (pread(disk, block, BLOCK, offset) != BLOCK)
                fail("read", offset);
            if (memcmp(block, expected, BLOCK))
                fail("find what was written", offset);
        }
        printf("stalls: pass=%llu verified\n", (unsigned long long)pass);
    }
    return 0;
}
