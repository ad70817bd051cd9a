/* Kanerva++ with a controller over time, forward and backward; see fast_blocks.py. Equations and symbols as in
   blocks.py.

   Blocks and windows are at positions between cells: each covers a patch of (B + 1)² cells of every channel. The
   forward pass stores the patches before the write and as read, so that the backward pass needs only the memory's
   gradient. A call processes a block of environments over several steps, so that their memories and the weights stay in
   the cache. Compiled twice, for REAL float and double. */

#include "activations.h"
#include "cells.h"
#include "denormals.h"
#include "packed.h"

#define CROP 4 /* B: with larger blocks the prior has several layers, and the equations step the memory */
#define PATCH (CROP + 1)
#define EPS ((REAL)1e-5)

typedef struct {
    int64_t batch, hidden, read, channels, size, heads, features;
    const uint8_t *starts;          /* [T, B], or NULL */
    const REAL *write_mask, *zeros; /* [T, B]: 0 where the input is not written, else 1; H zeros */
    const REAL *recurrent, *emit, *point, *prior, *readout; /* packed for the forward or backward pass */
    const REAL *emit_bias, *point_bias, *prior_bias, *readout_bias;
    REAL *gates, *tanh_cells, *cells; /* [T, B, 4 H], [T, B, H], [T + 1, B, H] */
    REAL *before, *after;             /* [T, B, H + R]: hidden state and read-out */
    REAL *normalised, *scales;        /* E, [T, B, H]; 1 / deviation of the hidden state, [T, B] */
    REAL *emitted, *corners;          /* [T, B, emitted_size_of]; [T, B, 1 + K, 2] in cells */
    REAL *old_patches, *read_patches,
        *windows_and_features; /* patches, [T, B, (K,) C, (B + 1)²]; windows [C, K, B, B], then features */
    REAL *memory;              /* [B, C, S, S] */
    const REAL *d_after, *d_features, *d_corners; /* of the outputs; [T, B, F] or NULL; [B, 1 + K, 2], last step */
    REAL *d_gates, *d_emitted, *d_sums, *d_read;  /* [T, B, ...]; d_sums: pre-activations of the features */
    REAL *d_carried, *d_cell, *d_memory;          /* of the state, [B, ...] */
    REAL *d_windows_and_features, *d_normalised;  /* scratch, [B, W + F], [B, H] */
} Tape;

static int64_t block_of(const Tape *tape) { return tape->channels * CROP * CROP; }
static int64_t patch_of(const Tape *tape) { return tape->channels * PATCH * PATCH; }
static int64_t windows_of(const Tape *tape) { return tape->heads * block_of(tape); }
/* Write gate and block, from E; keys of the block and of the windows, from the hidden state */
static int64_t contents_of(const Tape *tape) { return 1 + block_of(tape); }
static int64_t keys_of(const Tape *tape) { return 2 * (1 + tape->heads); }
static int64_t emitted_size_of(const Tape *tape) { return contents_of(tape) + keys_of(tape); }
static int starts_at(const Tape *tape, int64_t at) { return tape->starts && tape->starts[at]; }

/* (S - B) Φ(y): the first row or column of the block at a key, and its derivative. */
static REAL corner_at(const Tape *tape, REAL key) {
    return (tape->size - CROP) * (REAL)0.5 * (1 + (REAL)erf(key * (REAL)0.70710678118654752));
}
static REAL corner_derivative(const Tape *tape, REAL key) {
    return (tape->size - CROP) * (REAL)0.39894228040143268 * (REAL)exp(-key * key / 2);
}

/* The first cell of a patch, and the fractions, 0..1, by which the block is offset from it. */
typedef struct {
    int64_t row, column;
    REAL row_fraction, column_fraction;
} Position;

static Position position_at(const Tape *tape, const REAL *corner) {
    const int64_t maximum = tape->size - CROP - 1;
    Position s = {(int64_t)corner[1], (int64_t)corner[0], 0, 0};
    s.row = s.row > maximum ? maximum : s.row, s.column = s.column > maximum ? maximum : s.column;
    s.row_fraction = corner[1] - s.row, s.column_fraction = corner[0] - s.column;
    return s;
}

/* The share of row i of a patch that its block covers: 1, except in the first and the last row. */
INLINE REAL coverage(int64_t i, REAL fraction) { return i == 0 ? 1 - fraction : i == CROP ? fraction : 1; }

