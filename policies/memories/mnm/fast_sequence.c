/* The memory of MNM-p at one step, forward and back, a batch entry at a time; see fast_sequence.py.

   The whole memory of an entry stays in the cache of its core while it is read, written and read again, which torch's
   products over the batch cannot do. Vectors are rows; z, e = z - z' and y as in
   fast_sequence.py, n the width of a layer's input and m of its output. Compiled twice, for REAL float and double. */

#include "products.h"

#define MAX_LAYERS 8

typedef struct {
    int64_t batch, heads, layers, width, total, squash_last; /* width: of the interaction vectors; total: ΣD_l */
    int64_t sizes[MAX_LAYERS + 1];                           /* d_k, D_1 ... D_L */
    REAL *m[MAX_LAYERS];                                     /* M^l, [B, D_l, D_{l-1}] */
    REAL *z[MAX_LAYERS], *e[MAX_LAYERS], *y[MAX_LAYERS];     /* [T, B, H or 2H, D_l] */
    REAL *interactions;                                      /* [T, B, width]: keys come first */
    REAL *d_m[MAX_LAYERS], *d_interactions, *d_expected;     /* backward only; d_expected: [T, B, H, total] */
} Tape;

static void squash(REAL *restrict x, int64_t count) {
    if (sizeof(REAL) == 8) {
        for (int64_t k = 0; k < count; k++) x[k] = tanh(x[k]);
        return;
    }
    for (int64_t k = 0; k < count; k++) {
        float v = x[k], c = v > 9.0f ? 9.0f : v < -9.0f ? -9.0f : v;
        /* e^{2v} = 2^(whole + part), with a polynomial for the part in -1/2 ... 1/2 */
        float t = c * 2.885390082f, whole = rintf(t), p = (t - whole) * 0.6931471806f;
        float part = 1 + p * (1 + p * (0.5f + p * (1 / 6.0f + p * (1 / 24.0f + p * (1 / 120.0f + p * (1 / 720.0f))))));
        union { int32_t i; float f; } scale = {((int32_t)whole + 127) << 23};
        float far = 1 - 2 / (part * scale.f + 1);
        /* near zero the difference would lose digits */
        float s = c * c;
        float near = c * (1 + s * (-1 / 3.0f + s * (2 / 15.0f + s * (-17 / 315.0f + s * (62 / 2835.0f)))));
        x[k] = s < 0.0625f ? near : v != v ? v : far;
    }
}

/* Steps of size `steps` [B, L] towards `expected` [B, H, total] for entries begin ... end - 1, then the read. */
void NAME(forward)(const Tape *tape, int64_t t, const REAL *steps, const REAL *expected, int64_t begin, int64_t end) {
    const int64_t heads = tape->heads, layers = tape->layers;
    for (int64_t b = begin; b < end; b++) {
        const int64_t at = t * tape->batch + b;
        const REAL *y_below = tape->interactions + at * tape->width, *z_below = y_below + heads * tape->sizes[0];
        int64_t passed = 0;
        for (int64_t l = 0; l < layers; l++) {
            const int64_t n = tape->sizes[l], m = tape->sizes[l + 1], whole = m / ROWS * ROWS;
            REAL *matrix = tape->m[l] + b * m * n, *z = tape->z[l] + at * heads * m, *e = tape->e[l] + at * heads * m;
            REAL *y = tape->y[l] + at * 2 * heads * m, write[heads * m];
            const REAL step = steps[b * layers + l];
            const int tanh_follows = l + 1 < layers || tape->squash_last;

            for (int64_t j = 0; j < whole; j += ROWS) dots(z_below, heads, matrix + j * n, n, n, z + j, m);
            for (int64_t j = whole; j < m; j++)
                for (int64_t i = 0; i < heads; i++) z[i * m + j] = dot(z_below + i * n, matrix + j * n, n);
            if (tanh_follows) squash(z, heads * m);
            for (int64_t i = 0; i < heads; i++) {
                const REAL *told = expected + (b * heads + i) * tape->total + passed;
                for (int64_t j = 0; j < m; j++) {
                    e[i * m + j] = z[i * m + j] - told[j];
                    write[i * m + j] = -step * e[i * m + j];
                }
            }
            for (int64_t j = 0; j < whole; j += ROWS) {
                spread(matrix + j * n, n, write + j, m, z_below, heads, n);
                dots(y_below, 2 * heads, matrix + j * n, n, n, y + j, m);
            }
            for (int64_t j = whole; j < m; j++) {
                for (int64_t i = 0; i < heads; i++) axpy(matrix + j * n, write[i * m + j], z_below + i * n, n);
                for (int64_t i = 0; i < 2 * heads; i++) y[i * m + j] = dot(y_below + i * n, matrix + j * n, n);
            }
            if (tanh_follows) squash(y, 2 * heads * m);
            y_below = y, z_below = z, passed += m;
        }
    }
}

/* From `d_recalled` [B, 2H, d_v]: d_expected, the keys' part of d_interactions and `d_steps` [B, L]; d_m becomes that
   of the memory before the step, and m that memory. */
