/* MNM-p and MNM-g over time, forward and backward; see fast_native.py. Equations and symbols as in memory.py.

   Vectors are rows. z, e = z - z' and y as in fast_sequence.py; n and m are the widths of a layer's input and output.
   Arrays of the layers are padded with zeros to whole SIMD vectors: M^l is [B, UP(m, LANES), PADDED(n)], z, e and y [T,
   B, H or 2H, PADDED(m)]. A call processes a block of environments over several steps, so that their memories and the
   weights stay in the cache. Compiled twice, for REAL float and double. */

#include "cells.h"
#include "lanes.h"
#include "packed.h"

#define MAX_LAYERS 8

typedef struct {
    int64_t batch, hidden, heads, layers, width, total, rates, squash_last; /* width: of the interactions; total: ΣD_l, or 0 for MNM-g */
    int64_t sizes[MAX_LAYERS + 1];                                          /* d_k, D_1 ... D_L */
    const REAL *divisors;                                                   /* [L] */
    const REAL *recurrent, *interaction, *feedback;                         /* packed, each for its direction */
    const REAL *interaction_bias, *rate, *rate_bias, *feedback_bias;        /* rate: W_β as it is */
    REAL *gates, *carried, *cells, *tanh_cells;       /* [T, B, 4 d_h], [T + 1, B, d_h + d_v], [T + 1, B, d_h], [T, B, d_h] */
    REAL *interactions, *betas, *errors;              /* [T, B, width], [T, B, rates], [T, B]: of what was just written */
    REAL *m[MAX_LAYERS], *z[MAX_LAYERS], *e[MAX_LAYERS], *y[MAX_LAYERS];
    REAL *expected;                                   /* forward: [B, H, total]; backward: its gradient, [.., B, H, total] */
    REAL *d_gates, *d_interactions, *d_rates, *d_m[MAX_LAYERS]; /* backward only, as all that follow */
    REAL *d_carried, *d_cell, *d_h;                   /* of the state before a step, [B, ...], and scratch */
    const REAL *d_after, *d_errors;                   /* of hidden and read-out after each step, [T, B, d_h + d_v]; of errors */
} Tape;

static int64_t top_of(const Tape *tape) { return tape->sizes[tape->layers]; }

#include "fast_gradient.h"

/* Steps of size `steps` [L] towards `expected` [H, total] at `at` = t B + b, then the read. */
static void write_and_read(const Tape *tape, int64_t b, int64_t at, const REAL *steps, const REAL *expected) {
    const int64_t heads = tape->heads, key = tape->sizes[0], padded_key = PADDED(key);
    REAL keys[2 * heads * padded_key];
    memset(keys, 0, sizeof keys);
    for (int64_t i = 0; i < 2 * heads; i++)
        memcpy(keys + i * padded_key, tape->interactions + at * tape->width + i * key, sizeof(REAL) * key);
    const REAL *y_below = keys, *z_below = keys + heads * padded_key;
    for (int64_t l = 0; l < tape->layers; l++) {
        const int64_t size = tape->sizes[l + 1], n = PADDED(tape->sizes[l]), m = PADDED(size);
        REAL *matrix = tape->m[l] + b * UP(size, LANES) * n, *z = tape->z[l] + at * heads * m, *e = tape->e[l] + at * heads * m;
        REAL *y = tape->y[l] + at * 2 * heads * m, write[heads * m];
        const int tanh_follows = l + 1 < tape->layers || tape->squash_last;

        memset(z, 0, sizeof(REAL) * heads * m);
        memset(y, 0, sizeof(REAL) * 2 * heads * m);
        for (int64_t j = 0; j < size; j += LANES) dots(z_below, heads, matrix + j * n, n, z + j, m);
        if (tanh_follows) squash(z, heads * m);
        for (int64_t i = 0; i < heads; i++, expected += tape->total) {
            for (int64_t j = 0; j < m; j++) e[i * m + j] = j < size ? z[i * m + j] - expected[j] : 0;
            for (int64_t j = 0; j < m; j++) write[i * m + j] = -steps[l] * e[i * m + j];
        }
        expected += size - heads * tape->total;
        for (int64_t j = 0; j < size; j += LANES) {
            spread(matrix + j * n, write + j, m, z_below, heads, n);
            dots(y_below, 2 * heads, matrix + j * n, n, y + j, m);
        }
        if (tanh_follows) squash(y, 2 * heads * m);
        y_below = y, z_below = z;
    }
}

