/* SALU over time, forward and backward; see fast_native.py. Equations and symbols as in memory.py.

   A table [B, slots, H, width] contains the C carried steps, then the new ones: step t writes slot C + t and reads those
   of the slots t + 1 ... t + C that belong to its episode. Vectors are rows. Compiled twice, for REAL float and
   double. */

#include "cells.h"
#include "packed.h"
#include "products.h"

typedef struct {
    int64_t batch, hidden, heads, key, value, capacity, slots;
    const REAL *recurrent, *interaction, *bias; /* packed, except the bias of the interaction */
    const uint8_t *starts;                      /* [T, B] */
    int64_t *first;                             /* [T + 1, B]: first slot of the episode before each step */
    REAL *gates, *inputs, *cells, *tanh_cells;  /* [T, B, 4 d_h], [T, B, d_h + d_v], [T + 1, B, d_h], [T, B, d_h] */
    REAL *after, *vectors, *weights;            /* [T, B, d_h + d_v], [T, B, H (2 d_k + d_v)], [T, B, H, C H] */
    REAL *keys, *values;
    const REAL *d_after; /* this and all below: backward only */
    REAL *d_gates, *d_vectors, *d_before, *d_cell, *d_hidden, *d_keys, *d_values;
} Tape;

/* The rows that a step reads: their number, and offsets into keys, values and read weights. */
typedef struct {
    int64_t count, keys, values, weights;
} Rows;

static Rows rows_of(const Tape *tape, int64_t t, int64_t b) {
    const int64_t at = t * tape->batch + b, episode_start = tape->first[at + tape->batch], heads = tape->heads;
    const int64_t first = episode_start > t + 1 ? episode_start : t + 1, row = (b * tape->slots + first) * heads;
    const int64_t weights = at * heads * heads * tape->capacity + (first - t - 1) * heads;
    return (Rows){(tape->capacity + t + 1 - first) * heads, row * tape->key, row * tape->value, weights};
}

/* v^r = (1/H) Σ_i V' softmax(K k^r_i / √d_k) */
static void attend(const Tape *tape, int64_t t, int64_t b, REAL *read) {
    const int64_t heads = tape->heads, d_k = tape->key, d_v = tape->value, stride = heads * tape->capacity;
    const int64_t at = t * tape->batch + b, vectors_size = heads * (2 * d_k + d_v);
    const Rows rows = rows_of(tape, t, b);
    const REAL *read_keys = tape->vectors + at * vectors_size, *keys = tape->keys + rows.keys,
               *values = tape->values + rows.values;
    REAL scores[heads * stride], mean[stride], *a = tape->weights + rows.weights;
    int64_t r = 0;
    for (; r + ROWS <= rows.count; r += ROWS) dots(read_keys, heads, keys + r * d_k, d_k, d_k, scores + r, stride);
    for (; r < rows.count; r++)
        for (int64_t i = 0; i < heads; i++) scores[i * stride + r] = dot(read_keys + i * d_k, keys + r * d_k, d_k);
    memset(mean, 0, sizeof mean);
    for (int64_t i = 0; i < heads; i++) {
        softmax(a + i * stride, scores + i * stride, 1 / (REAL)sqrt(d_k), rows.count, rows.count);
        axpy(mean, (REAL)1 / heads, a + i * stride, rows.count);
    }
    memset(read, 0, sizeof(REAL) * d_v);
    for (r = 0; r + ROWS <= rows.count; r += ROWS)
        add_weighted_rows(read, mean + r, stride, values + r * d_v, d_v, 1, d_v);
    for (; r < rows.count; r++) axpy(read, mean[r], values + r * d_v, d_v);
}

/* Steps first ... last - 1 of the batch entries begin ... end - 1. `gates` contains the input's part of the
   pre-activations, with biases. */
void NAME(forward)(const Tape *tape, int64_t first, int64_t last, int64_t begin, int64_t end) {
    const int64_t count = end - begin, d_h = tape->hidden, heads = tape->heads, width = d_h + tape->value;
    const int64_t n_keys = heads * tape->key, n_values = heads * tape->value, vectors_size = 2 * n_keys + n_values;
    for (int64_t t = first; t < last; t++) {
        const int64_t at = t * tape->batch + begin, next = at + tape->batch;
        REAL *inputs = tape->inputs + at * width, *after = tape->after + at * width,
             *gates = tape->gates + at * 4 * d_h;
        REAL *vectors = tape->vectors + at * vectors_size;
        if (t) memcpy(inputs, after - tape->batch * width, sizeof(REAL) * count * width);
        for (int64_t r = 0; r < count; r++) {
            const int starts = tape->starts[at + r];
            tape->first[next + r] = starts ? tape->capacity + t : tape->first[at + r];
            if (starts) memset(inputs + r * width, 0, sizeof(REAL) * width);
            if (starts) memset(tape->cells + (at + r) * d_h, 0, sizeof(REAL) * d_h);
            memcpy(vectors + r * vectors_size, tape->bias, sizeof(REAL) * vectors_size);
        }
        product(inputs, width, count, tape->recurrent, width, 4 * d_h, gates, 4 * d_h);
        for (int64_t r = 0; r < count; r++)
            lstm_row(
                gates + r * 4 * d_h, tape->cells + (at + r) * d_h, tape->cells + (next + r) * d_h,
                tape->tanh_cells + (at + r) * d_h, after + r * width, d_h);
        product(after, width, count, tape->interaction, d_h, vectors_size, vectors, vectors_size);
        tanh_inplace(vectors, count * vectors_size);
        for (int64_t r = 0; r < count; r++) {
            const int64_t slot = (begin + r) * tape->slots + tape->capacity + t;
            const REAL *write_keys = vectors + r * vectors_size + n_keys;
            memcpy(tape->keys + slot * n_keys, write_keys, sizeof(REAL) * n_keys);
            memcpy(tape->values + slot * n_values, write_keys + n_keys, sizeof(REAL) * n_values);
            attend(tape, t, begin + r, after + r * width + d_h);
        }
    }
}