void NAME(backward)(
    const Tape *tape, int64_t t, const REAL *steps, const REAL *d_recalled, REAL *d_steps, int64_t begin, int64_t end) {
    const int64_t heads = tape->heads, layers = tape->layers;
    int64_t widest = 0;
    for (int64_t l = 0; l <= layers; l++) widest = tape->sizes[l] > widest ? tape->sizes[l] : widest;
    REAL d_y[2 * heads * widest], d_z[heads * widest], lower_y[2 * heads * widest], lower_z[heads * widest];
    REAL u[heads * widest], d_u[heads * widest];
    for (int64_t b = begin; b < end; b++) {
        const int64_t at = t * tape->batch + b;
        int64_t passed = tape->total;
        const int64_t top = 2 * heads * tape->sizes[layers];
        memcpy(d_y, d_recalled + b * top, top * sizeof(REAL));
        memset(d_z, 0, sizeof(REAL) * heads * tape->sizes[layers]);
        for (int64_t l = layers - 1; l >= 0; l--) {
            const int64_t n = tape->sizes[l], m = tape->sizes[l + 1], whole = m / ROWS * ROWS;
            REAL *matrix = tape->m[l] + b * m * n, *d_m = tape->d_m[l] + b * m * n;
            const REAL *z = tape->z[l] + at * heads * m, *e = tape->e[l] + at * heads * m;
            const REAL *y = tape->y[l] + at * 2 * heads * m, *keys = tape->interactions + at * tape->width;
            const REAL *y_below = l ? tape->y[l - 1] + at * 2 * heads * n : keys;
            const REAL *z_below = l ? tape->z[l - 1] + at * heads * n : keys + heads * n;
            const REAL step = steps[b * layers + l];
            const int tanh_follows = l + 1 < layers || tape->squash_last;
            passed -= m;

            if (tanh_follows)
                for (int64_t k = 0; k < 2 * heads * m; k++) d_y[k] *= 1 - y[k] * y[k];
            for (int64_t k = 0; k < heads * m; k++) u[k] = step * e[k];
            memset(lower_y, 0, sizeof(REAL) * 2 * heads * n);
            memset(lower_z, 0, sizeof(REAL) * heads * n);
            for (int64_t j = 0; j < whole; j += ROWS) {
                REAL *row = matrix + j * n, *d_row = d_m + j * n;
                /* the read */
                spread(d_row, n, d_y + j, m, y_below, 2 * heads, n);
                gather(lower_y, d_y + j, m, row, n, 2 * heads, n);
                /* the write, which is undone; the sign of d_u is left for later */
                dots(z_below, heads, d_row, n, n, d_u + j, m);
                gather(lower_z, u + j, m, d_row, n, heads, n);
                spread(row, n, u + j, m, z_below, heads, n);
            }
            for (int64_t j = whole; j < m; j++) {
                REAL *row = matrix + j * n, *d_row = d_m + j * n;
                for (int64_t i = 0; i < 2 * heads; i++) {
                    axpy(d_row, d_y[i * m + j], y_below + i * n, n);
                    axpy(lower_y + i * n, d_y[i * m + j], row, n);
                }
                for (int64_t i = 0; i < heads; i++) {
                    d_u[i * m + j] = dot(z_below + i * n, d_row, n);
                    axpy(lower_z + i * n, u[i * m + j], d_row, n);
                    axpy(row, u[i * m + j], z_below + i * n, n);
                }
            }
            for (int64_t k = 0; k < heads * n; k++) lower_z[k] = -lower_z[k];
            d_steps[b * layers + l] = -dot(d_u, e, heads * m);
            for (int64_t i = 0; i < heads; i++) {
                REAL *d_told = tape->d_expected + (at * heads + i) * tape->total + passed;
                for (int64_t j = 0; j < m; j++) {
                    d_told[j] = d_u[i * m + j] * step;
                    d_z[i * m + j] -= d_told[j];
                }
            }
            if (tanh_follows)
                for (int64_t k = 0; k < heads * m; k++) d_z[k] *= 1 - z[k] * z[k];
            for (int64_t j = 0; j < whole; j += ROWS) {
                spread(d_m + j * n, n, d_z + j, m, z_below, heads, n);
                gather(lower_z, d_z + j, m, matrix + j * n, n, heads, n);
            }
            for (int64_t j = whole; j < m; j++)
                for (int64_t i = 0; i < heads; i++) {
                    axpy(d_m + j * n, d_z[i * m + j], z_below + i * n, n);
                    axpy(lower_z + i * n, d_z[i * m + j], matrix + j * n, n);
                }
            memcpy(d_y, lower_y, sizeof(REAL) * 2 * heads * n);
            memcpy(d_z, lower_z, sizeof(REAL) * heads * n);
        }
        const int64_t half = heads * tape->sizes[0];
        REAL *d_keys = tape->d_interactions + at * tape->width;
        memcpy(d_keys, d_y, sizeof(REAL) * 2 * half);
        for (int64_t k = 0; k < half; k++) d_keys[half + k] += d_z[k];
    }
}