/* Steps first ... last - 1 of the batch entries begin ... end - 1. `gates` contains the input's part of the
   pre-activations, with biases. */
void NAME(forward)(const Tape *tape, int64_t first, int64_t last, int64_t begin, int64_t end) {
    const int64_t rows = end - begin, d_h = tape->hidden, heads = tape->heads, width = tape->width, d_k = tape->sizes[0];
    const int64_t d_v = top_of(tape), before = d_h + d_v, padded_top = PADDED(d_v), told = 2 * heads * d_k;
    for (int64_t t = first; t < last; t++) {
        const int64_t at = t * tape->batch + begin, next = at + tape->batch;
        REAL *gates = tape->gates + at * 4 * d_h, *vectors = tape->interactions + at * width;
        REAL *expected = tape->expected + begin * heads * tape->total;

        /* controller: h_t = LSTM(x_t, v^r_{t-1}, h_{t-1}) */
        product(tape->carried + at * before, before, rows, tape->recurrent, before, 4 * d_h, gates, 4 * d_h);
        for (int64_t r = 0; r < rows; r++) {
            lstm_row(
                gates + r * 4 * d_h, tape->cells + (at + r) * d_h, tape->cells + (next + r) * d_h,
                tape->tanh_cells + (at + r) * d_h, tape->carried + (next + r) * before, d_h);
            memcpy(vectors + r * width, tape->interaction_bias, sizeof(REAL) * width);
            for (int64_t i = 0; i < heads; i++)
                memcpy(expected + (r * heads + i) * tape->total, tape->feedback_bias, sizeof(REAL) * tape->total);
        }

        /* eq. (1) */
        product(tape->carried + next * before, before, rows, tape->interaction, d_h, width, vectors, width);
        squash(vectors, rows * width);
        for (int64_t i = 0; i < heads; i++)
            product(
                vectors + told + i * d_v, width, rows, tape->feedback, d_v, tape->total, expected + i * tape->total,
                heads * tape->total);

        for (int64_t r = 0; r < rows; r++) {
            REAL *beta = tape->betas + (at + r) * tape->rates, steps[MAX_LAYERS];
            const REAL *rate_in = vectors + (r + 1) * width - d_k;
            for (int64_t l = 0; l < tape->rates; l++) {
                beta[l] = tape->rate_bias[l];
                for (int64_t k = 0; k < d_k; k++) beta[l] += tape->rate[l * d_k + k] * rate_in[k];
            }
            sigmoid(beta, tape->rates);
            for (int64_t l = 0; l < tape->layers; l++) steps[l] = beta[tape->rates > 1 ? l : 0] / tape->divisors[l];
            if (tape->total)
                write_and_read(tape, begin + r, at + r, steps, expected + r * heads * tape->total);
            else
                gradient_and_read(tape, begin + r, at + r, steps);
            REAL *read = tape->carried + (next + r) * before + d_h, error = 0;
            const REAL *y = tape->y[tape->layers - 1] + (at + r) * 2 * heads * padded_top, *v = vectors + r * width + told;
            memset(read, 0, sizeof(REAL) * d_v);
            for (int64_t i = 0; i < heads; i++, v += d_v, y += padded_top) {
                const REAL *recalled = y + heads * padded_top;
                for (int64_t k = 0; k < d_v; k++) read[k] += y[k];
                for (int64_t k = 0; k < d_v; k++) error += (recalled[k] - v[k]) * (recalled[k] - v[k]);
            }
            for (int64_t k = 0; k < d_v; k++) read[k] /= heads;
            tape->errors[at + r] = error;
        }
    }
}

/* From d_y [2H, PADDED(d_v)], which is overwritten: d_expected [H, total], d_keys [2H, d_k], d_steps [L]; d_m becomes
   that of the memory before the step, and m that memory. */
