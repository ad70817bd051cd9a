/* MNM-p and MNM-g over time, forward and backward; see fast_native.py. Equations and symbols as in memory.py.

   Vectors are rows. z, e = z - z' and y as in fast_sequence.py; n and m are the padded widths of a layer's input and
   output. Arrays of the layers are padded with zeros to whole SIMD vectors: M^l is [B, UP(D_l, LANES), n]; z, e and y are
   [T, B, H or 2H, m]. A call processes a block of environments over several steps, so that their memories and the
   weights stay in the cache. Compiled twice, for REAL float and double. */

#include "cells.h"
#include "lanes.h"
#include "packed.h"

#define MAX_LAYERS 8

typedef struct {
    int64_t batch, hidden, heads, layers;
    int64_t interaction_size, feedback_size, rates,
        tanh_output;                                /* feedback_size: ΣD_l, or 0 for MNM-g; rates: 1 or L */
    int64_t sizes[MAX_LAYERS + 1];                  /* d_k, D_1 ... D_L */
    const REAL *divisors;                           /* [L] */
    const REAL *recurrent, *interaction, *feedback; /* packed, each for its direction */
    const REAL *interaction_bias, *rate, *rate_bias, *feedback_bias; /* rate: W_β, not packed */
    REAL *gates, *carried, *cells, *tanh_cells; /* [T, B, 4 d_h], [T + 1, B, d_h + d_v], [T + 1, B, d_h], [T, B, d_h] */
    REAL *interactions, *betas, *errors;        /* [T, B, interaction_size], [T, B, rates], [T, B] */
    REAL *m[MAX_LAYERS], *z[MAX_LAYERS], *e[MAX_LAYERS], *y[MAX_LAYERS];
    REAL *expected; /* [B, H, feedback_size]; backward: its gradient, [T, ...] */
    REAL *d_gates, *d_interactions, *d_rates, *d_m[MAX_LAYERS]; /* this and all below: backward only */
    REAL *d_carried, *d_cell, *d_h;                             /* gradients of the state, [B, ...]; d_h: scratch */
    const REAL *d_after, *d_errors; /* gradients of `carried` after each step and of errors */
} Tape;

static int64_t value_size_of(const Tape *tape) { return tape->sizes[tape->layers]; }

/* The padded width of the widest layer. */
static int64_t max_width_of(const Tape *tape) {
    int64_t width = 0;
    for (int64_t l = 0; l <= tape->layers; l++) width = PADDED(tape->sizes[l]) > width ? PADDED(tape->sizes[l]) : width;
    return width;
}

/* The read keys, then the write keys of a step, [2H, PADDED(d_k)]. */
static void load_keys(const Tape *tape, int64_t at, REAL *keys) {
    const int64_t d_k = tape->sizes[0], padded = PADDED(d_k);
    memset(keys, 0, sizeof(REAL) * 2 * tape->heads * padded);
    for (int64_t i = 0; i < 2 * tape->heads; i++)
        memcpy(keys + i * padded, tape->interactions + at * tape->interaction_size + i * d_k, sizeof(REAL) * d_k);
}

#include "fast_gradient.h"

/* Eq. (4) with step sizes `steps` [L] and expected activations `expected` [H, feedback_size], then the read; `at` is
   t B + b. */
static void write_and_read(const Tape *tape, int64_t b, int64_t at, const REAL *steps, const REAL *expected) {
    const int64_t heads = tape->heads, d_k = tape->sizes[0], padded_d_k = PADDED(d_k);
    REAL keys[2 * heads * padded_d_k];
    load_keys(tape, at, keys);
    const REAL *y_below = keys, *z_below = keys + heads * padded_d_k;
    for (int64_t l = 0; l < tape->layers; l++) {
        const int64_t size = tape->sizes[l + 1], n = PADDED(tape->sizes[l]), m = PADDED(size);
        REAL *matrix = tape->m[l] + b * UP(size, LANES) * n, *z = tape->z[l] + at * heads * m,
             *e = tape->e[l] + at * heads * m;
        REAL *y = tape->y[l] + at * 2 * heads * m, write[heads * m];
        const int has_tanh = l + 1 < tape->layers || tape->tanh_output;

        memset(z, 0, sizeof(REAL) * heads * m);
        memset(y, 0, sizeof(REAL) * 2 * heads * m);
        for (int64_t j = 0; j < size; j += LANES) dots(z_below, heads, matrix + j * n, n, z + j, m);
        if (has_tanh) tanh_inplace(z, heads * m);
        for (int64_t i = 0; i < heads; i++, expected += tape->feedback_size) {
            for (int64_t j = 0; j < m; j++) e[i * m + j] = j < size ? z[i * m + j] - expected[j] : 0;
            for (int64_t j = 0; j < m; j++) write[i * m + j] = -steps[l] * e[i * m + j];
        }
        expected += size - heads * tape->feedback_size;
        for (int64_t j = 0; j < size; j += LANES) {
            add_outer_products(matrix + j * n, write + j, m, z_below, heads, n);
            dots(y_below, 2 * heads, matrix + j * n, n, y + j, m);
        }
        if (has_tanh) tanh_inplace(y, 2 * heads * m);
        y_below = y, z_below = z;
    }
}