/* A row of a block, interpolated to a row of its patch. */
INLINE void interpolate_row(const REAL *restrict row, REAL *restrict out, REAL fraction) {
    out[CROP] = 0;
    for (int64_t j = 0; j < CROP; j++) out[j] = (1 - fraction) * row[j];
    for (int64_t j = 0; j < CROP; j++) out[j + 1] += fraction * row[j];
}

/* M (1 - g a) + g ST⁻¹(P); old_patches: output, the patch before the write. */
INLINE void write_patch(
    const REAL *block, REAL gate, Position s, REAL *memory, REAL *restrict old_patches, int64_t channels,
    int64_t size) {
    for (int64_t c = 0; c < channels; c++, block += CROP * CROP, memory += size * size) {
        REAL previous_row[PATCH] = {0}, row[PATCH];
        for (int64_t i = 0; i <= CROP; i++, old_patches += PATCH) {
            REAL *restrict cells = memory + (s.row + i) * size + s.column;
            const REAL row_coverage = gate * coverage(i, s.row_fraction);
            if (i < CROP)
                interpolate_row(block + i * CROP, row, s.column_fraction);
            else
                memset(row, 0, sizeof row);
            for (int64_t j = 0; j <= CROP; j++) {
                const REAL placed = (1 - s.row_fraction) * row[j] + s.row_fraction * previous_row[j];
                old_patches[j] = cells[j];
                cells[j] += gate * placed - row_coverage * coverage(j, s.column_fraction) * old_patches[j];
            }
            memcpy(previous_row, row, sizeof row);
        }
    }
}

/* ST(M): a window, whose channels have stride `stride`; read_patches: output, the patch. */
INLINE void read_patch(
    const REAL *memory, Position s, REAL *restrict window, int64_t stride, REAL *restrict read_patches,
    int64_t channels, int64_t size) {
    for (int64_t c = 0; c < channels; c++, memory += size * size, read_patches += PATCH * PATCH, window += stride) {
        for (int64_t i = 0; i <= CROP; i++)
            memcpy(read_patches + i * PATCH, memory + (s.row + i) * size + s.column, sizeof(REAL) * PATCH);
        for (int64_t i = 0; i < CROP; i++) {
            const REAL *restrict row = read_patches + i * PATCH, *restrict next = row + PATCH;
            for (int64_t j = 0; j < CROP; j++)
                window[i * CROP + j] =
                    (1 - s.row_fraction) * ((1 - s.column_fraction) * row[j] + s.column_fraction * row[j + 1]) +
                    s.row_fraction * ((1 - s.column_fraction) * next[j] + s.column_fraction * next[j + 1]);
        }
    }
}

/* Backward pass of `read_patch`: adds to d_memory; sets d_position (column, row). */
INLINE void read_patch_backward(
    const REAL *read_patches, Position s, const REAL *d_window, int64_t stride, REAL *d_memory,
    REAL *restrict d_position, int64_t channels, int64_t size) {
    REAL d_column = 0, d_row_offset = 0;
    for (int64_t c = 0; c < channels; c++, d_memory += size * size, read_patches += PATCH * PATCH, d_window += stride)
        for (int64_t i = 0; i < CROP; i++) {
            const REAL *restrict row = read_patches + i * PATCH, *restrict next = row + PATCH,
                                 *restrict d = d_window + i * CROP;
            REAL *restrict d_row = d_memory + (s.row + i) * size + s.column, *restrict d_next = d_row + size;
            REAL d_patch_row[PATCH];
            for (int64_t j = 0; j < CROP; j++) {
                d_column +=
                    d[j] * ((1 - s.row_fraction) * (row[j + 1] - row[j]) + s.row_fraction * (next[j + 1] - next[j]));
                d_row_offset += d[j] * ((1 - s.column_fraction) * (next[j] - row[j]) +
                                        s.column_fraction * (next[j + 1] - row[j + 1]));
            }
            interpolate_row(d, d_patch_row, s.column_fraction);
            for (int64_t j = 0; j <= CROP; j++)
                d_row[j] += (1 - s.row_fraction) * d_patch_row[j], d_next[j] += s.row_fraction * d_patch_row[j];
        }
    d_position[0] = d_column, d_position[1] = d_row_offset;
}

/* Backward pass of `write_patch`: d_memory of the new memory is overwritten by that of the old one; sets d_block and
   d_position; returns the gradient of the gate. */
