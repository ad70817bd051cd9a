/* Products of a few vectors with rows of a matrix, whole SIMD vectors at a time; REAL is float or double.

   All lengths are whole multiples of LANES: whoever calls pads with zeros. The rows, LANES of them, and the vectors lie n
   apart. What belongs to vector i and row r is at [i * apart + r]. */

#pragma once

#include <stdint.h>

#define LANES ((int64_t)(32 / sizeof(REAL)))
typedef REAL Lanes __attribute__((vector_size(32), aligned(sizeof(REAL)), may_alias));
#define PADDED(n) (((n) + LANES - 1) / LANES * LANES)
#ifdef __AVX512VL__
#define AT_ONCE 3 /* vectors, so that sums or factors of all rows fit the registers */
#else
#define AT_ONCE 1
#endif
#define INLINE static inline __attribute__((always_inline))
#define AT(p) (*(Lanes *)(p))
#define GET(p) (*(const Lanes *)(p))

#define SIZE_OF_float 4
#define SIZE_OF_double 8
#define SIZE_OF_(real) SIZE_OF_##real
#define SIZE_OF(real) SIZE_OF_(real)
#if SIZE_OF(REAL) == 4
typedef int32_t Places __attribute__((vector_size(32)));
#else
typedef int64_t Places __attribute__((vector_size(32)));
#endif
#ifdef __clang__
#define PICK(a, b, ...) __builtin_shufflevector(a, b, __VA_ARGS__)
#else
#define PICK(a, b, ...) __builtin_shuffle(a, b, (Places){__VA_ARGS__})
#endif
/* Σ of each of LANES vectors, side by side: two vectors at a time become one that has half the sums of each. */
INLINE Lanes sums_of(const Lanes *v) {
#define ADD(a, b, kept, other) (PICK(a, b, UNPACK kept) + PICK(a, b, UNPACK other))
#define UNPACK(...) __VA_ARGS__
#if SIZE_OF(REAL) == 4
#define ADD_1(a, b) ADD(a, b, (0, 9, 2, 11, 4, 13, 6, 15), (1, 8, 3, 10, 5, 12, 7, 14))
#define ADD_2(a, b) ADD(a, b, (0, 1, 10, 11, 4, 5, 14, 15), (2, 3, 8, 9, 6, 7, 12, 13))
#define ADD_4(a, b) ADD(a, b, (0, 1, 2, 3, 12, 13, 14, 15), (4, 5, 6, 7, 8, 9, 10, 11))
    const Lanes low = ADD_2(ADD_1(v[0], v[1]), ADD_1(v[2], v[3])), high = ADD_2(ADD_1(v[4], v[5]), ADD_1(v[6], v[7]));
    return ADD_4(low, high);
#else
#define ADD_1(a, b) ADD(a, b, (0, 5, 2, 7), (1, 4, 3, 6))
#define ADD_2(a, b) ADD(a, b, (0, 1, 6, 7), (2, 3, 4, 5))
    return ADD_2(ADD_1(v[0], v[1]), ADD_1(v[2], v[3]));
#endif
}

/* Ask for the LANES rows that come next. */
INLINE void fetch(const REAL *rows, int64_t n) {
    for (int64_t k = 0; k < LANES * n; k += 64 / (int64_t)sizeof(REAL)) __builtin_prefetch(rows + k);
}

INLINE void some_dots(const REAL *x, const REAL *rows, int64_t n, REAL *out, int64_t apart, const int count) {
    Lanes sums[AT_ONCE][LANES];
    for (int i = 0; i < count; i++)
        for (int r = 0; r < LANES; r++) sums[i][r] = (Lanes){0};
    for (int64_t k = 0; k < n; k += LANES)
        for (int r = 0; r < LANES; r++) {
            const Lanes row = GET(rows + r * n + k);
            for (int i = 0; i < count; i++) sums[i][r] += GET(x + i * n + k) * row;
        }
    for (int i = 0; i < count; i++) AT(out + i * apart) = sums_of(sums[i]);
}

/* out = x · rows */
static void dots(const REAL *x, int64_t count, const REAL *rows, int64_t n, REAL *out, int64_t apart) {
    int64_t i = 0;
    for (; i + AT_ONCE <= count; i += AT_ONCE) some_dots(x + i * n, rows, n, out + i * apart, apart, AT_ONCE);
    for (; i + 2 <= count && AT_ONCE > 2; i += 2) some_dots(x + i * n, rows, n, out + i * apart, apart, 2);
    for (; i < count; i++) some_dots(x + i * n, rows, n, out + i * apart, apart, 1);
}

INLINE void some_spread(REAL *rows, const REAL *factors, int64_t apart, const REAL *x, int64_t n, const int count) {
    for (int64_t first = 0; first < LANES; first += 4) {
        Lanes f[AT_ONCE][4];
        for (int i = 0; i < count; i++)
            for (int r = 0; r < 4; r++) f[i][r] = factors[i * apart + first + r] - (Lanes){0};
        for (int64_t k = 0; k < n; k += LANES)
            for (int r = 0; r < 4; r++) {
                Lanes row = GET(rows + (first + r) * n + k);
                for (int i = 0; i < count; i++) row += f[i][r] * GET(x + i * n + k);
                AT(rows + (first + r) * n + k) = row;
            }
    }
}

/* rows += factorsᵀ x */
static void spread(REAL *rows, const REAL *factors, int64_t apart, const REAL *x, int64_t count, int64_t n) {
    int64_t i = 0;
    for (; i + AT_ONCE <= count; i += AT_ONCE) some_spread(rows, factors + i * apart, apart, x + i * n, n, AT_ONCE);
    for (; i + 2 <= count && AT_ONCE > 2; i += 2) some_spread(rows, factors + i * apart, apart, x + i * n, n, 2);
    for (; i < count; i++) some_spread(rows, factors + i * apart, apart, x + i * n, n, 1);
}

INLINE void some_gather(REAL *out, const REAL *factors, int64_t apart, const REAL *rows, int64_t n, const int count) {
    Lanes f[AT_ONCE][LANES];
    for (int i = 0; i < count; i++)
        for (int r = 0; r < LANES; r++) f[i][r] = factors[i * apart + r] - (Lanes){0};
    for (int64_t k = 0; k < n; k += LANES) {
        Lanes sum[AT_ONCE];
        for (int i = 0; i < count; i++) sum[i] = GET(out + i * n + k);
        for (int r = 0; r < LANES; r++) {
            const Lanes row = GET(rows + r * n + k);
            for (int i = 0; i < count; i++) sum[i] += f[i][r] * row;
        }
        for (int i = 0; i < count; i++) AT(out + i * n + k) = sum[i];
    }
}

/* out += factors rows */
static void gather(REAL *out, const REAL *factors, int64_t apart, const REAL *rows, int64_t count, int64_t n) {
    int64_t i = 0;
    for (; i + AT_ONCE <= count; i += AT_ONCE) some_gather(out + i * n, factors + i * apart, apart, rows, n, AT_ONCE);
    for (; i + 2 <= count && AT_ONCE > 2; i += 2) some_gather(out + i * n, factors + i * apart, apart, rows, n, 2);
    for (; i < count; i++) some_gather(out + i * n, factors + i * apart, apart, rows, n, 1);
}