/* Backward pass of `attend`: computes d_read_keys from d_read, which is overwritten; adds to d_keys and d_values. */
static void attend_backward(const Tape *tape, int64_t t, int64_t b, REAL *d_read, REAL *d_read_keys) {
    const int64_t heads = tape->heads, d_k = tape->key, d_v = tape->value, stride = heads * tape->capacity;
    const Rows rows = rows_of(tape, t, b);
    const REAL *read_keys = tape->vectors + (t * tape->batch + b) * heads * (2 * d_k + d_v),
               *a = tape->weights + rows.weights;
    const REAL *keys = tape->keys + rows.keys, *values = tape->values + rows.values, scale = 1 / (REAL)sqrt(d_k);
    REAL *d_keys = tape->d_keys + rows.keys, *d_values = tape->d_values + rows.values;
    REAL d_a[stride], sums[stride], d_scores[heads * stride];
    int64_t r = 0;
    for (int64_t k = 0; k < d_v; k++) d_read[k] /= heads; /* v^r is the mean over heads */
    for (; r + ROWS <= rows.count; r += ROWS) dots(d_read, 1, values + r * d_v, d_v, d_v, d_a + r, stride);
    for (; r < rows.count; r++) d_a[r] = dot(d_read, values + r * d_v, d_v);
    memset(sums, 0, sizeof sums);
    for (int64_t i = 0; i < heads; i++) {
        const REAL *a_i = a + i * stride, inner_product = dot(a_i, d_a, rows.count);
        for (r = 0; r < rows.count; r++) d_scores[i * stride + r] = scale * a_i[r] * (d_a[r] - inner_product);
        for (r = 0; r < rows.count; r++) sums[r] += a_i[r];
    }
    memset(d_read_keys, 0, sizeof(REAL) * heads * d_k);
    for (r = 0; r + ROWS <= rows.count; r += ROWS) {
        add_outer_products(d_values + r * d_v, d_v, sums + r, stride, d_read, 1, d_v);
        add_outer_products(d_keys + r * d_k, d_k, d_scores + r, stride, read_keys, heads, d_k);
        add_weighted_rows(d_read_keys, d_scores + r, stride, keys + r * d_k, d_k, heads, d_k);
    }
    for (; r < rows.count; r++) {
        axpy(d_values + r * d_v, sums[r], d_read, d_v);
        for (int64_t i = 0; i < heads; i++) {
            axpy(d_keys + r * d_k, d_scores[i * stride + r], read_keys + i * d_k, d_k);
            axpy(d_read_keys + i * d_k, d_scores[i * stride + r], keys + r * d_k, d_k);
        }
    }
}

/* Backward pass over the steps first ... last - 1 for the batch entries begin ... end - 1, from the last step to the
   first. d_before, d_cell, d_keys and d_values contain the gradients of the state after `last` and are overwritten by
   those of the state before `first`; each step adds its d_after. */
void NAME(backward)(const Tape *tape, int64_t first, int64_t last, int64_t begin, int64_t end) {
    const int64_t count = end - begin, d_h = tape->hidden, heads = tape->heads, width = d_h + tape->value;
    const int64_t n_keys = heads * tape->key, n_values = heads * tape->value, vectors_size = 2 * n_keys + n_values;
    REAL *d_before = tape->d_before + begin * width, *d_hidden = tape->d_hidden + begin * d_h;
    for (int64_t t = last - 1; t >= first; t--) {
        const int64_t at = t * tape->batch + begin;
        REAL *d_vectors = tape->d_vectors + at * vectors_size, *d_gates = tape->d_gates + at * 4 * d_h;
        for (int64_t r = 0; r < count; r++) {
            const int64_t slot = (begin + r) * tape->slots + tape->capacity + t;
            REAL *d_vector = d_vectors + r * vectors_size, *d_after = d_before + r * width;
            const REAL *restrict vectors = tape->vectors + (at + r) * vectors_size;
            axpy(d_after, 1, tape->d_after + (at + r) * width, width);
            attend_backward(tape, t, begin + r, d_after + d_h, d_vector);
            /* earlier steps do not read the rows of this step */
            memcpy(d_vector + n_keys, tape->d_keys + slot * n_keys, sizeof(REAL) * n_keys);
            memcpy(d_vector + 2 * n_keys, tape->d_values + slot * n_values, sizeof(REAL) * n_values);
            for (int64_t k = 0; k < vectors_size; k++) d_vector[k] *= 1 - vectors[k] * vectors[k];
            memcpy(d_hidden + r * d_h, d_after, sizeof(REAL) * d_h);
        }
        product(d_vectors, vectors_size, count, tape->interaction, vectors_size, d_h, d_hidden, d_h);
        for (int64_t r = 0; r < count; r++)
            lstm_row_backward(
                tape->gates + (at + r) * 4 * d_h, tape->cells + (at + r) * d_h, tape->tanh_cells + (at + r) * d_h,
                d_hidden + r * d_h, d_gates + r * 4 * d_h, tape->d_cell + (begin + r) * d_h, d_h);
        memset(d_before, 0, sizeof(REAL) * count * width);
        product(d_gates, 4 * d_h, count, tape->recurrent, 4 * d_h, width, d_before, width);
        for (int64_t r = 0; r < count; r++)
            if (tape->starts[at + r]) {
                memset(d_before + r * width, 0, sizeof(REAL) * width);
                memset(tape->d_cell + (begin + r) * d_h, 0, sizeof(REAL) * d_h);
            }
    }
}