INLINE REAL write_patch_backward(
    const REAL *block, REAL gate, Position s, const REAL *old_patches, REAL *d_memory, REAL *restrict d_block,
    REAL *restrict d_position, int64_t channels, int64_t size) {
    REAL d_gate = 0, d_column = 0, d_row_offset = 0;
    for (int64_t c = 0; c < channels; c++, block += CROP * CROP, d_block += CROP * CROP, d_memory += size * size) {
        REAL previous_row[PATCH] = {0}, row[PATCH], d_previous_row[PATCH] = {0}, d_row[PATCH];
        for (int64_t i = 0; i <= CROP; i++, old_patches += PATCH) {
            REAL *restrict d = d_memory + (s.row + i) * size + s.column;
            const REAL row_coverage = coverage(i, s.row_fraction);
            REAL d_row_coverage = 0;
            if (i < CROP)
                interpolate_row(block + i * CROP, row, s.column_fraction);
            else
                memset(row, 0, sizeof row);
            for (int64_t j = 0; j <= CROP; j++) {
                const REAL column_coverage = coverage(j, s.column_fraction),
                           placed = (1 - s.row_fraction) * row[j] + s.row_fraction * previous_row[j];
                d_gate += d[j] * (placed - row_coverage * column_coverage * old_patches[j]);
                d_row_coverage -= gate * d[j] * old_patches[j] * column_coverage;
                d_row_offset += gate * d[j] * (previous_row[j] - row[j]);
                d_row[j] = gate * d[j];
            }
            d_column -= gate * row_coverage * (d[CROP] * old_patches[CROP] - d[0] * old_patches[0]);
            d_row_offset += i == 0 ? -d_row_coverage : i == CROP ? d_row_coverage : 0;
            for (int64_t j = 0; j <= CROP; j++) d[j] *= 1 - gate * row_coverage * coverage(j, s.column_fraction);
            if (i)
                for (int64_t j = 0; j < CROP; j++) {
                    const REAL left = (1 - s.row_fraction) * d_previous_row[j] + s.row_fraction * d_row[j];
                    const REAL right = (1 - s.row_fraction) * d_previous_row[j + 1] + s.row_fraction * d_row[j + 1];
                    d_block[(i - 1) * CROP + j] = (1 - s.column_fraction) * left + s.column_fraction * right;
                    d_column += block[(i - 1) * CROP + j] * (right - left);
                }
            memcpy(previous_row, row, sizeof row);
            memcpy(d_previous_row, d_row, sizeof d_row);
        }
    }
    d_position[0] = d_column, d_position[1] = d_row_offset;
    return d_gate;
}

/* Step t of the memory of entry b, from `emitted`; at = t B + b. */
INLINE void write_and_read(const Tape *tape, int64_t at, int64_t b) {
    const int64_t block = block_of(tape), patch = patch_of(tape), heads = tape->heads, size = tape->size;
    REAL *emitted = tape->emitted + at * emitted_size_of(tape), *corners = tape->corners + at * 2 * (1 + heads);
    REAL *memory = tape->memory + b * tape->channels * size * size;
    REAL *windows_and_features = tape->windows_and_features + at * (windows_of(tape) + tape->features);
    sigmoid_inplace(emitted, 1);
    for (int64_t k = 0; k < keys_of(tape); k++) corners[k] = corner_at(tape, emitted[1 + block + k]);
    write_patch(
        emitted + 1, emitted[0] * tape->write_mask[at], position_at(tape, corners), memory,
        tape->old_patches + at * patch, tape->channels, size);
    for (int64_t k = 0; k < heads; k++)
        read_patch(
            memory, position_at(tape, corners + 2 + 2 * k), windows_and_features + k * CROP * CROP, heads * CROP * CROP,
            tape->read_patches + (at * heads + k) * patch, tape->channels, size);
}

INLINE void write_and_read_backward(
    const Tape *tape, int64_t at, int64_t b, const REAL *d_windows_and_features, const REAL *d_corners) {
    const int64_t block = block_of(tape), patch = patch_of(tape), heads = tape->heads, size = tape->size;
    const REAL *emitted = tape->emitted + at * emitted_size_of(tape), *corners = tape->corners + at * 2 * (1 + heads);
    REAL *d_emitted = tape->d_emitted + at * emitted_size_of(tape), *d_keys = d_emitted + 1 + block;
    REAL *d_memory = tape->d_memory + b * tape->channels * size * size;
    for (int64_t k = 0; k < heads; k++)
        read_patch_backward(
            tape->read_patches + (at * heads + k) * patch, position_at(tape, corners + 2 + 2 * k),
            d_windows_and_features + k * CROP * CROP, heads * CROP * CROP, d_memory, d_keys + 2 + 2 * k, tape->channels,
            size);
    const REAL d_gate = write_patch_backward(
        emitted + 1, emitted[0] * tape->write_mask[at], position_at(tape, corners), tape->old_patches + at * patch,
        d_memory, d_emitted + 1, d_keys, tape->channels, size);
    d_emitted[0] = d_gate * tape->write_mask[at] * emitted[0] * (1 - emitted[0]);
    for (int64_t k = 0; d_corners && k < keys_of(tape); k++) d_keys[k] += d_corners[k];
    for (int64_t k = 0; k < keys_of(tape); k++) d_keys[k] *= corner_derivative(tape, emitted[1 + block + k]);
}

