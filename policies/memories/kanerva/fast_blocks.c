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
    const uint8_t *starts;                                 /* [T, B], or NULL */
    const REAL *written, *zeros;                           /* [T, B]: 1, or 0 of inputs that are skipped; H zeros */
    const REAL *recurrent, *emit, *point, *prior, *readout; /* packed, each for its direction */
    const REAL *emit_bias, *point_bias, *prior_bias, *readout_bias;
    REAL *gates, *tanh_cells, *cells;                        /* [T, B, 4 H], [T, B, H], [T + 1, B, H] */
    REAL *before, *after;                                  /* [T, B, H + R]: hidden state and what was read */
    REAL *normed, *scales;                                 /* E, [T, B, H]; what the hidden state is multiplied by, [T, B] */
    REAL *emitted, *corners;                               /* [T, B, E], see `emitted_by`; [T, B, 1 + K, 2] in cells */
    REAL *covered, *shown, *seen;                          /* patches, [T, B, (K,) C, (B + 1)²]; windows [C, K, B, B] and features */
    REAL *memory;                                          /* [B, C, S, S] */
    const REAL *d_after, *d_features, *d_corners;          /* of the outputs; [T, B, F] or NULL; [B, 1 + K, 2] of the last */
    REAL *d_gates, *d_emitted, *d_sums, *d_read;           /* [T, B, ...]; sums: what enters the features' tanh */
    REAL *d_carried, *d_cell, *d_memory;                   /* of the state, [B, ...] */
    REAL *d_seen, *d_normed;                               /* scratch, [B, W + F], [B, H] */
} Tape;

static int64_t block_of(const Tape *tape) { return tape->channels * CROP * CROP; }
static int64_t patch_of(const Tape *tape) { return tape->channels * PATCH * PATCH; }
static int64_t windows_of(const Tape *tape) { return tape->heads * block_of(tape); }
/* Write gate and block, from E; keys of the block and of the windows, from the hidden state */
static int64_t contents_of(const Tape *tape) { return 1 + block_of(tape); }
static int64_t keys_of(const Tape *tape) { return 2 * (1 + tape->heads); }
static int64_t emitted_by(const Tape *tape) { return contents_of(tape) + keys_of(tape); }
static int starts_at(const Tape *tape, int64_t at) { return tape->starts && tape->starts[at]; }

/* (S - B) Φ(y): the first row or column of the block at a key, and its derivative. */
static REAL corner_at(const Tape *tape, REAL key) {
    return (tape->size - CROP) * (REAL)0.5 * (1 + (REAL)erf(key * (REAL)0.70710678118654752));
}
static REAL corner_slope(const Tape *tape, REAL key) {
    return (tape->size - CROP) * (REAL)0.39894228040143268 * (REAL)exp(-key * key / 2);
}

/* The first cell of a patch, and how far the block lies beyond it, 0..1. */
typedef struct {
    int64_t row, column;
    REAL down, across;
} Spot;

static Spot spot_at(const Tape *tape, const REAL *corner) {
    const int64_t maximum = tape->size - CROP - 1;
    Spot s = {(int64_t)corner[1], (int64_t)corner[0], 0, 0};
    s.row = s.row > maximum ? maximum : s.row, s.column = s.column > maximum ? maximum : s.column;
    s.down = corner[1] - s.row, s.across = corner[0] - s.column;
    return s;
}

/* The part of a patch's row that its block covers: all of it, except in the first and the last row. */
INLINE REAL cover(int64_t i, REAL beyond) { return i == 0 ? 1 - beyond : i == CROP ? beyond : 1; }

/* A row of a block spread over one of its patch. */
INLINE void spread_row(const REAL *restrict row, REAL *restrict out, REAL beyond) {
    out[CROP] = 0;
    for (int64_t j = 0; j < CROP; j++) out[j] = (1 - beyond) * row[j];
    for (int64_t j = 0; j < CROP; j++) out[j + 1] += beyond * row[j];
}