static void undo(
    const Tape *tape, int64_t b, int64_t at, const REAL *steps, REAL *d_y, REAL *d_expected, REAL *d_keys, REAL *d_steps) {
    const int64_t heads = tape->heads, key = tape->sizes[0], padded_key = PADDED(key);
    int64_t widest = 0, passed = tape->total;
    for (int64_t l = 0; l <= tape->layers; l++) widest = PADDED(tape->sizes[l]) > widest ? PADDED(tape->sizes[l]) : widest;
    REAL keys[2 * heads * padded_key], d_z[heads * widest], lower_y[2 * heads * widest], lower_z[heads * widest];
    REAL write[heads * widest], undone[heads * widest], d_e[heads * widest];
    memset(keys, 0, sizeof keys);
    memset(d_z, 0, sizeof d_z);
    for (int64_t i = 0; i < 2 * heads; i++)
        memcpy(keys + i * padded_key, tape->interactions + at * tape->width + i * key, sizeof(REAL) * key);
    for (int64_t l = tape->layers - 1; l >= 0; l--) {
        const int64_t size = tape->sizes[l + 1], n = PADDED(tape->sizes[l]), m = PADDED(size);
        REAL *matrix = tape->m[l] + b * UP(size, LANES) * n, *d_m = tape->d_m[l] + b * UP(size, LANES) * n;
        const REAL *z = tape->z[l] + at * heads * m, *e = tape->e[l] + at * heads * m;
        const REAL *y = tape->y[l] + at * 2 * heads * m;
        const REAL *y_below = l ? tape->y[l - 1] + at * 2 * heads * n : keys;
        const REAL *z_below = l ? tape->z[l - 1] + at * heads * n : keys + heads * n;
        const REAL step = steps[l];
        const int tanh_follows = l + 1 < tape->layers || tape->squash_last;
        passed -= size;

        if (tanh_follows)
            for (int64_t k = 0; k < 2 * heads * m; k++) d_y[k] *= 1 - y[k] * y[k];
        for (int64_t k = 0; k < heads * m; k++) undone[k] = step * e[k], write[k] = -undone[k];
        memset(lower_y, 0, sizeof(REAL) * 2 * heads * n);
        memset(lower_z, 0, sizeof(REAL) * heads * n);
        memset(d_e, 0, sizeof(REAL) * heads * m);
        for (int64_t j = 0; j < size; j += LANES) {
            REAL *rows = matrix + j * n, *d_rows = d_m + j * n;
            /* the read, and the write, which is undone */
            spread(d_rows, d_y + j, m, y_below, 2 * heads, n);
            dots(z_below, heads, d_rows, n, d_e + j, m);
            gather(lower_y, d_y + j, m, rows, 2 * heads, n);
            gather(lower_z, write + j, m, d_rows, heads, n);
            for (int64_t i = 0; i < heads; i++) {
                const Lanes own = GET(Lanes, z + i * m + j);
                Lanes d_own = GET(Lanes, d_z + i * m + j) - step * GET(Lanes, d_e + i * m + j);
                if (tanh_follows) d_own *= 1 - own * own;
                AT(Lanes, d_z + i * m + j) = d_own;
            }
            spread(rows, undone + j, m, z_below, heads, n);
            /* what was expected to be written over */
            spread(d_rows, d_z + j, m, z_below, heads, n);
            gather(lower_z, d_z + j, m, rows, heads, n);
        }
        REAL d_step = 0;
        for (int64_t k = 0; k < heads * m; k++) d_step -= d_e[k] * e[k];
        d_steps[l] = d_step;
        for (int64_t i = 0; i < heads; i++)
            for (int64_t j = 0; j < size; j++) d_expected[i * tape->total + passed + j] = step * d_e[i * m + j];
        memcpy(d_y, lower_y, sizeof(REAL) * 2 * heads * n);
        memcpy(d_z, lower_z, sizeof(REAL) * heads * n);
    }
    for (int64_t i = 0; i < 2 * heads; i++) {
        memcpy(d_keys + i * key, d_y + i * padded_key, sizeof(REAL) * key);
        for (int64_t k = 0; i >= heads && k < key; k++) d_keys[i * key + k] += d_z[(i - heads) * padded_key + k];
    }
}

/* Backward pass over the steps first ... last - 1 for the batch entries begin ... end - 1, from the last step to the
   first. d_cell, d_carried and d_m contain the gradients of the state after `last` and are overwritten by those of the
   state before `first`, without the gradients in d_after and d_errors. The arrays of the steps' own gradients begin at
   `first`. */