/* E = (h - mean) / deviation; returns 1 / deviation. */
static REAL normalise(const REAL *restrict h, REAL *restrict e, int64_t n) {
    REAL mean = 0, square = 0;
    for (int64_t k = 0; k < n; k++) mean += h[k];
    mean /= n;
    for (int64_t k = 0; k < n; k++) square += (h[k] - mean) * (h[k] - mean);
    const REAL scale = 1 / (REAL)sqrt(square / n + EPS);
    for (int64_t k = 0; k < n; k++) e[k] = (h[k] - mean) * scale;
    return scale;
}

static void
normalise_backward(const REAL *restrict e, REAL scale, const REAL *restrict d_e, REAL *restrict d_h, int64_t n) {
    REAL mean = 0, inner_product = 0;
    for (int64_t k = 0; k < n; k++) mean += d_e[k], inner_product += d_e[k] * e[k];
    mean /= n, inner_product /= n;
    for (int64_t k = 0; k < n; k++) d_h[k] += scale * (d_e[k] - mean - inner_product * e[k]);
}

/* Sets the rows of `out` to a bias. */
static void fill_bias(REAL *out, int64_t stride, int64_t rows, const REAL *bias, int64_t width) {
    for (int64_t r = 0; r < rows; r++) memcpy(out + r * stride, bias, sizeof(REAL) * width);
}

/* Steps first ... last - 1 of the batch entries begin ... end - 1. `gates` contains the input's part of the
   pre-activations, with biases. */
void NAME(forward)(const Tape *tape, int64_t first, int64_t last, int64_t begin, int64_t end) {
    const int64_t rows = end - begin, size = tape->hidden, carried_size = size + tape->read,
                  emitted_size = emitted_size_of(tape);
    const int64_t windows = windows_of(tape), wf_size = windows + tape->features;
    const int64_t contents = contents_of(tape), keys = keys_of(tape);
    const int64_t cells = tape->channels * tape->size * tape->size;
    const unsigned flags = flush_denormals();
    for (int64_t t = first; t < last; t++) {
        const int64_t at = t * tape->batch + begin, next = at + tape->batch;
        REAL *before = tape->before + at * carried_size, *after = tape->after + at * carried_size,
             *gates = tape->gates + at * 4 * size;
        REAL *emitted = tape->emitted + at * emitted_size,
             *windows_and_features = tape->windows_and_features + at * wf_size;
        for (int64_t r = 0; r < rows; r++) {
            if (t)
                memcpy(
                    before + r * carried_size, after + (r - tape->batch) * carried_size, sizeof(REAL) * carried_size);
            if (!starts_at(tape, at + r)) continue;
            memset(before + r * carried_size, 0, sizeof(REAL) * carried_size);
            memset(tape->memory + (begin + r) * cells, 0, sizeof(REAL) * cells);
        }
        product(before, carried_size, rows, tape->recurrent, carried_size, 4 * size, gates, 4 * size);
        for (int64_t r = 0; r < rows; r++)
            lstm_row(
                gates + r * 4 * size, starts_at(tape, at + r) ? tape->zeros : tape->cells + (at + r) * size,
                tape->cells + (next + r) * size, tape->tanh_cells + (at + r) * size, after + r * carried_size, size);
        REAL *normalised = tape->normalised + at * size;
        for (int64_t r = 0; r < rows; r++)
            tape->scales[at + r] = normalise(after + r * carried_size, normalised + r * size, size);
        fill_bias(emitted, emitted_size, rows, tape->emit_bias, contents);
        fill_bias(emitted + contents, emitted_size, rows, tape->point_bias, keys);
        product(normalised, size, rows, tape->emit, size, contents, emitted, emitted_size);
        product(after, carried_size, rows, tape->point, size, keys, emitted + contents, emitted_size);
        for (int64_t r = 0; r < rows; r++) write_and_read(tape, at + r, begin + r);
        fill_bias(windows_and_features + windows, wf_size, rows, tape->prior_bias, tape->features);
        product(
            windows_and_features, wf_size, rows, tape->prior, windows, tape->features, windows_and_features + windows,
            wf_size);
        for (int64_t r = 0; r < rows; r++) tanh_inplace(windows_and_features + r * wf_size + windows, tape->features);
        fill_bias(after + size, carried_size, rows, tape->readout_bias, tape->read);
        product(windows_and_features, wf_size, rows, tape->readout, wf_size, tape->read, after + size, carried_size);
    }
    restore_flags(flags);
}