/* Steps first ... last - 1 of the batch entries begin ... end - 1. `gates` contains the input's part of the
   pre-activations, with biases. */
void NAME(forward)(const Tape *tape, int64_t first, int64_t last, int64_t begin, int64_t end) {
    const int64_t rows = end - begin, d_h = tape->hidden, heads = tape->heads, width = tape->interaction_size,
                  d_k = tape->sizes[0];
    const int64_t d_v = value_size_of(tape), carried_size = d_h + d_v, padded_value = PADDED(d_v),
                  value_offset = 2 * heads * d_k;
    for (int64_t t = first; t < last; t++) {
        const int64_t at = t * tape->batch + begin, next = at + tape->batch;
        REAL *gates = tape->gates + at * 4 * d_h, *vectors = tape->interactions + at * width;
        REAL *expected = tape->expected + begin * heads * tape->feedback_size;

        /* controller: h_t = LSTM(x_t, v^r_{t-1}, h_{t-1}) */
        product(
            tape->carried + at * carried_size, carried_size, rows, tape->recurrent, carried_size, 4 * d_h, gates,
            4 * d_h);
        for (int64_t r = 0; r < rows; r++) {
            lstm_row(
                gates + r * 4 * d_h, tape->cells + (at + r) * d_h, tape->cells + (next + r) * d_h,
                tape->tanh_cells + (at + r) * d_h, tape->carried + (next + r) * carried_size, d_h);
            memcpy(vectors + r * width, tape->interaction_bias, sizeof(REAL) * width);
            for (int64_t i = 0; i < heads; i++)
                memcpy(
                    expected + (r * heads + i) * tape->feedback_size, tape->feedback_bias,
                    sizeof(REAL) * tape->feedback_size);
        }

        /* eq. (1) */
        product(tape->carried + next * carried_size, carried_size, rows, tape->interaction, d_h, width, vectors, width);
        tanh_inplace(vectors, rows * width);
        for (int64_t i = 0; i < heads; i++)
            product(
                vectors + value_offset + i * d_v, width, rows, tape->feedback, d_v, tape->feedback_size,
                expected + i * tape->feedback_size, heads * tape->feedback_size);

        for (int64_t r = 0; r < rows; r++) {
            REAL *beta = tape->betas + (at + r) * tape->rates, steps[MAX_LAYERS];
            const REAL *rate_input = vectors + (r + 1) * width - d_k;
            for (int64_t l = 0; l < tape->rates; l++) {
                beta[l] = tape->rate_bias[l];
                for (int64_t k = 0; k < d_k; k++) beta[l] += tape->rate[l * d_k + k] * rate_input[k];
            }
            sigmoid_inplace(beta, tape->rates);
            for (int64_t l = 0; l < tape->layers; l++) steps[l] = beta[tape->rates > 1 ? l : 0] / tape->divisors[l];
            if (tape->feedback_size)
                write_and_read(tape, begin + r, at + r, steps, expected + r * heads * tape->feedback_size);
            else
                gradient_and_read(tape, begin + r, at + r, steps);
            REAL *read = tape->carried + (next + r) * carried_size + d_h, error = 0;
            const REAL *y = tape->y[tape->layers - 1] + (at + r) * 2 * heads * padded_value,
                       *v = vectors + r * width + value_offset;
            memset(read, 0, sizeof(REAL) * d_v);
            for (int64_t i = 0; i < heads; i++, v += d_v, y += padded_value) {
                const REAL *recalled = y + heads * padded_value;
                for (int64_t k = 0; k < d_v; k++) read[k] += y[k];
                for (int64_t k = 0; k < d_v; k++) error += (recalled[k] - v[k]) * (recalled[k] - v[k]);
            }
            for (int64_t k = 0; k < d_v; k++) read[k] /= heads;
            tape->errors[at + r] = error;
        }
    }
}

/* Backward pass of `write_and_read`. Computes d_expected [H, feedback_size], d_keys [2H, d_k] and d_steps [L] from d_y
   [2H, PADDED(d_v)], which is overwritten. Undoes the write: m becomes the memory before the step, d_m its gradient. */
