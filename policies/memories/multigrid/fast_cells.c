/* The cells of a convolutional LSTM at one step, forward and backward; see fast_sequence.py.

   All arrays are [P, channels]: P cells of all grids, channels innermost, and loops go from cell `begin` to `end`.
   Gates are in the order i, f, o, candidate. The operands of convolutions, `h` and the pre-activations, are REAL, or
   bfloat16 if `half` is not 0. The memory c and the stored gates are REAL. */

#include "activations.h"

#define MAX_CHANNELS 256

static inline float widened(uint16_t half) {
    const uint32_t bits = (uint32_t)half << 16;
    float value;
    memcpy(&value, &bits, 4);
    return value;
}

/* To the nearest, ties to even */
static inline uint16_t halved(float value) {
    uint32_t bits;
    memcpy(&bits, &value, 4);
    const uint32_t rounded = (bits + 0x7fff + (bits >> 16 & 1)) >> 16;
    return value == value ? rounded : 0x7fc0;
}

/* out (+)= in */
static inline void load(REAL *restrict out, const void *in, int64_t at, int64_t count, int half, int add) {
    const uint16_t *small = (const uint16_t *)in + at;
    const REAL *large = (const REAL *)in + at;
    if (half && add)
        for (int64_t k = 0; k < count; k++) out[k] += widened(small[k]);
    else if (half)
        for (int64_t k = 0; k < count; k++) out[k] = widened(small[k]);
    else if (add)
        for (int64_t k = 0; k < count; k++) out[k] += large[k];
    else
        memcpy(out, large, sizeof(REAL) * count);
}

static inline void store(void *out, int64_t at, const REAL *restrict in, int64_t count, int half) {
    if (half) {
        uint16_t *small = (uint16_t *)out + at;
        for (int64_t k = 0; k < count; k++) small[k] = halved(in[k]);
    } else
        memcpy((REAL *)out + at, in, sizeof(REAL) * count);
}

/* Computes gates, c and h from both parts of the pre-activations and the previous c. `peepholes` are three times
   [cells, C], cells of one grid, or NULL. */
void NAME(forward)(
    const void *of_h, const void *of_x, const REAL *before, const REAL *peepholes, REAL *gates, REAL *after, void *h,
    int64_t channels, int64_t cells, int64_t half, int64_t begin, int64_t end) {
    REAL out[MAX_CHANNELS];
    const int64_t size = cells * channels;
    for (int64_t p = begin; p < end; p++) {
        const REAL *restrict old = before + p * channels, *restrict looks = peepholes ? peepholes + p % cells * channels : 0;
        REAL *restrict i = gates + p * 4 * channels, *restrict c = after + p * channels;
        REAL *restrict f = i + channels, *restrict o = f + channels, *restrict candidate = o + channels;
        load(i, of_h, p * 4 * channels, 4 * channels, half, 0);
        load(i, of_x, p * 4 * channels, 4 * channels, half, 1);
        if (peepholes)
            for (int64_t k = 0; k < channels; k++) {
                i[k] += looks[k] * old[k];
                f[k] += looks[size + k] * old[k];
            }
        sigmoid_inplace(i, peepholes ? 2 * channels : 3 * channels);
        tanh_inplace(candidate, channels);
        for (int64_t k = 0; k < channels; k++) c[k] = f[k] * old[k] + i[k] * candidate[k];
        if (peepholes) {
            for (int64_t k = 0; k < channels; k++) o[k] += looks[2 * size + k] * c[k];
            sigmoid_inplace(o, channels);
        }
        memcpy(out, c, sizeof(REAL) * channels);
        tanh_inplace(out, channels);
        for (int64_t k = 0; k < channels; k++) out[k] *= o[k];
        store(h, p * channels, out, channels, half);
    }
}

/* Computes the gradients of the pre-activations from d_h + d_out and d_c; d_c is overwritten by the gradient of the
   previous c. */
void NAME(backward)(
    const REAL *gates, const REAL *before, const REAL *after, const REAL *peepholes, const void *d_h, const void *d_out,
    REAL *d_c, void *d_sums, int64_t channels, int64_t cells, int64_t half, int64_t begin, int64_t end) {
    REAL d[MAX_CHANNELS], tanh_cell[MAX_CHANNELS], d_i[4 * MAX_CHANNELS];
    REAL *restrict d_f = d_i + channels, *restrict d_o = d_f + channels, *restrict d_candidate = d_o + channels;
    const int64_t size = cells * channels;
    for (int64_t p = begin; p < end; p++) {
        const REAL *restrict i = gates + p * 4 * channels, *restrict old = before + p * channels;
        const REAL *restrict f = i + channels, *restrict o = f + channels, *restrict candidate = o + channels;
        const REAL *restrict looks = peepholes ? peepholes + p % cells * channels : 0;
        REAL *restrict of_c = d_c + p * channels;
        load(d, d_h, p * channels, channels, half, 0);
        load(d, d_out, p * channels, channels, half, 1);
        memcpy(tanh_cell, after + p * channels, sizeof(REAL) * channels);
        tanh_inplace(tanh_cell, channels);
        for (int64_t k = 0; k < channels; k++) {
            d_o[k] = d[k] * tanh_cell[k] * o[k] * (1 - o[k]);
            REAL total = of_c[k] + d[k] * o[k] * (1 - tanh_cell[k] * tanh_cell[k]);
            if (peepholes) total += d_o[k] * looks[2 * size + k];
            d_i[k] = total * candidate[k] * i[k] * (1 - i[k]);
            d_f[k] = total * old[k] * f[k] * (1 - f[k]);
            d_candidate[k] = total * i[k] * (1 - candidate[k] * candidate[k]);
            of_c[k] = total * f[k];
            if (peepholes) of_c[k] += d_i[k] * looks[k] + d_f[k] * looks[size + k];
        }
        store(d_sums, p * 4 * channels, d_i, 4 * channels, half);
    }
}
