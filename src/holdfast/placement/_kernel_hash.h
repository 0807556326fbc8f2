/* XXH64 of bytes, and the decimal text of integers: from a key to its place on the circle. */

#ifndef HOLDFAST_KERNEL_HASH_H
#define HOLDFAST_KERNEL_HASH_H

#include <stddef.h>
#include <stdint.h>
#include <string.h>

#define P1 UINT64_C(0x9E3779B185EBCA87)
#define P2 UINT64_C(0xC2B2AE3D27D4EB4F)
#define P3 UINT64_C(0x165667B19E3779F9)
#define P4 UINT64_C(0x85EBCA77C2B2AE63)
#define P5 UINT64_C(0x27D4EB2F165667C5)

/* Little-endian, from any address: compilers make one load of the copy, and one swap on a big-endian machine. */
static inline uint64_t
read64(const unsigned char *at)
{
    uint64_t v;
    memcpy(&v, at, sizeof v);
#if PY_BIG_ENDIAN
    v = (v & UINT64_C(0x00FF00FF00FF00FF)) << 8 | (v >> 8 & UINT64_C(0x00FF00FF00FF00FF));
    v = (v & UINT64_C(0x0000FFFF0000FFFF)) << 16 | (v >> 16 & UINT64_C(0x0000FFFF0000FFFF));
    v = v << 32 | v >> 32;
#endif
    return v;
}

static inline uint32_t
read32(const unsigned char *at)
{
    return (uint32_t)at[0] | (uint32_t)at[1] << 8 | (uint32_t)at[2] << 16 | (uint32_t)at[3] << 24;
}

static inline uint64_t
rotated(uint64_t v, int bits)
{
    return v << bits | v >> (64 - bits);
}

static inline uint64_t
xxh_round(uint64_t acc, uint64_t lane)
{
    return rotated(acc + lane * P2, 31) * P1;
}

static inline uint64_t
xxh64(const void *data, size_t size, uint64_t seed)
{
    const unsigned char *at = data;
    size_t left = size;
    uint64_t h = seed + P5;
    if (left >= 32) {
        uint64_t acc[4] = {seed + P1 + P2, seed + P2, seed, seed - P1};
        for (; left >= 32; at += 32, left -= 32) {
            for (int lane = 0; lane < 4; lane++) {
                acc[lane] = xxh_round(acc[lane], read64(at + 8 * lane));
            }
        }
        h = rotated(acc[0], 1) + rotated(acc[1], 7) + rotated(acc[2], 12) + rotated(acc[3], 18);
        for (int lane = 0; lane < 4; lane++) {
            h = (h ^ xxh_round(0, acc[lane])) * P1 + P4;
        }
    }
    h += size;
    for (; left >= 8; at += 8, left -= 8) {
        h = rotated(h ^ xxh_round(0, read64(at)), 27) * P1 + P4;
    }
    if (left >= 4) {
        h = rotated(h ^ read32(at) * P1, 23) * P2 + P3;
        at += 4;
        left -= 4;
    }
    for (; left > 0; at++, left--) {
        h = rotated(h ^ *at * P5, 11) * P1;
    }
    h = (h ^ h >> 33) * P2;
    h = (h ^ h >> 29) * P3;
    return h ^ h >> 32;
}

/* The finalizer of SplitMix64. */
static inline uint64_t
mixed(uint64_t v)
{
    v = (v ^ v >> 30) * UINT64_C(0xBF58476D1CE4E5B9);
    v = (v ^ v >> 27) * UINT64_C(0x94D049BB133111EB);
    return v ^ v >> 31;
}

/* An integer as it came: `bits` in two's complement where it is negative. */
typedef struct {
    uint64_t bits;
    int negative;
} Integer;

/* The hash of an integer's decimal text. */
static inline uint64_t
hash_integer(Integer number)
{
    char text[20]; /* the most that 64 bits take: a sign and 19 digits, or 20 digits */
    char *at = text + sizeof text;
    uint64_t rest = number.negative ? 0 - number.bits : number.bits;
    do {
        *--at = (char)('0' + rest % 10);
        rest /= 10;
    } while (rest);
    if (number.negative) {
        *--at = '-';
    }
    return xxh64(at, (size_t)(text + sizeof text - at), 0);
}

#undef P1
#undef P2
#undef P3
#undef P4
#undef P5

#endif
