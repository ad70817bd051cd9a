/* Products of a few vectors with LANES rows of a matrix, whole SIMD vectors at a time; REAL is float or double.

   Rows and vectors have n numbers and stride n; n is a multiple of WIDE, so the caller pads with zeros. The result of
   vector i and row r is at [i * stride + r]. */

#pragma once

#include <stdint.h>

#include "packed.h"

#define LANES ((int64_t)(32 / sizeof(REAL)))
typedef REAL Lanes __attribute__((vector_size(32), aligned(sizeof(REAL)), may_alias));
#define UP(n, to) (((n) + (to) - 1) / (to) * (to))
#define PADDED(n) UP(n, (int64_t)(64 / sizeof(REAL)))
#ifdef __AVX512F__
#include <immintrin.h>
#define IN_REGISTER(x) __asm__("" : "+v"(x)) /* load once, not once per use */
#define GROUP 3 /* vectors, so that sums or factors of all rows fit the registers */
#else
#define IN_REGISTER(x)
#define GROUP 1
#endif
#define AT(type, p) (*(type *)(p))
#define GET(type, p) (*(const type *)(p))

#define SIZE_OF_float 4
#define SIZE_OF_double 8
#define SIZE_OF_(real) SIZE_OF_##real
#define SIZE_OF(real) SIZE_OF_(real)
#if SIZE_OF(REAL) == 4
typedef int32_t Indices __attribute__((vector_size(WIDE_BYTES)));
#else
typedef int64_t Indices __attribute__((vector_size(WIDE_BYTES)));
#endif
#define NUMBERS (WIDE_BYTES / SIZE_OF(REAL))
#if NUMBERS == 4
#define EACH(of, s) of(0, s), of(1, s), of(2, s), of(3, s)
#elif NUMBERS == 8
#define EACH(of, s) of(0, s), of(1, s), of(2, s), of(3, s), of(4, s), of(5, s), of(6, s), of(7, s)
#else
#define HALF_OF(of, i, s) \
    of(i, s), of(i + 1, s), of(i + 2, s), of(i + 3, s), of(i + 4, s), of(i + 5, s), of(i + 6, s), of(i + 7, s)
#define EACH(of, s) HALF_OF(of, 0, s), HALF_OF(of, 8, s)
#endif
/* a b + c in one instruction; -fassociative-math would turn a chain of these into a tree of products and sums. */
INLINE Wide fused(Wide a, Wide b, Wide c) {
#ifndef __AVX512F__
    return a * b + c;
#elif SIZE_OF(REAL) == 4
    return (Wide)_mm512_fmadd_ps((__m512)a, (__m512)b, (__m512)c);
#else
    return (Wide)_mm512_fmadd_pd((__m512d)a, (__m512d)b, (__m512d)c);
#endif
}

#ifdef __clang__
#define PICK(a, b, ...) __builtin_shufflevector(a, b, __VA_ARGS__)
#else
#define PICK(a, b, ...) __builtin_shuffle(a, b, (Indices){__VA_ARGS__})
#endif
/* One vector with half the partial sums of each of two: lanes whose index has bit s belong to the second, others to the
   first. */
#define OWN(i, s) ((i) & (s) ? NUMBERS + (i) : (i))
#define OTHER(i, s) ((i) & (s) ? NUMBERS + (i) - (s) : (i) + (s))
#define ADD(a, b, s) ((Wide)(PICK(a, b, EACH(OWN, s)) + PICK(a, b, EACH(OTHER, s))))

/* The sum of each of LANES vectors, in one vector. */
INLINE Lanes sums_of(const Wide *v) {
    const Wide low = ADD(ADD(v[0], v[1], 1), ADD(v[2], v[3], 1), 2);
#if SIZE_OF(REAL) == 4
    const Wide all = ADD(low, ADD(ADD(v[4], v[5], 1), ADD(v[6], v[7], 1), 2), 4);
#else
    const Wide all = low;
#endif
    Lanes parts[WIDE_BYTES / 32];
    memcpy(parts, &all, WIDE_BYTES);
    return WIDE_BYTES == 32 ? *parts : (Lanes)(parts[0] + parts[WIDE_BYTES / 32 - 1]);
}