/* M (1 - g a) + g ST⁻¹(P); `covered` keeps the patch as it was. */
INLINE void write_patch(
    const REAL *block, REAL gate, Spot s, REAL *memory, REAL *restrict covered, int64_t channels, int64_t size) {
    for (int64_t c = 0; c < channels; c++, block += CROP * CROP, memory += size * size) {
        REAL above[PATCH] = {0}, row[PATCH];
        for (int64_t i = 0; i <= CROP; i++, covered += PATCH) {
            REAL *restrict cells = memory + (s.row + i) * size + s.column;
            const REAL whole = gate * cover(i, s.down);
            if (i < CROP)
                spread_row(block + i * CROP, row, s.across);
            else
                memset(row, 0, sizeof row);
            for (int64_t j = 0; j <= CROP; j++) {
                const REAL placed = (1 - s.down) * row[j] + s.down * above[j];
                covered[j] = cells[j];
                cells[j] += gate * placed - whole * cover(j, s.across) * covered[j];
            }
            memcpy(above, row, sizeof row);
        }
    }
}

/* ST(M): a window, whose channels lie `stride` stride; `shown` keeps the patch. */
INLINE void read_patch(
    const REAL *memory, Spot s, REAL *restrict window, int64_t stride, REAL *restrict shown, int64_t channels,
    int64_t size) {
    for (int64_t c = 0; c < channels; c++, memory += size * size, shown += PATCH * PATCH, window += stride) {
        for (int64_t i = 0; i <= CROP; i++)
            memcpy(shown + i * PATCH, memory + (s.row + i) * size + s.column, sizeof(REAL) * PATCH);
        for (int64_t i = 0; i < CROP; i++) {
            const REAL *restrict row = shown + i * PATCH, *restrict next = row + PATCH;
            for (int64_t j = 0; j < CROP; j++)
                window[i * CROP + j] = (1 - s.down) * ((1 - s.across) * row[j] + s.across * row[j + 1]) +
                                    s.down * ((1 - s.across) * next[j] + s.across * next[j + 1]);
        }
    }
}

/* Backward pass of `read_patch`: adds to that of the memory, and gives that of the spot, across and down. */
INLINE void read_patch_back(
    const REAL *shown, Spot s, const REAL *d_window, int64_t stride, REAL *d_memory, REAL *restrict d_spot,
    int64_t channels, int64_t size) {
    REAL d_across = 0, d_down = 0;
    for (int64_t c = 0; c < channels; c++, d_memory += size * size, shown += PATCH * PATCH, d_window += stride)
        for (int64_t i = 0; i < CROP; i++) {
            const REAL *restrict row = shown + i * PATCH, *restrict next = row + PATCH, *restrict d = d_window + i * CROP;
            REAL *restrict d_row = d_memory + (s.row + i) * size + s.column, *restrict d_next = d_row + size;
            REAL spread[PATCH];
            for (int64_t j = 0; j < CROP; j++) {
                d_across += d[j] * ((1 - s.down) * (row[j + 1] - row[j]) + s.down * (next[j + 1] - next[j]));
                d_down += d[j] * ((1 - s.across) * (next[j] - row[j]) + s.across * (next[j + 1] - row[j + 1]));
            }
            spread_row(d, spread, s.across);
            for (int64_t j = 0; j <= CROP; j++) d_row[j] += (1 - s.down) * spread[j], d_next[j] += s.down * spread[j];
        }
    d_spot[0] = d_across, d_spot[1] = d_down;
}

/* Backward pass of `write_patch`: that of the memory after becomes that of the memory before; gives those of the block,
   of the spot and, as the result, of the gate. */