/* Backward pass over the steps first ... last - 1 for the batch entries begin ... end - 1. The gradients of the state
   after `last` are overwritten by those of the state before `first`; each step adds its d_after. */
void NAME(backward)(const Tape *tape, int64_t first, int64_t last, int64_t begin, int64_t end) {
    const int64_t rows = end - begin, size = tape->hidden, read = tape->read, carried_size = size + read;
    const int64_t emitted_size = emitted_size_of(tape), windows = windows_of(tape), features = tape->features;
    const int64_t contents = contents_of(tape), keys = keys_of(tape);
    const int64_t wf_size = windows + features, cells = tape->channels * tape->size * tape->size;
    REAL *d_carried = tape->d_carried + begin * carried_size,
         *d_windows_and_features = tape->d_windows_and_features + begin * wf_size;
    const unsigned flags = flush_denormals();
    for (int64_t t = last - 1; t >= first; t--) {
        const int64_t at = t * tape->batch + begin;
        REAL *d_read = tape->d_read + at * read, *d_sums = tape->d_sums + at * features;
        REAL *d_emitted = tape->d_emitted + at * emitted_size, *d_gates = tape->d_gates + at * 4 * size;
        for (int64_t k = 0; k < rows * carried_size; k++) d_carried[k] += tape->d_after[at * carried_size + k];
        for (int64_t r = 0; r < rows; r++)
            memcpy(d_read + r * read, d_carried + r * carried_size + size, sizeof(REAL) * read);
        memset(d_windows_and_features, 0, sizeof(REAL) * rows * wf_size);
        product(d_read, read, rows, tape->readout, read, wf_size, d_windows_and_features, wf_size);
        for (int64_t r = 0; r < rows; r++) {
            const REAL *restrict f = tape->windows_and_features + (at + r) * wf_size + windows,
                                 *restrict d = d_windows_and_features + r * wf_size + windows;
            const REAL *restrict d_extra = tape->d_features ? tape->d_features + (at + r) * features : NULL;
            REAL *restrict sums = d_sums + r * features;
            for (int64_t k = 0; k < features; k++) sums[k] = (d[k] + (d_extra ? d_extra[k] : 0)) * (1 - f[k] * f[k]);
        }
        product(d_sums, features, rows, tape->prior, features, windows, d_windows_and_features, wf_size);
        for (int64_t r = 0; r < rows; r++) {
            const REAL *d_corners = NULL;
            if (tape->d_corners && t == last - 1) d_corners = tape->d_corners + (begin + r) * 2 * (1 + tape->heads);
            write_and_read_backward(tape, at + r, begin + r, d_windows_and_features + r * wf_size, d_corners);
        }
        REAL *d_normalised = tape->d_normalised + begin * size;
        memset(d_normalised, 0, sizeof(REAL) * rows * size);
        product(d_emitted, emitted_size, rows, tape->emit, contents, size, d_normalised, size);
        product(d_emitted + contents, emitted_size, rows, tape->point, keys, size, d_carried, carried_size);
        for (int64_t r = 0; r < rows; r++) {
            normalise_backward(
                tape->normalised + (at + r) * size, tape->scales[at + r], d_normalised + r * size,
                d_carried + r * carried_size, size);
            lstm_row_backward(
                tape->gates + (at + r) * 4 * size,
                starts_at(tape, at + r) ? tape->zeros : tape->cells + (at + r) * size,
                tape->tanh_cells + (at + r) * size, d_carried + r * carried_size, d_gates + r * 4 * size,
                tape->d_cell + (begin + r) * size, size);
        }
        memset(d_carried, 0, sizeof(REAL) * rows * carried_size);
        product(d_gates, 4 * size, rows, tape->recurrent, 4 * size, carried_size, d_carried, carried_size);
        for (int64_t r = 0; r < rows; r++) {
            if (!starts_at(tape, at + r)) continue;
            memset(d_carried + r * carried_size, 0, sizeof(REAL) * carried_size);
            memset(tape->d_cell + (begin + r) * size, 0, sizeof(REAL) * size);
            memset(tape->d_memory + (begin + r) * cells, 0, sizeof(REAL) * cells);
        }
    }
    restore_flags(flags);
}