void NAME(backward)(const Tape *tape, int64_t first, int64_t last, int64_t begin, int64_t end) {
    const int64_t rows = end - begin, d_h = tape->hidden, heads = tape->heads, width = tape->width, d_k = tape->sizes[0];
    const int64_t d_v = top_of(tape), before = d_h + d_v, padded_top = PADDED(d_v), told = 2 * heads * d_k;
    int64_t widest = 0;
    for (int64_t l = 0; l <= tape->layers; l++) widest = PADDED(tape->sizes[l]) > widest ? PADDED(tape->sizes[l]) : widest;
    REAL d_y[2 * heads * widest];
    for (int64_t t = last - 1; t >= first; t--) {
        const int64_t at = t * tape->batch + begin, own = at - first * tape->batch;
        REAL *d_vectors = tape->d_interactions + own * width, *d_gates = tape->d_gates + own * 4 * d_h;
        REAL *d_expected = tape->expected + own * heads * tape->total;
        REAL *d_carried = tape->d_carried + begin * before, *d_hidden = tape->d_h + begin * d_h;
        for (int64_t r = 0; r < rows; r++) {
            const REAL *beta = tape->betas + (at + r) * tape->rates, *d_after = tape->d_after + (at + r) * before;
            const REAL *y = tape->y[tape->layers - 1] + ((at + r) * 2 + 1) * heads * padded_top;
            const REAL *v = tape->interactions + (at + r) * width + told, twice = 2 * tape->d_errors[at + r];
            REAL *d_vector = d_vectors + r * width, steps[MAX_LAYERS], d_steps[MAX_LAYERS];
            for (int64_t k = 0; k < before; k++) d_carried[r * before + k] += d_after[k];
            memset(d_y, 0, sizeof d_y);
            for (int64_t i = 0; i < heads; i++) {
                REAL *d_head = d_y + i * padded_top, *d_recalled = d_head + heads * padded_top;
                const REAL *d_read = d_carried + r * before + d_h;
                for (int64_t k = 0; k < d_v; k++) d_head[k] = d_read[k] / heads;
                for (int64_t k = 0; k < d_v; k++) d_recalled[k] = twice * (y[i * padded_top + k] - v[i * d_v + k]);
                for (int64_t k = 0; k < d_v; k++) d_vector[told + i * d_v + k] = -d_recalled[k];
            }
            for (int64_t l = 0; l < tape->layers; l++) steps[l] = beta[tape->rates > 1 ? l : 0] / tape->divisors[l];
            if (tape->total)
                undo(tape, begin + r, at + r, steps, d_y, d_expected + r * heads * tape->total, d_vector, d_steps);
            else
                undo_gradient(tape, begin + r, at + r, steps, d_y, d_vector + told, d_vector, d_steps);
            REAL *d_rate = tape->d_rates + (own + r) * tape->rates, *d_rate_in = d_vector + width - d_k;
            memset(d_rate, 0, sizeof(REAL) * tape->rates);
            memset(d_rate_in, 0, sizeof(REAL) * d_k);
            for (int64_t l = 0; l < tape->layers; l++) d_rate[tape->rates > 1 ? l : 0] += d_steps[l] / tape->divisors[l];
            for (int64_t l = 0; l < tape->rates; l++) {
                d_rate[l] *= beta[l] * (1 - beta[l]);
                for (int64_t k = 0; k < d_k; k++) d_rate_in[k] += d_rate[l] * tape->rate[l * d_k + k];
            }
            memcpy(d_hidden + r * d_h, d_carried + r * before, sizeof(REAL) * d_h);
        }

        /* interaction vectors, eq. (1) */
        for (int64_t i = 0; i < heads && tape->total; i++)
            product(
                d_expected + i * tape->total, heads * tape->total, rows, tape->feedback, tape->total, d_v,
                d_vectors + told + i * d_v, width);
        const REAL *restrict vectors = tape->interactions + at * width;
        for (int64_t k = 0; k < rows * width; k++) d_vectors[k] *= 1 - vectors[k] * vectors[k];
        product(d_vectors, width, rows, tape->interaction, width, d_h, d_hidden, d_h);

        /* controller */
        for (int64_t r = 0; r < rows; r++)
            lstm_row_back(
                tape->gates + (at + r) * 4 * d_h, tape->cells + (at + r) * d_h, tape->tanh_cells + (at + r) * d_h,
                d_hidden + r * d_h, d_gates + r * 4 * d_h, tape->d_cell + (begin + r) * d_h, d_h);
        memset(d_carried, 0, sizeof(REAL) * rows * before);
        product(d_gates, 4 * d_h, rows, tape->recurrent, 4 * d_h, before, d_carried, before);
    }
}