static void write_and_read_backward(
    const Tape *tape, int64_t b, int64_t at, const REAL *steps, REAL *d_y, REAL *d_expected, REAL *d_keys,
    REAL *d_steps) {
    const int64_t heads = tape->heads, d_k = tape->sizes[0], padded_d_k = PADDED(d_k);
    const int64_t max_width = max_width_of(tape);
    int64_t offset = tape->feedback_size; /* of a layer in `expected` */
    REAL keys[2 * heads * padded_d_k], d_z[heads * max_width], d_y_below[2 * heads * max_width],
        d_z_below[heads * max_width];
    REAL write[heads * max_width], undo_write[heads * max_width], d_e[heads * max_width];
    load_keys(tape, at, keys);
    memset(d_z, 0, sizeof d_z);
    for (int64_t l = tape->layers - 1; l >= 0; l--) {
        const int64_t size = tape->sizes[l + 1], n = PADDED(tape->sizes[l]), m = PADDED(size);
        REAL *matrix = tape->m[l] + b * UP(size, LANES) * n, *d_m = tape->d_m[l] + b * UP(size, LANES) * n;
        const REAL *z = tape->z[l] + at * heads * m, *e = tape->e[l] + at * heads * m;
        const REAL *y = tape->y[l] + at * 2 * heads * m;
        const REAL *y_below = l ? tape->y[l - 1] + at * 2 * heads * n : keys;
        const REAL *z_below = l ? tape->z[l - 1] + at * heads * n : keys + heads * n;
        const REAL step = steps[l];
        const int has_tanh = l + 1 < tape->layers || tape->tanh_output;
        offset -= size;

        if (has_tanh)
            for (int64_t k = 0; k < 2 * heads * m; k++) d_y[k] *= 1 - y[k] * y[k];
        for (int64_t k = 0; k < heads * m; k++) undo_write[k] = step * e[k], write[k] = -undo_write[k];
        memset(d_y_below, 0, sizeof(REAL) * 2 * heads * n);
        memset(d_z_below, 0, sizeof(REAL) * heads * n);
        memset(d_e, 0, sizeof(REAL) * heads * m);
        for (int64_t j = 0; j < size; j += LANES) {
            REAL *rows = matrix + j * n, *d_rows = d_m + j * n;
            /* gradients of the read and of the write; the write is undone */
            add_outer_products(d_rows, d_y + j, m, y_below, 2 * heads, n);
            dots(z_below, heads, d_rows, n, d_e + j, m);
            add_weighted_rows(d_y_below, d_y + j, m, rows, 2 * heads, n);
            add_weighted_rows(d_z_below, write + j, m, d_rows, heads, n);
            for (int64_t i = 0; i < heads; i++) {
                const Lanes z_old = GET(Lanes, z + i * m + j);
                Lanes d_z_new = GET(Lanes, d_z + i * m + j) - step * GET(Lanes, d_e + i * m + j);
                if (has_tanh) d_z_new *= 1 - z_old * z_old;
                AT(Lanes, d_z + i * m + j) = d_z_new;
            }
            add_outer_products(rows, undo_write + j, m, z_below, heads, n);
            /* gradient through the old activations z */
            add_outer_products(d_rows, d_z + j, m, z_below, heads, n);
            add_weighted_rows(d_z_below, d_z + j, m, rows, heads, n);
        }
        REAL d_step = 0;
        for (int64_t k = 0; k < heads * m; k++) d_step -= d_e[k] * e[k];
        d_steps[l] = d_step;
        for (int64_t i = 0; i < heads; i++)
            for (int64_t j = 0; j < size; j++) d_expected[i * tape->feedback_size + offset + j] = step * d_e[i * m + j];
        memcpy(d_y, d_y_below, sizeof(REAL) * 2 * heads * n);
        memcpy(d_z, d_z_below, sizeof(REAL) * heads * n);
    }
    for (int64_t i = 0; i < 2 * heads; i++) {
        memcpy(d_keys + i * d_k, d_y + i * padded_d_k, sizeof(REAL) * d_k);
        for (int64_t k = 0; i >= heads && k < d_k; k++) d_keys[i * d_k + k] += d_z[(i - heads) * padded_d_k + k];
    }
}

/* Backward pass over the steps first ... last - 1 for the batch entries begin ... end - 1, from the last step to the
   first. d_cell, d_carried and d_m contain the gradients of the state after `last`, which are overwritten by those of the
   state before `first`; each step adds its d_after and d_errors. d_gates, d_interactions, d_rates and `expected` begin with
   step `first`. */
