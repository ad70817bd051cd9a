/* A step of an LSTM for one row, forward and backward; REAL is float or double. Gates are in torch's order i, f, g, o.
   */

#pragma once

#include "activations.h"

/* `gates` [4 size]: pre-activations, overwritten by the gates. `squashed`: output, tanh of the new cell. */
static inline void lstm_row(
    REAL *restrict gates, const REAL *restrict was, REAL *restrict cell, REAL *restrict squashed, REAL *restrict hidden,
    int64_t size) {
    REAL *restrict i = gates, *restrict f = i + size, *restrict g = f + size, *restrict o = g + size;
    sigmoid(i, 2 * size);
    squash(g, size);
    sigmoid(o, size);
    for (int64_t k = 0; k < size; k++) squashed[k] = cell[k] = f[k] * was[k] + i[k] * g[k];
    squash(squashed, size);
    for (int64_t k = 0; k < size; k++) hidden[k] = o[k] * squashed[k];
}

/* `d_gates`: output, gradients of the pre-activations. `d_cell`: gradient of the new cell, overwritten by that of the
   cell before the step. */
static inline void lstm_row_back(
    const REAL *restrict gates, const REAL *restrict was, const REAL *restrict squashed, const REAL *restrict d_hidden,
    REAL *restrict d_gates, REAL *restrict d_cell, int64_t size) {
    const REAL *restrict i = gates, *restrict f = i + size, *restrict g = f + size, *restrict o = g + size;
    REAL *restrict di = d_gates, *restrict df = di + size, *restrict dg = df + size, *restrict d_o = dg + size;
    for (int64_t k = 0; k < size; k++) {
        const REAL s = squashed[k], total = d_cell[k] + d_hidden[k] * o[k] * (1 - s * s);
        di[k] = total * g[k] * i[k] * (1 - i[k]);
        df[k] = total * was[k] * f[k] * (1 - f[k]);
        dg[k] = total * i[k] * (1 - g[k] * g[k]);
        d_o[k] = d_hidden[k] * s * o[k] * (1 - o[k]);
        d_cell[k] = total * f[k];
    }
}
