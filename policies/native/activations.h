/* Activation functions in loops that the compiler vectorises; REAL is float or double. */

#pragma once

#include <math.h>
#include <stdint.h>
#include <string.h>

/* e^r - 1 for |r| <= ln 2 / 2 */
static inline float expm1_small(float r) {
    float p = 1.0f / 5040;
    p = p * r + 1.0f / 720, p = p * r + 1.0f / 120, p = p * r + 1.0f / 24, p = p * r + 1.0f / 6, p = p * r + 0.5f;
    return p * r * r + r;
}

/* 2^n of an integer n from -126 to 127 */
static inline float exp2_integer(float n) {
    const uint32_t bits = (uint32_t)((int32_t)n + 127) << 23;
    float power;
    memcpy(&power, &bits, 4);
    return power;
}

/* e^x - 1, without cancellation near 0: x = n ln 2 + r, and a polynomial in r. x is clamped to ±`limit`; NaN stays NaN.
   For doubles the C library's function is called for each number. */
static inline REAL expm1_clamped(REAL x, REAL limit) {
    x = x > limit ? limit : x;
    x = x < -limit ? -limit : x;
    if (sizeof(REAL) == 8) return expm1(x);
    const float n = floorf(1.44269504f * (float)x + 0.5f);
    const float p = expm1_small((float)x - 0.693147181f * n), power = exp2_integer(n);
    return n == 0 ? p : power * p + (power - 1); /* the compiler may take the sum in another order */
}

/* e^x of x <= 0, with a small relative error; 0 for x < -87 (float). */
static inline REAL exp_nonpositive(REAL x) {
    if (sizeof(REAL) == 8) return exp(x);
    const float y = x < -87 ? -87 : (float)x, n = floorf(1.44269504f * y + 0.5f);
    const float p = expm1_small(y - 0.693359375f * n + 2.12194440e-4f * n), power = exp2_integer(n);
    return x < -87 ? 0 : power * p + power;
}

/* log x of a positive normal number: x = 2^n m with m within a factor √2 of 1, and log m = 2 artanh((m - 1) / (m + 1)) */
static inline REAL log_positive(REAL x) {
    if (sizeof(REAL) == 8) return log(x);
    const float value = (float)x;
    const uint32_t half_root = 0x3f3504f3; /* the bits of √½ */
    uint32_t bits;
    memcpy(&bits, &value, 4);
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

static inline void sigmoid_inplace(REAL *restrict x, int64_t count) {
    for (int64_t k = 0; k < count; k++) x[k] = 1 / (2 + expm1_clamped(-x[k], 80));
}

static inline void tanh_inplace(REAL *restrict x, int64_t count) {
    for (int64_t k = 0; k < count; k++) {
        const REAL e = expm1_clamped(2 * x[k], 40);
        x[k] = e / (e + 2);
    }
}

/* log(1 + e^x), and its derivative as a function of its value */
static inline REAL softplus(REAL x) { return x > 0 ? x + (REAL)log1p(exp(-x)) : (REAL)log1p(exp(x)); }
static inline REAL softplus_derivative(REAL value) { return (REAL)-expm1(-value); }

#define UNROLL 16

static inline REAL maximum_of(const REAL *restrict x, int64_t count) {
    REAL best[UNROLL];
    int64_t k = 0;
    for (int64_t i = 0; i < UNROLL; i++) best[i] = x[0];
    for (; k + UNROLL <= count; k += UNROLL)
        for (int64_t i = 0; i < UNROLL; i++) best[i] = x[k + i] > best[i] ? x[k + i] : best[i];
    for (; k < count; k++) best[0] = x[k] > best[0] ? x[k] : best[0];
    for (int64_t i = 1; i < UNROLL; i++) best[0] = best[i] > best[0] ? best[i] : best[0];
    return best[0];
}

/* out = softmax(factor x) with factor >= 0; elements `count` ... `padded` - 1 are set to 0. */
static inline void softmax(REAL *restrict out, const REAL *restrict x, REAL factor, int64_t count, int64_t padded) {
    const REAL maximum = maximum_of(x, count);
    REAL sum = 0;
    for (int64_t k = 0; k < count; k++) out[k] = exp_nonpositive(factor * (x[k] - maximum));
    for (int64_t k = 0; k < count; k++) sum += out[k];
    sum = 1 / sum;
    for (int64_t k = 0; k < count; k++) out[k] *= sum;
    for (int64_t k = count; k < padded; k++) out[k] = 0;
}