void NAME(backward)(const Tape *tape, int64_t first, int64_t last, int64_t begin, int64_t end) {
    const int64_t rows = end - begin, d_h = tape->hidden, heads = tape->heads, width = tape->interaction_size,
                  d_k = tape->sizes[0];
    const int64_t d_v = value_size_of(tape), carried_size = d_h + d_v, padded_value = PADDED(d_v),
                  value_offset = 2 * heads * d_k;
    const int64_t max_width = max_width_of(tape);
    REAL d_y[2 * heads * max_width];
    for (int64_t t = last - 1; t >= first; t--) {
        const int64_t at = t * tape->batch + begin, grad_at = at - first * tape->batch;
        REAL *d_vectors = tape->d_interactions + grad_at * width, *d_gates = tape->d_gates + grad_at * 4 * d_h;
        REAL *d_expected = tape->expected + grad_at * heads * tape->feedback_size;
        REAL *d_carried = tape->d_carried + begin * carried_size, *d_hidden = tape->d_h + begin * d_h;
        for (int64_t r = 0; r < rows; r++) {
            const REAL *beta = tape->betas + (at + r) * tape->rates, *d_after = tape->d_after + (at + r) * carried_size;
            const REAL *y = tape->y[tape->layers - 1] + ((at + r) * 2 + 1) * heads * padded_value;
            const REAL *v = tape->interactions + (at + r) * width + value_offset, d_error = 2 * tape->d_errors[at + r];
            REAL *d_vector = d_vectors + r * width, steps[MAX_LAYERS], d_steps[MAX_LAYERS];
            for (int64_t k = 0; k < carried_size; k++) d_carried[r * carried_size + k] += d_after[k];
            memset(d_y, 0, sizeof d_y);
            for (int64_t i = 0; i < heads; i++) {
                REAL *d_head = d_y + i * padded_value, *d_recalled = d_head + heads * padded_value;
                const REAL *d_read = d_carried + r * carried_size + d_h;
                for (int64_t k = 0; k < d_v; k++) d_head[k] = d_read[k] / heads;
                for (int64_t k = 0; k < d_v; k++) d_recalled[k] = d_error * (y[i * padded_value + k] - v[i * d_v + k]);
                for (int64_t k = 0; k < d_v; k++) d_vector[value_offset + i * d_v + k] = -d_recalled[k];
            }
            for (int64_t l = 0; l < tape->layers; l++) steps[l] = beta[tape->rates > 1 ? l : 0] / tape->divisors[l];
            if (tape->feedback_size)
                write_and_read_backward(
                    tape, begin + r, at + r, steps, d_y, d_expected + r * heads * tape->feedback_size, d_vector,
                    d_steps);
            else
                gradient_and_read_backward(
                    tape, begin + r, at + r, steps, d_y, d_vector + value_offset, d_vector, d_steps);
            REAL *d_rate = tape->d_rates + (grad_at + r) * tape->rates, *d_rate_input = d_vector + width - d_k;
            memset(d_rate, 0, sizeof(REAL) * tape->rates);
            memset(d_rate_input, 0, sizeof(REAL) * d_k);
            for (int64_t l = 0; l < tape->layers; l++)
                d_rate[tape->rates > 1 ? l : 0] += d_steps[l] / tape->divisors[l];
            for (int64_t l = 0; l < tape->rates; l++) {
                d_rate[l] *= beta[l] * (1 - beta[l]);
                for (int64_t k = 0; k < d_k; k++) d_rate_input[k] += d_rate[l] * tape->rate[l * d_k + k];
            }
            memcpy(d_hidden + r * d_h, d_carried + r * carried_size, sizeof(REAL) * d_h);
        }

        /* interaction vectors, eq. (1) */
        for (int64_t i = 0; i < heads && tape->feedback_size; i++)
            product(
                d_expected + i * tape->feedback_size, heads * tape->feedback_size, rows, tape->feedback,
                tape->feedback_size, d_v, d_vectors + value_offset + i * d_v, width);
        const REAL *restrict vectors = tape->interactions + at * width;
        for (int64_t k = 0; k < rows * width; k++) d_vectors[k] *= 1 - vectors[k] * vectors[k];
        product(d_vectors, width, rows, tape->interaction, width, d_h, d_hidden, d_h);

        /* controller */
        for (int64_t r = 0; r < rows; r++)
            lstm_row_backward(
                tape->gates + (at + r) * 4 * d_h, tape->cells + (at + r) * d_h, tape->tanh_cells + (at + r) * d_h,
                d_hidden + r * d_h, d_gates + r * 4 * d_h, tape->d_cell + (begin + r) * d_h, d_h);
        memset(d_carried, 0, sizeof(REAL) * rows * carried_size);
        product(d_gates, 4 * d_h, rows, tape->recurrent, 4 * d_h, carried_size, d_carried, carried_size);
    }
}
