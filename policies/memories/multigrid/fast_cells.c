/* The cells of a convolutional LSTM at one step, forward and backward; see fast_sequence.py.

   All arrays are [P, channels]: P cells of all grids, channels innermost, and loops go from cell `begin` to `end`.
   Gates are in the order i, f, o, candidate. The operands of convolutions, `h` and the pre-activations, are REAL, or
   bfloat16 if `bf16` is not 0. The memory c and the stored gates are REAL. */

#include "activations.h"

#define MAX_CHANNELS 256

static inline float from_bfloat16(uint16_t value16) {
    const uint32_t bits = (uint32_t)value16 << 16;
    float value;
    memcpy(&value, &bits, 4);
    return value;
}

/* Rounds to the nearest, ties to even; NaN stays NaN. */
static inline uint16_t to_bfloat16(float value) {
    uint32_t bits;
    memcpy(&bits, &value, 4);
    const uint32_t rounded = (bits + 0x7fff + (bits >> 16 & 1)) >> 16;
    return value == value ? rounded : 0x7fc0;
}

/* out = in, or out += in if `add` */
static inline void load(REAL *restrict out, const void *in, int64_t at, int64_t count, int bf16, int add) {
    const uint16_t *bf16_values = (const uint16_t *)in + at;
    const REAL *real_values = (const REAL *)in + at;
    if (bf16 && add)
        for (int64_t k = 0; k < count; k++) out[k] += from_bfloat16(bf16_values[k]);
    else if (bf16)
        for (int64_t k = 0; k < count; k++) out[k] = from_bfloat16(bf16_values[k]);
    else if (add)
        for (int64_t k = 0; k < count; k++) out[k] += real_values[k];
    else
        memcpy(out, real_values, sizeof(REAL) * count);
}

static inline void store(void *out, int64_t at, const REAL *restrict in, int64_t count, int bf16) {
    if (bf16) {
        uint16_t *bf16_values = (uint16_t *)out + at;
        for (int64_t k = 0; k < count; k++) bf16_values[k] = to_bfloat16(in[k]);
    } else
        memcpy((REAL *)out + at, in, sizeof(REAL) * count);
}

/* Computes gates, c and h from both parts of the pre-activations and the previous c. `peepholes`: [3, cells, C] with the
   cells of one grid, or NULL. */
void NAME(forward)(
    const void *gates_h, const void *gates_x, const REAL *before, const REAL *peepholes, REAL *gates, REAL *after,
    void *h, int64_t channels, int64_t cells, int64_t bf16, int64_t begin, int64_t end) {
    REAL out[MAX_CHANNELS];
    const int64_t size = cells * channels;
    for (int64_t p = begin; p < end; p++) {
        const REAL *restrict old_c = before + p * channels, *restrict peephole =
                                                                peepholes ? peepholes + p % cells * channels : 0;
        REAL *restrict i = gates + p * 4 * channels, *restrict c = after + p * channels;
        REAL *restrict f = i + channels, *restrict o = f + channels, *restrict candidate = o + channels;
        load(i, gates_h, p * 4 * channels, 4 * channels, bf16, 0);
        load(i, gates_x, p * 4 * channels, 4 * channels, bf16, 1);
        if (peepholes)
            for (int64_t k = 0; k < channels; k++) {
                i[k] += peephole[k] * old_c[k];
                f[k] += peephole[size + k] * old_c[k];
            }
        sigmoid_inplace(i, peepholes ? 2 * channels : 3 * channels);
        tanh_inplace(candidate, channels);
        for (int64_t k = 0; k < channels; k++) c[k] = f[k] * old_c[k] + i[k] * candidate[k];
        if (peepholes) {
            for (int64_t k = 0; k < channels; k++) o[k] += peephole[2 * size + k] * c[k];
            sigmoid_inplace(o, channels);
        }
        memcpy(out, c, sizeof(REAL) * channels);
        tanh_inplace(out, channels);
        for (int64_t k = 0; k < channels; k++) out[k] *= o[k];
        store(h, p * channels, out, channels, bf16);
    }
}

/* Computes the gradients of the pre-activations from d_h + d_out and d_c; d_c is overwritten by the gradient of the
   previous c. */
void NAME(backward)(
    const REAL *gates, const REAL *before, const REAL *after, const REAL *peepholes, const void *d_h, const void *d_out,
    REAL *d_c, void *d_sums, int64_t channels, int64_t cells, int64_t bf16, int64_t begin, int64_t end) {
    REAL d[MAX_CHANNELS], tanh_c[MAX_CHANNELS], d_i[4 * MAX_CHANNELS];
    REAL *restrict d_f = d_i + channels, *restrict d_o = d_f + channels, *restrict d_candidate = d_o + channels;
    const int64_t size = cells * channels;
    for (int64_t p = begin; p < end; p++) {
        const REAL *restrict i = gates + p * 4 * channels, *restrict old_c = before + p * channels;
        const REAL *restrict f = i + channels, *restrict o = f + channels, *restrict candidate = o + channels;
        const REAL *restrict peephole = peepholes ? peepholes + p % cells * channels : 0;
        REAL *restrict d_c_p = d_c + p * channels;
        load(d, d_h, p * channels, channels, bf16, 0);
        load(d, d_out, p * channels, channels, bf16, 1);
        memcpy(tanh_c, after + p * channels, sizeof(REAL) * channels);
        tanh_inplace(tanh_c, channels);
        for (int64_t k = 0; k < channels; k++) {
            d_o[k] = d[k] * tanh_c[k] * o[k] * (1 - o[k]);
            REAL d_new_c = d_c_p[k] + d[k] * o[k] * (1 - tanh_c[k] * tanh_c[k]);
            if (peepholes) d_new_c += d_o[k] * peephole[2 * size + k];
            d_i[k] = d_new_c * candidate[k] * i[k] * (1 - i[k]);
            d_f[k] = d_new_c * old_c[k] * f[k] * (1 - f[k]);
            d_candidate[k] = d_new_c * i[k] * (1 - candidate[k] * candidate[k]);
            d_c_p[k] = d_new_c * f[k];
            if (peepholes) d_c_p[k] += d_i[k] * peephole[k] + d_f[k] * peephole[size + k];
        }
        store(d_sums, p * 4 * channels, d_i, 4 * channels, bf16);
    }
}