INLINE REAL write_patch_back(
    const REAL *block, REAL gate, Spot s, const REAL *covered, REAL *d_memory, REAL *restrict d_block,
    REAL *restrict d_spot, int64_t channels, int64_t size) {
    REAL d_gate = 0, d_across = 0, d_down = 0;
    for (int64_t c = 0; c < channels; c++, block += CROP * CROP, d_block += CROP * CROP, d_memory += size * size) {
        REAL above[PATCH] = {0}, row[PATCH], d_above[PATCH] = {0}, d_row[PATCH];
        for (int64_t i = 0; i <= CROP; i++, covered += PATCH) {
            REAL *restrict d = d_memory + (s.row + i) * size + s.column;
            const REAL whole = cover(i, s.down);
            REAL d_whole = 0;
            if (i < CROP)
                spread_row(block + i * CROP, row, s.across);
            else
                memset(row, 0, sizeof row);
            for (int64_t j = 0; j <= CROP; j++) {
                const REAL part = cover(j, s.across), placed = (1 - s.down) * row[j] + s.down * above[j];
                d_gate += d[j] * (placed - whole * part * covered[j]);
                d_whole -= gate * d[j] * covered[j] * part;
                d_down += gate * d[j] * (above[j] - row[j]);
                d_row[j] = gate * d[j];
            }
            d_across -= gate * whole * (d[CROP] * covered[CROP] - d[0] * covered[0]);
            d_down += i == 0 ? -d_whole : i == CROP ? d_whole : 0;
            for (int64_t j = 0; j <= CROP; j++) d[j] *= 1 - gate * whole * cover(j, s.across);
            if (i)
                for (int64_t j = 0; j < CROP; j++) {
                    const REAL left = (1 - s.down) * d_above[j] + s.down * d_row[j];
                    const REAL right = (1 - s.down) * d_above[j + 1] + s.down * d_row[j + 1];
                    d_block[(i - 1) * CROP + j] = (1 - s.across) * left + s.across * right;
                    d_across += block[(i - 1) * CROP + j] * (right - left);
                }
            memcpy(above, row, sizeof row);
            memcpy(d_above, d_row, sizeof d_row);
        }
    }
    d_spot[0] = d_across, d_spot[1] = d_down;
    return d_gate;
}

/* Step t of the memory of entry b, at = t B + b; what the controller emits is there. */
INLINE void write_and_read(const Tape *tape, int64_t at, int64_t b) {
    const int64_t block = block_of(tape), patch = patch_of(tape), heads = tape->heads, size = tape->size;
    REAL *emitted = tape->emitted + at * emitted_by(tape), *corners = tape->corners + at * 2 * (1 + heads);
    REAL *memory = tape->memory + b * tape->channels * size * size;
    REAL *seen = tape->seen + at * (windows_of(tape) + tape->features);
    sigmoid_inplace(emitted, 1);
    for (int64_t k = 0; k < keys_of(tape); k++) corners[k] = corner_at(tape, emitted[1 + block + k]);
    write_patch(
        emitted + 1, emitted[0] * tape->written[at], spot_at(tape, corners), memory, tape->covered + at * patch,
        tape->channels, size);
    for (int64_t k = 0; k < heads; k++)
        read_patch(
            memory, spot_at(tape, corners + 2 + 2 * k), seen + k * CROP * CROP, heads * CROP * CROP, tape->shown + (at * heads + k) * patch,
            tape->channels, size);
}

INLINE void write_and_read_back(
    const Tape *tape, int64_t at, int64_t b, const REAL *d_seen, const REAL *d_corners) {
    const int64_t block = block_of(tape), patch = patch_of(tape), heads = tape->heads, size = tape->size;
    const REAL *emitted = tape->emitted + at * emitted_by(tape), *corners = tape->corners + at * 2 * (1 + heads);
    REAL *d_emitted = tape->d_emitted + at * emitted_by(tape), *d_keys = d_emitted + 1 + block;
    REAL *d_memory = tape->d_memory + b * tape->channels * size * size;
    for (int64_t k = 0; k < heads; k++)
        read_patch_back(
            tape->shown + (at * heads + k) * patch, spot_at(tape, corners + 2 + 2 * k), d_seen + k * CROP * CROP,
            heads * CROP * CROP, d_memory, d_keys + 2 + 2 * k, tape->channels, size);
    const REAL d_gate = write_patch_back(
        emitted + 1, emitted[0] * tape->written[at], spot_at(tape, corners), tape->covered + at * patch, d_memory,
        d_emitted + 1, d_keys, tape->channels, size);
    d_emitted[0] = d_gate * tape->written[at] * emitted[0] * (1 - emitted[0]);
    for (int64_t k = 0; d_corners && k < keys_of(tape); k++) d_keys[k] += d_corners[k];
    for (int64_t k = 0; k < keys_of(tape); k++) d_keys[k] *= corner_slope(tape, emitted[1 + block + k]);
}

