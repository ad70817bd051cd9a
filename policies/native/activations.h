/* Functions whose loops over many numbers are vectorised; REAL is float or double. */

#pragma once

#include <math.h>
#include <stdint.h>
#include <string.h>

/* e^r - 1 for |r| <= ln 2 / 2 */
static inline float small_exponential(float r) {
    float p = 1.0f / 5040;
    p = p * r + 1.0f / 720, p = p * r + 1.0f / 120, p = p * r + 1.0f / 24, p = p * r + 1.0f / 6, p = p * r + 0.5f;
    return p * r * r + r;
}

/* 2^n of a whole number n from -126 to 127 */
static inline float two_to(float n) {
    const uint32_t bits = (uint32_t)((int32_t)n + 127) << 23;
    float power;
    memcpy(&power, &bits, 4);
    return power;
}

/* e^x - 1, without cancellation near 0: x = n ln 2 + r, and a polynomial in r. x is clamped to ±`far`; NaN stays NaN.
   For doubles the C library's function is called for each number. */
static inline REAL exponential(REAL x, REAL far) {
    x = x > far ? far : x;
    x = x < -far ? -far : x;
    if (sizeof(REAL) == 8) return expm1(x);
    const float n = floorf(1.44269504f * (float)x + 0.5f);
    const float p = small_exponential((float)x - 0.693147181f * n), power = two_to(n);
    return n == 0 ? p : power * p + (power - 1); /* the compiler may take the sum in another order */
}

/* e^x of x <= 0, small results to full precision; below e^-87 it is 0. */
static inline REAL decayed(REAL x) {
    if (sizeof(REAL) == 8) return exp(x);
    const float y = x < -87 ? -87 : (float)x, n = floorf(1.44269504f * y + 0.5f);
    const float p = small_exponential(y - 0.693359375f * n + 2.12194440e-4f * n), power = two_to(n);
    return x < -87 ? 0 : power * p + power;
}

/* log x of a positive normal number: x = 2^n m with m within a factor √2 of 1, and log m = 2 artanh((m - 1) / (m + 1)) */
static inline REAL logarithm(REAL x) {
    if (sizeof(REAL) == 8) return log(x);
    const float given = (float)x;
    const uint32_t half_root = 0x3f3504f3; /* the bits of √½ */
    uint32_t bits;
    memcpy(&bits, &given, 4);
    bits -= half_root;
    const float n = (float)((int32_t)bits >> 23);
    bits = (bits & 0x007fffff) + half_root;
    float m;
    memcpy(&m, &bits, 4);
    const float s = (m - 1) / (m + 1), z = s * s;
    float p = 2.0f / 9;
    p = p * z + 2.0f / 7, p = p * z + 2.0f / 5, p = p * z + 2.0f / 3;
    return n * 0.693147181f + (p * z * s + 2 * s);
}

static inline void sigmoid(REAL *restrict x, int64_t count) {
    for (int64_t k = 0; k < count; k++) x[k] = 1 / (2 + exponential(-x[k], 80));
}

static inline void squash(REAL *restrict x, int64_t count) {
    for (int64_t k = 0; k < count; k++) {
        const REAL e = exponential(2 * x[k], 40);
        x[k] = e / (e + 2);
    }
}

/* log(1 + e^x), and its derivative from its value */
static inline REAL softplus(REAL x) { return x > 0 ? x + (REAL)log1p(exp(-x)) : (REAL)log1p(exp(x)); }
static inline REAL softplus_slope(REAL value) { return (REAL)-expm1(-value); }

#define TOGETHER 16

static inline REAL largest(const REAL *restrict x, int64_t count) {
    REAL best[TOGETHER];
    int64_t k = 0;
    for (int64_t i = 0; i < TOGETHER; i++) best[i] = x[0];
    for (; k + TOGETHER <= count; k += TOGETHER)
        for (int64_t i = 0; i < TOGETHER; i++) best[i] = x[k + i] > best[i] ? x[k + i] : best[i];
    for (; k < count; k++) best[0] = x[k] > best[0] ? x[k] : best[0];
    for (int64_t i = 1; i < TOGETHER; i++) best[0] = best[i] > best[0] ? best[i] : best[0];
    return best[0];
}

/* out = softmax(factor x) with factor >= 0; numbers from `count` to `padded` are set to 0. */
static inline void softmax(REAL *restrict out, const REAL *restrict x, REAL factor, int64_t count, int64_t padded) {
    const REAL maximum = largest(x, count);
    REAL sum = 0;
    for (int64_t k = 0; k < count; k++) out[k] = decayed(factor * (x[k] - maximum));
    for (int64_t k = 0; k < count; k++) sum += out[k];
    sum = 1 / sum;
    for (int64_t k = 0; k < count; k++) out[k] *= sum;
    for (int64_t k = count; k < padded; k++) out[k] = 0;
}
