/* A step of an LSTM for one row, forward and backward; REAL is float or double. Gates are in torch's order i, f, g, o.
   */

#pragma once

#include "activations.h"

/* `gates` [4 size]: pre-activations, overwritten by the gates. `tanh_cell` [size]: output, tanh of the new cell. */
static inline void lstm_row(
    REAL *restrict gates, const REAL *restrict old_cell, REAL *restrict cell, REAL *restrict tanh_cell,
    REAL *restrict hidden, int64_t size) {
    REAL *restrict i = gates, *restrict f = i + size, *restrict g = f + size, *restrict o = g + size;
    sigmoid_inplace(i, 2 * size);
    tanh_inplace(g, size);
    sigmoid_inplace(o, size);
    for (int64_t k = 0; k < size; k++) tanh_cell[k] = cell[k] = f[k] * old_cell[k] + i[k] * g[k];
    tanh_inplace(tanh_cell, size);
    for (int64_t k = 0; k < size; k++) hidden[k] = o[k] * tanh_cell[k];
}

/* `d_gates`: output, gradients of the pre-activations. `d_cell`: gradient of the new cell, overwritten by that of the
   cell before the step. */
static inline void lstm_row_backward(
    const REAL *restrict gates, const REAL *restrict old_cell, const REAL *restrict tanh_cell,
    const REAL *restrict d_hidden, REAL *restrict d_gates, REAL *restrict d_cell, int64_t size) {
    const REAL *restrict i = gates, *restrict f = i + size, *restrict g = f + size, *restrict o = g + size;
    REAL *restrict di = d_gates, *restrict df = di + size, *restrict dg = df + size, *restrict d_o = dg + size;
    for (int64_t k = 0; k < size; k++) {
        const REAL s = tanh_cell[k], d_new_cell = d_cell[k] + d_hidden[k] * o[k] * (1 - s * s);
        di[k] = d_new_cell * g[k] * i[k] * (1 - i[k]);
        df[k] = d_new_cell * old_cell[k] * f[k] * (1 - f[k]);
        dg[k] = d_new_cell * i[k] * (1 - g[k] * g[k]);
        d_o[k] = d_hidden[k] * s * o[k] * (1 - o[k]);
        d_cell[k] = d_new_cell * f[k];
    }
}