/* E = (h - mean) / deviation; the result is 1 / deviation. */
static REAL normalise(const REAL *restrict h, REAL *restrict e, int64_t n) {
    REAL mean = 0, square = 0;
    for (int64_t k = 0; k < n; k++) mean += h[k];
    mean /= n;
    for (int64_t k = 0; k < n; k++) square += (h[k] - mean) * (h[k] - mean);
    const REAL scale = 1 / (REAL)sqrt(square / n + EPS);
    for (int64_t k = 0; k < n; k++) e[k] = (h[k] - mean) * scale;
    return scale;
}

static void normalise_back(const REAL *restrict e, REAL scale, const REAL *restrict d_e, REAL *restrict d_h, int64_t n) {
    REAL mean = 0, along = 0;
    for (int64_t k = 0; k < n; k++) mean += d_e[k], along += d_e[k] * e[k];
    mean /= n, along /= n;
    for (int64_t k = 0; k < n; k++) d_h[k] += scale * (d_e[k] - mean - along * e[k]);
}

/* All entries of a step; `out` stride, filled with a bias. */
static void biased(REAL *out, int64_t stride, int64_t rows, const REAL *bias, int64_t width) {
    for (int64_t r = 0; r < rows; r++) memcpy(out + r * stride, bias, sizeof(REAL) * width);
}

/* Steps first ... last - 1 of the batch entries begin ... end - 1. `gates` contains the input's part of the
   pre-activations, with biases. */
void NAME(forward)(const Tape *tape, int64_t first, int64_t last, int64_t begin, int64_t end) {
    const int64_t rows = end - begin, size = tape->hidden, all = size + tape->read, emits = emitted_by(tape);
    const int64_t windows = windows_of(tape), sees = windows + tape->features;
    const int64_t contents = contents_of(tape), keys = keys_of(tape);
    const int64_t cells = tape->channels * tape->size * tape->size;
    const unsigned flags = flush_denormals();
    for (int64_t t = first; t < last; t++) {
        const int64_t at = t * tape->batch + begin, next = at + tape->batch;
        REAL *before = tape->before + at * all, *after = tape->after + at * all, *gates = tape->gates + at * 4 * size;
        REAL *emitted = tape->emitted + at * emits, *seen = tape->seen + at * sees;
        for (int64_t r = 0; r < rows; r++) {
            if (t) memcpy(before + r * all, after + (r - tape->batch) * all, sizeof(REAL) * all);
            if (!starts_at(tape, at + r)) continue;
            memset(before + r * all, 0, sizeof(REAL) * all);
            memset(tape->memory + (begin + r) * cells, 0, sizeof(REAL) * cells);
        }
        product(before, all, rows, tape->recurrent, all, 4 * size, gates, 4 * size);
        for (int64_t r = 0; r < rows; r++)
            lstm_row(
                gates + r * 4 * size, starts_at(tape, at + r) ? tape->zeros : tape->cells + (at + r) * size,
                tape->cells + (next + r) * size, tape->tanh_cells + (at + r) * size, after + r * all, size);
        REAL *normed = tape->normed + at * size;
        for (int64_t r = 0; r < rows; r++) tape->scales[at + r] = normalise(after + r * all, normed + r * size, size);
        biased(emitted, emits, rows, tape->emit_bias, contents);
        biased(emitted + contents, emits, rows, tape->point_bias, keys);
        product(normed, size, rows, tape->emit, size, contents, emitted, emits);
        product(after, all, rows, tape->point, size, keys, emitted + contents, emits);
        for (int64_t r = 0; r < rows; r++)
            write_and_read(tape, at + r, begin + r);
        biased(seen + windows, sees, rows, tape->prior_bias, tape->features);
        product(seen, sees, rows, tape->prior, windows, tape->features, seen + windows, sees);
        for (int64_t r = 0; r < rows; r++) tanh_inplace(seen + r * sees + windows, tape->features);
        biased(after + size, all, rows, tape->readout_bias, tape->read);
        product(seen, sees, rows, tape->readout, sees, tape->read, after + size, all);
    }
    restore_flags(flags);
}

