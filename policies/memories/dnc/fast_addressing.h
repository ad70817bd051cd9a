/* The addressing of one batch entry at one step, as pure functions on vectors over slots, forward and backward.

   These vectors have n elements, whole SIMD vectors; those from `slots` on are zero. The memory is transposed,
   [W, n]. Symbols and equations as in shared/addressing.py. */

#pragma once

#include "activations.h"
#include "fast_linkage.h"

#define NORM_EPS ((REAL)1e-6)
#define USAGE_FLOOR ((REAL)1e-30)

/* Softmax over the first `count` of n elements, in place; the others become 0. */
static void softmax_in_place(REAL *restrict x, int64_t count, int64_t n) {
    const REAL maximum = maximum_of(x, count);
    REAL sum = 0;
    memset(x + count, 0, sizeof(REAL) * (n - count));
    for (int64_t k = 0; k < count; k++) x[k] = exp_nonpositive(x[k] - maximum);
    for (int64_t k = 0; k < n; k++) sum += x[k];
    sum = 1 / sum;
    for (int64_t k = 0; k < n; k++) x[k] *= sum;
}

/* 1 / |k| */
static inline REAL inverse_norm(const REAL *key, int64_t words) {
    REAL square = NORM_EPS;
    for (int64_t w = 0; w < words; w++) square += key[w] * key[w];
    return 1 / (REAL)sqrt(square);
}

/* out = scale (k · M[n]) norms[n] */
static void
similarity(const REAL *memory, const REAL *norms, const REAL *key, REAL scale, int64_t words, int64_t n, REAL *out) {
    for (int64_t k = 0; k < n; k += WIDE) {
        Wide sum = {0};
        for (int64_t w = 0; w < words; w++) sum += key[w] * GET(memory + w * n + k);
        PUT(out + k) = scale * sum * GET(norms + k);
    }
}

/* C(M, k, β) */
static void content(
    const REAL *memory, const REAL *norms, const REAL *key, REAL strength, int64_t words, int64_t slots, int64_t n,
    REAL *out) {
    similarity(memory, norms, key, strength * inverse_norm(key, words), words, n, out);
    softmax_in_place(out, slots, n);
}

/* The backward pass of `content` from the gradient d_c of the weights c, which is overwritten. Adds to d_memory, sets
   d_key and returns the gradient of β. `scratch`: n elements. */
static REAL content_backward(
    const REAL *memory, const REAL *norms, const REAL *key, REAL strength, const REAL *c, int64_t words, int64_t n,
    REAL *d_c, REAL *d_memory, REAL *d_key, REAL *scratch) {
    const REAL norm = inverse_norm(key, words), scale = strength * norm, mean = dot(d_c, c, n);
    similarity(memory, norms, key, 1, words, n, scratch);
    /* scores s = scale z norms with z = k · M[n]: d_c becomes the gradient of z, `scratch` the norms' part of M */
    REAL d_scale_sum = 0;
    for (int64_t k = 0; k < n; k++) {
        const REAL d_s = c[k] * (d_c[k] - mean);
        d_scale_sum += d_s * scratch[k];
        d_c[k] = d_s * scale * norms[k];
        scratch[k] *= d_s * scale * norms[k] * norms[k];
    }
    const REAL norm_term = norm * norm * strength * norm * d_scale_sum;
    for (int64_t w = 0; w < words; w++) {
        const REAL *row = memory + w * n;
        REAL *d_row = d_memory + w * n;
        Wide sum = {0};
        for (int64_t k = 0; k < n; k += WIDE) {
            const Wide g = GET(d_c + k), m = GET(row + k);
            sum += g * m;
            PUT(d_row + k) = GET(d_row + k) + key[w] * g - GET(scratch + k) * m;
        }
        d_key[w] = sum_of(sum) - norm_term * key[w];
    }
    return norm * d_scale_sum;
}

typedef struct {
    REAL usage;
    int32_t slot;
} Entry;

/* Merge sort of the slots by ascending usage, equal ones by index. `scratch`: 2 `slots` entries. */
static void order_slots(const REAL *usage, int64_t slots, int32_t *order, Entry *scratch) {
    Entry *from = scratch, *to = scratch + slots;
    for (int64_t k = 0; k < slots; k++) from[k] = (Entry){usage[k], (int32_t)k};
    for (int64_t width = 1; width < slots; width *= 2) {
        for (int64_t at = 0; at < slots; at += 2 * width) {
            const int64_t middle = at + width < slots ? at + width : slots;
            const int64_t end = at + 2 * width < slots ? at + 2 * width : slots;
            int64_t left = at, right = middle, next = at;
            while (left < middle && right < end) {
                const int second = from[right].usage < from[left].usage;
                to[next++] = from[second ? right : left];
                right += second, left += !second;
            }
            while (left < middle) to[next++] = from[left++];
            while (right < end) to[next++] = from[right++];
        }
        Entry *previous = from;
        from = to, to = previous;
    }
    for (int64_t k = 0; k < slots; k++) order[k] = from[k].slot;
}

/* a[φ_j] = (1 - u[φ_j]) Π_{i<j} u[φ_i] */
static void allocation(const REAL *usage, const int32_t *order, int64_t slots, REAL *a) {
    REAL product = 1;
    for (int64_t j = 0; j < slots; j++) {
        const REAL u = usage[order[j]];
        a[order[j]] = (1 - u) * product;
        product *= u < USAGE_FLOOR ? USAGE_FLOOR : u;
    }
}

/* Adds to d_usage, without a division: with Q_j = Σ_{k>j} da[φ_k] (1 - u[φ_k]) Π_{j<i<k} u[φ_i],
   du[φ_j] = (Q_j - da[φ_j]) Π_{i<j} u[φ_i]. `scratch`: `slots` elements. */
static void allocation_backward(
    const REAL *usage, const int32_t *order, int64_t slots, const REAL *d_a, REAL *d_usage, REAL *scratch) {
    REAL later = 0, product = 1;
    for (int64_t j = slots - 1; j >= 0; j--) {
        const REAL u = usage[order[j]];
        scratch[j] = later;
        later = d_a[order[j]] * (1 - u) + (u < USAGE_FLOOR ? USAGE_FLOOR : u) * later;
    }
    for (int64_t j = 0; j < slots; j++) {
        const REAL u = usage[order[j]];
        d_usage[order[j]] += (scratch[j] - d_a[order[j]]) * product;
        product *= u < USAGE_FLOOR ? USAGE_FLOOR : u;
    }
}

/* Π (1 - g x) over all heads except head `without` (-1: none excepted); g: the heads' gates, or NULL for 1. */
static void retention(const REAL *x, const REAL *gates, int64_t heads, int64_t without, int64_t n, REAL *restrict out) {
    for (int64_t k = 0; k < n; k++) out[k] = 1;
    for (int64_t i = 0; i < heads; i++) {
        const REAL *restrict x_i = x + i * n, gate = gates ? gates[i] : 1;
        if (i == without) continue;
        for (int64_t k = 0; k < n; k++) out[k] *= 1 - gate * x_i[k];
    }
}