INLINE void some_dots(const REAL *x, const REAL *rows, int64_t n, REAL *out, int64_t stride, const int count) {
    Wide sums[GROUP][LANES];
    for (int i = 0; i < count; i++)
        for (int r = 0; r < LANES; r++) sums[i][r] = (Wide){0};
    for (int64_t k = 0; k < n; k += WIDE)
        for (int r = 0; r < LANES; r++) {
            Wide row = GET(Wide, rows + r * n + k);
            IN_REGISTER(row);
            for (int i = 0; i < count; i++) sums[i][r] = fused(GET(Wide, x + i * n + k), row, sums[i][r]);
        }
    for (int i = 0; i < count; i++) AT(Lanes, out + i * stride) = sums_of(sums[i]);
}

/* out = x · rows */
static void dots(const REAL *x, int64_t count, const REAL *rows, int64_t n, REAL *out, int64_t stride) {
    int64_t i = 0;
    for (; i + GROUP <= count; i += GROUP) some_dots(x + i * n, rows, n, out + i * stride, stride, GROUP);
    for (; i + 2 <= count && GROUP > 2; i += 2) some_dots(x + i * n, rows, n, out + i * stride, stride, 2);
    for (; i < count; i++) some_dots(x + i * n, rows, n, out + i * stride, stride, 1);
}

INLINE void some_outer_products(
    REAL *rows, const REAL *factors, int64_t stride, const REAL *x, int64_t n, const int count) {
    Wide f[GROUP][LANES];
    for (int i = 0; i < count; i++)
        for (int r = 0; r < LANES; r++) f[i][r] = factors[i * stride + r] - (Wide){0};
    for (int64_t k = 0; k < n; k += WIDE) {
        Wide vectors[GROUP];
        for (int i = 0; i < count; i++) vectors[i] = GET(Wide, x + i * n + k);
        for (int r = 0; r < LANES; r++) {
            Wide row = GET(Wide, rows + r * n + k);
            IN_REGISTER(row);
            for (int i = 0; i < count; i++) row = fused(f[i][r], vectors[i], row);
            AT(Wide, rows + r * n + k) = row;
        }
    }
}

/* rows += factorsᵀ x */
static void add_outer_products(REAL *rows, const REAL *factors, int64_t stride, const REAL *x, int64_t count, int64_t n) {
    int64_t i = 0;
    for (; i + GROUP <= count; i += GROUP) some_outer_products(rows, factors + i * stride, stride, x + i * n, n, GROUP);
    for (; i + 2 <= count && GROUP > 2; i += 2) some_outer_products(rows, factors + i * stride, stride, x + i * n, n, 2);
    for (; i < count; i++) some_outer_products(rows, factors + i * stride, stride, x + i * n, n, 1);
}

INLINE void some_weighted_rows(
    REAL *out, const REAL *factors, int64_t stride, const REAL *rows, int64_t n, const int count) {
    Wide f[GROUP][LANES];
    for (int i = 0; i < count; i++)
        for (int r = 0; r < LANES; r++) f[i][r] = factors[i * stride + r] - (Wide){0};
    for (int64_t k = 0; k < n; k += WIDE) {
        Wide sum[GROUP];
        for (int i = 0; i < count; i++) sum[i] = GET(Wide, out + i * n + k);
        for (int r = 0; r < LANES; r++) {
            Wide row = GET(Wide, rows + r * n + k);
            IN_REGISTER(row);
            for (int i = 0; i < count; i++) sum[i] = fused(f[i][r], row, sum[i]);
        }
        for (int i = 0; i < count; i++) AT(Wide, out + i * n + k) = sum[i];
    }
}

/* out += factors rows */
static void add_weighted_rows(REAL *out, const REAL *factors, int64_t stride, const REAL *rows, int64_t count, int64_t n) {
    int64_t i = 0;
    for (; i + GROUP <= count; i += GROUP) some_weighted_rows(out + i * n, factors + i * stride, stride, rows, n, GROUP);
    for (; i + 2 <= count && GROUP > 2; i += 2) some_weighted_rows(out + i * n, factors + i * stride, stride, rows, n, 2);
    for (; i < count; i++) some_weighted_rows(out + i * n, factors + i * stride, stride, rows, n, 1);
}
