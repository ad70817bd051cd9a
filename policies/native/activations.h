/* Sigmoid and tanh of many numbers in a loop that is vectorised; REAL is float or double. */

#pragma once

#include <math.h>
#include <stdint.h>
#include <string.h>

/* e^x - 1, so that nothing is lost near 0: x = n ln 2 + r, and a polynomial in r. Numbers beyond `far` are taken for
   it; no number stays none. For doubles it is the C library's, one by one. */
static inline REAL exponential(REAL x, REAL far) {
    x = x > far ? far : x;
    x = x < -far ? -far : x;
    if (sizeof(REAL) == 8) return expm1(x);
    const float n = floorf(1.44269504f * (float)x + 0.5f);
    const float r = (float)x - 0.693147181f * n;
    float p = 1.0f / 5040;
    p = p * r + 1.0f / 720, p = p * r + 1.0f / 120, p = p * r + 1.0f / 24, p = p * r + 1.0f / 6, p = p * r + 0.5f;
    p = p * r * r + r;
    const uint32_t bits = (uint32_t)((int32_t)n + 127) << 23;
    float power;
    memcpy(&power, &bits, 4);
    return n == 0 ? p : power * p + (power - 1); /* the compiler may take the sum in another order */
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
