/* Products of a few vectors with ROWS rows of a matrix, for loops that read the matrix once; REAL is float or double.

   There are `count` vectors of n numbers with stride n; the rows have stride `lead`. Three vectors are processed
   together, so that each loaded part of a row is used three times. The result of vector i and row r is at [i * stride +
   r]. */

#include <math.h>
#include <stdint.h>
#include <string.h>

#define ROWS 4

/* out = vectors · rows */
static inline void dots(
    const REAL *restrict vectors, int64_t count, const REAL *restrict rows, int64_t lead, int64_t n, REAL *restrict out,
    int64_t stride) {
    const REAL *r1 = rows + lead, *r2 = rows + 2 * lead, *r3 = rows + 3 * lead;
    int64_t i = 0;
    for (; i + 3 <= count; i += 3) {
        const REAL *a = vectors + i * n, *b = a + n, *c = b + n;
        REAL a0 = 0, a1 = 0, a2 = 0, a3 = 0, b0 = 0, b1 = 0, b2 = 0, b3 = 0, c0 = 0, c1 = 0, c2 = 0, c3 = 0;
        for (int64_t k = 0; k < n; k++) {
            a0 += a[k] * rows[k], a1 += a[k] * r1[k], a2 += a[k] * r2[k], a3 += a[k] * r3[k];
            b0 += b[k] * rows[k], b1 += b[k] * r1[k], b2 += b[k] * r2[k], b3 += b[k] * r3[k];
            c0 += c[k] * rows[k], c1 += c[k] * r1[k], c2 += c[k] * r2[k], c3 += c[k] * r3[k];
        }
        REAL *p = out + i * stride, *q = p + stride, *r = q + stride;
        p[0] = a0, p[1] = a1, p[2] = a2, p[3] = a3;
        q[0] = b0, q[1] = b1, q[2] = b2, q[3] = b3;
        r[0] = c0, r[1] = c1, r[2] = c2, r[3] = c3;
    }
    for (; i < count; i++) {
        const REAL *a = vectors + i * n;
        REAL a0 = 0, a1 = 0, a2 = 0, a3 = 0;
        for (int64_t k = 0; k < n; k++) {
            a0 += a[k] * rows[k], a1 += a[k] * r1[k], a2 += a[k] * r2[k], a3 += a[k] * r3[k];
        }
        REAL *p = out + i * stride;
        p[0] = a0, p[1] = a1, p[2] = a2, p[3] = a3;
    }
}

static inline REAL dot(const REAL *restrict a, const REAL *restrict b, int64_t n) {
    REAL s = 0;
    for (int64_t k = 0; k < n; k++) s += a[k] * b[k];
    return s;
}

/* rows += factorsᵀ vectors */
static inline void add_outer_products(
    REAL *restrict rows, int64_t lead, const REAL *restrict factors, int64_t stride, const REAL *restrict vectors,
    int64_t count, int64_t n) {
    REAL *restrict r1 = rows + lead, *restrict r2 = rows + 2 * lead, *restrict r3 = rows + 3 * lead;
    int64_t i = 0;
    for (; i + 3 <= count; i += 3) {
        const REAL *a = vectors + i * n, *b = a + n, *c = b + n;
        const REAL *f = factors + i * stride, *g = f + stride, *h = g + stride;
        for (int64_t k = 0; k < n; k++) {
            rows[k] += f[0] * a[k] + g[0] * b[k] + h[0] * c[k];
            r1[k] += f[1] * a[k] + g[1] * b[k] + h[1] * c[k];
            r2[k] += f[2] * a[k] + g[2] * b[k] + h[2] * c[k];
            r3[k] += f[3] * a[k] + g[3] * b[k] + h[3] * c[k];
        }
    }
    for (; i < count; i++) {
        const REAL *a = vectors + i * n, *f = factors + i * stride;
        for (int64_t k = 0; k < n; k++) {
            rows[k] += f[0] * a[k];
            r1[k] += f[1] * a[k];
            r2[k] += f[2] * a[k];
            r3[k] += f[3] * a[k];
        }
    }
}

/* out += factors rows; the `count` vectors of `out` have stride n */
static inline void add_weighted_rows(
    REAL *restrict out, const REAL *restrict factors, int64_t stride, const REAL *restrict rows, int64_t lead,
    int64_t count, int64_t n) {
    const REAL *r1 = rows + lead, *r2 = rows + 2 * lead, *r3 = rows + 3 * lead;
    int64_t i = 0;
    for (; i + 3 <= count; i += 3) {
        REAL *restrict a = out + i * n, *restrict b = a + n, *restrict c = b + n;
        const REAL *f = factors + i * stride, *g = f + stride, *h = g + stride;
        for (int64_t k = 0; k < n; k++) {
            a[k] += f[0] * rows[k] + f[1] * r1[k] + f[2] * r2[k] + f[3] * r3[k];
            b[k] += g[0] * rows[k] + g[1] * r1[k] + g[2] * r2[k] + g[3] * r3[k];
            c[k] += h[0] * rows[k] + h[1] * r1[k] + h[2] * r2[k] + h[3] * r3[k];
        }
    }
    for (; i < count; i++) {
        REAL *restrict a = out + i * n;
        const REAL *f = factors + i * stride;
        for (int64_t k = 0; k < n; k++) a[k] += f[0] * rows[k] + f[1] * r1[k] + f[2] * r2[k] + f[3] * r3[k];
    }
}

/* out += c a */
static inline void axpy(REAL *restrict out, REAL c, const REAL *restrict a, int64_t n) {
    for (int64_t k = 0; k < n; k++) out[k] += c * a[k];
}