/* Backward pass over the steps first ... last - 1 for the batch entries begin ... end - 1. The gradients of the state
   after `last` are overwritten by those of the state before `first`; the gradients in d_after are not included. */
void NAME(backward)(const Tape *tape, int64_t first, int64_t last, int64_t begin, int64_t end) {
    const int64_t rows = end - begin, size = tape->hidden, read = tape->read, all = size + read;
    const int64_t emits = emitted_by(tape), windows = windows_of(tape), features = tape->features;
    const int64_t contents = contents_of(tape), keys = keys_of(tape);
    const int64_t sees = windows + features, cells = tape->channels * tape->size * tape->size;
    REAL *d_carried = tape->d_carried + begin * all, *d_seen = tape->d_seen + begin * sees;
    const unsigned flags = flush_denormals();
    for (int64_t t = last - 1; t >= first; t--) {
        const int64_t at = t * tape->batch + begin;
        REAL *d_read = tape->d_read + at * read, *d_sums = tape->d_sums + at * features;
        REAL *d_emitted = tape->d_emitted + at * emits, *d_gates = tape->d_gates + at * 4 * size;
        for (int64_t k = 0; k < rows * all; k++) d_carried[k] += tape->d_after[at * all + k];
        for (int64_t r = 0; r < rows; r++) memcpy(d_read + r * read, d_carried + r * all + size, sizeof(REAL) * read);
        memset(d_seen, 0, sizeof(REAL) * rows * sees);
        product(d_read, read, rows, tape->readout, read, sees, d_seen, sees);
        for (int64_t r = 0; r < rows; r++) {
            const REAL *restrict f = tape->seen + (at + r) * sees + windows, *restrict d = d_seen + r * sees + windows;
            const REAL *restrict more = tape->d_features ? tape->d_features + (at + r) * features : NULL;
            REAL *restrict sums = d_sums + r * features;
            for (int64_t k = 0; k < features; k++) sums[k] = (d[k] + (more ? more[k] : 0)) * (1 - f[k] * f[k]);
        }
        product(d_sums, features, rows, tape->prior, features, windows, d_seen, sees);
        for (int64_t r = 0; r < rows; r++) {
            const REAL *d_corners = NULL;
            if (tape->d_corners && t == last - 1) d_corners = tape->d_corners + (begin + r) * 2 * (1 + tape->heads);
            write_and_read_back(tape, at + r, begin + r, d_seen + r * sees, d_corners);
        }
        REAL *d_normed = tape->d_normed + begin * size;
        memset(d_normed, 0, sizeof(REAL) * rows * size);
        product(d_emitted, emits, rows, tape->emit, contents, size, d_normed, size);
        product(d_emitted + contents, emits, rows, tape->point, keys, size, d_carried, all);
        for (int64_t r = 0; r < rows; r++) {
            normalise_back(
                tape->normed + (at + r) * size, tape->scales[at + r], d_normed + r * size, d_carried + r * all, size);
            lstm_row_backward(
                tape->gates + (at + r) * 4 * size, starts_at(tape, at + r) ? tape->zeros : tape->cells + (at + r) * size,
                tape->tanh_cells + (at + r) * size, d_carried + r * all, d_gates + r * 4 * size,
                tape->d_cell + (begin + r) * size, size);
        }
        memset(d_carried, 0, sizeof(REAL) * rows * all);
        product(d_gates, 4 * size, rows, tape->recurrent, 4 * size, all, d_carried, all);
        for (int64_t r = 0; r < rows; r++) {
            if (!starts_at(tape, at + r)) continue;
            memset(d_carried + r * all, 0, sizeof(REAL) * all);
            memset(tape->d_cell + (begin + r) * size, 0, sizeof(REAL) * size);
            memset(tape->d_memory + (begin + r) * cells, 0, sizeof(REAL) * cells);
        }
    }
    restore_flags(flags);
}
